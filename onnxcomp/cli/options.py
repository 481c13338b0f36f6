"""How do declared settings become flags? One adapter for every dataclass, and --help under headings."""

from __future__ import annotations

import functools
import typing
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from onnxcomp.settings import GROUPS, Setting, settings_of

if TYPE_CHECKING:
    from onnxcomp.manager.base import Pass

Command = TypeVar("Command", bound=Callable[..., Any])
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]
HEADINGS = {
    "First": "What matters first",
    "Samples": "Samples and shapes",
    "Pictures": "Raw pictures",
    "Judging": "Judging the result",
    "Training": "Training",
    "GPU": "GPU providers",
    "Run": "How it runs",
    "Output": "What is written and printed",
}


class GroupedOption(click.Option):
    """An option that knows the heading it stands under."""

    def __init__(self, *args: Any, group: str = "Output", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.group = group


class GroupedCommand(click.Command):
    """A command whose --help lists options under headings."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """One section for each group that has options; a command with few has one alone."""
        listed: dict[str, list[tuple[str, str]]] = {group: [] for group in GROUPS}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx) if isinstance(parameter, click.Option) else None
            if record is not None:
                listed[getattr(parameter, "group", "Output")].append(record)
        for group, records in listed.items():
            if records:
                with formatter.section(HEADINGS[group]):
                    formatter.write_dl(records)


def command(name: str) -> Callable[[Callable[..., Any]], click.Command]:
    """A click command whose --help has headings."""
    return click.command(name, cls=GroupedCommand)


def option(*names: str, group: str = "Run", **kwargs: Any) -> Callable[[Command], Command]:
    """A flag that only the command line knows."""
    return click.option(*names, cls=GroupedOption, group=group, **kwargs)


def written(*names: str, what: str) -> Callable[[Command], Command]:
    """A file that the command writes beside what it shows. `what`: the beginning of its help."""
    path = click.Path(path_type=Path)
    return option(*names, group="Output", type=path, help=f"{what} to this file; - is standard output.")


def printing(quiet: str = "Print nothing but errors.", verbose: str = "-vv: a traceback with an error.") -> Decorator:
    """`-q` and `-v`, which every command has; kwargs: quiet, verbose. Those before the command count as well."""

    def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
        function = option("-v", "--verbose", group="Output", count=True, callback=_also_before, help=verbose)(function)
        return option("-q", "--quiet", group="Output", is_flag=True, callback=_also_before, help=quiet)(function)

    return decorated


def _also_before(context: click.Context, parameter: click.Parameter, given: int) -> int:
    """What stands behind the command, together with what stands before it."""
    before = context.find_root().params.get(parameter.name or "", 0) if context.parent is not None else 0
    return given or before if isinstance(given, bool) else given + before


def settings(
    owner: type[Any], *names: str, without: tuple[str, ...] = (), **helps: str
) -> Callable[[Command], Command]:
    """Flags for the settings of a dataclass; the command gets keywords named as its fields.

    A setting that is a dataclass of settings itself has a flag for each of these, and is one keyword.

    Args:
        names: the fields; all by default.
        without: fields that the command decides about.
        helps: other words for --help, where a setting means something of its own in this command.
    """
    chosen = [item for item in settings_of(owner) if (not names or item.field in names) and item.field not in without]
    unknown = {*names, *without, *helps} - {item.field for item in settings_of(owner)}
    assert not unknown, f"{owner.__name__} has no settings {unknown}"

    def decorated(function: Command) -> Command:
        for item in reversed(chosen):
            if item.holds_settings:
                function = assembled(item.field, item.hint)(function)
            else:
                function = _flag(item, helps.get(item.field, item.help))(function)
        return function

    return decorated


def assembled(keyword: str, owner: type[Any]) -> Callable[[Command], Command]:
    """Flags for the settings of a dataclass; the command gets one keyword, an instance."""
    found = list(settings_of(owner))

    def decorated(function: Command) -> Command:
        @functools.wraps(function)
        def made(*args: Any, **kwargs: Any) -> Any:
            given = {item.field: kwargs.pop(item.field) for item in found}
            return function(*args, **{keyword: owner(**given)}, **kwargs)

        for item in reversed(found):
            made = _flag(item, item.help)(made)
        return made  # type: ignore[return-value]

    return decorated


def _flag(item: Setting, text: str) -> Callable[[Command], Command]:
    """One setting as a flag, of the type that its field has."""
    names = (*item.flag.split("/"), item.field)
    common: dict[str, Any] = {"group": item.group, "help": text, "metavar": item.metavar or None}
    if item.negated:
        common["help"] = item.off if text == item.help else text
        return option(*names, is_flag=True, default=False, callback=_turned_off, **common)
    if item.hint is bool:
        return option(*names, is_flag=True, **common)
    if typing.get_origin(item.hint) is tuple and not item.reads_itself:
        return option(*names, multiple=True, **common)
    if typing.get_args(item.hint) == (str, str):
        common["help"] = text.removesuffix(".") + "; again for each."
        return option(*names, multiple=True, callback=parse_pairs, **common)
    if _is_shapes(item.hint):
        common["help"] = text.removesuffix(".") + "; again for each input."
        return option(*names, multiple=True, callback=parse_shapes, **common)
    default = item.default if isinstance(item.default, int | float | str) and item.default != "" else None
    return option(*names, type=_type(item), default=default, show_default=default is not None, **common)


def _type(item: Setting) -> Any:
    from onnxcomp.verify.budget import Size, parse_size

    if item.choices:
        return click.Choice(item.choices)
    if item.hint is Path or (item.hint is Any and item.place == "input"):
        return click.Path(path_type=Path)
    if item.hint is Size:
        return parse_size
    if item.hint not in (int, float) or item.reads_itself:
        return str
    least = item.above if item.above is not None else item.minimum
    if least is None and item.maximum is None:
        return item.hint
    kind = click.IntRange if item.hint is int else click.FloatRange
    return kind(least, item.maximum, min_open=item.above is not None)  # type: ignore[arg-type]


def _turned_off(_context: click.Context, _parameter: click.Parameter, given: bool) -> bool:
    return not given


def _is_shapes(hint: Any) -> bool:
    """Whether a setting holds sizes by name: `Mapping[str, tuple[int, ...]]`."""
    return typing.get_args(hint)[:1] == (str,) and typing.get_origin(hint) is not tuple


def parse_shapes(_context: click.Context, _parameter: click.Parameter, texts: tuple[str, ...]) -> dict[str, Any]:
    """`NAME=1x3x224x224`, any number of times -> {name: sizes}."""
    shapes: dict[str, tuple[int, ...]] = {}
    for text in texts:
        name, separator, sizes = text.rpartition("=")
        parts = sizes.lower().split("x")
        if not separator or not name or not all(part.isascii() and part.isdigit() and int(part) for part in parts):
            raise click.BadParameter(f"{text!r} is not of the form NAME=1x3x224x224")
        if name in shapes:
            raise click.BadParameter(f"{name} is given twice")
        shapes[name] = tuple(int(part) for part in parts)
    return shapes


def parse_pairs(_context: click.Context, parameter: click.Parameter, texts: tuple[str, ...]) -> dict[str, str]:
    """`OUT=IN`, any number of times -> {OUT: IN}; no name twice."""
    pairs: dict[str, str] = {}
    for text in texts:
        left, separator, right = text.partition("=")
        if not separator or not left or not right:
            raise click.BadParameter(f"{text!r} is not of the form {parameter.metavar}")
        if left in pairs or right in pairs.values():
            raise click.BadParameter(f"{text}: a name is given twice")
        pairs[left] = right
    return pairs


def counts(least: int) -> Callable[[click.Context, click.Parameter, str], tuple[int, ...]]:
    """Reads whole numbers with commas between them, each once: `1,2,8`."""

    def parse(_context: click.Context, _parameter: click.Parameter, text: str) -> tuple[int, ...]:
        parts = [part.strip() for part in text.split(",")]
        if not all(part.isascii() and part.isdigit() and int(part) >= least for part in parts):
            raise click.BadParameter(f"{text!r} is no list of whole numbers from {least} on, such as 1,2")
        return tuple(dict.fromkeys(int(part) for part in parts))

    return parse


def pass_options(
    cls: type[Pass], without: tuple[str, ...] = (), first: tuple[str, ...] = ()
) -> Callable[[Command], Command]:
    """The options of a pass as flags, from its fields; the command gets one keyword, `options`, of those given.

    Args:
        without: fields that the command decides about.
        first: those that stand under the first heading.
    """
    from onnxcomp.manager.options import Bare, describe
    from onnxcomp.report.passes import default_text

    fields = [item for item in describe(cls) if item.name not in without]

    def decorated(function: Command) -> Command:
        @functools.wraps(function)
        def made(*args: Any, **kwargs: Any) -> Any:
            values = {item.name: kwargs.pop(f"pass_{item.name}") for item in fields}
            given = {
                name: tuple(map(Bare, value)) if isinstance(value, tuple) else Bare(value)
                for name, value in values.items()
                if value not in (None, ())
            }
            return function(*args, options=given, **kwargs)

        for item in reversed(fields):
            several = item.type.startswith("list of ")
            default = f" [default: {shown}]" if (shown := default_text(item)) else ""
            option(
                "--" + item.name.replace("_", "-"),
                f"pass_{item.name}",
                group="First" if item.name in first else "Training",
                metavar=item.type.removeprefix("list of ").removeprefix("one of ").replace(", ", "|"),
                multiple=several,
                help=item.doc[0].upper() + item.doc[1:] + (", repeatable" if several else "") + "." + default,
            )(made)
        return made  # type: ignore[return-value]

    return decorated
