"""Matrix products, in float and in integers."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TypeAlias

import numpy as np

from onnxcomp.graph.coupling.flow import Axes, Labels, Step
from onnxcomp.graph.ir import MICROSOFT_DOMAIN, Node
from onnxcomp.graph.types import Shapes, TensorType
from onnxcomp.ops import zeros
from onnxcomp.ops.gradients import linear as linear_forms
from onnxcomp.ops.gradients import microsoft as microsoft_forms
from onnxcomp.ops.gradients import quantization as quantization_forms
from onnxcomp.ops.record import IntegerForm, OpFacts, Reads, Weight, elements, volume
from onnxcomp.ops.shapes import broadcast, like, rows_by


def gemm_weights(node: Node) -> tuple[Weight, ...]:
    """Gemm: B [K, N], or [N, K] with transB."""
    out = 0 if node.attrs.get("transB", 0) else 1
    return (
        Weight(
            1,
            out_axis=out,
            in_axes=(1 - out,),
            bias=2,
            reads="columns" if node.attrs.get("transA", 0) else "rows",
            rank=2,
            alpha=float(node.attrs.get("alpha", 1.0)),
            beta=float(node.attrs.get("beta", 1.0)),
            bare=not node.attrs.get("activation"),
        ),
    )


def matmul_weights(node: Node) -> tuple[Weight, ...]:
    """MatMul: a constant right side [..., K, N], else a constant left side [..., M, K]."""
    if node.constant(1) is not None:
        return (Weight(1, out_axis=-1, in_axes=(-2,), reads="rows"),) if len(node.inputs[1].shape) >= 2 else ()
    if node.constant(0) is not None:
        left = Weight(0, out_axis=-2, in_axes=(-1,), reads="columns", data=1)
        return (left,) if len(node.inputs[0].shape) >= 2 else ()
    return ()


def fused_matmul_weights(node: Node) -> tuple[Weight, ...]:
    """FusedMatMul: a constant right side [..., K, N], or [..., N, K] with transB."""
    if node.constant(1) is None or len(node.inputs[1].shape) < 2:
        return ()
    out, inner = (-2, -1) if node.attrs.get("transB", 0) else (-1, -2)
    reads: Reads = "columns" if node.attrs.get("transA", 0) else "rows"
    if node.attrs.get("transBatchA", 0) or node.attrs.get("transBatchB", 0):
        reads = ""
    return (Weight(1, out_axis=out, in_axes=(inner,), reads=reads, alpha=float(node.attrs.get("alpha", 1.0))),)


def gemm_macs(node: Node, shapes: Shapes) -> int:
    """M * N * K."""
    a, out = shapes.static(node.inputs[0]), shapes.static(node.outputs[0])
    if a is None or out is None or len(a) != 2:
        return 0
    return volume(out) * a[0 if node.attrs.get("transA", 0) else 1]


def matmul_macs(node: Node, shapes: Shapes) -> int:
    """Output elements times K; activations times activations count as well."""
    a, out = shapes.static(node.inputs[0]), shapes.static(node.outputs[0])
    return 0 if a is None or out is None or not a else volume(out) * a[-1]


def turned_matmul_macs(node: Node, shapes: Shapes) -> int:
    """FusedMatMul: output elements times K, which stands elsewhere in an operand that is turned."""
    a, out = shapes.static(node.inputs[0]), shapes.static(node.outputs[0])
    if a is None or out is None or not a:
        return 0
    a = tuple(np.asarray(a)[_order(node, "A", len(a))])
    return volume(out) * int(a[-1])


def letters_of(node: Node) -> tuple[list[str], str] | None:
    """The letters of an Einsum's operands and of its output; None where it has an ellipsis."""
    equation = node.attrs.get("equation", "")
    text = (equation.decode() if isinstance(equation, bytes) else str(equation)).replace(" ", "")
    if "." in text or not text:
        return None
    left, arrow, right = text.partition("->")
    operands = left.split(",")
    if not arrow:
        right = "".join(sorted(c for c in set(left) - {","} if left.count(c) == 1))
    return operands, right


def einsum_macs(node: Node, shapes: Shapes) -> int:
    """Of two operands, one multiply-accumulate for each combination of indices, as of the products it stands for."""
    found = letters_of(node)
    known = [shapes.static(tensor) for tensor in node.inputs]
    if found is None or len(known) != 2:
        return 0
    sizes: dict[str, int] = {}
    for letters, shape in zip(found[0], known, strict=False):
        if shape is None or len(shape) != len(letters):
            return 0
        for letter, size in zip(letters, shape, strict=True):
            sizes[letter] = max(size, sizes.get(letter, 1))
    return prod(sizes.values())


