"""Which nodes can a random model draw that passes rewrite, opsets brought late, or ONNX Runtime writes itself?"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from onnx import TensorProto, helper, numpy_helper
from wild_grower import BOOL, FLOAT, INT64, ML, MS, Grower, SkipError, move
from wild_moves import with_axes

_value = helper.make_tensor_value_info


# -- what passes look for ----------------------------------------------------------------------------------------------


@move(0.5, since=11)
def one_hot_product(g: Grower) -> None:
    """Rows looked up by a product: OneHot, or a comparison with all numbers, times a table."""
    ids, rows = g.pick(1, 2, dtype=np.int64), int(g.one(20, 22))
    if g.chance(0.5):
        hot = g.add("OneHot", [ids, g.store(np.int64(rows)), g.store(np.float32(g.one([0, 1], [0, 2])))])
    else:
        wide = with_axes(g, "Unsqueeze", ids, [len(g.shape(ids))], 13)
        hot = g.add("Cast", [g.add("Equal", [wide, g.store(np.arange(rows))])], to=FLOAT)
    y = g.add("MatMul", [hot, g.weight(g.real(rows, 5, scale=0.5))])
    if g.chance(0.5):
        y = g.add("Add", [y, g.weight(g.real(5))])
    if g.chance(0.5):
        g.add(g.one("Tanh", "Relu", "Softmax"), [y])


@move(0.7, since=9)
def gelu_in_parts(g: Grower) -> None:
    """GELU by Erf or by Tanh, its factors in any order; at times a number is wrong, and it is another function."""
    x = g.pick(2, 3, 4)

    def number(value: float) -> str:
        return g.store(np.asarray(value, np.float32).reshape(g.one((), (1,))))

    def pair(op: str, a: str, b: str) -> str:
        return g.add(op, g.one([a, b], [b, a]))

    wrong = g.one(1.0, 1.0, 1.0, 1.01)
    if g.chance(0.5):
        inner = g.add("Div", [x, number(2**0.5 * wrong)]) if g.chance(0.6) else pair("Mul", x, number(0.5**0.5 * wrong))
        gate = pair("Add", g.add("Erf", [inner]), number(1))
    else:
        cube = g.add("Pow", [x, number(3)]) if g.opset >= 12 and g.chance(0.5) else pair("Mul", x, g.add("Mul", [x, x]))
        inner = pair("Mul", pair("Add", x, pair("Mul", cube, number(0.044715 * wrong))), number((2 / np.pi) ** 0.5))
        gate = pair("Add", g.add("Tanh", [inner]), number(1))
    kind = g.one("outside", "inside", "gate")
    if kind == "outside":
        pair("Mul", pair("Mul", x, gate), number(0.5))
    elif kind == "inside":
        pair("Mul", pair("Mul", x, number(0.5)), gate)
    else:
        pair("Mul", x, pair("Mul", gate, number(0.5)))


@move(0.5)
def inner_softmax(g: Grower) -> None:
    """A Softmax with axes behind the one it runs along; before opset 13 it means all that follow."""
    x = g.pick(3, 4)
    g.add(g.one("Softmax", "LogSoftmax"), [x], axis=1)


@move(0.5)
def tall_conv(g: Grower) -> None:
    """A signal as an image of width 1, or of height 1, under a long kernel, with what stands behind it."""
    x = g.pick(3)
    shape, kernel, group = g.shape(x), int(g.one(2, 3, 5)), 1
    tall = g.chance(0.7)
    y = with_axes(g, "Unsqueeze", x, [3 if tall else 2], 13)
    if g.chance(0.3):
        group = shape[1]
    size = (4 * group, shape[1] // group, *((kernel, 1) if tall else (1, kernel)))
    pads = [kernel // 2, 0, kernel // 2, 0] if tall else [0, kernel // 2, 0, kernel // 2]
    y = g.add("Conv", [y, g.weight(g.real(*size)), *([g.weight(g.real(size[0]))] if g.chance(0.6) else [])],
              group=group, pads=g.one(pads, [0] * 4))  # fmt: skip
    if g.chance(0.5):
        g.add("MaxPool", [y], kernel_shape=[2, 1] if tall else [1, 2])
    elif g.chance(0.5):
        with_axes(g, "Squeeze", y, [3 if tall else 2], 13)


@move(0.3)
def conv_over_the_height(g: Grower) -> None:
    """A large kernel that spans the height of its image."""
    x = g.pick(4)
    _, channels, height, width = g.shape(x)
    y = g.add("Tile", [x, g.ints(1, 1, 4, 2)])
    out, k = int(g.one(3, 8)), int(g.one(5, 9, 6))
    if k > 2 * width:
        raise SkipError
    y = g.add("Conv", [y, g.weight(g.real(out, channels, 4 * height, k))], pads=g.one([0] * 4, [0, 2, 0, 2]))
    if g.chance(0.5):
        g.add("Relu", [y])


@move(0.3)
def long_window(g: Grower) -> None:
    """A convolution over time with many channels and a long kernel."""
    x = g.pick(3)
    wide = g.add("Conv", [x, g.weight(g.real(16, g.shape(x)[1], 1))])
    g.add("Conv", [wide, g.weight(g.real(16, 16, 9)), g.weight(g.real(16))],
          pads=[4, 4], strides=[int(g.one(1, 2))], dilations=[1])  # fmt: skip


@move(0.4)
def slices_into_channels(g: Grower) -> None:
    """A picture folded into channels by strided Slices and a Concat, before a Conv."""
    x = g.pick(4)
    _, channels, height, width = g.shape(x)
    if height % 2 or width % 2 or g.opset < 10:
        raise SkipError
    parts = [
        g.add("Slice", [x, g.ints(a, b), g.ints(9999, 9999), g.ints(2, 3), g.ints(2, 2)])
        for a, b in ((0, 0), (1, 0), (0, 1), (1, 1))
    ]
    y = g.add("Concat", parts, axis=1)
    g.add("Conv", [y, g.weight(g.real(4, 4 * channels, 3, 3)), g.weight(g.real(4))], pads=g.one([1] * 4, [0] * 4))


@move(0.6)
def residual_blocks(g: Grower) -> None:
    """Branches that add to a stream; one of them reads it through a norm."""
    x = g.pick(2, 3)
    width = g.shape(x)[-1]
    for _ in range(int(g.one(1, 2))):
        y = x
        if g.opset >= 17 and g.chance(0.5):
            y = g.add("LayerNormalization", [x, g.weight(g.real(width, scale=1.0))], axis=-1)
        y = g.add("MatMul", [y, g.weight((g.real(width, 8) / width**0.5).astype(np.float32))])
        y = g.add("Relu", [y])
        y = g.add("MatMul", [y, g.weight((g.real(8, width) / 3).astype(np.float32))])
        x = g.add("Add", g.one([x, y], [y, x]))


# -- what opsets brought late ------------------------------------------------------------------------------------------


@move(0.8, since=23)
def rotary(g: Grower) -> None:
    x = g.pick(3)
    rows, width = g.shape(x)[1:]
    if width % 2:
        raise SkipError
    angles = np.outer(np.arange(rows), 1 / 100 ** (np.arange(width // 2) / (width // 2)))
    caches = [g.store(f(angles).astype(np.float32)) for f in (np.cos, np.sin)]
    if g.chance(0.5):  # caches by position
        where = g.add("Expand", [g.store(np.arange(rows)), g.add("Slice", [g.add("Shape", [x]), g.ints(0), g.ints(2)])])
        y = g.add("RotaryEmbedding", [x, *caches, where], num_heads=1, interleaved=int(g.one(0, 1)))
    else:
        wide = [g.add("Expand", [c, g.add("Concat", [g.add("Slice", [g.add("Shape", [x]), g.ints(0), g.ints(1)]),
                g.ints(rows, width // 2)], axis=0)]) for c in caches]  # fmt: skip
        y = g.add("RotaryEmbedding", [x, *wide], num_heads=1)
    g.add("Attention", [y, y, x], q_num_heads=1, kv_num_heads=1, is_causal=int(g.one(0, 1)))


@move(0.6, since=23)
def attention_with_parts(g: Grower) -> None:
    """Attention of opset 23 with fewer heads of keys, a soft cap, a scale, a mask of truth values, a past."""
    x = g.pick(3)
    rows, width = g.shape(x)[1:]
    q, k, v = (g.add("MatMul", [x, g.weight(g.real(width, n, scale=0.4))]) for n in (8, 4, 4))
    attrs: dict[str, Any] = g.one({}, {"softcap": 5.0}, {"scale": 0.3}, {"is_causal": 1})
    mask = [g.store(np.tril(np.ones((rows, rows), bool)))] if g.chance(0.4) and "is_causal" not in attrs else []
    g.add("Attention", [q, k, v, *mask], int(g.one(1, 1, 3)), q_num_heads=4, kv_num_heads=2, **attrs)


@move(0.7, since=17)
def late_norms(g: Grower) -> None:
    x = g.pick(2, 3, 4)
    axis = int(g.one(-1, len(g.shape(x)) - 1))
    weight = g.weight(g.real(g.shape(x)[-1], scale=1.0))
    if g.opset >= 23 and g.chance(0.6):
        g.add("RMSNormalization", [x, weight], axis=axis, epsilon=float(g.one(1e-5, 1e-3)))
    else:
        g.add("LayerNormalization", [x, weight], int(g.one(1, 1, 3)), axis=axis)


@move(0.5, since=11)
def elements(g: Grower) -> None:
    """What moves single elements, and numbers of other kinds."""
    x = g.pick(2, 3)
    shape = g.shape(x)
    kind = g.one("GatherElements", "ScatterElements", "Mod", "Range", "Size", "EyeLike", "IsNaN", "ReverseSequence",
                 "Det", "BitShift", "CenterCropPad", "TfIdf", "BitwiseAnd", "Window")  # fmt: skip
    if kind == "GatherElements":
        picked = g.add("Cast", [g.add("Greater", [x, g.store(np.float32(0))])], to=INT64)
        g.add(kind, [x, picked], axis=len(shape) - 1)
    elif kind == "ScatterElements":
        picked = g.add("Cast", [g.add("Greater", [x, g.store(np.float32(0))])], to=INT64)
        adding = {"reduction": "add"} if g.opset > 15 else {}
        g.add(kind, [x, picked, g.add("Neg", [x])], axis=len(shape) - 1, **adding)
    elif kind == "Mod":
        g.add(kind, [x, g.store(np.float32(0.7))], fmod=1)
    elif kind == "Range":
        size = g.add("Gather", [g.add("Shape", [x]), g.store(np.int64(len(shape) - 1))])
        places = g.add(kind, [g.store(np.int64(0)), size, g.store(np.int64(1))])
        g.add("Add", [x, g.add("Sin", [g.add("Cast", [places], to=FLOAT)])])
    elif kind == "Size":
        g.add("Div", [x, g.add("Cast", [g.add(kind, [x])], to=FLOAT)])
    elif kind == "EyeLike" and len(shape) == 2:
        g.add("Add", [x, g.add(kind, [x])])
    elif kind == "IsNaN":
        g.add("Where", [g.add(g.one(kind, "IsInf"), [x]), g.store(np.float32(0)), x])
    elif kind == "ReverseSequence" and len(shape) == 3:
        lengths = g.add("Expand", [g.ints(2), g.add("Slice", [g.add("Shape", [x]), g.ints(0), g.ints(1)])])
        g.add(kind, [x, lengths], batch_axis=0, time_axis=1)
    elif kind == "Det" and len(shape) == 3:
        g.add(kind, [g.add("MatMul", [x, g.add("Transpose", [x], perm=[0, 2, 1])])])
    elif kind == "BitShift":
        whole = g.add("Cast", [g.add("Abs", [x])], to=TensorProto.UINT8)
        g.add("Cast", [g.add(kind, [whole, g.store(np.uint8(1))], direction="LEFT")], to=FLOAT)
    elif kind == "CenterCropPad" and g.opset >= 18:
        g.add(kind, [x, g.ints(shape[-1] + 1)], axes=[len(shape) - 1])
    elif kind == "BitwiseAnd" and g.opset >= 18:
        whole = g.add("Cast", [x], to=TensorProto.INT32)
        g.add("Cast", [g.add(kind, [whole, g.store(np.int32(6))])], to=FLOAT)
    elif kind == "Window" and g.opset >= 17:
        g.add("Mul", [x, g.add(g.one("HannWindow", "HammingWindow"), [g.store(np.int64(shape[-1]))])])
    else:
        raise SkipError


@move(0.5, since=10)
def pictures(g: Grower) -> None:
    x = g.pick(4)
    channels = g.shape(x)[1]
    kind = g.one("RoiAlign", "DeformConv", "MaxUnpool", "DepthToSpace", "MaxPool")
    if kind == "RoiAlign":
        boxes = g.store(np.float32([[0, 0, 3, 3], [1, 1, 4, 4]]))
        g.add(kind, [x, boxes, g.store(np.int64([0, 0]))], output_height=2, output_width=2)  # there may be one sample
    elif kind == "DeformConv" and g.opset >= 19:
        offset = g.add("Conv", [x, g.weight(g.real(8, channels, 2, 2, scale=0.1))])
        g.add(kind, [x, g.weight(g.real(4, channels, 2, 2)), offset])
    elif kind == "MaxUnpool":
        y = g.add("MaxPool", [x], 2, kernel_shape=[2, 2], strides=[2, 2])
        g.add(kind, [y, g.nodes[-1].output[1]], kernel_shape=[2, 2], strides=[2, 2])
    elif kind == "DepthToSpace" and g.opset >= 11:
        wide = g.add("Conv", [x, g.weight(g.real(8, channels, 1, 1))])
        g.add(kind, [wide], blocksize=2, mode=g.one("DCR", "CRD"))
    elif kind == "MaxPool":
        g.add(kind, [x], 2, kernel_shape=[2, 2])
    else:
        raise SkipError


@move(0.5, since=21)
def small_integers(g: Grower) -> None:
    """Weights of 4 bits, in blocks at times; of 8-bit floats behind a Cast."""
    x = g.pick(2, 3)
    width, kind = g.shape(x)[-1], g.one("rows", "blocks", "float8")
    if kind == "float8":
        stored = g.store(g.real(width, 6).astype(ml_dtypes.float8_e4m3fn))
        g.add("MatMul", [x, g._pend("Cast", [stored], to=FLOAT)])
        return
    codes = g.store(g.random.integers(-7, 8, (width, 6)).astype(ml_dtypes.int4))
    if kind == "blocks" and width % 4 == 0:
        scales = (np.abs(g.real(width // 4, 6)) / 9 + 0.01).astype(np.float32)
        w = g._pend("DequantizeLinear", [codes, g.store(scales)], axis=0, block_size=4)
    else:
        w = g._pend("DequantizeLinear", [codes, g.store((np.abs(g.real(6)) / 9 + 0.01).astype(np.float32))], axis=1)
    g.add("MatMul", [x, w])


# -- sequences, optionals, maps, bodies --------------------------------------------------------------------------------


@move(0.6, since=11)
def sequences(g: Grower) -> None:
    """Tensors put into a sequence, taken out, counted, worked on one by one."""
    x, kind = g.pick(2, 3), g.one("Insert", "Erase", "length", "map")
    made, more, out = g.name("s"), g.name("s"), g.name()
    negative, extra = g.add("Neg", [x]), g.add("Tanh", [x]) if kind == "Insert" else g.store(np.int64(0))
    g.pending.append(helper.make_node("SequenceConstruct", [x, negative], [made]))
    if kind == "length":
        g.put(helper.make_node("Add", [x, g._pend("Cast", [g._pend("SequenceLength", [made])], to=FLOAT)], [out]))
        return
    if kind == "map" and g.opset >= 17:
        ports = [_value(n, FLOAT, None) for n in (f"e{made}", f"o{made}")]
        body = helper.make_graph([helper.make_node("Tanh", [f"e{made}"], [f"o{made}"])], "each", ports[:1], ports[1:])
        g.pending.append(helper.make_node("SequenceMap", [made], [more], body=body))
    else:
        name = f"Sequence{'Insert' if kind == 'Insert' else 'Erase'}"
        g.pending.append(helper.make_node(name, [made, extra], [more]))
    g.put(helper.make_node("ConcatFromSequence", [more], [out], axis=1))


@move(0.4, since=16)
def optionals(g: Grower) -> None:
    x, held, out = g.pick(2, 3), g.name("o"), g.name()
    g.pending.append(helper.make_node("Optional", [x], [held]))
    if g.chance(0.6):
        g.put(helper.make_node("OptionalGetElement", [held], [out]))
    else:
        g.put(helper.make_node("Where", [g._pend("OptionalHasElement", [held]), x, g.store(np.float32(0))], [out]))


@move(0.4, since=9)
def words(g: Grower) -> None:
    """Numbers by way of words."""
    ids = g.pick(1, 2, dtype=np.int64)
    named = g.name("s")
    keys = list(range(20))
    to = {"keys_int64s": keys, "values_strings": [f"w{k}" for k in keys]}
    back = {"keys_strings": [f"w{k}" for k in keys], "values_floats": [k / 10 for k in keys]}
    g.pending.append(helper.make_node("LabelEncoder", [ids], [named], domain=ML, **to))
    g.add("LabelEncoder", [named], domain=ML, **back)


@move(0.4, since=9)
def trees(g: Grower) -> None:
    x = g.pick(2)
    one = {
        "nodes_treeids": [0, 0, 0], "nodes_nodeids": [0, 1, 2], "nodes_featureids": [1, 0, 0],
        "nodes_values": [0.1, 0.0, 0.0], "nodes_modes": ["BRANCH_LEQ", "LEAF", "LEAF"],
        "nodes_truenodeids": [1, 0, 0], "nodes_falsenodeids": [2, 0, 0], "nodes_hitrates": [1.0, 1.0, 1.0],
        "nodes_missing_value_tracks_true": [0, 0, 0],
    }  # fmt: skip
    leaves = {"target_treeids": [0, 0], "target_nodeids": [1, 2], "target_ids": [0, 0], "target_weights": [0.5, -0.5]}
    g.add("TreeEnsembleRegressor", [x], domain=ML, n_targets=1, **one, **leaves)


@move(0.5)
def loop_that_stops(g: Grower) -> None:
    """A Loop that its values end, with weights of its own, an If inside it that reads them."""
    x = g.pick(2)
    width, tag = g.shape(x)[1], str(g.count)
    own = numpy_helper.from_array((g.real(width, width) / width).astype(np.float32), f"own{tag}")
    sides = [
        helper.make_graph([helper.make_node(op, [f"p{tag}"], [f"b{side}{tag}"])], side, [],
                          [_value(f"b{side}{tag}", FLOAT, None)])
        for side, op in (("then", "Tanh"), ("else", "Relu"))
    ]  # fmt: skip
    nodes = [
        helper.make_node("MatMul", [f"s{tag}", own.name], [f"p{tag}"]),
        helper.make_node("Cast", [f"i{tag}"], [f"c{tag}"], to=BOOL),
        helper.make_node("If", [f"c{tag}"], [f"n{tag}"], then_branch=sides[0], else_branch=sides[1]),
        helper.make_node("Not", [f"c{tag}"], [f"on{tag}"]),
    ]
    inputs = [_value(f"i{tag}", INT64, []), _value(f"go{tag}", BOOL, []), _value(f"s{tag}", FLOAT, None)]
    outputs = [_value(f"on{tag}", BOOL, []), _value(f"n{tag}", FLOAT, None)]
    body = helper.make_graph(nodes, "body", inputs, outputs, [own])
    g.put(helper.make_node("Loop", [g.store(np.int64(5)), g.store(np.array(True)), x], [g.name()], body=body))


@move(0.4, since=9)
def scan_with_state(g: Grower) -> None:
    """A Scan that carries a state, forwards or backwards."""
    x = g.pick(3)
    width, tag = g.shape(x)[2], str(g.count)
    start = with_axes(g, "ReduceMean", x, [1], 18, keepdims=0)
    weight = g.store((g.real(width, width) / width).astype(np.float32))
    nodes = [
        helper.make_node("MatMul", [f"h{tag}", weight], [f"p{tag}"]),
        helper.make_node("Add", [f"p{tag}", f"e{tag}"], [f"a{tag}"]),
        helper.make_node("Tanh", [f"a{tag}"], [f"n{tag}"]),
        helper.make_node("Identity", [f"n{tag}"], [f"o{tag}"]),
    ]
    ports = [_value(f"{n}{tag}", FLOAT, None) for n in "heno"]
    body = helper.make_graph(nodes, "body", ports[:2], ports[2:])
    attrs = {"num_scan_inputs": 1, "scan_input_axes": [1], "scan_output_axes": [1]}
    attrs |= {"scan_input_directions": [int(g.one(0, 1))]}
    g.put(helper.make_node("Scan", [start, x], [g.name(), g.name()], body=body, **attrs))


@move(0.5, since=13)
def function_with_a_body(g: Grower) -> None:
    """A local function that holds a weight and an If, whose branches read its inputs."""
    x = g.pick(2, 3)
    width = g.shape(x)[-1]
    name = f"Gated{width}"
    if name not in g.functions:
        sides = [
            helper.make_graph([helper.make_node(op, ["m"], [side])], side, [], [_value(side, FLOAT, None)])
            for side, op in (("t", "Tanh"), ("e", "Relu"))
        ]
        nodes = [
            helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(g.real(width, 4))),
            helper.make_node("MatMul", ["a", "w"], ["m"]),
            helper.make_node("If", ["flag"], ["o"], then_branch=sides[0], else_branch=sides[1]),
        ]
        imports = [helper.make_opsetid("", g.opset), helper.make_opsetid("wild", 1)]
        g.functions[name] = helper.make_function("wild", name, ["a", "flag"], ["o"], nodes, imports)
    g.add(name, [x, g.store(np.array(g.chance(0.5)))], domain="wild")


@move(0.5)
def constants_of_many_kinds(g: Grower) -> None:
    """Constant nodes that hold numbers, lists and sparse tensors."""
    x = g.pick(2, 3)
    width = g.shape(x)[-1]
    kind = g.one("sparse", "value_float", "value_floats", "value_ints")
    if kind == "sparse" and g.opset >= 11:
        count = min(5, width * 4)
        places = np.sort(g.random.choice(width * 4, count, replace=False)).astype(np.int64)
        given = g.real(count, scale=0.5)
        tensors = [numpy_helper.from_array(given, "values"), numpy_helper.from_array(places, "places")]
        w = g._pend("Constant", [], sparse_value=helper.make_sparse_tensor(*tensors, [width, 4]))
        g.add("MatMul", [x, w])
    elif kind == "value_float" and g.opset >= 12:
        g.add("Mul", [x, g._pend("Constant", [], value_float=0.5)])
    elif kind == "value_floats" and g.opset >= 12:
        g.add("Add", [x, g._pend("Constant", [], value_floats=g.real(width).tolist())])
    elif kind == "value_ints" and g.opset >= 13:
        g.add("Unsqueeze", [x, g._pend("Constant", [], value_ints=[1])])
    else:
        raise SkipError


# -- what ONNX Runtime writes ------------------------------------------------------------------------------------------


@move(0.8, since=11)
def fused_by_the_runtime(g: Grower) -> None:
    x = g.pick(2, 3)
    width = g.shape(x)[-1]
    kind = g.one("QLinearAdd", "QLinearSigmoid", "RotaryEmbedding", "GroupQueryAttention", "SkipSimplified",
                 "FusedMatMulBatch", "QGemm", "MatMulIntegerToFloat", "NhwcMaxPool", "DynamicQuantizeLSTM",
                 "TransposeMatMul", "Inverse")  # fmt: skip
    scale, zero = g.store(np.float32(0.05)), g.store(np.uint8(128))
    if kind in ("QLinearAdd", "QLinearSigmoid", "QGemm"):
        q = g.add("QuantizeLinear", [x, scale, zero])
        if kind == "QLinearAdd":
            y = g.add(kind, [q, scale, zero, q, scale, zero, scale, zero], domain=MS)
        elif kind == "QLinearSigmoid":
            y = g.add(kind, [q, scale, zero, g.store(np.float32(1 / 256)), g.store(np.uint8(0))], domain=MS)
        else:
            codes = g.store(g.random.integers(-90, 90, (width, 5)).astype(np.int8))
            weight = [codes, g.store(np.float32(0.01)), g.store(np.int8(0))]
            bias = g.store(g.random.integers(-90, 90, 5).astype(np.int32))
            y = g.add(kind, [q, scale, zero, *weight, bias, scale, zero], domain=MS)
        g.add("DequantizeLinear", [y, scale, zero])
    elif kind == "MatMulIntegerToFloat":
        parts = [g.name("d") for _ in range(3)]
        g.pending.append(helper.make_node("DynamicQuantizeLinear", [x], parts))
        codes = g.store(g.random.integers(-90, 90, (width, 5)).astype(np.int8))
        extra = [parts[1], g.store(np.float32(0.01)), parts[2], g.store(np.int8(0))]
        g.add(kind, [parts[0], codes, *extra, *([g.weight(g.real(5))] if g.chance(0.5) else [])], domain=MS)
    elif kind == "SkipSimplified" and len(g.shape(x)) == 3:
        g.add("SkipSimplifiedLayerNormalization", [x, x, g.weight(g.real(width, scale=1.0))], domain=MS)
    elif kind == "FusedMatMulBatch" and len(g.shape(x)) == 3:
        g.add("FusedMatMul", [x, x], domain=MS, transB=1, alpha=0.3)
    elif kind == "TransposeMatMul" and len(g.shape(x)) == 3:
        g.add("FusedMatMul", [x, g.weight(g.real(g.shape(x)[1], 3))], domain=MS, transA=1)
    elif kind == "RotaryEmbedding" and len(g.shape(x)) == 3 and width % 2 == 0:
        rows = g.shape(x)[1]
        angles = np.outer(np.arange(rows), 1 / 100 ** (np.arange(width // 2) / (width // 2)))
        caches = [g.store(f(angles).astype(np.float32)) for f in (np.cos, np.sin)]
        g.add(kind, [x, g.ints(0), *caches], domain=MS)
    else:
        raise SkipError
