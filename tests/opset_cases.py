"""One or more small nodes for every operator whose schema changed between opsets 8 and 22, in every form it had."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import builders
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

NEWEST = 22


@dataclass(frozen=True)
class Known:
    """An input that is an initializer."""

    array: np.ndarray


@dataclass(frozen=True)
class Case:
    """One node: its inputs (arrays are fed, None is omitted), attributes, and the opsets in which it has this form."""

    op: str
    inputs: tuple[Any, ...]
    outputs: int = 1
    since: int = 7
    until: int = NEWEST
    attrs: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return "-".join([self.op, *(f"{k}={v}" for k, v in self.attrs.items() if not isinstance(v, onnx.GraphProto))])


CASES: list[Case] = []
_R = np.random.default_rng(5)


def real(*shape: int, low: float = -2.0, high: float = 2.0) -> np.ndarray:
    return _R.uniform(low, high, shape).astype(np.float32)


def ints(*values: int) -> Known:
    return Known(np.array(values, np.int64))


def case(op: str, *inputs: Any, n: int = 1, since: int = 7, until: int = NEWEST, **attrs: Any) -> None:
    CASES.append(Case(op, inputs, n, since, until, attrs))


def _axes_moved(op: str, x: np.ndarray, axes: Sequence[int], at: int, **attrs: Any) -> None:
    case(op, x, until=at - 1, axes=list(axes), **attrs)
    case(op, x, ints(*axes), since=at, **attrs)


A, POSITIVE, UNIT = real(2, 3, 4), real(2, 3, 4, low=0.1), real(2, 3, 4, low=-0.9, high=0.9)
IMAGE, SIGNAL, VOLUME = real(1, 2, 6, 7), real(1, 2, 9), real(1, 2, 5, 6, 4)

for name in [
    "Abs",
    "Atan",
    "Ceil",
    "Cos",
    "Elu",
    "Exp",
    "Floor",
    "HardSigmoid",
    "Identity",
    "LeakyRelu",
    "Neg",
    "Relu",
    "Selu",
    "Sigmoid",
    "Sin",
    "Softplus",
    "Softsign",
    "Tan",
    "Tanh",
]:
    case(name, A)
for name in ("Log", "Reciprocal", "Sqrt"):
    case(name, POSITIVE)
for name in ("Acos", "Asin"):
    case(name, UNIT)
for name in ("Atanh",):
    case(name, UNIT, since=9)
for name in ("Asinh", "Cosh", "Erf", "IsNaN", "Sign", "Sinh"):
    case(name, A, since=9)
case("Acosh", POSITIVE + 1, since=9)
case("IsInf", A, since=10)
case("ThresholdedRelu", A, since=10)
case("Round", A, since=11)
case("HardSwish", A, since=14)
case("Mish", A, since=18)
case("Celu", A, since=12)
for name in ("Add", "Div", "Mul", "Sub"):
    case(name, A, real(3, 1, low=0.5))
case("Pow", POSITIVE, real(3, 1, low=0.5))
case("PRelu", A, Known(real(3, 1)))
for name in ("Greater", "Less"):
    case(name, A, real(3, 1))
    case(name, A.astype(np.float64), real(3, 1).astype(np.float64))
case("Equal", (A * 2).astype(np.int64), np.array([[1], [0], [-1]], np.int64))
for name in ("GreaterOrEqual", "LessOrEqual"):
    case(name, A, real(3, 1), since=12)
for name in ("Max", "Mean", "Min", "Sum"):
    case(name, A, A + 1, until=7)
    case(name, A, real(3, 1), since=8)
case("Mod", (A * 5).astype(np.int64), np.array([[3], [2], [5]], np.int64), since=10)
case("Where", A > 0, A, real(3, 1), since=9)

for name in ("ArgMax", "ArgMin"):
    case(name, A, axis=1)
    case(name, A, axis=-1, keepdims=0, since=11)
for kind in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare"):
    for keep in (0, 1):
        _axes_moved(f"Reduce{kind}", POSITIVE, (0, 2), 18, keepdims=keep)
    case(f"Reduce{kind}", POSITIVE)
    case(f"Reduce{kind}", POSITIVE, axes=[-1], since=11, until=17)
for keep in (0, 1):
    _axes_moved("ReduceSum", A, (0, 2), 13, keepdims=keep)
case("ReduceSum", A)

for name in ("Softmax", "LogSoftmax", "Hardmax"):
    for axis in (0, 1, 2):
        case(name, A, axis=axis)
    case(name, A)
    case(name, A, axis=-2, since=11)

case("AveragePool", IMAGE, kernel_shape=[2, 3], pads=[1, 1, 0, 1], strides=[2, 2])
case("AveragePool", IMAGE, kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1)
case("AveragePool", IMAGE, kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2], ceil_mode=1, since=10)
case("AveragePool", IMAGE, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1, since=10)
case(
    "AveragePool",
    IMAGE,
    kernel_shape=[3, 3],
    pads=[1, 1, 1, 1],
    strides=[2, 2],
    ceil_mode=1,
    count_include_pad=1,
    since=10,
)
case("AveragePool", SIGNAL, kernel_shape=[4], pads=[1, 1], strides=[3], ceil_mode=1, count_include_pad=1, since=10)
case("AveragePool", VOLUME, kernel_shape=[3, 3, 3], pads=[1] * 6, strides=[2, 2, 2], count_include_pad=1)
case("AveragePool", IMAGE, kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER")
case("AveragePool", IMAGE, kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_LOWER", count_include_pad=1)
case("MaxPool", IMAGE, kernel_shape=[2, 3], pads=[1, 1, 0, 1], strides=[2, 2])
case("MaxPool", IMAGE, n=2, kernel_shape=[2, 3], strides=[2, 2], since=8)
case("MaxPool", IMAGE, kernel_shape=[3, 3], dilations=[1, 2], ceil_mode=1, strides=[2, 2], since=10)
case("MaxPool", IMAGE, kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_LOWER")
for name in ("GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool"):
    case(name, IMAGE)
case("LpPool", IMAGE, kernel_shape=[2, 3], p=2, strides=[2, 2])
case("LpPool", IMAGE, kernel_shape=[3, 3], p=1, pads=[1, 1, 1, 1])
case("LpPool", IMAGE, kernel_shape=[3, 3], p=2, auto_pad="SAME_UPPER", strides=[2, 2])
case("LpNormalization", A, axis=1, p=2)
case("LRN", IMAGE, size=3)
case("InstanceNormalization", IMAGE, Known(real(2)), Known(real(2)))
case("MeanVarianceNormalization", IMAGE, since=9)
NORM = [Known(v) for v in builders.norm_weights("n", 2, np.random.default_rng(0)).values()]
case("BatchNormalization", IMAGE, *NORM)
case("BatchNormalization", IMAGE, *NORM, epsilon=1e-3, momentum=0.8)
case("BatchNormalization", IMAGE, *NORM, spatial=1, until=8)
GROUPED = real(2, 6, 5)
case("GroupNormalization", GROUPED, Known(real(3)), Known(real(3)), num_groups=3, since=18, until=20)
case("GroupNormalization", GROUPED, real(3), real(3), num_groups=3, epsilon=1e-3, since=18, until=20)
case("GroupNormalization", GROUPED, Known(real(6)), Known(real(6)), num_groups=3, since=21)

case("Conv", IMAGE, Known(real(3, 2, 3, 3)), pads=[1, 1, 1, 1])
case("Conv", IMAGE, Known(real(4, 1, 3, 3)), Known(real(4)), group=2, strides=[2, 2], auto_pad="SAME_UPPER")
case("ConvTranspose", IMAGE, Known(real(2, 3, 3, 3)), strides=[2, 2], output_padding=[1, 1])
case("ConvTranspose", IMAGE, Known(real(2, 3, 3, 3)), strides=[2, 2], auto_pad="SAME_UPPER")
case("ConvTranspose", IMAGE, Known(real(2, 3, 3, 3)), strides=[2, 2], output_shape=[12, 14], auto_pad="SAME_LOWER")
case("DeformConv", IMAGE, Known(real(3, 2, 3, 3)), real(1, 18, 4, 5, low=-0.5, high=0.5), Known(real(3)), since=19)
case("Gemm", real(3, 4), Known(real(4, 5)), Known(real(5)), alpha=0.5, beta=2.0)
case("Gemm", real(3, 4), Known(real(4, 5)), since=11)
case("MatMul", A, Known(real(4, 5)))
case("Einsum", A, Known(real(4, 5)), equation="abc,cd->abd", since=12)
SEQUENCE = real(5, 2, 3)
case("RNN", SEQUENCE, Known(real(1, 4, 3)), Known(real(1, 4, 4)), Known(real(1, 8)), n=2, hidden_size=4)
case("GRU", SEQUENCE, Known(real(1, 12, 3)), Known(real(1, 12, 4)), Known(real(1, 24)), n=2, hidden_size=4)
case("LSTM", SEQUENCE, Known(real(2, 16, 3)), Known(real(2, 16, 4)), n=3, hidden_size=4, direction="bidirectional")

case("Upsample", IMAGE, scales=[1.0, 1.0, 2.0, 2.0], until=8)
for mode in ("nearest", "linear"):
    case("Upsample", IMAGE, mode=mode, scales=[1.0, 1.0, 2.0, 3.0], until=8)
    for by in ((2.0, 2.0), (2.5, 1.3), (3.0, 1.0)):
        case("Upsample", IMAGE, Known(np.float32([1, 1, *by])), mode=mode, since=9, until=9)
    for by in ((2.0, 2.0), (0.5, 0.75), (1.7, 0.6), (1.0, 0.4), (2.5, 2.5), (1.7, 1.7)):
        case("Resize", IMAGE, Known(np.float32([1, 1, *by])), mode=mode, since=10, until=10)
case("Resize", IMAGE, np.float32([1, 1, 2, 2]), mode="linear", since=10, until=10)
NO_ROI = Known(np.zeros(0, np.float32))
for mode in ("nearest", "linear", "cubic"):
    for how in ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"):
        case("Resize", IMAGE, NO_ROI, Known(np.float32([1, 1, 1.7, 0.6])), mode=mode, since=11,
             coordinate_transformation_mode=how)  # fmt: skip
for mode in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil"):
    case("Resize", IMAGE, NO_ROI, NO_ROI, ints(1, 2, 9, 4), mode="nearest", nearest_mode=mode, since=11)
case("Resize", IMAGE, NO_ROI, Known(np.float32([1, 1, 2, 2])), mode="nearest", since=11, until=12,
     coordinate_transformation_mode="tf_half_pixel_for_nn")  # fmt: skip
case("Resize", IMAGE, Known(np.float32([0, 0, 0.2, 0.1, 1, 1, 0.8, 1.2])), Known(np.float32([1, 1, 2, 2])),
     mode="linear", coordinate_transformation_mode="tf_crop_and_resize", extrapolation_value=3.0, since=11)  # fmt: skip
case(
    "Resize",
    IMAGE,
    NO_ROI,
    Known(np.float32([1, 1, 1.7, 0.6])),
    mode="cubic",
    exclude_outside=1,
    cubic_coeff_a=-0.5,
    since=11,
)
case("Resize", IMAGE, None, Known(np.float32([1, 1, 2, 2])), mode="linear", since=13)
BOXES = np.float32([[0, 0, 5, 5], [1.5, 2, 4, 5]])
case("RoiAlign", IMAGE, BOXES, np.int64([0, 0]), output_height=2, output_width=3, spatial_scale=0.9, since=10)
case("MaxRoiPool", IMAGE, np.float32([[0, 0, 0, 4, 4]]), pooled_shape=[2, 2])
GRID = real(1, 3, 4, 2, low=-1.2, high=1.2)
for mode in ("bilinear", "nearest", "bicubic"):
    case("GridSample", IMAGE, GRID, mode=mode, since=16, until=19)
case("GridSample", IMAGE, GRID, since=16)
case("GridSample", IMAGE, GRID, padding_mode="border", align_corners=1, since=16)
case("GridSample", IMAGE, GRID, mode="cubic", since=20)

case("Cast", A, to=TensorProto.INT32)
case("Cast", A, to=TensorProto.FLOAT16)
case("CastLike", A, np.zeros(1, np.int64), since=15)
case("Clip", A, min=-0.5, max=1.0, until=10)
case("Clip", A, max=1.0, until=10)
case("Clip", A, until=10)
case("Clip", A, Known(np.float32(-0.5)), None, since=11)
case("Compress", A, np.array([True, False, True]), axis=1, since=9)
case("Concat", A, A, axis=1)
case("Constant", value=numpy_helper.from_array(real(3)))
case("Constant", value_floats=[1.0, 2.0], since=12)
case("ConstantOfShape", ints(2, 3), value=numpy_helper.from_array(np.float32([2])), since=9)
case("CumSum", A, Known(np.int64(1)), reverse=1, since=11)
case("DFT", real(1, 4, 5, 1), axis=2, since=17, until=19)
case("DFT", real(1, 4, 5, 1), onesided=1, since=17, until=19)
case("DFT", real(1, 4, 5, 1), Known(np.int64(3)), since=17, until=19)
case("DFT", real(1, 4, 5, 1), None, Known(np.int64(1)), since=20)
case("DepthToSpace", real(1, 8, 2, 3), blocksize=2)
case("DepthToSpace", real(1, 8, 2, 3), blocksize=2, mode="CRD", since=11)
case("SpaceToDepth", IMAGE[:, :, :, :6], blocksize=2)
case("DequantizeLinear", np.uint8([1, 200]), Known(np.float32(0.1)), Known(np.uint8(3)), since=10)
case("DequantizeLinear", np.int8([[1, -7], [3, 4]]), Known(np.float32([0.1, 0.2])), since=13, axis=0)
case("QuantizeLinear", A, Known(np.float32(0.05)), Known(np.uint8(128)), since=10)
case("QuantizeLinear", A, Known(np.float32([0.05, 0.1])), Known(np.int8([0, 3])), since=13, axis=0)
Q = [Known(np.float32(0.1)), Known(np.uint8(3))]
case(
    "QLinearMatMul",
    np.uint8([[1, 9]]),
    *Q,
    Known(np.uint8([[3], [200]])),
    *Q,
    Known(np.float32(3)),
    Known(np.uint8(0)),
    since=10,
)
case("Det", real(2, 3, 3), since=11)
case("Dropout", A)
case("Dropout", A, n=2)
case("Dropout", A, ratio=0.3, until=11)
case("Dropout", A, Known(np.float32(0.3)), since=12)
case("Expand", real(3, 1), ints(2, 3, 4), since=8)
case("EyeLike", real(3, 4), k=1, since=9)
case("Flatten", A, axis=2)
case("Flatten", A, axis=-1, since=11)
case("Gather", A, np.int64([1, 0]), axis=1)
case("GatherElements", A, np.zeros((1, 3, 4), np.int64), since=11)
case("GatherND", A, np.int64([[0, 1], [1, 2]]), since=11)
case(
    "MaxUnpool",
    np.float32([[[[1, 2], [3, 4]]]]),
    np.int64([[[[5, 7], [13, 15]]]]),
    kernel_shape=[2, 2],
    strides=[2, 2],
    since=9,
)
SCORES = real(1, 1, 4, low=0.0, high=1.0)
case("NonMaxSuppression", real(1, 4, 4, low=0.0), SCORES, ints(3), Known(np.float32([0.5])), since=10)
case("NonZero", A > 0, since=9)
case("OneHot", np.int64([0, 2]), Known(np.int64(3)), Known(np.float32([-1, 2])), since=9)
for mode in ("constant", "reflect", "edge"):
    case("Pad", IMAGE, mode=mode, pads=[0, 0, 1, 1, 0, 0, 2, 1], until=10)
    case("Pad", IMAGE, ints(0, 0, 1, 1, 0, 0, 2, 1), mode=mode, since=11)
case("Pad", IMAGE, pads=[0, 0, 1, -1, 0, 0, 2, 1], value=1.5, until=10)
case("Pad", IMAGE, ints(0, 0, 1, -1, 0, 0, 2, 1), Known(np.float32(1.5)), since=11)
case("Reshape", A, ints(0, -1))
case("Scatter", A, np.zeros((1, 3, 4), np.int64), real(1, 3, 4), axis=0, since=9, until=10)
case("ScatterElements", A, np.zeros((1, 3, 4), np.int64), real(1, 3, 4), since=11)
case("ScatterND", A, np.int64([[0, 1], [1, 2]]), real(2, 4), since=11)
case("Shape", A)
case("Size", A)
case("Slice", A, starts=[1, 0], ends=[3, -1], axes=[1, 2], until=9)
case("Slice", A, starts=[0, 1], ends=[1, 9999], until=9)
case("Slice", A, ints(-1), ints(-9), ints(2), ints(-2), since=10)
case("Split", A, n=2, axis=2)
case("Split", A, n=3, axis=1)
case("Split", A, n=2, axis=2, split=[1, 3], until=12)
case("Split", A, ints(1, 3), n=2, axis=2, since=13)
case("Squeeze", real(1, 3, 1))
_axes_moved("Squeeze", real(1, 3, 1), (0, 2), 13)
_axes_moved("Unsqueeze", A, (0, 2), 13)
case("Tile", A, ints(1, 2, 1))
case("TopK", A, n=2, k=2, axis=1, until=9)
case("TopK", A, ints(2), n=2, since=10)
case("Transpose", A, perm=[2, 0, 1])
case("Bernoulli", POSITIVE / 3, since=15)
case("Multinomial", POSITIVE[0], sample_size=2)
case("RandomNormal", shape=[2, 3])
case("RandomUniform", shape=[2, 3])
case("RandomNormalLike", A)
case("RandomUniformLike", A)
for reduction in ("mean", "none"):
    case("SoftmaxCrossEntropyLoss", real(3, 4), np.int64([0, 1, 2]), reduction=reduction, since=12)
case("NegativeLogLikelihoodLoss", real(3, 4), np.int64([0, 1, 2]), since=12)


def _float(name: str, shape: Sequence[int] | None = None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def _branch(op: str) -> onnx.GraphProto:
    return helper.make_graph([helper.make_node(op, ["x0"], ["b"])], op, [], [_float("b")])


def _loop() -> onnx.GraphProto:
    nodes = [helper.make_node("Softmax", ["v"], ["s"], axis=1), helper.make_node("Identity", ["c"], ["d"])]
    inputs = [
        helper.make_tensor_value_info("i", TensorProto.INT64, []),
        builders.value("c", TensorProto.BOOL, []),
        _float("v", [2, 3]),
    ]
    return helper.make_graph(nodes, "loop", inputs, [builders.value("d", TensorProto.BOOL, []), _float("s", [2, 3])])


def _scan() -> onnx.GraphProto:
    nodes = [helper.make_node("Add", ["a", "e"], ["t"]), helper.make_node("Identity", ["t"], ["o"])]
    return helper.make_graph(nodes, "scan", [_float("a", [3]), _float("e", [3])], [_float("t", [3]), _float("o", [3])])


case("If", A, Known(np.array(True)), then_branch=_branch("Tanh"), else_branch=_branch("Exp"))
case("Loop", Known(np.int64(2)), Known(np.array(True)), real(2, 3), body=_loop())
case("Scan", real(3), real(4, 3), n=2, num_scan_inputs=1, body=_scan(), since=9)

# another form: Scan 8 is refused (tests/test_graph_opset.py); the Optional operators are tested together there
ELSEWHERE = {("Scan", 9), ("OptionalGetElement", 18), ("OptionalHasElement", 18)}
# ONNX Runtime 1.31 has kernels for the forms before opset 22 and none for these
NO_KERNEL_22 = frozenset(
    [
        "Bernoulli",
        "GlobalLpPool",
        "MaxRoiPool",
        "Multinomial",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
        "RoiAlign",
    ]
)


def changed() -> Iterator[tuple[str, int]]:
    """Every (operator, version) at which a schema that opset 7 or newer had was replaced, up to opset 22."""
    history: dict[str, list[int]] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == "":
            history.setdefault(schema.name, []).append(schema.since_version)
    for name, versions in sorted(history.items()):
        for version in sorted(versions)[1:]:
            if 7 < version <= NEWEST:
                yield name, version


def fitting(op: str, version: int) -> list[Case]:
    """Cases whose form is the one that `version` replaced."""
    return [c for c in CASES if c.op == op and c.since <= version - 1 <= c.until]


def model(item: Case, opset: int) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """The node as a model of an opset, and feeds."""
    names, feeds, weights = [], {}, {}
    for i, given in enumerate(item.inputs):
        names.append("" if given is None else f"x{i}")
        if isinstance(given, Known):
            weights[f"x{i}"] = given.array
        elif given is not None:
            feeds[f"x{i}"] = given
    if item.op == "If":
        names = ["x1"]
    made = [f"y{i}" for i in range(item.outputs)]
    node = helper.make_node(item.op, names, made, "node", **item.attrs)
    inputs = [builders.value(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for n, a in feeds.items()]
    outputs = [onnx.ValueInfoProto(name=n) for n in made]
    ir = max(4, int(helper.find_min_ir_version_for([helper.make_opsetid("", opset)])))
    proto = builders.model([node], inputs, outputs, weights, opset=opset, ir_version=ir, check=False)
    inferred = onnx.shape_inference.infer_shapes(proto)
    types = {v.name: v for v in inferred.graph.output}
    for output in proto.graph.output:
        if types[output.name].type.tensor_type.elem_type:
            output.CopyFrom(types[output.name])
        else:
            output.CopyFrom(builders.value(output.name, TensorProto.FLOAT, None))
    return proto, feeds


def in_if(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its node in both branches of an If, which reads the inputs from outside."""
    branches = []
    for side in ("then", "else"):
        body = onnx.GraphProto(name=side, node=proto.graph.node)
        for output in proto.graph.output:
            inner = body.output.add()
            inner.CopyFrom(output)
            inner.name = f"{side}_{output.name}"
        for node in body.node:
            node.output[:] = [f"{side}_{name}" for name in node.output]
        branches.append(body)
    names = [o.name for o in proto.graph.output]
    return _around(proto, helper.make_node("If", ["flag"], names, then_branch=branches[0], else_branch=branches[1]))


