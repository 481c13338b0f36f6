"""Which nodes can a random model draw that few exporters write? Other types, states, optional inputs, integers."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from wild_grower import BOOL, FLOAT, INT64, MS, Grower, SkipError, move

HALF, DOUBLE = TensorProto.FLOAT16, TensorProto.DOUBLE


@move(0.8)
def recurrent_with_state(g: Grower) -> None:
    """Initial states, peepholes, omitted inputs in the middle, clips and activations of its own."""
    x = g.pick(3)
    time, batch, width = g.shape(x)
    op, parts = g.one(("LSTM", 4), ("GRU", 3), ("RNN", 1))
    h, d = int(g.one(2, 3)), int(g.one(1, 2))
    inputs = [x, g.weight(g.real(d, parts * h, width)), g.weight(g.real(d, parts * h, h))]
    inputs.append(g.weight(g.real(d, 2 * parts * h)) if g.chance(0.5) else "")
    inputs.append("")
    if g.values[x][1].shape[1] == batch and g.chance(0.7):  # the batch of the layer stands still
        inputs.append(g.weight(g.real(d, batch, h, scale=0.3)))
        if op == "LSTM" and g.chance(0.6):
            inputs.append(g.weight(g.real(d, batch, h, scale=0.3)))
            if g.chance(0.5):
                inputs.append(g.weight(g.real(d, 3 * h, scale=0.3)))
    attrs: dict[str, Any] = {"hidden_size": h, "direction": "bidirectional" if d == 2 else "forward"}
    if op == "GRU" and g.chance(0.5):
        attrs["linear_before_reset"] = 1
    if op == "RNN" and g.chance(0.5):
        attrs["activations"] = ["Relu"] * d
    if g.chance(0.2):
        attrs["clip"] = 0.8
    outputs = int(g.one(1, 2, 3 if op == "LSTM" else 2))
    y = g.add(op, inputs, outputs, **attrs)
    g.add("Squeeze", [y], axes=[1]) if d == 1 and g.opset < 13 else g.add("Reshape", [y, g.ints(time, -1, d * h)])


@move(0.7)
def typed_layer(g: Grower) -> None:
    """A layer in half or double precision between two casts, its weight of that type or cast from float."""
    x = g.pick(2, 3, 4)
    kind, numpy_type = g.one((HALF, np.float16), (DOUBLE, np.float64))
    y = g.add("Cast", [x], to=kind)
    if len(g.shape(x)) == 4:
        w = g.weight(g.real(4, g.shape(x)[1], 3, 3).astype(numpy_type))
        z = g.add("Conv", [y, w, g.weight(g.real(4).astype(numpy_type))], pads=[1] * 4)
    else:
        z = g.add("MatMul", [y, g.weight((g.real(g.shape(x)[-1], 5) / 2).astype(numpy_type))])
        if g.chance(0.5):
            z = g.add("Add", [z, g.weight(g.real(5).astype(numpy_type))])
    if g.chance(0.5):
        z = g.add(g.one("Relu", "Tanh", "Sigmoid"), [z])
    g.add("Cast", [z], to=FLOAT)


@move(0.5, since=13)
def weight_in_bfloat16(g: Grower) -> None:
    x = g.pick(2, 3)
    stored = g.store(g.real(g.shape(x)[-1], 6).astype(ml_dtypes.bfloat16))
    g.add("MatMul", [x, g._pend("Cast", [stored], to=FLOAT)])


@move(0.5)
def integer_arithmetic(g: Grower) -> None:
    """MatMul and Add of whole numbers, with weights of int32."""
    x = g.pick(2)
    whole = g.add("Cast", [g.add("Mul", [x, g.store(np.float32(4))])], to=TensorProto.INT32)
    if g.opset >= 9 and g.chance(0.6):
        whole = g.add("MatMul", [whole, g.store(g.random.integers(-3, 4, (g.shape(x)[1], 4)).astype(np.int32))])
    elif g.opset >= 14:
        whole = g.add("Add", [whole, g.store(np.int32(g.one(0, 2)))])
    g.add("Cast", [whole], to=FLOAT)


@move(0.8, since=10)
def integers_inside(g: Grower) -> None:
    """Operators that hold integers already, and weights with a scale a channel."""
    kind = g.one("QLinearConv", "QLinearMatMul", "MatMulInteger", "ConvInteger", "by channel", "dynamic")
    scale, zero = g.store(np.float32(0.04)), g.store(np.uint8(g.one(128, 3)))
    if kind in ("QLinearConv", "ConvInteger"):
        x = g.pick(4)
        q = g.add("QuantizeLinear", [x, scale, zero])
        w = g.store(g.random.integers(-90, 90, (4, g.shape(x)[1], 3, 3)).astype(np.int8))
        if kind == "ConvInteger":
            g.add("Cast", [g.add(kind, [q, w, zero], pads=[1] * 4)], to=FLOAT)
            return
        bias = [g.store(g.random.integers(-90, 90, 4).astype(np.int32))] if g.chance(0.5) else []
        each = (4,) if g.chance(0.5) else ()
        weight = [w, g.store(np.full(each, 0.01, np.float32)), g.store(np.zeros(each, np.int8))]
        y = g.add(kind, [q, scale, zero, *weight, scale, zero, *bias], pads=[1] * 4)
        g.add("DequantizeLinear", [y, scale, zero])
        return
    x = g.pick(2, 3)
    width = g.shape(x)[-1]
    codes = g.random.integers(-90, 90, (width, 5)).astype(np.int8)
    if kind == "by channel" and g.opset >= 13:
        scales = g.store((np.abs(g.real(5)) / 50 + 1e-3).astype(np.float32))
        w = g._pend("DequantizeLinear", [g.store(codes), scales, g.store(np.zeros(5, np.int8))], axis=1)
        g.add("MatMul", [x, w])
    elif kind == "dynamic" and g.opset >= 11:
        parts = [g.name("d") for _ in range(3)]
        g.pending.append(helper.make_node("DynamicQuantizeLinear", [x], parts))
        y = g.add("MatMulInteger", [parts[0], g.store(codes), parts[2]])
        g.add("Mul", [g.add("Cast", [y], to=FLOAT), g.store(np.float32(0.01))])
    elif kind == "QLinearMatMul":
        q = g.add("QuantizeLinear", [x, scale, zero])
        weight = [g.store(codes), g.store(np.float32(0.01)), g.store(np.int8(0))]
        g.add("DequantizeLinear", [g.add(kind, [q, scale, zero, *weight, scale, zero]), scale, zero])
    else:
        q = g.add("QuantizeLinear", [x, scale, zero])
        g.add("Cast", [g.add("MatMulInteger", [q, g.store(codes), zero])], to=FLOAT)


@move(0.6, since=11)
def resize_in_every_mode(g: Grower) -> None:
    x = g.pick(3, 4)
    shape = g.shape(x)
    attrs: dict[str, Any] = {"mode": g.one("nearest", "linear", "cubic")}
    hows = ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "tf_crop_and_resize"]
    attrs["coordinate_transformation_mode"] = str(g.one(*hows))
    if attrs["mode"] == "nearest":
        attrs["nearest_mode"] = g.one("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
    if attrs["mode"] == "cubic":
        attrs |= {"cubic_coeff_a": -0.5, "exclude_outside": int(g.one(0, 1))}
    roi = ""
    if attrs["coordinate_transformation_mode"] == "tf_crop_and_resize":
        roi = g.store(np.float32([*[0.1] * len(shape), *[0.9] * len(shape)]))
    if g.chance(0.5) and g.opset >= 13:
        g.add("Resize", [x, roi, "", g.ints(g.shape(x)[0], *shape[1:-1], shape[-1] + 3)], **attrs)
        return
    scales = np.ones(len(shape), np.float32)
    scales[-1] = g.one(2.0, 1.5, 0.7)
    empty = roi or ("" if g.opset >= 13 else g.store(np.zeros(0, np.float32)))
    g.add("Resize", [x, empty, g.store(scales)], **attrs)


@move(0.6, since=23)
def attention_of_the_standard(g: Grower) -> None:
    """Attention of opset 23 in its two layouts, with a mask at times, behind projections with weights."""
    x = g.pick(3)
    width = g.shape(x)[-1]
    if width % 2:
        raise SkipError
    q, k, v = (g.add("MatMul", [x, g.weight((g.real(width, width) / width**0.5).astype(np.float32))]) for _ in range(3))
    mask = [g.store(g.real(g.shape(x)[1], g.shape(x)[1], scale=1.0))] if g.chance(0.3) else []
    heads = {"q_num_heads": 2, "kv_num_heads": 2}
    g.add("Attention", [q, k, v, *mask], is_causal=0 if mask else int(g.one(0, 1)), **heads)


@move(0.6, since=11)
def attention_of_the_runtime(g: Grower) -> None:
    """MultiHeadAttention and LayerNormalization's fused kin, behind projections with weights."""
    x = g.pick(3)
    width = g.shape(x)[-1]
    kind = g.one("MultiHeadAttention", "MatMulNBits", "QAttention")
    if kind == "MultiHeadAttention":
        q, k, v = (g.add("MatMul", [x, g.weight((g.real(width, width) / 2).astype(np.float32))]) for _ in range(3))
        bias = [g.weight(g.real(3 * width))] if g.chance(0.5) else []
        g.add(kind, [q, k, v, *bias], domain=MS, num_heads=1 if width % 2 else 2)
    elif kind == "MatMulNBits" and width % 16 == 0:
        packed = g.random.integers(0, 256, (6, width // 16, 8)).astype(np.uint8)
        scales = (np.abs(g.real(6 * (width // 16))) / 8 + 0.01).astype(np.float32)
        g.add(kind, [x, g.store(packed), g.store(scales)], domain=MS, K=width, N=6, bits=4, block_size=16)
    elif kind == "QAttention":
        quantized = [g.name("q") for _ in range(3)]
        g.pending.append(helper.make_node("DynamicQuantizeLinear", [x], quantized))
        codes = g.store(g.random.integers(-90, 90, (width, 3 * width)).astype(np.int8))
        bias, scale = g.store(g.real(3 * width)), g.store(np.float32(0.01))
        extra = [quantized[1], scale, "", quantized[2], g.store(np.int8(0))]
        g.add(kind, [quantized[0], codes, bias, *extra], domain=MS, num_heads=1)
    else:
        raise SkipError


@move(0.5, since=12)
def einsum_of_many_forms(g: Grower) -> None:
    x = g.pick(2, 3)
    if len(g.shape(x)) == 2:
        b = g.shape(x)[1]
        equation, shape = g.one(
            ("ab,bc->ac", (b, 4)), ("ab,cb->ac", (4, b)), ("ab,b->a", (b,)), ("ab,bcd->acd", (b, 2, 3))
        )
    else:
        _, b, c = g.shape(x)
        equation, shape = g.one(("abc,cde->abde", (c, 2, 3)), ("...c,cd->...d", (c, 4)), ("abc,bc->ab", (b, c)))
    g.add("Einsum", [x, g.weight(g.real(*shape))], equation=equation)


@move(0.6)
def two_weights(g: Grower) -> None:
    """One weight for two layers, as it is and transposed; tied as embeddings and heads are."""
    x = g.pick(2, 3)
    width = g.shape(x)[-1]
    w = g.weight(g.real(width, width))
    y = g.add("MatMul", [x, w])
    if g.chance(0.5):
        g.add("MatMul", [g.add("Tanh", [y]), w])
    else:
        g.add("MatMul", [y, g.add("Transpose", [w], perm=[1, 0])])


@move(0.6)
def optional_inputs(g: Grower) -> None:
    """Clip with one bound, Dropout with a ratio, Slice without axes, Pad with a value, BatchNormalization's kin."""
    x = g.pick(2, 3, 4)
    kind = g.one("Clip", "Dropout", "Pad", "Slice", "Trilu", "Shrink", "Mean")
    if kind == "Clip" and g.opset >= 11:
        g.add(kind, [x, *g.one([g.store(np.float32(-0.2))], ["", g.store(np.float32(0.4))], [])])
    elif kind == "Clip":
        g.add(kind, [x], **g.one({"min": -0.2}, {"max": 0.4}, {}))
    elif kind == "Dropout" and g.opset >= 12:
        g.add(kind, [x, g.store(np.float32(0.3)), *([g.store(np.array(False))] if g.chance(0.5) else [])])
    elif kind == "Pad" and g.opset >= 18:
        g.add(kind, [x, g.ints(1, 1), g.store(np.float32(0.5)), g.ints(-1)])
    elif kind == "Slice" and g.opset >= 10:
        g.add(kind, [x, g.ints(*[0] * len(g.shape(x))), g.ints(*[9999] * (len(g.shape(x)) - 1), -1)])
    elif kind == "Trilu" and g.opset >= 14:
        g.add(kind, [x], upper=int(g.one(0, 1)))
    elif kind == "Shrink" and g.opset >= 9:
        g.add(kind, [x], lambd=0.2, bias=0.1)
    elif kind == "Mean":
        g.add(g.one("Mean", "Sum", "Max"), [x, x, g.add("Neg", [x])])
    else:
        raise SkipError


@move(0.5)
def empty_and_scalar(g: Grower) -> None:
    """An axis of no elements joined to another, a scalar out of a tensor, a tensor of one element."""
    x = g.pick(2, 3)
    kind = g.one("empty", "scalar", "filled")
    shape = g.shape(x)
    if kind == "empty":
        g.add("Concat", [x, g.store(np.zeros((shape[0], 0, *shape[2:]), np.float32))], axis=1)
    elif kind == "scalar":
        one = g.add("Gather", [g.add("Reshape", [x, g.ints(-1)]), g.store(np.int64(0))], axis=0)
        g.add("Mul", [x, one])
    elif g.opset >= 9:
        value = numpy_helper.from_array(np.float32([0.5]), "value")
        g.add("Add", [x, g.add("ConstantOfShape", [g.add("Shape", [x])], value=value)])


@move(0.5, since=11)
def rows_by_value(g: Grower) -> None:
    """Outputs with as many rows as the values ask for: NonMaxSuppression, Compress, Unique."""
    x = g.pick(2)
    kind = g.one("Compress", "Unique", "NonMaxSuppression")
    if kind == "Compress":
        keep = g.add("Greater", [g.add("Reshape", [x, g.ints(-1)]), g.store(np.float32(0))])
        g.add(kind, [g.add("Reshape", [x, g.ints(-1)]), keep], axis=0)
    elif kind == "Unique":
        g.add(kind, [g.add("Round", [x])])
    else:
        boxes = g.add("Reshape", [g.add("Slice", [x, g.ints(0), g.ints(4), g.ints(1)]), g.ints(1, -1, 4)])
        scores = g.add("Reshape", [g.add("Slice", [x, g.ints(4), g.ints(5), g.ints(1)]), g.ints(1, 1, -1)])
        g.add(kind, [boxes, scores, g.ints(4), g.store(np.float32([0.5]))])


@move(0.4, since=16)
def optionals_and_sampling(g: Grower) -> None:
    x = g.pick(4)
    kind = g.one("GridSample", "ScatterND", "GatherND")
    if kind == "GridSample":
        height, width = 3, 4
        grid = np.tanh(g.real(g.shape(x)[0], height, width, 2, scale=1.0))
        mode = g.one("bilinear", "nearest") if g.opset < 20 else g.one("linear", "nearest")
        g.add(kind, [x, g.store(grid)], mode=mode)
    elif kind == "ScatterND":
        flat = g.add("Reshape", [x, g.ints(-1)])
        g.add(kind, [flat, g.store(np.array([[0], [2]], np.int64)), g.store(np.float32([0.1, 0.2]))])
    else:
        g.add(kind, [g.add("Reshape", [x, g.ints(-1)]), g.store(np.array([[0], [1], [1]], np.int64))])


@move(0.4, since=11)
def loop_over_sequence(g: Grower) -> None:
    """A Loop that reads a weight and a tensor from outside, inside an If at times."""
    x = g.pick(2)
    width = g.shape(x)[1]
    outer = g.store((g.real(width, width) / width).astype(np.float32))
    tag = str(g.count)
    nodes = [
        helper.make_node("MatMul", [f"s{tag}", outer], [f"m{tag}"]),
        helper.make_node("Add", [f"m{tag}", x], [f"a{tag}"]),
        helper.make_node("Tanh", [f"a{tag}"], [f"n{tag}"]),
        helper.make_node("Identity", [f"go{tag}"], [f"on{tag}"]),
    ]
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        nodes,
        "body",
        [value(f"i{tag}", INT64, []), value(f"go{tag}", BOOL, []), value(f"s{tag}", FLOAT, None)],
        [value(f"on{tag}", BOOL, []), value(f"n{tag}", FLOAT, None)],
    )
    inner = helper.make_node("Loop", [g.store(np.int64(2)), g.store(np.array(True)), x], [f"l{tag}"], body=body)
    if g.chance(0.5):
        other = helper.make_node("Mul", [x, x], [f"e{tag}"])
        graphs: list[onnx.GraphProto] = [
            helper.make_graph([inner], "then", [], [value(f"l{tag}", FLOAT, None)]),
            helper.make_graph([other], "else", [], [value(f"e{tag}", FLOAT, None)]),
        ]
        flag = g.store(np.array(g.chance(0.7)))
        inner = helper.make_node("If", [flag], [g.name()], then_branch=graphs[0], else_branch=graphs[1])
    g.put(inner)
