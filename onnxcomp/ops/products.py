"""Matrix products, in float and in integers."""

from __future__ import annotations

from onnxcomp.graph.coupling.flow import Axes, Labels, Step
from onnxcomp.graph.ir import MICROSOFT_DOMAIN, Node
from onnxcomp.graph.types import Shapes
from onnxcomp.ops.record import OpFacts, Weight, elements, volume


def gemm_weights(node: Node) -> tuple[Weight, ...]:
    """Gemm: B [K, N], or [N, K] with transB."""
    out = 0 if node.attrs.get("transB", 0) else 1
    return (Weight(1, out_axis=out, in_axes=(1 - out,), bias=2),)


def matmul_weights(node: Node) -> tuple[Weight, ...]:
    """MatMul: a constant right side [..., K, N], else a constant left side [..., M, K]."""
    if node.constant(1) is not None:
        return (Weight(1, out_axis=-1, in_axes=(-2,)),) if len(node.inputs[1].shape) >= 2 else ()
    if node.constant(0) is not None:
        return (Weight(0, out_axis=-2, in_axes=(-1,)),) if len(node.inputs[0].shape) >= 2 else ()
    return ()


def fused_matmul_weights(node: Node) -> tuple[Weight, ...]:
    """FusedMatMul: a constant right side [..., K, N], or [..., N, K] with transB."""
    if node.constant(1) is None or len(node.inputs[1].shape) < 2:
        return ()
    return (
        (Weight(1, out_axis=-2, in_axes=(-1,)),)
        if node.attrs.get("transB", 0)
        else (Weight(1, out_axis=-1, in_axes=(-2,)),)
    )


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


def matmul(step: Step) -> None:
    """MatMul: [..., M, K] x [..., K, N], leading axes broadcast; a vector has only K."""
    left, right = step.axes(0), step.axes(1)
    inner = right[-2] if len(right) > 1 else right[-1]
    if left[-1] is not None or inner is not None:
        step.tie(left[-1], inner)
    batch: Axes = []
    sides = [(left[:-2], step.sizes(0)[:-2]), (right[:-2], step.sizes(1)[:-2])]
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
    OpFacts("Gemm", weights=gemm_weights, macs=gemm_macs, coupling=gemm),
    OpFacts("MatMul", weights=matmul_weights, macs=matmul_macs, coupling=matmul, sums="products"),
    OpFacts("Einsum", coupling=einsum),
    OpFacts("FusedGemm", MICROSOFT_DOMAIN, weights=gemm_weights, macs=gemm_macs),
    OpFacts("FusedMatMul", MICROSOFT_DOMAIN, weights=fused_matmul_weights, macs=matmul_macs),
    OpFacts("MatMulInteger", macs=matmul_macs, quantization_ports=(2, 3), packed={1: elements}),
    OpFacts(
        "QLinearMatMul",
        macs=matmul_macs,
        quantization_ports=(1, 2, 4, 5, 6, 7),
        packed={3: elements},
    ),
    OpFacts(
        "DynamicQuantizeMatMul",
        MICROSOFT_DOMAIN,
        macs=matmul_macs,
        quantization_ports=(2, 3),
        packed={1: elements},
    ),
    OpFacts(
        "MatMulIntegerToFloat",
        MICROSOFT_DOMAIN,
        macs=matmul_macs,
        quantization_ports=(2, 3, 4, 5),
        packed={1: elements},
    ),
    OpFacts(
        "MatMulNBits",
        MICROSOFT_DOMAIN,
        macs=block_weights_macs,
        quantization_ports=(2, 3),
        packed={1: lambda n, codes: int(n.attrs["K"]) * int(n.attrs["N"])},
    ),
)
