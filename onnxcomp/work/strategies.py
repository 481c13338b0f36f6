"""Which pipelines are tried for a job, and in which order do they stand afterwards?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from onnxcomp import recipes
from onnxcomp.errors import ModelError
from onnxcomp.graph.cost import integer_share, parameters
from onnxcomp.graph.io import total_bytes
from onnxcomp.graph.ir import Graph
from onnxcomp.manager.base import Guarantee
from onnxcomp.manager.pipeline import Pipeline, RunResult
from onnxcomp.results import PassRecord, TrainingRecord
from onnxcomp.work.asked import pipeline_of
from onnxcomp.work.choice import ends_search, enough, keeps, preferred
from onnxcomp.work.escalation import Climb
from onnxcomp.work.study import Study
from onnxcomp.work.trial import Measured


@dataclass(frozen=True)
class Candidate:
    """A pipeline that may be taken, and what it made.

    Attributes:
        explicit: it was asked for pass by pass.
        searched: it was found by trying recipes, so that the default run's own limits hold.
        chosen: what it came to on the samples that it was chosen by; None where it was asked for.
        recipe: the recipe's name, where it is one.
    """

    pipeline: Pipeline
    result: RunResult
    explicit: bool
    searched: bool = False
    chosen: Measured | None = None
    recipe: str = ""

    @property
    def called(self) -> str:
        """What notes call it."""
        return f"recipe {self.recipe}" if self.recipe else str(self.pipeline)

    @property
    def graph(self) -> Graph:
        """The rewritten graph."""
        return self.result.graph


@dataclass
class Proposed:
    """What a strategy came to.

    Attributes:
        candidates: the best first; the others count where it does not hold on the samples that judge.
        why: why there is none, in words.
        notes: what was tried and not used.
        records, trainings: of the pipeline that ran last.
    """

    candidates: list[Candidate] = field(default_factory=list)
    why: str = ""
    notes: list[str] = field(default_factory=list)
    records: list[PassRecord] = field(default_factory=list)
    trainings: list[TrainingRecord] = field(default_factory=list)


def propose(study: Study) -> Proposed:
    """Run what the job asks for, or try recipes until one holds.

    Raises:
        OnnxcompError: as the passes say.
    """
    job = study.job
    if job.passes is None and job.recipe is None and job.plan is None:
        return try_recipes(study)
    if job.recipe in recipes.AIMS:
        return escalate(study, recipes.AIMS[job.recipe])
    pipeline = pipeline_of(job)
    result = study.run(pipeline, on_failure="raise")
    found = Proposed(records=result.records, trainings=result.trainings)
    if job.recipe is not None:
        # cleaning alone is worth writing where it changed something: it costs nothing
        cleaned = result.changes > 0 and all(record.guarantee != "lossy" for record in result.records)
        found.candidates.append(Candidate(pipeline, result, cleaned))
    elif result.changes:
        found.candidates.append(Candidate(pipeline, result, True))
    else:
        useless = "training brought nothing, the weights stay as they were: " if result.trainings else ""
        found.why = f"{useless}{missed(result.records) or 'the passes changed nothing'}"
    return found


def try_recipes(study: Study) -> Proposed:
    """Try recipes in the order for the model; those that are sound and better, the best by the objective first.

    For latency the search ends early: with the first recipe whose integer arithmetic covers nearly all of the work, and
    before those that compute in float once one of integers is clearly faster and small. For size what cannot become
    smaller than the best is not tried.
    """
    job, proposed = study.job, Proposed()
    held: list[tuple[Measured, Candidate]] = []
    for recipe in _recipes(study):
        best = held[0][0] if held and keeps(held[0][0], job.budget) else None
        if best is not None and job.objective == "latency" and enough(best, recipe, study.stats.bytes):
            break
        if recipe.fallback and held:
            continue
        if best is not None and job.objective == "size" and _least_bytes(study, recipe) >= best.bytes:
            continue
        tried = _tried(study, recipe, proposed)
        if tried is None:
            continue
        found, candidate = tried
        first = not held or preferred(found, held[0][0], job.objective, job.budget)
        held.insert(0 if first else len(held), (found, candidate))
        share = integer_share(candidate.graph, study.operators, study.material.sample_shapes)
        if ends_search(found, recipe, share, job.objective, job.budget):
            break
    proposed.candidates = [candidate for _, candidate in held]
    if not held:
        proposed.why = "nothing that was tried made the model smaller or faster and kept it right"
    for measured, candidate in held[1:]:
        why = f"{_figures(measured, study)}; another is better for {job.objective}"
        proposed.notes.append(f"tried, not used: {candidate.called}: {why}")
    return proposed


def _least_bytes(study: Study, recipe: recipes.Recipe) -> float:
    """What the weights alone take in a recipe's file: no pass behind its cleaning takes one out."""
    cleaned = study.run(recipe.cleaning).graph
    if not recipe.bits:
        return float(total_bytes(cleaned))
    return parameters(cleaned, study.operators).total * recipe.bits / 8


