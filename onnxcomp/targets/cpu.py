"""What does ONNX Runtime's CPU provider run on 8-bit integers?

Checked by looking at the graph that it really runs. Activations are unsigned: signed ones fall off the fast path on
x86. A Q and DQ pair around an operator that only moves data vanishes when both sides have one scale and zero point.
"""

from __future__ import annotations

from onnxcomp.graph.ir import Constant, Node
from onnxcomp.graph.rounding import Levels
from onnxcomp.graph.types import Shapes
from onnxcomp.ops.facts import Weight
from onnxcomp.targets.base import Kernel, Target


def conv(node: Node, weight: Weight | None, shapes: Shapes) -> str:
    """QLinearConv takes any rank; its bias must be a constant."""
    del weight, shapes
    return _bias(node, 2)


def gemm(node: Node, weight: Weight | None, shapes: Shapes) -> str:
    """QGemm: plain products with a bias of one value an output."""
    del shapes
    if weight is not None and (weight.reads != "rows" or weight.alpha != 1.0):
        return "the integer kernel has no transA and no alpha"
    bias = node.constant(2)
    if bias is not None and weight is not None and weight.beta != 1.0:
        return "the integer kernel has no beta"
    if bias is not None and weight is not None:
        width = node.inputs[weight.port].shape[weight.out_axis]
        if bias.shape not in ((width,), (1, width)):
            return f"its bias of shape {list(bias.shape)} is not one value an output"
    return _bias(node, 2)


def matmul(node: Node, weight: Weight | None, shapes: Shapes) -> str:
    """MatMulIntegerToFloat and QLinearMatMul: per-channel scales on a two-dimensional right side only."""
    del shapes
    if weight is None or weight.port != 1:
        return "its weight is on the left"
    return "" if len(node.inputs[1].shape) == 2 else "its weight has more than two dimensions"


def two_activations(node: Node, weight: Weight | None, shapes: Shapes) -> str:
    """QLinearAdd, QLinearMul: both sides computed."""
    del weight, shapes
    fixed = any(isinstance(tensor, Constant) for tensor in node.inputs)
    return "one side is a constant" if fixed else ""


def average_pool(node: Node, weight: Weight | None, shapes: Shapes) -> str:
    """QLinearAveragePool: two-dimensional, without dilations, and it divides otherwise at a rounded-up edge."""
    del weight
    if shapes.rank(node.inputs[0]) != 4:
        return "the integer kernel takes four-dimensional input"
    if node.attrs.get("ceil_mode", 0) and node.attrs.get("count_include_pad", 0):
        return "the integer kernel computes another mean with ceil_mode and count_include_pad"
    return "the integer kernel has no dilations" if any(d != 1 for d in node.attrs.get("dilations", ())) else ""


def _bias(node: Node, port: int) -> str:
    tensor = node.input(port)
    return "" if tensor is None or isinstance(tensor, Constant) else "its bias is computed"


TARGET = Target(
    name="cpu",
    kernels={
        "Conv": Kernel(weighted=True, refuses=conv),
        "Gemm": Kernel(weighted=True, float_output=True, weight_zero_point=True, refuses=gemm, scale_costs=True),
        "MatMul": Kernel(weighted=True, float_output=True, refuses=matmul, scale_costs=True),
        "Add": Kernel(ports=(0, 1), refuses=two_activations),
        "Mul": Kernel(ports=(0, 1), refuses=two_activations, by_default=False),
        "Concat": Kernel(ports=None),
        "AveragePool": Kernel(refuses=average_pool),
        "GlobalAveragePool": Kernel(refuses=average_pool),
        "LeakyRelu": Kernel(by_default=False),
        "Sigmoid": Kernel(by_default=False),
    },
    levels=Levels.unsigned(8),
    symmetric=False,
    moves={
        "Reshape": 13,
        "Transpose": 13,
        "Slice": 13,
        "Gather": 13,
        "Squeeze": 13,
        "Unsqueeze": 13,
        "Flatten": 13,
        "Expand": 13,
        "Tile": 13,
        "Split": 13,
        "MaxPool": 12,
        "DepthToSpace": 13,
    },
    rewritten=frozenset({"Pad", "Relu", "Clip"}),
    folds=frozenset({"Relu", "Clip"}),
    runs_here=True,
    joins_bias=True,
    contrib=True,
    dynamic=True,
    decodes_at_load=True,
    pair_limit=True,
    blocked=True,
    recipes=("int8", "dynamic", "tiles", "mixed", "weights8", "stored", "clean"),
    size_recipes=("weights4",),
)
