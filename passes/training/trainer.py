"""How is one student trained? Its graph in training form, rounding and loss put in, a task for the engine, and back."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import TYPE_CHECKING, Literal

import numpy as np

from onnxcomp.distill import alike, engine
from onnxcomp.distill.layout import rows_first, take_rows
from onnxcomp.distill.losses import Term, append_loss
from onnxcomp.distill.task import Constraint, Feeding, Optimizer, Slice, Sparsity, TrainingResult, TrainingTask
from onnxcomp.distill.teacher import ask, fixed_batch, rows_a_run
from onnxcomp.distill.trainable import Prepared, prepare
from onnxcomp.distill.writeback import put_back
from onnxcomp.errors import ModelError
from onnxcomp.graph import shapes as shape_tools
from onnxcomp.graph.coupling.analysis import analyse
from onnxcomp.graph.ir import Array, Constant, Graph, Variable
from onnxcomp.manager.base import Outcome, PassContext
from onnxcomp.manager.spelling import exactly
from onnxcomp.passes.training import material as materials
from onnxcomp.passes.training.keeping import kept
from onnxcomp.passes.training.material import Material
from onnxcomp.passes.training.objective import Pair, label_terms, terms
from onnxcomp.passes.training.quantized import Quantization
from onnxcomp.results import TrainingRecord
from onnxcomp.runtime.machine import usable_cores
from onnxcomp.runtime.stages import trained_bytes

if TYPE_CHECKING:
    from onnxcomp.passes.distill import Distill

MOST_PIECES = 8  # of a batch, that threads share
LEAST_PIECE = 16  # rows; below, what a run costs besides its rows weighs more than idle threads
RATES = (5e-3, 1.25e-3, 3e-4)  # tried in turn where none is given, as shares of each tensor's RMS
PERFECT = 1e-7  # a loss that is float noise: nothing to gain
MANY_ZEROS = 0.6  # alive at most: 2:4 patterns and pruned weights, and not what rounding to few levels empties
FRESH = 16.0  # times the rate, for what has to be learned from nothing
SCALE_UNIT = 0.2  # learned scales move more slowly than weights
SMALLEST_UNIT = 0.01  # for biases that are all zero
UNBOUNDED = 1 << 40  # rows, where nothing is known of what they take
POINTS = 240  # of a curve in the report
COMPARED = 512  # rows on which the written graph must decide as the trained one
AGREE = 0.999  # share of them below which it is said


@dataclass
class Trainer:
    """Trains one graph, as often as asked.

    Attributes:
        pairs: student's and teacher's tensors that belong together; empty without a teacher.
    """

    options: Distill
    graph: Graph
    context: PassContext
    outcome: Outcome
    material: Material
    pairs: list[Pair]

    def train(self, steps: int, quantization: Quantization | None = None, seed: int = 0) -> dict[str, Array]:
        """Train and put the weights into the graph; returns learned scales by name.

        Raises:
            ModelError: nothing can be trained, or the gradient is wrong.
        """
        start = time.perf_counter()
        proven = self._proven(seed) if quantization is not None else None
        prepared, scales = self._prepared(quantization)
        self._say(prepared)
        weights = [name for name in prepared.trainable if name not in scales]
        constraints = self._constraints(prepared, scales)
        moving = {name: name for name in weights}
        if self.options.anchor:
            moving |= _anchored(prepared.graph, [name for name in weights if name not in prepared.grids])
            changed = {moving[n]: _around(prepared.graph, c, n) for n, c in constraints.items() if n in moving}
            constraints = {n: c for n, c in constraints.items() if n in scales} | changed
        losses = self._loss(prepared.graph, prepared.batch)
        task = replace(
            self._task(prepared, steps, seed),
            trainable=(*moving.values(), *scales),
            optimizer=self._optimizer(prepared, steps, scales, moving),
            constraints=constraints,
            sparsity=self._sparsity(moving),
            check_gradients=quantization is None,
        )
        result = self._trained(task)
        if proven is not None:
            result = replace(result, gradient_error=proven)
        before = {c.name: c.values for c in self.graph.constants()}
        values = {n: v for n, v in result.parameters.items() if n in moving or n in prepared.statistics}
        values |= {n: before[n] + result.parameters[d] for n, d in moving.items() if n != d}
        put_back(self.graph, prepared, values)
        for constant in self.graph.constants():
            if constant.name in values and not np.array_equal(constant.values, before[constant.name]):
                self.outcome.change(constant.name, "trained")
        if result.best_step == 0:
            self.outcome.notes.append("training brought nothing: the loss was lowest before the first step")
        self._record(result, losses, prepared, time.perf_counter() - start)
        return {name: result.parameters[name] for name in scales}

    def _trained(self, task: TrainingTask) -> TrainingResult:
        """Train; where no rate was asked for and the usual one leads away from the start, again with smaller ones.

        A rate is too high where the loss was lowest before it was reached: a student that is near its teacher already
        does not come back within a short training.
        """
        best: TrainingResult | None = None
        for rate in RATES if self.options.lr is None else (self.options.lr,):
            given = replace(task, optimizer=replace(task.optimizer, lr=rate))
            result = engine.train(given, progress=self.context.progress, checkpoint=engine.Checkpoint())
            if result.resumed_from:
                words = f"training went on from step {result.resumed_from} of a run that was interrupted"
                self.outcome.notes.append(words)
            if best is not None:
                self.outcome.notes.append(f"lr={RATES[0]:g} led away from the start: trained again with {rate:g}")
            if best is None or _lowest(result) < _lowest(best):
                best = result
            perfect = _lowest(result) < PERFECT
            if perfect or result.best_step > min(task.optimizer.warmup_steps, len(task.feeding.order) - 1):
                break
        assert best is not None
        return best

    def compare(self, rounded: Graph) -> None:
        """Run the written graph beside the one that was trained, and report how far they agree.

        Args:
            rounded: rounds in floating point, as the training did.
        """
        rows, found = self.material.rows, []
        names = [t.name for t in self.graph.outputs if t.dtype is None or t.dtype.kind == "f"]
        sessions = [self.context.sessions.tapped(graph, names) for graph in (self.graph, rounded)]
        fixed = fixed_batch(sessions[0], rows)
        size = fixed or rows_a_run(rounded, rows, self.context.memory, COMPARED)[0]
        for part in itertools.islice(rows.batches(size, last=True), max(1, -(-COMPARED // size))):
            ours, theirs = (ask(session, part, rows, fixed) for session in sessions)
            found.append([(ours[name], theirs[name]) for name in names])
        written, trained = (
            [np.concatenate([part[at][side] for part in found]) for at in range(len(names))] for side in (0, 1)
        )
        if all(array.ndim == 2 and array.shape[1] > 1 for array in written):
            same = [(a.argmax(1) == b.argmax(1)).mean() for a, b in zip(written, trained, strict=True)]
            self.outcome.metrics["written_agreement"] = float(min(same))
            if min(same) < AGREE:
                self.outcome.notes.append(f"the written graph decides as the trained one on {min(same):.2%} only")
        power = [float(np.square(b, dtype=np.float64).mean()) for b in trained]
        noise = [float(np.square(a - b, dtype=np.float64).mean()) for a, b in zip(written, trained, strict=True)]
        ratios = [p / n for p, n in zip(power, noise, strict=True) if n > 0 and p > 0]
        if ratios:
            self.outcome.metrics["written_sqnr_db"] = round(float(10 * np.log10(min(ratios))), 2)

    # -- the graph -----------------------------------------------------------------------------------------------------

    def _prepared(self, quantization: Quantization | None) -> tuple[Prepared, dict[str, Constraint]]:
        """The training form, rounded where asked for, and what each learned scale must keep."""
        shapes = {name: (1, *shape) for name, shape in self.material.rows.sample_shapes.items()}
        operators = self.context.operators
        work, plain, statistics = self._plain(shapes)
        batch = plain.batch
        if quantization is None:
            plain.require()
            return plain, {}
        inserted = quantization.insert(work)
        moving = set(plain.trainable)
        named = [c.name for c in work.constants()]
        prepared = prepare(
            work,
            operators,
            shapes,
            batch,
            statistics=statistics,
            freeze=[exactly(name) for name in named if name not in moving and name not in inserted.trainable],
            also=[exactly(name) for name in (*moving, *inserted.trainable)],
        )
        prepared.require()
        scales = {name: inserted.constraints[name] for name in inserted.trainable if name in prepared.trainable}
        return prepared, scales

    def _plain(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[Graph, Prepared, Literal["trained", "frozen"]]:
        """The model as it takes rows, its training form without rounding, and what becomes of its statistics."""
        rows, operators, batch = self.material.rows, self.context.operators, self._batch
        work = self.graph.clone()
        _bind(work, rows.constants)
        take_rows(work, rows.layout)
        frozen, fixed = self._frozen(work), rows.layout.batch or _fixed_batch(work, rows.arrays)
        statistics = self.options.statistics if fixed is None else "frozen"
        batch = fixed or batch
        plain = prepare(work, operators, shapes, batch, statistics=statistics, freeze=frozen)
        fitting = self._fitting(plain)
        if fixed is None and not plain.statistics:
            batch = piece_of(batch, fitting)
        elif batch > fitting:
            why = "fixed in the model" if fixed is not None else "as statistics are taken of whole batches"
            note = f"{batch} rows train together, {why}, and memory is meant to bear {fitting}: expect it to take more"
            self.outcome.notes += [note] * (note not in self.outcome.notes)
        if batch != plain.batch:
            plain = prepare(work, operators, shapes, batch, statistics=statistics, freeze=frozen)
        return work, plain, statistics

    def _fitting(self, prepared: Prepared) -> int:
        """Rows whose activations and gradients the memory bears at a time."""
        taken = trained_bytes(prepared.graph, shape_tools.infer(prepared.graph)) / prepared.batch
        return int(self.context.memory.trained // taken) or 1 if taken and isfinite(taken) else UNBOUNDED

    def rehearse(self, quantization: Quantization | None = None) -> None:
        """Everything that can be refused, on the few samples at hand; at last the copy that trains is proven.

        Raises:
            ModelError: nothing can be trained, or the copy computes something else.
            UsageError, DataError: as the losses say.
        """
        shapes = {name: (1, *shape) for name, shape in self.material.rows.sample_shapes.items()}
        work, plain, _ = self._plain(shapes)
        plain.require()
        self._frozen(work)
        if quantization is not None:
            self._prepared(quantization)
        rows, count = self.material.rows, plain.batch
        feeds = {name: np.resize(array, (count, *array.shape[1:])) for name, array in rows.arrays.items()}
        form = replace(plain, graph=plain.graph.clone())
        self._loss(form.graph, count)
        self.outcome.notes += alike.check(work, plain, feeds, self.context.operators, threads=self.context.threads)

    def _proven(self, seed: int) -> float:
        """The error of the gradient before rounding is put in.

        Where scales are learned the largest weights stand at the very end of the levels, and the loss has a kink there
        that no difference quotient agrees with; what rounding itself does is the same for every model.
        """
        prepared, _ = self._prepared(None)
        self._loss(prepared.graph, prepared.batch)
        return engine.check_gradients(self._task(prepared, 1, seed))

    @property
    def _batch(self) -> int:
        return min(self.options.batch, self.material.rows.plain)

    def _rows_a_step(self, prepared: Prepared) -> int:
        """A batch in whole pieces of what the graph takes."""
        return max(1, self._batch // prepared.batch) * prepared.batch

    def _frozen(self, graph: Graph) -> list[str]:
        """Globs of what does not move: those given, and with `train` all that it does not name."""
        frozen = list(self.options.freeze)
        if self.options.train:
            named = self.options.matching(graph, self.options.train)
            frozen += [exactly(c.name) for c in graph.constants() if c.name not in named]
        return frozen

    def _loss(self, work: Graph, batch: int) -> list[Term]:
        """Append the loss; returns its summands."""
        inferred = shape_tools.infer(work)
        shapes = {name: s for name, t in work.tensors().items() if (s := inferred.static(t)) is not None}
        labels = self.material.labels

        def laid(name: str, output: str) -> str:
            """The tensor with a row a sample."""
            axis = self.material.rows.layout.axis_of(output or name, self._shape(shapes, name), batch)
            placed = rows_first(work, name, axis or 0)
            own = shapes[name]
            shapes[placed] = own if not axis else (own[axis], *own[:axis], *own[axis + 1 :])
            return placed

        if self.pairs:
            pairs = [replace(pair, student=laid(pair.student, pair.place)) for pair in self.pairs]
            found, notes = terms(pairs, self.options.aim, shapes, self.material.answers, labels)
            self.outcome.notes += [note for note in notes if note not in self.outcome.notes]
        else:
            found = label_terms(work, shapes, labels, laid)
        shapes |= materials.shapes_of(self.material, self.pairs, batch)
        append_loss(work, found, shapes, None if labels is None else (batch, *labels.shape[1:]))
        return found

    def _shape(self, shapes: Mapping[str, tuple[int, ...]], name: str) -> tuple[int, ...]:
        if name in shapes:
            return shapes[name]
        raise ModelError(
            f"the shape of {name} is known only when the model runs, and training needs it before",
            where=f"tensor {name}",
            do="export the model with fixed sizes, or name features whose sizes are known",
        )

    # -- the task ------------------------------------------------------------------------------------------------------

    def _task(self, prepared: Prepared, steps: int, seed: int) -> TrainingTask:
        """The task with all parameters that can move, and nothing they must keep.

        Penalties are no part of the held-out loss, which would choose weights from before they emptied anything.
        """
        rows, seed = self.material.rows, self.context.seed + seed
        return TrainingTask(
            graph=prepared.graph,
            feeding=Feeding(
                self.material.arrays(self.pairs, {t.name for t in prepared.graph.inputs}),
                materials.order(rows, steps, self._rows_a_step(prepared), seed),
                materials.held_out(rows, prepared.batch),
            ),
            trainable=prepared.trainable,
            loss=prepared.graph.outputs[0].name,
            statistics=prepared.statistics,
            evaluate_every=max(1, steps // self.options.looks),
            patience=self.options.patience,
            keep_best=self.options.keep_best and not (self.options.l1 or self.options.group_lasso),
            seed=seed,
            threads=self._threads(prepared),
        )

    def _threads(self, prepared: Prepared) -> int:
        """As many as the memory bears, each with a piece of the batch; the weights are the same for any number."""
        fitting = self._fitting(prepared) // prepared.batch
        threads = self.context.threads or usable_cores()
        return max(1, min(threads, fitting))

    def _optimizer(
        self, prepared: Prepared, steps: int, scales: Collection[str], moving: Mapping[str, str]
    ) -> Optimizer:
        options = self.options
        vectors = {c.name for c in prepared.graph.constants() if len(c.shape) < 2}
        return Optimizer(
            kind=options.optimizer,
            lr=options.lr or RATES[0],
            lr_scale=self._units(prepared, scales, moving),
            undecayed=frozenset({*scales, *vectors.intersection(moving.values())}),
            weight_decay=options.weight_decay,
            momentum=options.momentum,
            clip_norm=options.clip_norm,
            warmup_steps=round(options.warmup * steps),
            schedule=options.schedule,
        )

    def _units(self, prepared: Prepared, scales: Collection[str], moving: Mapping[str, str]) -> dict[str, float]:
        """What the learning rate of each parameter is a share of: the RMS of its weights that are not zero.

        AdamW moves every weight by about the learning rate, whatever its size. One rate for all is a tenth of a percent
        of the survivors of pruning, and so much for weights into which BatchNormalization was folded that the model
        breaks in the first step (compare Adafactor's relative steps, Shazeer and Stern 2018). Learned scales are
        relative already.
        """
        named = self.options.matching(self.graph, self.options.fresh)
        faster = {moved: FRESH for name, moved in moving.items() if name in named}
        if not self.options.scaled or self.options.optimizer != "adamw":
            return faster
        constants = {c.name: np.asarray(c.values) for c in prepared.graph.constants()}
        found = dict.fromkeys(scales, SCALE_UNIT)
        for name, moved in moving.items():
            alive = constants[name][constants[name] != 0]
            rms = float(np.sqrt(np.mean(np.square(alive, dtype=np.float64)))) if alive.size else 0.0
            found[moved] = max(rms, SMALLEST_UNIT) * faster.get(moved, 1.0)
        return found

    def _constraints(self, prepared: Prepared, scales: dict[str, Constraint]) -> dict[str, Constraint]:
        constants = {c.name: c for c in prepared.graph.constants()}
        weights = [constants[name] for name in prepared.trainable if name not in {*scales, *prepared.grids}]
        found = kept(weights, zeros=self.options.keep_zeros, bounds=self.options.keep_bounds)
        if found.words and found.words not in self.outcome.notes:
            self.outcome.notes.append(found.words)
        return found.constraints | scales | self._on_grids(prepared, constants)

    def _on_grids(self, prepared: Prepared, constants: Mapping[str, Constant]) -> dict[str, Constraint]:
        """Weights stored as integers stay within their range; zeros stay where there are more than rounding makes."""
        found = {}
        for name, grid in prepared.grids.items():
            alive = np.asarray(constants[name].values) != 0
            pruned = self.options.keep_zeros and alive.ndim > 1 and alive.mean() < MANY_ZEROS
            low, high = (np.broadcast_to(bound, alive.shape) for bound in grid.bounds)
            found[name] = Constraint(alive if pruned else None, low, high)
        return found

    def _sparsity(self, moving: Mapping[str, str]) -> Sparsity:
        """Penalties on weights; `moving` names what is trained for each initializer."""
        options = self.options
        constants = {c.name: c for c in self.graph.constants()}
        l1 = {moving[n]: options.l1 for n in moving if options.l1 and len(constants[n].shape) > 1}
        if not options.group_lasso:
            return Sparsity(l1=l1)
        copy = self.graph.clone()
        groups = []
        for group in analyse(copy, self.context.operators, self.context.sample_shapes).groups:
            slots = [slot for slot in group.slots if slot.constant.name in moving]
            for unit in range(group.size):
                pieces = (Slice(moving[s.constant.name], s.axis, tuple(int(i) for i in s.indices[unit])) for s in slots)
                if found := tuple(pieces):
                    groups.append(found)
        return Sparsity(l1=l1, groups=tuple(groups), group_strength=options.group_lasso)

    # -- telling -------------------------------------------------------------------------------------------------------

    def _say(self, prepared: Prepared) -> None:
        for refusal in prepared.refused:
            if refusal.parameters:
                names = ", ".join(refusal.parameters[:3])
                self.outcome.skip(refusal.node, f"{refusal.op}: {refusal.why}; not trained before it: {names}")
        notes = [f"in the copy that trains: {note}" for note in prepared.notes]
        self.outcome.notes += [note for note in notes if note not in self.outcome.notes]

    def _record(self, result: TrainingResult, losses: list[Term], prepared: Prepared, seconds: float) -> None:
        rows = self.material.rows
        constants = {c.name: c for c in self.graph.constants()}
        record = TrainingRecord(
            spec=str(self.options),
            loss=" + ".join(term.words for term in losses),
            teacher=self.options.teacher if self.pairs else "",
            samples=rows.plain,
            views=rows.views,
            held_out_samples=rows.held_out,
            steps=len(result.losses),
            batch=self._rows_a_step(prepared),
            parameters=sum(constants[n].size for n in prepared.trainable if n in constants),
            losses=_thinned(result.losses),
            rates=_thinned(result.rates),
            held_out=tuple((float(step), loss) for step, loss in result.held_out),
            best_step=result.best_step,
            ended=result.ended,
            seconds=round(seconds, 3),
            step_seconds=result.step_seconds,
            peak_memory_bytes=result.peak_memory_bytes,
            gradient_error=result.gradient_error,
        )
        self.outcome.trainings.append(record)


def _lowest(result: TrainingResult) -> float:
    return min((loss for _, loss in result.held_out), default=math.inf)


def _thinned(values: Sequence[float]) -> tuple[tuple[float, float], ...]:
    """(last step, mean) of at most `POINTS` pieces of equal length."""
    if not values:
        return ()
    size = -(-len(values) // POINTS)
    pieces = [np.asarray(values[at : at + size]) for at in range(0, len(values), size)]
    ends = np.cumsum([len(piece) for piece in pieces])
    return tuple((float(end), float(piece.mean())) for end, piece in zip(ends, pieces, strict=True))


def _bind(graph: Graph, constants: dict[str, Array]) -> None:
    """Inputs that are the same in every feed become initializers."""
    for tensor in [t for t in graph.inputs if t.name in constants]:
        fixed = graph.add_constant(f"{tensor.name}.fixed", constants[tensor.name])
        graph.replace_uses(tensor, fixed)
        graph.inputs.remove(tensor)


def _anchored(graph: Graph, names: Sequence[str]) -> dict[str, str]:
    """Let weights be W_s + dW, W_s fixed; returns the names of dW."""
    constants = {c.name: c for c in graph.constants()}
    found = {}
    for name in names:
        constant = constants[name]
        readers = list(dict.fromkeys(constant.consumers))
        delta = Constant(graph.unique_name(f"{name}.delta"), np.zeros(constant.shape, np.float32))
        total: Variable = graph.add_node("Add", [constant, delta], name="distill.Add").outputs[0]
        graph.replace_uses(constant, total, only=readers)
        found[name] = delta.name
    graph.sort()
    return found


def _around(graph: Graph, constraint: Constraint, name: str) -> Constraint:
    """The constraint of W as one of dW: zeros stay where W has them, bounds move by W."""
    values = next(c.values for c in graph.constants() if c.name == name)
    low = None if constraint.low is None else np.asarray(constraint.low - values, np.float32)
    high = None if constraint.high is None else np.asarray(constraint.high - values, np.float32)
    return Constraint(constraint.mask, low, high)


def _fixed_batch(graph: Graph, arrays: Mapping[str, Array]) -> int | None:
    """The batch that a model fixes for itself: its shapes may hold it anywhere, so it is trained in such pieces.

    BatchNormalization keeps its statistics then: those of few samples would mislead it.
    """
    sizes = [t.shape[0] for t in graph.inputs if t.name in arrays and t.shape and isinstance(t.shape[0], int)]
    return next((size for size in sizes if size > 0), None)


def piece_of(batch: int, most: int = UNBOUNDED) -> int:
    """Rows that the training graph takes, so that threads share a batch; all losses are means over samples.

    It does not depend on the number of threads, for sums in another order are other bytes.

    Args:
        most: rows that fit the memory; where no part of the batch is as small, one row.
    """
    shares = (count for count in range(MOST_PIECES, 1, -1) if batch % count == 0 and batch // count >= LEAST_PIECE)
    usual = batch // next(shares, 1)
    return next(size for size in range(max(1, min(usual, most)), 0, -1) if batch % size == 0)
