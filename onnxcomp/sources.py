"""Which files come along with what a person wrote: a function's module and its imports, the files that a spec names?

Told from the text alone: nothing is run or imported.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

_VALUE = re.compile(r'[=\[,]\s*("(?:[^"\\]|\\.)*"|[^\s{}\[\],="]+)')
MOST_MODULES = 1000  # of one function


def function_file(text: str) -> Path:
    """The file part of `module.py:function`; of anything else a name that no file has."""
    module, separator, _ = text.partition(".py:")
    return Path(f"{module}.py" if separator else text)


def module_file(text: str, folder: Path = Path()) -> Path | None:
    """The file of `module.py:function[:min]` or `package.module:function`; None where it cannot be found."""
    if ".py:" in text:
        module = function_file(text)
        return module if (folder / module).is_file() else None
    return _importable(text.partition(":")[0], sys.path) if ":" in text else None


def imported_files(module: Path, folder: Path = Path()) -> Iterator[Path]:
    """The files that a Python file imports from its own folder, and what these import from there in turn.

    Packages that are installed elsewhere are passed over, and so is what only running the file would tell.

    Args:
        folder: what the path is relative to; the paths given back are so, too.
    """
    seen, left = {module}, [module]
    while left and len(seen) < MOST_MODULES:
        file = left.pop()
        for name in _imports(folder / file):
            found = _importable(name, [str(folder / module.parent), str(folder / file.parent)])
            path = None if found is None else found.relative_to(folder)
            if path is not None and path not in seen:
                seen.add(path)
                left.append(path)
                yield path


def named_files(spec: str, folder: Path = Path()) -> Iterator[Path]:
    """The files that options in a spec string name: any value under which there is a file may be read by its pass."""
    for word in _VALUE.findall(spec):
        try:
            path = Path(json.loads(word) if word.startswith('"') else word)
            there = (folder / path).is_file()
        except (ValueError, OSError):  # no name that a file can have
            continue
        if there:
            yield path


def _importable(name: str, places: list[str]) -> Path | None:
    for place in places:
        base = Path(place, *name.split("."))
        for file in (base.with_suffix(".py"), base / "__init__.py"):
            if place and name and file.is_file():
                return file
    return None


def _imports(file: Path) -> Iterator[str]:
    """The dotted names that a file imports, anywhere in it; none where it is no Python: loading it tells that."""
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [item.name for item in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = f"{node.module}." if node.module else ""
            names = [node.module or "", *(f"{start}{item.name}" for item in node.names)]
        else:
            continue
        for name in names:
            parts = name.split(".")
            yield from (".".join(parts[: end + 1]) for end in range(len(parts)))
