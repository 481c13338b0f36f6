"""Is onnxcomp.toml read as it is written, and is every mistake in it named?"""

from __future__ import annotations

import dataclasses
import json
import runpy
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcomp import config
from onnxcomp.cli.main import group
from onnxcomp.data.preprocess import Preprocess
from onnxcomp.errors import UsageError
from onnxcomp.job import Job
from onnxcomp.manager.plan import Plan
from onnxcomp.verify.budget import Budget, Size

ROOT = Path(__file__).resolve().parent.parent
SCHEMA = runpy.run_path(str(ROOT / "docs" / "make_schema.py"))

WHOLE = """
target = "cpu"
max_drop = 0.01
data = "calibration.npz"

[preprocess]
scale = "1/255"
color = "rgb"

[[model]]
path = "models/a.onnx"
output = "dist/a.onnx"
labels = "labels.csv"
max_size = "30%"
shapes = { image = [1, 3, 224, 224] }
depends = ["tokens.txt"]

[model.preprocess]
mean = [0.485, 0.456, 0.406]
color = "bgr"

[[model]]
path = "models/b.onnx"
recipe = "int8"
max_drop = 0.02
max_size = 4000000
"""


def read(folder: Path, text: str, name: str = "onnxcomp.toml") -> config.Config:
    (folder / name).write_text(text)
    return config.load(folder / name)


def wrong(folder: Path, text: str) -> UsageError:
    with pytest.raises(UsageError) as caught:
        read(folder, text)
    assert "onnxcomp.toml" in caught.value.where
    return caught.value


def test_defaults_of_the_file_and_a_models_own_keys(tmp_path: Path) -> None:
    a, b = read(tmp_path, WHOLE).models
    assert a.job.budget == Budget(max_drop=0.01, max_size=Size(share=0.3))
    assert b.job.budget == Budget(max_drop=0.02, max_size=Size(bytes=4_000_000))
    assert a.job.preprocess == Preprocess(scale=1 / 255, mean=(0.485, 0.456, 0.406), color="bgr")
    assert b.job.preprocess == Preprocess(scale=1 / 255, color="rgb")
    assert (a.job.data, a.job.labels, b.job.data) == ("calibration.npz", "labels.csv", "calibration.npz")
    assert a.job.shapes == {"image": (1, 3, 224, 224)}
    assert a.depends == ("tokens.txt",)
    assert (a.name, b.name) == ("dist/a", "b")


def test_outputs_and_reports_lie_side_by_side(tmp_path: Path) -> None:
    a, b = (entry.job for entry in read(tmp_path, WHOLE).models)
    assert (a.out, a.report_path, a.rejected) == (
        Path("dist/a.onnx"),
        Path("dist/a.json"),
        Path("dist/a.rejected.onnx"),
    )
    assert (b.out, b.report_path, b.rejected) == (Path("b.opt.onnx"), Path("b.opt.json"), Path("b.rejected.onnx"))


def test_pyproject_holds_the_same_tables(tmp_path: Path) -> None:
    text = "\n".join(
        line.replace("[preprocess]", "[tool.onnxcomp.preprocess]")
        .replace("[[model]]", "[[tool.onnxcomp.model]]")
        .replace("[model.preprocess]", "[tool.onnxcomp.model.preprocess]")
        for line in WHOLE.splitlines()
    )
    beside = tmp_path / "other"
    beside.mkdir()
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "x"\n[tool.onnxcomp]\n' + text)
    assert config.load(tmp_path).models == read(beside, WHOLE).models


