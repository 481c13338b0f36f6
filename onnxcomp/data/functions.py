"""How is `module.py:function` found and called, so that a mistake in it is told in its own words?"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from onnxcomp.errors import DataError, UsageError


def looks_like_function(text: str) -> bool:
    """Whether the text has the form `module.py:function` or `package.module:function`."""
    module, separator, name = text.rpartition(":")
    return bool(separator) and name.isidentifier() and len(module) > 1 and not Path(text).exists()


def load_function(text: str, flag: str) -> Callable[..., Any]:
    """The function named by `module.py:function` (a file) or `package.module:function` (an importable module).

    A file is run with its own folder on the import path, as `python module.py` would.

    Raises:
        UsageError: no such file, module or function, or the file raises when it is loaded. `flag` names the option.
    """
    module_name, _, name = text.rpartition(":")
    where = f"{flag} {text}"
    if not module_name or not name.isidentifier():
        raise UsageError(f"{text!r} does not name a function", where=where, do="write module.py:function")
    module = _from_file(Path(module_name), where) if module_name.endswith(".py") else _by_name(module_name, where)
    function = getattr(module, name, None)
    if callable(function):
        return function  # type: ignore[no-any-return]
    names = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
    near = difflib.get_close_matches(name, names, 1)
    raise UsageError(
        f"{module_name} has no function {name}",
        where=where,
        do=f"did you mean {near[0]}?" if near else f"it has: {', '.join(names) or 'no function at all'}",
    )


@contextmanager
def calling(what: str, do: str) -> Iterator[None]:
    """Turn what a user's function raises into a DataError that names the line in the user's own file."""
    try:
        yield
    except DataError:
        raise
    except SystemExit as error:  # sys.exit(0) in a user's function is no success of ours
        raise DataError(f"{what} left with sys.exit({error.code!r})", where=_line_of(error) or what, do=do) from error
    except Exception as error:
        raise DataError(
            f"{what} raised {type(error).__name__}: {error}", where=_line_of(error) or what, do=do
        ) from error


def _from_file(path: Path, where: str) -> ModuleType:
    if not path.is_file():
        raise UsageError(f"there is no file {path}", where=where, do="check the path; it is relative to this folder")
    # a name of its own, so that two files called metrics.py do not meet
    name = f"_onnxcomp_{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} cannot be loaded as Python", where=where, do="give a .py file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise _cannot_load(str(path), error, where) from error
    finally:
        sys.path.remove(str(path.resolve().parent))
    return module


def _by_name(name: str, where: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise _cannot_load(name, error, where) from error


def _cannot_load(name: str, error: BaseException, where: str) -> UsageError:
    return UsageError(
        f"{name} cannot be loaded: {type(error).__name__}: {error}", where=_line_of(error) or where, do="mend the file"
    )


def _line_of(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if f.filename.endswith(".py") and Path(f.filename).parent != Path(__file__).parent]
    outside = [f for f in own if "importlib" not in f.filename]
    return f"{outside[-1].filename}, line {outside[-1].lineno}" if outside else ""
