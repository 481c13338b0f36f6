"""What does a first configuration look like? Written from a model and from the keys that a configuration can have."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from onnxcomp import config, places
from onnxcomp.errors import UsageError
from onnxcomp.files import STANDARD_OUTPUT, atomic_write
from onnxcomp.graph.io import load, model_files
from onnxcomp.graph.ir import Graph
from onnxcomp.job import Job
from onnxcomp.manager.pipeline import Passes, Pipeline
from onnxcomp.report.tables import size_text
from onnxcomp.settings import Setting
from onnxcomp.sources import named_files
from onnxcomp.verify.budget import Budget, Size

WIDTH = 116
HEAD = """\
# What `onnxcomp build` makes. Keys that are commented out show their default, or, where they have none, an example.
# Paths are relative to this file. All keys of a model but its own files may also stand up here, for every model.
"""
# for keys that have no default
EXAMPLES: dict[str, Any] = {
    "passes": "fold-constants,cleanup,fuse-batchnorm,quantize-qdq",
    "recipe": "int8",
    "plan": "plan.toml",
    "teacher": "original.onnx",
    "cost_table": "costs.json",
    "data": "calibration.npz",
    "labels": "labels.csv",
    "eval_data": "test.npz",
    "eval_labels": "test-labels.csv",
    "metric": "metrics.py:score",
    "task": "classes",
    "states": {"state_out": "state_in"},
    "eval_samples": 1000,
    "max_drop": 0.01,
    "min_sqnr": 20.0,
    "min_agreement": 0.98,
    "memory": "2GiB",
    "max_size": "30%",
    "min_speedup": 1.2,
    "depends": [],
    "scale": "1/255",
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
    "layout": "nchw",
    "color": "rgb",
    "resize": "stretch",
    "pad_value": 114,
    "reports": ".onnxcomp/reports",
}


def first_config(model: Path, folder: Path, data: str | None = None) -> str:
    """The text of a configuration for one model, to stand in `folder`.

    Raises:
        ModelError: the model cannot be read.
    """
    lines = [HEAD]
    for key in config.file_keys():
        lines += _key(key, {}, {})
    return "\n".join([*lines, first_model(model, folder, data)])


def first_model(model: Path, folder: Path, data: str | None = None) -> str:
    """The table of one model in such a configuration.

    Raises:
        ModelError: the model cannot be read.
    """
    graph = load(model)
    path = Path(os.path.relpath(model, folder)).as_posix()
    given = {"path": path} | ({"data": _below(data, folder)} if data is not None else {})
    lines = ["[[model]]", *_about(model, graph), ""]
    examples = {
        "output": f"{model.stem}.opt.onnx",
        "report": f"{model.stem}.opt.json",
        "html": f"{model.stem}.opt.html",
        "name": f"{model.stem}",
        "shapes": {t.name: _sizes(t.shape) for t in graph.inputs},
    }
    for key in config.model_keys():
        lines += _key(key, given, examples)
    lines += [*_comment("How raw pictures become the input: (pixel*scale - mean)/std."), "# [model.preprocess]"]
    for key in config.preprocess_keys():
        lines += _key(key, {}, {})
    return "\n".join(lines).rstrip() + "\n"


def extended(file: Path, table: str) -> str:
    """The text of a configuration with one more model.

    Raises:
        UsageError: it is none, or with that model it would be none any more: a file is written twice, or two have one
            name.
    """
    try:
        standing = file.read_text(encoding="utf-8").rstrip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"this is no configuration: {error}", where=f"file {file}", do="give another name, or a configuration"
        ) from error
    text = f"{standing}\n\n{table.rstrip()}\n"
    try:
        config.check(text, file)
    except UsageError as error:
        config.check(standing, file)  # what is wrong with it as it stands is told as that
        raise UsageError(error.what, where=error.where, do=_TWICE) from error
    return text


_TWICE = (
    "edit the entry that is there, or copy it and give the copy a name and an output of its own; "
    "or write to another configuration"
)


def data_doubt(data: str | None) -> str:
    """What is wrong with data that a first configuration is to name; empty where it is there, or may be."""
    if data is None or Path(data).exists():
        return ""
    module, python, _ = data.partition(".py:")
    if not python and ":" in data:
        return ""  # package.module:function is looked for when it is called
    path = f"{module}.py" if python else data
    return "" if Path(path).exists() else f"there is no file {path}: put it there before you build, or edit `data`"


def save_job(job: Job, file: Path) -> None:
    """Write what a job is asked to do as a configuration, or add it to the one that is there.

    Raises:
        OutputError: the file is an input of the job, or cannot be written.
        UsageError: the configuration that is there cannot take it.
    """
    places.check(places.only_read(job), {"--save-config": file, **places.writes_of(job)})
    table = job_table(job, file.parent)
    text = extended(file, table) if file.exists() else f"{HEAD}\n{table}"
    with atomic_write(file) as out:
        out.write(text.encode())


def config_of(job: Job) -> Path:
    """Where the configuration goes that makes a result again: NAME.opt.toml beside it."""
    return job.out.with_name(f"{job.out.name.removesuffix('.onnx')}.toml")


def save_result(job: Job, spec: str) -> Path:
    """Write the configuration that makes a result again, at `config_of`; its path.

    Args:
        spec: the passes that were chosen.

    Raises:
        OutputError: it cannot be written.
    """
    path = config_of(job)
    places.check(places.reads_of(job), {"the configuration of the result": path})
    with atomic_write(path) as out:
        out.write(f"{HEAD}\n{job_table(replace(job, passes=spec, recipe=None), path.parent)}".encode())
    return path


def job_table(job: Job, folder: Path) -> str:
    """A job as the table of a model: the keys that are not as by default; its paths relative to `folder`."""
    lines = ["[[model]]"]
    for key in config.model_keys():
        owner = job.budget if key.owner is Budget else job
        value = getattr(owner, key.field, None)
        if value not in (None, key.default, STANDARD_OUTPUT) and value != {}:
            lines.append(f"{key.name} = {toml(_written(key, value, folder))}")
    given = {key: getattr(job.preprocess, key.field) for key in config.preprocess_keys()}
    chosen = [f"{key.name} = {toml(value)}" for key, value in given.items() if value is not None]
    return "\n".join([*lines, *(["[model.preprocess]", *chosen] if chosen else [])]) + "\n"


def _written(key: Setting, value: Any, folder: Path) -> Any:
    if key.hint is Size:
        return f"{100 * value.share:g}%" if value.share is not None else int(value.bytes)
    if key.place in ("data", "function"):
        return _below(str(value), folder)
    if key.place:
        return Path(os.path.relpath(value, folder)).as_posix()
    return _spec_below(value, folder) if key.name == "passes" else value


def _spec_below(passes: Passes, folder: Path) -> str:
    """The spec of passes; the files that their options of free text name, made relative to the folder."""
    spec = str(passes)
    files = set(named_files(spec))
    if not files:
        return spec
    moved = []
    for item in Pipeline.of(passes).passes:
        texts = {field.name: getattr(item, field.name) for field in fields(item) if field.type in (str, "str")}
        named: dict[str, Any] = {
            name: _below(text, folder) for name, text in texts.items() if text and Path(text) in files
        }
        moved.append(replace(item, **named) if named else item)
    return str(Pipeline(tuple(moved)))


def toml(value: Any) -> str:
    """A value as TOML writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        # JSON's escapes are TOML's, but for the delete character
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_bare(name)} = {toml(item)}" for name, item in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(toml, value)) + "]"
    return str(value)


