"""What do a model and its nodes cost on this machine? Measured once, kept in a table that a later run can replay."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx

from onnxcomp.errors import DataError
from onnxcomp.files import atomic_write
from onnxcomp.graph.codec import encode_node
from onnxcomp.graph.io import runnable
from onnxcomp.graph.ir import Constant, Graph, Node
from onnxcomp.runtime.latency import compare
from onnxcomp.runtime.machine import machine
from onnxcomp.runtime.profile import node_times
from onnxcomp.runtime.session import Feeds

SCHEMA = 1
RUNS = 20
SECONDS = 1.0
ADDED = ""  # in node times: the kernels that the runtime put in by itself, such as layout changes

# what ONNX Runtime appends to the name of a node that it replaces
_SUFFIX = re.compile(r"(_token_\d+|/MatMulAddFusion|_nchwc|/DuplicateDQ|_fused)+$")


@dataclass
class CostTable:
    """Measured costs by question: the structure of a graph, and what was asked of it.

    Attributes:
        entries: milliseconds, or microseconds by node name.
        measured: how many answers are new.
    """

    entries: dict[str, Any] = field(default_factory=dict)
    measured: int = 0

    @classmethod
    def load(cls, path: str | Path) -> CostTable:
        """Read a table that `save` wrote.

        Raises:
            DataError: the file is missing or no cost table.
        """
        path = Path(path)
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError("the cost table cannot be read", where=f"file {path}", do="check --cost-table") from error
        if not isinstance(data, dict) or data.get("schema") != SCHEMA or not isinstance(data.get("entries"), dict):
            raise DataError(
                f"this is no cost table of schema {SCHEMA}", where=f"file {path}", do="let a run write it anew"
            )
        return cls(dict(data["entries"]))

    def save(self, path: str | Path) -> None:
        """Write the table, with the machine it was measured on.

        Raises:
            OutputError: the folder cannot be written.
        """
        here = machine()
        data = {
            "schema": SCHEMA,
            "machine": {"cpu": here.cpu, "isa": list(here.isa)},
            "entries": dict(sorted(self.entries.items())),
        }
        with atomic_write(Path(path)) as file:
            file.write(json.dumps(data, indent=1, sort_keys=True).encode())


class MeasuredCosts:
    """Answers from the table, or measures and enters the answer there: a `CostModel` for passes.

    Args:
        feed: one sample's inputs, which every graph asked about takes.
        threads: threads inside one operator.
        table: answers known so far.
    """

    def __init__(self, feed: Feeds, *, threads: int = 1, table: CostTable | None = None) -> None:
        self.feed, self.threads = dict(feed), threads
        self.table = table if table is not None else CostTable()
        self._reference: tuple[Graph, float] | None = None

    def latency_ms(self, graph: Graph) -> float:
        """Median latency of one sample in milliseconds.

        All graphs are measured interleaved with the first one asked about, so that a drift of the machine's speed
        does not look like a difference between them.

        Raises:
            ModelError: ONNX Runtime cannot run the graph.
        """
        key = self._key("latency_ms", graph)
        if key not in self.table.entries:
            self._enter(key, round(self._measure(graph), 6))
        return float(self.table.entries[key])

    def node_times_us(self, graph: Graph) -> dict[str, float]:
        """Kernel time in microseconds by name of the node it came from; under `ADDED` what the runtime added.

        Raises:
            ModelError: ONNX Runtime cannot run the graph.
        """
        key = self._key("node_times_us", graph)
        if key not in self.table.entries:
            self._enter(key, {name: round(time, 3) for name, time in self._profile(graph).items()})
        return {name: float(time) for name, time in self.table.entries[key].items()}

    def _enter(self, key: str, value: Any) -> None:
        self.table.entries[key] = value
        self.table.measured += 1

    def _key(self, what: str, graph: Graph) -> str:
        return f"{what}:threads={self.threads}:{signature(graph, self.feed)}"

    def _measure(self, graph: Graph) -> float:
        first = graph if self._reference is None else self._reference[0]
        with runnable(first) as before, runnable(graph) as after:
            found = compare(before, after, self.feed, threads=self.threads, seconds=SECONDS)
        if self._reference is None:
            self._reference = (graph.clone(), found.before_ms["p50"])
            return found.before_ms["p50"]
        return self._reference[1] / found.speedup

    def _profile(self, graph: Graph) -> dict[str, float]:
        copy = graph.clone()
        for node in copy.walk():
            node.unnamed = ""  # names that were made up on load are written, so that the profile can tell nodes apart
        with runnable(copy) as model:
            times = node_times(model, self.feed, threads=self.threads, runs=RUNS)
        names = {node.name for node in copy.walk()}
        makers = {t.name: node.name for node in copy.walk() for t in node.outputs if t.name}
        found: dict[str, float] = {}
        for entry in times:
            bare = _SUFFIX.sub("", entry.name)
            name = bare if bare in names else makers.get(bare, ADDED)  # layout kernels are named by what they make
            found[name] = found.get(name, 0.0) + entry.microseconds
        return found


def signature(graph: Graph, feed: Feeds) -> str:
    """A hash of everything that decides about speed: operators, attributes, wiring, types and sizes; no weights."""
    digest = hashlib.sha256()
    for name, array in sorted(feed.items()):
        digest.update(f"{name}:{array.dtype}:{array.shape};".encode())
    for entry in sorted((o.domain, o.version) for o in graph.model.opset_import):
        digest.update(repr(entry).encode())
    for node in graph.walk():
        digest.update(_line(node).SerializeToString(deterministic=True))
        sizes = [(t.dtype.name, t.shape) for t in node.inputs if isinstance(t, Constant)]
        digest.update(repr(sizes).encode())
    return digest.hexdigest()[:32]


def _line(node: Node) -> onnx.NodeProto:
    """The node without its bodies' contents, which `walk` visits, and with its name."""
    plain = {key: value for key, value in node.attrs.items() if not isinstance(value, Graph | list) or _plain(value)}
    bare = Node(node.op, node.name, plain, domain=node.domain)
    bare.origin = node.origin
    proto = encode_node(bare)
    proto.input.extend(t.name for t in node.inputs)
    proto.output.extend(t.name for t in node.outputs)
    return proto


def _plain(value: Any) -> bool:
    return isinstance(value, list) and not (value and isinstance(value[0], Graph))
