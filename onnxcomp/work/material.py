"""What does a run work on? Data opened, proven by running the model, and shared out so that no sample serves twice."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxcomp.data.copies import evidence
from onnxcomp.data.dataset import Samples
from onnxcomp.data.metric import Metric, parse_metric
from onnxcomp.data.open import random_data
from onnxcomp.data.split import split
from onnxcomp.errors import DataError
from onnxcomp.graph import cost
from onnxcomp.job import Job
from onnxcomp.ops.facts import load_operators
from onnxcomp.runtime.machine import machine
from onnxcomp.runtime.memory import Memory
from onnxcomp.runtime.progress import SILENT, Progress
from onnxcomp.verify.opened import OpenedModel
from onnxcomp.verify.opening import Opener
from onnxcomp.verify.preprocessing import ENOUGH, doubts

LOOKED_AT = 128  # samples that decisions are counted on while recipes are chosen, those that select among them
SYNTHETIC_JUDGED = 16  # enough to see that two graphs compute the same; never called accuracy


@dataclass
class Material:
    """The data of a run, cut into parts that share no sample.

    `copies`: what is to be said of those that do; `repeated`: how many of them judge all the same.
    """

    calibrate: Samples | None
    train: Samples | None
    select: Samples
    judge: Samples
    metric: Metric | None
    synthetic: bool
    source: str
    sample_shapes: dict[str, tuple[int, ...]]
    memory: Memory
    guesses: tuple[str, ...]
    notes: tuple[str, ...]
    doubts: tuple[str, ...] = ()
    copies: tuple[str, ...] = ()
    repeated: int = 0

    @property
    def further(self) -> Samples | None:
        """Where the samples that select are few, some that calibrate, spread evenly: decisions are counted on both.

        Sequences stay whole, and made-up samples are what they are.
        """
        missing = LOOKED_AT - len(self.select)
        own = self.calibrate
        if own is None or missing <= 0 or self.synthetic or self.select.starts is not None:
            return None
        count = len(own.indices)
        return Samples(own.dataset, own.indices[np.linspace(0, count - 1, min(missing, count)).astype(int)])


def prepare(
    job: Job, source: OpenedModel, *, trains: bool = False, doubting: bool = True, progress: Progress = SILENT
) -> Material:
    """Open the data of a job and share them out.

    Args:
        source: the model.
        trains: whether a pass will train.
        doubting: ask whether other preprocessing would fit the model better.
        progress: shows long work.

    Raises:
        DataError: the data cannot be used.
        UsageError, ModelError: options do not fit the model.
    """
    here = machine().memory_bytes
    memory = Memory.of(None if job.memory is None else job.memory.of(here or 0), here)
    runs = job.verify or job.bench
    graph = source.graph
    opener = Opener(source, shapes=job.shapes, states=job.states, runs=runs, memory=memory)
    if job.data is None:
        return _without_data(job, opener)
    opened = [(job.data, job.labels), (job.eval_data, job.eval_labels)]
    dataset, eval_dataset = (
        None if data is None else opener.open(data, preprocess=job.preprocess, labels=labels, settled=False)
        for data, labels in opened
    )
    assert dataset is not None
    opened_sets = [d for d in (dataset, eval_dataset) if d is not None]
    opener.settle(*opened_sets)
    judged = eval_dataset if eval_dataset is not None else dataset
    metric = parse_metric(job.metric) if job.metric or judged.labels is not None else None
    job.budget.require_metric(metric)
    if metric is not None and metric.needs_all and eval_dataset is None:
        raise DataError(
            "a custom metric sees all of its data at once and needs data of its own",
            where=f"--metric {metric.name}",
            do="give --eval-data",
        )
    parts = split(
        dataset,
        calibrate=job.calib_samples,
        judge=job.eval_samples,
        seed=job.seed,
        eval_data=eval_dataset,
        train=trains,
    )
    shapes = {name: tuple(array.shape) for name, array in next(iter(parts.calibrate.batches(1))).items()}
    doubted: list[str] = []
    tried = parts.select if eval_dataset is None else parts.judge
    if doubting and job.verify and tried.dataset.pixels:
        if len(tried) < ENOUGH:
            tried = tried.dataset.samples()  # nothing is chosen by them: what is found is only told
        labels = job.labels if eval_dataset is None else job.eval_labels
        data = job.data if eval_dataset is None else job.eval_data
        doubted = doubts(
            source,
            graph,
            lambda chosen: opener.open(data, preprocess=chosen, labels=labels),
            job.preprocess,
            tried,
            metric,
            macs=cost.stats(graph, load_operators(), file_bytes=0, sample=shapes).macs,
            threads=job.threads,
            progress=progress,
        )
    together = (metric is not None and metric.needs_all) or parts.judge.starts is not None
    seen = (parts.calibrate, parts.train, parts.select if eval_dataset is not None else None)
    found = evidence(parts.judge, *seen, apart=eval_dataset is not None, together=together)
    return Material(
        calibrate=parts.calibrate,
        train=parts.train,
        select=parts.select,
        judge=found.samples,
        metric=metric,
        synthetic=False,
        source=dataset.source,
        sample_shapes=shapes,
        guesses=tuple(dict.fromkeys(g for d in opened_sets for g in d.guesses)),
        notes=(*parts.notes, *dict.fromkeys(problem for d in opened_sets for problem in d.problems), *_cut(memory)),
        memory=memory,
        doubts=tuple(doubted),
        copies=found.doubts,
        repeated=found.repeated,
    )


def _without_data(job: Job, opener: Opener) -> Material:
    if job.labels is not None or job.eval_data is not None or job.metric is not None:
        raise DataError("labels, a metric or evaluation data need --data", where="the options", do="give --data")
    job.budget.require_metric(None)
    drawn = SYNTHETIC_JUDGED + (job.calib_samples if job.allow_random else 0)
    made_up = (
        opener.made_up(drawn, job.seed)
        if opener.runs
        else random_data(opener.interface.inputs, drawn, job.seed, job.shapes)
    )
    samples = made_up.samples()
    judge = samples.head(SYNTHETIC_JUDGED)
    calibrate = made_up.subset(range(SYNTHETIC_JUDGED, len(samples))) if job.allow_random else None
    first = next(iter(judge.batches(1)))
    if job.allow_random:
        note = (
            "calibrated on random data because --allow-random asked for it: expect a worse model than real samples give"
        )
    elif job.passes is not None:
        note = "no --data: made-up samples judged; real ones would show whether the model is still right"
    else:
        note = (
            "no --data: only what needs none was tried; real samples would add int8 activations, "
            "and a check that the model is still right"
        )
    return Material(
        calibrate=calibrate,
        train=calibrate,
        select=judge,
        judge=judge,
        metric=None,
        synthetic=True,
        source="random data",
        sample_shapes={name: tuple(array.shape) for name, array in first.items()},
        guesses=made_up.guesses,
        notes=(note, *_cut(opener.memory)),
        memory=opener.memory,
    )


def _cut(memory: Memory) -> list[str]:
    return [f"memory is held to {memory}, {memory.cut}"] if memory.cut else []
