"""Do training forms compute what the operator computes, whatever its attributes are?"""

from __future__ import annotations

from typing import Any

import builders
import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from nets import Net
from onnx import ModelProto, TensorProto
from training_cases import write_back

from onnxcomp.distill.trainable import Prepared, prepare
from onnxcomp.errors import ModelError
from onnxcomp.graph.codec import decode, encode
from onnxcomp.graph.ir import Node
from onnxcomp.graph.rewriting import CannotRewriteError, Site, rewrite
from onnxcomp.graph.shapes import infer
from onnxcomp.ops.facts import Operators, OpFacts, load_operators
from onnxcomp.ops.tables import RECORDS

OPERATORS = load_operators()
small = st.integers(1, 3)


def check(proto: ModelProto, *, tolerance: float = 1e-4, gone: str = "", **options: Any) -> Prepared:
    """The training form gives the outputs of the original; `gone` stands in it no more."""
    feeds = builders.feeds_of(proto)
    try:
        before = builders.run(proto, feeds)
    except Exception:  # attributes that ONNX Runtime does not take prove nothing
        assume(False)
    ready = prepare(decode(proto), OPERATORS, batch=2, **options)
    assert not ready.refused
    assert gone not in ready.graph.operators()
    for a, b in zip(before, builders.run(encode(ready.graph), feeds), strict=True):
        np.testing.assert_allclose(b, a, rtol=tolerance, atol=tolerance)
    return ready


def conv_first(net: Net, *size: int, channels: int = 4) -> str:
    return str(net.op("Conv", net.input("N", 3, *size), net.weight(channels, 3, *[1] * len(size))))


@given(st.data())
def test_conv_transpose_is_a_conv(data: st.DataObject) -> None:
    spatial = data.draw(st.integers(1, 2))
    axes = lambda of: [data.draw(of) for _ in range(spatial)]  # noqa: E731
    group = data.draw(st.sampled_from([1, 2, 4]))
    kernel, strides, dilations = axes(small), axes(small), axes(st.integers(1, 2))
    attrs: dict[str, Any] = {"strides": strides, "dilations": dilations, "group": group}
    form = data.draw(st.sampled_from(["pads", "SAME_UPPER", "SAME_LOWER", "VALID", "output_shape"]))
    if form == "pads":
        attrs["pads"] = axes(st.integers(0, 2)) + axes(st.integers(0, 2))
        attrs["output_padding"] = [data.draw(st.integers(0, max(0, s - 1))) for s in strides]
    elif form == "output_shape":
        attrs["output_shape"] = [4 * s + data.draw(st.integers(0, s - 1)) for s in strides]
    else:
        attrs["auto_pad"] = form
    net = Net()
    h = conv_first(net, *axes(st.integers(2, 5)))
    bias = [net.weight(2 * group)] if data.draw(st.booleans()) else []
    y = net.op("ConvTranspose", h, net.weight(4, 2, *kernel), *bias, **attrs)
    check(net.model(y), gone="ConvTranspose")


@given(st.data())
def test_padding_of_a_conv_is_written_out(data: st.DataObject) -> None:
    net = Net()
    h = conv_first(net, data.draw(st.integers(3, 8)), data.draw(st.integers(3, 8)))
    kernel = (data.draw(small), data.draw(small))
    attrs = {"strides": [data.draw(small), data.draw(small)]}
    if data.draw(st.booleans()):
        attrs["dilations"] = [data.draw(small), data.draw(small)]
    mode = data.draw(st.sampled_from(["SAME_UPPER", "SAME_LOWER", "VALID"]))
    ready = check(net.model(net.op("Conv", h, net.weight(2, 4, *kernel), auto_pad=mode, **attrs)))
    assert all("auto_pad" not in node.attrs for node in ready.graph.nodes)


