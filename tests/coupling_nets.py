"""Which small models show that every operator's rule couples the right slices? One net a rule, by name in `CASES`."""

from __future__ import annotations

from collections.abc import Callable

import builders
import numpy as np
from nets import Net
from onnx import ModelProto, TensorProto, helper, numpy_helper

CASES: dict[str, Callable[[], ModelProto]] = {}


def case(build: Callable[[], ModelProto]) -> Callable[[], ModelProto]:
    CASES[build.__name__] = build
    return build


@case
def conv_and_batch_norm() -> ModelProto:
    net = Net()
    x = net.op("Relu", net.batch_norm(net.conv(net.input("N", 3, 8, 8), 3, 12), 12))
    return net.model(net.conv(x, 12, 4))


@case
def conv_in_groups() -> ModelProto:
    net = Net()
    x = net.op("Relu", net.conv(net.input("N", 3, 8, 8), 3, 12))
    x = net.op("Relu", net.conv(x, 12, 18, group=3))
    return net.model(net.conv(x, 18, 4))


@case
def depthwise_with_a_multiplier() -> ModelProto:
    net = Net()
    x = net.op("Relu", net.conv(net.input("N", 3, 8, 8), 3, 6))
    return net.model(net.conv(net.conv(x, 6, 12, group=6), 12, 4))


@case
def conv_transpose() -> ModelProto:
    net = Net()
    x = net.op("Relu", net.conv(net.input("N", 3, 4, 4), 3, 6))
    y = net.op("ConvTranspose", x, net.weight(6, 8, 2, 2), net.weight(8), strides=[2, 2])
    return net.model(net.conv(net.op("Relu", y), 8, 4))


@case
def conv_transpose_depthwise() -> ModelProto:
    net = Net()
    x = net.op("Relu", net.conv(net.input("N", 3, 4, 4), 3, 6))
    y = net.op("ConvTranspose", x, net.weight(6, 1, 2, 2), net.weight(6), strides=[2, 2], group=6)
    return net.model(net.conv(y, 6, 4))


@case
def conv_transpose_in_groups() -> ModelProto:
    net = Net()
    x = net.op("Relu", net.conv(net.input("N", 3, 4, 4), 3, 12))
    y = net.op("ConvTranspose", x, net.weight(12, 4, 2, 2), net.weight(12), strides=[2, 2], group=3)
    return net.model(net.conv(y, 12, 4))


@case
def gemm_either_way_round() -> ModelProto:
    net = Net()
    h = net.op("Relu", net.op("Gemm", net.input("N", 6), net.weight(6, 10), net.weight(10)))
    turned = net.op("Transpose", h, perm=[1, 0])
    return net.model(net.op("Gemm", turned, net.weight(4, 10), transA=1, transB=1))


@case
def matmul_with_a_constant_left() -> ModelProto:
    net = Net()
    tokens = net.op("MatMul", net.weight(10, 6), net.input(1, 6, 5))
    return net.model(net.op("MatMul", net.weight(3, 10), net.op("Relu", tokens)))


@case
def shared_weight() -> ModelProto:
    net = Net()
    w, x = net.weight(10, 10), net.dense(net.input("N", 4), 4, 10)
    for _ in range(2):
        x = net.op("Relu", net.op("MatMul", x, w))
    return net.model(net.dense(x, 10, 3))


@case
def residual_add_and_mul() -> ModelProto:
    net = Net()
    stem = net.op("Relu", net.conv(net.input("N", 3, 8, 8), 3, 8))
    x = net.op("Add", net.conv(net.op("Relu", net.conv(stem, 8, 6)), 6, 8), stem)
    x = net.op("Mul", net.conv(x, 8, 8), x)
    return net.model(net.conv(x, 8, 3))


@case
def squeeze_and_excite() -> ModelProto:
    net = Net()
    x = net.op("HardSwish", net.conv(net.input("N", 3, 8, 8), 3, 8))
    gate = net.op("Relu", net.conv(net.op("GlobalAveragePool", x), 8, 4, 1))
    x = net.op("Mul", x, net.op("HardSigmoid", net.conv(gate, 4, 8, 1)))
    return net.model(net.conv(x, 8, 3))


