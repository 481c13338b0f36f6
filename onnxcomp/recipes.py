"""Named pipelines, and the order in which the default run tries them on a model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from onnxcomp.errors import UsageError
from onnxcomp.graph.ir import Constant, Graph, Node, Tensor
from onnxcomp.manager.pipeline import Pipeline
from onnxcomp.ops.facts import Operators, installed, no_macs
from onnxcomp.targets import table as targets
from onnxcomp.targets.base import Target
from onnxcomp.verify.budget import Budget

CLEAN = (
    "fold-constants,cleanup,gather-rows,fuse-batchnorm,fuse-slices,chain-pools,conv-before-resize,convolve-shortcuts,"
    "widen-conv,fuse-activations,split-softmax,cleanup"
)
# for recipes that store what is left: in the file it takes few bits again, whatever it is computed in
PLAIN = CLEAN.replace("fold-constants", "fold-constants{unpack=true},compute-float32", 1)

# behind what changes floats, in front of integers: what they do not do faster
TILES = "winograd-conv{than=integers}"
# of what computes in float, whatever integers would take: they lose too much, or none are asked for
REST = "winograd-conv,multiply-sums"
KEEPING = "quantize-qdq{agreement=0.99}"  # all but a point of the decisions

STORED = "store-weights{agreement=0.99}"

# what a pass of a recipe is told of the budget and of what should get better, by its options
TOLD = {
    "quantize-qdq": ("agreement",),
    "store-weights": ("agreement",),
    "mixed-precision": ("min_sqnr", "max_drop", "min_speedup", "max_size", "objective"),
}


@dataclass(frozen=True)
class Recipe:
    """A pipeline with a name.

    Attributes:
        spec: its passes.
        needs_data: whether it is of use only with calibration data.
        about: one line of help.
        aim: the passes that it is tried for; where they find nothing to do it is no other than `clean`.
        integer: whether it computes in integers.
        elsewhere: its passes on targets that do not decode stored weights at load; the same if empty.
        fallback: it takes long to make: tried only where none of integers before it held.
        bits: the fewest that a weight takes in its files; 0: it leaves weights as cleaning leaves them.
    """

    name: str
    spec: str
    needs_data: bool
    about: str
    aim: tuple[str, ...] = ()
    integer: bool = False
    elsewhere: str = ""
    fallback: bool = False
    bits: int = 0

    @property
    def cleaning(self) -> str:
        """The passes that it begins with, none of which changes what a weight takes."""
        return PLAIN if self.spec.startswith(PLAIN) else CLEAN

    @property
    def pipeline(self) -> Pipeline:
        """The passes, parsed."""
        return Pipeline.parse(self.spec)

    def within(self, budget: Budget, objective: str, source_bytes: int | None = None) -> Recipe:
        """The recipe as it suits a budget and what should get better.

        Args:
            source_bytes: of the model, where that is known: a limit in bytes is a share of them.
        """
        limits: dict[str, Any] = {
            "agreement": budget.min_agreement,
            "min_sqnr": budget.min_sqnr,
            "max_drop": budget.max_drop,
            "min_speedup": budget.min_speedup,
        }
        if budget.max_size is not None and (budget.max_size.share is not None or source_bytes):
            limits["max_size"] = min(1.0, budget.max_size.of(source_bytes or 1) / (source_bytes or 1))
        if objective in ("latency", "size", "macs"):
            limits["objective"] = objective
        passes = self.pipeline.passes
        told = tuple(
            replace(item, **{name: limits[name] for name in TOLD.get(item.name, ()) if limits.get(name) is not None})
            for item in passes
        )
        return self if told == passes else replace(self, spec=str(Pipeline(told)))

    def on(self, target: Target) -> Recipe:
        """The recipe with the passes that suit a target."""
        fits = target.decodes_at_load or not self.elsewhere
        return self if fits else replace(self, spec=self.elsewhere, elsewhere="")


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "int8",
            f"{PLAIN},clip-weights{{method=mse}},{TILES},{KEEPING},quantize-dynamic,{REST},{STORED}",
            True,
            "static int8: weights and activations; at run time where a static scale does not do",
            aim=("quantize-qdq", "quantize-dynamic"),
            integer=True,
            elsewhere=f"{CLEAN},clip-weights{{method=mse}},{KEEPING},quantize-dynamic",
            bits=8,
        ),
        Recipe(
            "dynamic",
            f"{PLAIN},{TILES},quantize-dynamic,{REST},{STORED}",
            True,
            "int8 weights, activations quantized at run time",
            aim=("quantize-dynamic",),
            integer=True,
            elsewhere=f"{CLEAN},quantize-dynamic",
            bits=8,
        ),
        Recipe(
            "tiles",
            f"{PLAIN},{REST},quantize-dynamic,{STORED}",
            True,
            "convolutions in float with fewer products, the rest in 8-bit integers at run time",
            aim=("winograd-conv",),
            integer=True,
            elsewhere=f"{CLEAN},quantize-dynamic",
            bits=8,
        ),
        Recipe(
            "mixed",
            f"{PLAIN},mixed-precision",
            True,
            "a form for each layer, decided under the budget",
            aim=("mixed-precision",),
            integer=True,
            elsewhere=f"{CLEAN},mixed-precision",
            fallback=True,
            bits=4,
        ),
        Recipe(
            "half",
            f"{CLEAN},convert-float16",
            False,
            "half precision where the numbers fit, the interface in float32",
            aim=("convert-float16",),
            bits=16,
        ),
        Recipe(
            "weights8",
            f"{PLAIN},{REST},quantize-weights{{bits=8,decoded=false}},{STORED}",
            False,
            "weights stored in 8 bits, activations in float",
            aim=("quantize-weights", "store-weights"),
            elsewhere=f"{CLEAN},quantize-weights{{bits=8}}",
            bits=8,
        ),
        Recipe(
            "stored",
            f"{PLAIN},{REST},{STORED}",
            False,
            "weights stored in 8 bits or half precision; kernels and times are those of the float model",
            aim=("store-weights",),
            elsewhere=CLEAN,
            bits=8,
        ),
        Recipe(
            "weights4",
            f"{PLAIN},{REST},quantize-weights{{bits=4,block=32}},{STORED}",
            False,
            "weights stored in 4 bits",
            aim=("quantize-weights",),
            elsewhere=f"{CLEAN},quantize-weights{{bits=4,block=32}}",
            bits=4,
        ),
        Recipe("clean", f"{CLEAN},{REST}", False, "exact clean-up and fusion only"),
    )
}


@dataclass(frozen=True)
class Aim:
    """A recipe that is chosen step by step on the model itself, and rolls back what does not pay.

    Attributes:
        about: one line of help.
        size, time: how much a share of the size and of the time saved count, as exponents of a product.
        prunes: what pruning keeps a share of, step by step; empty: it does not prune.
        agreement: least share of equal decisions that each step has to keep.
        drop: most that each step may lose, where no budget is given; None: the default run's own limit.
    """

    name: str
    about: str
    size: float
    time: float
    prunes: str = ""
    agreement: float = 0.0
    drop: float | None = None


AIMS = {
    aim.name: aim
    for aim in (
        Aim("smallest", "the fewest bytes within the budget", 1.0, 0.0, "params"),
        Aim("fastest", "the least time within the budget", 0.0, 1.0, "latency"),
        Aim("balanced", "size and time alike, within the budget", 0.5, 0.5, "macs"),
        Aim("safest", "what decides as the original does, no pruning", 0.5, 0.5, agreement=0.995, drop=0.0),
    )
}
LAST_RESORT = ("stored", "clean")  # tried where nothing before was smaller or faster


def find(name: str, target: str = "cpu") -> Recipe:
    """A recipe by name, as it suits a target.

    Raises:
        UsageError: there is none of that name.
    """
    if name not in RECIPES:
        raise UsageError(
            f"there is no recipe {name!r}", where="--recipe", do=f"choose one of {', '.join([*RECIPES, *AIMS])}"
        )
    return RECIPES[name].on(targets.find(target))


def candidates(graph: Graph, *, has_data: bool, objective: str, target: str = "cpu") -> list[Recipe]:
    """Recipes worth trying on a model, the most promising first; the driver measures and takes what holds.

    Attention moves the ranges of activations from sample to sample, so that one static scale a tensor loses much;
    there quantization at run time goes first. Elsewhere static scales are faster. The rest are fallbacks.

    What a target runs fast stands in its record: half precision on CUDA, whose convolutions know no integers; int8
    behind Q and DQ on TensorRT, which takes neither quantization at run time nor weights with zero points.
    """
    record = targets.find(target)
    names = [*(record.size_recipes if objective == "size" else ()), *record.recipes]
    if record.dynamic and multiplies_activations(graph, installed()):
        names.sort(key=lambda name: {"dynamic": 0, "int8": 1}.get(name, -1 if name in record.size_recipes else 2))
    return [RECIPES[name].on(record) for name in names if has_data or not RECIPES[name].needs_data]


def multiplies_activations(graph: Graph, operators: Operators) -> bool:
    """Whether activations are multiplied with activations in a matrix product, as attention does."""
    return any(operators.facts(node).attention or _of_two_activations(node, operators) for node in graph.walk())


def _of_two_activations(node: Node, operators: Operators) -> bool:
    """Whether a node's product has no operand that is a weight; convolutions name one even where it is computed."""
    facts = operators.facts(node)
    if facts.macs is no_macs or facts.weights(node):
        return False
    ports = (0, 1) if facts.integers is None else (facts.integers.data, facts.integers.weight)
    operands = [node.input(port) for port in ports]
    return all(tensor is not None and not _is_weight(tensor) for tensor in operands)


def _is_weight(tensor: Tensor) -> bool:
    """Whether a tensor is an initializer, or computed from initializers and constants alone."""
    waiting, seen = [tensor], set()
    while waiting:
        made = waiting.pop()
        if isinstance(made, Constant) or made in seen or not made.name:
            continue
        seen.add(made)
        if made.producer is None or made.producer.bodies:
            return False
        waiting.extend(made.producer.inputs)
    return True
