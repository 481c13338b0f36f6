"""A pass's fields as options: declared once, checked and converted here for the constructor, spec strings and TOML."""

from __future__ import annotations

import dataclasses
import difflib
import math
import operator
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from onnxcomp.errors import UsageError


@dataclass(frozen=True)
class Bare:
    """A word of a spec string that was not quoted; the field's type decides what it means."""

    text: str


def option(
    default: Any,
    doc: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> Any:
    """Declare an option of a pass: a dataclass field with its help text and bounds.

    Args:
        default: value when the option is not given.
        doc: one line of help; names the unit.
        minimum, maximum: inclusive bounds of a number.
        above, below: exclusive bounds of a number.
    """
    bounds = {"minimum": minimum, "maximum": maximum, "above": above, "below": below}
    given = {key: bound for key, bound in bounds.items() if bound is not None}
    return dataclasses.field(default=default, metadata={"doc": doc, **given})


@dataclass(frozen=True)
class OptionInfo:
    """One option as help pages show it."""

    name: str
    type: str
    default: Any
    doc: str


def describe(cls: type[Any]) -> list[OptionInfo]:
    """The options of a pass class, in order of declaration."""
    hints = typing.get_type_hints(cls)
    return [
        OptionInfo(f.name, type_name(hints[f.name]), f.default, str(f.metadata.get("doc", "")))
        for f in dataclasses.fields(cls)
    ]


def type_name(hint: Any) -> str:
    """A type as a user reads it: `number`, `one of a, b`, `list of text`."""
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(str(a) for a in get_args(hint))
    if get_origin(hint) in (types.UnionType, typing.Union):
        return " or ".join(type_name(a) for a in get_args(hint) if a is not type(None))
    if get_origin(hint) is tuple:
        return f"list of {type_name(get_args(hint)[0])}"
    return {int: "whole number", float: "number", bool: "true or false", str: "text"}.get(hint, str(hint))


def checked(cls: type[Any], name: str, field: dataclasses.Field[Any], hint: Any, value: Any) -> Any:
    """A value converted to its field's type and held against its bounds.

    Raises:
        UsageError: names the pass, the option and what it takes.
    """
    converted = _convert(hint, value)
    if converted is _UNFIT:
        shown = value.text if isinstance(value, Bare) else value
        raise UsageError(
            f"{name}: {field.name}={shown!r} is not {type_name(hint)}",
            where=f"pass {name}",
            do=f"see onnxcomp passes {name}",
        )
    _check_bounds(name, field, converted)
    return converted


def reject_unknown(name: str, known: list[str], given: list[str]) -> None:
    """Raise on an option that a pass does not have.

    Raises:
        UsageError: names the nearest option.
    """
    for key in given:
        if key not in known:
            close = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(known)}"
            raise UsageError(f"{name} has no option {key!r}", where=f"pass {name}", do=hint)


NONE = "none"  # how spec strings write that an optional value is not there
_UNFIT = object()


def _convert(hint: Any, value: Any) -> Any:
    origin = get_origin(hint)
    if origin in (types.UnionType, typing.Union):
        if type(None) in get_args(hint) and (value is None or value == Bare(NONE)):
            return None
        options = (_convert(a, value) for a in get_args(hint) if a is not type(None))
        return next((c for c in options if c is not _UNFIT), _UNFIT)
    if origin is Literal:
        text = value.text if isinstance(value, Bare) else value
        return next((a for a in get_args(hint) if a == text or str(a) == str(text)), _UNFIT)
    if origin is tuple:
        items = list(value) if isinstance(value, list | tuple) else [value]
        converted = [_convert(get_args(hint)[0], item) for item in items]
        return _UNFIT if any(c is _UNFIT for c in converted) else tuple(converted)
    return _scalar(hint, value)


def _scalar(hint: Any, value: Any) -> Any:
    if isinstance(value, Bare):
        if hint is str:
            return value.text
        value = _number_or_flag(value.text)
    if hint is bool:
        return value if isinstance(value, bool) else _UNFIT
    if isinstance(value, bool):
        return _UNFIT
    if hint is float:
        return float(value) if isinstance(value, int | float) and math.isfinite(value) else _UNFIT
    if hint is int:
        whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        return int(value) if whole else _UNFIT
    return value if isinstance(hint, type) and isinstance(value, hint) else _UNFIT


def _number_or_flag(text: str) -> Any:
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


_BOUNDS: dict[str, tuple[Callable[[float, float], bool], str]] = {
    "minimum": (operator.ge, "at least"),
    "maximum": (operator.le, "at most"),
    "above": (operator.gt, "above"),
    "below": (operator.lt, "below"),
}


def _check_bounds(name: str, field: dataclasses.Field[Any], value: Any) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return
    for key, (holds, words) in _BOUNDS.items():
        bound = field.metadata.get(key)
        if bound is not None and not holds(value, bound):
            raise UsageError(
                f"{name}: {field.name}={value:g} must be {words} {bound:g}",
                where=f"pass {name}",
                do=f"see onnxcomp passes {name}",
            )
