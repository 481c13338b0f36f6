"""Which steps lead a model to an aim? Each is measured, and rolled back where it gains nothing or costs too much."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from onnxcomp import recipes
from onnxcomp.errors import OnnxcompError
from onnxcomp.manager.base import Guarantee, Need, Pass, Stage
from onnxcomp.manager.pipeline import Pipeline
from onnxcomp.report.tables import metric_text
from onnxcomp.targets import table as targets
from onnxcomp.verify.budget import ROUNDING
from onnxcomp.work.asked import trains
from onnxcomp.work.study import Study
from onnxcomp.work.trial import Measured

WORTH = 0.99  # of the score before: a step that leaves more is no gain
SHARES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.15, 0.1, 0.07, 0.05, 0.035, 0.025)
BLOCKS, PRUNE = "prune-blocks{{count={count}}}", "prune-channels{{{what}={share}}}"
TRAIN = "distill{{epochs=4.0{views}}}"
FEW_BITS = tuple(f"distill{{{{epochs=6.0{{views}},bits={bits},edge_bits=4,granularity=tensor}}}}" for bits in (4, 2))
VIEWS = ",augment=[crop]"  # of pictures: few samples are seen from more sides, and what they show stays the same
SPARE, CLOSER_DB = 2, 1.0  # steps that stand in for the last, and what each keeps more than the one behind it
STEPS_BACK = 2  # widths that are tried with few bits after the narrowest that held
COARSER = "store-weights{least_sqnr=20.0}"  # what may be stored more coarsely where bytes are the aim
WRITTEN = "compact{provenance=false}"


@dataclass
class Climb:
    """The way to one aim.

    Attributes:
        notes: each step, taken or left, and why.
        taken: the figures of those that were taken, in order.
    """

    study: Study
    aim: recipes.Aim
    notes: list[str] = field(default_factory=list)
    taken: list[Measured] = field(default_factory=list)

    @property
    def start(self) -> str:
        """The spec that it starts from: what loses nothing."""
        plain = targets.find(self.study.job.target).decodes_at_load
        return recipes.PLAIN if plain else recipes.CLEAN

    def reach(self) -> str:
        """The spec at the end of the way."""
        best = self._form()
        widths = [best]
        if self.aim.prunes and self.study.material.calibrate is not None:
            widths = self._pruned(best)
            best = widths[-1]
        if self.aim.size > self.aim.time:
            if trains(self.study.job):
                best = self._few_bits(best, widths)
            best = self._take(best, _replaced(best.spec, COARSER)) or best
            best = self._take(best, f"{best.spec},{WRITTEN}") or best
        return best.spec

    def spare(self) -> list[str]:
        """Specs for where the last one does not hold on other samples: steps before it that keep clearly more.

        A metric on few samples has luck in it, and the last of many steps the most; noise of the outputs has little.
        """
        found: list[str] = []
        if not self.taken or self.taken[-1].sqnr_db is None:
            return found
        least = self.taken[-1].sqnr_db + CLOSER_DB
        for step in reversed(self.taken[:-1]):
            if len(found) < SPARE and step.sqnr_db is not None and step.sqnr_db >= least:
                found.append(step.spec)
                least = step.sqnr_db + CLOSER_DB
        return found

    def _form(self) -> Measured:
        """The recipe that the aim likes best."""
        best = self._measured(self.start)
        study = self.study
        objective = "size" if self.aim.size > self.aim.time else "latency"
        has_data = study.material.calibrate is not None
        for recipe in recipes.candidates(
            study.original, has_data=has_data, objective=objective, target=study.job.target
        ):
            best = self._take(best, str(recipe.pipeline)) or best
        return best

    def _pruned(self, form: Measured) -> list[Measured]:
        """Of each kind of cut as much as holds; more with training. All that held, the widest first."""
        held, trained = [form], False
        cuts: tuple[str, ...] = ()
        for steps in self._kinds():
            holds = -1
            for training in ((), (self._with_views(TRAIN),)) if trains(self.study.job) else ((),):
                if trained and not training:
                    continue  # what is cut already does not hold without
                further = self._furthest([(*cuts, step, *training) for step in steps], form.spec, held, holds)
                trained = trained or bool(further > holds and training)
                holds = further
            cuts += steps[holds : holds + 1] if holds >= 0 else ()
        return held

    def _kinds(self) -> Iterator[tuple[str, ...]]:
        """What may be cut, each kind from its gentlest step on.

        Where time counts blocks go first: what a block takes is saved in every form, while a kernel of integers gains
        nothing from a width that fills its registers no less.
        """
        if self.aim.time:
            yield tuple(BLOCKS.format(count=count) for count in range(1, self.study.branches + 1))
        yield tuple(PRUNE.format(what=self.aim.prunes, share=share) for share in SHARES)

    def _furthest(self, steps: Sequence[tuple[str, ...]], form: str, held: list[Measured], holds: int) -> int:
        """The last of some steps that holds, found by halving; a step on real models takes minutes. What held is added.

        Args:
            holds: the last that is known to hold; -1: none.
        """
        fails = len(steps)
        while fails - holds > 1:
            middle = (holds + fails) // 2
            taken = self._take(held[-1], _before_integers(form, steps[middle]))
            if taken is None:
                fails = middle
            else:
                holds = middle
                held.append(taken)
        return holds

    def _with_views(self, text: str) -> str:
        """A spec that trains, with other views of samples that are pictures."""
        return text.format(views=VIEWS if self.study.pictures else "")

    def _few_bits(self, best: Measured, widths: Sequence[Measured]) -> Measured:
        """Weights are trained on four, then two bits; where the narrowest widths do not hold so, those before them."""
        for low in FEW_BITS:
            for base in widths[: -STEPS_BACK - 2 : -1]:
                taken = self._take(best, _trained_on_integers(base.spec, self._with_views(low)))
                if taken is not None:
                    best = taken
                    break
        return best

    def _take(self, best: Measured, spec: str) -> Measured | None:
        """The figures of a step where it is taken."""
        if spec == best.spec:
            return None
        try:
            found = self._measured(spec)
        except OnnxcompError as error:
            self.notes.append(f"{self.aim.name}: left {_last(spec)}: {error.what}")
            return None
        why = self._against(found, best)
        word = "left" if why else "took"
        self.notes.append(f"{self.aim.name}: {word} {_last(spec)}: {why or self._figures(found)}")
        if not why:
            self.taken.append(found)
        return None if why else found

    def _measured(self, spec: str) -> Measured:
        return self.study.trial(spec)

    def _against(self, found: Measured, best: Measured) -> str:
        """Why a step is not taken; empty where it is."""
        if not found.sound:
            return found.why
        if found.agreement is not None and found.agreement < self.aim.agreement:
            return f"it decides otherwise on {1 - found.agreement:.1%} of the samples"
        limit = self.aim.drop if self.study.job.budget.max_drop is None else None
        if limit is not None and found.drop is not None and found.drop > limit + ROUNDING:
            return f"the metric falls by {found.drop:.4f}"
        gain = self._score(found) / self._score(best)
        return f"no gain, {self._figures(found)}" if gain > WORTH else ""

    def _score(self, found: Measured) -> float:
        """Product of the shares of size and time, each to the power that it counts with; lower is better."""
        time = 1.0 if found.latency_ratio is None else found.latency_ratio
        size = max(found.bytes, 1) / max(self.study.stats.bytes, 1)
        return float(size**self.aim.size * time**self.aim.time)

    def _figures(self, found: Measured) -> str:
        size = f"{found.bytes / max(self.study.stats.bytes, 1):.1%} of the size"
        time = "" if found.latency_ratio is None else f", {found.latency_ratio:.2f} of the time"
        metric = self.study.material.metric
        if metric is None or found.drop is None:
            return f"{size}{time}"
        return f"{size}{time}, {metric_text(metric.name, found.drop, higher_is_better=metric.higher_is_better)}"


def _before_integers(spec: str, inserted: Sequence[str]) -> str:
    """A spec with passes put in front of the first that writes integers or stores."""
    passes = Pipeline.parse(spec).passes
    at = next((i for i, item in enumerate(passes) if item.belongs() >= Stage.INTEGER), len(passes))
    more = tuple(item for text in inserted for item in Pipeline.parse(text).passes)
    return str(Pipeline((*passes[:at], *more, *passes[at:])))


def _trained_on_integers(spec: str, low: str) -> str:
    """A spec whose integers are trained, in place of what writes integers or stores; the rest is stored coarsely."""
    passes = Pipeline.parse(spec).passes
    before = tuple(item for item in passes if item.belongs() < Stage.INTEGER)
    return str(Pipeline((*before, *Pipeline.parse(f"{low},{COARSER}").passes)))


def _replaced(spec: str, text: str) -> str:
    """A spec with other options for a pass that it has; as it is where it lacks the pass."""
    (new,) = Pipeline.parse(text).passes
    return str(Pipeline(tuple(new if item.name == new.name else item for item in Pipeline.parse(spec).passes)))


def _last(spec: str) -> str:
    """The passes of a spec that lose something, as a person tells them apart."""
    passes = Pipeline.parse(spec).passes
    lossy = [str(item) for item in passes if (item.belongs() > Stage.CLEAN and not _free(item)) or _trains(item)]
    return ",".join(lossy) or "the clean model"


def _free(item: Pass) -> bool:
    """Whether a pass that is written among integers loses nothing itself."""
    return item.belongs() is Stage.INTEGER and item.promises() is not Guarantee.LOSSY


def _trains(item: Pass) -> bool:
    return Need.TRAINING in item.required()
