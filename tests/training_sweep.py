"""Which random models show that an operator trains whatever its attributes, rank, groups and operands' shapes are?

`DRAWS` has a function an operator: it adds the operator with drawn attributes to a net whose weights feed it. `drawn`
gives a model by operator and seed, or None where ONNX Runtime does not take what was drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import builders
import numpy as np
from nets import Net
from onnx import ModelProto, TensorProto

MICROSOFT = "com.microsoft"
Random = np.random.Generator
Draw = Callable[[Net, Random], str]

DRAWS: dict[str, Draw] = {}


def draws(*names: str) -> Callable[[Callable[[Net, Random, str], str]], None]:
    """Enter a function under operators; it is told which one is meant."""

    def enter(draw: Callable[[Net, Random, str], str]) -> None:
        DRAWS.update({name: partial(draw, kind=name) for name in names})

    return enter


def drawn(name: str, seed: int) -> ModelProto | None:
    """A model with this operator, the same for the same seed; None where ONNX Runtime refuses it."""
    random = np.random.default_rng([seed, *name.encode()])
    net = Net(seed=seed, opset=int(random.choice([17, 17, 18, 19])))
    try:
        result = DRAWS[name](net, random)
        proto = net.model(result, domains={MICROSOFT: 1})
        found = builders.run(proto, builders.feeds_of(proto, batch=2, seed=3))
    except Exception:  # attributes that do not go together prove nothing
        return None
    sound = all(a.size and np.isfinite(a).all() and a.dtype == np.float32 for a in found)
    return proto if sound else None


def some(random: Random, *values: Any) -> Any:
    return values[int(random.integers(len(values)))]


def several(random: Random, count: int, low: int, high: int) -> list[int]:
    return [int(v) for v in random.integers(low, high + 1, count)]


def image(net: Net, random: Random, spatial: int, channels: int, low: int = 4, high: int = 8) -> str:
    """[2, channels, …] behind a learned product."""
    most = high if spatial < 3 else 6
    x = net.input(2, 3, *several(random, spatial, low, most))
    return str(net.op("Conv", x, net.weight(channels, 3, *[1] * spatial), net.weight(channels, scale=0.3)))


def tensor(net: Net, random: Random, low: int = 1, high: int = 4, width: int = 0) -> tuple[str, list[int]]:
    """A learned tensor of random rank, its batch first."""
    shape = [2, *several(random, int(random.integers(low, high + 1)) - 1, 2, 5)]
    if width:
        shape[-1] = width
    x = net.input(*shape)
    return str(net.op("Mul", x, net.weight(*shape[-1:], scale=1.0))), shape


def narrowed(random: Random, shape: Sequence[int]) -> list[int]:
    """A shape that broadcasts to another."""
    cut = [int(d) if random.random() < 0.5 else 1 for d in shape]
    return cut[int(random.integers(0, len(cut) + 1)) :] if random.random() < 0.5 else cut


def windows(random: Random, spatial: int, *, dilated: bool = True, auto: bool = True) -> dict[str, Any]:
    """kernel_shape, strides, padding and dilations of a sliding window."""
    kernel = several(random, spatial, 1, 3)
    attrs: dict[str, Any] = {"kernel_shape": kernel, "strides": several(random, spatial, 1, 3)}
    if dilated and random.random() < 0.4:
        attrs["dilations"] = several(random, spatial, 1, 2)
    form = some(random, "pads", "pads", "none", *(("SAME_UPPER", "SAME_LOWER", "VALID") if auto else ()))
    if form == "pads":
        attrs["pads"] = [int(random.integers(0, k)) for k in kernel * 2]
    elif form != "none":
        attrs["auto_pad"] = form
    return attrs


# -- products ----------------------------------------------------------------------------------------------------------


def conv(net: Net, random: Random, spatial: int) -> str:
    group = some(random, 1, 1, 2, 4)
    channels, out = 4, group * int(random.integers(1, 4))
    h = image(net, random, spatial, channels)
    attrs = windows(random, spatial)
    weight = net.weight(out, channels // group, *attrs["kernel_shape"])
    bias = [net.weight(out)] if random.random() < 0.5 else []
    return str(net.op("Conv", h, weight, *bias, group=group, **attrs))


def conv_transpose(net: Net, random: Random, spatial: int) -> str:
    group = some(random, 1, 2, 4)
    h = image(net, random, spatial, 4, 3, 5)
    attrs = windows(random, spatial)
    if random.random() < 0.3:
        attrs["output_padding"] = [int(random.integers(0, s)) for s in attrs["strides"]]
    out = int(random.integers(1, 3))
    bias = [net.weight(out * group)] if random.random() < 0.5 else []
    return str(net.op("ConvTranspose", h, net.weight(4, out, *attrs["kernel_shape"]), *bias, group=group, **attrs))


def pool(net: Net, random: Random, spatial: int, kind: str) -> str:
    h = image(net, random, spatial, 3)
    attrs = windows(random, spatial, dilated=net.opset >= 19 or kind == "MaxPool")
    if random.random() < 0.5 and (kind != "LpPool" or net.opset >= 18):
        attrs["ceil_mode"] = 1
    if kind == "AveragePool" and random.random() < 0.5:
        attrs["count_include_pad"] = 1
    if kind == "LpPool":
        attrs["p"] = some(random, 1, 2, 3)
    return str(net.op(kind, h, **attrs))


for _spatial in (1, 2, 3):
    DRAWS[f"Conv {_spatial}-D"] = partial(conv, spatial=_spatial)
    DRAWS[f"ConvTranspose {_spatial}-D"] = partial(conv_transpose, spatial=_spatial)
    for _kind in ("AveragePool", "LpPool", "MaxPool"):
        DRAWS[f"{_kind} {_spatial}-D"] = partial(pool, spatial=_spatial, kind=_kind)


@draws("Gemm")
def gemm(net: Net, random: Random, kind: str) -> str:
    rows, inner, columns = several(random, 3, 2, 5)
    turned = some(random, 0, 1)
    h = net.op("Mul", net.input(*((inner, rows) if turned else (rows, inner))), net.weight(1, scale=1.0))
    attrs: dict[str, Any] = {"transA": turned, "transB": some(random, 0, 1)}
    weight = net.weight(*((columns, inner) if attrs["transB"] else (inner, columns)))
    bias = some(random, [], [()], [(columns,)], [(rows, 1)], [(1, columns)], [(rows, columns)], [(1,)])
    for key in ("alpha", "beta"):
        if random.random() < 0.5:
            attrs[key] = float(some(random, 0.5, 2.0, -1.0))
    return str(net.op("Gemm", h, weight, *[net.weight(*shape, scale=1.0) for shape in bias], **attrs))


@draws("MatMul")
def matmul(net: Net, random: Random, kind: str) -> str:
    rows, inner, columns = several(random, 3, 1, 4)
    batch = several(random, int(random.integers(0, 3)), 1, 3)
    left, right = narrowed(random, batch), narrowed(random, batch)
    given = [*left, *([rows] if random.random() < 0.8 else []), inner]
    given = [2, *given] if given[0] == 1 else given  # a first axis of 1 would be taken for a batch
    a = net.op("Mul", net.input(*given), net.weight(1, scale=1.0))
    return str(net.op("MatMul", a, net.weight(*right, inner, *([columns] if random.random() < 0.8 else []), scale=1.0)))


# -- element by element ------------------------------------------------------------------------------------------------


@draws("Add", "Sub", "Mul", "Div", "Max", "Min", "Mean", "Sum", "PRelu", "Pow")
def binary(net: Net, random: Random, kind: str) -> str:
    h, shape = tensor(net, random)
    other_shape = narrowed(random, shape)
    if kind == "PRelu":
        return str(net.op("PRelu", h, net.weight(*other_shape, scale=0.5)))
    if kind == "Pow":
        base = net.op("Add", net.op("Abs", h), net.const(0.5, np.float32))
        exponent = net.const(random.uniform(0.5, 2.5, other_shape), np.float32)
        return str(net.op("Pow", base, exponent))
    other = net.positive(*other_shape) if kind == "Div" else net.weight(*other_shape, scale=1.0)
    operands = [h, other] if random.random() < 0.5 or kind == "Div" else [other, h]
    if kind in ("Max", "Min", "Mean", "Sum") and random.random() < 0.5:
        operands.append(net.weight(*narrowed(random, shape), scale=1.0))
    return str(net.op(kind, *operands))


@draws("Where")
def where(net: Net, random: Random, kind: str) -> str:
    h, shape = tensor(net, random)
    mask = net.const(random.random(narrowed(random, shape)) < 0.5, np.bool_)
    operands = [h, net.weight(*narrowed(random, shape), scale=1.0)]
    if random.random() < 0.3:
        operands[1] = net.const(0.25, np.float32)
    return str(net.op("Where", mask, *(operands if random.random() < 0.5 else operands[::-1])))


@draws("Clip")
def clip(net: Net, random: Random, kind: str) -> str:
    h, _ = tensor(net, random)
    bounds = [some(random, "", net.const(-0.4, np.float32), net.weight(scale=0.2))]
    return str(net.op("Clip", h, *bounds, some(random, "", net.const(0.5, np.float32))))


@draws("Softmax", "LogSoftmax", "Hardmax", "LpNormalization", "MeanVarianceNormalization")
def along_axis(net: Net, random: Random, kind: str) -> str:
    h, shape = tensor(net, random)
    axis = int(random.integers(-len(shape), len(shape)))
    if kind == "MeanVarianceNormalization":
        return str(net.op(kind, h, axes=sorted({0, axis % len(shape)})))
    if kind == "Hardmax":
        return str(net.op("Mul", h, net.op(kind, h, axis=axis)))
    return str(net.op(kind, h, axis=axis, **({"p": some(random, 1, 2)} if kind == "LpNormalization" else {})))


@draws("CumSum")
def cumsum(net: Net, random: Random, kind: str) -> str:
    h, shape = tensor(net, random)
    axis = net.const(int(random.integers(-len(shape), len(shape))), some(random, np.int64, np.int32))
    return str(net.op("CumSum", h, axis, exclusive=some(random, 0, 1), reverse=some(random, 0, 1)))


_REDUCING = (
    *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd"),
    *("ReduceSum", "ReduceSumSquare"),
)


@draws(*_REDUCING)
def reduction(net: Net, random: Random, kind: str) -> str:
    h, shape = tensor(net, random)
    if kind in ("ReduceLogSum", "ReduceProd"):
        h = net.op("Add", net.op("Abs", h), net.const(0.5, np.float32))
    axes = sorted({int(a) for a in random.integers(0, len(shape), int(random.integers(0, len(shape) + 1)))})
    signed = [a - len(shape) if random.random() < 0.3 else a for a in axes]
    attrs: dict[str, Any] = {"keepdims": some(random, 0, 1)}
    if kind == "ReduceSum" or net.opset >= 18:
        if not axes and random.random() < 0.5:
            attrs["noop_with_empty_axes"] = 1
        return str(net.op(kind, h, *([net.const(signed)] if axes else []), **attrs))
    return str(net.op(kind, h, **attrs, **({"axes": signed} if axes else {})))


# -- normalizations ----------------------------------------------------------------------------------------------------


@draws("BatchNormalization")
def batch_norm(net: Net, random: Random, kind: str) -> str:
    spatial = int(random.integers(0, 4))
    h = image(net, random, spatial, 3) if spatial else net.dense(net.input(2, 4), 4, 3)
    vectors = [net.positive(3), net.weight(3), net.weight(3, scale=0.2), net.positive(3)]
    return str(net.op("BatchNormalization", h, *vectors, epsilon=float(some(random, 1e-5, 1e-2))))


@draws("InstanceNormalization", "GroupNormalization", "LRN")
def image_norm(net: Net, random: Random, kind: str) -> str:
    h = image(net, random, 2 if kind == "LRN" else int(random.integers(1, 4)), 4)
    if kind == "LRN":
        return str(net.op(kind, h, size=some(random, 1, 2, 3, 5), alpha=0.4, beta=0.6, bias=1.2))
    if kind == "InstanceNormalization":
        return str(net.op(kind, h, net.positive(4), net.weight(4)))
    net.opset = some(random, 18, 21)
    groups = some(random, 1, 2, 4)
    width = groups if net.opset < 21 else 4
    return str(net.op(kind, h, net.positive(width), net.weight(width), num_groups=groups))


@draws("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
def layer_norm(net: Net, random: Random, kind: str) -> str:
    h, shape = tensor(net, random, 2)
    axis = int(random.integers(1, len(shape)))
    if kind == "RMSNormalization":
        net.opset = 23
    whole = shape[axis:] if kind != "SimplifiedLayerNormalization" else shape[-1:]
    axis = axis if kind != "SimplifiedLayerNormalization" else -1
    bias = [net.weight(*whole)] if kind == "LayerNormalization" and random.random() < 0.6 else []
    return str(
        net.op(kind, h, net.positive(*whole), *bias, axis=some(random, axis, axis - len(shape) if axis > 0 else axis))
    )


# -- moves -------------------------------------------------------------------------------------------------------------


@draws("Concat")
def concat(net: Net, random: Random, kind: str) -> str:
    h, shape = tensor(net, random)
    axis = int(random.integers(0, len(shape)))
    other = [d if a != axis else int(random.integers(1, 4)) for a, d in enumerate(shape)]
    parts = [h, net.weight(*other, scale=1.0), h]
    return str(net.op("Concat", *parts[: int(random.integers(1, 4))], axis=some(random, axis, axis - len(shape))))


@draws("Split")
def split(net: Net, random: Random, kind: str) -> str:
    h, shape = tensor(net, random)
    axis = int(random.integers(0, len(shape)))
    shape_there = shape[axis]
    cut = int(random.integers(1, shape_there))
    sizes = [net.const([cut, shape_there - cut])] if random.random() < 0.7 or shape_there % 2 else []
    attrs = {"num_outputs": 2} if not sizes and net.opset >= 18 else {}
    parts = net.op("Split", h, *sizes, outputs=2, axis=some(random, axis, axis - len(shape)), **attrs)
    return str(some(random, parts[0], parts[1], net.op("Concat", *parts[::-1], axis=axis)))


@draws("Slice")
def slices(net: Net, random: Random, kind: str) -> str:
    h, shape = tensor(net, random)
    axes = sorted({int(a) for a in random.integers(0, len(shape), 2)})
    steps = [int(some(random, 1, 2, -1, -2)) for _ in axes]
    starts = [
        int(random.integers(0, shape[a])) if s > 0 else int(random.integers(-2, 0))
        for a, s in zip(axes, steps, strict=True)
    ]
    ends = [99 if s > 0 else -99 for s in steps]
    ports = [starts, ends, [a - len(shape) if random.random() < 0.3 else a for a in axes], steps]
    return str(net.op("Slice", h, *[net.const(p, some(random, np.int64)) for p in ports]))


@draws("Gather", "GatherElements", "GatherND")
def gather(net: Net, random: Random, kind: str) -> str:
    h, shape = tensor(net, random, 2)
    axis = int(random.integers(0, len(shape)))
    size = shape[axis]
    if kind == "Gather":
        indices = random.integers(-size, size, several(random, int(random.integers(0, 3)), 1, 3))
        return str(net.op(kind, h, net.const(indices, some(random, np.int64, np.int32)), axis=axis))
    if kind == "GatherElements":
        wanted = [d if a != axis else 3 for a, d in enumerate(shape)]
        return str(net.op(kind, h, net.const(random.integers(-size, size, wanted)), axis=axis))
    batch = int(random.integers(0, 2))
    depth = int(random.integers(1, len(shape) - batch + 1))
    lead = [*shape[:batch], 3]
    indices = np.stack([random.integers(0, shape[batch + i], lead) for i in range(depth)], -1)
    return str(net.op(kind, h, net.const(indices), batch_dims=batch))


@draws("ScatterElements", "ScatterND")
def scatter(net: Net, random: Random, kind: str) -> str:
    h, shape = tensor(net, random, 2)
    reduction = {"reduction": some(random, "none", "add")} if random.random() < 0.6 else {}
    if kind == "ScatterND":
        at = random.permutation(shape[0])[: int(random.integers(1, shape[0] + 1))]
        return str(net.op(kind, h, net.const(at[:, None]), net.weight(len(at), *shape[1:], scale=1.0), **reduction))
    axis = int(random.integers(0, len(shape)))
    moved = [d if a != axis else 1 for a, d in enumerate(shape)]
    indices = random.integers(0, shape[axis], moved)
    return str(net.op(kind, h, net.const(indices), net.weight(*moved, scale=1.0), axis=axis, **reduction))


@draws("Pad")
def pad(net: Net, random: Random, kind: str) -> str:
    h, shape = tensor(net, random)
    mode = some(random, "constant", "constant", "reflect", "edge", *(["wrap"] if net.opset >= 19 else []))
    amounts = [int(random.integers(-1, min(d, 3))) for d in shape * 2]
    value = [some(random, net.const(0.5, np.float32), "")] if mode == "constant" else []
    return str(net.op("Pad", h, net.const(amounts), *value, mode=mode))


@draws("Transpose", "Reshape", "Expand", "Tile", "Flatten", "Squeeze", "Unsqueeze", "Trilu", "TopK")
def moves(net: Net, random: Random, kind: str) -> str:
    h, shape = tensor(net, random, 2)
    rank = len(shape)
    axis = int(random.integers(-rank, rank))
    if kind == "Transpose":
        return str(net.op(kind, h, perm=[int(p) for p in random.permutation(rank)]))
    if kind == "Reshape":
        return str(net.op(kind, h, net.const(some(random, [-1], [0, -1], [1, -1, shape[-1]]))))
    if kind == "Expand":
        narrow = net.op("ReduceSum", h, net.const([axis]), keepdims=1)
        return str(net.op(kind, narrow, net.const([*([3] if random.random() < 0.5 else []), *shape])))
    if kind == "Tile":
        return str(net.op(kind, h, net.const(several(random, rank, 1, 3))))
    if kind == "Flatten":
        return str(net.op(kind, h, axis=int(random.integers(-rank, rank + 1))))
    if kind == "Squeeze":
        wide = net.op("Unsqueeze", h, net.const([axis]))
        return str(net.op(kind, wide, *([net.const([axis])] if random.random() < 0.5 else [])))
    if kind == "Unsqueeze":
        return str(net.op(kind, h, net.const(sorted({0, int(random.integers(1, rank + 2))}))))
    if kind == "Trilu":
        return str(net.op(kind, h, net.const(int(random.integers(-2, 3))), upper=some(random, 0, 1)))
    found = net.op(kind, h, net.const([2]), outputs=2, axis=axis, largest=some(random, 0, 1), sorted=some(random, 0, 1))
    return str(found[0])


@draws("DepthToSpace", "SpaceToDepth")
def depth(net: Net, random: Random, kind: str) -> str:
    x = net.input(2, 3, 4, 6)
    h = net.op("Conv", x, net.weight(8, 3, 1, 1))
    mode = {"mode": some(random, "DCR", "CRD")} if kind == "DepthToSpace" else {}
    return str(net.op(kind, h, blocksize=2, **mode))


@draws("Resize")
def resize(net: Net, random: Random, kind: str) -> str:
    spatial = int(random.integers(1, 4))
    h = image(net, random, spatial, 2, 3, 5)
    attrs: dict[str, Any] = {"mode": some(random, "nearest", "linear", "cubic")}
    attrs["coordinate_transformation_mode"] = some(
        random, "half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"
    )
    if attrs["mode"] == "nearest":
        attrs["nearest_mode"] = some(random, "round_prefer_floor", "floor", "ceil", "round_prefer_ceil")
    scales = [float(some(random, 0.5, 1.0, 1.5, 2.0)) for _ in range(spatial)]
    return str(net.op("Resize", h, "", net.const([1, 1, *scales], np.float32), **attrs))


# -- recurrent, quantized, attention -----------------------------------------------------------------------------------


@draws("LSTM", "GRU", "RNN")
def recurrent(net: Net, random: Random, kind: str) -> str:
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind]
    steps, width, hidden = several(random, 3, 2, 5)
    direction = some(random, "forward", "reverse", "bidirectional")
    count = 2 if direction == "bidirectional" else 1
    x = net.op("Mul", net.input(steps, 2, width), net.weight(width, scale=1.0))
    weights = [
        net.weight(count, gates * hidden, width, scale=0.7),
        net.weight(count, gates * hidden, hidden, scale=0.7),
    ]
    bias = net.weight(count, 2 * gates * hidden, scale=0.3) if random.random() < 0.6 else ""
    states = [net.weight(count, 2, hidden, scale=0.5) for _ in range(2 if kind == "LSTM" else 1)]
    given = ["", *states] if random.random() < 0.4 else []
    attrs = {"linear_before_reset": some(random, 0, 1)} if kind == "GRU" else {}
    outputs = 3 if kind == "LSTM" else 2
    found = net.op(kind, x, *weights, bias, *given, outputs=outputs, hidden_size=hidden, direction=direction, **attrs)
    return str(found[int(random.integers(outputs))])


@draws("QuantizeLinear")
def quantized(net: Net, random: Random, kind: str) -> str:
    h, shape = tensor(net, random, 2)
    kind = some(random, np.uint8, np.int8)
    ports = [net.const(0.05, np.float32)]
    attrs: dict[str, Any] = {}
    if random.random() < 0.5:
        attrs["axis"] = int(random.integers(0, len(shape)))
        ports = [net.const(random.uniform(0.02, 0.1, shape[attrs["axis"]]), np.float32)]
    if kind is np.int8 or random.random() < 0.6:
        size = shape[attrs["axis"]] if attrs else ()
        ports.append(net.const(np.full(size, 3 if kind is np.int8 else 120), kind))
    return str(net.op("DequantizeLinear", net.op("QuantizeLinear", h, *ports, **attrs), *ports, **attrs))


@draws("Einsum")
def einsum(net: Net, random: Random, kind: str) -> str:
    sizes = dict(zip("abcd", (2, 3, 4, 5), strict=True))
    terms = ["".join(random.permutation(list("abcd"))[: int(random.integers(1, 4))]) for _ in range(2)]
    letters = sorted(set("".join(terms)))
    out = "".join(random.permutation(letters)[: int(random.integers(0, len(letters) + 1))])
    h = net.op("Mul", net.input(*[sizes[c] for c in terms[0]]), net.weight(1, scale=1.0))
    other = net.weight(*[sizes[c] for c in terms[1]], scale=1.0)
    return str(net.op("Einsum", h, other, equation=f"{terms[0]},{terms[1]}->{out}"))


_UNARY: dict[str, dict[str, Any]] = {
    "Abs": {}, "Asinh": {}, "Celu": {"alpha": 0.7}, "Cos": {}, "Cosh": {}, "Elu": {"alpha": 0.7}, "Erf": {}, "Exp": {},
    "HardSigmoid": {"alpha": 0.3}, "HardSwish": {}, "LeakyRelu": {"alpha": 0.1}, "Neg": {}, "Relu": {}, "Selu": {},
    "Shrink": {"lambd": 0.3, "bias": 0.1}, "Sigmoid": {}, "Sin": {}, "Sinh": {}, "Softplus": {}, "Softsign": {},
    "Tanh": {}, "ThresholdedRelu": {"alpha": 0.3}, "Identity": {}, "GlobalAveragePool": {}, "GlobalMaxPool": {},
    "GlobalLpPool": {"p": 2},
}  # fmt: skip


@draws(*_UNARY)
def unary(net: Net, random: Random, kind: str) -> str:
    h = image(net, random, int(random.integers(1, 4)), 3) if kind.startswith("Global") else tensor(net, random)[0]
    return str(net.op(kind, h, **_UNARY[kind]))


@draws("Cast")
def cast(net: Net, random: Random, kind: str) -> str:
    h, _ = tensor(net, random)
    through = some(random, TensorProto.DOUBLE, TensorProto.FLOAT)
    return str(net.op("Cast", net.op("Cast", h, to=through), to=TensorProto.FLOAT))
