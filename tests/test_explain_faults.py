"""Does explain put what no rounding can have done before what a coarse range costs, and nothing else there?"""

from __future__ import annotations

from pathlib import Path

import builders
import numpy as np
import onnx
import pytest
from onnx import ModelProto, NodeProto, numpy_helper
from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
from test_explain import cnn_data, put, text_data, weight_of
from test_explain_advice import Reader

import onnxcomp
from onnxcomp.explanation.explain import explain

COARSE = 64  # times the step that the range needs


class Stranger:
    """What ONNX Runtime's quantizer makes of a transformer, one layer of it with a far too coarse range."""

    def __init__(self, folder: Path) -> None:
        net = builders.transformer(width=64, hidden=128)
        for tensor in net.graph.initializer:
            if tensor.name.endswith("bias"):
                values = numpy_helper.to_array(tensor)
                put(tensor, builders.rng(3).standard_normal(values.shape).astype(np.float32) * np.float32(0.3))
        self.feeds, self.after = text_data(16), folder / "after.onnx"
        self.before = builders.save(net, folder / "before.onnx")
        quantize_static(
            self.before,
            self.after,
            Reader(self.feeds),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
        )
        self.proto = onnx.load(self.after)
        self.tensors = {t.name: t for t in self.proto.graph.initializer}
        self.makers = {name: n for n in self.proto.graph.node for name in n.output}
        scale = self.tensors[self.decoder("ffn_out").input[1]]
        put(scale, numpy_helper.to_array(scale) * np.float32(COARSE))

    def node(self, name: str) -> NodeProto:
        return next(n for n in self.proto.graph.node if n.name == name)

    def decoder(self, layer: str, port: int = 0) -> NodeProto:
        """The DequantizeLinear in front of a layer's input or weight."""
        return self.makers[self.node(layer).input[port]]

    def shift(self, node: NodeProto, steps: int) -> None:
        """Give one DequantizeLinear another zero point."""
        old = numpy_helper.to_array(self.tensors[node.input[2]])
        self.proto.graph.initializer.append(numpy_helper.from_array((old + steps).astype(old.dtype), f"zero_{steps}"))
        node.input[2] = f"zero_{steps}"

    def explained(self) -> onnxcomp.Explanation:
        onnx.save(self.proto, self.after)
        return explain(self.before, self.after, self.feeds, times=False)


def narrowed(folder: Path, form: QuantFormat, share: float) -> onnxcomp.Explanation:
    """What is said of ONNX Runtime's integers where the range behind the last layer is a share of what it needs."""
    loudness = np.linspace(0.1, 1, 16, dtype=np.float32).reshape(-1, 1, 1, 1)
    feeds = {name: values * loudness for name, values in cnn_data(16).items()}
    before, after = builders.save(builders.residual_cnn(batch_norm=False), folder / "before.onnx"), folder / "a.onnx"
    quantize_static(before, after, Reader(feeds), quant_format=form, activation_type=QuantType.QUInt8, per_channel=True)
    proto = onnx.load(after)
    out = proto.graph.output[0].name
    scale = next(t for t in proto.graph.initializer if t.name == f"{out}_scale")
    put(scale, numpy_helper.to_array(scale) * np.float32(share))
    onnx.save(proto, after)
    return explain(before, after, feeds, times=False)


@pytest.mark.parametrize("form", [QuantFormat.QDQ, QuantFormat.QOperator])
@pytest.mark.parametrize(
    ("share", "remedy"), [(0.3, "calibrate on samples like these"), (0.9, "give its output a wider range")]
)
def test_a_range_that_cuts_off_what_a_layer_gives_is_named(
    form: QuantFormat, share: float, remedy: str, tmp_path: Path
) -> None:
    layer = next(layer for layer in narrowed(tmp_path, form, share).layers if layer.node == "logits")
    assert layer.why.startswith("its output's range of ") and " cuts off " in layer.why
    assert layer.remedy.startswith(remedy) and not layer.fault


