"""Does the allocator find what exhaustive search finds, and keep its limits?"""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from onnxcomp.passes.assigning.allocate import Allocator, Assignment, Limits, Option, Problem, pareto

WITHIN = 1.03  # of the best assignment's time


def chain(layers: int, seed: int, *, forms: int = 3, parts: int = 2) -> Problem:
    """A chain of layers of unlike size: float, integers with conversions at their borders, small weights."""
    rng = np.random.default_rng(seed)
    options, own, links = {}, {}, []
    for i in range(layers):
        size, time = float(rng.uniform(1e3, 1e5)), float(rng.uniform(50, 500))
        noise = 10 ** rng.uniform(-5, -2, parts)
        options[f"layer{i}"] = (
            Option("float", time, 4 * size, np.zeros(parts)),
            Option("int8", time * rng.uniform(0.3, 1.1), size, noise, integer=True),
            Option("stored8", time, size, noise * rng.uniform(0.05, 0.5)),
            Option("blocks4", time * rng.uniform(0.8, 1.3), size / 2, noise * rng.uniform(1, 4)),
        )[:forms]
    for i in range(layers + 1):
        need, cost = ("Q", i), float(rng.uniform(5, 60))
        reader, maker = f"layer{i}", f"layer{i - 1}"
        if i < layers:
            links.append((reader, need, float("inf")))
            links.append((need, maker, cost)) if i else own.update({need: cost})
        if i:
            links.append((maker, reader, cost)) if i < layers else own.update({maker: cost})
    return Problem(options, own, links, time_us=100.0, bytes=1000.0)


def cost_of(problem: Problem, choice: dict[str, int]) -> tuple[float, float, float]:
    """Time, bytes and worst noise by the definition: every conversion is there or not."""
    whole = {item for item, place in choice.items() if problem.options[item][place].integer}
    time, size = problem.time_us, problem.bytes
    noise = np.zeros(problem.parts)
    for item, place in choice.items():
        option = problem.options[item][place]
        time, size, noise = time + option.time_us, size + option.bytes, noise + option.noise
    links = {(one, other): cost for one, other, cost in problem.links}
    for i in range(len(choice) + 1):
        reader, maker = f"layer{i}" in whole, f"layer{i - 1}" in whole
        if reader and not maker:
            time += links.get((("Q", i), f"layer{i - 1}"), problem.own.get(("Q", i), 0.0))
        if maker and not reader:
            time += links.get((f"layer{i - 1}", f"layer{i}"), problem.own.get(f"layer{i - 1}", 0.0))
    return time, size, float(noise.max())


def exhaustive(problem: Problem, goal: str, limits: Limits) -> float:
    """The least figure of all assignments within the limits."""
    items = list(problem.options)
    best = np.inf
    for forms in product(*(range(len(problem.options[item])) for item in items)):
        time, size, noise = cost_of(problem, dict(zip(items, forms, strict=True)))
        if time <= limits.time and size <= limits.bytes and noise <= limits.noise:
            best = min(best, {"time": time, "bytes": size, "noise": noise}[goal])
    return best


def check(found: Assignment, problem: Problem) -> None:
    """An assignment's figures are those of its definition."""
    time, size, noise = cost_of(problem, dict(found.choice))
    assert found.time_us == pytest.approx(time)
    assert found.bytes == pytest.approx(size)
    assert found.worst == pytest.approx(noise)


@pytest.mark.parametrize("seed", range(6))
def test_twelve_layers_come_within_three_percent_of_exhaustive_search(seed: int) -> None:
    problem = chain(12, seed, forms=2)
    limits = Limits(noise=10 ** -float(np.random.default_rng(seed).uniform(1.8, 3)))
    found = Allocator(problem).best("time", limits)
    assert found is not None
    check(found, problem)
    assert found.worst <= limits.noise
    assert found.time_us <= WITHIN * exhaustive(problem, "time", limits)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("goal", ["time", "bytes", "noise"])
def test_two_limits_at_once_are_kept(seed: int, goal: str) -> None:
    problem = chain(6, 100 + seed, forms=4)
    start = Allocator(problem).nearest("time", Limits())
    everything = sum(options[0].bytes for options in problem.options.values())
    limits = {
        "time": Limits(bytes=0.5 * everything, noise=3e-3),
        "bytes": Limits(time=1.1 * start.time_us, noise=3e-3),
        "noise": Limits(time=1.1 * start.time_us, bytes=0.6 * everything),
    }[goal]
    best = exhaustive(problem, goal, limits)
    found = Allocator(problem).best(goal, limits)  # type: ignore[arg-type]
    assert (found is None) == np.isinf(best)
    if found is not None:
        check(found, problem)
        assert found.figure(goal) <= WITHIN * best  # type: ignore[arg-type]


def test_a_limit_that_nothing_keeps_is_said_to_be_missed() -> None:
    problem = chain(5, 7)
    assert Allocator(problem).best("time", Limits(bytes=10.0)) is None
    assert Allocator(problem).nearest("time", Limits(bytes=10.0)).excess(Limits(bytes=10.0)) > 0


def test_a_front_has_no_point_that_another_beats() -> None:
    front = Allocator(chain(12, 3, forms=4)).front("time", Limits(), 7)
    assert len(front) >= 5
    assert front == pareto(front)
    assert [a.time_us for a in front] == sorted(a.time_us for a in front)
    assert [a.worst for a in front] == sorted((a.worst for a in front), reverse=True)


def test_the_part_that_suffers_most_is_what_counts() -> None:
    """Two layers spoil one part each: the sum of both would let neither be fast."""
    options = {
        "a": (Option("float", 100, 4, np.zeros(2)), Option("int8", 50, 1, np.array([0.9, 0.0]), integer=True)),
        "b": (Option("float", 100, 4, np.zeros(2)), Option("int8", 50, 1, np.array([0.0, 0.9]), integer=True)),
    }
    found = Allocator(Problem(options)).best("time", Limits(noise=1.0))
    assert found is not None and found.time_us == 100


def test_what_lies_between_layers_is_chosen_with_them() -> None:
    """An Add between two integer layers is integer, too, where that saves its conversions."""
    fast = (Option("float", 100, 4, np.zeros(1)), Option("int8", 10, 1, np.zeros(1), integer=True))
    own = {"add": -1.0, ("Q", "y"): 0.0}
    links = [("b", "add", 40.0), ("add", "a", 40.0)]
    problem = Problem({"a": fast, "b": fast}, own, links)  # type: ignore[arg-type]
    found = Allocator(problem).best("time", Limits())
    assert found is not None and "add" in found.integers and found.time_us == 19
