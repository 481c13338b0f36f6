"""What is a deployment target, as far as a graph can serve it? One frozen record each, read by the passes."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from onnxcomp.graph.ir import Node
from onnxcomp.graph.rounding import Levels
from onnxcomp.graph.types import Shapes
from onnxcomp.ops.facts import Weight

Refusal = Callable[[Node, Weight | None, Shapes], str]


def accepts(node: Node, weight: Weight | None, shapes: Shapes) -> str:
    """For kernels without conditions of their own."""
    del node, weight, shapes
    return ""


@dataclass(frozen=True)
class Kernel:
    """An integer kernel that a target has for an operator.

    Attributes:
        weighted: it multiplies activations with a constant weight; other kernels only join regions of integers.
        ports: input ports that take quantized activations; None means every port.
        float_output: it can write float, so that its output needs no Q and DQ.
        weight_zero_point: the weight's DequantizeLinear must state its zero point, zeros as they are.
        refuses: why a node does not get the kernel, in words; empty when it does.
        scale_costs: a scale for each output takes it time, which one for all does not.
        by_default: used where nothing was measured; False for kernels that often lose to float.
    """

    weighted: bool = False
    ports: tuple[int, ...] | None = (0,)
    float_output: bool = False
    weight_zero_point: bool = False
    refuses: Refusal = accepts
    scale_costs: bool = False
    by_default: bool = True


@dataclass(frozen=True)
class Target:
    """Where quantized tensors may stand and in which form.

    Attributes:
        name: as in `--target`.
        kernels: operator of the default domain to its integer kernel.
        levels: integers of activations; weights are signed 8-bit everywhere.
        symmetric: zero points of activations must be 0.
        moves: operators that only move data and run on integers between equal scales, with the first opset at which
            they do.
        rewritten: operators that run on integers when the node itself is moved between Q and DQ.
        outputs: kernels want a Q on their output; else Q and DQ stand on inputs only.
        bias: `int32` behind a DequantizeLinear, or `float`.
        folds: activation functions that the output's range takes over.
        residual: `both` inputs of an Add are quantized, or the `shortcut` only.
        unified: operators whose inputs must share one scale.
        separate: a product whose output is cut into parts right behind needs a product for each part, or it is float.
        runs_here: its kernels are those of ONNX Runtime's CPU provider: what is written can be opened and tried.
        joins_bias: MatMul and an Add of one value a column become a Gemm before integer kernels are looked for.
        opset: least opset of the form that is written.
        why_not: why nothing is gained on this target, in words; empty where something is.
        provider: what runs its files here, as in `bench --provider`; the target's own name if empty.
        judges: what its provider answers, where it runs here, is what is judged; else ONNX Runtime's processor answers.
        compiler: `module:function` that has its own compiler take a file and tell what becomes of it, as
            `onnxcomp.verify.compilers` asks it; empty where none can be asked.
        half_first: its own half precision is what a result has to beat, so that times are taken with it.
        contrib: it has the operators that ONNX Runtime adds to ONNX (com.microsoft).
        dynamic: it has kernels for activations that are quantized at run time.
        half: half precision is computed faster than float.
        sparse: kernels skip zeros in 2:4 patterns.
        decodes_at_load: weights stored in few bits are decoded once, when the model is opened, and cost no time later.
        plain_storage: weights of few bits must stand behind one DequantizeLinear; no kernel reads them otherwise.
        processors: what `platform.machine()` may say where its times can be taken; empty: any.
        pair_limit: on x86 without VNNI two products add up in 16 bits, so that weights keep to 7 bits (`isa=portable`).
        channel_multiple: channels are computed in groups of so many; pruning leaves multiples.
        blocked: convolutions compute channels in blocks of the processor's vectors.
        recipes: what the default run tries where no order of its own is better, the most promising first.
        size_recipes: what goes before these where size is the objective.
    """

    name: str
    kernels: Mapping[str, Kernel]
    levels: Levels
    symmetric: bool
    moves: Mapping[str, int]
    rewritten: frozenset[str] = frozenset()
    outputs: bool = True
    bias: Literal["int32", "float"] = "int32"
    folds: frozenset[str] = frozenset()
    residual: Literal["both", "shortcut"] = "both"
    unified: frozenset[str] = frozenset()
    separate: bool = False
    runs_here: bool = False
    joins_bias: bool = False
    opset: int = 13
    why_not: str = ""
    provider: str = ""
    judges: bool = False
    compiler: str = ""
    half_first: bool = False
    contrib: bool = False
    dynamic: bool = False
    half: bool = False
    sparse: bool = False
    decodes_at_load: bool = False
    plain_storage: bool = False
    pair_limit: bool = False
    processors: tuple[str, ...] = ()
    channel_multiple: int = 1
    blocked: bool = False
    recipes: tuple[str, ...] = ("clean",)
    size_recipes: tuple[str, ...] = ()

    @property
    def timed_here(self) -> bool:
        """Whether times that are measured on this machine are its own."""
        return self.runs_here and self.elsewhere == ""

    @property
    def elsewhere(self) -> str:
        """Which other processor it is for, in words; empty where it may be this one."""
        if not self.processors or platform.machine().lower() in self.processors:
            return ""
        return f"it is for {self.processors[0]}, this machine is {platform.machine() or 'unknown'}"

    def portable(self, isa: str) -> bool:
        """Whether weights must be safe where two products add up in 16 bits."""
        return self.pair_limit and isa == "portable"

    @property
    def runs_with(self) -> str:
        """The provider that runs its files."""
        return self.provider or self.name
