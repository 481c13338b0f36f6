"""Is the space of a search derived from what passes say, third parties' too, and does every point have its spec?"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import pytest

from onnxcomp import recipes
from onnxcomp.errors import UsageError
from onnxcomp.graph.ir import Graph
from onnxcomp.manager import registry
from onnxcomp.manager.base import Guarantee, Outcome, Pass, PassContext, Range, option
from onnxcomp.manager.options import describe, searched
from onnxcomp.manager.pipeline import Pipeline
from onnxcomp.search.space import Dimension, Point, Space, space_of


@dataclass(frozen=True)
class Foreign(Pass):
    """A pass from elsewhere."""

    name: ClassVar[str] = "foreign"
    guarantee: ClassVar[Guarantee] = Guarantee.LOSSY

    kind: Literal["a", "b"] = option("a", "which", search=("a", "b"))
    share: float | None = option(None, "how much", above=0.0, below=1.0, search=Range(0.1, 0.9), one_of="aim")
    count: int | None = option(None, "how many", minimum=1, search=Range(1, 5), one_of="aim")
    extra: float = option(1.0, "of b", search=Range(1e-3, 1.0, log=True), when={"kind": ("b",)})

    def validate(self) -> None:
        if self.share is not None and self.count is not None:
            raise UsageError("both")

    def run(self, graph: Graph, context: PassContext) -> Outcome:
        return Outcome(summary="nothing")


def with_foreign(**more: Any) -> Space:
    find = {"foreign": Foreign}
    return space_of(
        find=lambda name: find.get(name) or registry.find(name), names=lambda: [*registry.BUILTIN, "foreign"], **more
    )


def drawn(space: Space, seed: int) -> Point:
    generator = random.Random(seed)

    def ask(dimension: Dimension) -> Any:
        if not isinstance(dimension.values, Range):
            return generator.choice(dimension.values)
        low, high = dimension.values.low, dimension.values.high
        return generator.randint(int(low), int(high)) if dimension.whole else generator.uniform(low, high)

    return space.fill(ask)


@pytest.mark.parametrize("name", registry.BUILTIN)
def test_each_lossy_pass_says_what_a_search_may_try_or_why_it_leaves_it(name: str) -> None:
    cls = registry.find(name)
    if cls.guarantee is Guarantee.LOSSY:
        assert searched(cls) or cls.unsearched
        assert any(info.search for info in describe(cls)) or cls.unsearched
    else:
        assert not searched(cls)


@pytest.mark.parametrize("target", ["cpu", "cuda", "tensorrt"])
def test_every_point_has_a_spec_that_gives_it_back(target: str) -> None:
    space = with_foreign(target=target, labels=True)
    orders = set()
    for seed in range(60):
        point = drawn(space, seed)
        spec = space.spec(point)
        again = space.point(spec)
        assert space.spec(again) == spec == str(Pipeline(space.passes(point)))
        places = {key for key in point if key.endswith(".place")}
        assert {k: v for k, v in again.items() if k not in places} == {
            k: v for k, v in point.items() if k not in places
        }
        orders.add(tuple(item.name for item in space.passes(point)))
    names = [order[len(space.prefix) :] for order in orders]
    assert any(a in o and b in o and o.index(a) < o.index(b) for o in names for a in o for b in o if a < b)
    both = [o for o in names if {"clip-weights", "prune-channels"} <= set(o)]
    assert len({o.index("clip-weights") < o.index("prune-channels") for o in both}) == 2, "their order is tried, too"


def test_stages_stand_in_order_whatever_the_places() -> None:
    space = with_foreign()
    for seed in range(40):
        stages = [item.belongs() for item in space.passes(drawn(space, seed))[len(space.prefix) :]]
        assert stages == sorted(stages)


def test_a_pass_from_elsewhere_is_tried_with_its_own_options() -> None:
    space = with_foreign()
    points = [drawn(space, seed) for seed in range(60)]
    told = {key for point in points for key in point if key.startswith("foreign")}
    assert told == {"foreign", "foreign.place", "foreign:aim"} | {
        f"foreign.{n}" for n in ("kind", "share", "count", "extra")
    }
    for point in points:
        if point["foreign"]:
            assert ("foreign.share" in point) != ("foreign.count" in point)
            assert ("foreign.extra" in point) == (point["foreign.kind"] == "b")


def test_recipes_are_points() -> None:
    space = space_of()
    for name, recipe in recipes.RECIPES.items():
        if name != "half":  # no float16 on the CPU
            assert space.point(recipe.spec) is not None, name
    assert space.spec(space.point(recipes.RECIPES["int8"].spec)) == str(recipes.RECIPES["int8"].pipeline)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("convert-float16", "of no use for cpu"),
        ("quantize-qdq,clip-weights", "comes too late"),
        ("clip-weights,clip-weights", "runs twice"),
        ("clip-weights{method=absolute,threshold=1.0}", "not tried"),
        ("clip-weights{per_channel=false}", "nearest is clip-weights"),
        ("prune-channels{macs=0.01}", "not tried"),
    ],
)
def test_what_a_search_does_not_try_is_named(spec: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        space_of().point(spec)


def test_what_is_not_there_is_not_tried_and_said() -> None:
    space = space_of(data=False, training="the training runtime is not set up", without=("clip-weights",))
    tried = {move.name for move in space.moves}
    assert tried.isdisjoint({"quantize-qdq", "prune-blocks", "distill", "clip-weights"})
    assert space.left["distill"] == "the training runtime is not set up"
    assert "--data" in space.left["quantize-qdq"]
    with pytest.raises(UsageError, match="no pass 'clip'"):
        space_of(without=("clip",))


@pytest.mark.parametrize(
    ("declared", "words"),
    [
        ({"search": (1.0, 2.0), "maximum": 1.5}, "at most"),
        ({"search": Range(0.0, 1.0), "above": 0.0}, "above"),
        ({"search": ("no", "yes")}, "is not a number"),
        ({"search": ()}, "none"),
        ({"search": (1.0, 1.0)}, "twice"),
        ({"search": (1.0,), "when": {"other": (1,)}}, "not tried before"),
    ],
)
def test_what_a_pass_says_is_held_to_its_own_bounds(declared: dict[str, Any], words: str) -> None:
    @dataclass(frozen=True)
    class Wrong(Foreign):
        """A pass whose space does not fit."""

        value: float = option(1.0, "some number", **declared)

    with pytest.raises(UsageError, match=words):
        searched(Wrong)


def test_a_range_has_two_ends_in_order() -> None:
    for low, high, log in ((1.0, 1.0, False), (0.0, 1.0, True), (float("nan"), 1.0, False)):
        with pytest.raises(UsageError):
            Range(low, high, log)
