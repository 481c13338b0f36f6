"""The entry point: loads a command when it is called, and turns errors into three lines and an exit code."""

from __future__ import annotations

import difflib
import errno
import importlib
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, TextIO, cast

import click

from onnxcomp._version import __version__
from onnxcomp.errors import EnvironmentLacksError, OnnxcompError, OutputError, UsageError, one_line
from onnxcomp.files import RESULTS

# command -> (module below onnxcomp.cli, one-line help); the modules load on use, so that --help stays instant
COMMANDS = {
    "optimize": ("optimize", "Compress a model and prove what it cost."),
    "distill": ("distill", "Train a compressed model, with another as teacher or by labels."),
    "inspect": ("inspect", "Size, parameters and MACs, layer by layer."),
    "verify": ("verify", "Judge any pair of models, or an artifact's recorded provenance."),
    "explain": ("explain", "Which layers lose how much, why, and what to do about it."),
    "plan": ("plan", "Which form each layer should take, and the trades there are."),
    "ranges": ("ranges", "Ranges of a quantized model, as a file for other tools."),
    "bench": ("bench", "Interleaved latency of models, with spread and node placement."),
    "compare": ("compare", "Any number of variants in one table: size, latency, accuracy, closeness."),
    "search": ("search", "The best settings under a budget, and the front of size, time and accuracy."),
    "build": ("build", "The build step: build what changed of the models in onnxcomp.toml."),
    "init": ("init", "Write a first onnxcomp.toml from a model, or add a model to it."),
    "data": ("data", "Look at data as the model sees it."),
    "passes": ("passes", "The passes that exist, and the options of one."),
    "doctor": ("doctor", "What this machine can run."),
    "cache": ("cache", "What onnxcomp keeps in the user's cache, and how to clear it."),
    "help": ("help", "The help of a command."),
}
KEPT = {  # what an interrupted command leaves behind, of those that go on where they stopped
    "search": "trials that had ended are kept, if any had, with the best model of them: the same command goes on",
    "build": "models that were done stand: the same command makes the others",
    "distill": "no model was written; the training goes on from its last checkpoint with the same command",
}
HEARD_SECONDS = 5.0  # long calls into the runtime cannot be interrupted: after this the process ends all the same
TOLD_TO_END = 130
FULL = (errno.ENOSPC, errno.EDQUOT)


class LazyGroup(click.Group):
    """A click group whose commands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of the table above."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of one command; each holds a click command named `command`."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"onnxcomp.cli.{COMMANDS[cmd_name][0]}")
        command: click.Command = module.command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command of that name.

        Raises:
            UsageError: there is none; the nearest is named.
        """
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            near = difflib.get_close_matches(name, COMMANDS, 1)
            do = f"did you mean {near[0]}?" if near else "onnxcomp --help lists the commands"
            raise UsageError(f"there is no command {name!r}", where="onnxcomp", do=do)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands from the table, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "-V", "--version", prog_name="onnxcomp")
@click.option("-q", "--quiet", is_flag=True, help="As behind the command: print nothing but errors.")
@click.option("-v", "--verbose", count=True, help="As behind the command: more to read; -vv: a traceback, too.")
@click.pass_context
def group(context: click.Context, quiet: bool, verbose: int) -> None:
    """Compress a trained ONNX model: smaller, faster, still right, with the measurements that prove it."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit the process with the documented code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    _take_closed_streams()
    with _hearing_the_end(arguments), _results_apart(arguments), _forgiving_pipes():
        sys.exit(_all_told(_code(arguments), arguments))


def _code(arguments: list[str]) -> int:
    """Run the command line; the exit code, with what went wrong told on standard error."""
    try:
        code = group.main(arguments, prog_name="onnxcomp", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except (click.exceptions.Abort, KeyboardInterrupt):
        return _interrupted(arguments)
    except click.ClickException as error:
        return _explain(_usage(error), arguments)
    except OnnxcompError as error:
        return _explain(error, arguments)
    except MemoryError as error:
        lacking = EnvironmentLacksError(
            f"not enough memory: {error}" if str(error) else "not enough memory",
            where="this machine, or the limit that this process runs under",
            do="use smaller samples (--shape), fewer of them, or a machine with more memory",
        )
        return _explain(lacking, arguments)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in FULL:  # of a lock, a cache, a temporary file: whoever wrote it
            return _explain(_no_space(error), arguments)
        if _from_interrupt(error):
            return _interrupted(arguments)
        unexpected = OnnxcompError(
            f"internal error: {type(error).__name__}: {error}",
            where="this is a defect of onnxcomp, not of your model",
            do="run again with -vv for the traceback and report it",
        )
        return _explain(unexpected, arguments)


def _no_space(error: OSError) -> OutputError:
    return OutputError(
        f"a file of this run cannot be written: {os.strerror(error.errno or errno.ENOSPC)}",
        where=f"file {error.filename}"
        if error.filename
        else "the temporary folder (TMPDIR), the cache, or the output's",
        do="make space there, or choose another folder",
    )


def _all_told(code: int, arguments: list[str]) -> int:
    """The exit code; another one where what was to be read on standard output never got there."""
    for stream in (sys.stdout, RESULTS.get(None)):
        if isinstance(stream, _Forgiving):
            stream.flush()
            if stream.failure:
                lost = OutputError(
                    f"standard output cannot be written: {stream.failure}",
                    where="standard output",
                    do="send it to where there is space; files that were named are written",
                )
                return code or _explain(lost, arguments)
    return code


def _usage(error: click.ClickException) -> UsageError:
    """click's words for a wrong command line, in the form of all other errors."""
    context = error.ctx if isinstance(error, click.UsageError) else None
    path = context.command_path if context is not None else "onnxcomp"
    return UsageError(" ".join(error.format_message().split()), where=path, do=f"see {path} --help")