@given(st.data())
def test_averages_of_dilated_and_three_dimensional_windows(data: st.DataObject) -> None:
    spatial = data.draw(st.integers(2, 3))
    axes = lambda of: [data.draw(of) for _ in range(spatial)]  # noqa: E731
    kernel = axes(st.integers(2, 3))
    attrs: dict[str, Any] = {
        "kernel_shape": kernel,
        "strides": axes(st.integers(1, 2)),
        "pads": [data.draw(st.integers(0, k - 1)) for k in kernel * 2],
        "ceil_mode": data.draw(st.integers(0, 1)),
        "count_include_pad": data.draw(st.integers(0, 1)),
        "dilations": axes(st.integers(1, 2)),
    }
    net = Net(opset=19)
    check(net.model(net.op("AveragePool", conv_first(net, *axes(st.integers(5, 7))), **attrs)))


@given(st.data())
def test_resize_is_one_matrix_an_axis(data: st.DataObject) -> None:
    mode = data.draw(st.sampled_from(["nearest", "linear", "cubic"]))
    attrs: dict[str, Any] = {
        "mode": mode,
        "coordinate_transformation_mode": data.draw(
            st.sampled_from(["half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"])
        ),
    }
    if mode == "nearest":
        attrs["nearest_mode"] = data.draw(st.sampled_from(["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"]))
    if mode == "cubic":
        attrs["cubic_coeff_a"] = data.draw(st.sampled_from([-0.75, -0.5]))
        attrs["exclude_outside"] = data.draw(st.integers(0, 1))
    net = Net(opset=data.draw(st.sampled_from([11, 13, 18, 19])))
    h = conv_first(net, data.draw(st.integers(2, 6)), data.draw(st.integers(2, 6)))
    if data.draw(st.booleans()):
        scales = [data.draw(st.sampled_from([0.5, 1.0, 1.3, 2.0, 3.0])) for _ in range(2)]
        y = net.op("Resize", h, "", net.const((1, 1, *scales), np.float32), **attrs)
    else:
        y = net.op("Resize", h, "", "", net.const([2, 4, data.draw(st.integers(1, 9)), 5]), **attrs)
    check(net.model(y), gone="Resize")


@given(st.data())
def test_padding_that_is_not_constant_is_picked(data: st.DataObject) -> None:
    mode = data.draw(st.sampled_from(["reflect", "edge", "wrap"]))
    net = Net(opset=19)
    h = conv_first(net, 4, 5)
    amounts = [
        0,
        0,
        *(data.draw(st.integers(-1, 3)) for _ in range(2)),
        0,
        0,
        *(data.draw(st.integers(-1, 3)) for _ in range(2)),
    ]
    check(net.model(net.op("Pad", h, net.const(amounts), mode=mode)), gone="Pad")


@given(st.data())
def test_slices_backwards_are_picked(data: st.DataObject) -> None:
    net = Net()
    h = net.dense(net.input("N", 5, 6), 6, 6)
    bounds = st.integers(-8, 8)
    steps = [data.draw(st.sampled_from([-3, -2, -1, 1, 2])) for _ in range(2)]
    assume(min(steps) < 0)
    ports = [net.const([data.draw(bounds), data.draw(bounds)]) for _ in range(2)]
    y = net.op("Slice", h, *ports, net.const(data.draw(st.sampled_from([[1, 2], [-1, -2]]))), net.const(steps))
    check(net.model(y))


@given(st.data())
def test_einsum_of_two_operands_is_one_product(data: st.DataObject) -> None:
    letters = "abcd"
    a = "".join(data.draw(st.permutations(letters))[: data.draw(st.integers(1, 4))])
    b = "".join(data.draw(st.permutations(letters))[: data.draw(st.integers(1, 4))])
    both = sorted(set(a + b))
    out = "".join(data.draw(st.permutations(both))[: data.draw(st.integers(0, len(both)))])
    sizes = dict(zip(letters, (2, 3, 4, 5), strict=True))
    net = Net()
    x = net.op("Mul", net.input(*[sizes[c] for c in a]), net.weight(*[sizes[c] for c in a]))
    y = net.op("Einsum", x, net.weight(*[sizes[c] for c in b]), equation=f"{a},{b}->{out}")
    check(net.model(y), gone="Einsum", also=["w*"])


