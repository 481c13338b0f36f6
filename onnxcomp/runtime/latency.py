"""How much faster is one model than another, and how sure is that?

Only ratios measured interleaved in one process are trusted. What was found to spoil them, and what is done:

- The machine's speed drifts. Models take turns in blocks of some milliseconds, in an order that alternates, and each
  block is compared with its neighbour in time only.
- Other processes. With one thread on the CPU provider the thread's own processor time is compared, not the time on the
  wall, so that what others take away does not count (with three busy processes on two cores the spread of a
  transformer's ratio fell from 9 % to 1 %); else the time on the wall. The reported milliseconds are always the wall's.
- The system moves threads. Where it allows it they are pinned, each to an idle core of its own (see `pinning`).
- Interruptions. A block counts by the median of its calls, a round by the median of its pairs, and of the rounds the
  outer ones are trimmed.
- Two sessions of one and the same file differ by about 1 % for as long as they live (where their memory happens to
  lie), however long one measures. So a measurement is made of rounds, each with newly opened sessions, and the spread
  between the rounds gives the interval; a bootstrap within one pair of sessions would be far too sure.
  benchmarks/latency_noise.py counts how often the outcome is right.
  Method: Kalibera and Jones, "Rigorous Benchmarking in Reasonable Time", ISMM 2013 (repeat at the highest level that
  varies). Where opening takes long, rounds share sessions and that spread is added as `SESSION_SPREAD`.

The interval is Tukey and McLaughlin's, 95 %, of the trimmed mean of the rounds' log ratios (Yuen, "The two-sample
trimmed t", Biometrika 1974). Its variance is pooled with a prior worth `PRIOR_ROUNDS` rounds, so that few rounds that
agree by chance do not look sure. Measuring goes on for longer only by how wide the interval is, never by where it
lies, so stopping does not favour either outcome.
"""

from __future__ import annotations

import gc
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from onnxcomp.errors import ModelError, UsageError
from onnxcomp.results import Benchmark, LatencySpread
from onnxcomp.runtime import pinning, providers
from onnxcomp.runtime.acceleration import PLAIN, Acceleration, gpu
from onnxcomp.runtime.machine import usable_cores
from onnxcomp.runtime.progress import SILENT, Progress
from onnxcomp.runtime.session import Feeds, Session, open_session

if TYPE_CHECKING:
    from numpy.typing import NDArray

Model = Path | str | bytes

ROUNDS = 12
LEAST_ROUNDS = 5
LEAST_PAIRS = 2
BLOCK_SECONDS = 0.006
WARM_UP_SECONDS = 0.01
WARM_UP_CALLS = 2  # behind the first, which is checked: it finds the memory that the second uses
OPENING_SHARE = 0.5
TRIMMED_SHARE = 0.2
SESSION_SPREAD = 0.01
PRIOR_ROUNDS = 3
NARROWEST = 0.005
WIDE = 0.02
ENOUGH = 0.0125  # hardly more than two sessions of one file differ
SPREAD_BINS, SPREAD_SHARE = 60, 0.98
# two-sided 95 % quantiles of Student's t by degrees of freedom
_T95 = (math.inf, 12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14, 2.13, 2.12)


@dataclass(frozen=True)
class Entry:
    """A model and how the provider is to run it: one model may compete under several options."""

    model: Model
    acceleration: Acceleration = PLAIN


@dataclass
class _Contender:
    """One model: every call's time on the wall in ms, and for each round the medians of its blocks in ms."""

    entry: Entry
    calls_ms: list[float] = field(default_factory=list)
    rounds: list[list[float]] = field(default_factory=list)
    session_seconds: list[float] = field(default_factory=list)
    placement: providers.Placement | None = None


def compare(
    before: Model | Entry,
    after: Model | Entry,
    feed: Feeds,
    *,
    provider: str = "cpu",
    threads: int = 1,
    seconds: float = 4.0,
    seed: int = 0,
    progress: Progress = SILENT,
) -> Benchmark:
    """Latency of `after` against `before`, measured interleaved.

    Args:
        before, after: files, or the bytes of models; as `Entry` with options of a GPU provider.
        feed: one array for each input; both models run it again and again.
        provider: `cpu`, `cuda`, `tensorrt` or ONNX Runtime's full name.
        threads: threads inside one operator; 0 means every usable core. 1 by default, which is comparable across
            machines and what a loaded server sees.
        seconds: about how long to measure, up to twice as long on a noisy machine; slow models take what the least
            number of calls takes.
        seed: of the order in which the models take turns.
        progress: shows the rounds.

    Raises:
        ModelError: a model does not load or run, or the two take different inputs.
        DataError: the feed does not fit.
        EnvironmentLacksError: the provider does not run on this machine.
    """
    pair = [before, after]
    (found,) = bench_many(pair, feed, provider=provider, threads=threads, seconds=seconds, seed=seed, progress=progress)
    return found


