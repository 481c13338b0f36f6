"""Which models are to be built, and how? Reads onnxcomp.toml, or [tool.onnxcomp] of pyproject.toml.

The keys of a model's table are the fields of `Job`, `Budget`, `Preprocess` and `BuildKeys`; those of the file as a
whole are these again, as defaults for every model, and the fields of `FileKeys`. Nothing is listed twice: reading, the
JSON schema and the file that `onnxcomp init` writes all go through `model_keys` and `file_keys`.
"""

from __future__ import annotations

import dataclasses
import difflib
import operator
import typing
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxcomp import toml
from onnxcomp.data.preprocess import Preprocess
from onnxcomp.errors import UsageError
from onnxcomp.files import STANDARD_OUTPUT, special
from onnxcomp.job import Job
from onnxcomp.settings import Setting, setting, settings_of
from onnxcomp.verify.budget import Budget, Size, parse_size

FILE = "onnxcomp.toml"
PROJECT = "pyproject.toml"
STATE = ".onnxcomp"


@dataclass(frozen=True)
class BuildKeys:
    """Keys of a model that only the build step knows."""

    name: str = setting("What the build calls this model; its output without .onnx.", default="")
    depends: tuple[str, ...] = setting(
        "Further files and folders that the data or metric functions read: a change rebuilds.", default=()
    )


@dataclass(frozen=True)
class FileKeys:
    """Keys of the file as a whole."""

    state: Path = setting("Folder for what the build remembers; may be deleted at any time.", default=Path(STATE))
    reports: Path | None = setting(
        "Folder for the reports of the whole build; `reports` in the state folder.", default=None
    )


@dataclass(frozen=True)
class ModelEntry:
    """One model of the configuration.

    Attributes:
        name: unique in the file.
        job: what to do; its paths are relative to the folder of the configuration.
        depends: further files and folders that decide the result.
        table: the keys as given, the file's defaults included; JSON-ready.
    """

    name: str
    job: Job
    depends: tuple[str, ...]
    table: dict[str, Any]


@dataclass(frozen=True)
class Config:
    """A configuration file. `state` and `reports` are relative to its folder."""

    file: Path
    models: tuple[ModelEntry, ...]
    state: Path
    reports: Path

    @property
    def folder(self) -> Path:
        """The folder that all its paths are relative to."""
        return self.file.parent


def load(path: Path | None = None) -> Config:
    """Read a configuration.

    Args:
        path: the file, or the folder that holds it; the current folder if not given.

    Raises:
        UsageError: there is none, it is no TOML, a key is unknown (the nearest is named) or has a wrong value, or two
            models would write one file.
    """
    file = _find(path or Path())
    table = _parse(file)
    with _at(str(file)):
        return _config(file, table)


def check(text: str, file: Path) -> None:
    """Check the text of a configuration before it is written to `file`.

    Raises:
        UsageError: as `load`.
    """
    with _at(str(file)):
        _config(file, _tables(text, file))


def entry_of(table: Mapping[str, Any]) -> ModelEntry:
    """A model from its keys.

    Raises:
        UsageError: a key is unknown or has a wrong value.
    """
    keys = {key.name: key for key in model_keys()}
    given: dict[type[Any], dict[str, Any]] = {Job: {}, Budget: {}, BuildKeys: {}}
    for name, value in table.items():
        if name == "preprocess":
            given[Job]["preprocess"] = _preprocess(value)
        elif name not in keys:
            raise _unknown(name, [*keys, "preprocess"])
        else:
            given[keys[name].owner][keys[name].field] = value_of(keys[name], value)
    if "model" not in given[Job]:
        raise UsageError("the model has no path", where="path", do='say which file it is: path = "model.onnx"')
    for name in ("output", "report", "html"):
        if given[Job].get(name) == STANDARD_OUTPUT:
            raise UsageError(f"{name} is a file, not standard output", where=name, do="give a name")
    budget = Budget(**given[Budget])
    job = Job(**given[Job], budget=budget)
    job = dataclasses.replace(job, output=job.out, report=job.report_path)
    extra = BuildKeys(**given[BuildKeys])
    name = extra.name or job.out.as_posix().removesuffix(".onnx").removesuffix(".opt")
    return ModelEntry(name, job, extra.depends, dict(table))


def model_keys() -> tuple[Setting, ...]:
    """The keys of a model's table, in order; those of its `preprocess` table are `preprocess_keys`."""
    found: list[Setting] = []
    for key in settings_of(Job):
        if key.hint is Budget:
            found += settings_of(Budget)
        elif key.hint is not Preprocess:
            found.append(key)
    extra = {key.name: key for key in settings_of(BuildKeys)}
    return (found[0], extra["name"], *found[1:], extra["depends"])


