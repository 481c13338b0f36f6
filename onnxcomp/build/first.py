"""What does a first configuration look like? Written from a model and from the keys that a configuration can have."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from onnxcomp import config
from onnxcomp.graph.io import load, model_files
from onnxcomp.graph.ir import Graph
from onnxcomp.report.tables import size_text
from onnxcomp.settings import Setting

WIDTH = 116
HEAD = """\
# What `onnxcomp build` makes. Keys that are commented out show their default, or, where they have none, an example.
# Paths are relative to this file. All keys of a model but its own files may also stand up here, for every model.
"""
# for keys that have no default
EXAMPLES: dict[str, Any] = {
    "passes": "fold-constants,cleanup,fuse-batchnorm,quantize-qdq",
    "recipe": "int8",
    "teacher": "original.onnx",
    "cost_table": "costs.json",
    "data": "calibration.npz",
    "labels": "labels.csv",
    "eval_data": "test.npz",
    "eval_labels": "test-labels.csv",
    "metric": "metrics.py:score",
    "eval_samples": 1000,
    "max_drop": 0.01,
    "min_sqnr": 20.0,
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
    graph = load(model)
    path = Path(os.path.relpath(model, folder)).as_posix()
    given = {"path": path} | ({"data": _below(data, folder)} if data is not None else {})
    lines = [HEAD]
    for key in config.file_keys():
        lines += _key(key, {}, {})
    lines += ["[[model]]", *_about(model, graph), ""]
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
