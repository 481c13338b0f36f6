"""Running passes one after another and holding each to its promises."""

from __future__ import annotations

import inspect
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal

from onnxcomp.errors import DataError, GuaranteeError, ModelError, OnnxcompError, UsageError
from onnxcomp.graph.functions import inline_functions
from onnxcomp.graph.fused import is_fused, take_apart
from onnxcomp.graph.io import total_bytes
from onnxcomp.graph.ir import Graph
from onnxcomp.graph.literals import is_weight, lift
from onnxcomp.graph.opset import upgrade
from onnxcomp.graph.shapes import blamed_on, check_structure, strict_enough
from onnxcomp.manager.base import Guarantee, Need, Outcome, Pass, PassContext
from onnxcomp.manager.guarantee import Probe, interface_of
from onnxcomp.manager.prefixes import Kept, Prefixes
from onnxcomp.manager.spec import parse_passes
from onnxcomp.results import IDLE, PassRecord, TrainingRecord
from onnxcomp.runtime import blas


@dataclass(frozen=True)
class Pipeline:
    """Passes in the order in which they run; `str` gives the spec string that `parse` reads."""

    passes: tuple[Pass, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Pipeline:
        """Read a spec string such as `cleanup,quantize-qdq{activations=mse}`.

        Raises:
            UsageError: the text is malformed, or names an unknown pass or option.
        """
        return cls(parse_passes(text))

    @classmethod
    def of(cls, passes: Passes) -> Pipeline:
        """From a spec string, passes, or specs of single passes; a pipeline is itself.

        Raises:
            UsageError: it is none of these, or as `parse`.
        """
        if isinstance(passes, Pipeline):
            return passes
        items: Sequence[object] = [passes] if isinstance(passes, str) else passes
        for item in items:
            if not isinstance(item, Pass | str):
                what = f"a pass is an object or its spec, not {item!r}"
                raise UsageError(what, where="passes", do="give it as Cleanup() or 'cleanup'")
        found = (parse_passes(item) if isinstance(item, str) else (item,) for item in items)
        return cls(tuple(one for several in found for one in several))  # type: ignore[misc]

    def __str__(self) -> str:
        return ",".join(str(item) for item in self.passes)

    @property
    def trains(self) -> bool:
        """Whether a pass of it trains."""
        return any(Need.TRAINING in item.required() for item in self.passes)

    def check_needs(self, context: PassContext) -> None:
        """Fail before any work where a pass needs what is not there.

        Raises:
            DataError: calibration data or labels are missing.
            EnvironmentLacksError: the training runtime is missing and cannot be brought.
        """
        for item in self.passes:
            needs = item.required()
            samples = context.calibration
            if (Need.DATA in needs or Need.LABELS in needs) and samples is None:
                raise DataError(
                    f"{item.name} needs calibration data", where=f"pass {item}", do="give real samples with --data"
                )
            if Need.LABELS in needs and samples is not None and samples.labels is None:
                raise DataError(f"{item.name} needs labels", where=f"pass {item}", do="give them with --labels")
            if Need.TRAINING in needs:
                item.provide(context.progress)


Passes = str | Pipeline | Sequence[Pass | str]


@dataclass
class RunResult:
    """The rewritten graph and what each pass did."""

    graph: Graph
    records: list[PassRecord] = field(default_factory=list)
    trainings: list[TrainingRecord] = field(default_factory=list)

    @property
    def changes(self) -> int:
        """How many things were changed in all."""
        return sum(record.changes for record in self.records)


@dataclass
class PassManager:
    """Runs a pipeline on a graph.

    Attributes:
        pipeline: what to run.
        verify: check guarantees by running the model before and after each exact or close pass.
        on_failure: `raise` stops at a broken promise; `rollback` undoes the pass, records why, and goes on.
        prefixes: what other pipelines on the same graph, in the same context, already did; None to run all passes.
    """

    pipeline: Pipeline
    verify: bool = True
    on_failure: Literal["raise", "rollback"] = "raise"
    prefixes: Prefixes | None = None

    def run(self, graph: Graph, context: PassContext | None = None) -> RunResult:
        """Run all passes. The graph given is not changed.

        Raises:
            GuaranteeError: a pass broke a promise and `on_failure` is `raise`.
            ModelError: the graph is invalid before the first pass.
            DataError, UsageError, EnvironmentLacksError: as the passes say.
        """
        context = context or PassContext()
        self.pipeline.check_needs(context)
        prefixes = self.prefixes if self.prefixes is not None else Prefixes(graph, most_graphs=0)
        if prefixes.strict is None:
            prefixes.strict = strict_enough(graph)
        if prefixes.probe is None:
            prefixes.probe = Probe(context, enabled=self.verify)
        done, known = self._known(graph, prefixes)
        start, inlined = known.start, known.inlined
        result = RunResult(known.graph, list(known.records), list(known.trainings))
        running = [""]
        left = self.pipeline.passes[done:]
        for item in context.progress.track(_named(left, running), len(left), lambda: running[0]):
            result.graph, record, trainings = self._one(item, result.graph, context, prefixes.probe, prefixes.strict)
            if inlined and (record.changes or start is graph):
                record = replace(record, notes=(*record.notes, inlined))
                inlined = ""
            result.records.append(record)
            result.trainings += trainings
            kept = Kept(start, inlined, result.graph, tuple(result.records), tuple(result.trainings))
            prefixes.keep(self._mode(graph), self._specs[: len(result.records)], kept)
        if result.graph is start:  # functions stay where nothing was changed
            result.graph = graph.clone()
        return result

    @property
    def _specs(self) -> tuple[str, ...]:
        return tuple(map(str, self.pipeline.passes))

    def _mode(self, graph: Graph) -> str:
        """What decides about a pass beside itself and those before it."""
        opens = (bool(graph.functions) or is_fused(graph)) and any(map(_rewrites, self.pipeline.passes))
        return f"{self.on_failure}{', opened' if opens else ''}"

    def _known(self, graph: Graph, prefixes: Prefixes) -> tuple[int, Kept]:
        """How many passes are done already, and what they came to."""
        found = prefixes.longest(self._mode(graph), self._specs)
        if found is None:
            start, inlined = self._open_functions(graph)
            return 0, Kept(start, inlined, start)
        return found

    def _open_functions(self, graph: Graph) -> tuple[Graph, str]:
        """A copy without local functions and fused layers where a pass is to rewrite what they hold, and what to say.

        Exact and close passes alone, and training, leave both as they are.
        """
        if not (graph.functions or is_fused(graph)) or not any(_rewrites(item) for item in self.pipeline.passes):
            return graph, ""
        start = graph.clone()
        try:
            said = inline_functions(start)
        except ModelError as error:
            start = graph.clone()
            said = [f"local functions are left alone, and what they hold with them: {error.what}"]
        said += take_apart(start)
        return start, "; ".join(said)

    def _one(
        self, item: Pass, graph: Graph, context: PassContext, probe: Probe, strict: bool
    ) -> tuple[Graph, PassRecord, list[TrainingRecord]]:
        """Run a pass on a copy, which takes the graph's place if it holds and the pass changed anything."""
        candidate = graph.clone()
        start = time.perf_counter()
        lifted = len(lift(candidate, is_weight)) if _rewrites(item) else 0
        # limited for all passes alike, so that results do not depend on the number of cores either
        failure, outcome = "", Outcome()
        try:
            with blas.limited(), _blamed_on_pass(item), blamed_on(graph):
                outcome = item.run(candidate, context)
            if lifted and outcome.changes:
                outcome.notes.append(f"{lifted} weights that Constant nodes held became initializers")
            if outcome.changes:
                _check(item, graph, candidate, outcome, probe, strict)
            else:
                candidate = graph
        except GuaranteeError as error:
            if self.on_failure == "raise":
                raise
            failure, candidate = str(error), graph
        if not outcome.changes and not outcome.summary:
            outcome.summary = IDLE
        bytes_before, operators_before = total_bytes(graph), graph.operators()
        same = candidate is graph
        record = PassRecord(
            name=item.name,
            spec=str(item),
            guarantee=item.promises().value,
            seconds=round(time.perf_counter() - start, 3),
            changes=0 if failure else len(outcome.changes),
            skips=tuple(outcome.skips),
            summary=failure or outcome.summary,
            details=tuple(outcome.changes),
            metrics=outcome.metrics,
            notes=tuple(outcome.notes),
            bytes_before=bytes_before,
            bytes_after=bytes_before if same else total_bytes(candidate),
            operators_before=operators_before,
            operators_after=operators_before if same else candidate.operators(),
            rolled_back=failure,
            missed=outcome.missed,
            documents=outcome.documents,
        )
        return candidate, record, outcome.trainings


def _named(passes: tuple[Pass, ...], running: list[str]) -> Iterator[Pass]:
    """The passes; the name of the one that is run stands in `running`."""
    for item in passes:
        running[0] = f"pass {item.name}"
        yield item


@contextmanager
def _blamed_on_pass(item: Pass) -> Iterator[None]:
    """What the code of an installed pass raises is its author's matter; a built-in pass's is a defect of ours.

    Raises:
        GuaranteeError: the pass raised an error that is none of onnxcomp's own.
    """
    if type(item).__module__.partition(".")[0] == "onnxcomp":
        yield
        return
    try:
        yield
    except (OnnxcompError, MemoryError):
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        own = [f for f in frames if f.filename == inspect.getsourcefile(type(item))] or frames
        raise GuaranteeError(
            f"{item.name} raised {type(error).__name__}: {error}",
            where=f"{own[-1].filename}, line {own[-1].lineno}",
            do=_REPORT,
        ) from error


def _rewrites(item: Pass) -> bool:
    """Whether a pass rewrites nodes at a loss; what only trains returns values to wherever they came from."""
    return item.promises() is Guarantee.LOSSY and Need.TRAINING not in item.required()


def _check(item: Pass, before: Graph, after: Graph, outcome: Outcome, probe: Probe, strict: bool) -> None:
    try:
        after.sort()
        _tell_types_once(after)
        check_structure(after, strict=strict and (before.opset == after.opset or _strict_there(before, after.opset)))
    except ModelError as error:
        raise GuaranteeError(
            f"{item.name} left an invalid graph: {error.what}", where=error.where, do=_REPORT
        ) from error
    if interface_of(before) != interface_of(after):
        raise GuaranteeError(
            f"{item.name} changed the model's inputs or outputs",
            where=f"{interface_of(before)} became {interface_of(after)}",
            do=_REPORT,
        )
    if item.promises() is not Guarantee.LOSSY:
        probe.compare(item, before, after, outcome)


def _tell_types_once(graph: Graph) -> None:
    """Where a zero point tells the type of integers, no attribute of QuantizeLinear repeats it.

    ONNX Runtime turns int8 between a Q and its only DQ into uint8, leaves the attribute, and refuses what it made.
    """
    for node in graph.walk():
        if node.op == "QuantizeLinear" and not node.domain and node.input(2) is not None:
            node.attrs.pop("output_dtype", None)


def _strict_there(graph: Graph, opset: int) -> bool:
    """Whether strict shape inference accepts a graph with its opset raised; some operators fail it in newer forms."""
    raised = graph.clone()
    upgrade(raised, opset)
    return strict_enough(raised)


_REPORT = "report this pass to its author; run without it meanwhile"
