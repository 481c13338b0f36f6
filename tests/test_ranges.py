"""Do ranges go from tool to tool and back, and is what is none refused?"""

from __future__ import annotations

import json
from pathlib import Path

import builders
import numpy as np
import pytest
from onnx import ModelProto, numpy_helper
from onnxruntime.quantization import calibrate
from test_pass_quantize_qdq import quantized

from onnxcomp.cli.main import group
from onnxcomp.errors import DataError
from onnxcomp.graph.codec import decode
from onnxcomp.manager.ranges import Ranges, of_model, read

FUSED = "fuse-batchnorm"


def grids(proto: ModelProto) -> dict[str, tuple[float, int]]:
    """Scale and zero point by the name of the tensor behind each activation's Q and DQ."""
    values = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    return {
        node.output[0]: (float(values[node.input[1]]), int(values[node.input[2]]))
        for node in proto.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] not in values
    }


def made() -> tuple[ModelProto, ModelProto, Ranges]:
    """A float model, the same quantized, and its ranges under the float model's names."""
    proto = quantized(builders.residual_cnn(), FUSED)[0]
    after = quantized(proto, "quantize-qdq{min_sqnr=0}")[0]
    return proto, after, of_model(decode(after), decode(proto))


@pytest.mark.parametrize("kind", ["aimet", "onnxruntime"])
def test_ranges_written_and_taken_back_give_the_same_grids(tmp_path: Path, kind: str) -> None:
    proto, after, found = made()
    path = tmp_path / "ranges.json"
    path.write_text(found.to_aimet() if kind == "aimet" else found.to_onnxruntime())
    spec = f'quantize-qdq{{min_sqnr=0,activations=minmax,ranges="{path}"}}'
    again, record = quantized(proto, spec, feeds={k: 9 * v for k, v in builders.feeds_of(proto, batch=16).items()})
    assert any("activation ranges come from" in note for note in record.notes)
    for name, (scale, zero) in grids(after).items():
        assert grids(again)[name] == (pytest.approx(scale, rel=1e-5), zero)


def test_onnxruntime_reads_what_is_written_and_the_other_way_round(tmp_path: Path) -> None:
    found = made()[2]
    path = tmp_path / "calibration.json"
    path.write_text(found.to_onnxruntime())
    theirs = calibrate.load_tensors_data(path)
    theirs = theirs[0] if isinstance(theirs, tuple) else theirs
    ours = {name: (encoding.low, encoding.high) for name, encoding in found.activations.items()}
    assert {name: tuple(map(float, theirs[name].range_value)) for name in theirs} == {
        name: pytest.approx(values) for name, values in ours.items()
    }
    calibrate.save_tensors_data(theirs, tmp_path / "back.json")
    assert read(tmp_path / "back.json") == {name: pytest.approx(values) for name, values in ours.items()}


def test_aimet_of_both_versions_is_read(tmp_path: Path) -> None:
    entry = {"name": "x", "dtype": "INT", "bw": 8, "enc_type": "PER_TENSOR", "is_sym": False}
    new = {"version": "1.0.0", "activation_encodings": [{**entry, "scale": [0.5], "offset": [-100]}]}
    new["activation_encodings"].append({"name": "h", "dtype": "FLOAT", "bw": 16, "enc_type": "PER_TENSOR"})  # type: ignore[attr-defined]
    old = {"activation_encodings": {"x": [{"bitwidth": 8, "dtype": "int", "scale": 0.5, "offset": -100}]}}
    for data in (new, old):
        (tmp_path / "e.json").write_text(json.dumps(data))
        assert read(tmp_path / "e.json") == {"x": (-50.0, 77.5)}


def test_signed_weights_by_channel_are_aimets_symmetric_encodings() -> None:
    proto, _, found = made()
    weight = next(iter(found.weights))
    assert weight in {t.name for t in proto.graph.initializer}
    entry = json.loads(found.to_aimet())["param_encodings"][0]
    assert entry["enc_type"] == "PER_CHANNEL" and entry["is_sym"] and set(entry["offset"]) == {-128}
    assert len(entry["scale"]) == len(entry["offset"])


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{",
        '{"activation_encodings": 3}',
        '{"activation_encodings": [3]}',
        '{"activation_encodings": [{"name": "x", "dtype": "INT", "bw": 8}]}',
        '{"activation_encodings": [{"name": "x", "dtype": "INT", "bw": 8, "scale": ["a"], "offset": [0]}]}',
        '{"activation_encodings": [{"name": "x", "dtype": "INT", "bw": 99, "scale": [1], "offset": [0]}]}',
        '{"activation_encodings": [{"name": "x", "dtype": "INT", "bw": 8, "scale": [1e999], "offset": [0]}]}',
        '{"x": {"lowest": 3, "highest": 1}}',
        '{"x": {"lowest": 3}}',
        '{"x": 3}',
        '{"x": {"lowest": {"CLS": "numpy.array", "data": []}, "highest": 1}}',
    ],
)
def test_what_is_no_file_of_ranges_is_refused_in_three_lines(tmp_path: Path, content: str) -> None:
    (tmp_path / "r.json").write_text(content)
    with pytest.raises(DataError) as error:
        read(tmp_path / "r.json")
    assert len(str(error.value).splitlines()) == 3


def test_ranges_of_another_model_are_refused(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text('{"nowhere": {"lowest": -1, "highest": 1}}')
    with pytest.raises(DataError, match="none of the ranges"):
        quantized(builders.residual_cnn(), f'{FUSED},quantize-qdq{{ranges="{tmp_path / "r.json"}"}}')


def test_the_command_writes_the_file_or_says_that_there_is_nothing(tmp_path: Path) -> None:
    proto, after, found = made()
    plain, full = builders.save(proto, tmp_path / "plain.onnx"), builders.save(after, tmp_path / "full.onnx")
    out = tmp_path / "out.json"
    run = ["ranges", str(full), "--of", str(plain), "-o", str(out), "-q"]
    assert group.main(run, standalone_mode=False) == 0
    assert out.read_text() == found.to_aimet()
    assert group.main(["ranges", str(plain), "-o", str(tmp_path / "none.json"), "-q"], standalone_mode=False) == 13
    assert not (tmp_path / "none.json").exists()
    assert np.isfinite([e.low for e in found.activations.values()]).all()
