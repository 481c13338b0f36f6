"""Does every public name exist, with a docstring on it and on its public members?"""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import onnxcomp

NAMES = [name for name in onnxcomp.__all__ if name not in ("__version__", "Model")]  # the second is a union of types


@pytest.mark.parametrize("name", NAMES)
def test_public_name_resolves_and_is_documented(name: str) -> None:
    thing = getattr(onnxcomp, name)
    assert (inspect.getdoc(thing) or "").strip(), f"onnxcomp.{name} has no docstring"
    assert getattr(thing, "__module__", "onnxcomp").startswith("onnxcomp")


@pytest.mark.parametrize("name", [n for n in NAMES if n[0].isupper()])
def test_public_members_are_documented(name: str) -> None:
    kind = getattr(onnxcomp, name)
    silent = []
    for key, member in vars(kind).items():
        if key.startswith("_") or not (inspect.isfunction(member) or isinstance(member, property | classmethod)):
            continue
        if not (inspect.getdoc(getattr(kind, key)) or "").strip():
            silent.append(key)
    assert not silent, f"{name}: {silent}"


def test_star_import_gives_exactly_the_public_names() -> None:
    names = subprocess.run(
        [
            sys.executable,
            "-c",
            "from onnxcomp import *; print(*sorted(k for k in dir() if k[:2] != '__' or k == '__version__'))",
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert names == sorted(onnxcomp.__all__)


def test_dir_lists_the_public_names() -> None:
    assert set(onnxcomp.__all__) <= set(dir(onnxcomp))


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'optimise'"):
        getattr(onnxcomp, "optimise")  # noqa: B009 - the attribute must not exist