def bench_many(
    models: Sequence[Model | Entry],
    feed: Feeds,
    *,
    provider: str = "cpu",
    threads: int = 1,
    seconds: float = 4.0,
    seed: int = 0,
    progress: Progress = SILENT,
) -> list[Benchmark]:
    """Latency of each further model against the first; a single model is measured against itself.

    Arguments and errors are those of `compare`; `seconds` is for each model after the first.
    """
    if not models:
        raise UsageError("there is no model to measure", do="name at least one")
    if not (seconds > 0 and math.isfinite(seconds)):
        raise UsageError(f"{seconds} seconds cannot be measured", do="give a positive number of seconds")
    entries = [model if isinstance(model, Entry) else Entry(model) for model in models]
    contenders = [_Contender(entry) for entry in (entries if len(entries) > 1 else entries * 2)]
    seconds *= len(contenders) - 1
    bench = _Bench(contenders, feed, provider, threads, seconds, np.random.default_rng(seed))
    with pinning.pinned(bench.cores):
        for _ in progress.track(_rounds(contenders, seconds), None, "measuring latency"):
            bench.round()
    first = contenders[0]
    batch = next((int(array.shape[0]) for array in feed.values() if array.ndim), 1)
    shapes = {name: list(array.shape) for name, array in feed.items()}
    measured = [_benchmark(first, rival, bench.sessions[0], batch) for rival in contenders[1:]]
    return [replace(one, shapes=shapes) for one in measured]


@dataclass
class _Bench:
    """One measurement as it goes on: the sessions of its last rounds, and how many calls make a block of each."""

    contenders: list[_Contender]
    feed: Feeds
    provider: str
    threads: int
    seconds: float
    rng: np.random.Generator
    sessions: list[Session] = field(default_factory=list)
    callers: list[Callable[[], object]] = field(default_factory=list)
    calls: list[int] = field(default_factory=list)
    cores: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if providers.full_name(self.provider) == providers.CPU:
            self.cores = pinning.choose(self.threads or usable_cores())

    def round(self) -> None:
        """Measure every contender in turns, with new sessions where they open soon enough."""
        if not self.callers or _opening(self.contenders) < OPENING_SHARE * self.seconds:
            self._open()
        _measure_round(
            self.contenders,
            self.callers,
            self.calls,
            self.seconds / ROUNDS,
            _runs_alone(self.sessions[0]),
            self.rng,
        )

    def _open(self) -> None:
        count = len(self.contenders)
        order = self.rng.permutation(count) if self.calls else np.arange(count)
        self.sessions, self.callers = [], []  # the old ones go before the new ones come
        opened: dict[int, Session] = {}
        for index in map(int, order):
            contender = self.contenders[index]
            start = time.perf_counter()
            session = open_session(
                contender.entry.model,
                provider=self.provider,
                threads=self.threads,
                acceleration=contender.entry.acceleration,
                config=pinning.session_config(self.cores),
            )
            contender.session_seconds.append(time.perf_counter() - start)
            contender.placement = contender.placement or session.placement()
            opened[index] = session
        self.sessions = [opened[index] for index in range(count)]
        _same_inputs(self.sessions)
        self.callers = [_caller(session, self.feed) for session in self.sessions]
        self.calls = [_warm_up(caller) for caller in self.callers]