@given(st.data())
def test_split_with_unread_outputs_is_cut_into_slices(data: st.DataObject) -> None:
    net = Net(opset=data.draw(st.sampled_from([11, 13, 18])))
    h = net.dense(net.input("N", 6), 6, 6)
    sizes = data.draw(st.sampled_from([[1, 2, 3], [2, 2, 2], [4, 1, 1]]))
    axis = data.draw(st.sampled_from([1, -1]))
    if net.opset < 13:
        parts = net.op("Split", h, outputs=3, axis=axis, split=sizes)
    else:
        parts = net.op("Split", h, net.const(sizes), outputs=3, axis=axis)
    check(net.model(parts[data.draw(st.integers(0, 2))]), gone="Split")


@pytest.mark.parametrize("opset", [9, 11, 13, 15, 17, 18, 20, 21, 22, 23])
def test_every_opset_comes_to_one_that_trains(opset: int) -> None:
    net = Net(opset=opset)
    h = net.op("Relu", net.batch_norm(net.conv(net.input("N", 3, 6, 6), 3, 4), 4))
    x = net.op("Softmax", net.op("Flatten", net.op("GlobalAveragePool", h)), axis=1)
    ready = check(net.model(net.gemm(x, 4, 5)))
    assert 11 <= ready.graph.opset <= 21
    assert ready.graph.model.ir_version <= 10
    assert len(ready.trainable) == 6


@pytest.mark.parametrize(
    ("equation", "shapes"), [("ii->i", [(3, 3)]), ("...i->i", [(2, 3)]), ("i,i,i->i", [(3,), (3,), (3,)])]
)
def test_an_equation_without_form_is_refused_with_the_equation(equation: str, shapes: list[tuple[int, ...]]) -> None:
    net = Net()
    x = net.op("Mul", net.input(*shapes[0]), net.weight(*shapes[0]))
    y = net.op("Einsum", x, *[net.weight(*s) for s in shapes[1:]], equation=equation)
    ready = prepare(decode(net.model(y)), OPERATORS, also=["w*"])
    assert [r.op for r in ready.refused] == ["Einsum"]
    assert equation in ready.refused[0].why
    assert "w0" not in ready.trainable


@pytest.mark.parametrize(
    ("kind", "attrs"), [("LSTM", {"clip": 3.0}), ("GRU", {"activations": ["Sigmoid", "Relu"]}), ("RNN", {"clip": 1.0})]
)
def test_recurrent_layers_that_the_runtime_cannot_train_are_refused(kind: str, attrs: dict[str, Any]) -> None:
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind]
    net = Net()
    found = net.op(
        kind,
        net.input(5, 2, 6),
        net.weight(1, gates * 4, 6),
        net.weight(1, gates * 4, 4),
        hidden_size=4,
        outputs=2,
        **attrs,
    )
    ready = prepare(decode(net.model(net.op("MatMul", found[0], net.weight(4, 3)))), OPERATORS)
    assert [r.op for r in ready.refused] == [kind]
    assert ready.trainable == ("w2",)


def test_values_between_equal_steps_pass_no_gradient_but_stay_in_the_graph() -> None:
    net = Net()
    h = net.dense(net.input("N", 6), 6, 6)
    y = net.dense(net.op("Floor", h), 6, 3)
    ready = prepare(decode(net.model(y)), OPERATORS, batch=2)
    assert not ready.refused
    assert ready.trainable == ("w2", "w3")
    assert ready.frozen["w0"] == "no gradient leads from an output to it"


def test_integer_weights_are_decoded_ahead_and_trained_on_their_grid() -> None:
    net = Net()
    x = net.input("N", 6)
    codes, scale = net.const(np.arange(24).reshape(6, 4) - 12, np.int8), net.const([0.1, 0.2, 0.3, 0.4], np.float32)
    weight = net.op("DequantizeLinear", codes, scale, net.const([0] * 4, np.int8), axis=1)
    ready = check(net.model(net.dense(net.op("Relu", net.op("MatMul", x, weight)), 4, 3)), gone="DequantizeLinear")
    assert set(ready.trainable) == {"k0", "w3", "w4"}


