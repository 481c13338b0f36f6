"""How is a training task carried out? It is written to a scratch folder, and a worker process does it.

The worker (`onnxcomp/distill/worker`) runs in the training environment. What this side knows of it is a process that
takes one JSON line, sends events, and leaves arrays in the folder. Whatever happens to it, nothing of the caller's is
touched: results come back as arrays.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnxcomp.distill import environment
from onnxcomp.distill.process import Work
from onnxcomp.distill.task import Constraint, GradientMoments, TrainingResult, TrainingTask
from onnxcomp.errors import ModelError, OutputError, UsageError
from onnxcomp.files import scratch, user_cache
from onnxcomp.graph.io import to_bytes
from onnxcomp.graph.ir import Array, Graph, is_onnx
from onnxcomp.manager.raising import raise_opset
from onnxcomp.runtime.machine import usable_cores
from onnxcomp.runtime.progress import SILENT, Progress

NEWEST_IR = 10
OLDEST_OPSET, NEWEST_OPSET = 11, 21
HASH_BYTES = 1 << 24
ABANDONED = 8  # checkpoints in the cache that nobody came back for


@dataclass(frozen=True)
class Checkpoint:
    """Where and how often an interrupted run leaves what it needs to go on.

    Attributes:
        path: one file; removed when training is done. A file that another task left is replaced. None: in the user's
            cache, under the hash of the task, so that the same command goes on by itself.
        every_steps, every_seconds: 0 turns either off.
    """

    path: Path | None = None
    every_steps: int = 0
    every_seconds: float = 30.0


def train(
    task: TrainingTask,
    *,
    runtime: environment.Environment | None = None,
    progress: Progress = SILENT,
    checkpoint: Checkpoint | None = None,
    keep_on_interrupt: bool = False,
) -> TrainingResult:
    """Train; the same task gives the same bytes on the same machine, also when it was killed and resumed.

    Args:
        runtime: the training environment; found, or made, by default.
        checkpoint: keep one, and go on from the one that an earlier run of the same task left.
        keep_on_interrupt: after Ctrl-C, give back what was reached (`ended` is `interrupted`) rather than raise.

    Raises:
        ModelError: the graph cannot be trained, or its gradient is wrong.
        DataError: the arrays do not fit the graph.
        UsageError: the loss is no longer finite: the learning rate is too high for it.
        EnvironmentLacksError: no training runtime, or too little memory.
        TrainingError: the worker crashed or hung.
        KeyboardInterrupt: Ctrl-C; the checkpoint is written before.
    """
    _check(task)
    with scratch("train") as folder:
        kept = _checkpoint(task, checkpoint)
        job = _job(task, folder) | {"command": "train", "checkpoint": kept}
        work = Work(runtime or environment.provide(), folder, job)
        done = work.run(progress, "training", total=len(task.feeding.order), keep_on_interrupt=keep_on_interrupt)
        tensors, histories = _results(folder)
    if kept["path"] and done["ended"] != "interrupted":
        Path(kept["path"]).unlink(missing_ok=True)
    return TrainingResult(
        parameters=tensors,
        losses=tuple(histories["losses"].tolist()),
        rates=tuple(histories["rates"].tolist()),
        held_out=tuple((int(step), loss) for step, loss in histories["held_out"].reshape(-1, 2).tolist()),
        best_step=done["best_step"],
        ended=done["ended"],
        step_seconds=done["step_seconds"],
        peak_memory_bytes=done["peak_memory_bytes"],
        gradient_error=done["gradient_error"],
        resumed_from=done["resumed_from"],
    )


def check_gradients(task: TrainingTask, *, runtime: environment.Environment | None = None) -> float:
    """The gradient self-check alone, on the first batch: the median relative error.

    Raises:
        ModelError: the gradient is wrong, or the graph cannot be trained.
        DataError, EnvironmentLacksError, TrainingError: as `train`.
    """
    _check(task)
    with scratch("train") as folder:
        job = _job(task, folder) | {"command": "check"}
        done = Work(runtime or environment.provide(), folder, job).run(SILENT, "checking gradients", total=0)
    error: float = done["gradient_error"]
    return error


def gradient_moments(
    task: TrainingTask,
    batches: int,
    *,
    runtime: environment.Environment | None = None,
    progress: Progress = SILENT,
) -> GradientMoments:
    """Means over the first `batches` batches of the gradient, its square, and the square of weight times gradient.

    Raises:
        ModelError, DataError, EnvironmentLacksError, TrainingError: as `train`.
    """
    task = replace(task, feeding=replace(task.feeding, order=task.feeding.order[:batches]))
    _check(task)
    with scratch("train") as folder:
        job = _job(task, folder) | {"command": "moments"}
        Work(runtime or environment.provide(), folder, job).run(progress, "gradients", total=len(task.feeding.order))
        tensors, _ = _results(folder)
    kinds: dict[str, dict[str, Array]] = {"mean": {}, "square": {}, "taylor": {}}
    for key, array in tensors.items():
        kind, _, name = key.partition(".")
        kinds[kind][name] = array
    return GradientMoments(**kinds)


def forward(
    graph: Graph, feeds: Mapping[str, Array], names: Sequence[str], *, runtime: environment.Environment | None = None
) -> dict[str, Array]:
    """The named tensors of a training graph as the training runtime computes them.

    Raises:
        ModelError: it does not run the graph.
        EnvironmentLacksError, TrainingError: as `train`.
    """
    with scratch("train") as folder:
        (folder / "model.onnx").write_bytes(training_bytes(graph))
        store, none = _Store(folder), np.zeros((0, 1), np.int64)
        job = {
            "command": "forward",
            "folder": str(folder),
            "arrays": {name: store.described(array) for name, array in feeds.items()},
            "order": store.described(none),
            "held_out": store.described(none),
            "outputs": list(names),
        }
        Work(runtime or environment.provide(), folder, job).run(SILENT, "comparing", total=0)
        return _results(folder)[0]


def training_bytes(graph: Graph) -> bytes:
    """The graph as the training runtime reads it: opset 11 to 21, IR version at most 10; the graph itself stays.

    Raises:
        ModelError: an operator exists in no opset that the training runtime knows.
    """
    copy = graph.clone()
    if copy.opset < OLDEST_OPSET:
        raise_opset(copy, OLDEST_OPSET)
    if copy.opset > NEWEST_OPSET:
        _lower(copy)
    copy.model.ir_version = min(copy.model.ir_version, NEWEST_IR)
    copy.sort()
    return to_bytes(copy)


def _lower(graph: Graph) -> None:
    """Restamp to the newest opset the runtime knows; right as long as no operator changed since."""
    for node in graph.walk():
        if is_onnx(node.domain):
            try:
                since = onnx.defs.get_schema(node.op, graph.opset, "").since_version
            except onnx.defs.SchemaError:
                since = graph.opset  # the runtime's own words tell
            if since > NEWEST_OPSET and not _only_types_grew(node.op, since):
                raise ModelError(
                    f"{node.op} of opset {since} is newer than the training runtime knows (opset {NEWEST_OPSET})",
                    where=f"node {node}",
                    do=f"export the model with opset {NEWEST_OPSET} or older",
                )
    for entry in graph.model.opset_import:
        if is_onnx(entry.domain):
            entry.version = NEWEST_OPSET


def _only_types_grew(op: str, since: int) -> bool:
    """Whether an operator's newer version takes the same attributes, inputs and outputs: only its types grew."""

    def form(version: int) -> tuple[Any, ...]:
        schema = onnx.defs.get_schema(op, version, "")
        ports = [(port.name, port.option) for port in (*schema.inputs, *schema.outputs)]
        return sorted(schema.attributes), ports

    try:
        return form(since) == form(NEWEST_OPSET)
    except onnx.defs.SchemaError:
        return False


