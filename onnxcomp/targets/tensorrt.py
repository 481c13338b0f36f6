"""What does TensorRT take as explicit int8 quantization?

Checked with TensorRT's own parser and builder: int8 with zero point 0 only, Q and DQ on inputs, bias in float. The
placement follows NVIDIA's own quantizer: on a residual Add the shortcut alone, nothing on operators that the builder
fuses into their neighbours, no layer too small for tensor cores.
"""

from __future__ import annotations

from onnxcomp.graph.ir import Node
from onnxcomp.graph.rounding import Levels
from onnxcomp.graph.types import Shapes
from onnxcomp.layers.layer import multiplies
from onnxcomp.ops.facts import Weight, installed
from onnxcomp.targets.base import Kernel, Target

LEAST_CHANNELS = 16
IMAGE_CHANNELS = 4  # a first convolution reads so few channels, and gains all the same


def conv(node: Node, weight: Weight | None, shapes: Shapes) -> str:
    """Fewer than 16 channels do not fill an int8 tensor core."""
    del shapes
    if weight is None:
        return "its weight is computed"
    into, out = weight.channels(node.inputs[weight.port].shape)
    image = into <= IMAGE_CHANNELS and _first(node)
    if out < LEAST_CHANNELS or (into < LEAST_CHANNELS and not image):
        return f"{into} to {out} channels are too few for int8 tensor cores"
    return ""


def _first(node: Node) -> bool:
    """Whether no other product stands before a convolution."""
    waiting, seen = [node.inputs[0].producer], set[Node]()
    while waiting:
        maker = waiting.pop()
        if maker is None or maker in seen:
            continue
        if multiplies(maker, installed()):
            return False
        seen.add(maker)
        waiting += [tensor.producer for tensor in maker.inputs]
    return True


def product(node: Node, weight: Weight | None, shapes: Shapes) -> str:
    """A product with a vector, or with K or N below 16, gains nothing."""
    if weight is None or weight.port != 1 or len(node.inputs[1].shape) != 2:
        return "its weight is not a two-dimensional right side"
    inner, outer = weight.channels(node.inputs[1].shape)
    if inner < LEAST_CHANNELS or outer < LEAST_CHANNELS:
        return f"K={inner}, N={outer} is too small for int8 tensor cores"
    rows = (shapes.shape(node.inputs[0]) or (None,))[:-1]
    if weight.bias is None and rows and all(row == 1 for row in rows):
        return "it multiplies a single row"
    return ""


TARGET = Target(
    name="tensorrt",
    kernels={
        "Conv": Kernel(weighted=True, float_output=True, weight_zero_point=True, refuses=conv),
        "Gemm": Kernel(weighted=True, float_output=True, weight_zero_point=True, refuses=product),
        "MatMul": Kernel(weighted=True, float_output=True, weight_zero_point=True, refuses=product),
    },
    levels=Levels.signed(8),
    symmetric=True,
    moves={},
    outputs=False,
    bias="float",
    residual="shortcut",
    unified=frozenset({"Concat"}),
    separate=True,
    compiler="onnxcomp.verify.tensorrt:ask_tensorrt",
    half_first=True,
    sparse=True,
    plain_storage=True,
    channel_multiple=8,
    recipes=("int8", "clean"),
)
