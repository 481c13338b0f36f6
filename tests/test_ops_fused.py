"""Do operators that hold several others count, shrink and keep zeros as the same model written out does?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import builders
import numpy as np
import onnx
import onnxruntime
import pytest
from coupling_checks import check_cuts, graph_of, sample_of
from nets import Net
from onnx import ModelProto

import onnxcomp
from onnxcomp.graph import cost
from onnxcomp.graph.coupling.analysis import analyse
from onnxcomp.graph.coupling.costing import Costing
from onnxcomp.graph.coupling.zeros import free_units
from onnxcomp.graph.io import to_bytes
from onnxcomp.graph.shapes import infer
from onnxcomp.manager.base import PassContext
from onnxcomp.manager.pipeline import PassManager, Pipeline
from onnxcomp.ops.facts import load_operators

ROOT = Path(__file__).resolve().parent.parent
MICROSOFT = "com.microsoft"
OPERATORS = load_operators()
Build = Callable[[Net, bool], list[str]]
PAIRS: dict[str, tuple[Build, int]] = {}


def pair(opset: int = 17) -> Callable[[Build], Build]:
    """A net written with the operator, or without it; both give the same."""

    def keep(build: Build) -> Build:
        PAIRS[build.__name__] = build, opset
        return build

    return keep


def made(name: str, fused: bool) -> ModelProto:
    build, opset = PAIRS[name]
    net = Net(opset=opset)
    outputs = build(net, fused)
    return net.model(*outputs, domains={MICROSOFT: 1} if fused else {})


def split_heads(net: Net, x: str, heads: int, size: int, *, turned: bool = False) -> str:
    shaped = net.op("Reshape", x, net.const([0, 0, heads, size]))
    return str(net.op("Transpose", shaped, perm=[0, 2, 3, 1] if turned else [0, 2, 1, 3]))


def joined_heads(net: Net, x: str) -> str:
    return str(net.op("Reshape", net.op("Transpose", x, perm=[0, 2, 1, 3]), net.const([0, 0, -1])))


def attend(net: Net, query: str, key: str, value: str, heads: int, size: int) -> str:
    """Attention written out, from [batch, rows, heads * size] each."""
    scores = net.op("MatMul", split_heads(net, query, heads, size), split_heads(net, key, heads, size, turned=True))
    weights = net.op("Softmax", net.op("Mul", scores, net.const(size**-0.5, np.float32)), axis=-1)
    return joined_heads(net, net.op("MatMul", weights, split_heads(net, value, heads, size)))


def projections(net: Net, x: str, width: int, *outs: int) -> list[str]:
    return [net.dense(x, width, out) for out in outs]


@pair(23)
def attention_folded(net: Net, fused: bool) -> list[str]:
    query, key, value = projections(net, net.input("N", 6, 12), 12, 16, 16, 16)
    if fused:
        mixed = net.op("Attention", query, key, value, q_num_heads=4, kv_num_heads=4)
    else:
        mixed = attend(net, query, key, value, 4, 4)
    return [net.dense(mixed, 16, 5)]


@pair(23)
def attention_by_heads(net: Net, fused: bool) -> list[str]:
    parts = projections(net, net.input("N", 6, 12), 12, 16, 16, 16)
    if not fused:
        return [net.dense(attend(net, *parts, 4, 4), 16, 5)]
    mixed = net.op("Attention", *(split_heads(net, part, 4, 4) for part in parts))
    return [net.dense(joined_heads(net, mixed), 16, 5)]


@pair(23)
def attention_of_shared_keys(net: Net, fused: bool) -> list[str]:
    """Each head of keys serves two of queries."""
    query, key, value = projections(net, net.input(2, 6, 12), 12, 24, 12, 12)
    if fused:
        return [net.dense(net.op("Attention", query, key, value, q_num_heads=6, kv_num_heads=3), 24, 5)]
    wide = []
    for part in (key, value):
        shaped = net.op("Unsqueeze", split_heads(net, part, 3, 4), net.const([2]))
        spread = net.op("Expand", shaped, net.const([2, 3, 2, 6, 4]))
        wide.append(net.op("Reshape", spread, net.const([2, 6, 6, 4])))
    scores = net.op("MatMul", split_heads(net, query, 6, 4), net.op("Transpose", wide[0], perm=[0, 1, 3, 2]))
    weights = net.op("Softmax", net.op("Mul", scores, net.const(0.5, np.float32)), axis=-1)
    return [net.dense(joined_heads(net, net.op("MatMul", weights, wide[1])), 24, 5)]


@pair()
def attention_of_the_runtime(net: Net, fused: bool) -> list[str]:
    """One weight for queries, keys and values."""
    x = net.input("N", 6, 12)
    hidden = net.dense(x, 12, 12)
    parts = [(net.weight(12, 16, scale=0.3), net.weight(16, scale=0.1)) for _ in range(3)]
    if fused:
        weight = net.const(np.concatenate([net.weights[w] for w, _ in parts], axis=1), np.float32)
        bias = net.const(np.concatenate([net.weights[b] for _, b in parts]), np.float32)
        for name in [name for part in parts for name in part]:
            del net.weights[name]
        mixed = net.op("Attention", hidden, weight, bias, num_heads=4, domain=MICROSOFT)
    else:
        mixed = attend(net, *(net.op("Add", net.op("MatMul", hidden, w), b) for w, b in parts), 4, 4)
    return [net.dense(mixed, 16, 5)]


@pair()
def multi_head_attention(net: Net, fused: bool) -> list[str]:
    query, key, value = projections(net, net.input("N", 6, 12), 12, 16, 16, 16)
    if fused:
        mixed = net.op("MultiHeadAttention", query, key, value, num_heads=4, domain=MICROSOFT)
    else:
        mixed = attend(net, query, key, value, 4, 4)
    return [net.dense(mixed, 16, 5)]


def turned(net: Net, x: str, cosines: str, sines: str) -> str:
    """Rotary embedding written out, of 4 heads of 4: the halves of each head turned by the angle of the row."""
    heads = split_heads(net, x, 4, 4)
    first, second = (
        net.op("Slice", heads, net.const([start]), net.const([start + 2]), net.const([3])) for start in (0, 2)
    )
    left = net.op("Sub", net.op("Mul", first, cosines), net.op("Mul", second, sines))
    right = net.op("Add", net.op("Mul", second, cosines), net.op("Mul", first, sines))
    return joined_heads(net, net.op("Concat", left, right, axis=3))


def rotary(net: Net, fused: bool, domain: str) -> list[str]:
    angles = np.arange(6, dtype=np.float32)[:, None] * np.float32([1.0, 0.1])
    x = net.dense(net.input(2, 6, 12), 12, 16)
    tables = [net.const(np.cos(angles), np.float32), net.const(np.sin(angles), np.float32)]
    if not fused:
        return [net.dense(turned(net, x, *tables), 16, 5)]
    places = net.const(np.arange(6)[None].repeat(2, 0))
    inputs = (x, places, *tables) if domain else (x, *tables, places)
    return [net.dense(net.op("RotaryEmbedding", *inputs, num_heads=4, domain=domain), 16, 5)]


@pair(23)
def rotary_embedding(net: Net, fused: bool) -> list[str]:
    return rotary(net, fused, "")


@pair()
def rotary_embedding_of_the_runtime(net: Net, fused: bool) -> list[str]:
    return rotary(net, fused, MICROSOFT)


@pair()
def fused_matmul(net: Net, fused: bool) -> list[str]:
    """Scores of attention: the right side turned, the product scaled."""
    query, key, value = projections(net, net.input("N", 6, 12), 12, 16, 16, 16)
    if not fused:
        return [net.dense(attend(net, query, key, value, 4, 4), 16, 5)]
    query, key, value = (split_heads(net, part, 4, 4) for part in (query, key, value))
    scores = net.op("FusedMatMul", query, key, alpha=0.5, transB=1, domain=MICROSOFT)
    return [net.dense(joined_heads(net, net.op("MatMul", net.op("Softmax", scores, axis=-1), value)), 16, 5)]


@pair()
def fused_gemm(net: Net, fused: bool) -> list[str]:
    x, w, b = net.input("N", 6), net.weight(12, 6), net.weight(12)
    if fused:
        hidden = net.op("FusedGemm", x, w, b, transB=1, activation="Relu", domain=MICROSOFT)
    else:
        hidden = net.op("Relu", net.op("Gemm", x, w, b, transB=1))
    return [net.gemm(hidden, 12, 4)]


@pair()
def fused_conv(net: Net, fused: bool) -> list[str]:
    """Convolution, summand and activation in one."""
    x = net.op("Relu", net.conv(net.input("N", 3, 8, 8), 3, 10))
    w, b = net.weight(10, 10, 3, 3), net.weight(10)
    shared = {"pads": [1] * 4, "kernel_shape": [3, 3]}
    if fused:
        y = net.op("FusedConv", x, w, b, x, activation="Relu", domain=MICROSOFT, **shared)
    else:
        y = net.op("Relu", net.op("Add", net.op("Conv", x, w, b, **shared), x))
    return [net.conv(y, 10, 4)]


@pair()
def skip_layer_normalization(net: Net, fused: bool) -> list[str]:
    """The sum is read as well as its normalization."""
    x = net.dense(net.input("N", 6, 12), 12, 16)
    other = net.dense(net.op("Relu", net.dense(x, 16, 24)), 24, 16)
    scale, shift = net.positive(16), net.weight(16)
    if fused:
        y, _, _, total = net.op("SkipLayerNormalization", other, x, scale, shift, outputs=4, domain=MICROSOFT)
    else:
        total = net.op("Add", other, x)
        y = net.op("LayerNormalization", total, scale, shift, epsilon=1e-12)
    return [net.dense(net.op("Add", net.dense(y, 16, 16), total), 16, 5)]


@pair(23)
def simplified_layer_normalization(net: Net, fused: bool) -> list[str]:
    x = net.dense(net.input("N", 6, 12), 12, 16)
    op = "SimplifiedLayerNormalization" if fused else "RMSNormalization"
    return [net.dense(net.op(op, x, net.positive(16), axis=-1, epsilon=1e-5), 16, 5)]


@pair(23)
def skip_simplified_layer_normalization(net: Net, fused: bool) -> list[str]:
    x = net.dense(net.input("N", 6, 12), 12, 16)
    other, scale = net.dense(net.op("Relu", net.dense(x, 16, 24)), 24, 16), net.positive(16)
    if fused:
        y = net.op("SkipSimplifiedLayerNormalization", other, x, scale, epsilon=1e-5, domain=MICROSOFT)
    else:
        y = net.op("RMSNormalization", net.op("Add", other, x), scale, axis=-1, epsilon=1e-5)
    return [net.dense(y, 16, 5)]


@pair()
def embed_layer_normalization(net: Net, fused: bool) -> list[str]:
    ids = net.input("N", 6, dtype=6)
    words, places = net.weight(50, 16), net.weight(6, 16)
    scale, shift = net.positive(16), net.weight(16)
    if fused:
        inputs = (ids, "", words, places, "", scale, shift)
        y, _ = net.op("EmbedLayerNormalization", *inputs, outputs=2, domain=MICROSOFT, epsilon=1e-12)
    else:
        order = net.const(np.arange(6)[None])
        total = net.op("Add", net.op("Gather", words, ids), net.op("Gather", places, order))
        y = net.op("LayerNormalization", total, scale, shift, epsilon=1e-12)
    return [net.dense(y, 16, 5)]


@pair()
def bias_gelu(net: Net, fused: bool) -> list[str]:
    x, bias = net.input("N", 6, 12), net.weight(16)
    product = net.op("MatMul", x, net.weight(12, 16))
    if fused:
        y = net.op("BiasGelu", product, bias, domain=MICROSOFT)
    else:
        total = net.op("Add", product, bias)
        scaled = net.op("Erf", net.op("Div", total, net.const(2**0.5, np.float32)))
        one = net.op("Add", scaled, net.const(1, np.float32))
        y = net.op("Mul", net.op("Mul", total, one), net.const(0.5, np.float32))
    return [net.dense(y, 16, 5)]


@pair()
def quick_gelu(net: Net, fused: bool) -> list[str]:
    x = net.dense(net.input("N", 6, 12), 12, 16)
    if fused:
        y = net.op("QuickGelu", x, alpha=1.702, domain=MICROSOFT)
    else:
        y = net.op("Mul", x, net.op("Sigmoid", net.op("Mul", x, net.const(1.702, np.float32))))
    return [net.dense(y, 16, 5)]


@pair()
def einsum_products(net: Net, fused: bool) -> list[str]:
    x, first, second = net.input("N", 6, 12), net.weight(12, 16), net.weight(16, 5)
    if fused:
        hidden = net.op("Relu", net.op("Einsum", x, first, equation="bsd,df->bsf"))
        return [net.op("Einsum", hidden, second, equation="bsf,fo->bso")]
    return [net.op("MatMul", net.op("Relu", net.op("MatMul", x, first)), second)]


def figures(model: ModelProto) -> tuple[int, int, int, list[tuple[str, int]]]:
    """Parameters, MACs, MACs that some group touches, and the groups."""
    graph, sample = graph_of(model), sample_of(model)
    stats = cost.stats(graph, OPERATORS, file_bytes=0, sample=sample)
    coupling = analyse(graph, OPERATORS, sample)
    assert not coupling.without_rule
    touched = Costing(coupling, OPERATORS).touched_macs(coupling.groups)
    return stats.parameters, stats.macs, touched, sorted((group.kind, group.size) for group in coupling.groups)


@pytest.mark.parametrize("name", PAIRS)
def test_it_counts_and_shrinks_as_the_model_written_out(name: str) -> None:
    fused, plain = made(name, True), made(name, False)
    feeds = builders.feeds_of(fused)
    for one, other in zip(builders.run(fused, feeds), builders.run(plain, feeds), strict=True):
        assert builders.sqnr_db(other, one) > 60  # the two are one model
    (parameters, *found), (expected_parameters, *expected) = figures(fused), figures(plain)
    assert found == expected
    assert 0 <= expected_parameters - parameters <= 3  # scalars that became attributes


@pytest.mark.parametrize("name", PAIRS)
def test_units_that_are_zero_are_seen_as_in_the_model_written_out(name: str) -> None:
    """Weights that make a third of each group's units are zero."""
    free = []
    for fused in (True, False):
        coupling = analyse(graph_of(made(name, fused)), OPERATORS, sample_of(made(name, fused)))
        for group in coupling.groups:
            picked = group.units[::3]
            for slot in group.slots:
                makes = any(
                    weight.out_axis % len(constant.shape) == slot.axis
                    for node in slot.constant.consumers
                    for weight, constant in OPERATORS.weights(node)
                    if constant is slot.constant
                )
                if makes or len(slot.constant.shape) == 1:
                    values = np.array(slot.constant.values)
                    gone = slot.indices[np.isin(group.units, picked)].reshape(-1)
                    values[(slice(None),) * slot.axis + (gone,)] = 0
                    slot.constant.values = values
        free.append(len(free_units(coupling, OPERATORS)))
    assert free[0] == free[1]


