"""Does explain find the layer that was damaged, whatever a tool did to names and nodes, and say what it is?"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import builders
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, NodeProto, helper, numpy_helper

import onnxcomp
from onnxcomp.cli.main import main
from onnxcomp.errors import DataError, ModelError
from onnxcomp.explanation.explain import explain
from onnxcomp.explanation.report import Explanation

Damage = Callable[[ModelProto, NodeProto], None]


def cnn_data(count: int = 8) -> dict[str, np.ndarray]:
    return {"image": builders.rng(5).standard_normal((count, 3, 16, 16)).astype(np.float32)}


def text_data(count: int = 8) -> dict[str, np.ndarray]:
    return builders.transformer_feed(count, 12)


def weight_of(model: ModelProto, node: NodeProto) -> onnx.TensorProto:
    found = {t.name: t for t in model.graph.initializer}
    return next(found[name] for name in node.input if name in found and len(found[name].dims) > 1)


def put(tensor: onnx.TensorProto, values: np.ndarray) -> None:
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), tensor.name))


def scale(model: ModelProto, node: NodeProto) -> None:
    weight = weight_of(model, node)
    put(weight, numpy_helper.to_array(weight) * np.float32(1.7))


def saturate(model: ModelProto, node: NodeProto) -> None:
    weight = weight_of(model, node)
    values = numpy_helper.to_array(weight)
    most = np.float32(0.25) * np.abs(values).max()
    put(weight, np.clip(values, -most, most))


def swap(model: ModelProto, node: NodeProto) -> None:
    weight = weight_of(model, node)
    values = numpy_helper.to_array(weight).copy()
    moved = values if node.op_type in {"Conv", "Gemm"} else values.T
    moved[[1, 4]] = moved[[4, 1]]
    put(weight, values)


def clip(model: ModelProto, node: NodeProto) -> None:
    place = list(model.graph.node).index(node)
    bounds = [numpy_helper.from_array(np.float32(v), n) for v, n in ((-0.4, "least"), (0.4, "most"))]
    model.graph.initializer.extend(bounds)
    model.graph.node.insert(place, helper.make_node("Clip", [node.input[0], "least", "most"], ["clipped"], "clip"))
    node.input[0] = "clipped"


def lose_bias(model: ModelProto, node: NodeProto) -> None:
    found = {t.name: t for t in model.graph.initializer}
    reader = node if len(node.input) > 2 else next(n for n in model.graph.node if node.output[0] in n.input)
    bias = next(found[name] for name in reader.input if name in found and len(found[name].dims) == 1)
    put(bias, np.zeros_like(numpy_helper.to_array(bias)))


DAMAGES: dict[str, tuple[Damage, str]] = {
    "scale": (scale, "a multiple of what they were"),
    "saturate": (saturate, ""),
    "swap": (swap, "hold the weights of other channels"),
    "clip": (clip, "cuts off"),
    "bias": (lose_bias, ""),
}
CNN = ("stem", "block.conv1", "block.conv2", "logits")
TEXT = ("query", "value", "attention_out", "intermediate", "ffn_out")


def renamed(model: ModelProto) -> ModelProto:
    """Every node and inner tensor under another name."""
    kept = {v.name for v in (*model.graph.input, *model.graph.output)}
    names: dict[str, str] = {}

    def new(name: str) -> str:
        return name if not name or name in kept else names.setdefault(name, f"t{len(names)}")

    for number, node in enumerate(model.graph.node):
        node.name = f"n{number}"
        node.input[:] = [new(name) for name in node.input]
        node.output[:] = [new(name) for name in node.output]
    for tensor in model.graph.initializer:
        tensor.name = new(tensor.name)
    del model.graph.value_info[:]
    return model


def fused(model: ModelProto, folder: Path) -> ModelProto:
    """What ONNX Runtime's own optimizer writes."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return onnx.load(folder / "optimized.onnx")


def explained(before: ModelProto, after: ModelProto, data: dict[str, np.ndarray], folder: Path) -> Explanation:
    paths = [builders.save(m, folder / f"{n}.onnx") for m, n in ((before, "before"),)]
    onnx.save(after, folder / "after.onnx")
    return explain(paths[0], folder / "after.onnx", data, times=False)


