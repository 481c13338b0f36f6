"""`onnxcomp verify`: is a model still right, by its budget; or where does an artifact come from?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxcomp.cli import options
from onnxcomp.job import Job
from onnxcomp.runtime.acceleration import Acceleration
from onnxcomp.targets.table import names

if TYPE_CHECKING:
    from rich.console import Console

    from onnxcomp.results import Fidelity
    from onnxcomp.verify.compilers import Compiled
    from onnxcomp.verify.provenance import Provenance
    from onnxcomp.verify.verdict import PairVerdict


@options.command("verify")
@click.argument("models", metavar="BEFORE AFTER | ARTIFACT", nargs=-1, required=True, type=click.Path(path_type=Path))
@options.settings(
    Job,
    *("data", "labels", "shapes", "states", "preprocess", "metric", "task", "eval_samples", "allow_random"),
    *("budget", "seed", "threads"),
    eval_samples="Use the first so many samples; all by default.",
    allow_random="Without --data: compare on made-up samples.",
    seed="Of made-up samples.",
    threads="Threads; 0: every core.",
)
@options.option(
    "--provider", default="cpu", show_default=True, help="cpu, cuda, tensorrt, openvino or ONNX Runtime's full name."
)
@options.option(
    "--target",
    type=click.Choice(names()),
    help="Ask this target's own compiler, too, whether it takes the model, and what becomes int8; needs no GPU.",
)
@options.assembled("acceleration", Acceleration)
@options.option(
    "--report", type=click.Path(path_type=Path), help="The ARTIFACT's report; beside it under its name if not given."
)
@options.written("--json", "json_file", what="Write the findings")
@options.printing()
def command(
    models: tuple[Path, ...],
    data: str | None,
    report: Path | None,
    json_file: Path | None,
    quiet: bool,
    verbose: int,
    target: str | None,
    **given: Any,
) -> int:
    """Judge AFTER against BEFORE on --data, or check an ARTIFACT of onnxcomp against what was recorded of it.

    The pair may come from anywhere, as long as inputs and outputs have the same names. Exit code: 0 within the budget,
    10 accuracy, 11 size, 12 speed, 14 SQNR, 15 agreement; of several missed budgets the lowest. Latency is measured,
    at one thread, only where --min-speedup asks for it. An ARTIFACT has the code of its report, 3 where it, its report
    or its source is not what was recorded. With --target the last model may come from anywhere and stand alone; 3 where
    the target refuses it.
    """
    from onnxcomp import places
    from onnxcomp.errors import ModelError
    from onnxcomp.files import STANDARD_OUTPUT
    from onnxcomp.runtime.machine import check_threads
    from onnxcomp.verify.provenance import is_stamped, provenance

    if len(models) > 2:
        raise click.UsageError("give two models, BEFORE AFTER, or one ARTIFACT")
    if len(models) == 2 and report is not None:
        raise click.UsageError("--report belongs to one ARTIFACT")
    before, after = models[0], models[-1]
    check_threads(given["threads"])
    err = json_file == STANDARD_OUTPUT
    places.check_command(
        models=models,
        samples=(data, given["labels"], report),
        functions=(data, given["metric"]),
        writes={"--json": json_file},
    )
    compiled = _compiled(target, after, given["shapes"], quiet, err) if target is not None else None
    extra: dict[str, Any] = {} if target is None or compiled is None else {target: compiled.to_json()}
    refused = 0 if compiled is None or compiled.accepted else ModelError.exit_code
    code, origin = refused, None
    if len(models) == 1:
        if compiled is None or is_stamped(before):
            origin = provenance(before, report)
            extra |= origin.to_json()
            if not quiet:
                _show_origin(origin, err)
    else:
        from onnxcomp.cli.progress import Bar
        from onnxcomp.runtime.progress import SILENT
        from onnxcomp.verify.verdict import verify_pair

        found = verify_pair(before, after, data, progress=SILENT if quiet else Bar(), **given)
        if not quiet:
            _show(found, err)
        code = refused or found.exit_code
        extra |= found.to_json() | {"exit_code": code}
    if json_file is not None:
        from onnxcomp.report.record import write_data

        places.check(() if origin is None else origin.read, {"--json": json_file})
        write_data(extra, json_file)
    return code or (0 if origin is None else _standing(origin))


def _standing(origin: Provenance) -> int:
    """The exit code of an artifact that is what its report describes."""
    from onnxcomp.errors import ModelError

    if origin.source_unchanged is False:
        what = "the source has changed since the model was built from it"
        raise ModelError(what, where=str(origin.source), do="build the model again")
    return origin.exit_code


def _compiled(target: str, model: Path, shapes: dict[str, tuple[int, ...]], quiet: bool, err: bool) -> Compiled:
    from onnxcomp.cli.screen import echo
    from onnxcomp.errors import UsageError
    from onnxcomp.targets.table import find
    from onnxcomp.verify.compilers import ask

    found = ask(find(target), model, shapes)
    if found is None:
        raise UsageError(
            f"{target} has no compiler that can be asked here",
            where=f"--target {target}",
            do="leave --target out: a session says whether the model runs",
        )
    if not quiet:
        for line in found.lines():
            echo(line, err=err)
    return found


def _show(found: PairVerdict, err: bool) -> None:
    from rich.text import Text

    from onnxcomp.cli.screen import screen
    from onnxcomp.report.tables import pair_rows, table

    console = screen(err=err)
    rows = pair_rows(found.sizes, found.accuracy, found.benchmark)
    console.print(table(("", "before", "after", ""), rows, right=(1, 2)))
    _show_outputs(console, found.fidelity)
    for line in (*found.doubts, *found.notes):
        console.print(Text(f"note: {line}", style="dim"))
    for budget in found.budget:
        value = "not measured" if budget.value is None else f"{budget.value:g}"
        mark = ("held", "green") if budget.passed else ("missed", "red")
        console.print(Text.assemble(f"{budget.name} {budget.limit:g}: {value} ", mark))


def _show_outputs(console: Console, fidelity: Fidelity) -> None:
    from onnxcomp.report.tables import closeness_text, table, total_text

    rows = []
    for name, out in fidelity.outputs.items():
        words = f"same top-1 {out.top1_agreement:.2%}" if out.top1_agreement is not None else ""
        if out.worst_part is not None:
            words = f"worst part {out.worst_part}{total_text(out)}" + (f"; {words}" if words else "")
        rows.append((name, closeness_text(out), f"{out.max_abs_error:.4g}", words))
    made_up = "made-up " if fidelity.source == "synthetic" else ""
    titles = ("output", "SQNR", "largest error", f"on {fidelity.samples} {made_up}samples")
    console.print(table(titles, rows, right=(1, 2)))
    decided = [
        (", ".join(agreement.outputs), "-" if agreement.value is None else f"{agreement.value:.2%}", agreement.measure)
        for agreement in fidelity.agreements
    ]
    if decided:
        console.print(table(("output", "agreement", "what is counted"), decided, right=(1,)))


def _show_origin(found: Provenance, err: bool) -> None:
    from onnxcomp.cli.screen import echo

    echo(f"{found.path}\n  sha256 {found.sha256}", err=err)
    for key, value in sorted(found.recorded.items()):
        echo(f"  {key.removeprefix('onnxcomp.')} {value}", err=err)
    if found.report is None:
        echo("  no report beside it: nothing to check the file itself against (--report FILE)", err=err)
    else:
        echo(f"  report {found.report.name}: this is the model it describes, verdict {found.verdict}", err=err)
    if found.source_unchanged is not None:
        echo(f"  source {found.source}: {'unchanged' if found.source_unchanged else 'has changed since'}", err=err)
