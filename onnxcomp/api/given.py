"""How do the keywords of the library's functions become the settings of a run? By the declarations of the settings."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from onnxcomp.api.models import Files
from onnxcomp.config import value_of
from onnxcomp.data.preprocess import Preprocess
from onnxcomp.errors import UsageError
from onnxcomp.job import Job
from onnxcomp.manager.options import describe
from onnxcomp.manager.pipeline import Pipeline
from onnxcomp.manager.registry import find
from onnxcomp.runtime.acceleration import Acceleration
from onnxcomp.settings import Setting, settings_of
from onnxcomp.verify.budget import Budget

# a keyword that holds settings -> the class of these, each of which is a keyword of its own for callers
PARTS = {"preprocess": Preprocess, "budget": Budget, "acceleration": Acceleration}


def declared() -> dict[str, Setting]:
    """Every setting that is a keyword somewhere, by name."""
    flat = [item for item in settings_of(Job) if not item.holds_settings]
    return {item.field: item for item in (*flat, *(item for part in PARTS.values() for item in settings_of(part)))}


def read(function: str, options: type[Any], given: Mapping[str, Any], files: Files) -> dict[str, Any]:
    """The keywords of a call as fields of `Job` and of its parts.

    Args:
        function: as errors name it.
        options: the TypedDict of what it takes.
        given: what the caller wrote.
        files: keep models that are given in memory.

    Raises:
        UsageError: there is no such keyword (the nearest is named), or it takes no such value.
    """
    known, settings = options.__optional_keys__, declared()
    found: dict[str, Any] = {}
    parts: dict[str, dict[str, Any]] = {
        name: {} for name, part in PARTS.items() if any(item.field in known for item in settings_of(part))
    }
    for name, value in given.items():
        if name in parts and isinstance(value, PARTS[name]):
            found[name] = value  # a part whole, as the dataclass
            continue
        if name not in known:
            near = difflib.get_close_matches(name, sorted(known), 1)
            do = f"did you mean {near[0]}?" if near else "docs/api.md lists what it takes"
            raise UsageError(f"{function} has no option {name!r}", where=f"onnxcomp.{function}", do=do)
        item = settings[name]
        owner = next((key for key, part in PARTS.items() if item.owner is part), "")
        (parts[owner] if owner else found)[name] = _value(item, value, files)
    return {name: PARTS[name](**values) for name, values in parts.items()} | found


def split_off(options: type[Any], given: Mapping[str, Any], name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Keywords that are options of a pass of this name, and the others."""
    own = {item.name for item in describe(find(name))} - set(declared())
    known = own & options.__optional_keys__
    mine = {key: value for key, value in given.items() if key in known}
    return mine, {key: value for key, value in given.items() if key not in known}


def _value(item: Setting, value: Any, files: Files) -> Any:
    """One value as its field has it."""
    if value is None and (item.optional or item.default is None):
        return None
    if item.takes == "Model":
        return files.path(value)
    if item.field == "passes":
        return Pipeline.of(value)
    if item.takes in ("Source", "LabelSource", "MetricSource") or item.reads_itself:
        return value  # whatever opens it says what is wrong with it
    if isinstance(value, os.PathLike):
        return value_of(item, os.fspath(value))
    if isinstance(value, Mapping):
        value = {key: [*map(_plain, part)] if isinstance(part, tuple | list) else part for key, part in value.items()}
    if isinstance(value, tuple):
        value = list(value)
    return value_of(item, _plain(value))


def _plain(value: Any) -> Any:
    """A number of numpy's as Python's."""
    return value.item() if isinstance(value, np.generic) else value
