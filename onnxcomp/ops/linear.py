"""Operators that multiply activations with weights: convolutions and matrix products."""

from __future__ import annotations

from onnxcomp.graph.ir import Node
from onnxcomp.graph.types import Shapes
from onnxcomp.ops.record import OpFacts, Weight, volume

MICROSOFT = "com.microsoft"


def conv_weights(node: Node) -> tuple[Weight, ...]:
    """Conv: W [M, C/group, k...]; kernels run over k... first and channels last."""
    rank = len(node.inputs[1].shape or ()) or 4
    spatial = tuple(range(2, rank))
    return (Weight(1, out_axis=0, in_axes=(*spatial, 1), group=int(node.attrs.get("group", 1)), bias=2),)


def conv_transpose_weights(node: Node) -> tuple[Weight, ...]:
    """ConvTranspose: W [C, M/group, k...]."""
    rank = len(node.inputs[1].shape or ()) or 4
    spatial = tuple(range(2, rank))
    return (Weight(1, out_axis=1, in_axes=(*spatial, 0), group=int(node.attrs.get("group", 1)), bias=2),)


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


def conv_macs(node: Node, shapes: Shapes) -> int:
    """One multiply-accumulate a kernel element and output position."""
    kernel, out = shapes.static(node.inputs[1]), shapes.static(node.outputs[0])
    if kernel is None or out is None:
        return 0
    return out[0] * volume(kernel) * volume(out[2:])


def conv_transpose_macs(node: Node, shapes: Shapes) -> int:
    """One multiply-accumulate a kernel element and input position."""
    kernel, data = shapes.static(node.inputs[1]), shapes.static(node.inputs[0])
    if kernel is None or data is None:
        return 0
    return data[0] * volume(kernel) * volume(data[2:])


def gemm_macs(node: Node, shapes: Shapes) -> int:
    """M * N * K."""
    a, out = shapes.static(node.inputs[0]), shapes.static(node.outputs[0])
    if a is None or out is None:
        return 0
    return volume(out) * a[0 if node.attrs.get("transA", 0) else 1]


def matmul_macs(node: Node, shapes: Shapes) -> int:
    """Output elements times K; activations times activations count as well."""
    a, out = shapes.static(node.inputs[0]), shapes.static(node.outputs[0])
    return 0 if a is None or out is None or not a else volume(out) * a[-1]


def qlinear_conv_macs(node: Node, shapes: Shapes) -> int:
    """As Conv, with the weight at port 3."""
    kernel, out = shapes.static(node.inputs[3]), shapes.static(node.outputs[0])
    return 0 if kernel is None or out is None else out[0] * volume(kernel) * volume(out[2:])


def block_weights_macs(node: Node, shapes: Shapes) -> int:
    """MatMulNBits: output elements times K."""
    return volume(shapes.static(node.outputs[0])) * int(node.attrs["K"])


RECORDS = (
    OpFacts("Conv", weights=conv_weights, macs=conv_macs),
    OpFacts("ConvTranspose", weights=conv_transpose_weights, macs=conv_transpose_macs),
    OpFacts("Gemm", weights=gemm_weights, macs=gemm_macs),
    OpFacts("MatMul", weights=matmul_weights, macs=matmul_macs),
    OpFacts("FusedConv", MICROSOFT, weights=conv_weights, macs=conv_macs),
    OpFacts("FusedGemm", MICROSOFT, weights=gemm_weights, macs=gemm_macs),
    OpFacts("FusedMatMul", MICROSOFT, weights=fused_matmul_weights, macs=matmul_macs),
    OpFacts("ConvInteger", macs=conv_macs, quantization_ports=(2, 3), packed={1: lambda n: n.inputs[1].size}),
    OpFacts("MatMulInteger", macs=matmul_macs, quantization_ports=(2, 3), packed={1: lambda n: n.inputs[1].size}),
    OpFacts(
        "QLinearConv",
        macs=qlinear_conv_macs,
        quantization_ports=(1, 2, 4, 5, 6, 7),
        packed={3: lambda n: n.inputs[3].size, 8: lambda n: n.inputs[8].size},
    ),
    OpFacts(
        "QLinearMatMul",
        macs=matmul_macs,
        quantization_ports=(1, 2, 4, 5, 6, 7),
        packed={3: lambda n: n.inputs[3].size},
    ),
    OpFacts(
        "DynamicQuantizeMatMul",
        MICROSOFT,
        macs=matmul_macs,
        quantization_ports=(2, 3),
        packed={1: lambda n: n.inputs[1].size},
    ),
    OpFacts(
        "MatMulIntegerToFloat",
        MICROSOFT,
        macs=matmul_macs,
        quantization_ports=(2, 3, 4, 5),
        packed={1: lambda n: n.inputs[1].size},
    ),
    OpFacts(
        "MatMulNBits",
        MICROSOFT,
        macs=block_weights_macs,
        quantization_ports=(2, 3),
        packed={1: lambda n: int(n.attrs["K"]) * int(n.attrs["N"])},
    ),
)
