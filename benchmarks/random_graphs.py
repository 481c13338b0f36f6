"""Does every pass keep its promises on random valid graphs? `python benchmarks/random_graphs.py --first 0 --count 500`.

Each seed gives a model (tests/wild_models.py); each run is a pass or a chain of two on it, as a user would run it. What
is counted: internal errors, broken guarantees (told by the tool, or found by running the written file in plain ONNX
Runtime; where both models differ only by what it fuses in them, that is no finding), refusals of a model that ONNX
Runtime runs, and results below 10 dB that the report passes as accepted.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
import wild_models
import wild_variations
from common import load_onnxcomp

from onnxcomp import optimize
from onnxcomp.errors import GuaranteeError, ModelError, OnnxcompError, UsageError
from onnxcomp.manager.guarantee import ROUNDINGS
from onnxcomp.manager.spec import parse_passes

SPECS = (
    "fold-constants",
    "fold-constants{unpack=true}",
    "cleanup",
    "compute-float32",
    "fuse-batchnorm",
    "fuse-slices",
    "gather-rows",
    "chain-pools",
    "conv-before-resize",
    "convolve-shortcuts",
    "widen-conv",
    "winograd-conv",
    "split-softmax",
    "multiply-sums",
    "fuse-activations",
    "drop-zero-channels",
    "flatten-conv{least=20}",
    "clip-weights",
    "prune-weights{ratio=0.4}",
    "prune-channels{ratio=0.3}",
    "prune-blocks{count=1}",
    "quantize-qdq",
    "quantize-qdq{placement=table}",
    "quantize-qdq{placement=table,bits=4}",
    "quantize-dynamic",
    "quantize-dynamic{least=1}",
    "quantize-weights{bits=8}",
    "quantize-weights{bits=4,block=16}",
    "quantize-weights{form=codebook,bits=4}",
    "store-weights",
    "mixed-precision{objective=size}",
    "convert-float16",
    "compact",
)
SAMPLES = 24
BLOCK = 4  # seeds a process tries
SECONDS = 60  # of processor time, that one run may take
LEAST_DB = 10.0
GRID = 256
COUNTING = {"NonZero", "Compress", "NonMaxSuppression", "Unique"}  # whose sizes follow from values
CLOSE = 1e-3  # relative, optimized by the runtime on both sides


@dataclass(frozen=True)
class Finding:
    """What went wrong: its kind, where, and how to see it again."""

    kind: str
    mark: str
    seed: int
    spec: str
    detail: str


def main() -> None:
    """Run and print the findings by kind; exit 1 where there are any."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--count", type=int, default=100, help="how many seeds")
    parser.add_argument(
        "--singles", type=int, default=len(SPECS), help="single passes a seed, drawn where fewer than all"
    )
    parser.add_argument("--chains", type=int, default=4, help="chains of two passes a seed")
    parser.add_argument("--spec", action="append", help="run this spec only; several are allowed")
    parser.add_argument("--seconds", type=float, default=0.0, help="stop after so long; 0: do not")
    options = parser.parse_args()
    load_onnxcomp()
    start, tally = time.monotonic(), Tally()
    last = options.first + options.count
    for first in range(options.first, last, BLOCK):
        if options.seconds and time.monotonic() - start > options.seconds:
            break
        seeds = range(first, min(first + BLOCK, last))
        runs = [(s, spec) for s in seeds for spec in options.spec or specs_of(s, options.singles, options.chains)]
        while runs:
            runs = runs[_in_a_process(runs, tally) :]
        print(f"{sum(tally.runs.values())} runs up to seed {seeds[-1]}", file=sys.stderr, flush=True)
    counts = collections.Counter((f.kind, f.mark) for f in tally.findings)
    for (kind, mark), count in counts.most_common():
        one = next(f for f in tally.findings if (f.kind, f.mark) == (kind, mark))
        print(f"{count:5}  {kind}: {mark}  (seed {one.seed}, {one.spec})")
    for spec in SPECS:
        print(f"{tally.runs[spec]:5} times {spec}, which changed {tally.changed[spec]} models")
    total, seconds = sum(tally.runs.values()), time.monotonic() - start
    print(f"{total} runs on {tally.models} models, {len(tally.findings)} findings, {seconds:.0f} s")
    sys.exit(bool(tally.findings))