def preprocess_keys() -> tuple[Setting, ...]:
    """The keys of a model's `preprocess` table."""
    return tuple(settings_of(Preprocess))


def file_keys() -> tuple[Setting, ...]:
    """The keys of the file as a whole, beside the defaults for its models."""
    return tuple(settings_of(FileKeys))


def default_keys() -> tuple[Setting, ...]:
    """The keys that may stand at the top of the file, for every model: all that do not name one file."""
    return tuple(key for key in model_keys() if key.name not in ("path", "name", "output", "report", "html"))


# -- the file ------------------------------------------------------------------------------------------------------


def _find(path: Path) -> Path:
    if not path.is_dir():
        if not path.exists():
            raise UsageError("there is no such configuration", where=f"file {path}", do="onnxcomp init writes one")
        return path
    if (path / FILE).is_file():
        return path / FILE
    if (path / PROJECT).is_file() and "onnxcomp" in _toml(path / PROJECT).get("tool", {}):
        return path / PROJECT
    raise UsageError(
        f"there is no {FILE}, and no [tool.onnxcomp] in a {PROJECT}",
        where=f"folder {path.resolve()}",
        do="onnxcomp init MODEL writes a first one",
    )


def _parse(file: Path) -> dict[str, Any]:
    content = _toml(file)
    if file.name != PROJECT:
        return content
    found = content.get("tool", {}).get("onnxcomp")
    if not isinstance(found, dict):
        raise UsageError("it has no table [tool.onnxcomp]", where=f"file {file}", do=f"add one, or write {FILE}")
    return found


def _toml(file: Path) -> dict[str, Any]:
    if found := special(file):
        raise UsageError(f"this is {found}, and no configuration", where=f"file {file}", do="give a file")
    try:
        return _tables(file.read_text(encoding="utf-8"), file)
    except OSError as error:
        raise UsageError(f"it cannot be read: {error.strerror}", where=f"file {file}", do="check the path") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"this is no TOML: {error}", where=f"file {file}", do="write it in UTF-8") from error


def _tables(text: str, file: Path) -> dict[str, Any]:
    try:
        return toml.parse(text)
    except RecursionError as error:
        raise UsageError("its tables are nested too deep", where=f"file {file}", do="write plain tables") from error
    except ValueError as error:  # no TOML, or a number of too many digits
        raise UsageError(f"this is no TOML: {error}", where=f"file {file}", do="mend the line it names") from error


def _config(file: Path, table: dict[str, Any]) -> Config:
    own = {key.name: key for key in file_keys()}
    defaults = [key.name for key in default_keys()] + ["preprocess"]
    only_models = [key.name for key in model_keys() if key.name not in defaults]
    shared: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    for name, value in table.items():
        if name in own:
            settings[name] = value_of(own[name], value)
        elif name in defaults:
            shared[name] = value
        elif name in only_models:
            raise UsageError(f"{name} belongs to one model", where=name, do="move it below a line [[model]]")
        elif name != "model":
            raise _unknown(name, [*own, *defaults, "model"])
    tables = table.get("model", [])
    if not isinstance(tables, list) or not tables or not all(isinstance(item, dict) for item in tables):
        raise UsageError("it names no model", where="model", do='add [[model]] and below it path = "model.onnx"')
    entries = []
    for number, item in enumerate(tables, 1):
        with _at(f"model {number} ({item.get('path', 'no path')})"):
            entries.append(entry_of(_merged(shared, item)))
    _check_files(entries)
    found = FileKeys(**settings)
    return Config(file, tuple(entries), found.state, found.reports or found.state / "reports")


