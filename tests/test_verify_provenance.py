"""An artifact tells where it comes from, and a changed one is found out."""

from __future__ import annotations

import json
from pathlib import Path

import builders
import onnx
import pytest

from onnxcomp.cli.main import main
from onnxcomp.errors import ModelError
from onnxcomp.files import sha256_of
from onnxcomp.graph.io import model_files
from onnxcomp.seal import sealed
from onnxcomp.verify.provenance import provenance, stamp


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    return stopped.value.code if isinstance(stopped.value.code, int) else 1


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
        "exit_code": 0,
        "accuracy": {"metric": "top1", "after": 0.5},
        "benchmarks": [{"provider": "CPUExecutionProvider", "speedup": 1.5}],
        "budget": [{"name": "min_speedup", "limit": 1.2, "value": 1.5, "passed": True}],
        "seconds": 1.25,
        "source": {"path": str(source), "sha256": sha256_of(source)},
        "output": {"path": str(artifact), "sha256": sha256_of(*model_files(artifact))},
    }
    report.write_text(json.dumps(sealed(content)))
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


@pytest.mark.parametrize(
    ("old", "new", "part"),
    [
        ('"after": 0.5', '"after": 0.9', "its contents"),
        ('"verdict": "accepted"', '"verdict": "over-budget"', "its contents"),
        ('"passed": true', '"passed": false', "its contents"),
        ('"seal"', '"sael"', "its contents"),
        ('"speedup": 1.5', '"speedup": 2.5', "its latencies"),
    ],
)
def test_a_changed_report_is_found_out(tmp_path: Path, old: str, new: str, part: str):
    _, artifact, report = make(tmp_path)
    text = report.read_text()
    assert old in text
    report.write_text(text.replace(old, new))
    with pytest.raises(ModelError, match=f"the report is not as it was written: {part}"):
        provenance(artifact)
    assert call("verify", artifact) == 3


def test_equal_builds_have_equal_seals_whatever_their_times():
    content = {"seconds": 1.0, "benchmarks": [], "budget": [{"name": "min_speedup", "value": 1.5, "passed": True}]}
    other = {"seconds": 2.0, "benchmarks": [{}], "budget": [{"name": "min_speedup", "value": 1.6, "passed": True}]}
    assert sealed(content)["seal"] == sealed(other)["seal"]


def test_the_command_fails_where_the_source_has_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source, artifact, _ = make(tmp_path)
    assert call("verify", artifact) == 0
    builders.save(builders.mlp(seed=2), source)
    assert call("verify", artifact) == 3
    assert "the source has changed" in capsys.readouterr().err


@pytest.mark.parametrize("report", ["m.json", "m.opt.json", "reports/elsewhere.json"])
def test_a_refused_artifact_has_the_exit_code_of_its_report(tmp_path: Path, report: str):
    _, artifact, written = make(tmp_path)
    rejected = artifact.rename(tmp_path / "m.rejected.onnx")
    content = json.loads(written.read_text()) | {"verdict": "over-budget", "exit_code": 11}
    written.unlink()
    place = tmp_path / report
    place.parent.mkdir(exist_ok=True)
    place.write_text(json.dumps(sealed(content)))
    found = provenance(rejected, place if "/" in report else None)
    assert (found.report, found.verdict, found.exit_code) == (place, "over-budget", 11)
    assert call("verify", rejected, *(("--report", place) if "/" in report else ())) == 11


def test_a_report_of_another_source_is_refused(tmp_path: Path):
    _, artifact, report = make(tmp_path)
    content = json.loads(report.read_text())
    content["source"]["sha256"] = "0" * 64
    report.write_text(json.dumps(sealed(content)))
    with pytest.raises(ModelError, match="different sources"):
        provenance(artifact)


def test_a_broken_report_is_told(tmp_path: Path):
    _, artifact, report = make(tmp_path)
    report.write_text(report.read_text()[:40])
    with pytest.raises(ModelError, match="the report cannot be read"):
        provenance(artifact)


@pytest.mark.parametrize("key", ["exit_code", "verdict"])
@pytest.mark.parametrize("value", [None, 99, True, [0]])
def test_a_sealed_report_that_does_not_tell_how_it_ended_is_no_success(tmp_path: Path, key: str, value: object):
    _, artifact, report = make(tmp_path)
    content = json.loads(report.read_text()) | {"verdict": "accepted"}
    if value is None:
        del content[key]
    else:
        content[key] = value
    report.write_text(json.dumps(sealed(content)))
    with pytest.raises(ModelError, match="damaged: exit_code or verdict"):
        provenance(artifact)


def test_a_model_of_others_has_no_provenance(tmp_path: Path):
    source, _, _ = make(tmp_path)
    with pytest.raises(ModelError, match="records no provenance"):
        provenance(source)
    with pytest.raises(ModelError):
        provenance(tmp_path / "absent.onnx")
