"""Which targets exist? The built-in ones, each a file of its own, and those that installed packages add."""

from __future__ import annotations

import functools
import importlib
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING

from onnxcomp.errors import UsageError

if TYPE_CHECKING:
    from onnxcomp.targets.base import Target

BUILT_IN = ("cpu", "arm64", "cuda", "tensorrt", "openvino")  # modules here; each holds its record as TARGET
ENTRY_POINT_GROUP = "onnxcomp.targets"  # each entry bears the target's name and leads to its record


def names() -> tuple[str, ...]:
    """The names of all targets, the built-in ones first; nothing is imported for it."""
    return (*BUILT_IN, *_added())


@functools.cache
def find(name: str) -> Target:
    """The record of a target.

    Raises:
        UsageError: there is no such target, or the package that adds it cannot be loaded.
    """
    from onnxcomp.targets.base import Target

    if name in BUILT_IN:
        built_in: Target = importlib.import_module(f"onnxcomp.targets.{name}").TARGET
        return built_in
    entry = _added().get(name)
    if entry is None:
        raise UsageError(f"there is no target {name!r}", where="--target", do=f"use one of {', '.join(names())}")
    package = entry.dist.name if entry.dist is not None else "an installed package"
    where, do = f"entry point {entry.value} of {package}", "update that package, or remove it"
    try:
        target = entry.load()
    except Exception as error:
        raise UsageError(f"target {name} cannot be loaded: {error}", where=where, do=do) from error
    if not isinstance(target, Target) or target.name != name:
        raise UsageError(f"{entry.value} is no Target named {name!r}", where=where, do=do)
    return target


@functools.cache
def _added() -> dict[str, EntryPoint]:
    """Targets of installed packages by name; a built-in one cannot be replaced."""
    found = sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda entry: entry.name)
    return {entry.name: entry for entry in found if entry.name not in BUILT_IN}
