"""What do a model and its nodes cost on this machine? Measured once, kept in a table that a later run can replay."""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx

from onnxcomp.errors import DataError, OutputError
from onnxcomp.files import atomic_write, json_of, user_cache
from onnxcomp.graph.codec import encode_node
from onnxcomp.graph.io import runnable
from onnxcomp.graph.ir import Constant, Graph, Node
from onnxcomp.results import Benchmark
from onnxcomp.runtime.kernels import named_times
from onnxcomp.runtime.latency import compare
from onnxcomp.runtime.machine import machine
from onnxcomp.runtime.session import Feeds

SCHEMA = 1
RUNS, PROFILED_SECONDS = 20, 5.0  # of a graph whose kernels are timed; a slow one is not run so often
SECONDS = 1.0
ALONE_SECONDS = 0.25
ADDED = ""  # in node times: the kernels that the runtime put in by itself, such as layout changes


def _here() -> dict[str, Any]:
    """What decides how long things take: the processor and the runtime."""
    found = machine()
    runtime = found.versions.get("onnxruntime-gpu", found.versions.get("onnxruntime", ""))
    return {"cpu": found.cpu, "isa": list(found.isa), "cores": found.cores, "onnxruntime": runtime}


@dataclass
class CostTable:
    """Measured costs by question: the structure of graphs, and what was asked of them.

    Attributes:
        entries: milliseconds, microseconds by node name, or a comparison's figures.
        origin: the machine and the ONNX Runtime that the first answers were measured with.
        path: the file that new answers go to, each at once; None for none.
        measured: how many answers are new.
    """

    entries: dict[str, Any] = field(default_factory=dict)
    origin: dict[str, Any] = field(default_factory=_here)
    path: Path | None = None
    measured: int = 0

    @classmethod
    def at(cls, path: str | Path) -> CostTable:
        """The table in a file, which is made with the first answer where there is none yet.

        Raises:
            DataError: the file is no cost table.
        """
        path = Path(path)
        return replace(cls.load(path), path=path) if path.exists() else cls(path=path)

    @classmethod
    def of_this_machine(cls) -> CostTable:
        """The table in the user's cache for this processor and this ONNX Runtime.

        One that cannot be read is begun anew, and one that cannot be written lasts for this run: that costs time only.
        """
        here = _here()
        key = hashlib.sha256(json.dumps(here, sort_keys=True).encode()).hexdigest()[:16]
        try:
            path = user_cache() / "costs" / f"{key}-onnxruntime-{here['onnxruntime']}.json"
        except RuntimeError:  # a user without a home
            return cls()
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
        try:
            return _CachedTable(cls.load(path).entries, here, path) if path.exists() else _CachedTable({}, here, path)
        except DataError:
            path.unlink(missing_ok=True)
            return _CachedTable({}, here, path)

    @classmethod
    def load(cls, path: str | Path) -> CostTable:
        """Read a table that `save` wrote; new answers do not go back there.

        Raises:
            DataError: the file is missing or no cost table.
        """
        path = Path(path)
        data = json_of(path, DataError, "check --cost-table", "cost table")
        if not isinstance(data, dict) or data.get("schema") != SCHEMA or not isinstance(data.get("entries"), dict):
            raise DataError(
                f"this is no cost table of schema {SCHEMA}", where=f"file {path}", do="let a run write it anew"
            )
        wrong = next((key for key, value in data["entries"].items() if not _sound(key, value)), None)
        origin = data.get("origin", {})
        if wrong is not None or not isinstance(origin, dict):
            what = "its origin" if wrong is None else f"the entry {wrong[:60]}"
            raise DataError(f"the cost table is damaged: {what}", where=f"file {path}", do="let a run write it anew")
        return cls(dict(data["entries"]), dict(origin))

    @property
    def foreign(self) -> bool:
        """Whether the answers come from another machine or ONNX Runtime than this."""
        return self.origin != _here()

    def enter(self, key: str, value: Any) -> None:
        """Add an answer, to the file as well.

        Raises:
            OutputError: the file cannot be written.
        """
        self.entries[key] = value
        self.measured += 1
        if self.path is not None:
            self.save(self.path)

    def save(self, path: str | Path) -> None:
        """Write the table; what others added to the file meanwhile stays in it.

        Raises:
            OutputError: the folder cannot be written.
        """
        path = Path(path)
        if path.exists():
            self.entries |= CostTable.load(path).entries
        data = {"schema": SCHEMA, "origin": self.origin, "entries": dict(sorted(self.entries.items()))}
        with atomic_write(path) as file:
            file.write(json.dumps(data, indent=1, sort_keys=True).encode() + b"\n")


class _CachedTable(CostTable):
    """A table whose file is a convenience."""

    def save(self, path: str | Path) -> None:
        """Write the table if that can be done."""
        with suppress(OutputError, DataError):
            super().save(path)