def in_loop(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its node in a Loop of one turn, whose outputs are stacked."""
    body = onnx.GraphProto(name="body", node=proto.graph.node)
    for node in body.node:
        node.output[:] = [f"inner_{name}" for name in node.output]
    turn, kept = ("turn", TensorProto.INT64), (("go", TensorProto.BOOL), ("carry", TensorProto.INT64))
    body.node.extend(helper.make_node("Identity", [name], [f"{name}_out"]) for name, _ in kept)
    body.input.extend(builders.value(name, kind, []) for name, kind in (turn, *kept))
    body.output.extend(builders.value(f"{name}_out", kind, []) for name, kind in kept)
    for output in proto.graph.output:
        inner = body.output.add()
        inner.CopyFrom(output)
        inner.name = f"inner_{output.name}"
    names = ["carried", *(o.name for o in proto.graph.output)]
    made = _around(proto, helper.make_node("Loop", ["turns", "flag", "turns"], names, body=body))
    made.graph.initializer.append(numpy_helper.from_array(np.int64(1), "turns"))
    for output in made.graph.output:
        output.type.tensor_type.ClearField("shape")
    return made


def in_function(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its node in a local function that another one calls."""
    made = onnx.ModelProto()
    made.CopyFrom(proto)
    node = proto.graph.node[0]
    inputs = [v.name for v in (*proto.graph.input, *proto.graph.initializer)]
    outputs = list(node.output)
    imports = [*proto.opset_import, helper.make_opsetid("test", 1)]
    inner = helper.make_function("test", "Inner", inputs, outputs, [node], imports)
    outer = helper.make_function(
        "test", "Outer", inputs, outputs, [helper.make_node("Inner", inputs, outputs, "call", domain="test")], imports
    )
    del made.graph.node[:]
    made.graph.node.append(helper.make_node("Outer", inputs, outputs, "call", domain="test"))
    made.functions.extend([inner, outer])
    made.opset_import.append(helper.make_opsetid("test", 1))
    made.ir_version = max(made.ir_version, 8)
    return made


def _around(proto: onnx.ModelProto, node: onnx.NodeProto) -> onnx.ModelProto:
    made = onnx.ModelProto()
    made.CopyFrom(proto)
    del made.graph.node[:]
    made.graph.node.append(node)
    made.graph.initializer.append(numpy_helper.from_array(np.array(True), "flag"))
    return made