@pytest.mark.parametrize("shape", ["plain", "renamed", "fused and renamed"])
@pytest.mark.parametrize("kind", DAMAGES)
def test_the_damaged_layer_is_first(kind: str, shape: str, tmp_path: Path) -> None:
    damage, words = DAMAGES[kind]
    cases = [
        (builders.residual_cnn(batch_norm=False), CNN, cnn_data()),
        (builders.transformer(), TEXT, text_data()),
    ]
    missed = []
    for before, layers, data in cases:
        for layer in layers:
            if (kind, layer) == ("clip", "block.conv2") and "fused" in shape:
                continue  # Relu and Clip become one, which is part of the convolution in front of it
            after = ModelProto()
            after.CopyFrom(before)
            damage(after, next(n for n in after.graph.node if n.name == layer))
            if "fused" in shape:
                after = fused(after, tmp_path)
            if "renamed" in shape:
                after = renamed(after)
            found = explained(before, after, data, tmp_path)
            first = found.layers[0]
            if first.node != layer or first.own_sqnr_db is None or first.own_sqnr_db > 40:
                missed.append(f"{layer}: {first.node}, {first.own_sqnr_db}")
            elif words and words not in first.why:
                missed.append(f"{layer}: said {first.why!r}")
    assert not missed


def test_layers_that_nothing_was_done_to_are_equal(tmp_path: Path) -> None:
    before = builders.residual_cnn(batch_norm=False)
    after = ModelProto()
    after.CopyFrom(before)
    swap(after, next(n for n in after.graph.node if n.name == "block.conv2"))
    found = explained(before, after, cnn_data(), tmp_path)
    alone = {layer.node: layer.own_sqnr_db for layer in found.layers}
    assert alone["stem"] is None and alone["block.conv1"] is None and alone["logits"] is None
    last = next(layer for layer in found.layers if layer.node == "logits")
    assert last.accumulated_sqnr_db is not None  # what comes in is wrong, what it does is right


@pytest.mark.parametrize(
    "spec",
    [
        "fuse-batchnorm,quantize-qdq{placement=table}",
        "quantize-weights{bits=8}",
        "quantize-weights{bits=4,block=32}",
        "convert-float16",
        "prune-weights{ratio=0.5}",
    ],
)
def test_every_layer_is_found_again_behind_the_passes(spec: str, tmp_path: Path) -> None:
    path = builders.save(builders.residual_cnn(), tmp_path / "m.onnx")
    data = cnn_data(16)
    onnxcomp.optimize(path, output=tmp_path / "o.onnx", data=data, passes=spec, bench=False)
    found = explain(path, tmp_path / "o.onnx", data)
    assert {layer.node for layer in found.layers} == set(CNN)
    assert all(layer.own_sqnr_db is None or layer.own_sqnr_db > 5 for layer in found.layers)
    assert any(layer.own_sqnr_db is not None for layer in found.layers)


def test_dynamic_integers_are_found_again(tmp_path: Path) -> None:
    path = builders.save(builders.transformer(width=128, hidden=256), tmp_path / "m.onnx")
    onnxcomp.optimize(path, output=tmp_path / "o.onnx", data=text_data(16), passes="quantize-dynamic", bench=False)
    found = explain(path, tmp_path / "o.onnx", text_data())
    measured = [layer for layer in found.layers if layer.own_sqnr_db is not None]
    assert len(measured) == 6 and all(15 < (layer.own_sqnr_db or 0) < 70 for layer in measured)
    assert all("quantize-dynamic" in layer.advice for layer in measured)


def test_a_model_alone_gets_a_forecast(tmp_path: Path) -> None:
    path = builders.save(builders.residual_cnn(), tmp_path / "m.onnx")
    found = explain(path, None, cnn_data(16))
    assert "forecast" in found.after and len(found.layers) == 4
    assert all(layer.own_sqnr_db is not None for layer in found.layers)


def test_the_command_writes_what_it_shows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = builders.residual_cnn(batch_norm=False)
    after = ModelProto()
    after.CopyFrom(before)
    swap(after, next(n for n in after.graph.node if n.name == "block.conv2"))
    first, second = builders.save(before, tmp_path / "a.onnx"), builders.save(after, tmp_path / "b.onnx")
    np.savez(tmp_path / "d.npz", **cnn_data())
    arguments = ["explain", first, second, "--data", tmp_path / "d.npz", "--json", tmp_path / "e.json"]
    with pytest.raises(SystemExit) as end:
        main([*map(str, arguments), "--html", str(tmp_path / "e.html"), "--no-times"])
    assert end.value.code == 0
    layers = json.loads((tmp_path / "e.json").read_text())["layers"]
    assert layers[0]["node"] == "block.conv2" and layers[0]["own_sqnr_db"] < 15
    assert {"node", "output", "own_sqnr_db", "accumulated_sqnr_db", "why", "advice"} <= layers[0].keys()
    page = (tmp_path / "e.html").read_text()
    assert "hold the weights of other channels" in page and "src=" not in page and "href=" not in page
    shown = capsys.readouterr().out
    assert "block.conv2" in shown and "own SQNR" in shown and "SQNR so far" in shown
    assert shown.startswith(f"{second} against {first}, 8 samples\n")