@dataclass
class Tally:
    """What was run, and what came of it."""

    runs: collections.Counter[str] = field(default_factory=collections.Counter)
    changed: collections.Counter[str] = field(default_factory=collections.Counter)
    findings: list[Finding] = field(default_factory=list)
    models: int = 0

    def keep(self, spec: str, told: dict[str, Any]) -> None:
        """A run that ended, as its process tells it."""
        self.runs[spec] += told["ran"]
        self.changed[spec] += told["changed"]
        self.models += told["first"]
        if told["finding"]:
            self.findings.append(found := Finding(**told["finding"]))
            print(f"{found.kind}  {found.mark}  seed {found.seed}  {found.spec}  {found.detail}", flush=True)


def _in_a_process(runs: list[tuple[int, str]], tally: Tally) -> int:
    """Try these in one process; how many ended. One that takes the process with it is a finding, too."""
    ours, theirs = os.pipe()
    child = os.fork()
    if not child:
        os.close(ours)
        with os.fdopen(theirs, "w") as told:
            _try_all(runs, told)
        os._exit(0)
    os.close(theirs)
    done = 0
    with os.fdopen(ours) as lines:
        for line in lines:
            tally.keep(runs[done][1], json.loads(line))
            done += 1
    _, status = os.waitpid(child, 0)
    if done < len(runs):
        seed, spec = runs[done]
        code = os.waitstatus_to_exitcode(status)
        mark = f"more than {SECONDS} s" if code == -signal.SIGPROF else f"the process ended with {code}"
        found = asdict(Finding("death", mark, seed, spec, ""))
        tally.keep(spec, {"finding": found, "ran": True, "changed": False, "first": False})
        done += 1
    return done


def _try_all(runs: list[tuple[int, str]], told: TextIO) -> None:
    tried: Tried | None = None
    for seed, spec in runs:
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        first = tried is None or tried.seed != seed
        if tried is None or first:
            tried = Tried.of(seed)
        finding, changed = try_one(tried, spec)
        ran = tried.model is not None
        said = {"finding": finding and asdict(finding), "ran": ran, "changed": changed, "first": first and ran}
        told.write(json.dumps(said) + "\n")
        told.flush()


@dataclass
class Tried:
    """A model that is tried, and what it gives in plain ONNX Runtime."""

    seed: int
    model: wild_models.Wild | None
    outputs: list[Any] | None

    @classmethod
    def of(cls, seed: int) -> Tried:
        try:
            model = wild_models.wild(seed)
        except wild_models.NoModelError:
            return cls(seed, None, None)
        try:
            session = wild_models.open_model(model.proto, optimized=True)
            session.run(None, model.feeds(1, 3))
            feeds = model.feeds(SAMPLES, 3)
            for row in range(SAMPLES):
                session.run(None, {name: values[row : row + 1] for name, values in feeds.items()})
        except Exception:  # ONNX Runtime's own errors share no class; rows are no samples where one alone does not run
            return cls(seed, None, None)
        try:
            outputs = session.run(None, feeds)
        except Exception:  # the model itself does not take so many samples
            outputs = None
        return cls(seed, model, outputs)


def specs_of(seed: int, singles: int, chains: int) -> list[str]:
    """The specs that a seed is tried with."""
    generator = np.random.default_rng(seed)
    found = [str(s) for s in generator.choice(SPECS, min(singles, len(SPECS)), replace=False)]
    return found + [",".join(generator.choice(SPECS, 2, replace=False)) for _ in range(chains)]


def try_one(tried: Tried, spec: str) -> tuple[Finding | None, bool]:
    """One run: what went wrong, if anything, and whether a pass changed the model."""
    seed, model = tried.seed, tried.model
    if model is None:
        return None, False
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        path, out = Path("model.onnx"), Path("out.onnx")
        outside = {"save_as_external_data": True, "location": "w.bin", "size_threshold": 64} if seed % 7 == 0 else {}
        wild_models.onnx.save(
            wild_variations.copy(model.proto), path, **outside
        )  # which moves the weights of what it is given
        np.savez("data.npz", **model.feeds(SAMPLES, 3))
        try:
            report = optimize(path, data="data.npz", passes=spec, output=out, bench=False, threads=1)
        except GuaranteeError as error:
            return Finding("broken guarantee", f"{error.what} | {error.where}"[:110], seed, spec, ""), False
        except OnnxcompError as error:
            return _refused(error, seed, spec), False
        except Exception as error:
            place = f"{type(error).__name__} {_place(error)}"
            return Finding("internal error", place, seed, spec, str(error)[:200]), False
        return _judge(tried, report, out, spec), any(p.changes for p in report.passes)


