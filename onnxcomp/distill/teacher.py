"""What does the teacher say to every sample? Rows on disk, computed once by ONNX Runtime and kept for the next run.

Samples, augmented or not, are written to .npy files row by row; the teacher's outputs for the very same rows come from
the user's cache where they were computed before. A key holds all that decides about them: the teacher's graph and
weights, the tensors asked for, the bytes of the samples as the model sees them (preprocessing is in them), and the
processor and versions that computed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from math import isfinite, prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap

from onnxcomp.distill.augment import Augment
from onnxcomp.distill.layout import Layout, to_front
from onnxcomp.errors import DataError, ModelError, OutputError
from onnxcomp.files import user_cache
from onnxcomp.graph import shapes as shape_tools
from onnxcomp.graph.io import to_bytes
from onnxcomp.graph.ir import Array, Graph
from onnxcomp.manager.base import SampleSource
from onnxcomp.runtime.machine import machine, versions
from onnxcomp.runtime.memory import Memory
from onnxcomp.runtime.progress import Progress
from onnxcomp.runtime.session import Session
from onnxcomp.runtime.stages import peak_bytes
from onnxcomp.runtime.taps import tapped

CACHE_BYTES = 4 << 30  # the teachers' answers in the user's cache; the oldest go
USED_DISK = 0.8  # of what is free, at most
ROWS_A_RUN = 64
MANIFEST = "names.txt"


@dataclass
class Rows:
    """Samples on disk.

    Attributes:
        arrays: by input name, [rows, ...], memory-mapped.
        constants: inputs that are the same in every feed.
        labels: int64 [rows, ...]; None where there are none.
        plain: rows of one view of all training samples; `views` of these follow one another.
        held_out: rows at the end that are not trained on.
        digest: hash of all of them.
        layout: where the model has what is row after row here.
    """

    folder: Path
    arrays: dict[str, Array] = field(default_factory=dict)
    constants: dict[str, Array] = field(default_factory=dict)
    labels: Array | None = None
    plain: int = 0
    views: int = 1
    held_out: int = 0
    digest: str = ""
    layout: Layout = Layout()  # noqa: RUF009 (frozen)

    def __len__(self) -> int:
        return self.plain * self.views + self.held_out

    @property
    def sample_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of one row by input name."""
        return {name: tuple(array.shape[1:]) for name, array in self.arrays.items()}

    def batches(self, size: int | None = None, *, last: bool = False) -> Iterator[dict[str, Any]]:
        """Consecutive rows and the inputs that are the same for all; with `last` only rows that are not trained on."""
        step = size or ROWS_A_RUN
        first = len(self) - self.held_out if last and self.held_out else 0
        for start in range(first, len(self), step):
            part = {name: np.ascontiguousarray(array[start : start + step]) for name, array in self.arrays.items()}
            yield {**part, **self.constants}


def write_rows(
    train: SampleSource,
    held_out: SampleSource | None,
    folder: Path,
    *,
    views: int = 1,
    augment: Augment = Augment(),  # noqa: B008 (frozen)
    seed: int = 0,
    progress: Progress,
) -> Rows:
    """Write `views` views of every training sample and one, unchanged, of every held-out sample.

    Raises:
        DataError: samples differ in shape, so that they fit no batch; or are no pictures and should be augmented.
        OutputError: the disk is full.
    """
    layout = Layout.of(train)
    rows = Rows(folder, plain=len(train), views=views if augment else 1, layout=layout)
    rows.held_out = 0 if held_out is None else len(held_out)
    generator = np.random.default_rng(seed)
    digest, at = hashlib.sha256(), 0
    passes: list[tuple[SampleSource, Augment]] = [(train, augment)] * rows.views
    passes += [(held_out, Augment())] if held_out is not None else []
    try:
        for samples, way in progress.track(passes, len(passes), "reading samples"):
            end = at + len(samples)
            for given in samples.batches(ROWS_A_RUN):
                feeds = layout.rows(given)
                count = rows_in(feeds, layout, end - at)
                rows.constants |= constants_of(feeds, layout, count)
                varying = {k: v for k, v in feeds.items() if k not in rows.constants}
                for name, array in way.views(varying, generator).items():
                    digest.update(np.ascontiguousarray(array).data)
                    _put(rows, name, at, array)
                at += count
    except OSError as error:
        raise OutputError(
            f"the samples cannot be laid out on the disk: {error.strerror}", where=f"folder {folder}", do="make room"
        ) from error
    for name, array in sorted(rows.constants.items()):
        digest.update(name.encode() + array.tobytes())
    rows.digest = digest.hexdigest()
    rows.labels = _labels(train, held_out, rows.views)
    return rows