class MeasuredCosts:
    """Answers from the table, or measures and enters the answer there: a `CostModel` for passes.

    Args:
        feed: one sample's inputs, which every graph asked about takes.
        threads: threads inside one operator.
        table: answers known so far.
        alone: entered around every timing, where others must not time meanwhile.
    """

    def __init__(
        self,
        feed: Feeds,
        *,
        threads: int = 1,
        table: CostTable | None = None,
        alone: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self.feed, self.threads, self.alone = dict(feed), threads, alone
        self.table = table if table is not None else CostTable()
        self._reference: Graph | None = None

    def latency_ms(self, graph: Graph) -> float:
        """Median latency of one sample in milliseconds.

        All graphs are measured interleaved with the first one asked about, so that a drift of the machine's speed
        does not look like a difference between them.

        Raises:
            ModelError: ONNX Runtime cannot run the graph.
        """
        if self._reference is None:
            self._reference = graph.clone()
        key = self._key("latency_ms", graph)
        if key not in self.table.entries:
            first = self._reference
            alone = key == self._key("latency_ms", first)
            self._known(key, functools.partial(self._latency, first, graph, None if alone else self.latency_ms(first)))
        return float(self.table.entries[key])

    def node_times_us(self, graph: Graph) -> dict[str, float]:
        """Kernel time in microseconds by name of the node it came from; under `ADDED` what the runtime added.

        Raises:
            ModelError: ONNX Runtime cannot run the graph.
        """
        found = self._known(self._key("kernel_times_us", graph), lambda: _rounded(self._profile(graph)))
        return {name: float(time) for name, time in found.items()}

    def comparison(self, before: Graph, after: Graph, measure: Callable[[], Benchmark]) -> Benchmark:
        """How two graphs compare, by `measure` if the table does not know; that has no spread of calls then."""
        return _benchmark(self._known(self._pair(before, after), lambda: _figures(measure())))

    def recorded(self, before: Graph, after: Graph) -> Benchmark | None:
        """The same where the table knows it, else None: nothing is measured."""
        found = self.table.entries.get(self._pair(before, after))
        return None if found is None else _benchmark(found)

    def _known(self, key: str, measure: Callable[[], Any]) -> Any:
        """From the table, else measured and entered; what is used is what was entered, to the last digit."""
        if key not in self.table.entries:
            with self.alone():
                self.table.enter(key, measure())
        return self.table.entries[key]

    def _key(self, what: str, graph: Graph) -> str:
        return f"{what}:threads={self.threads}:{signature(graph, self.feed)}"

    def _pair(self, before: Graph, after: Graph) -> str:
        return self._key(f"comparison with {signature(before, self.feed)}", after)

    def _latency(self, first: Graph, graph: Graph, first_ms: float | None) -> float:
        """Of a graph whose speed is compared with that of the first one; of that one itself where None is given."""
        with runnable(first) as before, runnable(graph) as after:
            # against itself only the milliseconds are asked, and every ratio is measured anew
            seconds = ALONE_SECONDS if first_ms is None else SECONDS
            found = compare(before, after, self.feed, threads=self.threads, seconds=seconds)
        return round(found.before_ms["p50"] if first_ms is None else first_ms / found.speedup, 6)

    def _profile(self, graph: Graph) -> dict[str, float]:
        found: dict[str, float] = {}
        for name, entry in named_times(graph, self.feed, threads=self.threads, runs=RUNS, seconds=PROFILED_SECONDS):
            found[name or ADDED] = found.get(name or ADDED, 0.0) + entry.microseconds
        return found


def _sound(key: str, value: Any) -> bool:
    """Whether an entry of a file is an answer to its question."""
    if key.startswith("latency_ms:"):
        return _time(value)
    if key.startswith("node_times_us:"):
        return isinstance(value, dict) and all(map(_time, value.values()))
    if not key.startswith("comparison with "):
        return True  # nobody asks for it
    try:
        found = _benchmark(value)
    except (TypeError, KeyError):
        return False
    times = [*found.before_ms.values(), *found.after_ms.values()] if isinstance(found.before_ms, dict) else []
    return bool(times) and len(found.speedup_interval) == 2 and all(map(_time, (found.speedup, *times)))


def _time(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


def _rounded(times: dict[str, float]) -> dict[str, float]:
    return {name: round(time, 3) for name, time in times.items()}


def _figures(found: Benchmark) -> dict[str, Any]:
    """A benchmark as a table keeps it: no single calls."""
    figures = asdict(replace(found, spread=None, session_seconds=None))
    figures["speedup"] = round(found.speedup, 6)
    figures["speedup_interval"] = [round(end, 6) for end in found.speedup_interval]
    return {key: value for key, value in figures.items() if value is not None}


def _benchmark(figures: dict[str, Any]) -> Benchmark:
    return Benchmark(**{**figures, "speedup_interval": tuple(figures["speedup_interval"])})


def signature(graph: Graph, feed: Feeds) -> str:
    """A hash of everything that decides about speed: operators, attributes, wiring, types and sizes; no weights."""
    digest = hashlib.sha256()
    for name, array in sorted(feed.items()):
        digest.update(f"{name}:{array.dtype}:{array.shape};".encode())
    for entry in sorted((o.domain, o.version) for o in graph.model.opset_import):
        digest.update(repr(entry).encode())
    places: dict[str, str] = {}  # tensors by the order in which they come up: their names decide nothing
    for node in graph.walk():
        digest.update(_line(node, places).SerializeToString(deterministic=True))
        sizes = [(t.dtype.name, t.shape) for t in node.inputs if isinstance(t, Constant)]
        digest.update(repr(sizes).encode())
    return digest.hexdigest()[:32]


def _line(node: Node, places: dict[str, str]) -> onnx.NodeProto:
    """The node without its bodies' contents, which `walk` visits, with its name and the places of its tensors."""
    plain = {key: value for key, value in node.attrs.items() if not isinstance(value, Graph | list) or _plain(value)}
    bare = Node(node.op, node.name, plain, domain=node.domain)
    bare.origin = node.origin
    proto = encode_node(bare)
    for tensors, into in ((node.inputs, proto.input), (node.outputs, proto.output)):
        into.extend(places.setdefault(t.name, str(len(places))) if t.name else "" for t in tensors)
    return proto


def _plain(value: Any) -> bool:
    return isinstance(value, list) and not (value and isinstance(value[0], Graph))