def _bare(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else toml(name)


def _key(key: Setting, given: dict[str, Any], examples: dict[str, Any]) -> Iterator[str]:
    yield from _comment(key.help)
    if key.name in given:
        yield f"{key.name} = {toml(given[key.name])}"
    else:
        default = str(key.default) if isinstance(key.default, Path) else key.default
        value = default if default not in (None, "", ()) else examples.get(key.name, EXAMPLES.get(key.name))
        yield f"# {key.name} = {toml(value)}"
    yield ""


def _about(model: Path, graph: Graph) -> Iterator[str]:
    """The model in comments: size, inputs, outputs."""
    size = sum(path.stat().st_size for path in model_files(model))
    yield f"# {_plain(model.name)}: {size_text(size)}, opset {graph.opset}, {sum(1 for _ in graph.walk())} nodes"
    for word, tensors in (("takes", graph.inputs), ("gives", graph.outputs)):
        for tensor in tensors:
            shape = "of any shape" if tensor.shape is None else f"[{', '.join(map(str, tensor.shape))}]"
            yield "# " + _plain(f"{word} {tensor.name}: {tensor.dtype} {shape}")


def _sizes(shape: Any) -> list[int]:
    """A shape with 1 for what is free."""
    return [size if isinstance(size, int) and size > 0 else 1 for size in shape or ()]


def _comment(text: str) -> Iterator[str]:
    line = "#"
    for word in _plain(text).split():
        if len(line) + len(word) >= WIDTH:
            yield line
            line = "#"
        line += f" {word}"
    yield line


def _plain(text: str) -> str:
    """Text for a comment, which ends at a line break and holds no control characters."""
    return re.sub(r"[\x00-\x1f\x7f\x85\u2028\u2029]", "?", text)


def _below(data: str, folder: Path) -> str:
    """A path or module.py:function, made relative to the folder; package.module:function stays."""
    file, separator, function = data.partition(".py:")
    if not Path(data).exists() and not separator:
        return data
    return Path(os.path.relpath(f"{file}.py" if separator else data, folder)).as_posix() + (
        f":{function}" if separator else ""
    )