def _explain(error: OnnxcompError, arguments: list[str]) -> int:
    if _wants_traceback(arguments):
        traceback.print_exc()
    lines = (error.what, error.where or "the command line", error.do or "see onnxcomp --help")
    for word, line in zip(("error: ", "where: ", "do:    "), lines, strict=True):
        click.echo(word + one_line(line), err=True)
    return error.exit_code


def _wants_traceback(arguments: list[str]) -> bool:
    """Whether -v is there twice, before the command, behind it, or once in each place."""
    short = sum(word.count("v") for word in arguments if re.fullmatch("-[qv]+", word))
    return short + arguments.count("--verbose") >= 2


def _from_interrupt(error: BaseException | None) -> bool:
    """Whether an interrupt lies beneath: an extension module that is just being imported makes an ImportError of it."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _ended_words(arguments: list[str]) -> str:
    """What an interrupted command leaves, and whether it can go on."""
    command = next((word for word in arguments if word in COMMANDS), "")
    return f"interrupted: {KEPT.get(command, 'nothing was written')}"


def _interrupted(arguments: list[str]) -> int:
    click.echo(_ended_words(arguments), err=True)
    # an interrupt that met source being executed (a dataclass is made so) is remembered by CPython as unhandled, and
    # `python -m` then kills itself whatever the exit code: executing anything else forgets it
    exec("")
    return TOLD_TO_END


# -- the end, from outside ---------------------------------------------------------------------------------------------


@contextmanager
def _hearing_the_end(arguments: list[str]) -> Iterator[None]:
    """A job scheduler's or container's SIGTERM is as Ctrl-C: checkpoints are written, scratch folders go.

    Python hears a signal only between two steps of its own. Where one is not heard in time, since a call into the
    runtime goes on, the process ends without more; what that leaves lying goes at the start of the next run.
    """
    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    if not ours or os.name == "nt":
        yield
        return
    heard = threading.Event()
    reading, writing = os.pipe()
    os.set_blocking(writing, False)

    def told(number: int, frame: FrameType | None) -> None:
        heard.set()
        interrupt = signal.getsignal(signal.SIGINT)
        if callable(interrupt):
            interrupt(number, frame)  # raises, or asks the worker of a training to finish its step
        else:
            raise KeyboardInterrupt  # Ctrl-C is ignored in what a shell started in the background

    def watch() -> None:
        while numbers := os.read(reading, 64):
            if signal.SIGTERM in numbers and not heard.wait(HEARD_SECONDS):
                os.write(2, f"{_ended_words(arguments)}\n".encode())
                os._exit(TOLD_TO_END)

    signal.signal(signal.SIGTERM, told)
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.close(writing)


# -- streams that are closed, and readers that go away ----------------------------------------------------------------


def _take_closed_streams() -> None:
    """Stand in for standard streams that are closed (`>&-`), or the next file that is opened would take their number.

    What is written there fails, as it would without us.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDONLY)  # takes the lowest number that is free
        if number and getattr(sys, name) is None:
            stream = open(number, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - stays open as long as we run
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)


class _Forgiving:
    """A text stream whose reader may go away (`| head`): the rest is dropped, and no exit code changes by it.

    Where it cannot be written for another reason (a full disk), the rest is dropped, too, and `failure` says why.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.failure = ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            self._drop(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._drop(error)

    def _drop(self, error: OSError) -> None:
        if not isinstance(error, BrokenPipeError):
            self.failure = self.failure or os.strerror(error.errno or errno.EIO)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)


@contextmanager
def _results_apart(arguments: list[str]) -> Iterator[None]:
    """Where a result goes to standard output, what user code and its processes print goes to standard error."""
    asked = any(word == "-" or word.endswith("=-") for word in arguments)
    whole, aside = sys.__stdout__, sys.__stderr__
    if not asked or whole is None or aside is None or whole.closed or sys.stdout is not whole:
        yield
        return
    whole.flush()
    number = whole.fileno()
    own = os.dup(number)
    os.dup2(aside.fileno(), number)
    token = None
    try:
        with os.fdopen(own, "w", encoding=whole.encoding, errors=whole.errors, closefd=False) as stream:
            results = cast(TextIO, _Forgiving(stream))
            token = RESULTS.set(results)
            try:
                yield
            finally:
                results.flush()
    finally:
        if token is not None:
            RESULTS.reset(token)
        whole.flush()
        os.dup2(own, number)
        os.close(own)


@contextmanager
def _forgiving_pipes() -> Iterator[None]:
    whole = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast(TextIO, _Forgiving(stream)) for stream in whole)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(ValueError, OSError):  # closed already
                stream.flush()
        sys.stdout, sys.stderr = whole
