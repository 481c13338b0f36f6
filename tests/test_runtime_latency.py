"""Ratios are told with an interval that holds what it promises; a virtual clock stands in for the machine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import builders
import numpy as np
import pytest

from onnxcomp.errors import DataError, ModelError, UsageError
from onnxcomp.runtime import latency
from onnxcomp.runtime.latency import bench_many, bound_caller, compare, log_ratio_interval
from onnxcomp.runtime.session import Port, open_session


@dataclass
class Machine:
    """A clock that moves only when a model runs: with noise, interruptions, drift, and a spread between sessions."""

    seed: int
    noise: float = 0.03
    interrupted: float = 0.02
    session_spread: float = 0.01
    opening_s: float = 0.002
    now: float = 0.0

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)

    def open(self, model: bytes, **_: object) -> SimpleNamespace:
        """`model` holds the time of a call in microseconds."""
        self.now += self.opening_s
        call_s = int(model) * 1e-6 * np.exp(self.session_spread * self.rng.standard_normal())
        placed = SimpleNamespace(on_provider=3, nodes_elsewhere=0, counts={})
        return SimpleNamespace(
            call_s=call_s,
            inputs=(Port("x", (1,), "tensor(float)"),),
            provider="CPUExecutionProvider",
            threads=1,
            placement=lambda: placed,
            where=str(model),
        )

    def caller(self, session: SimpleNamespace, _: object) -> Callable[[], None]:
        def call() -> None:
            drift = 1 + 0.2 * np.sin(self.now)
            lost = 3e-3 if self.rng.random() < self.interrupted else 0.0
            self.now += session.call_s * drift * np.exp(self.noise * self.rng.standard_normal()) + lost

        return call

    def rule(self, monkeypatch: pytest.MonkeyPatch) -> None:
        clock = SimpleNamespace(
            perf_counter=lambda: self.now,
            perf_counter_ns=lambda: int(self.now * 1e9),
            thread_time_ns=lambda: int(self.now * 1e9),
        )
        monkeypatch.setattr(latency, "time", clock)
        monkeypatch.setattr(latency, "open_session", self.open)
        monkeypatch.setattr(latency, "_caller", self.caller)
        monkeypatch.setattr(latency.pinning, "choose", lambda threads: ())


FEED = {"x": np.zeros(1, np.float32)}


def outcomes(
    monkeypatch: pytest.MonkeyPatch, before: bytes, after: bytes, runs: int = 40, **machine: Any
) -> Counter[str]:
    found: Counter[str] = Counter()
    for seed in range(runs):
        Machine(seed, **machine).rule(monkeypatch)
        found[compare(before, after, FEED, seconds=1.0, seed=seed).outcome] += 1
    return found


@pytest.mark.parametrize(
    "machine", [{}, {"noise": 0.1}, {"interrupted": 0.1}, {"opening_s": 0.3}, {"session_spread": 0.0}]
)
def test_a_model_against_itself_is_no_change(monkeypatch: pytest.MonkeyPatch, machine: dict[str, float]):
    assert outcomes(monkeypatch, b"500", b"500", **machine)["no change"] >= 38


@pytest.mark.parametrize("machine", [{}, {"noise": 0.1}, {"opening_s": 0.3}])
def test_ten_percent_slower_is_seen(monkeypatch: pytest.MonkeyPatch, machine: dict[str, float]):
    assert outcomes(monkeypatch, b"500", b"550", **machine)["slower"] >= 36


def test_the_interval_holds_the_truth_and_the_figures_fit_together(monkeypatch: pytest.MonkeyPatch):
    Machine(0).rule(monkeypatch)
    found = compare(b"1000", b"500", FEED, seconds=2.0)
    low, high = found.speedup_interval
    assert low < found.speedup < high
    assert low < 2.0 < high
    assert found.outcome == "faster"
    assert found.before_ms["p50"] == pytest.approx(1.0, rel=0.25)
    assert found.after_ms["p90"] >= found.after_ms["p50"]
    assert (found.nodes_on_provider, found.nodes_elsewhere, found.batch, found.threads) == (3, 0, 1, 1)


def test_slow_models_take_the_least_number_of_calls(monkeypatch: pytest.MonkeyPatch):
    machine = Machine(0, opening_s=5.0)
    machine.rule(monkeypatch)
    compare(b"2000000", b"2000000", FEED, seconds=1.0)
    assert machine.now < 120  # one opening each, 5 rounds of 2 pairs, warm-up


def test_a_noisy_machine_is_given_twice_the_time_and_no_more(monkeypatch: pytest.MonkeyPatch):
    machine = Machine(0, noise=0.8)
    machine.rule(monkeypatch)
    compare(b"9000", b"9000", FEED, seconds=4.0)
    assert 4.0 < machine.now < 9.0


def test_several_models_are_each_set_against_the_first(monkeypatch: pytest.MonkeyPatch):
    Machine(0).rule(monkeypatch)
    twice, same, half = bench_many([b"1000", b"500", b"1000", b"2000"], FEED, seconds=1.0)
    assert twice.speedup == pytest.approx(2, rel=0.05)
    assert same.outcome == "no change"
    assert half.speedup == pytest.approx(0.5, rel=0.05)


def test_one_model_is_set_against_itself(monkeypatch: pytest.MonkeyPatch):
    Machine(0).rule(monkeypatch)
    (found,) = bench_many([b"1000"], FEED, seconds=1.0)
    assert found.outcome == "no change"


def test_one_disturbed_round_does_not_spoil_the_interval():
    rng = np.random.default_rng(0)
    calm = [0.1 + 0.01 * rng.standard_normal(20) for _ in range(11)]
    center, half = log_ratio_interval([*calm, np.full(20, 3.0)], 12)
    assert center == pytest.approx(0.1, abs=0.01)
    assert half < 0.02


def test_few_rounds_that_agree_by_chance_do_not_look_sure():
    rounds = [np.full(10, 0.02) for _ in range(5)]
    assert log_ratio_interval(rounds, 5)[1] > latency.NARROWEST
    shared = log_ratio_interval(rounds, 1)[1]
    assert shared > 2 * latency.SESSION_SPREAD  # one pair of sessions tells little, however often it is timed


def test_a_real_pair_is_measured_whole(tmp_path: Any):
    proto = builders.mlp((16, 32, 10))
    path = builders.save(proto, tmp_path / "m.onnx")
    found = compare(path, proto.SerializeToString(), builders.feeds_of(proto, batch=3), seconds=0.2, threads=1)
    low, high = found.speedup_interval
    assert 0 < low < found.speedup < high
    assert found.batch == 3
    assert found.provider == "CPUExecutionProvider"
    assert found.nodes_on_provider == 3
    assert 0 < found.before_ms["p50"] <= found.before_ms["p90"]
    assert found.session_seconds is not None and min(found.session_seconds) > 0


def test_bound_inputs_and_outputs_run_the_model():
    """The GPU's way to call a model, on the CPU's memory: outputs keep their place and are written anew."""
    proto = builders.mlp()
    session = open_session(proto.SerializeToString())
    feed = builders.feeds_of(proto)
    wanted = session.run(feed)
    blank = {name: np.zeros_like(array) for name, array in wanted.items()}
    seen = []
    real = session.raw.io_binding

    def binding() -> Any:
        seen.append(real())
        return seen[-1]

    session.raw.io_binding = binding
    call = bound_caller(session, feed, blank, "cpu")
    for _ in range(2):
        call()
        values = seen[0].get_outputs()
        addresses = [value.data_ptr() for value in values]
        for value, (name, array) in zip(values, wanted.items(), strict=True):
            np.testing.assert_array_equal(value.numpy(), array, err_msg=name)
    assert addresses == [value.data_ptr() for value in seen[0].get_outputs()]


def test_models_with_different_inputs_are_refused():
    one, other = builders.mlp((16, 8)), builders.mlp((12, 8))
    with pytest.raises(ModelError, match="different inputs"):
        compare(one.SerializeToString(), other.SerializeToString(), builders.feeds_of(one), seconds=0.1)
    with pytest.raises(ModelError, match="different inputs"):
        compare(
            one.SerializeToString(), builders.transformer().SerializeToString(), builders.feeds_of(one), seconds=0.1
        )


def test_a_feed_that_does_not_fit_and_no_time_at_all_are_refused():
    model = builders.mlp().SerializeToString()
    with pytest.raises(DataError):
        compare(model, model, {"x": np.zeros((1, 3), np.float32)}, seconds=0.1)
    for seconds in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UsageError):
            compare(model, model, FEED, seconds=seconds)
    with pytest.raises(UsageError):
        bench_many([], FEED)