def test_a_third_party_gives_the_training_form_of_its_own_operator() -> None:
    def doubled(site: Site) -> Any:
        return site.op("Mul", site.x, 2.0)

    record = OpFacts("Double", "my.domain", gradient=doubled)
    net = Net()
    h = net.op("Double", net.dense(net.input("N", 6), 6, 6), domain="my.domain")
    proto = net.model(net.dense(h, 6, 2), domains={"my.domain": 1})
    assert [r.op for r in prepare(decode(proto), OPERATORS, batch=2).refused] == ["my.domain.Double"]
    ready = prepare(decode(proto), Operators([*RECORDS, record]), batch=2)
    assert not ready.refused
    assert len(ready.trainable) == 4


def test_a_rewrite_that_fails_leaves_no_trace() -> None:
    def half(site: Site) -> Any:
        site.op("Exp", site.x)
        raise CannotRewriteError("changed my mind")

    graph = decode(builders.mlp())
    node: Node = graph.nodes[0]
    before = list(graph.nodes)
    with pytest.raises(CannotRewriteError, match="changed my mind"):
        rewrite(graph, node, half, infer(graph))
    assert graph.nodes == before
    assert node.outputs[0].consumers == [before[1]]


def test_a_rewrite_may_hand_on_an_input_and_one_result_twice() -> None:
    net = Net()
    h = net.dense(net.input("N", 6), 6, 6)
    a, b = net.op("Split", h, outputs=2, axis=1)
    proto = net.model(net.op("Add", a, b))

    def same(site: Site) -> Any:
        part = site.slice(site.x, 1, 0, 3)
        return [part, part]

    graph = decode(proto)
    node = next(n for n in graph.nodes if n.op == "Split")
    assert rewrite(graph, node, same, infer(graph))
    graph.sort()
    feeds = builders.feeds_of(proto)
    dense = builders.run(proto, feeds)[0]
    assert builders.run(encode(graph), feeds)[0].shape == dense.shape


def test_loops_and_branches_are_named() -> None:
    ready = prepare(decode(builders.loop_model()), OPERATORS)
    assert not ready.trainable
    with pytest.raises(ModelError):
        ready.require()


def test_double_weights_are_trained_in_single_precision() -> None:
    net = Net()
    h = net.op("Cast", net.input("N", 6), to=TensorProto.DOUBLE)
    weight = net.const(np.eye(6), np.float64)
    y = net.op("Cast", net.op("MatMul", h, weight), to=TensorProto.FLOAT)
    ready = prepare(decode(net.model(net.dense(y, 6, 2))), OPERATORS, batch=2)
    assert set(ready.trainable) == {"k0", "w1", "w2"}
    assert {c.name: c.dtype for c in ready.graph.constants()}["k0"] == np.float32


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_weights_are_trained_in_single_precision_and_rounded_back(kind: type) -> None:
    net = Net()
    half = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    weight = net.const(net.generator.standard_normal((6, 6)), kind)
    h = net.op("MatMul", net.op("Cast", net.input("N", 6), to=half), weight)
    y = net.op("Cast", net.op("Relu", h), to=TensorProto.FLOAT)
    graph = decode(net.model(net.dense(y, 6, 2)))
    ready = prepare(graph, OPERATORS, batch=2)
    form = {c.name: c for c in ready.graph.constants()}
    assert set(ready.trainable) == {"k0", "w1", "w2"}
    assert form["k0"].dtype == np.float32
    trained = write_back(graph, ready, {"k0": form["k0"].values * np.float32(1.1)})
    back = {c.name: c.values for c in trained.constants()}["k0"]
    assert back.dtype == kind
    np.testing.assert_allclose(back.astype(np.float32), form["k0"].values * 1.1, rtol=1e-2)


def test_half_precision_inputs_and_outputs_keep_their_names() -> None:
    net = Net()
    x = net.input("N", 6, dtype=TensorProto.FLOAT16)
    y = net.op("MatMul", x, net.const(net.generator.standard_normal((6, 3)), np.float16))
    proto = net.model(y)
    proto.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    ready = prepare(decode(proto), OPERATORS, batch=2)
    feeds = builders.feeds_of(proto)
    want, got = builders.run(proto, feeds)[0], builders.run(encode(ready.graph), feeds)[0]
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want.astype(np.float32), rtol=1e-2, atol=1e-2)


def test_local_functions_are_trained_through() -> None:
    proto = builders.function_model()
    ready = check(proto)
    assert set(ready.trainable) == {"w1", "w2"}
