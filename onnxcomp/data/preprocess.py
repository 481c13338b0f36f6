"""What preprocessing was asked for? The fields of one dataclass, from which the flags and the configuration come."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from onnxcomp.errors import UsageError
from onnxcomp.settings import setting


def number(value: object) -> float:
    """A finite number, or a text like `0.5`, `.5`, `1/255`.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(value, str):
        over, slash, under = value.partition("/")
        if slash and float(under) == 0:
            raise ValueError(f"{value!r} divides by zero")
        value = float(over) / float(under) if slash else float(over)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r} is not a finite number")
    return float(value)


def numbers(value: object) -> tuple[float, ...]:
    """A tuple of numbers from a number, a sequence, or a comma-separated text.

    Raises:
        ValueError: a part is no number, or there is none.
    """
    parts = value.split(",") if isinstance(value, str) else value if isinstance(value, list | tuple) else [value]
    if not parts:
        raise ValueError("an empty list")
    return tuple(number(part) for part in parts)


def _option(
    help_text: str, read: Callable[[Any], Any], metavar: str = "", choices: tuple[str, ...] = (), takes: str = ""
) -> Any:
    return setting(help_text, default=None, read=read, metavar=metavar, choices=choices, group="Pictures", takes=takes)


def _level(value: object) -> int:
    level = number(value)
    if not level.is_integer() or not 0 <= level <= 255:
        raise ValueError(f"{value!r} is not a whole number from 0 to 255")
    return int(level)


@dataclass(frozen=True)
class Preprocess:
    """Preprocessing of pictures as the user gave it: (pixel*scale - mean)/std, pixels being 0..255. None: not given.

    From these fields come the command line's flags and the keys of the configuration's `preprocess` table.

    Raises:
        UsageError: a value that its option cannot take.
    """

    scale: float | None = _option("Factor for pixels of 0..255, before mean and std.", number, "NUMBER")
    mean: tuple[float, ...] | None = _option(
        "Subtracted after scaling; one number, or one a channel in the model's order, comma-separated.",
        numbers,
        "LIST",
        takes="float | Sequence[float]",
    )
    std: tuple[float, ...] | None = _option(
        "Divided by at the end; like --mean.", numbers, "LIST", takes="float | Sequence[float]"
    )
    layout: str | None = _option("Where the model has its channels.", str, choices=("nchw", "nhwc"))
    color: str | None = _option("Order of the model's channels.", str, choices=("rgb", "bgr", "gray"))
    resize: str | None = _option(
        "stretch: to the model's size; letterbox: aspect kept, top-left, the rest padded; "
        "center-crop: the shorter side to the model's size, the middle cut out. Bilinear.",
        str,
        choices=("stretch", "letterbox", "center-crop"),
    )
    pad_value: int | None = _option("Pixel value (0..255) that letterbox pads with.", _level, "LEVEL")

    def __post_init__(self) -> None:
        for option in dataclasses.fields(self):
            value = getattr(self, option.name)
            if value is not None:
                object.__setattr__(self, option.name, _checked(option, value))
        if self.scale == 0 or 0.0 in (self.std or ()):
            raise UsageError("scale and std cannot be 0", where="--scale, --std", do="leave the flag out")

    @classmethod
    def from_mapping(cls, table: Mapping[str, Any]) -> Preprocess:
        """From a configuration's table.

        Raises:
            UsageError: an unknown key (the nearest is named), or a value that its option cannot take.
        """
        names = [option.name for option in dataclasses.fields(cls)]
        for key in table:
            if key not in names:
                near = difflib.get_close_matches(key, names, 1, 0.0)[0]
                raise UsageError(f"preprocess has no option {key!r}", where="preprocess", do=f"did you mean {near}?")
        return cls(**table)

    @property
    def given(self) -> tuple[str, ...]:
        """The flags that were set."""
        return tuple(flag(o.name) for o in dataclasses.fields(self) if getattr(self, o.name) is not None)


def _checked(option: dataclasses.Field[Any], value: Any) -> Any:
    try:
        read = option.metadata["read"](value)
    except (ValueError, TypeError) as error:
        raise UsageError(
            f"{flag(option.name)} cannot be {value!r}: {error}", where=flag(option.name), do=option.metadata["help"]
        ) from error
    choices = option.metadata["choices"]
    if choices and read not in choices:
        near = difflib.get_close_matches(str(read), choices, 1)
        raise UsageError(
            f"{flag(option.name)} cannot be {value!r}",
            where=flag(option.name),
            do=f"choose from {', '.join(choices)}" + (f"; did you mean {near[0]}?" if near else ""),
        )
    return read


def flag(name: str) -> str:
    """The command line's spelling of an option."""
    return "--" + name.replace("_", "-")