def test_a_range_that_cuts_off_nothing_is_not_named(tmp_path: Path) -> None:
    found = narrowed(tmp_path, QuantFormat.QDQ, 1.0)
    assert not any("output's range" in layer.why for layer in found.layers)


def test_a_coarse_range_alone_is_no_fault(tmp_path: Path) -> None:
    found = Stranger(tmp_path).explained()
    assert found.layers[0].node == "ffn_out" and (found.layers[0].own_sqnr_db or 99) < 15
    assert not any(layer.fault for layer in found.layers)


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("weights", "off by one constant a channel"),
        ("input", "steps: a zero point is off"),
        ("bias", "is lost"),
    ],
)
def test_a_fault_goes_before_a_coarse_range_that_costs_more(what: str, words: str, tmp_path: Path) -> None:
    stranger = Stranger(tmp_path)
    if what == "weights":
        stranger.shift(stranger.decoder("query", 1), 6)
    elif what == "input":
        stranger.shift(stranger.decoder("attention_out"), 5)
    else:
        add = next(n for n in stranger.proto.graph.node if n.op_type == "Add" and "query.bias" in " ".join(n.input))
        bias = next(stranger.tensors[name] for name in add.input if name in stranger.tensors)
        put(bias, np.zeros_like(numpy_helper.to_array(bias)))
    found = stranger.explained()
    first, second = found.layers[:2]
    assert first.fault and words in first.why, first
    assert first.node == ("attention_out" if what == "input" else "query")
    assert [layer.node for layer in found.layers if layer.fault] == [first.node]
    assert second.node == "ffn_out" and (second.own_sqnr_db or 99) < (first.own_sqnr_db or 0)
    assert found.to_json()["layers"][0]["fault"] is True


def test_samples_twenty_times_too_dark_are_no_lost_bias(tmp_path: Path) -> None:
    before = Path(__file__).resolve().parent.parent / "models" / "digits-cnn.onnx"
    feeds = {"image": builders.rng().random((16, 1, 8, 8)).astype(np.float32)}
    dark = {name: values[:4] * np.float32(0.05) for name, values in feeds.items()}
    quantize_static(before, tmp_path / "after.onnx", Reader(dark), quant_format=QuantFormat.QDQ)
    found = explain(before, tmp_path / "after.onnx", feeds, times=False)
    assert not any(layer.fault for layer in found.layers)
    assert found.layers[0].remedy.startswith("calibrate on samples like these")


@pytest.mark.parametrize(
    "spec",
    [
        "fuse-batchnorm,quantize-qdq{placement=table,min_sqnr=0}",
        "quantize-weights{bits=2,block=16}",
        "quantize-weights{form=binary}",
        "quantize-weights{bits=4,block=0}",
        "prune-weights{ratio=0.8}",
        "prune-channels{ratio=0.3}",
    ],
)
def test_what_a_pass_loses_is_no_fault(spec: str, tmp_path: Path) -> None:
    path, feeds = builders.save(builders.residual_cnn(), tmp_path / "m.onnx"), cnn_data(16)
    onnxcomp.optimize(path, output=tmp_path / "o.onnx", data=feeds, passes=spec, bench=False)
    found = explain(path, tmp_path / "o.onnx", feeds, times=False)
    assert not [layer.why for layer in found.layers if layer.fault]


def test_weights_that_were_cut_off_below_are_no_constant_off(tmp_path: Path) -> None:
    """Rounding towards one side is a fault; cutting off a tail is none."""
    before = builders.residual_cnn(batch_norm=False)
    after = ModelProto()
    after.CopyFrom(before)
    tensor = weight_of(after, next(n for n in after.graph.node if n.name == "block.conv1"))
    values = numpy_helper.to_array(tensor)
    put(tensor, np.maximum(values, -np.float32(0.5) * np.abs(values).max()))
    first, second = builders.save(before, tmp_path / "a.onnx"), builders.save(after, tmp_path / "b.onnx")
    assert not explain(first, second, cnn_data(), times=False).layers[0].fault
