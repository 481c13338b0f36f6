"""The screen of `onnxcomp passes`: everything on it comes from the pass classes."""

from __future__ import annotations

import dataclasses
import inspect
from typing import TYPE_CHECKING, Any

from onnxcomp.manager.base import Need, Pass
from onnxcomp.manager.options import OptionInfo, Range, describe
from onnxcomp.manager.spelling import format_value
from onnxcomp.report.tables import table
from onnxcomp.targets.table import BUILT_IN, find

if TYPE_CHECKING:
    from rich.console import Console


def show_all(classes: list[type[Pass]], console: Console) -> None:
    """One line a pass."""
    rows = [(cls.name, cls.guarantee.value, _needs(cls.needs), first_line(cls)) for cls in classes]
    console.print(table(("pass", "outputs", "needs", "what it does"), rows, prose=(2, 3)))


def show_one(cls: type[Pass], console: Console) -> None:
    """What a pass does, and its options."""
    from rich.text import Text

    console.print(Text(f"{cls.name}\n", style="bold"))
    for paragraph in (inspect.getdoc(cls) or "").split("\n\n"):
        console.print(Text(" ".join(paragraph.split("\n")) + "\n"), soft_wrap=not console.is_terminal)
    promise = {"close": f", within {cls.tolerance:g} of the largest output"}.get(cls.guarantee.value, "")
    console.print(Text(f"outputs: {cls.guarantee.value}{promise}   needs: {_needs(cls.needs)}\n"))
    rows = [(item.name, item.type, default_text(item), item.doc) for item in describe(cls)]
    console.print(table(("option", "takes", "default", "meaning"), rows, prose=(1, 3)))
    tried = [(item.name, item.search) for item in describe(cls) if item.search]
    if tried:
        console.print()
        console.print(table(("option", "a search tries"), tried, prose=(1,)))
    for line in filter(None, [search_words(cls)]):
        console.print(Text(f"\n{line}"), soft_wrap=not console.is_terminal)
    console.print(Text(f"\nexample: --passes '{_example(cls)}'", style="dim"))


def described(cls: type[Pass]) -> dict[str, Any]:
    """JSON-ready: what a pass does, promises and needs, and its options."""
    options = [
        {"name": item.name, "type": item.type, "default": item.default, "help": item.doc, "search": item.search}
        for item in describe(cls)
    ]
    return {
        "name": cls.name,
        "guarantee": cls.guarantee.value,
        "needs": sorted(need.value for need in cls.needs),
        "help": inspect.getdoc(cls) or "",
        "options": options,
    }


def search_words(cls: type[Pass]) -> str:
    """Whether a search tries a pass at all, and for which targets; empty where it does, for all of them."""
    if cls.unsearched:
        return f"A search leaves it alone: {cls.unsearched}."
    suited = [name for name in BUILT_IN if cls.suits(find(name))]
    return f"A search tries it for {' and '.join(suited)} only." if len(suited) < len(BUILT_IN) else ""


def first_line(cls: type[Pass]) -> str:
    """The first sentence of a pass's documentation."""
    return (inspect.getdoc(cls) or "").partition("\n")[0]


def default_text(item: OptionInfo) -> str:
    """A default as spec strings write it; nothing where the option is unset."""
    return "" if item.default is None or item.default == () else format_value(item.default)


def _example(cls: type[Pass]) -> str:
    """A spec with the first option of the pass's own that has a value to show, else with one that every pass has."""
    for item in dataclasses.fields(cls):
        if item.name not in ("include", "exclude") and (value := _value(item)):
            return f"{cls.name}{{{item.name}={value}}}"
    return f'{cls.name}{{exclude=["head*"]}}'


def _value(item: dataclasses.Field[Any]) -> str:
    """The default of an option, or where it is unset one that a search tries; empty where there is neither."""
    if item.default is not None and item.default != ():
        return format_value(item.default)
    tried = item.metadata.get("search")
    if isinstance(tried, Range):
        return f"{(tried.low + tried.high) / 2:.1g}"
    return format_value(tried[0]) if tried else ""


def _needs(needs: frozenset[Need]) -> str:
    return ", ".join(sorted(need.value for need in needs)) or "nothing"
