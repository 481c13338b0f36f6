"""The functions of the library: what the commands do, on models and data that a program has at hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from onnxcomp.api import keywords
from onnxcomp.api.given import read, split_off
from onnxcomp.api.models import Files, Model
from onnxcomp.api.results import Built, Result, Verdict
from onnxcomp.api.wording import of_arguments
from onnxcomp.job import Job
from onnxcomp.runtime.progress import SILENT, Progress

if TYPE_CHECKING:
    import os
    from typing import Unpack

    from onnxcomp.benchmark import BenchTable
    from onnxcomp.comparison import Comparison
    from onnxcomp.data.open import Source
    from onnxcomp.explanation.report import Explanation
    from onnxcomp.inspection import Inspection


@of_arguments
def optimize(model: Model, *, progress: Progress = SILENT, **options: Unpack[keywords.OptimizeOptions]) -> Result:
    """Compress a model, measure what it cost, and write the result and its report.

    Args:
        model: a path, bytes or an `onnx.ModelProto`. The result of a path lies at `output`, NAME.opt.onnx in the
            current folder if not given; that of a model in memory lies in memory unless `output` is given.
        progress: shows long work.
        options: those of `onnxcomp optimize`, dashes as underscores. Data are a path, `module.py:function`, arrays
            under the names of the inputs ([samples, ...]), an array, a function that yields feeds, or any iterable of
            feeds; labels an array or a path; a metric is a function (outputs, labels) -> number, of which more is
            better, or a `Metric`; passes are a spec or a list of passes.

    Returns:
        The report; `verdict` and `exit_code` say how it ended, `model` is the new model.

    Raises:
        OnnxcompError: a subclass tells what cannot be used: model, data, options, environment, output.
    """
    from onnxcomp.driver import run

    with ExitStack() as stack:
        files = stack.enter_context(closing(Files()))
        given = read("optimize", keywords.OptimizeOptions, options, files)
        result = Result.of(run(_job(files.path(model), given, files), progress), files)
        stack.pop_all()  # the result keeps the files from here on
    return result


@of_arguments
def distill(
    student: Model,
    *,
    width: float | None = None,
    classes: int | None = None,
    progress: Progress = SILENT,
    **options: Unpack[keywords.DistillOptions],
) -> Result:
    """Train a student so that it gives what a teacher gives, or what labels say; measure what that brought.

    Args:
        student: a path, bytes or an `onnx.ModelProto`; the result goes where that of `optimize` goes.
        width: first keep this share of all channels only.
        classes: first give the student a new last layer for so many classes.
        progress: shows long work.
        options: those of `onnxcomp distill`, dashes as underscores; `teacher` is a model like the student.

    Returns:
        The report, in which `teacher` says how the result stands to the teacher.

    Raises:
        OnnxcompError: as `optimize`; EnvironmentLacksError where the training runtime cannot be had.
    """
    from onnxcomp.driver import run
    from onnxcomp.students import distillation

    with ExitStack() as stack:
        files = stack.enter_context(closing(Files()))
        mine, others = split_off(keywords.DistillOptions, options, "distill")
        given = read("distill", keywords.DistillOptions, others, files)
        source = files.path(student)
        with distillation(source, mine, width=width, classes=classes, **_placed(source, given, files)) as job:
            result = Result.of(run(job, progress), files)
        stack.pop_all()  # the result keeps the files from here on
    return result


@of_arguments
def verify(
    before: Model,
    after: Model,
    data: Source | None = None,
    *,
    provider: str = "cpu",
    progress: Progress = SILENT,
    **options: Unpack[keywords.VerifyOptions],
) -> Verdict:
    """Judge one model against another, whoever made them: closeness, agreement, accuracy, and budgets.

    Args:
        before, after: models with the same inputs and outputs; paths, bytes or `onnx.ModelProto`.
        data: samples, as `optimize` takes them; None only with `allow_random`.
        provider: `cpu`, `cuda`, `tensorrt` or ONNX Runtime's full name.
        progress: shows long work.
        options: those of `onnxcomp verify`, dashes as underscores. Latency is measured for `min_speedup` only.

    Raises:
        ModelError: a model does not load or run, or inputs or outputs differ.
        DataError: data are missing or do not fit, or `max_drop` has no metric to look at.
        EnvironmentLacksError: the provider does not run on this machine.
    """
    from onnxcomp.verify.verdict import verify_pair

    with closing(Files()) as files:
        given = read("verify", keywords.VerifyOptions, options, files)
        pair = files.path(before), files.path(after)
        return Verdict.of(verify_pair(*pair, data, provider=provider, progress=progress, **given))


@of_arguments
def bench(
    *models: Model,
    data: Source | None = None,
    providers: Sequence[str] = ("cpu",),
    batches: Sequence[int] = (1,),
    threads: Sequence[int] = (1,),
    seconds: float = 4.0,
    footprints: bool = True,
    progress: Progress = SILENT,
    **options: Unpack[keywords.BenchOptions],
) -> BenchTable:
    """Latency, load time and memory of each model against the first, all measured in turns in one process.

    Args:
        models: paths, bytes or `onnx.ModelProto`; a single one is measured against itself.
        data: samples, as `optimize` takes them; made-up ones without.
        providers: `cpu`, `cuda`, `tensorrt` or ONNX Runtime's full names.
        batches, threads: every combination is measured; 0 threads: every core.
        seconds: for each model after the first, at each setting.
        footprints: measure load time and memory too, in processes of their own.
        progress: shows long work.
        options: those of `onnxcomp bench`, dashes as underscores.

    Raises:
        UsageError: no model, a wrong option, or a batch that the model does not take.
        ModelError, DataError: a model or the data cannot be used.
        EnvironmentLacksError: a provider does not run on this machine.
    """
    from onnxcomp.benchmark import bench as measured

    with closing(Files()) as files:
        given = read("bench", keywords.BenchOptions, options, files)
        return measured(
            [files.path(model) for model in models],
            data=data,
            providers=providers,
            batches=batches,
            threads=threads,
            seconds=seconds,
            footprints=footprints,
            progress=progress,
            **given,
        )


@of_arguments
def compare(
    *models: Model, data: Source | None = None, progress: Progress = SILENT, **options: Unpack[keywords.CompareOptions]
) -> Comparison:
    """Set variants of a model side by side, whoever made them: size, MACs, latency, accuracy, closeness to the first.

    Args:
        models: two or more with the same inputs and outputs; paths, bytes or `onnx.ModelProto`.
        data: samples, as `optimize` takes them; without any, closeness is told only with `allow_random`.
        progress: shows long work.
        options: those of `onnxcomp compare`, dashes as underscores; `bench=False` leaves out latency.

    Raises:
        UsageError: fewer than two models.
        ModelError: a model does not load or run, or inputs or outputs differ.
        DataError: data do not fit, or labels or a metric come without data.
    """
    from onnxcomp.comparison import compare as compared

    with closing(Files()) as files:
        given = read("compare", keywords.CompareOptions, options, files)
        return compared([files.path(model) for model in models], data, progress=progress, **given)


@of_arguments
def inspect(model: Model, *, shapes: Mapping[str, Sequence[int]] | None = None, groups: bool = False) -> Inspection:
    """Size, parameters and multiply-accumulates of a model, layer by layer, and what passes could do with it.

    Args:
        model: a path, bytes or an `onnx.ModelProto`.
        shapes: sizes for free dimensions, by input.
        groups: look for channels, heads and neurons that leave together, too.

    Raises:
        ModelError: the model cannot be used.
    """
    from onnxcomp.inspection import inspect as looked_at

    with closing(Files()) as files:
        sizes = {name: tuple(shape) for name, shape in (shapes or {}).items()}
        found = looked_at(files.path(model), sizes, groups=groups)
        return replace(found, path=files.name(found.path))


@of_arguments
def explain(
    before: Model,
    after: Model | None,
    data: Source,
    *,
    samples: int = 16,
    times: bool = True,
    progress: Progress = SILENT,
    **options: Unpack[keywords.ExplainOptions],
) -> Explanation:
    """Which layers lose how much, and why: of a pair of models, or of one if every layer became int8.

    Args:
        before: the original; a path, bytes or an `onnx.ModelProto`.
        after: any other form of it, whoever made it; None for a forecast of `before` alone.
        data: samples, as `optimize` takes them.
        samples: how many are run.
        times: profile both models for the kernels' microseconds.
        progress: shows long work.
        options: those of `onnxcomp explain`, dashes as underscores.

    Raises:
        ModelError: a model does not load or run, the two have other inputs, or none of their layers is the same.
        DataError: data are missing or do not fit.
    """
    from onnxcomp.explanation.explain import explain as explained

    with closing(Files()) as files:
        given = read("explain", keywords.ExplainOptions, options, files)
        pair = files.path(before), None if after is None else files.path(after)
        found = explained(*pair, data, samples=samples, times=times, progress=progress, **given)
        return replace(found, before=files.name(found.before), after=files.name(found.after))


def build(
    config: str | os.PathLike[str] | None = None,
    *,
    only: Sequence[str] = (),
    force: bool = False,
    jobs: int = 1,
    tell: Callable[[str], None] = lambda text: None,
    progress: Progress = SILENT,
) -> Built:
    """Build what changed of the models that a configuration names, and write the reports of the build.

    Args:
        config: the file, or its folder; onnxcomp.toml, or [tool.onnxcomp] of pyproject.toml, here if not given.
        only: globs of names or outputs; empty means all models.
        force: build them even where nothing changed.
        jobs: so many models at a time.
        tell: called with a line for a person when something begins or ends.
        progress: shows how many models are done.

    Returns:
        What became of each model; `exit_code` is 0 when every one is accepted, else the lowest of the failing ones.

    Raises:
        UsageError: there is no configuration, it is wrong, or a word of `only` matches no model.
        OutputError: an output cannot be written.
    """
    from onnxcomp.build.reports import write_reports
    from onnxcomp.build.step import build as built
    from onnxcomp.config import load

    found = load(None if config is None else Path(config))
    report = built(found, only=only, force=force, jobs=jobs, tell=tell, progress=progress)
    write_reports(found, report)
    return Built.of(report)


def _job(model: Path, given: Mapping[str, object], files: Files) -> Job:
    return Job(model=model, **_placed(model, given, files))  # type: ignore[arg-type]


def _placed(model: Path, given: Mapping[str, object], files: Files) -> dict[str, object]:
    """The settings of a run, with a place for the result of a model that lies in memory."""
    placed = dict(given)
    if files.holds(model) and placed.get("output") is None:
        placed["output"] = files.folder / "result" / "model.opt.onnx"
    return placed
