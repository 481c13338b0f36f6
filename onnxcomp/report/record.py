"""report.json: the contract that scripts read."""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
import types
import typing
from pathlib import Path
from typing import Any

from onnxcomp.errors import DataError
from onnxcomp.files import RESULTS, STANDARD_OUTPUT, atomic_write, json_of
from onnxcomp.results import Report
from onnxcomp.seal import sealed


def write_json(report: Report, path: Path) -> None:
    """Write the report, sealed, so that it appears whole or not at all; NaN and infinities become null.

    Raises:
        OutputError: the folder cannot be written.
    """
    write_data(sealed(report.to_json()), path)


def write_data(data: dict[str, Any], path: Path) -> None:
    """Write JSON-ready data atomically; `-` is standard output.

    Raises:
        OutputError: the folder cannot be written.
    """
    write_text(json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n", path)


def write_text(text: str, path: Path) -> None:
    """Write text atomically; `-` is standard output.

    Raises:
        OutputError: the folder cannot be written.
    """
    # a path that is no UTF-8 holds halves of surrogate pairs; written as JSON's own escapes they come back
    content = text.encode("utf-8", "backslashreplace")
    if path == STANDARD_OUTPUT:
        (RESULTS.get() or sys.stdout).write(content.decode())
        return
    with atomic_write(path) as file:
        file.write(content)


def read_json(path: Path) -> Report:
    """The report that a file holds; what later versions added is left out.

    Raises:
        DataError: the file is missing, or holds no report of schema 1.
    """
    where = f"file {path}"
    content = json_of(path, DataError, "run again to write it", "report")
    if not isinstance(content, dict) or content.get("schema") != 1:
        raise DataError("this is no report of schema 1", where=where, do="give a report that onnxcomp wrote")
    try:
        report: Report = _made(Report, content)
    except (TypeError, KeyError, ValueError, AttributeError, IndexError, RecursionError) as error:
        raise DataError(f"the report is damaged: {error}", where=where, do="run again to write it") from error
    return report


@functools.cache
def _fields(cls: type[Any]) -> list[tuple[str, Any]]:
    """Names and types of a dataclass's fields; working the types out for every layer anew takes most of the time."""
    hints = typing.get_type_hints(cls)
    return [(f.name, hints[f.name]) for f in dataclasses.fields(cls)]


def _made(hint: Any, value: Any) -> Any:
    """JSON data as the type that a field declares."""
    arguments = typing.get_args(hint)
    origin = typing.get_origin(hint)
    if value is None or hint is Any or origin is typing.Literal:
        return value
    if origin in (types.UnionType, typing.Union):
        return _made(next(part for part in arguments if part is not type(None)), value)
    if dataclasses.is_dataclass(hint):
        made = {name: _made(part, value[name]) for name, part in _fields(hint) if name in value}  # type: ignore[arg-type]
        return hint(**made)  # type: ignore[operator]
    if origin is list:
        return [_made(arguments[0], item) for item in value]
    if origin is tuple:
        same = arguments[-1] is Ellipsis
        return tuple(_made(arguments[0] if same else arguments[i], item) for i, item in enumerate(value))
    if origin is dict:
        return {key: _made(arguments[1], item) for key, item in value.items()}
    return value
