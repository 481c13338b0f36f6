"""A pass's fields as options: declared once, checked and converted here for the constructor, spec strings and TOML."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import operator
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from onnxcomp.errors import UsageError


@dataclass(frozen=True)
class Bare:
    """A word of a spec string that was not quoted; the field's type decides what it means."""

    text: str


@dataclass(frozen=True)
class Range:
    """Numbers that a search may try for an option, both ends included; `log`: a factor counts as much anywhere."""

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise UsageError(f"a range goes from a lower to a higher number, not {self}", where="option(search=...)")
        if self.log and self.low <= 0:
            raise UsageError(f"a range by factors starts above 0, not {self}", where="option(search=...)")

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}" + (" by factors" if self.log else "")


Tried = Range | tuple[Any, ...]  # numbers between two ends, or choices


def option(
    default: Any,
    doc: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    below: float | None = None,
    search: Tried | None = None,
    when: Mapping[str, tuple[Any, ...]] | None = None,
    one_of: str = "",
) -> Any:
    """Declare an option of a pass: a dataclass field with its help text, its bounds, and what a search may try.

    Args:
        default: value when the option is not given.
        doc: one line of help; names the unit.
        minimum, maximum: inclusive bounds of a number.
        above, below: exclusive bounds of a number.
        search: what a search may try: choices, None among them where the option may be left out, or a `Range`.
        when: tried only where another option, declared before, has one of these values.
        one_of: a word that this option shares with others, of which a search gives exactly one.
    """
    bounds = {"minimum": minimum, "maximum": maximum, "above": above, "below": below}
    given: dict[str, Any] = {key: bound for key, bound in bounds.items() if bound is not None}
    if search is not None:
        given |= {"search": search, "when": dict(when or {}), "one_of": one_of}
    return dataclasses.field(default=default, metadata={"doc": doc, **given})


@dataclass(frozen=True)
class OptionInfo:
    """One option as help pages show it. `search`: what a search tries, in words; empty where it leaves the option."""

    name: str
    type: str
    default: Any
    doc: str
    search: str = ""


def hints_of(cls: Any) -> dict[str, Any]:
    """The types of a pass's options; evaluated once, since every point of a search makes passes anew."""
    return _hints(cls)


@functools.cache
def _hints(cls: Any) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def describe(cls: type[Any]) -> list[OptionInfo]:
    """The options of a pass class, in order of declaration."""
    hints = hints_of(cls)
    return [
        OptionInfo(f.name, type_name(hints[f.name]), f.default, str(f.metadata.get("doc", "")), _search_text(f))
        for f in dataclasses.fields(cls)
    ]


@dataclass(frozen=True)
class Searched:
    """An option that a search may set.

    Attributes:
        name: of the option.
        values: choices, or a range.
        whole: whether the numbers of a range are whole.
        when: it is set only where each of these options has one of these values.
        one_of: of the options with this word exactly one is set; empty: it stands alone.
    """

    name: str
    values: Tried
    whole: bool
    when: Mapping[str, tuple[Any, ...]]
    one_of: str


def searched(cls: type[Any]) -> tuple[Searched, ...]:
    """What a search may set of a pass, in order of declaration.

    Raises:
        UsageError: a value does not fit the option's type or bounds, or `when` names no option that is searched before.
    """
    hints = hints_of(cls)
    found: list[Searched] = []
    for item in dataclasses.fields(cls):
        if "search" not in item.metadata:
            continue
        values, when = item.metadata["search"], item.metadata["when"]
        ends = (values.low, values.high) if isinstance(values, Range) else values
        if not ends or len(set(map(repr, ends))) < len(ends):
            raise _unfit(cls, item.name, "its choices are none, or one twice")
        for value in ends:
            checked(cls, cls.name, item, hints[item.name], value)
        for other, wanted in when.items():
            before = next((one for one in found if one.name == other), None)
            if before is None or isinstance(before.values, Range) or not set(wanted) <= set(before.values):
                raise _unfit(cls, item.name, f"it depends on {other}={wanted}, which is not tried before it")
        found.append(Searched(item.name, values, _is_whole(hints[item.name]), when, item.metadata["one_of"]))
    return tuple(found)


def _unfit(cls: type[Any], name: str, what: str) -> UsageError:
    return UsageError(f"{cls.name}: what a search may try for {name} is wrong: {what}", where=f"pass {cls.name}")


def _is_whole(hint: Any) -> bool:
    """Whether numbers of a type are whole ones."""
    return hint is int or (get_origin(hint) in (types.UnionType, typing.Union) and int in get_args(hint))


def _search_text(item: dataclasses.Field[Any]) -> str:
    """What a search tries for an option, as a person reads it."""
    if "search" not in item.metadata:
        return ""
    values, when = item.metadata["search"], item.metadata["when"]
    text = str(values) if isinstance(values, Range) else ", ".join(map(_word, values))
    for other, wanted in when.items():
        text += f", where {other} is {' or '.join(map(_word, wanted))}"
    return text + (f", one {item.metadata['one_of']} at a time" if item.metadata["one_of"] else "")


def _word(value: Any) -> str:
    if value is None:
        return "unset"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


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
        shown, kind = value.text if isinstance(value, Bare) else value, type_name(hint)
        raise UsageError(
            f"{name}: {field.name}={shown!r} is not {'a ' if kind.endswith('number') else ''}{kind}",
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