def log_ratio_interval(rounds: Sequence[NDArray[np.float64]], openings: int) -> tuple[float, float]:
    """Trimmed mean of the rounds' median log ratios and the half width of its 95 % interval.

    Args:
        rounds: for each round, the log ratio of each pair of neighbouring blocks.
        openings: how many times the sessions were opened anew for these rounds.
    """
    medians = np.sort([np.median(pairs) for pairs in rounds])
    trimmed = int(TRIMMED_SHARE * len(medians))
    kept = medians[trimmed : len(medians) - trimmed]
    winsorised = np.clip(medians, kept[0], kept[-1])
    between = SESSION_SPREAD**2 / openings if openings < len(rounds) else 0.0
    prior = float(np.median([_median_variance(pairs) for pairs in rounds])) + (0.0 if between else SESSION_SPREAD**2)
    freedom = PRIOR_ROUNDS + len(kept) - 1
    squares = float(((winsorised - winsorised.mean()) ** 2).sum())
    variance = (PRIOR_ROUNDS * prior + squares) / freedom
    half = _T95[min(freedom, len(_T95) - 1)] * math.sqrt(variance / len(kept) + between)
    return float(kept.mean()), max(half, NARROWEST)


def _rounds(contenders: list[_Contender], seconds: float) -> Iterator[int]:
    """Number the rounds until the interval is narrow or the time is used up, twice the time where it is still wide."""
    start = time.perf_counter()
    for number in range(4 * ROUNDS):
        if number >= LEAST_ROUNDS:
            spent = time.perf_counter() - start
            widest = max(_interval(contenders[0], rival)[1] for rival in contenders[1:])
            if widest <= ENOUGH or spent * (number + 1) / number > (seconds if widest <= WIDE else 2 * seconds):
                return
        yield number


def _interval(first: _Contender, rival: _Contender) -> tuple[float, float]:
    return log_ratio_interval(_pairs(first, rival), len(rival.session_seconds))


def _opening(contenders: list[_Contender]) -> float:
    return sum(sum(contender.session_seconds) for contender in contenders)


def _measure_round(
    contenders: list[_Contender],
    callers: list[Callable[[], object]],
    calls: list[int],
    seconds: float,
    own_time: bool,
    rng: np.random.Generator,
) -> None:
    for contender in contenders:
        contender.rounds.append([])
    with _no_garbage_collection():
        start = time.perf_counter()
        order = rng.permutation(len(callers))
        done = 0
        while done < LEAST_PAIRS or time.perf_counter() - start < seconds:
            for index in order:
                times_ms, compared_ms = _block(callers[index], calls[index], own_time)
                contenders[index].calls_ms.extend(times_ms)
                contenders[index].rounds[-1].append(compared_ms)
            done += 1
            # A B, B A: what drifts steadily cancels; then another order, so that every pair gets to be neighbours
            order = order[::-1] if done % 2 else rng.permutation(len(callers))


def _runs_alone(session: Session) -> bool:
    """Whether a call is all done by the calling thread, on a system that counts its time finely (Windows does not)."""
    return session.provider == providers.CPU and session.threads == 1 and sys.platform != "win32"


def _warm_up(caller: Callable[[], object]) -> int:
    """Run until caches and memory pools are filled; returns how many calls make a block."""
    start = time.perf_counter()
    fastest, done = math.inf, 0
    while done < WARM_UP_CALLS or time.perf_counter() - start < WARM_UP_SECONDS:
        begin = time.perf_counter()
        caller()
        fastest = min(fastest, time.perf_counter() - begin)
        done += 1
        if done > 1 and time.perf_counter() - start > 100 * WARM_UP_SECONDS:
            break  # calls of seconds: the first one has filled what there is to fill
    return max(1, round(BLOCK_SECONDS / fastest))


def _block(caller: Callable[[], object], calls: int, own_time: bool) -> tuple[list[float], float]:
    """Each call's time on the wall, and the median of what is compared, in ms."""
    wall, own = time.perf_counter_ns, time.thread_time_ns if own_time else time.perf_counter_ns
    times_ms, compared_ms = [], []
    for _ in range(calls):
        own_begin, begin = own(), wall()
        caller()
        end, own_end = wall(), own()
        times_ms.append((end - begin) / 1e6)
        compared_ms.append((own_end - own_begin) / 1e6)
    return times_ms, float(np.median(compared_ms))


def _caller(session: Session, feed: Feeds) -> Callable[[], object]:
    """One inference, finished when it returns; on a GPU with inputs and outputs that stay on the device."""
    outputs = session.run(feed)  # the first run says clearly what does not fit
    raw = session.raw
    if gpu(session.provider):
        return bound_caller(session, feed, outputs, "cuda")
    arrays = dict(feed)
    return lambda: raw.run(None, arrays)