def _check(task: TrainingTask) -> None:
    """What needs no worker to be seen."""
    if not task.trainable:
        raise ModelError("nothing of this model is to be trained", do="name initializers that may move")
    order = task.feeding.order
    if order.ndim != 2 or not order.size:
        raise UsageError("there are no batches to train on", do="give more samples, or a smaller batch")
    known = {*task.trainable, *task.statistics}
    named = {*task.constraints, *task.optimizer.lr_scale, *task.optimizer.undecayed, *task.sparsity.l1}
    named |= {piece.parameter for group in task.sparsity.groups for piece in group}
    if strange := sorted(named - known):
        raise UsageError(f"{strange[0]!r} is constrained, but it is no trainable parameter", do="name trainable ones")


# -- the job ---------------------------------------------------------------------------------------------------------


def _job(task: TrainingTask, folder: Path) -> dict[str, Any]:
    """Write the model and the arrays; the job's JSON describes them."""
    (folder / "model.onnx").write_bytes(training_bytes(task.graph))
    feeding, optimizer, sparsity = task.feeding, task.optimizer, task.sparsity
    store = _Store(folder)
    return {
        "folder": str(folder),
        "loss": task.loss,
        "trainable": list(task.trainable),
        "statistics": list(task.statistics),
        "arrays": {name: store.described(array) for name, array in feeding.arrays.items()},
        "order": store.described(feeding.order.astype(np.int64)),
        "held_out": store.described(feeding.held_out.astype(np.int64)),
        "optimizer": {
            "kind": optimizer.kind,
            "momentum": optimizer.momentum,
            "beta1": optimizer.betas[0],
            "beta2": optimizer.betas[1],
            "epsilon": optimizer.epsilon,
            "weight_decay": optimizer.weight_decay,
            "clip_norm": optimizer.clip_norm,
            "scales": dict(optimizer.lr_scale),
            "undecayed": sorted(optimizer.undecayed),
        },
        "schedule": {
            "lr": optimizer.lr,
            "warmup": optimizer.warmup_steps,
            "kind": optimizer.schedule,
            "final_share": optimizer.final_share,
        },
        "looking": {"every": task.evaluate_every, "patience": task.patience, "keep_best": task.keep_best},
        "constraints": {name: store.constraint(kept) for name, kept in task.constraints.items()},
        "l1": dict(sparsity.l1),
        "groups": [[[p.parameter, p.axis, list(p.indices)] for p in group] for group in sparsity.groups],
        "group_strength": sparsity.group_strength,
        "check_gradients": task.check_gradients,
        "seed": task.seed,
        "threads": task.threads or usable_cores(),
    }