def _figures(measured: Measured, study: Study) -> str:
    """What a candidate came to, in words: its size and, where it was timed, its time."""
    words = [f"{measured.bytes / max(study.stats.bytes, 1):.1%} of the size"]
    if measured.latency_ratio:
        words.append(f"{measured.latency_ratio:.2f} of the time")
    return ", ".join(words)


def untried(study: Study, candidates: Sequence[Candidate], notes: list[str]) -> Iterator[Candidate]:
    """What a search left out once something held, for where that does not hold on the samples that judge.

    Args:
        candidates: what was proposed; nothing is left where it was asked for.
        notes: what was tried and not used is added to them.
    """
    if any(candidate.explicit or not candidate.searched for candidate in candidates):
        return
    known, said = {str(candidate.pipeline) for candidate in candidates}, Proposed(notes=notes)
    for recipe in _recipes(study):
        if not recipe.fallback and str(_pipeline(study, recipe)) not in known:
            tried = _tried(study, recipe, said)
            if tried is not None:
                yield tried[1]


def _recipes(study: Study) -> list[recipes.Recipe]:
    """What suits the job, in the order in which it is tried."""
    job = study.job
    has_data = study.material.calibrate is not None
    return recipes.candidates(study.original, has_data=has_data, objective=job.objective, target=job.target)


def _pipeline(study: Study, recipe: recipes.Recipe) -> Pipeline:
    return recipe.within(study.job.budget, study.job.objective, study.stats.bytes).pipeline


def _tried(study: Study, recipe: recipes.Recipe, proposed: Proposed) -> tuple[Measured, Candidate] | None:
    """A recipe's figures and result; None, with a note, where it does not fit or is no gain."""
    pipeline = _pipeline(study, recipe)
    try:
        front = _cheap_front(pipeline, recipe)
        if front is not None and not _aimed(study.run(front), recipe):
            return None  # what else it does another recipe does, too
        result = study.run(pipeline)
    except ModelError as error:
        proposed.notes.append(f"recipe {recipe.name} does not fit this model: {error.what}")
        return None
    proposed.records = result.records
    if not _aimed(result, recipe):
        proposed.notes.append(f"recipe {recipe.name} not used: {_idle(result.records, recipe)}")
        return None
    found = study.weighed(str(pipeline), result)
    if not found.sound or not found.better:
        proposed.notes.append(f"tried, not used: recipe {recipe.name}: {found.why}")
        return None
    return found, Candidate(pipeline, result, False, True, found, recipe.name)


def _cheap_front(pipeline: Pipeline, recipe: recipes.Recipe) -> Pipeline | None:
    """The first passes up to what a recipe is tried for, where none of them is lossy and takes long; else None."""
    passes = pipeline.passes
    last = max((i for i, item in enumerate(passes) if item.name in recipe.aim), default=-1)
    front = passes[: last + 1]
    return Pipeline(front) if front and not any(item.promises() is Guarantee.LOSSY for item in front) else None


def _aimed(result: RunResult, recipe: recipes.Recipe) -> bool:
    """Whether the passes that a recipe is tried for found something to do."""
    return not recipe.aim or any(record.changes for record in result.records if record.name in recipe.aim)


def _idle(records: Sequence[PassRecord], recipe: recipes.Recipe) -> str:
    """Why the passes that a recipe is tried for changed nothing, in their own words."""
    asked = [record for record in records if record.name in recipe.aim]
    reasons = [
        record.missed or record.rolled_back or _commonest([skip.why for skip in record.skips]) for record in asked
    ]
    idle = [record.name for record, why in zip(asked, reasons, strict=True) if not why]
    words = [f"{record.name} left all as it was: {why}" for record, why in zip(asked, reasons, strict=True) if why]
    return "; ".join([*words, *([f"{' and '.join(idle)} found nothing to do"] if idle else [])])


def _commonest(reasons: Sequence[str]) -> str:
    """The reason that most have; only what they share of it where figures behind a colon differ."""
    heads = Counter(why.partition(":")[0] for why in reasons)
    if not heads:
        return ""
    head, count = heads.most_common(1)[0]
    whole = {why for why in reasons if why.partition(":")[0] == head}
    part = f" ({count} of {len(reasons)})" if count < len(reasons) else ""
    return f"{whole.pop() if len(whole) == 1 else head}{part}"


def escalate(study: Study, aim: recipes.Aim) -> Proposed:
    """Reach an aim step by step: clean, quantize, prune, train; a step that breaks the budget or gains nothing goes.

    What was taken and left is in the notes, each with its figures.
    """
    climb, proposed = Climb(study, aim), Proposed()
    spec = climb.reach()
    proposed.notes += climb.notes
    result = study.run(spec)
    proposed.records, proposed.trainings = result.records, result.trainings
    if spec == climb.start or not result.changes:
        proposed.why = "no step made the model better for this aim and kept it right"
        return proposed
    proposed.candidates = [Candidate(Pipeline.parse(spec), result, True, True)]
    for other in climb.spare():
        proposed.candidates.append(Candidate(Pipeline.parse(other), study.run(other), True, True))
    return proposed


def missed(records: list[PassRecord]) -> str:
    """What was asked of passes and not reached."""
    return "; ".join(record.missed for record in records if record.missed)