def test_what_is_to_be_pasted_reads_the_samples_as_they_were_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = builders.save(builders.residual_cnn(), tmp_path / "a.onnx"), tmp_path / "b.onnx"
    pictures = builders.rng(3).integers(0, 256, (20, 16, 16, 3)).astype(np.uint8)
    np.savez(tmp_path / "my pictures.npz", images=pictures)
    spec = "fuse-batchnorm,quantize-qdq{placement=table}"
    onnxcomp.optimize(first, output=second, data=tmp_path / "my pictures.npz", passes=spec, bench=False)
    data = ["--data", f"{tmp_path}/my pictures.npz", "--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225"]
    with pytest.raises(SystemExit):
        main(["explain", str(first), str(second), *data, "--color", "bgr", "--samples", "4", "--no-times"])
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == f"{second} against {first}, 4 of 20 samples; --samples takes more"
    spec = next(line for line in shown if " left as it was: --passes " in line).partition(" --passes ")[2]
    told = next(line for line in shown if line.startswith("to run them: ")).removeprefix("to run them: ")
    words = shlex.split(told.replace("...", spec))
    assert words[:9] == ["onnxcomp", "optimize", str(first), *data]
    with pytest.raises(SystemExit) as end:
        main([*words[1:], "--no-bench", "-q", "-o", str(tmp_path / "o.onnx")])
    assert end.value.code == 0
    request = json.loads((tmp_path / "o.json").read_text())["request"]
    assert request["options"]["mean"] == [0.485, 0.456, 0.406] and request["options"]["color"] == "bgr"


def test_what_cannot_be_compared_is_said(tmp_path: Path) -> None:
    cnn = builders.save(builders.residual_cnn(), tmp_path / "cnn.onnx")
    text = builders.save(builders.transformer(), tmp_path / "text.onnx")
    with pytest.raises(ModelError, match="different inputs"):
        explain(cnn, text, cnn_data())
    with pytest.raises(DataError):
        explain(cnn, cnn, tmp_path / "nothing.npz")


def test_another_model_with_the_same_inputs_is_no_form_of_the_first(tmp_path: Path) -> None:
    before = builders.residual_cnn(batch_norm=False)
    first = builders.save(before, tmp_path / "a.onnx")
    for node in [n for n in before.graph.node if n.op_type in {"Conv", "Gemm"}]:
        weight = weight_of(before, node)
        values = numpy_helper.to_array(weight)
        put(weight, builders.rng(9).standard_normal(values.shape).astype(np.float32))
    second = builders.save(before, tmp_path / "b.onnx")
    with pytest.raises(ModelError, match="compute different things"):
        explain(first, second, cnn_data())


def test_an_input_of_another_size_is_another_input(tmp_path: Path) -> None:
    before = builders.residual_cnn(batch_norm=False)
    first = builders.save(before, tmp_path / "a.onnx")
    before.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 24
    second = builders.save(before, tmp_path / "b.onnx")
    with pytest.raises(ModelError, match=r"different inputs: image is .* before, .*24.* after"):
        explain(first, second, cnn_data())


def test_a_model_that_takes_half_of_what_the_first_takes_is_explained(tmp_path: Path) -> None:
    """Converters to float16 change the type of inputs and outputs, too."""
    before = builders.residual_cnn(batch_norm=False)
    first = builders.save(before, tmp_path / "a.onnx")
    for port in (*before.graph.input, *before.graph.output):
        port.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    for tensor in before.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            put(tensor, numpy_helper.to_array(tensor).astype(np.float16))
    del before.graph.value_info[:]
    onnx.save(before, tmp_path / "b.onnx")
    found = explain(first, tmp_path / "b.onnx", cnn_data(), times=False)
    assert len(found.layers) == 4 and all(50 < (layer.own_sqnr_db or 0) < 90 for layer in found.layers)
    assert "convert-float16" in found.layers[0].advice


@pytest.mark.parametrize("rewrite", ["none", "renamed"])
def test_a_clip_that_few_values_meet_is_part_of_the_layer_behind_it(rewrite: str, tmp_path: Path) -> None:
    before = builders.transformer()
    feeds = text_data()
    after, looked = ModelProto(), ModelProto()
    after.CopyFrom(before)
    looked.CopyFrom(before)
    layer = next(n for n in after.graph.node if n.name == "query")
    looked.graph.output.append(helper.make_tensor_value_info(layer.input[0], onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(looked.SerializeToString(), providers=["CPUExecutionProvider"])
    largest = np.abs(session.run([layer.input[0]], feeds)[0]).max()
    clip(after, layer)
    for tensor in after.graph.initializer:
        if tensor.name in {"least", "most"}:
            put(tensor, np.sign(numpy_helper.to_array(tensor)) * np.float32(0.7 * largest))
    found = explained(before, renamed(after) if rewrite == "renamed" else after, feeds, tmp_path)
    assert found.layers[0].node == "query" and (found.layers[0].own_sqnr_db or 999) < 60, found.layers[0]
