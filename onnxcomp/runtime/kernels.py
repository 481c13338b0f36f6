"""Which kernel of ONNX Runtime runs each node of a graph, and does it run on integers?"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from onnxcomp.graph.io import runnable
from onnxcomp.graph.ir import Graph
from onnxcomp.runtime.profile import NodeTime, node_times
from onnxcomp.runtime.session import Feeds

INTEGERS = frozenset({"int8", "uint8"})
CONVERSIONS = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "Cast"})

# these read floats, and quantize them before they multiply
INSIDE = frozenset({"DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "MatMulNBits"})

# what ONNX Runtime puts around the name of a node that it replaces
_PREFIX = re.compile(r"^(fused )+")
_SUFFIX = re.compile(r"(_token_\d+|/\w+Fusion/?|_nchwc|_nhwc|/DuplicateDQ|_fused)+$")


class Origins:
    """Tells for a node of the graph that ONNX Runtime runs which node of ours it came from.

    Args:
        graph: our graph, whose names the runtime saw.
    """

    def __init__(self, graph: Graph) -> None:
        self.names = {node.name for node in graph.walk()}
        self.makers = {tensor.name: node.name for node in graph.walk() for tensor in node.outputs if tensor.name}

    def of(self, name: str) -> str:
        """The name of our node; empty for what the runtime added by itself, such as changes of layout."""
        bare = _SUFFIX.sub("", _PREFIX.sub("", name))
        return bare if bare in self.names else self.makers.get(bare, "")  # layout kernels are named by what they make


@dataclass(frozen=True)
class Ran:
    """The kernel that ran a node.

    Attributes:
        op: as ONNX Runtime calls it: `QLinearConv`, `FusedGemm`.
        integer: whether it reads 8-bit integers and does more than convert them.
    """

    op: str
    integer: bool


def named_times(
    graph: Graph,
    feed: Feeds,
    *,
    threads: int,
    runs: int,
    warm_up: int = 3,
    seconds: float = math.inf,
    written: Path | None = None,
) -> list[tuple[str, NodeTime]]:
    """Kernels with their times, each behind the name of our node that it came from, empty for what was added.

    Args:
        runs, warm_up, seconds: as for `node_times`.
        written: a file that holds the graph, where there is one.

    Raises:
        ModelError: ONNX Runtime cannot run the graph.
    """
    if written is not None and not any(node.unnamed for node in graph.walk()):
        times = node_times(written, feed, threads=threads, runs=runs, warm_up=warm_up, seconds=seconds)
        origins = Origins(graph)
        return [(origins.of(entry.name), entry) for entry in times]
    copy = graph.clone()
    for node in copy.walk():
        node.unnamed = ""  # names that were made up on load are written, so that the profile can tell nodes apart
    origins = Origins(copy)
    with runnable(copy) as model:
        times = node_times(model, feed, threads=threads, runs=runs, warm_up=warm_up, seconds=seconds)
    return [(origins.of(entry.name), entry) for entry in times]


def ran(graph: Graph, feed: Feeds, *, threads: int = 1, written: Path | None = None) -> dict[str, Ran]:
    """The kernel that ran each node, by the node's name; nodes that were folded into others are missing.

    Args:
        written: as for `named_times`.

    Raises:
        ModelError: ONNX Runtime cannot run the graph.
    """
    return kernels_of(named_times(graph, feed, threads=threads, runs=1, warm_up=0, written=written))


def on_integers(graph: Graph, feed: Feeds, *, threads: int = 1, written: Path | None = None) -> dict[str, bool]:
    """Whether the kernel that ran a node works on integers, by the node's name; folded nodes are missing.

    Arguments and errors are those of `ran`.
    """
    exact = {node.name for node in graph.walk() if node.op == "MatMulNBits" and node.attrs.get("accuracy_level") != 4}
    found = ran(graph, feed, threads=threads, written=written)
    told = {name: (k.integer or k.op in INSIDE) and name not in exact for name, k in found.items()}
    for node in graph.walk():  # a kernel that took an activation in may bear its name
        fused = next((found[r.name] for out in node.outputs for r in out.consumers if r.name in found), None)
        if node.name not in told and fused is not None and fused.op.endswith(node.op):
            told[node.name] = (fused.integer or fused.op in INSIDE) and node.name not in exact
    return told


def kernels_of(times: Iterable[tuple[str, NodeTime]]) -> dict[str, Ran]:
    """As `ran`, from a profile that is there already."""
    found: dict[str, Ran] = {}
    for name, entry in times:
        if name and not (name in found and entry.op in CONVERSIONS):
            integer = entry.op not in CONVERSIONS and not INTEGERS.isdisjoint(entry.types)
            found[name] = Ran(entry.op, integer)
    return found
