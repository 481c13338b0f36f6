"""Does the one view of a layer say what ONNX Runtime computes, however the operator spells it?"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import builders as b
import numpy as np
import pytest
from onnx import NodeProto, helper

from onnxcomp.graph.codec import decode, encode
from onnxcomp.graph.ir import MICROSOFT_DOMAIN, Graph
from onnxcomp.graph.shapes import infer
from onnxcomp.layers.affine import Affine, fitted, rewrite, scaled_inputs, scaled_outputs
from onnxcomp.layers.layer import Layer, UnfitError, add_biases, drop_zero_biases, kernels, layer_of, residual_of
from onnxcomp.ops.facts import load_operators

OPERATORS = load_operators()


@dataclass(frozen=True)
class Spelling:
    """One node with a weight, and what may stand behind it."""

    op: str
    x: tuple[int, ...]
    w: tuple[int, ...]
    bias: tuple[int, ...] | None = None
    attrs: dict[str, Any] = field(default_factory=dict)
    behind: tuple[int, ...] | None = None
    left: bool = False
    domain: str = ""

    def model(self, tail: NodeProto | None = None) -> Any:
        g = b.rng(3)
        weights = {"w": b.normal(g, *self.w)}
        inputs = ["w", "x"] if self.left else ["x", "w"]
        if self.bias is not None:
            weights["b"] = b.normal(g, *self.bias)
            inputs.append("b")
        out = "h" if self.behind or tail else "y"
        nodes = [helper.make_node(self.op, inputs, [out], "layer", domain=self.domain, **self.attrs)]
        if self.behind:
            weights["c"] = b.normal(g, *self.behind)
            nodes.append(helper.make_node("Add", ["c", "h"], ["y"], "add"))
        nodes += [tail] if tail else []
        ends = [b.value("x", b.FLOAT, self.x)], [b.value("y", b.FLOAT, None)]
        return b.model(nodes, *ends, weights, check=False, domains={"com.microsoft": 1} if self.domain else None)


MS = {"domain": MICROSOFT_DOMAIN}
SPELLINGS = [
    Spelling("Conv", (2, 4, 7, 6), (6, 2, 3, 3), (6,), {"group": 2, "pads": [1, 1, 1, 1]}),
    Spelling("Conv", (1, 3, 9), (5, 3, 3)),
    Spelling("ConvTranspose", (1, 3, 5, 4), (3, 2, 3, 3), (2,), {"strides": [2, 2]}),
    Spelling("Gemm", (4, 5), (5, 3), (3,), {"alpha": 0.5, "beta": 2.0}),
    Spelling("Gemm", (5, 4), (3, 5), (1, 3), {"transA": 1, "transB": 1, "alpha": -1.5}),
    Spelling("MatMul", (2, 4, 5), (5, 3), behind=(3,)),
    Spelling("MatMul", (2, 4, 5), (1, 5, 3), behind=(1, 1, 3)),
    Spelling("MatMul", (2, 5, 4), (3, 5), left=True),
    Spelling("FusedMatMul", (2, 4, 5), (3, 5), attrs={"transB": 1, "alpha": 0.25}, behind=(3,), **MS),
    Spelling("FusedMatMul", (2, 5, 4), (5, 3), attrs={"transA": 1, "alpha": 2.0}, **MS),
    Spelling("FusedConv", (1, 3, 6, 6), (4, 3, 3, 3), (4,), **MS),
]


def layer_in(graph: Graph) -> Layer:
    (use,) = kernels(graph, OPERATORS)
    return layer_of(graph, use)


def name_of(spelling: Spelling) -> str:
    return f"{spelling.op}-{'x'.join(map(str, spelling.w))}-{len(spelling.attrs)}"


@pytest.mark.parametrize("spelling", SPELLINGS, ids=name_of)
def test_rows_times_weights_and_bias_are_what_the_node_gives(spelling: Spelling) -> None:
    proto = spelling.model()
    graph = decode(proto)
    layer = layer_in(graph)
    x = b.normal(b.rng(1), *spelling.x)
    y = b.run(proto, {"x": x})[0]
    assert layer.rows is not None and layer.output is graph.outputs[0]
    patches, wanted = layer.rows.patches(x), layer.rows.outputs(y)
    rows = patches.take(np.arange(patches.count)).astype(np.float64)
    found = rows @ layer.weights().transpose(0, 2, 1)
    if (bias := layer.bias_values()) is not None:
        found = found + bias[:, None, :]
    assert (layer.bias is None) == (spelling.bias is None and spelling.behind is None)
    assert np.allclose(found, wanted.take(np.arange(wanted.count)), atol=1e-4)


@pytest.mark.parametrize("spelling", SPELLINGS, ids=name_of)
def test_what_is_written_is_what_acts(spelling: Spelling) -> None:
    graph = decode(spelling.model())
    layer = layer_in(graph)
    w = b.normal(b.rng(5), *layer.weights().shape)
    bias = None if layer.bias is None else b.normal(b.rng(6), *layer.bias_values().shape)
    layer.write(graph, w, bias)
    again = layer_in(graph)
    assert np.allclose(again.weights(), w, atol=1e-6)
    assert bias is None or np.allclose(again.bias_values(), bias, atol=1e-6)


@pytest.mark.parametrize("spelling", SPELLINGS, ids=name_of)
def test_a_scale_and_shift_behind_is_the_weights(spelling: Spelling) -> None:
    proto = spelling.model()
    graph = decode(proto)
    layer = layer_in(graph)
    scale = b.rng(2).uniform(0.5, 2.0, layer.outputs)
    rewrite(graph, layer, fitted(layer, scaled_outputs(layer, scale), None)[0], None)
    x = b.normal(b.rng(1), *spelling.x)
    before, after = b.run(proto, {"x": x})[0], b.run(encode(graph), {"x": x})[0]
    axis = layer.weight.result_axis % before.ndim
    shape = [-1 if a == axis else 1 for a in range(before.ndim)]
    added = np.zeros(1) if layer.bias is None else layer.bias.values().reshape(shape)
    assert np.allclose(after - added, (before - added) * scale.reshape(shape), atol=1e-4)


@pytest.mark.parametrize("spelling", [s for s in SPELLINGS if s.op != "ConvTranspose"], ids=name_of)
def test_a_scale_and_shift_in_front_is_the_weights(spelling: Spelling) -> None:
    attrs = {key: value for key, value in spelling.attrs.items() if key != "pads"}
    bare = Spelling(**{**vars(spelling), "attrs": attrs})
    proto = bare.model()
    graph = decode(proto)
    layer = layer_in(graph)
    affine = Affine(b.rng(2).uniform(0.5, 2.0, layer.inputs), b.rng(3).normal(size=layer.inputs))
    x = b.normal(b.rng(1), *bare.x)
    axis = layer.weight.data_axis % x.ndim
    shape = [-1 if a == axis else 1 for a in range(x.ndim)]
    shifted = (x * affine.scale.reshape(shape) + affine.shift.reshape(shape)).astype(np.float32)
    weight, added = scaled_inputs(layer, affine)
    rewrite(graph, layer, fitted(layer, weight, None)[0], None)
    wanted, found = b.run(proto, {"x": shifted})[0], b.run(encode(graph), {"x": x})[0]
    out = [-1 if a == layer.weight.result_axis % wanted.ndim else 1 for a in range(wanted.ndim)]
    assert np.allclose(found + layer.weight.alpha * added.reshape(out), wanted, atol=1e-3)


def test_an_activation_inside_a_node_is_no_layer() -> None:
    relu = Spelling("FusedConv", (1, 3, 6, 6), (4, 3, 3, 3), (4,), {"activation": "Relu"}, domain=MICROSOFT_DOMAIN)
    with pytest.raises(UnfitError, match="more than multiply"):
        layer_in(decode(relu.model()))


def test_a_bias_that_is_read_elsewhere_or_widens_is_not_the_layers() -> None:
    wide = decode(Spelling("MatMul", (2, 4, 5), (5, 3), behind=(4, 3)).model())
    layer = layer_in(wide)
    assert layer.bias is None and layer.output.name == "h"
    graph = decode(Spelling("MatMul", (2, 4, 5), (5, 3), behind=(3,)).model())
    graph.outputs.append(graph.tensors()["h"])  # what the product gives alone is wanted, too
    assert layer_in(graph).bias is None


def test_a_shared_bias_is_copied_before_it_is_written() -> None:
    graph = decode(b.residual_cnn(batch_norm=False))
    first, second, *_ = (layer_of(graph, use) for use in kernels(graph, OPERATORS) if use.weight.bias is not None)
    assert first.bias is not None
    second.node.set_input(2, first.bias.constant)
    kept = second.node.constant(2)
    assert kept is not None
    before = kept.values.copy()
    first.bias.write(graph, np.ones(first.outputs))
    assert np.array_equal(second.node.constant(2).values, before) and np.all(first.bias.values() == 1)


def test_a_shortcut_of_another_shape_is_no_residual() -> None:
    tail = helper.make_node("Add", ["x", "h"], ["y"], "sum")
    for width, found in ((5, True), (1, False)):
        graph = decode(Spelling("MatMul", (2, 4, width), (width, 5)).model(tail))
        layer = layer_in(graph)
        residual = residual_of(graph, layer.output, infer(graph))
        assert (residual is not None) == found
        if residual is not None:
            assert residual.other is graph.inputs[0] and residual.add.inputs[residual.port] is residual.other


def test_biases_that_stay_zero_leave_again() -> None:
    graph = decode(Spelling("ConvTranspose", (1, 4, 5, 4), (4, 3, 3, 3), None, {"group": 2}).model())
    before = encode(graph).SerializeToString()
    added = add_biases(graph, OPERATORS)
    assert [bias.constant.shape for bias in added] == [(6,)]  # of both groups
    drop_zero_biases(added)
    assert encode(graph).SerializeToString() == before
