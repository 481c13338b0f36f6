"""How is a setting declared once? As a dataclass field, from which flags, configuration, schema and docs come."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

# what a setting names: a file or function that is read, a file that is written, or nothing outside of itself
Place = Literal["input", "data", "function", "output", ""]
LOADED_LATE = ("Pipeline", "MetricSource")  # types that only checkers see here: the command line gives text for them
# the headings that --help lists options under, in this order
GROUPS = ("First", "Samples", "Pictures", "Judging", "Training", "GPU", "Run", "Output")
Group = Literal["First", "Samples", "Pictures", "Judging", "Training", "GPU", "Run", "Output"]


def setting(
    help_text: str,
    *,
    default: Any = dataclasses.MISSING,
    factory: Any = dataclasses.MISSING,
    group: Group = "Run",
    place: Place = "",
    key: str = "",
    flag: str = "",
    metavar: str = "",
    choices: tuple[str, ...] | Callable[[], tuple[str, ...]] = (),
    minimum: float | None = None,
    above: float | None = None,
    maximum: float | None = None,
    read: Callable[[Any], Any] | None = None,
    off: str = "",
    takes: str = "",
    **more: Any,
) -> Any:
    """A dataclass field that says all that flags, configuration, schema and docs need.

    Args:
        help_text: one line, for people.
        default, factory: as of `dataclasses.field`; without either the setting must be given.
        group: the heading of --help.
        place: what its value names outside of the job.
        key: its name in the configuration, where that is not the field's.
        flag: its name on the command line, where that is not the field's: `-o/--output`, `--shape`.
        metavar: what stands for its value in --help.
        choices: the words it may take, or what lists them; those of a Literal need no telling.
        minimum, maximum: inclusive bounds of a number.
        above: exclusive lower bound of a number.
        read: makes the value from text or a number; then the dataclass itself says what is wrong with it.
        off: what a flag says that turns it off, for a switch that is on by default.
        takes: the type, as it is written, that the library's functions take, where that is not the field's own.
        more: further facts for the class that declares it.
    """
    told = {
        "help": help_text,
        "group": group,
        "place": place,
        "key": key,
        "flag": flag,
        "metavar": metavar,
        "choices": choices,
        "minimum": minimum,
        "above": above,
        "maximum": maximum,
        "read": read,
        "off": off,
        "takes": takes,
        **more,
    }
    return dataclasses.field(default=default, default_factory=factory, metadata=told)


@dataclass(frozen=True)
class Setting:
    """One declared setting.

    Attributes:
        name: as the configuration writes it.
        hint: the type of its field, without None.
        default: None where it may be left out.
        help: one line.
        minimum, maximum: inclusive bounds of a number.
        above: exclusive lower bound of a number.
        owner: the class it comes from.
        field: its name there.
        flag: as the command line writes it; a switch that is on by default is turned off there.
        choices: the words it may take; empty where it is no such setting.
        off: the help of the flag that turns it off.
        takes: the type that the library's functions take, where that is not `hint`.
        optional: whether it may be None.
    """

    name: str
    hint: Any
    default: Any
    help: str
    owner: type[Any]
    field: str
    flag: str
    group: str
    place: str
    metavar: str
    choices: tuple[str, ...]
    minimum: float | None
    above: float | None
    maximum: float | None
    reads_itself: bool
    off: str
    takes: str
    optional: bool

    @property
    def holds_settings(self) -> bool:
        """Whether it is a dataclass of settings itself."""
        return dataclasses.is_dataclass(self.hint) and any("help" in f.metadata for f in dataclasses.fields(self.hint))

    @property
    def negated(self) -> bool:
        """Whether its flag turns it off."""
        return self.hint is bool and self.default is True


def settings_of(owner: type[Any]) -> Iterator[Setting]:
    """The settings that a dataclass declares, in order; fields of other kinds are not among them."""
    hints = _hints(typing.cast("Hashable", owner))
    for item in dataclasses.fields(owner):
        told = item.metadata
        if "help" not in told:
            continue
        hint = without_none(hints[item.name])
        default = None if item.default is dataclasses.MISSING else item.default
        word = item.name.replace("_", "-")
        yield Setting(
            name=told["key"] or item.name,
            hint=hint,
            default=default,
            help=told["help"],
            owner=owner,
            field=item.name,
            flag=told["flag"] or (f"--no-{word}" if hint is bool and default is True else f"--{word}"),
            group=told["group"],
            place=told["place"],
            metavar=told["metavar"],
            choices=_choices(told["choices"], hint),
            minimum=told["minimum"],
            above=told["above"],
            maximum=told["maximum"],
            reads_itself=told["read"] is not None,
            off=told["off"],
            takes=told["takes"],
            optional=type(None) in typing.get_args(hints[item.name]),
        )


@cache
def _hints(owner: Hashable) -> dict[str, Any]:
    return typing.get_type_hints(owner, localns=dict.fromkeys(LOADED_LATE, str))


def _choices(told: tuple[str, ...] | Callable[[], tuple[str, ...]], hint: Any) -> tuple[str, ...]:
    listed = told() if callable(told) else told
    return listed or (typing.get_args(hint) if typing.get_origin(hint) is Literal else ())


def without_none(hint: Any) -> Any:
    """`X | None` -> X, and the first of several types; a Literal stays one."""
    if typing.get_origin(hint) not in (types.UnionType, typing.Union):
        return hint
    return next(part for part in typing.get_args(hint) if part is not type(None))