def einsum_weights(node: Node) -> tuple[Weight, ...]:
    """A constant operand of two that is summed over some axes and gives the output one axis of its own."""
    found = letters_of(node)
    if found is None or len(found[0]) != 2:
        return ()
    for port in (1, 0):
        own, other = found[0][port], found[0][1 - port]
        if node.constant(port) is None or len(node.inputs[port].shape) != len(own):
            continue
        summed = tuple(a for a, letter in enumerate(own) if letter in other and letter not in found[1])
        made = [a for a, letter in enumerate(own) if letter not in other and letter in found[1]]
        if summed and len(made) == 1 and len(summed) + 1 == len(own):
            return (Weight(port, out_axis=made[0], in_axes=summed),)
    return ()


def block_weights_macs(node: Node, shapes: Shapes) -> int:
    """MatMulNBits: output elements times K."""
    return volume(shapes.static(node.outputs[0])) * int(node.attrs["K"])


def gemm(step: Step) -> None:
    """Gemm: A [M, K], B [K, N], either turned by transA, transB; C broadcast to [M, N]."""
    left, right = step.axes(0), step.axes(1)
    if step.attr("transA", 0):
        left = left[::-1]
    if step.attr("transB", 0):
        right = right[::-1]
    if left[1] is not None or right[0] is not None:
        step.tie(left[1], right[0])
    out: Axes = [left[0], right[1]]
    if step.has(2):
        added, sizes = step.axes(2), step.sizes(2)
        for axis in range(-len(added), 0):
            if sizes[axis] != 1:
                out[axis] = step.tie(out[axis], added[axis])
    step.emit(out)


def _order(node: Node, side: str, rank: int) -> list[int]:
    """In which order FusedMatMul takes the axes of an operand: `trans` turns the last two, `transBatch` puts the first
    axis before the last but one."""
    order = list(range(rank))
    if rank > 1 and node.attrs.get(f"transBatch{side}", 0):
        order.insert(rank - 2, order.pop(0))
    if rank > 1 and node.attrs.get(f"trans{side}", 0):
        order[-2:] = order[:-3:-1]
    return order


def turned_matmul(step: Step) -> None:
    """FusedMatMul: MatMul of operands that are turned first."""
    operands = [(step.axes(port), step.sizes(port)) for port in (0, 1)]
    orders = [_order(step.node, side, len(axes)) for side, (axes, _) in zip("AB", operands, strict=True)]
    turned = [
        ([axes[a] for a in order], tuple(sizes[a] for a in order))
        for order, (axes, sizes) in zip(orders, operands, strict=True)
    ]
    _multiply(step, *turned)


def turned_matmul_types(node: Node, shapes: Shapes) -> Sequence[TensorType | None]:
    """[..., M, N], leading axes broadcast."""
    found = []
    for port, side in enumerate("AB"):
        shape = shapes.shape(node.input(port))
        if shape is None or len(shape) < 2:
            return [None]
        found.append([shape[a] for a in _order(node, side, len(shape))])
    left, right = found
    return [TensorType(shapes.dtype(node.input(0)), (*broadcast(left[:-2], right[:-2]), left[-2], right[-1]))]


def gemm_types(node: Node, shapes: Shapes) -> Sequence[TensorType | None]:
    """FusedGemm: [M, N]."""
    a, b = shapes.shape(node.input(0)), shapes.shape(node.input(1))
    if a is None or b is None or len(a) != 2 or len(b) != 2:
        return [None]
    rows, columns = a[1 if node.attrs.get("transA", 0) else 0], b[0 if node.attrs.get("transB", 0) else 1]
    return [TensorType(shapes.dtype(node.input(0)), (rows, columns))]


def by_weight_types(node: Node, shapes: Shapes) -> Sequence[TensorType | None]:
    """Activations in float or integers times a matrix [K, N], into float32."""
    weight = shapes.static(node.input(1))
    return rows_by(node, shapes, weight[-1] if weight else None, np.dtype(np.float32))


def integer_gemm_types(node: Node, shapes: Shapes) -> Sequence[TensorType | None]:
    """QGemm: [M, K] times [K, N] or, with transB, [N, K]; integers as A's if the output has a scale, else float32."""
    weight = shapes.static(node.input(3))
    width = weight[0 if node.attrs.get("transB", 0) else 1] if weight else None
    taken = like(node, shapes)
    scaled = node.input(7) is not None and node.inputs[7].name
    return rows_by(node, shapes, width, taken.dtype if scaled and taken is not None else np.dtype(np.float32))


def block_types(node: Node, shapes: Shapes) -> Sequence[TensorType | None]:
    """MatMulNBits: K becomes N."""
    found = like(node, shapes)
    return rows_by(node, shapes, int(node.attrs["N"]), None if found is None else found.dtype or np.dtype(np.float32))


def matmul(step: Step) -> None:
    """MatMul: [..., M, K] x [..., K, N], leading axes broadcast; a vector has only K."""
    _multiply(step, (step.axes(0), step.sizes(0)), (step.axes(1), step.sizes(1)))