@case
def broadcast_by_channel() -> ModelProto:
    net = Net()
    x = net.conv(net.input("N", 3, 8, 8), 3, 8)
    x = net.op("Mul", net.op("Sub", x, net.weight(8, 1, 1)), net.weight(1, 8, 1, 1))
    x = net.op("PRelu", net.op("Clip", x, "", net.const(6.0, np.float32)), net.weight(8, 1, 1))
    return net.model(net.conv(net.op("Div", x, net.const(2.0, np.float32)), 8, 3))


@case
def concat_and_split() -> ModelProto:
    net = Net()
    x = net.op("Relu", net.conv(net.input("N", 3, 8, 8), 3, 12))
    a, b = net.op("Split", x, net.const([5, 7]), axis=1, outputs=2)
    joined = net.op("Concat", net.conv(a, 5, 6), net.op("MaxPool", b, kernel_shape=[3, 3], pads=[1] * 4), a, axis=1)
    return net.model(net.conv(joined, 18, 4))


@case
def equal_split_without_sizes() -> ModelProto:
    net = Net(opset=18)
    x = net.op("Relu", net.conv(net.input("N", 3, 8, 8), 3, 12))
    a, b = net.op("Split", x, axis=1, num_outputs=2, outputs=2)
    return net.model(net.conv(net.op("Mul", a, net.op("Sigmoid", b)), 6, 4))


@case
def split_by_attribute() -> ModelProto:
    net = Net(opset=11)
    x = net.op("Relu", net.conv(net.input("N", 3, 8, 8), 3, 12))
    a, b = net.op("Split", x, axis=1, split=[4, 8], outputs=2)
    return net.model(net.conv(a, 4, 4), net.conv(b, 8, 4))


@case
def slices_of_channels() -> ModelProto:
    net = Net()
    x = net.op("Relu", net.conv(net.input("N", 3, 8, 8), 3, 12))
    front = net.op("Slice", x, net.const([0, 0]), net.const([7, 4]), net.const([1, 2]))
    odd = net.op("Slice", x, net.const([-1]), net.const([-(2**62)]), net.const([1]), net.const([-2]))
    return net.model(net.conv(front, 7, 4), net.conv(odd, 6, 4))


@case
def slices_by_narrow_integers() -> ModelProto:
    net = Net()
    x = net.op("Relu", net.conv(net.input("N", 3, 8, 8), 3, 12))
    given = [net.const(value, np.int32) for value in ([0, -1], [7, -(2**31)], [1, 3], [1, -1])]
    return net.model(net.conv(net.op("Slice", x, *given), 7, 4))


@case
def slice_by_attribute() -> ModelProto:
    net = Net(opset=9)
    x = net.op("Relu", net.conv(net.input("N", 3, 8, 8), 3, 12))
    return net.model(net.conv(net.op("Slice", x, axes=[1], starts=[3], ends=[1000]), 9, 4))


@case
def zero_padded_shortcut() -> ModelProto:
    net = Net()
    stem = net.op("Relu", net.conv(net.input("N", 3, 8, 8), 3, 8))
    half = net.op("Slice", stem, net.const([0, 0]), net.const([999, 999]), net.const([2, 3]), net.const([2, 2]))
    wide = net.op("Pad", half, net.const([0, 4, 0, 0, 0, 4, 0, 0]))
    x = net.op("Add", net.conv(net.op("Relu", net.conv(stem, 8, 16, strides=[2, 2])), 16, 16), wide)
    return net.model(net.conv(net.op("Relu", x), 16, 3))


@case
def pad_in_space() -> ModelProto:
    net = Net()
    x = net.conv(net.input("N", 3, 8, 8), 3, 8)
    x = net.op("Pad", x, net.const([0, 0, 1, 1, 0, 0, 1, 1]), mode="reflect")
    return net.model(net.conv(x, 8, 3))


