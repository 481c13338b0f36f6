"""Which convolutions of size 1 read pixels that were just repeated, and can compute before they are?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxcomp.graph.ir import Constant, Graph, Node, Tensor, Variable, is_onnx
from onnxcomp.graph.shapes import infer
from onnxcomp.graph.types import Shapes
from onnxcomp.manager.base import Guarantee, Outcome, Pass, PassContext
from onnxcomp.targets.table import find

RESIZES = ("Resize", "Upsample")
WITH_ROI = 11  # the opset since which the scales of a Resize stand behind a region of interest
FLOAT32 = np.dtype(np.float32)


@dataclass(frozen=True)
class ConvBeforeResize(Pass):
    """No Conv of size 1 reads what a Resize to the nearest pixel repeats: it computes on the small image.

    Each pixel is computed by itself, so that repeating it before or after is the same. Where a Concat stands between
    them, as in feature pyramids (YOLO), the Conv is a sum: of one on what was not resized, and one on each small image,
    repeated. With a scale of 2 that takes a quarter of the multiplications for those channels, fewer channels are
    repeated, and nothing is copied together. Every reader of the Concat has to be such a Conv, and they must not give
    more channels than they read resized.
    """

    name: ClassVar[str] = "conv-before-resize"
    guarantee: ClassVar[Guarantee] = Guarantee.CLOSE

    def run(self, graph: Graph, context: PassContext) -> Outcome:
        """Rewrite every such Conv."""
        outcome = Outcome()
        wanted = self.selects(graph)
        if not find(context.target).runs_here or not any(node.op in RESIZES for node in graph.walk()):
            return outcome
        shapes = infer(graph, declared=False)
        kept: set[Tensor] = {t for scope in graph.scopes() for t in scope.outputs} | set(graph.kept_inputs)
        for scope in list(graph.scopes()):
            here = set(scope.nodes)
            for node in list(scope.nodes):
                source = node.outputs[0] if node.op in (*RESIZES, "Concat") and node.outputs else None
                readers = [] if source is None or source in kept else source.consumers
                if not readers or not all(r in here and wanted(r) and _pointwise(r, node, kept) for r in readers):
                    continue
                parts = _parts(node, graph.opset, shapes, kept)
                resizes = {part.resize for part in parts if part.resize is not None}
                made = sum(_weight(reader).shape[0] for reader in readers)
                if not resizes or made > sum(part.channels for part in parts if part.resize is not None):
                    continue
                for reader in list(readers):
                    _rewrite(graph, scope, reader, parts)
                    outcome.change(reader, "computes before pixels are repeated")
                graph.remove_nodes({node, *resizes})
                here -= {node, *resizes}
        if outcome.changes:
            graph.sort()
            outcome.summary = f"{len(outcome.changes)} Conv compute on smaller images"
        return outcome


@dataclass(frozen=True)
class Piece:
    """Neighbouring channels that a Conv reads.

    Attributes:
        source: where they come from: what a Resize reads, or what stands beside it.
        resize: which repeats them; None where nothing does.
    """

    source: Tensor
    channels: int
    resize: Node | None


def _weight(conv: Node) -> Constant:
    weight = conv.constant(1)
    assert weight is not None
    return weight


def _pointwise(node: Node, maker: Node, kept: set[Tensor]) -> bool:
    """Whether a node is a Conv of size 1 that reads each pixel of what another one makes, and has weights that stay."""
    if node.op != "Conv" or not is_onnx(node.domain) or node.inputs[0] is not maker.outputs[0]:
        return False
    weight, bias = node.constant(1), node.input(2)
    if weight is None or weight in kept or weight.dtype != FLOAT32 or any(size != 1 for size in weight.shape[2:]):
        return False
    plain = all(int(v) == 1 for v in node.attrs.get("strides", [])) and not any(map(int, node.attrs.get("pads", [])))
    return plain and int(node.attrs.get("group", 1)) == 1 and (bias is None or isinstance(bias, Constant))


def _parts(node: Node, opset: int, shapes: Shapes, kept: set[Tensor]) -> list[Piece]:
    """What a Resize or a Concat of channels hands on; none where it is not known how many channels each of them has."""
    rank = shapes.rank(node.outputs[0])
    if rank is None or rank < 3 or (node.op == "Concat" and int(node.attrs.get("axis", 1)) % rank != 1):
        return []
    parts = []
    for tensor in node.inputs if node.op == "Concat" else node.outputs:
        shape, maker = shapes.shape(tensor), tensor.producer
        if shape is None or not isinstance(shape[1], int):
            return []
        alone = tensor not in kept and (maker is node or all(reader is node for reader in tensor.consumers))
        if maker is not None and alone and _repeats(maker, rank, opset, kept):
            parts.append(Piece(maker.inputs[0], shape[1], maker))
        else:
            parts.append(Piece(tensor, shape[1], None))
    return parts


def _repeats(node: Node, rank: int, opset: int, kept: set[Tensor]) -> bool:
    """Whether a node enlarges images to the nearest pixel by scales that are known."""
    if node.op not in RESIZES or not is_onnx(node.domain) or str(node.attrs.get("mode", "nearest")) != "nearest":
        return False
    if str(node.attrs.get("coordinate_transformation_mode", "")) == "tf_crop_and_resize":
        return False
    port = 1 if node.op == "Upsample" or opset < WITH_ROI else 2
    known, scales = node.constant(port), node.attrs.get("scales", [])
    if node.input(port + 1) is not None or (node.input(port) is not None and (known is None or known in kept)):
        return False
    scales = [float(v) for v in (scales if known is None else known.values.reshape(-1))]
    axes = [int(axis) % rank for axis in node.attrs.get("axes", range(rank))]
    if len(scales) != len(axes):
        return False
    of = dict.fromkeys(range(rank), 1.0) | dict(zip(axes, scales, strict=True))
    images = [of[axis] for axis in range(2, rank)]
    return bool(of[0] == of[1] == 1.0 and min(images) >= 1 and max(images) > 1)


def _rewrite(graph: Graph, scope: Graph, conv: Node, parts: list[Piece]) -> None:
    """Make a Conv the sum of itself on what is not resized and of others on small images, repeated behind them."""
    weight, out, attrs = _weight(conv), conv.outputs[0], dict(conv.attrs)
    values, bounds = weight.values, np.cumsum([0, *(part.channels for part in parts)]).tolist()
    plain = [k for k, part in enumerate(parts) if part.resize is None]
    groups = [plain] * bool(plain) + [[k] for k, part in enumerate(parts) if part.resize is not None]
    terms: list[Variable] = []
    for group in groups:
        data, resize = [parts[k].source for k in group], parts[group[0]].resize
        rows = np.concatenate([values[:, bounds[k] : bounds[k + 1]] for k in group], axis=1)
        if len(data) > 1:
            data = [scope.add_node("Concat", data, name=f"{conv.name}_concat", attrs={"axis": 1}).outputs[0]]
        read = graph.add_constant(f"{weight.name}_part", np.ascontiguousarray(rows))
        if terms:
            made = scope.add_node("Conv", [*data, read], name=f"{conv.name}_small", attrs=attrs).outputs[0]
        else:
            made = Variable(graph.unique_name(f"{conv.name}_part"), FLOAT32)
            conv.inputs[0], conv.inputs[1], conv.outputs[0] = data[0], read, made
        if resize is not None:
            name, given = f"{conv.name}_{resize.op.lower()}", [made, *resize.inputs[1:]]
            ends = [out] if len(groups) == 1 else 1
            made = scope.add_node(resize.op, given, name=name, attrs=dict(resize.attrs), outputs=ends).outputs[0]
        terms.append(made)
    total = terms[0]
    for k, term in enumerate(terms[1:], 2):
        ends = [out] if k == len(terms) else 1
        total = scope.add_node("Add", [total, term], name=f"{conv.name}_sum", outputs=ends).outputs[0]