Operand: TypeAlias = tuple[Axes, tuple[int | None, ...]]


def _multiply(step: Step, first: Operand, second: Operand) -> None:
    left, right = first[0], second[0]
    inner = right[-2] if len(right) > 1 else right[-1]
    if left[-1] is not None or inner is not None:
        step.tie(left[-1], inner)
    batch: Axes = []
    sides = [(left[:-2], first[1][:-2]), (right[:-2], second[1][:-2])]
    for axis in range(-max(len(axes) for axes, _ in sides), 0):
        parts = [(axes[axis], sizes[axis]) for axes, sizes in sides if len(axes) >= -axis]
        batch.append(step.join([labels for labels, size in parts if size != 1]))
    rows = [left[-2]] if len(left) > 1 else []
    columns = [right[-1]] if len(right) > 1 else []
    step.emit([*batch, *rows, *columns])


def einsum(step: Step) -> None:
    """One letter, one axis: equal letters are tied."""
    equation = str(step.attr("equation", "")).replace(" ", "")
    if "." in equation or "->" not in equation:
        for port in range(len(step.node.inputs)):
            step.close_axes(port, f"{step.node} has an equation with implicit axes")
        return
    left, right = equation.split("->")
    found: dict[str, Labels | None] = {}
    for port, letters in enumerate(left.split(",")):
        for letter, labels, size in zip(letters, step.axes(port), step.sizes(port), strict=True):
            if size != 1:
                found[letter] = step.tie(found[letter], labels) if letter in found else labels
    step.emit([found.get(letter) for letter in right])


RECORDS = (
    OpFacts("Gemm", gradient=linear_forms.gemm, weights=gemm_weights, macs=gemm_macs, coupling=gemm),
    OpFacts(
        "MatMul",
        gradient=linear_forms.matmul,
        weights=matmul_weights,
        macs=matmul_macs,
        coupling=matmul,
        zeros=zeros.one,
        sums="products",
    ),
    OpFacts("Einsum", gradient=linear_forms.einsum, weights=einsum_weights, macs=einsum_macs, coupling=einsum),
    OpFacts(
        "FusedGemm",
        MICROSOFT_DOMAIN,
        gradient=microsoft_forms.fused_gemm,
        half=((0, 1, 2), (0,)),
        weights=gemm_weights,
        macs=gemm_macs,
        shape=gemm_types,
        coupling=gemm,
    ),
    OpFacts(
        "FusedMatMul",
        MICROSOFT_DOMAIN,
        gradient=microsoft_forms.fused_matmul,
        half=((0, 1), (0,)),
        weights=fused_matmul_weights,
        macs=turned_matmul_macs,
        shape=turned_matmul_types,
        coupling=turned_matmul,
        zeros=zeros.one,
        sums="products",
    ),
    OpFacts(
        "MatMulInteger",
        macs=matmul_macs,
        quantization_ports=(2, 3),
        integers=IntegerForm("MatMul", 0, 1, zero=3),
        packed={1: elements},
    ),
    OpFacts(
        "QLinearMatMul",
        macs=matmul_macs,
        quantization_ports=(1, 2, 4, 5, 6, 7),
        integers=IntegerForm("MatMul", 0, 3, 4, 5, -1, (1, 2), (6, 7)),
        packed={3: elements},
    ),
    OpFacts(
        "QGemm",
        MICROSOFT_DOMAIN,
        shape=integer_gemm_types,
        macs=gemm_macs,
        quantization_ports=(1, 2, 4, 5, 7, 8),
        integers=IntegerForm("Gemm", 0, 3, 4, 5, 6, (1, 2), (7, 8)),
        packed={3: elements, 6: elements},
    ),
    OpFacts(
        "DynamicQuantizeMatMul",
        MICROSOFT_DOMAIN,
        shape=by_weight_types,
        macs=matmul_macs,
        quantization_ports=(2, 3),
        integers=IntegerForm("MatMul", 0, 1, 2, 3, 4),
        packed={1: elements},
    ),
    OpFacts(
        "MatMulIntegerToFloat",
        MICROSOFT_DOMAIN,
        shape=by_weight_types,
        macs=matmul_macs,
        quantization_ports=(2, 3, 4, 5),
        integers=IntegerForm("MatMul", 0, 1, 3, 5, 6),
        packed={1: elements},
    ),
    OpFacts(
        "MatMulNBits",
        MICROSOFT_DOMAIN,
        gradient=quantization_forms.matmul_of_few_bits,
        shape=block_types,
        macs=block_weights_macs,
        quantization_ports=(2, 3),
        integers=IntegerForm("MatMul", 0, 1, 2, 3, 5),
        packed={1: lambda n, codes: int(n.attrs["K"]) * int(n.attrs["N"])},
    ),
)