def bound_caller(session: Session, feed: Feeds, outputs: Feeds, device: str) -> Callable[[], object]:
    """One inference through IOBinding with `device` memory, synchronised before it returns.

    Inputs and outputs keep their memory from call to call: nothing is allocated or copied, and a CUDA graph, which
    holds addresses, can be replayed. `outputs`: what a run gives, for their shapes and dtypes.
    """
    import onnxruntime as ort

    binding, number = session.raw.io_binding(), session.acceleration.device_id
    for name, array in feed.items():
        binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), device, number))
    for port in session.outputs:
        if port.exotic:
            binding.bind_output(port.name, device, number)
            continue
        array = np.ascontiguousarray(outputs[port.name])
        binding.bind_ortvalue_output(port.name, ort.OrtValue.ortvalue_from_numpy(array, device, number))
    binding.synchronize_inputs()
    raw = session.raw

    def call() -> None:
        raw.run_with_iobinding(binding)
        binding.synchronize_outputs()

    return call


def _same_inputs(sessions: Sequence[Session]) -> None:
    first = {port.name: port for port in sessions[0].inputs}
    for session in sessions[1:]:
        ports = {port.name: port for port in session.inputs}
        if ports.keys() != first.keys() or not all(port.agrees(ports[name]) for name, port in first.items()):
            raise ModelError(
                f"the models take different inputs: {sessions[0].signature()}, but {session.signature()}",
                where=session.where,
                do="only models with the same inputs can be timed on the same data",
            )


def _pairs(first: _Contender, rival: _Contender) -> list[NDArray[np.float64]]:
    rounds = zip(first.rounds, rival.rounds, strict=True)
    return [np.log(np.asarray(before)) - np.log(np.asarray(after)) for before, after in rounds]


def _median_variance(values: NDArray[np.float64]) -> float:
    """Variance of the median of a sample, from its quartiles as for a normal distribution (robust to outliers)."""
    low, high = np.quantile(values, [0.25, 0.75])
    deviation = float(high - low) / 1.349
    return math.pi / 2 * deviation**2 / len(values)


def _benchmark(first: _Contender, rival: _Contender, session: Session, batch: int) -> Benchmark:
    center, half = _interval(first, rival)
    placed = rival.placement or session.placement()
    return Benchmark(
        provider=session.provider,
        nodes_on_provider=placed.on_provider,
        nodes_elsewhere=placed.nodes_elsewhere,
        batch=batch,
        threads=session.threads,
        before_ms=_percentiles(first.calls_ms),
        after_ms=_percentiles(rival.calls_ms),
        speedup=math.exp(center),
        speedup_interval=(math.exp(center - half), math.exp(center + half)),
        session_seconds=(_median(first.session_seconds), _median(rival.session_seconds)),
        spread=_spread(first.calls_ms, rival.calls_ms),
        placement=(_counts(first), _counts(rival)),
        options=(first.entry.acceleration.to_json(), rival.entry.acceleration.to_json()),
        calls=(len(first.calls_ms), len(rival.calls_ms)),
        compared="processor" if _runs_alone(session) else "wall",
    )


def _counts(contender: _Contender) -> dict[str, int]:
    return dict(contender.placement.counts) if contender.placement is not None else {}


def _spread(before_ms: list[float], after_ms: list[float]) -> LatencySpread:
    """Both models' calls in the same bins, which end where 98 % of both do, at thrice the slower median at most."""
    low = min(*before_ms, *after_ms)
    quantiles = [np.quantile(calls, [0.5, SPREAD_SHARE]) for calls in (before_ms, after_ms)]
    high = float(min(max(q[1] for q in quantiles), 3 * max(q[0] for q in quantiles)))
    high = high if high > low else low * 1.01 + 1e-6
    counts = [np.histogram(calls, SPREAD_BINS, (low, high))[0] for calls in (before_ms, after_ms)]
    inside = [tuple(int(n) for n in found) for found in counts]
    slower = (len(before_ms) - sum(inside[0]), len(after_ms) - sum(inside[1]))
    return LatencySpread(round(low, 6), round(high, 6), inside[0], inside[1], slower)


def _percentiles(calls_ms: list[float]) -> dict[str, float]:
    return {f"p{share}": float(np.quantile(calls_ms, share / 100)) for share in (50, 90, 99)}


def _median(values: list[float]) -> float:
    return float(np.median(values))


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