def _merged(shared: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """A model's own keys over the file's; its own passes, recipe or plan sets aside what the file says instead."""
    base, instead = dict(shared), ("passes", "recipe", "plan")
    if any(key in own for key in instead):
        base = {key: value for key, value in base.items() if key not in instead}
    merged = base | dict(own)
    both = (base.get("preprocess"), own.get("preprocess"))
    if all(isinstance(part, dict) for part in both):
        merged["preprocess"] = {**base["preprocess"], **own["preprocess"]}
    return merged


def _check_files(entries: list[ModelEntry]) -> None:
    """Refuse two models that would write one file, and a model that another one writes."""
    names: set[str] = set()
    written: dict[Path, str] = {}
    for entry in entries:
        if entry.name in names:
            raise UsageError(f"two models are called {entry.name}", where="name", do="give each a name of its own")
        names.add(entry.name)
        job = entry.job
        for path in (job.out, job.rejected, job.report_path, *([job.html] if job.html is not None else [])):
            if path in written:
                raise UsageError(
                    f"{written[path]} and {entry.name} would both write {path}",
                    where="output, report",
                    do="give each model an output of its own",
                )
            written[path] = entry.name
    for entry in entries:
        if entry.job.model in written:
            raise UsageError(
                f"{entry.name} reads what {written[entry.job.model]} writes",
                where=f"path {entry.job.model}",
                do="models are built side by side; chain the passes in one model instead",
            )


# -- one key -------------------------------------------------------------------------------------------------------


def value_of(key: Setting, value: Any) -> Any:
    """A plain value, as TOML has them, turned into what the field takes.

    Raises:
        UsageError: the field takes no such value.
    """
    with _at(key.name):
        found = _converted(key, value)
    if isinstance(found, int | float):
        _check_bounds(key, found)
    return found


def _check_bounds(key: Setting, value: float) -> None:
    wrong = [
        f"{word} {bound:g}"
        for word, bound, holds in (
            ("at least", key.minimum, operator.ge),
            ("above", key.above, operator.gt),
            ("at most", key.maximum, operator.le),
        )
        if bound is not None and not holds(value, bound)
    ]
    if wrong:
        raise UsageError(f"{key.name} is {wrong[0]}, not {value}", where=key.name, do=key.help)


def _converted(key: Setting, value: Any) -> Any:
    hint, origin = key.hint, typing.get_origin(key.hint)
    if key.choices and value in key.choices:
        return value
    if hint in (str, Any) and isinstance(value, str) and (value or key.name == "name") and not key.choices:
        return value
    if hint is Path and isinstance(value, str) and value:
        return Path(value)
    if hint is bool and isinstance(value, bool):
        return value
    if hint is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if hint is Size and isinstance(value, int | str) and not isinstance(value, bool):
        return parse_size(str(value))
    if origin is tuple and isinstance(value, list) and all(isinstance(part, str) for part in value):
        return tuple(value)
    if typing.get_args(hint) == (str, str):
        if isinstance(value, dict) and all(isinstance(text, str) and text for text in value.values()):
            return dict(value)
    elif hint is not None and typing.get_args(hint)[:1] == (str,) and isinstance(value, dict):
        return {name: _sizes(name, sizes) for name, sizes in value.items()}
    raise UsageError(f"{key.name} cannot be {value!r}", where=key.name, do=f"give {takes(key)}: {key.help}")


def _sizes(name: str, sizes: Any) -> tuple[int, ...]:
    if isinstance(sizes, list) and all(type(size) is int and size > 0 for size in sizes):
        return tuple(sizes)
    raise UsageError(f"{sizes!r} is no shape", where=name, do=f"write {name} = [1, 3, 224, 224]")


def takes(key: Setting) -> str:
    """What a key takes, in words."""
    if key.choices:
        return "one of " + ", ".join(key.choices)
    if key.hint in (str, Path, Any):
        return "text"
    names = {bool: "true or false", int: "a whole number", float: "a number", Size: 'bytes, "4MB" or "30%"'}
    if key.hint in names:
        return names[key.hint]
    if typing.get_args(key.hint) == (str, str):
        return "a table of texts"
    return "a list of texts" if typing.get_origin(key.hint) is tuple else "a table of lists of whole numbers"


def _preprocess(value: Any) -> Preprocess:
    with _at("preprocess"):
        if not isinstance(value, dict):
            raise UsageError("preprocess is a table", where="", do="write [model.preprocess] and its keys below")
        return Preprocess.from_mapping(value)


def _unknown(name: str, known: list[str]) -> UsageError:
    if name in {key.name for key in preprocess_keys()}:
        return UsageError(f"there is no key {name!r} here", where=name, do="move it below [model.preprocess]")
    near = difflib.get_close_matches(name, known, 1, 0.0)[0]
    return UsageError(f"there is no key {name!r}", where=name, do=f"did you mean {near}?")


@contextmanager
def _at(place: str) -> Iterator[None]:
    """Say in which file, model and key an error arose."""
    try:
        yield
    except UsageError as error:
        inside = [part for part in (place, error.where) if part]
        where = inside[0] if len(inside) < 2 or inside[0] == inside[1] else ", ".join(inside)
        raise UsageError(error.what, where=where, do=error.do) from error