def rows_a_run(graph: Graph, rows: Rows, memory: Memory, most: int = ROWS_A_RUN) -> tuple[int, int]:
    """How many rows a model is run on at a time, and how many such runs the memory bears at once.

    The first does not depend on the number of threads: a product of another height may round otherwise.
    """
    feeds = rows.layout.feeds(next(rows.batches(1)))
    shapes = shape_tools.infer(graph, {name: array.shape for name, array in feeds.items()})
    peak = peak_bytes(graph, shapes)
    if not isfinite(peak) or not peak:
        return most, 1 << 16
    size = int(min(most, max(1, memory.inside // peak)))
    return size, max(1, int(2 * memory.inside // (size * peak)))


def answers(
    teacher: Graph,
    names: Sequence[str],
    rows: Rows,
    *,
    threads: int,
    progress: Progress,
    memory: Memory = Memory(),  # noqa: B008 (frozen)
) -> tuple[dict[str, Array], bool]:
    """The teacher's tensors of these names for every row, float32, memory-mapped, and whether they were in the cache.

    Runs take as many rows as fit the memory.

    Raises:
        ModelError: ONNX Runtime cannot run the teacher.
        DataError: the rows do not fit it.
        OutputError: the cache cannot be written.
    """
    wanted = list(dict.fromkeys(names))
    size, at_once = rows_a_run(teacher, rows, memory)
    here = [
        str(rows.layout.batch),
        *([str(size)] if size != ROWS_A_RUN else []),
        machine().cpu,
        *(f"{name} {version}" for name, version in sorted(versions().items())),
    ]
    key = hashlib.sha256(to_bytes(teacher) + "\n".join([*wanted, rows.digest, *here]).encode()).hexdigest()[:32]
    place = cache_folder() / key
    known = (place / MANIFEST).is_file()
    if not known:
        _compute(teacher, wanted, rows, place, size, min(threads, at_once), progress)
    os.utime(place)
    _bound(place)
    return {name: np.load(place / f"{i}.npy", mmap_mode="r") for i, name in enumerate(wanted)}, known


def cache_folder() -> Path:
    """Where teachers' answers are kept: in the user's cache folder."""
    return user_cache() / "teacher"


def mean_square(array: Array) -> float:
    """Mean square of a large array, piece by piece."""
    total = 0.0
    for start in range(0, len(array), 1024):
        total += float(np.square(array[start : start + 1024], dtype=np.float64).sum())
    return total / max(array.size, 1)


# -- small steps -------------------------------------------------------------------------------------------------------


def constants_of(feeds: Mapping[str, Array], layout: Layout, count: int) -> dict[str, Array]:
    """The inputs that belong to every sample."""
    one = {name for name in feeds if layout.places.input(name) is None}
    return {name: array for name, array in feeds.items() if name in one or not array.ndim or len(array) != count}


def rows_in(feeds: Mapping[str, Array], layout: Layout, left: int) -> int:
    """How many samples a feed holds: the first dimension that most inputs agree on."""
    varying = [array for name, array in feeds.items() if layout.places.input(name) is not None]
    most = min(left, max(ROWS_A_RUN, layout.batch or 0))
    sizes = [len(a) for a in varying if a.ndim and len(a) <= most]
    if not sizes:
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in feeds.items())
        raise DataError("the inputs have no common batch dimension", where=shapes, do="give samples along axis 0")
    return max(sizes, key=sizes.count)


def _put(rows: Rows, name: str, at: int, array: Array) -> None:
    if name not in rows.arrays:
        path = rows.folder / f"input{len(rows.arrays)}.npy"
        rows.arrays[name] = open_memmap(path, mode="w+", dtype=array.dtype, shape=(len(rows), *array.shape[1:]))
    target = rows.arrays[name]
    if target.shape[1:] != array.shape[1:]:
        raise differing(name, target.shape[1:], array.shape[1:])
    target[at : at + len(array)] = array


def differing(name: str, *shapes: tuple[int, ...]) -> DataError:
    """What to say of samples that fit no batch."""
    return DataError(
        f"samples differ in shape: {' and '.join(str(list(shape)) for shape in dict.fromkeys(shapes))}",
        where=f"input {name}",
        do="pad them to one shape: training takes batches",
    )


def _labels(train: SampleSource, held_out: SampleSource | None, views: int) -> Array | None:
    parts = [train.labels] * views + ([held_out.labels] if held_out is not None else [])
    if any(part is None for part in parts):
        return None
    return np.concatenate([np.asarray(part) for part in parts])


def ask(session: Session, part: Mapping[str, Array], rows: Rows, fixed: int | None = None) -> dict[str, Array]:
    """What a model says to some rows, one row of every output for each.

    Args:
        fixed: rows that it takes at a time, filled up.

    Raises:
        ModelError: a tensor has no axis that counts the rows.
    """
    count = len(part[next(iter(rows.arrays))])
    feeds = _filled(part, rows, fixed) if fixed is not None and count < fixed else part
    asked = len(feeds[next(iter(rows.arrays))])
    found = {}
    for name, array in session.run(rows.layout.feeds(feeds)).items():
        axis = rows.layout.axis_of(name, array.shape, asked)
        if axis is None:
            raise ModelError(
                f"{name} {list(array.shape)} does not hold one row for each of {asked} samples",
                where=f"tensor {name} of the teacher",
                do="choose other features, or a teacher whose outputs have a value for every sample",
            )
        found[name] = to_front(array, axis)[:count]
    return found


def fixed_batch(session: Session, rows: Rows) -> int | None:
    """Rows that a model takes at a time, and no others."""
    ports = [port for port in session.inputs if port.name in rows.arrays and port.shape]
    sizes = [port.shape[rows.layout.places.input(port.name) or 0] for port in ports]
    return rows.layout.batch or next((size for size in sizes if isinstance(size, int) and size > 0), None)


def _compute(
    teacher: Graph, names: list[str], rows: Rows, place: Path, size: int, threads: int, progress: Progress
) -> None:
    staging = place.with_name(f".{place.name}.{uuid.uuid4().hex[:8]}")
    try:
        staging.mkdir(parents=True)
        session = tapped(teacher, names, 1)
        fixed = fixed_batch(session, rows)
        size = fixed or size
        found: dict[str, Array] = {}
        at, total = 0, -(-len(rows) // size)
        given = progress.track(rows.batches(size), total, "asking the teacher")
        for answer in _in_order(lambda part: ask(session, part, rows, fixed), given, threads):
            for index, (name, array) in enumerate(answer.items()):
                if name not in found:
                    shape = (len(rows), *array.shape[1:])
                    _check_room(staging, prod(shape) * 4, name)
                    found[name] = open_memmap(staging / f"{index}.npy", mode="w+", dtype=np.float32, shape=shape)
                found[name][at : at + len(array)] = array
            at += len(next(iter(answer.values())))
        found.clear()  # closes the maps, which writes them out
        (staging / MANIFEST).write_text("\n".join(names), encoding="utf-8")
        _settle(staging, place)
    except OSError as error:
        raise OutputError(
            f"the teacher's answers cannot be kept: {error.strerror}",
            where=f"folder {place.parent}",
            do="make room, or let XDG_CACHE_HOME name another folder",
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _in_order(
    work: Callable[[dict[str, Any]], dict[str, Array]], parts: Iterable[dict[str, Any]], threads: int
) -> Iterator[dict[str, Array]]:
    """Work done by several threads at a time, results in order: each run by one thread, so that sums are the same."""
    waiting: deque[Future[dict[str, Array]]] = deque()
    with ThreadPoolExecutor(max(1, threads)) as pool:
        for part in parts:
            waiting.append(pool.submit(work, part))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _check_room(folder: Path, wanted: int, name: str) -> None:
    free = shutil.disk_usage(folder).free
    if wanted > free * USED_DISK:
        raise OutputError(
            f"the teacher's {name} takes {wanted / 1e9:.1f} GB for all samples, and {free / 1e9:.1f} GB are free",
            where=f"folder {folder.parent}",
            do="match smaller tensors, train on fewer samples or views, or let XDG_CACHE_HOME name another disk",
        )


def _filled(part: Mapping[str, Array], rows: Rows, size: int) -> dict[str, Array]:
    """The last batch filled up to the size that the model fixes; what that adds is dropped from the answers."""
    return {k: np.resize(v, (size, *v.shape[1:])) if k in rows.arrays else v for k, v in part.items()}


def _settle(staging: Path, place: Path) -> None:
    """Rename; where another process was faster its answers are as good."""
    try:
        staging.rename(place)
    except OSError:
        if not (place / MANIFEST).is_file():
            raise


def _bound(kept: Path) -> None:
    """Remove the answers that were used longest ago until the rest fits."""
    folders = [p for p in kept.parent.iterdir() if p.is_dir() and not p.name.startswith(".")]
    by_age = sorted(folders, key=lambda p: (p == kept, p.stat().st_mtime), reverse=True)
    total = 0
    for folder in by_age:
        total += sum(file.stat().st_size for file in folder.iterdir())
        if total > CACHE_BYTES and folder != kept:
            shutil.rmtree(folder, ignore_errors=True)
