"""Which small models show that every operator trains? One case a form: something learned, the operator, an output.

A case is a function that builds a model; `CASES` names them `Operator` or `Operator what`. Behind the operator stands a
product with another weight, so that a gradient must pass it, and must be right on both sides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import builders
import numpy as np
from nets import Net
from onnx import ModelProto, TensorProto

from onnxcomp.distill.trainable import Prepared
from onnxcomp.distill.writeback import put_back
from onnxcomp.graph.ir import Graph

MICROSOFT = "com.microsoft"
Body = Callable[[Net, str], str]
Case = Callable[[], ModelProto]


def write_back(original: Graph, prepared: Prepared, values: Mapping[str, np.ndarray]) -> Graph:
    """A copy of a graph with trained values."""
    result = original.clone()
    put_back(result, prepared, values)
    return result


def vector(body: Body, opset: int = 17, width: int = 6) -> Case:
    """x [N, 6] -> dense -> body."""

    def build() -> ModelProto:
        net = Net(opset=opset)
        return net.model(body(net, net.dense(net.input("N", width), width, width)), domains={MICROSOFT: 1})

    return build


def sequence(body: Body, opset: int = 17) -> Case:
    """x [N, 5, 6] -> dense -> body."""

    def build() -> ModelProto:
        net = Net(opset=opset)
        return net.model(body(net, net.dense(net.input("N", 5, 6), 6, 6)), domains={MICROSOFT: 1})

    return build


def image(body: Body, opset: int = 17, size: tuple[int, ...] = (6, 7), channels: int = 4) -> Case:
    """x [N, 3, 6, 7] -> Conv 1x1 -> body."""

    def build() -> ModelProto:
        net = Net(opset=opset)
        x = net.input("N", 3, *size)
        weight = net.weight(channels, 3, *[1] * len(size))
        return net.model(body(net, net.op("Conv", x, weight, net.weight(channels))), domains={MICROSOFT: 1})

    return build


def op(kind: str, opset: int = 17, over: Callable[..., Case] = vector, **attrs: Any) -> Case:
    """A case whose body is one node of one input."""
    return over(lambda n, h: n.op(kind, h, **attrs), opset)


def positive(n: Net, h: str) -> str:
    """Values in (1, 2), for functions that take no others."""
    return str(n.op("Add", n.op("Sigmoid", h), n.const(1.0, np.float32)))


def within(n: Net, h: str) -> str:
    """Values in (0, 1)."""
    return str(n.op("Sigmoid", h))


def ints(n: Net, *values: int) -> str:
    return n.const(list(values))


def number(n: Net, value: float) -> str:
    return n.const(value, np.float32)


def reduced(kind: str, axes: list[int] | None, opset: int, **attrs: Any) -> Case:
    """A Reduce operator, its axes where the opset wants them, on values away from zero."""

    def body(n: Net, h: str) -> str:
        x = positive(n, h)
        if axes is None:
            return str(n.op(kind, x, **attrs))
        if opset >= 18 or kind == "ReduceSum":
            return str(n.op(kind, x, ints(n, *axes), **attrs))
        return str(n.op(kind, x, axes=axes, **attrs))

    return sequence(body, opset)


def resized(opset: int = 17, scales: tuple[float, ...] = (), sizes: tuple[int, ...] = (), **attrs: Any) -> Case:
    def body(n: Net, h: str) -> str:
        if scales:
            return str(n.op("Resize", h, "", n.const((1, 1, *scales), np.float32), **attrs))
        return str(n.op("Resize", h, "", "", ints(n, 2, 4, *sizes), **attrs))

    return image(body, opset)


def fake(kind: type, scale: Any, zero: Any, **attrs: Any) -> Case:
    """QuantizeLinear and DequantizeLinear on activations."""

    def body(n: Net, h: str) -> str:
        ports = [n.const(scale, np.float32), *([] if zero is None else [n.const(zero, kind)])]
        coded = n.op("QuantizeLinear", h, *ports, **attrs)
        return str(n.op("DequantizeLinear", coded, *ports, **attrs))

    return image(body)


def recurrent(kind: str, gates: int, directions: int = 1, out: int = 0, **attrs: Any) -> Case:
    """[N, 5, 6] -> dense -> turned to [5, N, 6] -> layer of 4 hidden units."""

    def body(n: Net, h: str) -> str:
        first = 0 if attrs.get("layout") else 1
        x = h if not first else n.op("Transpose", h, perm=[1, 0, 2])
        weights = (n.weight(directions, gates * 4, 6), n.weight(directions, gates * 4, 4))
        bias = n.weight(directions, 2 * gates * 4)
        found = n.op(kind, x, *weights, bias, hidden_size=4, outputs=2 + (kind == "LSTM"), **attrs)
        n.op("Identity", found[out])
        return str(found[out])

    return sequence(body)


def normalized(kind: str, vectors: int, over: Callable[..., Case] = image, opset: int = 17, **attrs: Any) -> Case:
    size = 4 if over is image else 6

    def body(n: Net, h: str) -> str:
        return str(n.op(kind, h, *[n.positive(size) for _ in range(vectors)], **attrs))

    return over(body, opset)


def split(n: Net, h: str) -> str:
    first, _, third = n.op("Split", h, ints(n, 1, 2, 3), outputs=3, axis=1)
    return str(n.op("Concat", third, first, axis=1))


def few_bits(n: Net, h: str) -> str:
    """A product with a weight [6, 4] in 4 bits, one block of 16 a row, zero point 8."""
    codes = n.generator.integers(0, 256, (4, 1, 8), np.uint8)
    ports = [n.const(codes, np.uint8), n.const([0.1, 0.2, 0.15, 0.1], np.float32)]
    return str(n.op("MatMulNBits", h, *ports, K=6, N=4, bits=4, block_size=16, domain=MICROSOFT))


def batch_norm(n: Net, h: str) -> str:
    return n.batch_norm(h, 4)


def attention(n: Net, h: str) -> str:
    q, k, v = (n.dense(h, 6, 6) for _ in range(3))
    scores = n.op("Softmax", n.op("Mul", n.op("Einsum", q, k, equation="bqd,bkd->bqk"), number(n, 0.4)))
    return str(n.op("Einsum", scores, v, equation="bqk,bkd->bqd"))


def attended(n: Net, h: str, groups: int = 1) -> list[str]:
    """Queries of width 8, keys and values of width 8 / groups."""
    return [n.dense(h, 6, 8), *(n.dense(h, 6, 8 // groups) for _ in range(2))]


def angles(n: Net, half: int) -> list[str]:
    """Cosines and sines by position, and positions for two samples of five rows."""
    turns = np.outer(np.arange(7), 0.5 ** np.arange(half))
    return [n.const(np.cos(turns), np.float32), n.const(np.sin(turns), np.float32), n.const([[0, 1, 2, 3, 4]] * 2)]


UNARY: dict[str, dict[str, Any]] = {
    "Abs": {},
    "Asinh": {},
    "Celu": {"alpha": 0.7},
    "Cos": {},
    "Cosh": {},
    "Elu": {"alpha": 0.7},
    "Erf": {},
    "Exp": {},
    "HardSigmoid": {"alpha": 0.3, "beta": 0.4},
    "HardSwish": {},
    "Identity": {},
    "LeakyRelu": {"alpha": 0.1},
    "LogSoftmax": {"axis": -1},
    "LpNormalization": {},
    "Neg": {},
    "Relu": {},
    "Selu": {},
    "Shrink": {"lambd": 0.3, "bias": 0.1},
    "Sigmoid": {},
    "Sin": {},
    "Sinh": {},
    "Softmax": {"axis": -1},
    "Softplus": {},
    "Softsign": {},
    "Tanh": {},
    "ThresholdedRelu": {"alpha": 0.3},
}
REDUCING = (
    *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd"),
    *("ReduceSum", "ReduceSumSquare"),
)
CASES: dict[str, Case] = {
    **{kind: op(kind, **attrs) for kind, attrs in UNARY.items()},
    **{f"{kind} axis": reduced(kind, [-2], 17, keepdims=0) for kind in REDUCING},
    **{f"{kind} several": reduced(kind, [0, 2], 13) for kind in REDUCING if kind != "ReduceProd"},
    **{f"{kind} opset 21": reduced(kind, [1], 21, keepdims=0) for kind in REDUCING},
    "ReduceMean all": reduced("ReduceMean", None, 18),
    "ReduceMax all": reduced("ReduceMax", None, 17, keepdims=0),
    "ReduceSum nothing": reduced("ReduceSum", None, 17, noop_with_empty_axes=1),
    "Acosh": vector(lambda n, h: n.op("Acosh", n.op("Add", positive(n, h), number(n, 1.0)))),
    "Add": vector(lambda n, h: n.op("Add", h, n.weight(6))),
    "Atanh": vector(lambda n, h: n.op("Atanh", n.op("Mul", within(n, h), number(n, 0.9)))),
    "Cast": vector(lambda n, h: n.op("Cast", n.op("Cast", h, to=TensorProto.DOUBLE), to=TensorProto.FLOAT)),
    "CastLike": vector(lambda n, h: n.op("CastLike", h, number(n, 1.0))),
    "Ceil": vector(lambda n, h: n.op("Sub", h, n.op("Ceil", within(n, h)))),
    "Clip": vector(lambda n, h: n.op("Clip", h, number(n, -0.5), number(n, 0.5))),
    "Clip computed": vector(lambda n, h: n.op("Clip", h, "", n.op("ReduceMean", h, keepdims=0))),
    "Clip old": vector(lambda n, h: n.op("Clip", h, min=-0.5, max=0.5), 10),
    "CumSum": sequence(lambda n, h: n.op("CumSum", h, n.const(1))),
    "CumSum reverse": sequence(lambda n, h: n.op("CumSum", h, n.const(-3), exclusive=1, reverse=1)),
    "Div": vector(lambda n, h: n.op("Div", h, positive(n, h))),
    "Dropout": vector(lambda n, h: n.op("Dropout", h)),
    "Einsum": sequence(attention),
    "Einsum sum": sequence(lambda n, h: n.op("Einsum", h, equation="bij->jb")),
    "Einsum outer": vector(lambda n, h: n.op("Einsum", h, h, equation="bi,bj->bij")),
    "Floor": vector(lambda n, h: n.op("Sub", h, n.op("Floor", within(n, h)))),
    "Gelu": op("Gelu", 20),
    "Gelu tanh": op("Gelu", 20, approximate="tanh"),
    "Hardmax": vector(lambda n, h: n.op("Mul", h, n.op("Hardmax", h))),
    "Log": vector(lambda n, h: n.op("Log", positive(n, h))),
    "Max": vector(lambda n, h: n.op("Max", h, n.weight(6), number(n, -0.2))),
    "Mean": vector(lambda n, h: n.op("Mean", h, n.op("Tanh", h), n.weight(6))),
    "Min": vector(lambda n, h: n.op("Min", h, n.weight(6))),
    "Mish": op("Mish", 18),
    "Mul": vector(lambda n, h: n.op("Mul", n.weight(6), h)),
    "PRelu": image(lambda n, h: n.op("PRelu", h, n.weight(4, 1, 1))),
    "Pow": vector(lambda n, h: n.op("Pow", positive(n, h), number(n, -0.75))),
    "Pow integer": vector(lambda n, h: n.op("Pow", h, n.const(2))),
    "Pow of a number": vector(lambda n, h: n.op("Pow", number(n, 2.0), h)),
    "Reciprocal": vector(lambda n, h: n.op("Reciprocal", positive(n, h))),
    "Round": vector(lambda n, h: n.op("Add", h, n.op("Round", h))),
    "Sign": vector(lambda n, h: n.op("Mul", h, n.op("Sign", h))),
    "Sqrt": vector(lambda n, h: n.op("Sqrt", positive(n, h))),
    "Sub": vector(lambda n, h: n.op("Sub", n.weight(6), h)),
    "Sum": vector(lambda n, h: n.op("Sum", h, n.op("Tanh", h), n.weight(6))),
    "Swish": op("Swish", 24, alpha=1.3),
    "Where": vector(lambda n, h: n.op("Where", n.op("Greater", h, number(n, 0.1)), h, n.weight(6))),
    # products
    "Conv": image(lambda n, h: n.conv(h, 4, 4)),
    "Conv same": image(lambda n, h: n.op("Conv", h, n.weight(4, 4, 3, 2), auto_pad="SAME_UPPER", strides=[2, 2])),
    "Conv same lower": image(lambda n, h: n.op("Conv", h, n.weight(4, 4, 2, 3), auto_pad="SAME_LOWER")),
    "Conv groups": image(lambda n, h: n.conv(h, 4, 8, group=4, strides=[2, 1], dilations=[1, 2])),
    "Conv 1-D": image(lambda n, h: n.op("Conv", h, n.weight(4, 4, 3), pads=[1, 1]), size=(9,)),
    "Conv 3-D": image(lambda n, h: n.op("Conv", h, n.weight(4, 4, 2, 2, 2)), size=(4, 4, 4)),
    "ConvTranspose": image(
        lambda n, h: n.op("ConvTranspose", h, n.weight(4, 3, 3, 2), n.weight(3), strides=[2, 3], pads=[1, 0, 1, 1])
    ),
    "ConvTranspose groups": image(
        lambda n, h: n.op(
            "ConvTranspose", h, n.weight(4, 3, 3, 3), group=2, dilations=[2, 1], strides=[2, 2], output_padding=[1, 0]
        )
    ),
    "ConvTranspose same": image(
        lambda n, h: n.op("ConvTranspose", h, n.weight(4, 2, 3, 3), auto_pad="SAME_UPPER", strides=[2, 2])
    ),
    "Gemm": vector(lambda n, h: n.gemm(h, 6, 4)),
    "Gemm turned": vector(lambda n, h: n.op("Gemm", h, n.weight(2, 4), transA=1, alpha=0.5)),
    "Gemm without": vector(lambda n, h: n.op("Gemm", h, n.weight(6, 4), n.weight(4), beta=0.0)),
    "MatMul": sequence(lambda n, h: n.op("MatMul", h, n.op("Transpose", h, perm=[0, 2, 1]))),
    "MatMul vector": sequence(lambda n, h: n.op("MatMul", h, n.op("Reshape", n.weight(6, 1), ints(n, 6)))),
    # moves
    "Concat": vector(lambda n, h: n.op("Concat", h, n.op("Tanh", h), axis=-1)),
    "DepthToSpace": image(lambda n, h: n.op("DepthToSpace", h, blocksize=2)),
    "DepthToSpace CRD": image(lambda n, h: n.op("DepthToSpace", h, blocksize=2, mode="CRD")),
    "Expand": vector(lambda n, h: n.op("Expand", n.op("Unsqueeze", h, ints(n, 1)), ints(n, 2, 3, 6))),
    "Flatten": image(lambda n, h: n.op("Flatten", h)),
    "Gather": vector(lambda n, h: n.op("Gather", h, ints(n, -1, 2, 2), axis=1)),
    "GatherElements": vector(lambda n, h: n.op("GatherElements", h, n.const([[1, -3], [0, 0]]), axis=1)),
    "GatherND": vector(lambda n, h: n.op("GatherND", h, n.const([[1, 3], [0, -2]]))),
    "Pad": image(lambda n, h: n.op("Pad", h, ints(n, 0, 1, 2, 0, 0, 0, -1, 1), number(n, 0.5))),
    "Pad axes": image(lambda n, h: n.op("Pad", h, ints(n, 1, 2), "", ints(n, -1)), 18),
    "Pad edge": image(lambda n, h: n.op("Pad", h, ints(n, 0, 0, 2, 1, 0, 0, 0, 3), mode="edge")),
    "Pad reflect": image(lambda n, h: n.op("Pad", h, ints(n, 0, 0, 2, -1, 0, 0, 1, 3), mode="reflect")),
    "Pad wrap": image(lambda n, h: n.op("Pad", h, ints(n, 0, 0, 2, 1, 0, 0, 0, 3), mode="wrap"), 19),
    "Reshape": vector(lambda n, h: n.op("Reshape", h, ints(n, 0, 2, -1))),
    "ScatterElements": vector(
        lambda n, h: n.op(
            "ScatterElements",
            h,
            n.const([[1, 3], [0, 0]]),
            n.op("Slice", h, ints(n, 0), ints(n, 2), ints(n, 1)),
            axis=1,
            reduction="add",
        ),
        18,
    ),
    "ScatterND": vector(
        lambda n, h: n.op("ScatterND", h, n.const([[1, 3], [0, 2]]), n.op("Reshape", n.weight(1, 2), ints(n, 2)))
    ),
    "Slice": sequence(lambda n, h: n.op("Slice", h, ints(n, 1), ints(n, 99), ints(n, -1), ints(n, 2))),
    "Slice back": sequence(
        lambda n, h: n.op("Slice", h, ints(n, -1, 4), ints(n, -99, 0), ints(n, 1, 2), ints(n, -2, -1))
    ),
    "SpaceToDepth": image(lambda n, h: n.op("SpaceToDepth", h, blocksize=2), size=(4, 6)),
    "Split": vector(split),
    "Split all": vector(lambda n, h: n.op("Mul", *n.op("Split", h, outputs=2, axis=-1))),
    "Squeeze": vector(lambda n, h: n.op("Squeeze", n.op("Unsqueeze", h, ints(n, -2)), ints(n, 1))),
    "Tan": vector(lambda n, h: n.op("Tan", n.op("Tanh", h))),
    "Tile": vector(lambda n, h: n.op("Tile", h, ints(n, 2, 3))),
    "TopK": vector(lambda n, h: n.op("TopK", h, ints(n, 3), outputs=2, largest=0)[0]),
    "Transpose": sequence(lambda n, h: n.op("Transpose", h)),
    "Trilu": vector(lambda n, h: n.op("Trilu", h, n.const(1), upper=0)),
    "Unsqueeze": vector(lambda n, h: n.op("Unsqueeze", h, ints(n, 0, -1))),
    # resizing
    "Resize nearest": resized(scales=(2, 2), mode="nearest", nearest_mode="floor"),
    "Resize linear": resized(scales=(2, 1.5), mode="linear"),
    "Resize sizes": resized(sizes=(9, 3), mode="linear", coordinate_transformation_mode="align_corners"),
    "Resize cubic": resized(scales=(2, 2), mode="cubic", coordinate_transformation_mode="asymmetric"),
    "Resize antialias": resized(19, sizes=(3, 4), mode="linear", antialias=1),
    "Upsample": image(lambda n, h: n.op("Upsample", h, n.const((1, 1, 2, 2), np.float32), mode="nearest"), 9),
    # normalizations
    "BatchNormalization": image(batch_norm),
    "GroupNormalization": image(lambda n, h: n.op("GroupNormalization", h, n.weight(2), n.weight(2), num_groups=2), 18),
    "GroupNormalization 21": normalized("GroupNormalization", 2, opset=21, num_groups=2),
    "InstanceNormalization": normalized("InstanceNormalization", 2, epsilon=1e-3),
    "LayerNormalization": normalized("LayerNormalization", 2, sequence),
    "LayerNormalization scale": normalized("LayerNormalization", 1, sequence),
    "LayerNormalization broadcast": sequence(
        lambda n, h: n.op("LayerNormalization", h, n.positive(1), n.weight(1, 6), axis=-1)
    ),
    "LRN": op("LRN", over=image, size=3, alpha=0.5, beta=0.7, bias=0.9),
    "LpNormalization 1": op("LpNormalization", p=1, axis=0),
    "MeanVarianceNormalization": op("MeanVarianceNormalization", over=image),
    "RMSNormalization": normalized("RMSNormalization", 1, sequence, 23),
    # pooling
    "AveragePool": op("AveragePool", over=image, kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 1, 1]),
    "AveragePool dilated": op("AveragePool", 19, image, kernel_shape=[2, 3], dilations=[2, 1], pads=[1, 1, 0, 0]),
    "AveragePool 3-D": image(
        lambda n, h: n.op("AveragePool", h, kernel_shape=[2, 3, 2], strides=[1, 2, 1], pads=[1, 0, 0, 0, 1, 1]),
        size=(4, 5, 4),
    ),
    "GlobalAveragePool": op("GlobalAveragePool", over=image),
    "GlobalLpPool": op("GlobalLpPool", over=image),
    "GlobalMaxPool": op("GlobalMaxPool", over=image),
    "LpPool": op("LpPool", over=image, kernel_shape=[2, 2], strides=[2, 2], p=3),
    "MaxPool": op("MaxPool", over=image, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4),
    "MaxPool columns": op("MaxPool", over=image, kernel_shape=[2, 2], storage_order=1, ceil_mode=1, strides=[2, 2]),
    # quantized
    "QuantizeLinear": fake(np.int8, 0.01, 3),
    "QuantizeLinear channel": fake(np.uint8, [0.01, 0.02, 0.03, 0.02], [128, 120, 100, 128], axis=1),
    "QuantizeLinear bare": fake(np.uint8, 0.01, None),
    # recurrent
    "GRU": recurrent("GRU", 3, linear_before_reset=1),
    "GRU both": recurrent("GRU", 3, 2, direction="bidirectional"),
    "LSTM": recurrent("LSTM", 4),
    "LSTM both": recurrent("LSTM", 4, 2, direction="bidirectional"),
    "LSTM reverse": recurrent("LSTM", 4, direction="reverse"),
    "LSTM last": recurrent("LSTM", 4, out=1),
    "LSTM cell": recurrent("LSTM", 4, out=2),
    "RNN": recurrent("RNN", 1),
    "RNN both": recurrent("RNN", 1, 2, direction="bidirectional", activations=["Relu", "Tanh"]),
    "RNN reverse": recurrent("RNN", 1, direction="reverse", out=1),
    # attention
    "Attention": sequence(lambda n, h: n.op("Attention", *attended(n, h), q_num_heads=2, kv_num_heads=2), 23),
    "Attention causal": sequence(
        lambda n, h: n.op("Attention", *attended(n, h, 2), q_num_heads=4, kv_num_heads=2, is_causal=1, softcap=2.0), 23
    ),
    "Attention mask": sequence(
        lambda n, h: n.op(
            "Attention", *attended(n, h), n.const(np.tri(5), np.bool_), q_num_heads=2, kv_num_heads=2, scale=0.3
        ),
        23,
    ),
    "RotaryEmbedding": sequence(
        lambda n, h: n.op("RotaryEmbedding", n.dense(h, 6, 16), *angles(n, 4), num_heads=2), 23
    ),
    "RotaryEmbedding pairs": sequence(
        lambda n, h: n.op(
            "RotaryEmbedding", n.dense(h, 6, 16), *angles(n, 2), num_heads=2, interleaved=1, rotary_embedding_dim=4
        ),
        23,
    ),
    "com.microsoft.RotaryEmbedding": sequence(
        lambda n, h: n.op(
            "RotaryEmbedding",
            n.dense(h, 6, 16),
            *angles(n, 4)[::-1][:1],
            *angles(n, 4)[:2],
            num_heads=2,
            domain=MICROSOFT,
        )
    ),
    # ONNX Runtime's own
    "com.microsoft.BiasGelu": vector(lambda n, h: n.op("BiasGelu", h, n.weight(6), domain=MICROSOFT)),
    "com.microsoft.FastGelu": vector(lambda n, h: n.op("FastGelu", h, n.weight(6), domain=MICROSOFT)),
    "com.microsoft.FusedConv": image(
        lambda n, h: n.op("FusedConv", h, n.weight(4, 4, 1, 1), n.weight(4), activation="Relu", domain=MICROSOFT)
    ),
    "com.microsoft.FusedGemm": vector(
        lambda n, h: n.op("FusedGemm", h, n.weight(6, 4), n.weight(4), activation="Tanh", domain=MICROSOFT)
    ),
    "com.microsoft.FusedMatMul": vector(
        lambda n, h: n.op("FusedMatMul", h, n.weight(4, 6), transB=1, alpha=0.5, domain=MICROSOFT)
    ),
    "com.microsoft.Gelu": op("Gelu", domain=MICROSOFT),
    "com.microsoft.MatMulNBits": vector(few_bits),
    "com.microsoft.QuickGelu": op("QuickGelu", domain=MICROSOFT, alpha=1.2),
    "com.microsoft.SkipLayerNormalization": sequence(
        lambda n, h: n.op(
            "SkipLayerNormalization", h, n.op("Tanh", h), n.positive(6), n.weight(6), n.weight(6), domain=MICROSOFT
        )
    ),
    "com.microsoft.SkipSimplifiedLayerNormalization": sequence(
        lambda n, h: n.op("SkipSimplifiedLayerNormalization", h, n.op("Tanh", h), n.positive(6), domain=MICROSOFT)
    ),
    "SimplifiedLayerNormalization": normalized("SimplifiedLayerNormalization", 1, sequence, axis=-1, epsilon=1e-5),
}
# forward by operators of the training runtime, which other builds of ONNX Runtime lack
TRAINING_ONLY = frozenset({"LSTMTraining", "GRUTraining"})


def feeds(proto: ModelProto, batch: int = 2) -> dict[str, np.ndarray]:
    return builders.feeds_of(proto, batch=batch, seed=3)