def test_onnxcomp_toml_goes_before_pyproject(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[tool.onnxcomp]\nmodel = [{path = 'x.onnx'}]")
    read(tmp_path, WHOLE)
    assert config.load(tmp_path).file.name == "onnxcomp.toml"


def test_a_models_own_passes_set_aside_the_files_recipe(tmp_path: Path) -> None:
    entry = read(tmp_path, 'recipe = "int8"\n[[model]]\npath = "a.onnx"\npasses = "cleanup"\n').models[0]
    assert (entry.job.recipe, entry.job.passes) == (None, "cleanup")


@pytest.mark.parametrize(
    ("text", "what", "do"),
    [
        ('[[model]]\npath = "a"\nmax_dorp = 1', "max_dorp", "did you mean max_drop?"),
        ('[[model]]\npath = "a"\nmax-drop = 1', "max-drop", "did you mean max_drop?"),
        ('tarjet = "cpu"\n[[model]]\npath = "a"', "tarjet", "did you mean target?"),
        ('[[model]]\npath = "a"\nscale = 1', "scale", "[model.preprocess]"),
        ('[[model]]\npath = "a"\n[model.preprocess]\nscael = 1', "scael", "did you mean scale?"),
        ('path = "a"\n[[model]]', "path belongs to one model", "[[model]]"),
        ('[[model]]\ndata = "x.npz"', "no path", 'path = "model.onnx"'),
        ('[model]\npath = "a"', "names no model", "[[model]]"),
        ("", "names no model", "[[model]]"),
        ('[[model]]\npath = "a"\ntarget = "gpu"', "'gpu'", "one of cpu, arm64, cuda, tensorrt, openvino"),
        ('[[model]]\npath = "a"\nseed = 1.5', "1.5", "a whole number"),
        ('[[model]]\npath = "a"\nseed = true', "True", "a whole number"),
        ('[[model]]\npath = "a"\nbench = "no"', "'no'", "true or false"),
        ('[[model]]\npath = "a"\nthreads = -1', "at least 0", ""),
        ('[[model]]\npath = "a"\nmax_size = "much"', "no size", "30%"),
        ('[[model]]\npath = "a"\nshapes = { x = "1x3" }', "no shape", "[1, 3, 224, 224]"),
        ('[[model]]\npath = "a"\nmin_speedup = 0', "above 0", ""),
        ('[[model]]\npath = "a"\ndata = ""', "data cannot be ''", "text"),
        ('[[model]]\npath = "a.onnx"\n[[model]]\npath = "b/a.onnx"', "called", "a name of its own"),
        (
            '[[model]]\npath = "a.onnx"\nname = "x"\n[[model]]\npath = "b/a.onnx"\nname = "y"',
            "both write a.opt.onnx",
            "an output of its own",
        ),
        ('[[model]]\npath = "a.onnx"\n[[model]]\npath = "a.opt.onnx"\nname = "y"', "reads what a writes", "chain"),
        ("[[model]", "no TOML", "line"),
    ],
)
def test_a_mistake_is_named_with_its_place(tmp_path: Path, text: str, what: str, do: str) -> None:
    error = wrong(tmp_path, text)
    assert what in error.what
    assert do in error.do


def test_the_place_is_file_model_and_key(tmp_path: Path) -> None:
    error = wrong(tmp_path, '[[model]]\npath = "a"\n[[model]]\npath = "b"\nseed = "x"')
    assert error.where == f"{tmp_path / 'onnxcomp.toml'}, model 2 (b), seed"


def test_no_configuration_at_all_names_init(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.toml"):
        with pytest.raises(UsageError, match="there is no"):
            config.load(path)


def test_every_field_of_a_job_is_a_key_and_every_key_a_field() -> None:
    keys = {(key.owner, key.field) for key in (*config.model_keys(), *config.preprocess_keys())}
    fields = {(owner, f.name) for owner in (Job, Budget, Preprocess) for f in dataclasses.fields(owner)}
    assert fields - keys == {(Job, "budget"), (Job, "preprocess")}
    assert {field for owner, field in keys - fields} == {"name", "depends"}


def test_keys_are_the_flags_with_underscores() -> None:
    import click

    command = group.get_command(click.Context(group), "optimize")
    assert command is not None
    flags = {p.name for p in command.params} - {"quiet", "verbose", "model", "save_config"}
    keys = {key.name for key in (*config.model_keys(), *config.preprocess_keys())}
    assert flags <= keys
    assert keys - flags == {"path", "name", "depends"}


def test_a_setting_is_declared_once_and_becomes_flag_key_and_help() -> None:
    from dataclasses import dataclass

    import click
    from click.testing import CliRunner

    from onnxcomp.cli import options
    from onnxcomp.settings import setting, settings_of

    @dataclass(frozen=True)
    class Own:
        loud: bool = setting("Play loud.", default=True, off="Play softly.")
        speed: float = setting("Of the tune.", default=1.0, above=0, maximum=8, key="tempo", group="Samples")

    tempo = list(settings_of(Own))[1]
    assert (tempo.name, tempo.flag, tempo.hint, tempo.maximum) == ("tempo", "--speed", float, 8)

    seen: dict[str, Any] = {}

    @options.command("play")
    @options.settings(Own)
    def play(**given: Any) -> None:
        seen.update(given)

    assert isinstance(play, click.Command)
    text = CliRunner().invoke(play, ["--help"]).output
    assert "Samples and shapes:" in text and "--no-loud" in text and "Play softly." in text
    assert CliRunner().invoke(play, ["--speed", "0"]).exit_code == 2
    assert CliRunner().invoke(play, ["--no-loud", "--speed", "2"]).exit_code == 0
    assert seen == {"loud": False, "speed": 2.0}


def test_schema_on_file_is_current() -> None:
    assert SCHEMA["FILE"].read_text(encoding="utf-8") == SCHEMA["text"](), "run python docs/make_schema.py"
    assert SCHEMA["PLAN_FILE"].read_text(encoding="utf-8") == SCHEMA["plan_text"](), "run python docs/make_schema.py"


def test_schema_and_reader_know_the_same_keys() -> None:
    schema = json.loads(SCHEMA["text"]())
    model = schema["$defs"]["model"]["properties"]
    assert set(model) == {key.name for key in config.model_keys()} | {"preprocess"}
    assert set(schema["properties"]) == (
        {key.name for key in (*config.default_keys(), *config.file_keys())} | {"preprocess", "model"}
    )
    assert not schema["additionalProperties"]
    assert all(entry["description"] for entry in model.values() if "$ref" not in entry)


def test_the_schema_of_a_plan_names_what_the_example_of_its_page_holds() -> None:
    page = (ROOT / "docs" / "mixed-precision.md").read_text(encoding="utf-8")
    example = tomllib.loads(page.split("```toml\n")[1].split("```")[0])
    assert Plan.of(example).data() == example
    layer = json.loads(SCHEMA["plan_text"]())["properties"]["layers"]["items"]
    assert set(example) == set(json.loads(SCHEMA["plan_text"]())["properties"])
    assert set(example["layers"][0]) == set(layer["properties"])
    assert set(example["layers"][0]["others"][0]) <= set(layer["properties"]["others"]["items"]["properties"])


def sample_of(entry: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values that one entry of the schema allows."""
    if "anyOf" in entry:
        return st.one_of(*map(sample_of, entry["anyOf"]))
    if "enum" in entry:
        return st.sampled_from(entry["enum"])
    if "pattern" in entry:
        return st.from_regex(entry["pattern"].replace("$", r"\Z").replace(r"\s*", " ?"), fullmatch=True)
    if entry["type"] == "integer":
        return st.integers(entry.get("minimum", entry.get("exclusiveMinimum", -8) + 1), 10**9)
    if entry["type"] == "array":
        return st.lists(sample_of(entry["items"]), min_size=1, max_size=3)
    if entry["type"] == "object":
        return st.dictionaries(st.text(min_size=1, max_size=4), sample_of(entry["additionalProperties"]), max_size=2)
    return {
        "boolean": st.booleans(),
        "number": st.floats(0.1, float(entry.get("maximum", 100))),
        "string": st.text("abc", min_size=1),
    }[entry["type"]]


@given(st.data())
def test_what_the_schema_allows_is_read(data: st.DataObject) -> None:
    """Sizes of zero aside, which a pattern cannot refuse."""
    properties = json.loads(SCHEMA["text"]())["$defs"]["model"]["properties"]
    names = data.draw(st.lists(st.sampled_from(sorted(set(properties) - {"preprocess"})), unique=True, max_size=4))
    table = {"path": "m.onnx"} | {name: data.draw(sample_of(properties[name]), label=name) for name in names}
    try:
        entry = config.entry_of(table)
    except UsageError as error:
        assert "no size" in error.what
        return
    assert json.loads(json.dumps(entry.job.options())) is not None
    assert entry.table == table


def test_the_hash_of_the_options_sees_options_and_no_places() -> None:
    base = Job(Path("a.onnx"), data="x.npz")
    assert base.options_sha256() == Job(Path("/elsewhere/b.onnx"), output=Path("c.onnx")).options_sha256()
    for same in ({"threads": 3}, {"recipe": "int8"}, {"passes": "cleanup"}):
        assert dataclasses.replace(base, **same).options_sha256() == base.options_sha256()
    for change in ({"seed": 1}, {"budget": Budget(max_drop=0.1)}, {"shapes": {"x": (1,)}}):
        assert dataclasses.replace(base, **change).options_sha256() != base.options_sha256()
