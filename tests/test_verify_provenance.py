"""An artifact tells where it comes from, and a changed one is found out."""

from __future__ import annotations

import json
from pathlib import Path

import builders
import onnx
import pytest

from onnxcomp.errors import ModelError
from onnxcomp.files import sha256_of
from onnxcomp.graph.io import model_files
from onnxcomp.verify.provenance import provenance, stamp


def make(folder: Path, *, external: bool = False) -> tuple[Path, Path, Path]:
    """A source, an artifact and its report."""
    source = builders.save(builders.mlp(seed=1), folder / "m.onnx")
    proto = builders.mlp()
    recorded = stamp(
        version="1.2", source_sha256=sha256_of(source), spec="cleanup,fuse-batchnorm", config_sha256="c0ffee"
    )
    onnx.helper.set_model_props(proto, {**recorded, "author": "somebody"})
    artifact = folder / "m.opt.onnx"
    if external:
        builders.save_external(proto, artifact)
    else:
        builders.save(proto, artifact)
    report = folder / "m.opt.json"
    content = {
        "schema": 1,
        "tool": {"name": "onnxcomp"},
        "verdict": "accepted",
        "source": {"path": str(source), "sha256": sha256_of(source)},
        "output": {"path": str(artifact), "sha256": sha256_of(*model_files(artifact))},
    }
    report.write_text(json.dumps(content))
    return source, artifact, report


@pytest.mark.parametrize("external", [False, True])
def test_what_is_recorded_is_read_back(tmp_path: Path, external: bool):
    source, artifact, report = make(tmp_path, external=external)
    found = provenance(artifact)
    assert found.recorded == {
        "onnxcomp.version": "1.2",
        "onnxcomp.source.sha256": sha256_of(source),
        "onnxcomp.spec": "cleanup,fuse-batchnorm",
        "onnxcomp.config.sha256": "c0ffee",
    }
    assert (found.report, found.verdict, found.source, found.source_unchanged) == (report, "accepted", source, True)
    assert json.loads(json.dumps(found.to_json()))["sha256"] == sha256_of(*model_files(artifact))


def test_without_a_report_the_metadata_speak_alone(tmp_path: Path):
    _, artifact, report = make(tmp_path)
    report.unlink()
    assert provenance(artifact).report is None
    report.write_text('{"name": "the settings of somebody else"}')
    assert provenance(artifact).report is None


def test_a_changed_model_is_found_out(tmp_path: Path):
    _, artifact, _ = make(tmp_path)
    proto = onnx.load(artifact)
    proto.graph.initializer[0].raw_data = bytes(len(proto.graph.initializer[0].raw_data))
    builders.save(proto, artifact)
    with pytest.raises(ModelError, match="not the one that its report describes"):
        provenance(artifact)


def test_a_changed_weight_file_is_found_out(tmp_path: Path):
    _, artifact, _ = make(tmp_path, external=True)
    data = model_files(artifact)[1]
    data.write_bytes(bytes([data.read_bytes()[0] ^ 1]) + data.read_bytes()[1:])
    with pytest.raises(ModelError, match="not the one that its report describes"):
        provenance(artifact)


def test_a_changed_source_is_told(tmp_path: Path):
    source, artifact, _ = make(tmp_path)
    builders.save(builders.mlp(seed=2), source)
    assert provenance(artifact).source_unchanged is False
    source.unlink()
    assert provenance(artifact).source_unchanged is None


def test_a_report_of_another_source_is_refused(tmp_path: Path):
    _, artifact, report = make(tmp_path)
    content = json.loads(report.read_text())
    content["source"]["sha256"] = "0" * 64
    report.write_text(json.dumps(content))
    with pytest.raises(ModelError, match="different sources"):
        provenance(artifact)


def test_a_broken_report_is_told(tmp_path: Path):
    _, artifact, report = make(tmp_path)
    report.write_text(report.read_text()[:40])
    with pytest.raises(ModelError, match="report beside the model cannot be read"):
        provenance(artifact)


def test_a_model_of_others_has_no_provenance(tmp_path: Path):
    source, _, _ = make(tmp_path)
    with pytest.raises(ModelError, match="records no provenance"):
        provenance(source)
    with pytest.raises(ModelError):
        provenance(tmp_path / "absent.onnx")
