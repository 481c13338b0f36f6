"""The entry point: loads a command when it is called, and turns errors into three lines and an exit code."""

from __future__ import annotations

import importlib
import signal
import sys
import threading
import traceback
from types import FrameType

import click

from onnxcomp._version import __version__
from onnxcomp.errors import EnvironmentLacksError, OnnxcompError, UsageError

# command -> (module below onnxcomp.cli, one-line help); the modules load on use, so that --help stays instant
COMMANDS = {
    "optimize": ("optimize", "Compress a model and prove what it cost."),
    "distill": ("distill", "Train a compressed model, with another as teacher or by labels."),
    "inspect": ("inspect", "Size, parameters and MACs, layer by layer."),
    "verify": ("verify", "Judge any pair of models, or an artifact's recorded provenance."),
    "bench": ("bench", "Interleaved latency of models, with spread and node placement."),
    "build": ("build", "The build step: build what changed of the models in onnxcomp.toml."),
    "init": ("init", "Write a first onnxcomp.toml from a model."),
    "data": ("data", "Look at data as the model sees it."),
    "passes": ("passes", "The passes that exist, and the options of one."),
    "doctor": ("doctor", "What this machine can run."),
}


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

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands from the table, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="onnxcomp")
def group() -> None:
    """Compress a trained ONNX model: smaller, faster, still right, with the measurements that prove it."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit the process with the documented code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _told_to_end)
    try:
        code = group.main(arguments, prog_name="onnxcomp", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.exceptions.Abort:
        _interrupted()
    except KeyboardInterrupt:
        _interrupted()
    except click.ClickException as error:
        _explain(_usage(error), arguments)
        sys.exit(2)
    except OnnxcompError as error:
        _explain(error, arguments)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of a pipe went away: nothing left to tell
        sys.exit(1)
    except MemoryError as error:
        lacking = EnvironmentLacksError(
            f"not enough memory: {error}" if str(error) else "not enough memory",
            where="this machine, or the limit that this process runs under",
            do="use smaller samples (--shape), fewer of them, or a machine with more memory",
        )
        _explain(lacking, arguments)
        sys.exit(lacking.exit_code)
    except Exception as error:
        if _from_interrupt(error):
            _interrupted()
        unexpected = OnnxcompError(
            f"internal error: {type(error).__name__}: {error}",
            where="this is a defect of onnxcomp, not of your model",
            do="run again with -vv for the traceback and report it",
        )
        _explain(unexpected, arguments)
        sys.exit(1)


def _usage(error: click.ClickException) -> UsageError:
    """click's words for a wrong command line, in the form of all other errors."""
    context = error.ctx if isinstance(error, click.UsageError) else None
    path = context.command_path if context is not None else "onnxcomp"
    return UsageError(" ".join(error.format_message().split()), where=path, do=f"see {path} --help")


def _explain(error: OnnxcompError, arguments: list[str]) -> None:
    if "-vv" in arguments:
        traceback.print_exc()
    click.echo(f"error: {error.what}", err=True)
    click.echo(f"where: {error.where or 'the command line'}", err=True)
    click.echo(f"do:    {error.do or 'see onnxcomp --help'}", err=True)


def _from_interrupt(error: BaseException | None) -> bool:
    """Whether an interrupt lies beneath: an extension module that is just being imported makes an ImportError of it."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _told_to_end(number: int, frame: FrameType | None) -> None:
    """A job scheduler's or container's end is as Ctrl-C: checkpoints are written, scratch folders go."""
    interrupt = signal.getsignal(signal.SIGINT)
    if callable(interrupt):
        interrupt(number, frame)  # raises, or asks the worker of a training to finish its step
    else:
        raise KeyboardInterrupt  # Ctrl-C is ignored in what a shell started in the background


def _interrupted() -> None:
    click.echo("interrupted: nothing was written", err=True)
    sys.exit(130)
