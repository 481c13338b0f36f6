"""Which of the candidates is written? The first that holds on the samples that judge, or the best where none does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

from onnxcomp.graph.ir import Graph
from onnxcomp.work.choice import better, broken, preferred, promised, unsound
from onnxcomp.work.judging import Measurements
from onnxcomp.work.strategies import Candidate, untried
from onnxcomp.work.study import Study
from onnxcomp.work.trial import Measured


@dataclass(frozen=True)
class Judged:
    """A candidate as it will be written, and what it came to on the samples that judge."""

    candidate: Candidate
    graph: Graph
    measured: Measurements
    figures: Measured


def finalist(study: Study, candidates: Sequence[Candidate], notes: list[str]) -> tuple[Candidate, Graph, Measurements]:
    """The first candidate that holds when it is judged as it will be written.

    A search takes shorter measurements than the judge, on fewer samples: the best by those may be no gain at all, or
    keep fewer decisions than it was chosen for. Then the others are judged, and what the search left out once something
    held, until one keeps what the first was chosen for. What kept fewer is taken all the same where it goes before that
    one by the rules of the choice, or where nothing holds.

    Args:
        candidates: the best first; at least one.
        notes: what was tried and not used is added to them.
    """
    fewer: list[Judged] = []
    first: Judged | None = None
    promise = 0.0
    for candidate in chain(candidates, untried(study, candidates, notes)):
        judged = _judged(study, candidate)
        first = first or judged
        why = _fails(study, judged.measured) if candidate.searched else ""
        if not why and candidate.chosen is not None:
            promise = max(promise, promised(candidate.chosen, study.job.budget))
            if broken(judged.figures, promise):
                fewer.append(judged)
                why = f"{judged.figures.agreement:.2%} of the decisions are kept, fewer than {promise:.0%}"
        if not why:
            return _taken(_best(study, [*fewer, replace(judged, figures=_kept(judged.figures, promise))]), notes)
        notes.append(f"tried, not used: {candidate.called}: on the samples that judge, {why}")
    assert first is not None
    return _taken(_best(study, fewer) if fewer else first, notes)


def _judged(study: Study, candidate: Candidate) -> Judged:
    graph = study.stamped(candidate.graph, candidate.pipeline)
    measured = study.judge.final(graph, study.job.out.name)
    figures = study.figures(str(candidate.pipeline), measured, candidate.result.changes)
    told = None if measured.fidelity is None else measured.fidelity.least_agreeing
    return Judged(candidate, graph, measured, replace(figures, decided=None if told is None else told.seen))


def _fails(study: Study, measured: Measurements) -> str:
    """Why a candidate that a search proposed is not taken in the end; empty where it is."""
    job = study.job
    if why := unsound(measured.fidelity, measured.accuracy, job.budget):
        return why
    gains = better(study.stats, measured.stats, measured.benchmark, job.objective)
    return "" if gains else "it is neither smaller nor faster"


def _kept(figures: Measured, promise: float) -> Measured:
    """Figures whose promise was not seen to be broken: what is short of it is chance."""
    return figures if figures.agreement is None else replace(figures, agreement=max(figures.agreement, promise))


def _best(study: Study, held: list[Judged]) -> Judged:
    best = held[0]
    for other in held[1:]:
        if preferred(other.figures, best.figures, study.job.objective, study.job.budget):
            best = other
    return best


def _taken(judged: Judged, notes: list[str]) -> tuple[Candidate, Graph, Measurements]:
    """What is handed on, without a note that it was not used."""
    beaten = f"tried, not used: {judged.candidate.called}: "
    notes[:] = [note for note in notes if not note.startswith(beaten)]
    return judged.candidate, judged.graph, judged.measured