@case
def flatten_before_gemm() -> ModelProto:
    net = Net()
    x = net.op("AveragePool", net.conv(net.input("N", 3, 8, 8), 3, 6), kernel_shape=[4, 4], strides=[4, 4])
    return net.model(net.gemm(net.op("Flatten", x), 24, 5))


@case
def reshape_and_back() -> ModelProto:
    net = Net()
    x = net.conv(net.input("N", 3, 4, 4), 3, 6)
    rows = net.op("Reshape", x, net.const([0, 6, -1]))
    tokens = net.dense(net.op("Transpose", rows, perm=[0, 2, 1]), 6, 8)
    image = net.op("Reshape", net.op("Transpose", tokens, perm=[0, 2, 1]), net.const([-1, 8, 4, 4]))
    return net.model(net.conv(image, 8, 3))


@case
def reshape_to_computed_sizes() -> ModelProto:
    """The target of Reshape is put together from Shape at run time, as exporters write it."""
    net = Net()
    x = net.dense(net.input("N", "S", 4), 4, 12)
    size = net.op("Shape", x)
    parts = [net.op("Gather", size, net.const([i])) for i in (0, 1)]
    heads = net.op("Reshape", x, net.op("Concat", *parts, net.const([3]), net.const([4]), axis=0))
    turned = net.op("Transpose", heads, perm=[0, 2, 1, 3])
    again = net.op("Transpose", net.op("Relu", turned), perm=[0, 2, 1, 3])
    merged = net.op("Reshape", again, net.op("Concat", *parts, net.const([12]), axis=0))
    return net.model(net.dense(merged, 12, 5))


@case
def channel_shuffle() -> ModelProto:
    net = Net()
    x = net.op("Relu", net.conv(net.input("N", 3, 4, 4), 3, 12))
    x = net.conv(x, 12, 12, 1, group=3)
    x = net.op("Transpose", net.op("Reshape", x, net.const([0, 3, 4, 4, 4])), perm=[0, 2, 1, 3, 4])
    x = net.op("Reshape", x, net.const([0, 12, 4, 4]))
    x = net.conv(net.conv(x, 12, 12, group=12), 12, 12, 1, group=3)
    return net.model(net.conv(x, 12, 3))


@case
def squeeze_and_unsqueeze() -> ModelProto:
    net = Net()
    x = net.op("GlobalMaxPool", net.conv(net.input("N", 3, 4, 4), 3, 8))
    x = net.gemm(net.op("Squeeze", x, net.const([2, 3])), 8, 6)
    return net.model(net.conv(net.op("Unsqueeze", x, net.const([-1, -2])), 6, 3, 1))


@case
def gather_of_channels() -> ModelProto:
    net = Net()
    x = net.op("Relu", net.conv(net.input("N", 3, 4, 4), 3, 8))
    mixed = net.op("Gather", x, net.const([7, 1, 0, -2, 1]), axis=1)
    return net.model(net.conv(mixed, 5, 3))


@case
def embedding_width() -> ModelProto:
    net = Net()
    x = net.op("Gather", net.weight(20, 8, scale=1.0), net.input("N", 5, dtype=TensorProto.INT64))
    return net.model(net.dense(net.op("Add", x, net.weight(5, 8)), 8, 3))


@case
def resize_by_scales_and_sizes() -> ModelProto:
    net = Net()
    x = net.op("Relu", net.conv(net.input(1, 3, 4, 4), 3, 8))
    x = net.op("Resize", x, "", net.const([1, 1, 2, 2], np.float32), mode="nearest")
    x = net.op("Resize", net.conv(x, 8, 6), "", "", net.const([1, 6, 5, 5]), mode="linear")
    return net.model(net.conv(x, 6, 3))