class _Store:
    """Arrays on disk, under numbers; those that lie there already stay where they are."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0

    def described(self, array: Array) -> dict[str, Any]:
        """Where the worker finds the array."""
        if isinstance(array, np.memmap) and (found := _mapped(array)):
            return found
        name = f"{self._count}.npy"
        self._count += 1
        np.save(self._folder / name, array)
        return {"npy": name}

    def constraint(self, kept: Constraint) -> dict[str, Any]:
        """The parts that are given, each an array."""
        parts = {name: getattr(kept, name) for name in ("mask", "low", "high")}
        stored = {}
        for name, part in parts.items():
            if part is not None:
                stored[name] = self.described(np.asarray(part, bool if name == "mask" else np.float32))
        return stored


def _mapped(array: np.memmap[Any, Any]) -> dict[str, Any] | None:
    """Where in its file a map lies; None for slices of maps, whose offset numpy does not tell."""
    whole = isinstance(array.base, np.ndarray) is False and array.flags.c_contiguous and array.filename is not None
    if not whole:
        return None
    return {
        "file": str(array.filename),
        "offset": int(array.offset),
        "dtype": array.dtype.str,
        "shape": list(array.shape),
    }


def _checkpoint(task: TrainingTask, checkpoint: Checkpoint | None) -> dict[str, Any]:
    if checkpoint is None:
        return {"path": "", "key": "", "every_steps": 0, "every_seconds": 0.0}
    key = _key(task)
    return {
        "path": str((checkpoint.path or _place(key)).resolve()),
        "key": key,
        "every_steps": checkpoint.every_steps,
        "every_seconds": checkpoint.every_seconds,
    }


def _place(key: str) -> Path:
    """A file in the user's cache; of those that earlier runs abandoned only the newest stay.

    Raises:
        OutputError: the cache cannot be written.
    """
    folder = user_cache() / "checkpoints"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        abandoned = sorted(folder.glob("*.npz"), key=lambda path: path.stat().st_mtime)
        for path in abandoned[:-ABANDONED]:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(
            f"checkpoints cannot be written: {error.strerror}",
            where=f"folder {folder}",
            do="set XDG_CACHE_HOME to a folder that is writable",
        ) from error
    return folder / f"{key[:32]}.npz"


def _key(task: TrainingTask) -> str:
    """A hash of all that decides the result, so that a run goes on from its own checkpoint only."""
    digest = hashlib.sha256(training_bytes(task.graph))
    plain = {
        "trainable": task.trainable,
        "statistics": task.statistics,
        "loss": task.loss,
        "optimizer": asdict(replace(task.optimizer, undecayed=frozenset())),
        "undecayed": sorted(task.optimizer.undecayed),
        "sparsity": asdict(task.sparsity),
        "looking": [task.evaluate_every, task.patience, task.keep_best, task.threads],
    }
    digest.update(json.dumps(plain, sort_keys=True, default=str).encode())
    feeding = task.feeding
    arrays: dict[str, Array | None] = {f"feed {name}": array for name, array in sorted(feeding.arrays.items())}
    arrays |= {"order": feeding.order, "held_out": feeding.held_out}
    for name, kept in sorted(task.constraints.items()):
        arrays |= {f"{part} {name}": getattr(kept, part) for part in ("mask", "low", "high")}
    for name, array in arrays.items():
        if array is not None:
            digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
            _hash_array(digest, np.asarray(array))
    return digest.hexdigest()


def _hash_array(digest: Any, array: Array) -> None:
    rows = max(1, HASH_BYTES // max(1, array.nbytes // max(1, len(array)))) if array.ndim else 1
    for at in range(0, len(array) if array.ndim else 1, rows):
        digest.update(np.ascontiguousarray(array[at : at + rows] if array.ndim else array).data)


def _results(folder: Path) -> tuple[dict[str, Array], Mapping[str, Array]]:
    """Tensors by name, and histories by theirs."""
    with np.load(folder / "results.npz") as stored:
        arrays = {name: stored[name] for name in stored.files}
    names = json.loads(arrays.pop("names").tobytes())
    tensors = {name: arrays.pop(f"tensor.{i}") for i, name in enumerate(names)}
    return tensors, arrays