def _refused(error: OnnxcompError, seed: int, spec: str) -> Finding | None:
    """A valid model may be refused by a pass that finds nothing to do, and by nothing else."""
    told = ("is the same in every feed", "lie along axis 1, guessed")  # 24 steps of one recording, not 24 samples
    if isinstance(error, UsageError) or any(words in error.where for words in told):
        return None
    return Finding(
        "refusal" if isinstance(error, ModelError) else "other error", error.what[:110], seed, spec, error.where
    )


def _place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if "onnxcomp" in f.filename or f"{os.sep}passes{os.sep}" in f.filename]
    last = (ours or frames)[-1]
    return f"{Path(last.filename).name}:{last.lineno}"


def _judge(tried: Tried, report: Any, out: Path, spec: str) -> Finding | None:
    seed, model, before = tried.seed, tried.model, tried.outputs
    if report.exit_code not in (0, 13):
        return Finding("exit", f"exit {report.exit_code}", seed, spec, "")
    for record in report.passes:
        if record.rolled_back:
            return Finding("rolled back", record.rolled_back[:110], seed, spec, record.name)
    if not out.exists() or before is None or model is None:
        return None
    proto = wild_models.onnx.load(out)
    feed = model.feeds(SAMPLES, 3)  # what the report judged is among them
    try:
        after = wild_models.open_model(proto, optimized=True).run(None, feed)
    except Exception as error:
        return Finding("broken guarantee", "the written model does not run", seed, spec, str(error)[:200])
    promises = {item.guarantee.value for item in parse_passes(spec)}
    counted = {node.op_type for node in model.proto.graph.node} & COUNTING
    for output, a, b in zip(model.proto.graph.output, before, after, strict=True):
        if a.dtype == b.dtype and a.shape != b.shape and "lossy" in promises and counted:
            continue  # how many places are not zero, say
        if a.shape != b.shape or a.dtype != b.dtype:
            return Finding(
                "broken guarantee", "shape or type", seed, spec, f"{output.name} {a.dtype}{a.shape} {b.dtype}{b.shape}"
            )
        if "lossy" not in promises and not _near(a, b) and not _fused_otherwise(model, proto, feed):
            return Finding("broken guarantee", "values", seed, spec, output.name)
        db = _sqnr_db(a, b)
        alone = any("depends on the samples beside it" in guess for guess in report.guesses)  # judged one at a time
        words = str(report)  # its first line
        few = "samples only" in words or "decides otherwise" in words
        said = alone or few or report.verdict != "accepted" or "dB" in str(report.notes) or any(
            f.sqnr_db is not None and f.sqnr_db < LEAST_DB + 5 for f in report.fidelity.outputs.values()
        )  # fmt: skip
        if db < LEAST_DB and not said and _lively(a):
            return Finding(
                "unsaid loss", f"{spec.split('{', maxsplit=1)[0]}", seed, spec, f"{output.name}: {db:.1f} dB"
            )
    return None


def _fused_otherwise(model: wild_models.Wild, proto: Any, feed: dict[str, np.ndarray]) -> bool:
    """Whether both give the same where ONNX Runtime fuses nothing: what it fuses is then what differs, not the model.

    A weight that is an initializer, no longer an input, may let it multiply integers behind a DequantizeLinear.
    """
    before, after = (wild_models.open_model(one, optimized=False).run(None, feed) for one in (model.proto, proto))
    return all(_near(a, b) for a, b in zip(before, after, strict=True))


def _near(a: np.ndarray, b: np.ndarray) -> bool:
    if a.dtype.kind != "f":
        return bool((a != b).mean() <= 0.02) if a.size else True
    scale = max(float(np.abs(a).max(initial=0)), 1e-2)
    steps = ROUNDINGS * float(np.finfo(a.dtype).eps) if a.dtype == np.float16 else 0.0  # that type's own roundings
    far = np.abs(a.astype(np.float64) - b) > max(CLOSE, steps) * scale
    on_a_grid = len(np.unique(a)) <= GRID  # behind a QuantizeLinear a rounding in front of it is a whole step
    return bool(far.mean() <= 0.02) if on_a_grid and far.any() else not far.any()


def _lively(a: np.ndarray) -> bool:
    """Whether an output holds values enough, and not all alike, that decibels say something of it."""
    return a.dtype.kind == "f" and a.size >= 8 and float(np.std(a)) > 1e-3


def _sqnr_db(a: np.ndarray, b: np.ndarray) -> float:
    if a.dtype.kind != "f":
        return float("inf")
    x, y = a.astype(np.float64), b.astype(np.float64)
    noise = np.square(x - y).sum()
    return float("inf") if not noise else float(10 * np.log10(max(np.square(x).sum(), 1e-30) / noise))


if __name__ == "__main__":
    main()