@case
def resize_to_computed_sizes() -> ModelProto:
    net = Net()
    x = net.op("Relu", net.conv(net.input("N", 3, 4, 4), 3, 8))
    first = net.op("Slice", net.op("Shape", net.input("N", 2)), net.const([0]), net.const([1]))
    x = net.op("Resize", x, "", "", net.op("Concat", first, net.const([8, 6, 6]), axis=0), mode="nearest")
    return net.model(net.conv(x, 8, 3))


@case
def expand_tile_and_spread() -> ModelProto:
    net = Net()
    x = net.op("GlobalAveragePool", net.conv(net.input(2, 3, 4, 4), 3, 8))
    x = net.op("Expand", x, net.const([2, 8, 4, 4]))
    x = net.op("Tile", net.conv(x, 8, 8), net.const([1, 2, 1, 1]))
    return net.model(net.conv(x, 16, 3))


@case
def depth_and_space() -> ModelProto:
    net = Net()
    x = net.op("Relu", net.conv(net.input("N", 3, 4, 4), 3, 16))
    x = net.op("DepthToSpace", x, blocksize=2, mode="CRD")
    x = net.op("SpaceToDepth", net.conv(x, 4, 6), blocksize=2)
    x = net.op("DepthToSpace", net.conv(x, 24, 16), blocksize=2)
    return net.model(net.conv(x, 4, 3))


@case
def reductions() -> ModelProto:
    net = Net()
    x = net.op("Relu", net.conv(net.input("N", 3, 4, 4), 3, 8))
    mean = net.op("ReduceMean", x, axes=[2, 3], keepdims=0)
    total = net.op("ReduceSum", net.op("Abs", x), net.const([1]), keepdims=1)
    norm = net.op("ReduceL2", x, axes=[1], keepdims=1)
    return net.model(net.gemm(mean, 8, 4), total, norm)


@case
def softmax_of_scores() -> ModelProto:
    net = Net()
    x = net.dense(net.input("N", 5, 4), 4, 8)
    weights = net.op("Softmax", net.dense(x, 8, 1), axis=1)
    return net.model(net.dense(net.op("Mul", x, weights), 8, 3))


@case
def other_normalizations() -> ModelProto:
    net = Net(opset=21)
    x = net.op("InstanceNormalization", net.conv(net.input("N", 3, 4, 4), 3, 12), net.positive(12), net.weight(12))
    x = net.op("GroupNormalization", net.conv(x, 12, 12), net.positive(12), net.weight(12), num_groups=3)
    x = net.op("LpNormalization", net.conv(x, 12, 12), axis=1)
    x = net.op("LRN", net.conv(x, 12, 8), size=3)
    return net.model(net.conv(x, 8, 3))


@case
def statistics_over_space() -> ModelProto:
    net = Net()
    x = net.op("MeanVarianceNormalization", net.conv(net.input("N", 3, 4, 4), 3, 8), axes=[2, 3])
    return net.model(net.conv(x, 8, 3))


@case
def lower_triangle_of_scores() -> ModelProto:
    net = Net(opset=17)
    x = net.dense(net.input("N", 6, 4), 4, 12)
    x = net.op("Transpose", net.op("Reshape", x, net.const([0, 6, 3, 4])), perm=[0, 2, 1, 3])
    scores = net.op("Trilu", net.op("MatMul", x, net.op("Transpose", x, perm=[0, 1, 3, 2])), upper=0)
    merged = net.op("Reshape", net.op("Transpose", scores, perm=[0, 2, 1, 3]), net.const([0, 6, -1]))
    return net.model(net.dense(merged, 18, 3))


@case
def decomposed_group_norm() -> ModelProto:
    net = Net()
    x = net.conv(net.input("N", 3, 4, 4), 3, 12)
    grouped = net.op("Reshape", x, net.const([0, 3, -1]))
    x = net.op("Reshape", net.op("InstanceNormalization", grouped, net.positive(3), net.weight(3)), net.op("Shape", x))
    x = net.op("Add", net.op("Mul", x, net.weight(12, 1, 1)), net.weight(12, 1, 1))
    return net.model(net.conv(x, 12, 3))