@pytest.mark.parametrize("name", ["bert", "vit"])
def test_a_model_that_the_runtime_optimized_counts_and_shrinks_like_its_source(name: str, tmp_path: Path) -> None:
    source = ROOT / "models" / "architectures" / f"{name}.onnx"
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
    (parameters, *found), (own, *expected) = (
        figures(onnx.load(path)) for path in (Path(options.optimized_model_filepath), source)
    )
    assert found == expected
    assert 0 <= own - parameters <= 2


@pytest.mark.parametrize("name", PAIRS)
def test_it_can_be_cut(name: str) -> None:
    check_cuts(made(name, True))


@pytest.mark.parametrize("name", PAIRS)
def test_shapes_and_types_are_those_that_the_runtime_gives(name: str) -> None:
    model = made(name, True)
    feeds = builders.feeds_of(model)
    graph = graph_of(model)
    shapes = infer(graph, {key: value.shape for key, value in feeds.items()})
    free = infer(graph)
    inner = [t for node in graph.nodes for t in node.outputs if t.name and t not in graph.outputs]
    graph.outputs = [*graph.outputs, *inner]
    for tensor, value in zip(graph.outputs, builders.run(to_bytes(graph), feeds), strict=True):
        if tensor.name.endswith((".1", ".2")):
            continue  # statistics, which the CPU does not write
        assert shapes.static(tensor) == value.shape, tensor.name
        assert shapes.dtype(tensor) == value.dtype, tensor.name
        assert free.rank(tensor) == value.ndim, tensor.name


