"""Which nodes can a random model draw? Layers, elementwise operators, reductions, what moves data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import TensorProto, numpy_helper
from wild_grower import BOOL, FLOAT, INT64, Grower, SkipError, move


@move(4)
def conv(g: Grower) -> None:
    x = g.pick(3, 4, 4)
    channels, dims = g.shape(x)[1], len(g.shape(x)) - 2
    groups = [k for k in (1, 1, 1, 2, channels) if channels % k == 0]
    group = int(g.one(*groups))
    out = group * int(g.one(1, 2, 4, 8))
    k = int(g.one(1, 2, 3))
    pads = g.one({"pads": [k // 2] * 2 * dims}, {"auto_pad": "SAME_UPPER"}, {"auto_pad": "VALID"}, {})
    bias = [g.weight(g.real(out, scale=0.2))] if g.chance(0.7) else []
    w = g.weight(g.real(out, channels // group, *[k] * dims))
    strides = [int(g.one(1, 1, 2))] * dims
    y = g.add("Conv", [x, w, *bias], group=group, strides=strides, **pads)
    after_layer(g, y, out)


@move(1)
def conv_transpose(g: Grower) -> None:
    x = g.pick(3, 4, 4)
    channels, dims = g.shape(x)[1], len(g.shape(x)) - 2
    group = int(g.one(*[k for k in (1, 1, 2, channels) if channels % k == 0]))
    out = int(g.one(1, 2, 4))
    k = int(g.one(2, 3))
    bias = [g.weight(g.real(out * group))] if g.chance(0.5) else []
    y = g.add(
        "ConvTranspose",
        [x, g.weight(g.real(channels, out, *[k] * dims)), *bias],
        group=group,
        strides=[int(g.one(1, 2))] * dims,
    )
    after_layer(g, y, out * group)


def after_layer(g: Grower, y: str, channels: int) -> None:
    """What stands behind a layer: a norm, its parts, an activation, or nothing."""
    if g.chance(0.3):
        batch_norm(g, y)
    elif g.chance(0.2):
        shape = (channels, *[1] * (len(g.shape(y)) - 2))
        g.add(g.one("Mul", "Add", "Sub", "Div"), [y, g.weight(np.abs(g.real(*shape)) + np.float32(0.5))])
    if g.chance(0.4):
        g.add(g.one("Relu", "LeakyRelu", "Sigmoid", "Tanh", "Elu"), [y])


@move(1)
def batch_norm(g: Grower, x: str = "") -> None:
    x = x or g.pick(2, 3, 4)
    c = g.shape(x)[1]
    extra = [g.real(c), g.real(c, scale=0.3), g.real(c, scale=0.3), (np.abs(g.real(c)) + 0.5).astype(np.float32)]
    training = {"training_mode": 1} if g.opset >= 14 and g.chance(0.05) else {}
    g.add(
        "BatchNormalization",
        [x, *map(g.weight, extra)],
        3 if training else 1,
        epsilon=float(g.one(1e-5, 1e-3)),
        **training,
    )


@move(3)
def matmul(g: Grower) -> None:
    x = g.pick(2, 3, 4)
    k, n = g.shape(x)[-1], int(g.one(3, 4, 8, 16))
    if g.chance(0.15):
        g.add("MatMul", [g.weight(g.real(n, g.shape(x)[-2])), x])
        return
    y = g.add("MatMul", [x, g.weight((g.real(k, n) / k**0.5).astype(np.float32))])
    if g.chance(0.6):
        bias = g.weight(g.real(*g.one((n,), (1, n))))
        y = g.add("Add", g.one([y, bias], [bias, y]))
    if g.chance(0.4):
        g.add(g.one("Relu", "Tanh", "Softplus"), [y])


@move(2)
def gemm(g: Grower) -> None:
    x = g.pick(2)
    k, n, trans = g.shape(x)[1], int(g.one(3, 5, 8)), int(g.one(0, 1))
    shape = g.one((n,), (1, n), (), (1,), None if g.opset >= 11 else (n,))
    bias = [] if shape is None else [g.weight(np.asarray(g.random.standard_normal(shape), np.float32))]
    scale = g.one({}, {"alpha": 0.5}, {"beta": 2.0}, {"alpha": 2.0, "beta": 0.0})
    y = g.add("Gemm", [x, g.weight(g.real(*((n, k) if trans else (k, n)))), *bias], transB=trans, **scale)
    if g.chance(0.3):
        batch_norm(g, y)
    if g.chance(0.4):
        g.add("Relu", [y])


@move(1.5)
def recurrent(g: Grower) -> None:
    x = g.pick(3)
    op, parts = g.one(("LSTM", 4), ("GRU", 3), ("RNN", 1))
    h, width, both = int(g.one(2, 4)), g.shape(x)[2], g.chance(0.3)
    d = 2 if both else 1
    r = g.real(d, parts * h, h)
    if g.chance(0.3):
        r[:, :, 0] = 0
    inputs = [x, g.weight(g.real(d, parts * h, width)), g.weight(r)]
    if g.chance(0.6):
        inputs.append(g.weight(g.real(d, 2 * parts * h)))
    y = g.add(
        op, inputs, int(g.one(1, 2)), hidden_size=h, direction="bidirectional" if both else g.one("forward", "reverse")
    )
    if g.chance(0.7):
        y = g.add("Transpose", [y], perm=[0, 2, 1, 3])
        g.add("Reshape", [y, g.ints(0, 0, -1)])


@move(1)
def embedding(g: Grower) -> None:
    ids = g.pick(1, 2, dtype=np.int64)
    table = g.weight(g.real(20, int(g.one(4, 8)), scale=0.5))
    g.add("Gather", [table, ids], axis=0)


@move(0.5)
def gather_constant(g: Grower) -> None:
    """Rows of what a Constant node holds, picked by a number or by positions."""
    table = g._pend("Constant", [], value=numpy_helper.from_array(g.real(int(g.one(3, 6)), 4)))
    g.add("Gather", [table, g.store(np.array(g.one(0, [1], [0, 2]), np.int64))], axis=0)


@move(1)
def binary(g: Grower) -> None:
    x = g.pick()
    same = [n for n, v in g.values.items() if v[0].shape == g.values[x][0].shape and v[0].dtype == np.float32]
    g.add(g.one("Add", "Mul", "Sub", "Add"), [x, str(g.random.choice(same))])


@move(1.5)
def with_constant(g: Grower) -> None:
    x = g.pick()
    shape = g.shape(x)
    wide = g.one((), (1,), shape[-1:], (1,) * len(shape), (*shape[1:2], *[1] * (len(shape) - 2)))
    value = np.asarray(g.one(0.0, 1.0, 0.5, -0.0, None) or 0.7, np.float32)
    array = np.broadcast_to(value, wide) if g.chance(0.5) else (np.abs(g.real(*wide)) + 0.3).astype(np.float32)
    pair = [x, g.weight(np.ascontiguousarray(array))]
    op = g.one("Add", "Mul", "Sub", "Div", "Max", "Min", "PRelu", "Pow") if g.opset > 7 else g.one("Add", "Mul")
    g.add(op, pair if op == "PRelu" or g.chance(0.7) else pair[::-1])  # the slope of a PRelu may not widen its input


@move(2)
def unary(g: Grower) -> None:
    names = "Relu Neg Abs Tanh Floor Sigmoid Exp Softplus Softsign Elu Selu HardSigmoid LeakyRelu Identity Ceil Sin Cos"
    later = {
        9: "Erf Sign Sinh Asinh",
        10: "ThresholdedRelu",
        11: "Round",
        12: "Celu",
        14: "HardSwish",
        18: "Mish",
        20: "Gelu",
    }
    options = names.split() + [n for since, more in later.items() if g.opset >= since for n in more.split()]
    g.add(g.one(*options), [g.pick()])


@move(0.7)
def gate(g: Grower) -> None:
    """x * sigmoid(x), or x of another gate."""
    x = g.pick()
    g.add("Mul", [x, g.add(g.one("Sigmoid", "Tanh", "HardSigmoid"), [x])])


@move(1)
def normalize(g: Grower) -> None:
    x = g.pick(2, 3, 4)
    shape = g.shape(x)
    c, last = shape[1], shape[-1]
    kind = g.one("InstanceNormalization", "Softmax", "LRN", "MeanVarianceNormalization", "LayerNormalization",
                 "LogSoftmax", "Hardmax", "GroupNormalization", "RMSNormalization", "LpNormalization")  # fmt: skip
    if kind in ("Softmax", "LogSoftmax", "Hardmax"):
        g.add(kind, [x], axis=int(g.one(*range(1, len(shape)), *([-1] if g.opset > 10 else []))))
    elif kind == "InstanceNormalization":
        g.add(kind, [x, g.weight(g.real(c)), g.weight(g.real(c))])
    elif kind == "LayerNormalization":
        size = g.one((last,), (1,), (1, last))
        g.add(
            kind, [x, g.weight(g.real(*size, scale=1.0)), *([g.weight(g.real(last))] if g.chance(0.6) else [])], axis=-1
        )
    elif kind == "RMSNormalization":
        g.add(kind, [x, g.weight(g.real(last, scale=1.0))], axis=-1)
    elif kind == "GroupNormalization":
        groups = int(g.one(*[k for k in (1, 2, c) if c % k == 0]))
        size = c if g.opset >= 21 else groups
        g.add(kind, [x, g.weight(g.real(size, scale=1.0)), g.weight(g.real(size))], num_groups=groups)
    else:
        g.add(kind, [x], **({"size": 3} if kind == "LRN" else {}))


@move(1)
def pool(g: Grower) -> None:
    x = g.pick(3, 4, 4)
    dims = len(g.shape(x)) - 2
    op = g.one("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LpPool")
    if op.startswith("Global"):
        g.add(op, [x])
        return
    k = int(g.one(2, 3))
    attrs: dict[str, Any] = {"kernel_shape": [k] * dims, "strides": [int(g.one(1, 2))] * dims}
    attrs |= g.one({}, {"pads": [1] * 2 * dims}, {"auto_pad": "SAME_UPPER"}, {"pads": [0] * dims + [1] * dims})
    if op == "AveragePool":
        attrs |= g.one(
            {},
            {"count_include_pad": 1},
            {"ceil_mode": 1} if g.opset >= 10 else {},
            {"dilations": [2] * dims} if g.opset >= 19 else {},
        )
    g.add(op, [x], **attrs)


def with_axes(g: Grower, op: str, x: str, axes: Sequence[int], since: int, **attrs: Any) -> str:
    if g.opset < since:
        return g.add(op, [x], axes=list(axes), **attrs)
    return g.add(op, [x, g.ints(*axes)], **attrs)


@move(1)
def reduce(g: Grower) -> None:
    x = g.pick(2, 3, 4)
    rank = len(g.shape(x))
    axes = sorted(int(a) for a in g.random.choice(range(1, rank), int(g.random.integers(1, rank)), replace=False))
    op = g.one(
        "ReduceMean",
        "ReduceSum",
        "ReduceMax",
        "ReduceMin",
        "ReduceL2",
        "ReduceSumSquare",
        "ReduceL1",
        "ReduceLogSumExp",
    )
    with_axes(g, op, x, axes, 13 if op == "ReduceSum" else 18, keepdims=int(g.one(0, 1)))


@move(1)
def arrange(g: Grower) -> None:
    """Move elements: transposes, reshapes, squeezes, slices, concatenations."""
    x = g.pick(2, 3, 4)
    shape = g.shape(x)
    rank = len(shape)
    kind = g.one(
        "Transpose",
        "Reshape",
        "Flatten",
        "Unsqueeze",
        "Slice",
        "Concat",
        "Split",
        "Pad",
        "Tile",
        "Expand",
        "Gather",
        "Space",
    )
    if kind == "Transpose":
        g.add(kind, [x], perm=[0, *(int(p) + 1 for p in g.random.permutation(rank - 1))] if g.chance(0.8) else None)
    elif kind == "Reshape":
        g.add(
            kind,
            [x, g.ints(*g.one([0, -1], [-1, *shape[1:]], [0, *shape[:0:-1]], [0, 1, *shape[1:]], [-1, shape[-1]]))],
        )
    elif kind == "Flatten":
        g.add(kind, [x], axis=int(g.one(1, 1, rank - 1)))
    elif kind == "Unsqueeze":
        y = with_axes(g, kind, x, [int(g.one(1, rank))], 13)
        if g.chance(0.4):
            with_axes(g, "Squeeze", y, [g.shape(y).index(1)], 13)
    elif kind == "Slice":
        axis, step = int(g.random.integers(1, rank)), int(g.one(1, 1, 2))
        if g.opset < 10:
            g.add(kind, [x], axes=[axis], starts=[int(g.one(0, 1))], ends=[int(g.one(-1, 9999))])
        else:
            g.add(kind, [x, g.ints(int(g.one(0, 1))), g.ints(int(g.one(-1, 9999))), g.ints(axis), g.ints(step)])
    elif kind == "Concat":
        fitting = [
            n
            for n, v in g.values.items()
            if v[0].dtype == np.float32 and v[0].shape[:1] + v[0].shape[2:] == shape[:1] + shape[2:]
        ]
        fitting = [n for n in fitting if len(g.shape(n)) == rank]
        g.add(kind, [x, *map(str, g.random.choice(fitting, int(g.one(1, 2))))], axis=1)
    elif kind == "Split":
        axis = int(g.random.integers(1, rank))
        if shape[axis] % 2 == 0:
            g.add(kind, [x], 2, axis=axis, **({"num_outputs": 2} if g.opset >= 18 else {}))
    elif kind == "Pad":
        pads = [0] * 2 * rank
        pads[-1], pads[rank - 1] = int(g.one(0, 1)), int(g.one(0, 1))
        g.add(kind, [x], pads=pads) if g.opset < 11 else g.add(kind, [x, g.ints(*pads)], mode=g.one("constant", "edge"))
    elif kind == "Tile":
        g.add(kind, [x, g.ints(*[1] * (rank - 1), int(g.one(1, 2)))])
    elif kind == "Expand" and g.opset >= 8:
        g.add(kind, [x, g.ints(*g.one([1] * rank, [1, *shape[1:]]))])
    elif kind == "Gather":
        axis = int(g.random.integers(1, rank))
        g.add(kind, [x, g.store(np.array(g.one(0, [0], [0, shape[axis] - 1]), np.int64))], axis=axis)
    elif kind == "Space" and rank == 4:
        g.add(*g.one(("DepthToSpace", [x]), ("SpaceToDepth", [x])), blocksize=2)
    else:
        raise SkipError


@move(0.6)
def resize(g: Grower) -> None:
    x = g.pick(4)
    mode, by = (
        g.one("nearest", "linear"),
        g.one((2.0, 2.0), (2.0, 3.0), (1.5, 1.2), (0.5, 2.0) if g.opset > 9 else (1.0, 2.0)),
    )
    scales = np.float32([1, 1, *by])
    if g.opset < 9:
        g.add("Upsample", [x], mode=mode, scales=scales.tolist())
    elif g.opset < 11:
        g.add("Upsample" if g.opset == 9 else "Resize", [x, g.store(scales)], mode=mode)
    else:
        how = g.one("half_pixel", "asymmetric", "align_corners")
        g.add(
            "Resize",
            [x, g.store(np.zeros(0, np.float32)), g.store(scales)],
            mode=mode,
            coordinate_transformation_mode=how,
        )


@move(0.8)
def shape_arithmetic(g: Grower) -> None:
    x = g.pick(2, 3, 4, batch=True)
    whole = g.add("Shape", [x])
    first = g.add("Gather", [whole, g.ints(0)], axis=0)
    target = g.add("Concat", [first, g.ints(-1)], axis=0)
    g.add("Reshape", [x, target])


@move(0.7)
def integers(g: Grower) -> None:
    """Casts to integers and truth values and back, comparisons, choices."""
    x = g.pick(2, 3)
    kind = g.one("Cast", "Where", "ArgMax", "Greater", "TopK", "OneHot", "NonZero", "Half", "Double", "CumSum")
    if kind == "Cast":
        g.add("Cast", [g.add("Cast", [x], to=g.one(INT64, TensorProto.INT32, BOOL, TensorProto.INT8))], to=FLOAT)
    elif kind == "Half":
        g.add("Cast", [g.add("Cast", [x], to=TensorProto.FLOAT16)], to=FLOAT)
    elif kind == "Double":
        half = g.add("Cast", [x], to=TensorProto.DOUBLE)
        g.add("Cast", [g.add(g.one("Relu", "Identity", "Neg", "Abs"), [half])], to=FLOAT)
    elif kind == "Where" and g.opset >= 9:
        g.add("Where", [g.add("Greater", [x, g.store(np.float32(0))]), x, g.weight(np.float32(0.5))])
    elif kind == "ArgMax":
        g.add(kind, [x], axis=1, keepdims=int(g.one(0, 1)))
    elif kind == "Greater":
        g.add("Cast", [g.add(kind, [x, g.store(np.float32(0.1))])], to=FLOAT)
    elif kind == "TopK":
        g.add(kind, [x], 2, k=2, axis=-1) if g.opset < 10 else g.add(kind, [x, g.ints(2)], 2, axis=-1)
    elif kind == "OneHot" and g.opset >= 9:
        g.add(
            kind,
            [g.add("ArgMax", [x], axis=-1, keepdims=0), g.store(np.int64(g.shape(x)[-1])), g.store(np.float32([0, 1]))],
        )
    elif kind == "NonZero" and g.opset >= 9:
        g.add(kind, [x])
    elif kind == "CumSum" and g.opset >= 11:
        g.add(kind, [x, g.store(np.int64(1))])
    else:
        raise SkipError


@move(0.8, since=10)
def rounded(g: Grower) -> None:
    """A pair of Q and DQ, as in a model that is quantized already."""
    x = g.pick(2, 3, 4)
    scale, zero = g.store(np.float32(0.05)), g.store(g.one(np.uint8(128), np.int8(0)))
    q = g.add("QuantizeLinear", [x, scale, zero])
    g.add("DequantizeLinear", [q, scale, zero])


@move(0.7)
def attention(g: Grower) -> None:
    x = g.pick(3)
    width = g.shape(x)[2]
    q, k, v = (g.add("MatMul", [x, g.weight((g.real(width, width) / width**0.5).astype(np.float32))]) for _ in range(3))
    scores = g.add("MatMul", [q, g.add("Transpose", [k], perm=[0, 2, 1])])
    scores = g.add("Div", [scores, g.store(np.float32(width**0.5))])
    axis = {} if g.opset >= 13 else {"axis": 2}
    mixed = g.add("MatMul", [g.add("Softmax", [scores], **axis), v])
    g.add("Add", [x, mixed])


@move(0.4, since=12)
def einsum(g: Grower) -> None:
    x = g.pick(3)
    g.add("Einsum", [x, g.weight(g.real(g.shape(x)[2], 5))], equation=g.one("abc,cd->abd", "abc,cd->adb"))


@move(0.5)
def layer_norm_parts(g: Grower) -> None:
    x = g.pick(2, 3)
    mean = with_axes(g, "ReduceMean", x, [len(g.shape(x)) - 1], 18, keepdims=1)
    centred = g.add("Sub", [x, mean])
    square = g.add("Mul", [centred, centred]) if g.chance(0.5) else g.add("Pow", [centred, g.store(np.float32(2))])
    variance = with_axes(g, "ReduceMean", square, [len(g.shape(x)) - 1], 18, keepdims=1)
    root = g.add("Sqrt", [g.add("Add", [variance, g.store(np.float32(1e-5))])])
    y = g.add("Div", [centred, root])
    g.add("Mul", [y, g.weight(g.real(g.shape(x)[-1], scale=1.0))])


@move(0.5)
def dropout(g: Grower) -> None:
    g.add("Dropout", [g.pick()], int(g.one(1, 1, 2)))


@move(0.4)
def constants_only(g: Grower) -> None:
    a = g.add("Exp", [g.store(g.real(2, 3))])
    x = g.pick(2, 3)
    total = with_axes(g, "ReduceSum", a, [0, 1], 13, keepdims=0)
    g.add("Mul", [x, total])
