"""Does `onnxcomp init` write a configuration that builds, and that shows every key?"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import builders
import onnx
import pytest

from onnxcomp import config
from onnxcomp.build.first import first_config, save_job, toml
from onnxcomp.cli.main import main
from onnxcomp.job import Job
from onnxcomp.manager.pipeline import Pipeline


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # relative names are those of the test's own folder


def command(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in arguments])
    return int(stop.value.code or 0)


def uncommented(text: str) -> str:
    return re.sub(r"^# ((\w+) = .*|\[model.preprocess\])$", r"\1", text, flags=re.MULTILINE)


def test_what_it_writes_is_read_and_describes_the_model(digits: Path, tmp_path: Path) -> None:
    text = first_config(digits, tmp_path, "gen.py:feeds")
    (tmp_path / "onnxcomp.toml").write_text(text)
    (entry,) = config.load(tmp_path).models
    assert (tmp_path / entry.job.model).resolve() == digits
    assert re.search(r"^# takes \S+: float32 \[\S+, 1, 8, 8\]$", text, re.MULTILINE)
    assert re.search(r"^# gives \S+: float32 \[\S+, 10\]$", text, re.MULTILINE)
    assert entry.job == config.entry_of({"path": str(entry.job.model), "data": entry.job.data}).job


def test_every_key_stands_there_with_its_default(digits: Path, tmp_path: Path) -> None:
    table = tomllib.loads(uncommented(first_config(digits, tmp_path)))
    (model,) = table["model"]
    keys = {key.name: key for key in config.model_keys()}
    assert set(model) == {*keys, "preprocess"}
    assert set(model["preprocess"]) == {key.name for key in config.preprocess_keys()}
    assert set(table) == {"model", *(key.name for key in config.file_keys())}
    for name, key in keys.items():
        if isinstance(key.default, bool | int | float):
            assert model[name] == key.default
    del model["recipe"]  # it and passes exclude each other
    assert config.entry_of(model).job.budget.max_drop == 0.01


def test_it_builds_as_it_is(digits: Path, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "m.onnx").write_bytes(digits.read_bytes())
    assert command("init", "models/m.onnx") == 0
    text = Path("onnxcomp.toml").read_text()
    assert 'path = "models/m.onnx"' in text
    text = text.replace('# passes = "fold-constants,cleanup,fuse-batchnorm,quantize-qdq"', 'passes = "fuse-batchnorm"')
    Path("onnxcomp.toml").write_text(text.replace("# bench = true", "bench = false"))
    assert command("build", "-q") == 0
    assert Path("m.opt.onnx").exists()


def test_a_configuration_that_is_there_stays(digits: Path, tmp_path: Path) -> None:
    file = tmp_path / "onnxcomp.toml"
    file.write_text("precious")
    assert command("init", digits, "-o", file) == 2
    assert file.read_text() == "precious"
    assert command("init", digits, "-o", file, "--force") == 0
    assert "[[model]]" in file.read_text()


def test_a_model_is_added_to_a_configuration(digits: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.onnx").write_bytes(digits.read_bytes())
        assert command("init", f"{name}.onnx") == 0
    text = Path("onnxcomp.toml").read_text()
    assert text.startswith("# What") and [e.name for e in config.load().models] == ["a", "b"]
    assert command("init", "a.onnx") == 2  # twice one output
    assert Path("onnxcomp.toml").read_text() == text


def test_a_model_that_is_there_already_says_what_to_do(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.onnx").write_bytes(digits.read_bytes())
    assert (command("init", "a.onnx"), command("init", "a.onnx")) == (0, 2)
    said = " ".join(capsys.readouterr().err.split())
    assert "two models are called a" in said and "edit the entry that is there, or copy it" in said
    Path("onnxcomp.toml").write_text("treads = 3\n")
    assert command("init", "a.onnx") == 2
    assert "did you mean threads?" in capsys.readouterr().err, "what was wrong before is told as that"


@pytest.mark.parametrize(
    ("data", "missing"),
    [
        ("nothere.npz", "nothere.npz"),
        ("gen.py:feeds", "gen.py"),
        ("here.npz", ""),
        ("here.py:feeds", ""),
        ("package.module:feeds", ""),
    ],
)
def test_data_that_is_not_there_is_warned_of(
    digits: Path, data: str, missing: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("here.npz", "here.py"):
        Path(name).write_text("")
    assert command("init", digits, "--data", data, "-q") == 0
    said = capsys.readouterr().err
    assert (f"warning: there is no file {missing}: " in said) if missing else not said
    assert f'data = "{data}"' in Path("onnxcomp.toml").read_text()


def test_a_command_is_saved_as_a_configuration(digits: Path, tmp_path: Path) -> None:
    given = [
        "--passes",
        "prune-weights{ratio=0.5}",
        "--no-bench",
        "--max-size",
        "200%",
        "--scale",
        "1/255",
        "--seed",
        "3",
    ]
    code = command("optimize", digits, *given, "-o", "dist/x.onnx", "--save-config", "conf/onnxcomp.toml", "-q")
    assert code == 0
    (entry,) = config.load(Path("conf/onnxcomp.toml")).models
    job = entry.job
    assert str(job.passes) == "prune-weights{ratio=0.5}" and (job.bench, job.seed) == (False, 3)
    assert job.budget.max_size is not None and job.budget.max_size.share == 2.0
    assert job.preprocess.scale == 1 / 255
    assert (tmp_path / "conf" / job.out).resolve() == (tmp_path / "dist" / "x.onnx").resolve()
    assert (tmp_path / "conf" / job.model).resolve() == digits


def test_files_that_a_spec_names_are_found_from_the_folder_of_the_configuration(tmp_path: Path) -> None:
    Path("enc.json").write_text("{}")
    Path("exclude").write_text("")
    spec = 'cleanup,quantize-qdq{ranges=enc.json},prune-weights{ratio=0.5,exclude=["exclude"]}'
    there = tmp_path / "conf" / "onnxcomp.toml"
    there.parent.mkdir()
    save_job(Job(Path("m.onnx"), passes=spec), there)
    (entry,) = config.load(there).models
    quantized, pruned = Pipeline.of(entry.job.passes or "").passes[1:]
    assert (there.parent / vars(quantized)["ranges"]).resolve() == tmp_path / "enc.json"
    assert list(vars(pruned)["exclude"]) == ["exclude"]


def test_hostile_names_cannot_leave_their_comment(tmp_path: Path) -> None:
    proto = builders.mlp((4, 3, 2))
    name = 'x\n[[model]]\npath = "evil" \x7f\r\u2028"quoted"'
    for node in proto.graph.node:
        for index, tensor in enumerate(node.input):
            if tensor == proto.graph.input[0].name:
                node.input[index] = name
    proto.graph.input[0].name = name
    onnx.save(proto, tmp_path / "m.onnx")
    text = first_config(tmp_path / "m.onnx", tmp_path)
    assert len(tomllib.loads(text)["model"]) == 1
    assert list(tomllib.loads(uncommented(text))["model"][0]["shapes"]) == [name]


def test_values_are_toml() -> None:
    value = {"a b": [1, 2.5, True], "c": 'x"\\\n\x7fé', "d": {}}
    assert tomllib.loads(f"v = {toml(value)}")["v"] == value