def test_a_fused_activation_that_lifts_zero_keeps_its_units() -> None:
    """sigmoid(0) is no zero: what a Sigmoid in the product makes of a unit without weights is needed."""
    free = []
    for activation in ("Relu", "Sigmoid"):
        net = Net()
        weights = net.weight(12, 6), net.weight(12)
        for name in weights:
            net.weights[name][:4] = 0
        inputs = (net.input("N", 6), *weights)
        hidden = net.op("FusedGemm", *inputs, transB=1, activation=activation, domain=MICROSOFT)
        model = net.model(net.gemm(hidden, 12, 4), domains={MICROSOFT: 1})
        free.append(len(free_units(analyse(graph_of(model), OPERATORS, sample_of(model)), OPERATORS)))
    assert free == [4, 0]


@pytest.mark.parametrize("name", PAIRS)
def test_half_precision_takes_the_whole_node(name: str) -> None:
    model = made(name, True)
    feeds = builders.feeds_of(model)
    context = PassContext(sample_shapes={key: value.shape for key, value in feeds.items()})
    result = PassManager(Pipeline.parse("convert-float16"), verify=False).run(graph_of(model), context)
    assert not [skip for skip in result.records[0].skips if "describe" in skip.why or "no half" in skip.why]
    for one, other in zip(builders.run(model, feeds), builders.run(to_bytes(result.graph), feeds), strict=True):
        assert builders.sqnr_db(one, other) > 50


@pytest.mark.parametrize("spec", ["store-weights", "mixed-precision"])
def test_weights_that_need_a_known_shape_are_tried_in_other_values(spec: str) -> None:
    """ONNX Runtime wants the sizes of a table of EmbedLayerNormalization, whose second output is int32."""
    net = Net(seed=4)
    tables = net.weight(500, 32), net.weight(6, 32)
    inputs = (net.input("N", 6, dtype=6), "", *tables, "", net.positive(32), net.weight(32))
    x, _ = net.op("EmbedLayerNormalization", *inputs, outputs=2, domain=MICROSOFT, epsilon=1e-12)
    x = net.op("Relu", net.dense(net.op("Relu", net.dense(x, 32, 64)), 64, 64))
    model = net.model(net.dense(x, 64, 5), domains={MICROSOFT: 1})
    ids = builders.rng(3).integers(0, 500, (64, 6)).astype(np.int32)
    result = onnxcomp.optimize(model, data={model.graph.input[0].name: ids}, passes=spec, bench=False)
    assert result.exit_code == 0
    assert result.after.bytes < 0.6 * result.before.bytes
