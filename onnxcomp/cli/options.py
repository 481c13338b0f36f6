"""Which options do several commands share? Each is declared here, once."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from onnxcomp.manager.base import Pass

Command = TypeVar("Command", bound=Callable[..., Any])
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def together(*decorators: Decorator) -> Decorator:
    """One decorator of several; the options keep their order in --help."""

    def apply(function: Callable[..., Any]) -> Callable[..., Any]:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return apply


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


def counts(least: int) -> Callable[[click.Context, click.Parameter, str], tuple[int, ...]]:
    """Reads whole numbers with commas between them, each once: `1,2,8`."""

    def parse(_context: click.Context, _parameter: click.Parameter, text: str) -> tuple[int, ...]:
        parts = [part.strip() for part in text.split(",")]
        if not all(part.isascii() and part.isdigit() and int(part) >= least for part in parts):
            raise click.BadParameter(f"{text!r} is no list of whole numbers from {least} on, such as 1,2")
        return tuple(dict.fromkeys(int(part) for part in parts))

    return parse


_path = functools.partial(click.Path, path_type=Path)

teacher_option = click.option(
    "--teacher", type=_path(), help="The model that distill learns from; the model itself if not given."
)
data_option = click.option(
    "--data",
    metavar="D",
    help="Samples: .npz, .npy, a folder of images or of test_data_set_N, or module.py:function that yields dicts.",
)
labels_option = click.option(
    "--labels", metavar="L", type=_path(), help="Labels of --data, .npy or .csv, where it carries none."
)
shape_option = click.option(
    "--shape",
    "shapes",
    metavar="NAME=1x3x224x224",
    multiple=True,
    callback=parse_shapes,
    help="Sizes for an input's free dimensions; again for each input.",
)
metric_option = click.option(
    "--metric",
    metavar="module.py:function[:min]",
    help="The task's metric, (outputs, labels) -> number; top-1 by default. :min where lower is better.",
)

# kwargs: data, labels, calib_samples, shapes, allow_random
data_options = together(
    data_option,
    labels_option,
    click.option(
        "--calib-samples",
        type=click.IntRange(min=1),
        default=512,
        show_default=True,
        help="Samples for calibration; at most half of --data.",
    ),
    shape_option,
    click.option("--allow-random", is_flag=True, help="Calibrate on made-up samples if there is no --data."),
)

# kwargs: eval_data, eval_labels, eval_samples, metric
eval_data_options = together(
    click.option("--eval-data", metavar="D", help="Samples that judge; without it a part of --data does."),
    click.option("--eval-labels", metavar="L", type=_path(), help="Labels of --eval-data, .npy or .csv."),
    click.option("--eval-samples", type=click.IntRange(min=1), help="Judge on so many samples; all by default."),
    metric_option,
)


def preprocess_options(function: Command) -> Command:
    """The flags of `Preprocess`, from its fields; the command gets one keyword, `preprocess`."""
    from onnxcomp.data.preprocess import Preprocess

    fields = dataclasses.fields(Preprocess)

    @functools.wraps(function)
    def assembled(*args: Any, **kwargs: Any) -> Any:
        given = {field.name: kwargs.pop(field.name) for field in fields}
        return function(*args, preprocess=Preprocess(**given), **kwargs)

    for field in reversed(fields):
        choices = field.metadata["choices"]
        click.option(
            "--" + field.name.replace("_", "-"),
            field.name,
            type=click.Choice(choices) if choices else str,
            metavar=field.metadata["metavar"] or None,
            help=field.metadata["help"],
        )(assembled)
    return assembled  # type: ignore[return-value]


def acceleration_options(function: Command) -> Command:
    """The flags of `Acceleration`, from its fields; the command gets one keyword, `acceleration`."""
    from onnxcomp.runtime.acceleration import Acceleration

    fields = dataclasses.fields(Acceleration)

    @functools.wraps(function)
    def assembled(*args: Any, **kwargs: Any) -> Any:
        given = {field.name: kwargs.pop(field.name) for field in fields}
        return function(*args, acceleration=Acceleration(**given), **kwargs)

    for field in reversed(fields):
        kinds: dict[str, Any] = {"bool": bool, "int | None": int, "Path | None": _path()}
        click.option(
            "--" + field.name.replace("_", "-"),
            field.name,
            is_flag=field.type == "bool",
            multiple=str(field.type).startswith("tuple"),
            type=kinds.get(str(field.type), str),
            metavar=field.metadata["metavar"] or None,
            help=field.metadata["help"],
        )(assembled)
    return assembled  # type: ignore[return-value]


def pass_options(cls: type[Pass], without: tuple[str, ...] = ()) -> Callable[[Command], Command]:
    """The options of a pass as flags, from its fields; the command gets one keyword, `options`, of those given.

    Args:
        without: fields that the command decides about.
    """
    from onnxcomp.manager.options import Bare, describe
    from onnxcomp.report.passes import default_text

    fields = [item for item in describe(cls) if item.name not in without]

    def decorated(function: Command) -> Command:
        @functools.wraps(function)
        def assembled(*args: Any, **kwargs: Any) -> Any:
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
            click.option(
                "--" + item.name.replace("_", "-"),
                f"pass_{item.name}",
                metavar=item.type.removeprefix("list of ").removeprefix("one of ").replace(", ", "|"),
                multiple=several,
                help=item.doc[0].upper() + item.doc[1:] + (", repeatable" if several else "") + "." + default,
            )(assembled)
        return assembled  # type: ignore[return-value]

    return decorated


def budget_options(function: Command) -> Command:
    """The flags of `Budget`, from its fields; the command gets one keyword, `budget`."""
    from onnxcomp.verify.budget import Budget, parse_size

    fields = dataclasses.fields(Budget)

    @functools.wraps(function)
    def assembled(*args: Any, **kwargs: Any) -> Any:
        given = {field.name: kwargs.pop(field.name) for field in fields}
        size = given.pop("max_size")
        budget = Budget(max_size=None if size is None else parse_size(size), **given)
        return function(*args, budget=budget, **kwargs)

    for field in reversed(fields):
        click.option(
            "--" + field.name.replace("_", "-"),
            field.name,
            type=str if field.name == "max_size" else float,
            metavar=field.metadata["metavar"],
            help=field.metadata["help"],
        )(assembled)
    return assembled  # type: ignore[return-value]
