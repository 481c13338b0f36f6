"""How often do two models decide the same, by what each output is? One look at the first batch tells what to count."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from onnxcomp.results import Agreement, Fidelity
from onnxcomp.verify.opened import OpenedModel
from onnxcomp.verify.pair import Answer
from onnxcomp.verify.tasks import Measure, Seen, Tasks, look, parse_task

NUMBERS = ("regression", "state")  # kinds of outputs whose agreement is how close they are


class TaskBook:
    """What each output of a model was taken for; looked up once, so that all that is judged is judged alike.

    Args:
        model: the original.
        asked: `--task`; what it does not say is guessed.

    Raises:
        UsageError: there is no such task.
    """

    def __init__(self, model: Path | OpenedModel, asked: str | None = None) -> None:
        self.model, self.asked = OpenedModel.of(model), parse_task(asked)
        self.tasks: Tasks | None = None

    def measures(self, answer: Answer) -> list[Measure]:
        """New measures, for one run over samples that begins with this batch."""
        if self.tasks is None:
            seen = Seen(answer.inputs, answer.outputs[0], answer.rows, self.model.tails)
            self.tasks = look(seen, self.asked)
        return self.tasks.make()


class Agreeing:
    """The measures of one run over the samples."""

    def __init__(self, book: TaskBook) -> None:
        self.book = book
        self.measures: list[Measure] | None = None

    def add(self, answer: Answer) -> None:
        """Count one batch."""
        if self.measures is None:
            self.measures = self.book.measures(answer)
        before, after = answer.outputs
        for measure in self.measures:
            measure.add(before, after, answer.rows)

    @property
    def of_numbers(self) -> bool:
        """Whether something is counted that is told by how close the outputs are."""
        return any(measure.kind in NUMBERS for measure in self.measures or [])

    def told(self, fidelity: Fidelity) -> Fidelity:
        """The fidelity with what was counted; "same top-1" stays only where an output ranks classes."""
        agreements = tuple(measure.result() for measure in self.measures or [])
        ranking = {name for a in agreements if a.kind == "classes" for name in a.outputs}
        outputs = {
            name: output if name in ranking else replace(output, top1_agreement=None)
            for name, output in fidelity.outputs.items()
        }
        agreements = tuple(_of_worst_part(agreement, fidelity) for agreement in agreements)
        guesses = self.book.tasks.guesses if self.book.tasks is not None else ()
        return replace(fidelity, outputs=outputs, agreements=agreements, guesses=guesses)


def _of_worst_part(agreement: Agreement, fidelity: Fidelity) -> Agreement:
    """Numbers as the worst part of their output keeps them: one large quantity hides what is lost of another."""
    if agreement.kind not in NUMBERS or agreement.value is None:
        return agreement
    parts = [part for name in agreement.outputs if name in fidelity.outputs for part in fidelity.outputs[name].parts]
    worst = min(parts, key=lambda part: part.sqnr_db, default=None)
    kept = 1.0 if worst is None else max(0.0, 1.0 - 10 ** (-worst.sqnr_db / 10))
    if worst is None or kept >= agreement.value:
        return agreement
    return replace(agreement, value=kept, measure=f"{agreement.measure}, {worst.name}")


def in_words(agreement: Agreement) -> str:
    """`boxes matched (F1 at IoU 0.5) above 0.25: 97.3%`."""
    value = "not told" if agreement.value is None else f"{agreement.value:.2%}"
    return f"{agreement.measure}: {value}"