@case
def layer_norm_whole_and_in_parts() -> ModelProto:
    net = Net()
    x = net.layer_norm(net.dense(net.input("N", 5, 4), 4, 8), 8)
    centred = net.op("Sub", x, net.op("ReduceMean", x, axes=[-1]))
    square = net.op("ReduceMean", net.op("Pow", centred, net.const(2.0, np.float32)), axes=[-1])
    x = net.op("Div", centred, net.op("Sqrt", net.op("Add", square, net.const(1e-5, np.float32))))
    return net.model(net.dense(net.op("Mul", x, net.positive(8)), 8, 3))


def attention(net: Net, x: str, width: int, heads: int) -> str:
    size = width // heads

    def project(perm: list[int]) -> str:
        shaped = net.op("Reshape", net.dense(x, width, width), net.const([0, 0, heads, size]))
        return str(net.op("Transpose", shaped, perm=perm))

    scores = net.op("MatMul", project([0, 2, 1, 3]), project([0, 2, 3, 1]))
    scores = net.op("Div", scores, net.const(size**0.5, np.float32))
    mixed = net.op("MatMul", net.op("Softmax", scores, axis=-1), project([0, 2, 1, 3]))
    merged = net.op("Reshape", net.op("Transpose", mixed, perm=[0, 2, 1, 3]), net.const([0, 0, width]))
    return str(net.op("Add", net.dense(merged, width, width), x))


@case
def attention_heads() -> ModelProto:
    net = Net()
    x = net.dense(net.input("N", 5, 6), 6, 12)
    x = net.layer_norm(attention(net, x, 12, 3), 12)
    x = net.op("Add", net.dense(net.op("Gelu", net.dense(x, 12, 20)), 20, 12), x) if net.opset >= 20 else x
    return net.model(net.dense(x, 12, 3))


@case
def one_projection_for_query_key_value() -> ModelProto:
    """[N, S, 3 * heads * size] in one MatMul, taken apart by Reshape, Transpose and Gather, as in Swin and ViT."""
    net = Net()
    x = net.dense(net.input("N", 5, 6), 6, 36)
    parts = net.op("Transpose", net.op("Reshape", x, net.const([0, 5, 3, 3, 4])), perm=[2, 0, 3, 1, 4])
    q, k, v = (net.op("Gather", parts, net.const(i), axis=0) for i in range(3))
    scores = net.op("MatMul", q, net.op("Transpose", k, perm=[0, 1, 3, 2]))
    scores = net.op("Add", scores, net.weight(1, 3, 5, 5))
    mixed = net.op("MatMul", net.op("Softmax", scores, axis=-1), v)
    merged = net.op("Reshape", net.op("Transpose", mixed, perm=[0, 2, 1, 3]), net.const([0, 5, -1]))
    return net.model(net.dense(merged, 12, 3))


@case
def grouped_query_attention() -> ModelProto:
    """Two heads of keys, each read by two heads of queries: Unsqueeze, Expand, Reshape repeat them."""
    net = Net()
    x = net.input(2, 5, 8)
    query = net.op("Transpose", net.op("Reshape", net.dense(x, 8, 16), net.const([0, 0, 4, 4])), perm=[0, 2, 1, 3])
    key = net.op("Transpose", net.op("Reshape", net.dense(x, 8, 8), net.const([0, 0, 2, 4])), perm=[0, 2, 1, 3])
    wide = net.op("Expand", net.op("Unsqueeze", key, net.const([2])), net.const([2, 2, 2, 5, 4]))
    key = net.op("Reshape", wide, net.const([2, 4, 5, 4]))
    mixed = net.op("MatMul", query, net.op("Transpose", key, perm=[0, 1, 3, 2]))
    merged = net.op("Reshape", net.op("Transpose", mixed, perm=[0, 2, 1, 3]), net.const([2, 5, -1]))
    return net.model(net.dense(merged, 20, 3))


