"""How does an error read that a program meets? Flags of the command line bear the names of the function's arguments."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from onnxcomp.errors import OnnxcompError

P = ParamSpec("P")
R = TypeVar("R")
_FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")


def of_arguments(function: Callable[P, R]) -> Callable[P, R]:
    """A function of the library whose errors name its own arguments; flags that are none of them stay as they are."""

    @functools.wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except OnnxcompError as error:
            words = _arguments(function)

            def named(text: str) -> str:
                return _FLAG.sub(lambda found: words.get(found.group(), found.group()), text)

            error.what, error.where, error.do = map(named, (error.what, error.where, error.do))
            raise

    return called


def _arguments(function: Callable[..., object]) -> dict[str, str]:
    """Each flag, and what a program writes in its place: `--eval-data` is `eval_data`, `--no-bench` `bench=False`."""
    from onnxcomp.api.given import declared

    words: dict[str, str] = {}
    for name in inspect.signature(function).parameters:
        flag = f"--{name.replace('_', '-')}"
        words |= dict.fromkeys((flag, flag.removesuffix("s"), flag.removesuffix("es")), name)
        words[f"--no-{name.replace('_', '-')}"] = f"{name}=False"
    for item in declared().values():
        for flag in item.flag.split("/"):
            words[flag] = f"{item.field}=False" if item.negated else item.field
    return words
