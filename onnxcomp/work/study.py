"""What is one model's compression judged by? Source, data, metric and target, opened once for any number of trials."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Literal

from onnxcomp import places
from onnxcomp._version import __version__
from onnxcomp.distill.augment import picture_axes
from onnxcomp.errors import GuaranteeError, ModelError
from onnxcomp.files import loaded_files, remove_abandoned_scratch, scratch, sha256_of
from onnxcomp.graph import cost
from onnxcomp.graph.branches import branches, innermost
from onnxcomp.graph.io import save
from onnxcomp.graph.ir import Graph
from onnxcomp.graph.parting import Parting
from onnxcomp.job import Job
from onnxcomp.manager.base import PassContext
from onnxcomp.manager.pipeline import PassManager, Pipeline, RunResult
from onnxcomp.manager.prefixes import Prefixes
from onnxcomp.ops.facts import load_operators
from onnxcomp.results import ModelStats
from onnxcomp.runtime.machine import usable_cores
from onnxcomp.runtime.progress import SILENT, Progress
from onnxcomp.verify.agreement import TaskBook
from onnxcomp.verify.opened import OpenedModel
from onnxcomp.verify.pair import check_runs
from onnxcomp.verify.provenance import stamp
from onnxcomp.work.asked import check_options, judges_all, teacher_of, trains
from onnxcomp.work.choice import better, limits_of, unsound
from onnxcomp.work.front import front_of, needs_runs
from onnxcomp.work.judging import Judge, Measurements, check_metric, cost_model
from onnxcomp.work.key import key_of
from onnxcomp.work.material import Material, prepare
from onnxcomp.work.trial import Measured


class Study:
    """A source model with all that decides how good a compressed one is. Made by `Study.open`.

    Attributes:
        job: what was asked; `passes` and `recipe` decide only whether data is set aside for training.
        source: what is run and judged: the job's model, or the part of it that ONNX Runtime can run. What it gave for
            samples is kept.
        original: its graph; nobody changes it.
        files: the job's model, the .onnx file first.
        parting: the model and that part, where they are not the same.
        stats: its size and cost.
        material: the data, shared out.
        context: what passes may use.
        folder: scratch files; goes away with the study.
    """

    def __init__(
        self,
        job: Job,
        source: OpenedModel,
        material: Material,
        context: PassContext,
        folder: Path,
        files: list[Path],
        parting: Parting | None = None,
    ) -> None:
        self.job, self.source, self.material, self.context, self.folder = job, source, material, context, folder
        self.original, self.operators = source.graph, context.operators
        self.files, self.parting = files, parting
        self.stats = self.stats_of(self.original, source.files)
        self.costs = cost_model(job, material.calibrate or material.judge, context.alone)
        self.judge = Judge(
            source=source,
            stats=self.stats,
            folder=folder,
            samples=material.judge,
            select=material.select,
            metric=material.metric,
            synthetic=material.synthetic,
            context=context,
            seed=job.seed,
            bench=job.bench,
            verify=job.verify,
            bench_seconds=job.bench_seconds,
            until=None if judges_all(job) else limits_of(job.budget, job.seed),
            costs=self.costs,
            tasks=TaskBook(source, job.task),
            alone=context.alone,
        )
        context.costs = self.costs
        context.drop = self.drop if self.judge.has_metric else None
        asked = job.budget.min_agreement is not None  # where a metric is measured, it says what counts
        if job.verify and not material.synthetic and (asked or not self.judge.has_metric):
            self.judge.further = material.further
            context.agreement = self.judge.agreement if asked else self.judge.roughly
        self._prefixes = Prefixes(self.original, most_bytes=material.memory.kept)

    @classmethod
    @contextmanager
    def open(
        cls,
        job: Job,
        *,
        progress: Progress = SILENT,
        alone: Callable[[], AbstractContextManager[object]] = nullcontext,
        again: bool = False,
    ) -> Iterator[Study]:
        """Open source, data, metric and target of a job; its scratch files go with the block.

        Args:
            progress: shows long work.
            alone: a context that every timing is made in, where other processes must not time meanwhile.
            again: the job was carried out before, so that nothing need warn of its data.

        Raises:
            OnnxcompError: a subclass tells what cannot be used: model, data, options, environment, output.
        """
        check_options(job)
        remove_abandoned_scratch()
        with ExitStack() as stack:
            folder = stack.enter_context(scratch())
            keep = job.keep_initializer_inputs
            whole = stack.enter_context(closing(OpenedModel(job.model, keep_initializer_inputs=keep, folder=folder)))
            places.check_job(job, external=lambda model: _external(whole, model))
            parting = front_of(whole.graph) if needs_runs(job) else None
            source = whole
            if parting is not None:
                path = folder / job.model.name
                save(parting.front, path)
                source = stack.enter_context(closing(OpenedModel(path, graph=parting.front, folder=folder)))
            material, context = cls._prepared(job, source, progress, alone, again)
            yield cls(job, source, material, context, folder, whole.files, parting)

    @staticmethod
    def _prepared(
        job: Job,
        source: OpenedModel,
        progress: Progress,
        alone: Callable[[], AbstractContextManager[object]],
        again: bool,
    ) -> tuple[Material, PassContext]:
        """The data, shared out, and what passes may use."""
        if (job.verify or job.bench) and not again:
            check_runs(source)
        operators = load_operators()
        training = trains(job)
        material = prepare(job, source, trains=training, doubting=not again, progress=progress)
        places.check(loaded_files(), places.writes_of(job))  # now the user's own functions are loaded
        if material.metric is not None and job.verify and not again:
            material.guesses += check_metric(
                source, material.judge, material.metric, whole=training, threads=job.threads
            )
        source.let_go()
        context = PassContext(
            operators=operators,
            target=job.target,
            calibration=material.calibrate,
            probes=material.calibrate if material.calibrate is not None else material.select,
            training=material.train,
            held_out=material.select if material.train is not None else None,
            original=teacher_of(job, source.graph),
            sample_shapes=material.sample_shapes,
            memory=material.memory,
            seed=job.seed,
            threads=job.threads or usable_cores(),
            progress=progress,
            alone=alone,
        )
        return material, context

    def drop(self, graph: Graph) -> float:
        """By how much the metric falls on the samples set aside for choosing; less than 0 where it rises."""
        accuracy = self.judge.candidate(graph, timed=False).accuracy
        return 0.0 if accuracy is None else accuracy.drop

    @cached_property
    def key(self) -> str:
        """A hash of everything that decides what a spec measures to: studies with equal keys measure the same."""
        return key_of(self.job)

    @cached_property
    def source_sha256(self) -> str:
        """Of the source's bytes, external data included."""
        return sha256_of(*self.files)

    @cached_property
    def branches(self) -> int:
        """How many residual branches the source has that hold no other one."""
        return len(innermost(branches(self.original, self.operators, self.material.sample_shapes)))

    @property
    def pictures(self) -> bool:
        """Whether an input takes pictures, of which other views can be made."""
        floats = {t.name for t in self.original.inputs if t.dtype is not None and t.dtype.kind == "f"}
        shapes = self.material.sample_shapes
        return any(name in floats and picture_axes(shape) is not None for name, shape in shapes.items())

    def run(self, pipeline: Pipeline | str, *, on_failure: Literal["raise", "rollback"] = "rollback") -> RunResult:
        """The graph that a pipeline makes of the source; first passes that another one shared are not run again.

        Raises:
            GuaranteeError: a pass broke a promise and `on_failure` is `raise`.
            OnnxcompError: as the passes say.
        """
        pipeline = Pipeline.parse(pipeline) if isinstance(pipeline, str) else pipeline
        manager = PassManager(pipeline, verify=self.job.verify, on_failure=on_failure, prefixes=self._prefixes)
        return manager.run(self.original, self.context)

    def trial(self, spec: str, *, samples: int | None = None, timed: bool = True) -> Measured:
        """What a spec comes to, on the selection samples: the same in every study with this one's key.

        Times alone may differ; those that decide are kept in the cost table.

        Args:
            samples: judge on at most so many of the selection samples.
            timed: measure latency, where the job does not leave it out.

        Raises:
            OnnxcompError: the spec is malformed, or needs what is not there. What the runtime refuses is a `Measured`
                that is not sound.
        """
        start = time.perf_counter()
        try:
            result = self.run(spec)
        except (ModelError, GuaranteeError) as error:
            return Measured(spec, False, False, error.what, seconds=_since(start))
        found = self.weighed(spec, result, samples=samples, timed=timed)
        return replace(found, seconds=_since(start))

    def weighed(self, spec: str, result: RunResult, *, samples: int | None = None, timed: bool = True) -> Measured:
        """As `trial`, of a pipeline that ran already."""
        start = time.perf_counter()
        try:
            found = self.judge.candidate(result.graph, samples=samples, timed=timed)
        except ModelError as error:
            return Measured(spec, False, False, f"the runtime refuses it: {error.what}", seconds=_since(start))
        marks = result.graph.metadata_bytes(self._marks(Pipeline.parse(spec)))  # the file that is written says more
        found = replace(found, stats=replace(found.stats, bytes=found.stats.bytes + marks))
        measured = self.figures(spec, found, result.changes, start)
        asks = self.context.agreement is not None and samples is None
        if not asks or measured.agreement is None or not (measured.sound and measured.better):
            return measured
        share = measured.agreement if found.decided is None else found.decided.value
        seen = self.judge.counted if found.decided is None else found.decided.seen
        return replace(measured, agreement=share, decided=seen, seconds=_since(start))

    def final(self, spec: str) -> Measured:
        """As `trial`, on the samples that judge and with a latency measured as long as the job asks for.

        Raises:
            OnnxcompError: as `trial`, and where the runtime refuses the result.
        """
        start = time.perf_counter()
        result = self.run(spec)
        found = self.judge.final(self.stamped(result.graph, spec), self.job.out.name)
        return self.figures(spec, found, result.changes, start)

    def write(self, spec: str, path: Path) -> list[Path]:
        """Write what a spec makes of the source, with its provenance; the files written, the .onnx file first.

        Raises:
            OnnxcompError: as the passes say.
            OutputError: the file cannot be written.
        """
        return save(self.whole(self.stamped(self.run(spec).graph, spec)), path)

    def stats_of(self, graph: Graph, files: list[Path]) -> ModelStats:
        """Size and cost of a graph that lies in files."""
        size = sum(path.stat().st_size for path in files)
        return cost.stats(graph, self.operators, file_bytes=size, sample=self.material.sample_shapes)

    def whole(self, graph: Graph) -> Graph:
        """What is written of a graph: with the nodes behind it that ONNX Runtime cannot run."""
        return graph if self.parting is None else self.parting.rejoined(graph)

    def stamped(self, graph: Graph, spec: Pipeline | str) -> Graph:
        """A copy that says where it comes from."""
        final = graph.clone()
        for key, value in self._marks(Pipeline.parse(spec) if isinstance(spec, str) else spec).items():
            final.set_metadata(key, value)
        return final

    def _marks(self, pipeline: Pipeline) -> dict[str, str]:
        """The metadata of a file that a pipeline made."""
        return stamp(
            version=__version__,
            source_sha256=self.source_sha256,
            spec=str(pipeline),
            config_sha256=self.job.options_sha256(),
            traced=all(item.traced for item in pipeline.passes),
        )

    def figures(self, spec: str, found: Measurements, changes: int, start: float | None = None) -> Measured:
        """What was measured of a spec's result, as a trial's plain figures.

        Args:
            changes: how many things its passes changed.
            start: when the trial began; None where its time is of no interest.
        """
        why = unsound(found.fidelity, found.accuracy, self.job.budget)
        gained = better(self.stats, found.stats, found.benchmark, self.job.objective)
        bench, fidelity, accuracy = found.benchmark, found.fidelity, found.accuracy
        speed = "" if bench is None else f", {1 / bench.speedup:.2f} of the time"
        aim = "" if self.job.objective == "accuracy" else f" for {self.job.objective}"
        gain = "" if gained else f"no gain{aim}: {found.stats.bytes / max(1, self.stats.bytes):.0%} of the size{speed}"
        return Measured(
            spec=spec,
            sound=not why,
            better=gained,
            why=why or gain,
            bytes=found.stats.bytes,
            macs=found.stats.macs,
            latency_ms=None if bench is None else bench.after_ms["p50"],
            latency_ratio=None if bench is None else 1 / bench.speedup,
            accuracy=None if accuracy is None else accuracy.after,
            drop=None if accuracy is None else accuracy.drop,
            sqnr_db=None if fidelity is None else fidelity.worst_db,
            agreement=None if fidelity is None else fidelity.agreement,
            changes=changes,
            seconds=0.0 if start is None else _since(start),
        )


def _since(start: float) -> float:
    return round(time.perf_counter() - start, 3)


def _external(source: OpenedModel, model: Path) -> list[Path]:
    """The files beside a model that hold its weights, those of the source without reading it again."""
    if model != source.path:
        return places.external_files(model)
    with suppress(ModelError, OSError):
        source.read()
        return source.files[1:]
    return []