@case
def einsum_by_letters() -> ModelProto:
    net = Net()
    x = net.op("Einsum", net.input("N", 5, 4), net.weight(4, 8), equation="nsi,ij->njs")
    return net.model(net.op("Einsum", net.op("Relu", x), net.weight(8, 3), equation="njs,jk->nsk"))


def recurrent(op: str, gates: int, directions: int) -> ModelProto:
    net = Net()
    x = net.op("Transpose", net.dense(net.input("N", 5, 4), 4, 6), perm=[1, 0, 2])
    hidden = 8
    weights = (
        net.weight(directions, gates * hidden, 6, scale=0.3),
        net.weight(directions, gates * hidden, hidden, scale=0.3),
        net.weight(directions, 2 * gates * hidden, scale=0.1),
    )
    way = "bidirectional" if directions == 2 else "forward"
    y, last = net.op(op, x, *weights, hidden_size=hidden, direction=way, outputs=2)
    merged = net.op("Reshape", net.op("Transpose", y, perm=[2, 0, 1, 3]), net.const([0, 5, directions * hidden]))
    flat = net.op("Transpose", last, perm=[1, 0, 2])
    return net.model(net.dense(merged, directions * hidden, 3), net.dense(flat, hidden, 2))


@case
def lstm_both_ways() -> ModelProto:
    return recurrent("LSTM", 4, 2)


def from_filled_state(fill: Callable[[Net, str], str]) -> ModelProto:
    """An LSTM whose first state is one value everywhere, as exporters write it; the batch size is computed."""
    net = Net()
    x = net.input(5, "N", 4)
    batch = net.op("Slice", net.op("Shape", x), net.const([1]), net.const([2]))
    state = fill(net, net.op("Concat", net.const([2]), batch, net.const([8]), axis=0))
    state = net.op("Slice", state, net.const([0]), net.const([1]), net.const([0]))
    weights = net.weight(1, 32, 4, scale=0.3), net.weight(1, 32, 8, scale=0.3), net.weight(1, 64, scale=0.1)
    y = net.op("LSTM", x, *weights, "", state, state, hidden_size=8)
    return net.model(net.dense(net.op("Squeeze", y, net.const([1])), 8, 3))


@case
def lstm_from_expanded_state() -> ModelProto:
    return from_filled_state(lambda net, size: net.op("Expand", net.const(0.5, np.float32), size))


@case
def lstm_from_constant_state() -> ModelProto:
    return from_filled_state(
        lambda net, size: net.op("ConstantOfShape", size, value=numpy_helper.from_array(np.float32([0.5])))
    )


@case
def gru() -> ModelProto:
    return recurrent("GRU", 3, 1)


@case
def rnn() -> ModelProto:
    return recurrent("RNN", 1, 1)


@case
def quantized_weights_and_activations() -> ModelProto:
    net = Net()
    x = net.op("Relu", net.conv(net.input("N", 3, 4, 4), 3, 8))
    scale, point = net.const(0.05, np.float32), net.const(128, np.uint8)
    x = net.op("DequantizeLinear", net.op("QuantizeLinear", x, scale, point), scale, point)
    values = net.const(net.generator.integers(-127, 128, (6, 8, 3, 3)), np.int8)
    w = net.op("DequantizeLinear", values, net.positive(6), net.const(np.zeros(6), np.int8), axis=0)
    return net.model(net.conv(net.op("Conv", x, w, pads=[1] * 4), 6, 3))


@case
def subgraph_capture() -> ModelProto:
    net = Net()
    x = net.op("Relu", net.gemm(net.input("N", 4), 4, 8))
    captured = net.op("Relu", net.gemm(x, 8, 6))
    branches = []
    for op in ("Abs", "Neg"):
        body = [helper.make_node(op, [captured], [f"b{op}"])]
        branches.append(helper.make_graph(body, op, [], [builders.value(f"b{op}", builders.FLOAT, None)]))
    picked = net.op("If", net.const(True, np.bool_), then_branch=branches[0], else_branch=branches[1])
    return net.model(net.gemm(picked, 6, 3))
