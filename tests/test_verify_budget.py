"""Budgets are read as people write them, and what is not known never passes."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcomp.data.metric import Metric, parse_metric
from onnxcomp.errors import DataError, UsageError
from onnxcomp.results import Accuracy, Agreement, Benchmark, BudgetLine, Fidelity, OutputFidelity
from onnxcomp.verify.budget import Budget, Size, exit_code, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4000000", Size(bytes=4e6)),
        ("4MB", Size(bytes=4e6)),
        ("4 mb", Size(bytes=4e6)),
        ("1.5MiB", Size(bytes=1.5 * 2**20)),
        ("10k", Size(bytes=1e4)),
        ("2GiB", Size(bytes=2**31)),
        ("700b", Size(bytes=700)),
        ("1e6", Size(bytes=1e6)),
        ("30%", Size(share=0.3)),
        ("26.5 %", Size(share=0.265)),
        (".5GB", Size(bytes=5e8)),
    ],
)
def test_sizes_are_read(text: str, size: Size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "big", "4XB", "-3MB", "0", "0%", "4 M B", "%", "1,5MB", "nan", "inf", "9e999"])
def test_what_is_no_size_is_a_usage_error(text: str):
    with pytest.raises(UsageError):
        parse_size(text)


@given(st.integers(101, 10**12), st.sampled_from(["", "kB", "MB", "GB", "KiB", "MiB", "GiB"]))
def test_units_are_powers(number: int, unit: str):
    base = 1024 if "i" in unit else 1000
    power = {"": 0, "k": 1, "m": 2, "g": 3}[unit[:1].lower()]
    assert parse_size(f"{number}{unit}").of(1) == number * base**power


def fidelity(**outputs: OutputFidelity) -> Fidelity:
    return Fidelity(10, "data", outputs)


def accuracy(drop: float) -> Accuracy:
    return Accuracy("top1", 10, 0.9, 0.9 - drop, drop)


def bench(speedup: float) -> Benchmark:
    times = {"p50": 1.0, "p90": 1.0}
    return Benchmark("CPUExecutionProvider", 1, 0, 1, 1, times, times, speedup, (speedup * 0.9, speedup * 1.1))


def lines(budget: Budget, **measured: object) -> dict[str, BudgetLine]:
    found = budget.evaluate(before_bytes=1000, after_bytes=300, **measured)  # type: ignore[arg-type]
    return {line.name: line for line in found}


def test_only_what_was_asked_for_is_judged():
    assert lines(Budget()) == {}
    assert lines(Budget(max_size=Size(share=0.3))) == {"max_size": BudgetLine("max_size", 300, 300, True, 0.3)}
    assert lines(Budget(max_size=Size(bytes=299)))["max_size"].passed is False


def test_a_limit_that_is_just_met_passes():
    assert lines(Budget(max_drop=0.01), accuracy=accuracy(0.99 - 0.98))["max_drop"].passed
    assert not lines(Budget(max_drop=0.01), accuracy=accuracy(0.0101))["max_drop"].passed
    assert lines(Budget(min_speedup=1.5), benchmark=bench(1.5))["min_speedup"].passed
    assert not lines(Budget(min_speedup=1.5), benchmark=bench(1.49))["min_speedup"].passed


def test_the_worst_output_decides_on_sqnr():
    found = fidelity(a=OutputFidelity(False, 40.0, 0.1), b=OutputFidelity(False, 20.0, 0.1))
    assert lines(Budget(min_sqnr=19), fidelity=found)["min_sqnr"] == BudgetLine("min_sqnr", 19, 20.0, True)
    assert not lines(Budget(min_sqnr=21), fidelity=found)["min_sqnr"].passed


def test_identical_outputs_hold_any_sqnr_budget():
    found = fidelity(a=OutputFidelity(True, None, 0.0))
    assert lines(Budget(min_sqnr=500), fidelity=found)["min_sqnr"] == BudgetLine("min_sqnr", 500, math.inf, True)


def test_differing_integers_count_by_their_share():
    """One in ten is 10 dB; a float output that is equal or near does not pass them."""
    classes, scores, same = (
        OutputFidelity(False, None, 3.0, equal_share=0.9),
        OutputFidelity(False, 30.0, 0.1),
        OutputFidelity(True, None, 0.0),
    )
    for others in ({}, {"b": scores}, {"b": same}):
        found = lines(Budget(min_sqnr=25), fidelity=fidelity(a=classes, **others))["min_sqnr"]
        assert (found.value, found.passed) == (pytest.approx(10.0), False)


def test_rows_without_a_counterpart_do_not_pass_unmeasured():
    rows = OutputFidelity(False, None, math.inf, comparable=False)
    budget = Budget(min_sqnr=1, min_agreement=0.1)
    found = lines(budget, fidelity=fidelity(a=rows, b=OutputFidelity(False, 50.0, 0.1)))
    assert not found["min_sqnr"].passed
    assert not found["min_agreement"].passed


def test_agreement_is_the_lowest_that_decides_something():
    told = [
        Agreement(kind, (kind,), "", value, 100) for kind, value in (("classes", 0.97), ("boxes", 0.99), ("state", 0.1))
    ]
    found = Fidelity(100, "data", {"a": OutputFidelity(False, 30.0, 0.1)}, agreements=tuple(told))
    line = lines(Budget(min_agreement=0.98), fidelity=found)["min_agreement"]
    assert (line.value, line.passed) == (0.97, False)
    assert exit_code([line]) == 15
    assert lines(Budget(min_agreement=0.97), fidelity=found)["min_agreement"].passed


@pytest.mark.parametrize("value", [math.nan, None])
def test_what_is_not_known_does_not_pass(value: float | None):
    budget = Budget(max_drop=1.0, min_sqnr=-100.0, min_speedup=0.01)
    measured = {} if value is None else {
        "accuracy": accuracy(value),
        "fidelity": fidelity(a=OutputFidelity(False, value, 1.0)),
        "benchmark": bench(value),
    }  # fmt: skip
    found = lines(budget, **measured)
    assert len(found) == 3
    assert not any(line.passed for line in found.values())


def test_the_lowest_code_of_what_was_missed_wins():
    def missed(*names: str) -> int:
        all_names = ("max_drop", "max_size", "min_speedup", "min_sqnr")
        return exit_code([BudgetLine(name, 1, 1, name not in names) for name in all_names])

    assert missed() == 0
    assert missed("min_sqnr") == 14
    assert missed("min_sqnr", "min_speedup") == 12
    assert missed("max_size", "min_speedup") == 11
    assert missed("min_sqnr", "max_drop") == 10


def test_max_drop_without_a_metric_is_a_data_error():
    with pytest.raises(DataError) as caught:
        Budget(max_drop=0.01).require_metric(None)
    assert caught.value.exit_code == 4
    Budget(max_drop=0.01).require_metric(parse_metric(None))
    Budget(min_sqnr=3).require_metric(None)


def test_a_drop_that_could_never_be_missed_is_refused_with_what_was_meant():
    with pytest.raises(UsageError, match="can never be missed") as caught:
        Budget(max_drop=2.0).require_metric(parse_metric("top1"))
    assert "2 % is 0.02" in caught.value.do
    Budget(max_drop=2.0).require_metric(Metric("error", lambda outputs, labels: 7.0))  # nothing bounds that


@pytest.mark.parametrize(("text", "meant"), [("30", "30%"), ("0.3", "30%"), ("100", "100%"), ("25b", "25%")])
def test_a_size_that_no_model_has_is_refused_with_the_share_that_was_meant(text: str, meant: str):
    with pytest.raises(UsageError, match="no model is as small") as caught:
        parse_size(text)
    assert meant in caught.value.do


@pytest.mark.parametrize(
    "bad", [{"max_drop": math.nan}, {"min_sqnr": math.inf}, {"min_speedup": 0.0}, {"min_speedup": -1}]
)
def test_limits_without_meaning_are_usage_errors(bad: dict[str, float]):
    with pytest.raises(UsageError):
        Budget(**bad)
