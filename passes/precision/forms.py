"""Which forms may a layer take, and which pass writes each of them?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from onnxcomp.graph.ir import Graph
from onnxcomp.manager.base import Pass, PassContext
from onnxcomp.manager.spelling import exactly
from onnxcomp.passes.precision.layers import Layer, Region, regions
from onnxcomp.passes.qdq.weights import Isa
from onnxcomp.passes.quantize_dynamic import QuantizeDynamic
from onnxcomp.passes.quantize_weights import QuantizeWeights
from onnxcomp.passes.store_weights import StoreWeights

FLOAT, STATIC = "float", "int8"


@dataclass(frozen=True)
class Form:
    """A form that a layer may take.

    Attributes:
        about: one line of help.
        bits: that an element of a weight takes in the file.
        own_kernel: whether another kernel runs than in float; else weights are decoded when the model is loaded.
        guess: its time over that of float, about, where nothing is measured.
        activation_bits: of what the weight is multiplied with.
    """

    name: str
    about: str
    bits: int
    own_kernel: bool = False
    guess: float = 1.0
    activation_bits: int = 32

    def writer(self, nodes: Sequence[str], isa: Isa, *, decoded: bool = True, measured: bool = False) -> Pass:
        """The pass that gives nodes this form, the same for its price and for what is written in the end.

        Args:
            isa: whether weights must be safe on every x86.
            decoded: take weights of few bits, too, that no kernel reads as they are.
            measured: leave convolutions alone that are no faster on windows of integers, as far as that is known.
        """
        names = tuple(exactly(name) for name in nodes)
        if self.name == "half":
            return StoreWeights(form="half", include=names)
        if self.name == "stored8":
            return StoreWeights(form="int8", include=names)
        if self.name == "dynamic":
            return QuantizeDynamic(isa=isa, windows="measured" if measured else "always", include=names)
        if self.bits == 8:
            return QuantizeWeights(bits=8, decoded=False, include=names)
        bits: Literal[4, 2] = 4 if self.bits == 4 else 2
        return QuantizeWeights(bits=bits, decoded=decoded, least_sqnr=0, include=names)


# in the order in which they are written, and in which a tie is broken: what is nearest to float first
FORMS = {
    form.name: form
    for form in (
        Form(FLOAT, "as it is", 32),
        Form("half", "stored in half precision, computed in float", 16),
        Form("stored8", "stored in 8 bits with a scale a row, computed in float", 8),
        Form(STATIC, "8-bit weights and activations, ranges from calibration (Q and DQ)", 8, True, 0.5, 8),
        Form("dynamic", "8-bit weights, activations quantized at run time", 8, True, 0.5, 8),
        Form("weights8", "8-bit weights in blocks that the kernel reads as they are", 8, True, 0.7, 8),
        Form("weights4", "4-bit weights in blocks", 4, True, 1.0, 8),
        Form("weights2", "2-bit weights in blocks", 2, True, 1.6, 8),
    )
}
WRITTEN = ("dynamic", "weights8", "weights4", "weights2", "half", "stored8")  # behind the static form


@dataclass(frozen=True)
class Tried:
    """A graph with one form wherever it can be.

    Attributes:
        regions: of the layers that took it, by the layer's name.
        refused: of the others, the reason.
    """

    graph: Graph
    regions: dict[str, Region]
    refused: dict[str, str]


def tried(
    graph: Graph, layers: Sequence[Layer], form: Form, context: PassContext, isa: Isa, *, decoded: bool, measured: bool
) -> Tried:
    """Give every layer the same form in a copy of a graph, as far as the pass that writes it can.

    Args:
        decoded, measured: as of `Form.writer`.
    """
    copy = graph.clone()
    nodes = [name for layer in layers for name in layer.nodes]
    outcome = form.writer(nodes, isa, decoded=decoded, measured=measured).run(copy, context)
    copy.sort()
    changed = {change.node for change in outcome.changes}
    why = {skip.node: skip.why for skip in outcome.skips}
    found = regions(copy, layers)
    taken, refused = {}, {}
    for layer in layers:
        left = next((why[name] for name in (*layer.nodes, *layer.weights) if name in why), "")
        if not left and not changed.isdisjoint((*layer.nodes, *layer.weights)) and layer.name in found:
            taken[layer.name] = found[layer.name]
        else:
            refused[layer.name] = left or "its activations cannot be told apart any more"
    return Tried(copy, taken, refused)
