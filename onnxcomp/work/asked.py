"""What does a job ask for? Contradictions are found before any file is looked at, passes by their names."""

from __future__ import annotations

from onnxcomp import recipes
from onnxcomp.distill import environment
from onnxcomp.errors import DataError, ModelError, UsageError
from onnxcomp.graph.io import load
from onnxcomp.graph.ir import Graph
from onnxcomp.job import Job
from onnxcomp.manager.pipeline import Pipeline
from onnxcomp.manager.plan import Plan
from onnxcomp.manager.registry import find as find_pass
from onnxcomp.runtime.machine import check_threads
from onnxcomp.verify.tasks import parse_task


def check_options(job: Job) -> None:
    """Find contradictions and unknown names in what was asked, without a look at any file.

    Raises:
        UsageError: options exclude each other, or a pass, option or recipe does not exist.
        DataError: a budget needs data, and there is none.
    """
    asked = [flag for flag in ("passes", "recipe", "plan") if getattr(job, flag) is not None]
    if len(asked) > 1:
        raise UsageError(
            f"--{asked[0]} and --{asked[1]} exclude each other", where="the options", do="give one of them"
        )
    budget = job.budget
    if not job.verify and any(x is not None for x in (budget.max_drop, budget.min_sqnr, budget.min_agreement)):
        raise UsageError("a quality budget needs verification", where="--no-verify", do="drop --no-verify")
    if not job.bench and job.budget.min_speedup is not None:
        raise UsageError("--min-speedup needs the benchmark", where="--no-bench", do="drop --no-bench")
    aim = recipes.AIMS.get(job.recipe or "")
    if aim is not None and not aim.size and not job.bench and job.cost_table is None:
        raise UsageError(
            f"--recipe {aim.name} decides by times, and --no-bench takes none",
            where="--no-bench",
            do="drop --no-bench, or give a --cost-table that holds them",
        )
    if job.calib_samples < 1 or (job.eval_samples is not None and job.eval_samples < 1):
        raise UsageError("sample counts must be 1 or more", where="--calib-samples, --eval-samples", do="raise them")
    if not 0 <= job.seed < 2**63:
        raise UsageError(f"a seed is a whole number from 0 on, not {job.seed}", where="--seed", do="give another one")
    check_threads(job.threads)
    pipeline_of(job)
    for flag, limit in (("--min-sqnr", budget.min_sqnr), ("--min-agreement", budget.min_agreement)):
        if job.data is None and not job.allow_random and limit is not None:
            raise DataError(f"{flag} needs data", where=flag, do="give real samples with --data")
    parse_task(job.task)


def judges_all(job: Job) -> bool:
    """Whether every sample that judges is seen: they were set aside or counted by hand, or none decides anything.

    What calibration merely leaves of the data is seen in a seeded order, until it decides the limits.
    """
    return job.data is None or job.eval_data is not None or job.eval_samples is not None


def pipeline_of(job: Job) -> Pipeline:
    """The pipeline that the job names; an empty one where recipes are to be tried, or an aim to be reached.

    Raises:
        UsageError: the spec is malformed, or names a pass, option or recipe that does not exist; the plan is none.
    """
    if job.plan is not None:
        Plan.read(job.plan)
        clean = Pipeline.parse(recipes.find("clean", job.target).spec)
        return Pipeline((*clean.passes, find_pass("mixed-precision")(plan=str(job.plan))))  # type: ignore[call-arg]
    if job.recipe in recipes.AIMS:
        return Pipeline()
    if job.recipe is not None:
        return recipes.find(job.recipe, job.target).within(job.budget, job.objective).pipeline
    if isinstance(job.passes, Pipeline):
        return job.passes
    return Pipeline.parse(job.passes) if job.passes is not None else Pipeline()


def trains(job: Job) -> bool:
    """Whether a pass may train, so that samples are set aside for it: one that is asked for, or that an aim may add."""
    if job.recipe in recipes.AIMS:
        return job.data is not None and bool(recipes.AIMS[job.recipe].prunes) and environment.find() is not None
    return pipeline_of(job).trains


def teacher_of(job: Job, graph: Graph) -> Graph:
    """The model to learn from: that of the job, or the model itself.

    Raises:
        ModelError: it cannot be read, or its inputs or outputs are others.
        UsageError: no pass learns from it.
    """
    if job.teacher is None:
        return graph
    if not trains(job):
        raise UsageError("a teacher is given, and no pass trains", where="--teacher", do="add distill to --passes")
    teacher = load(job.teacher)
    for ours, theirs, what in ((graph.inputs, teacher.inputs, "inputs"), (graph.outputs, teacher.outputs, "outputs")):
        if [t.name for t in ours] != [t.name for t in theirs]:
            raise ModelError(
                f"teacher and student have other {what}",
                where=f"{', '.join(t.name for t in theirs)} and {', '.join(t.name for t in ours)}",
                do="give two models that take and give the same",
            )
    return teacher
