"""Is input that is odd, and yet usable, used, with a word on what is odd?"""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import builders
import numpy as np
import onnx
from onnx import TensorProto, numpy_helper
from test_bad_input import cnn, folder_of_images

import onnxcomp
from onnxcomp.results import Report


def optimized(model: Path, **options: object) -> Report:
    return onnxcomp.optimize(model, output=model.with_name("out.onnx"), **({"bench": False} | options))


def test_unreadable_images_among_good_ones_are_named_and_counted(tmp_path: Path) -> None:
    images = folder_of_images(tmp_path)
    (images / "03.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    os.truncate(images / "07.png", 60)
    report = optimized(cnn(tmp_path), data=images, passes="fuse-batchnorm")
    notes = "\n".join(report.notes)
    assert report.exit_code == 0
    assert "2 images are unreadable and left out, of 12" in notes
    assert "03.png: not an image" in notes
    assert "07.png" in notes
    assert report.calibration is not None
    assert report.fidelity is not None
    assert report.calibration.samples + report.fidelity.samples < 12 - 1


def test_a_picture_that_claims_a_terabyte_is_left_out(tmp_path: Path) -> None:
    images = folder_of_images(tmp_path)
    size = struct.pack(">II", 1_000_000, 1_000_000) + b"\x08\x02\x00\x00\x00"
    header = b"IHDR" + size
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    (images / "bomb.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 8) + b"IDAT" + bytes(8) + bytes(4)
    )
    report = optimized(cnn(tmp_path), data=images, passes="fuse-batchnorm")
    assert any("bomb.png: " in note and "1000000000000 pixels" in note for note in report.notes)


def test_weights_that_are_not_numbers_are_named_and_nothing_is_proven_by_them(tmp_path: Path) -> None:
    proto = builders.residual_cnn()
    weight = next(t for t in proto.graph.initializer if t.name == "stem.weight")
    values = numpy_helper.to_array(weight).copy()
    values[0] = np.nan
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    report = optimized(builders.save(proto, tmp_path / "model.onnx"), passes="fuse-batchnorm,quantize-weights")
    notes = "\n".join(report.notes)
    assert "weight stem.weight holds 27 NaN of 432 values" in notes
    assert "output logits of the original is NaN or infinite throughout" in notes


def test_sizes_that_the_model_leaves_open_are_guessed_and_said(tmp_path: Path) -> None:
    model = builders.save(builders.dynamic_cnn(), tmp_path / "model.onnx")
    report = optimized(model, passes="quantize-weights")
    assert any("--shape x=" in guess for guess in report.guesses)
    told = optimized(model, passes="quantize-weights", shapes={"x": (1, 3, 32, 32)})
    assert all("--task" in guess for guess in told.guesses)
    assert told.before.macs < report.before.macs


def test_weights_listed_as_inputs_become_initializers_unless_told_otherwise(tmp_path: Path) -> None:
    model = builders.save(builders.weights_as_inputs(builders.residual_cnn()), tmp_path / "model.onnx")
    report = optimized(model, passes="fuse-batchnorm")
    assert any("listed as graph inputs became plain initializers" in note for note in report.notes)
    assert [i.name for i in onnx.load(tmp_path / "out.onnx").graph.input] == ["image"]
    spec = "fuse-batchnorm,clip-weights,prune-weights{ratio=0.5},quantize-weights"
    kept = optimized(model, passes=spec, keep_initializer_inputs=True)
    assert kept.exit_code == 13
    assert all(record.skips for record in kept.passes)
    assert {s.why.partition("is ")[2] or s.why for record in kept.passes for s in record.skips} == {
        "listed as an input, so a caller may replace it"
    }


def test_a_quantized_model_is_recognised(tmp_path: Path, digits: Path, digits_data: tuple[Path, Path]) -> None:
    once = tmp_path / "int8.onnx"
    spec = "fuse-batchnorm,quantize-qdq"
    onnxcomp.optimize(digits, output=once, data=digits_data[0], passes=spec, bench=False, verify=False)
    again = optimized(once, data=digits_data[0], passes="quantize-qdq", verify=False)
    assert again.exit_code == 13
    assert "quantized already" in again.passes[0].summary
    assert not (tmp_path / "out.onnx").exists()


def test_half_precision_is_handled(tmp_path: Path) -> None:
    proto = builders.residual_cnn()
    for tensor in proto.graph.initializer:
        half = numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(numpy_helper.from_array(half, tensor.name))
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    model = builders.save(proto, tmp_path / "model.onnx")
    spec = "fuse-batchnorm,clip-weights,prune-weights{ratio=0.2},quantize-weights"
    report = optimized(model, passes=spec)
    assert report.exit_code == 0
    assert {layer.precision[0] for layer in report.layers} == {"float16"}
    assert report.fidelity is not None
    assert min(o.sqnr_db or 99 for o in report.fidelity.outputs.values()) > 10
