"""What comes out of a model if one part of it gives other values? The parts behind it alone run again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

from onnxcomp.graph.ir import Array, Graph, Node, Tensor, reads
from onnxcomp.runtime.session import Session, open_graph, open_session
from onnxcomp.runtime.stages import piece

Values: TypeAlias = dict[str, Array]


class Chain:
    """A graph as parts that run one after the other.

    Args:
        graph: sorted; only its main graph is cut, nodes with bodies stay whole. As one part it is opened as it lies.
        parts: its nodes in order, all of them.
        threads: of ONNX Runtime.
    """

    def __init__(self, graph: Graph, parts: Sequence[Sequence[Node]], threads: int) -> None:
        self.graph, self.parts, self.threads = graph, [list(part) for part in parts], threads
        of = {node: at for at, part in enumerate(self.parts) for node in part}
        ends, several = set(graph.outputs), len(self.parts) > 1
        self._handed = [
            [t for node in part for t in node.outputs if t.name and (t in ends or (several and _leaves(t, at, of)))]
            for at, part in enumerate(self.parts)
        ]
        self._sessions: dict[int, Session] = {}

    @property
    def outputs(self) -> list[str]:
        """The graph's outputs that nodes make."""
        made = {t.name for part in self._handed for t in part}
        return [t.name for t in self.graph.outputs if t.name in made]

    def run(self, feed: Mapping[str, Array]) -> Values:
        """All inputs, outputs, and what one part hands to another.

        Raises:
            ModelError: ONNX Runtime cannot run a part.
        """
        values = dict(feed)
        for at in range(len(self.parts)):
            values |= self._run(at, values)
        return values

    def follow(self, values: Values, at: int, changed: Mapping[str, Array]) -> Values:
        """The graph's outputs if part `at` gave these values; of the parts behind it only those run that read them."""
        now, other = {**values, **changed}, set(changed)
        for later in range(at + 1, len(self.parts)):
            if other.intersection(t.name for t in self._read(self.parts[later], now)):
                found = self._run(later, now)
                now |= found
                other |= found.keys()
        return {name: now[name] for name in self.outputs}

    def other_form(
        self,
        at: int,
        graph: Graph,
        nodes: Iterable[Node],
        values: Values,
        config: Mapping[str, str] | None = None,
    ) -> Session:
        """A session of part `at` as another graph has it, which hands on tensors of the same names.

        Args:
            graph: holds `nodes`, in order.
            values: of all that the nodes read from outside.
            config: entries for ONNX Runtime's session.
        """
        names = {t.name for t in self._handed[at]}
        nodes = list(nodes)
        outputs = [t for node in nodes for t in node.outputs if t.name in names]
        fed = {t: values[t.name] for t in self._read(nodes, values)}
        model = piece(graph, nodes, fed, list(outputs))
        return open_session(model, threads=self.threads, arena=False, config=config)

    def _run(self, at: int, values: Values) -> Values:
        nodes, handed = self.parts[at], self._handed[at]
        if not handed:
            return {}
        whole = len(self.parts) == 1
        fed: list[Tensor] = list(self.graph.inputs) if whole else self._read(nodes, values)
        if at not in self._sessions:
            self._sessions[at] = self._opened(at, {t: values[t.name] for t in fed})
        return self._sessions[at].run({t.name: values[t.name] for t in fed}, [t.name for t in handed])

    def _opened(self, at: int, fed: Mapping[Tensor, Array]) -> Session:
        if len(self.parts) == 1:  # a model too large to be copied
            return open_graph(self.graph, threads=self.threads, arena=False)
        model = piece(self.graph, self.parts[at], fed, list(self._handed[at]))
        return open_session(model, threads=self.threads, arena=False)

    @staticmethod
    def _read(nodes: Sequence[Node], values: Mapping[str, Array]) -> list[Tensor]:
        made = {t for node in nodes for t in node.outputs}
        return list(dict.fromkeys(t for node in nodes for t in reads(node) if t not in made and t.name in values))


def _leaves(tensor: Tensor, at: int, of: Mapping[Node, int]) -> bool:
    """Whether a part behind this one reads the tensor; one that a body reads is handed on in any case."""
    return any(of.get(reader, at + 1) > at for reader in tensor.consumers)


def cut(nodes: Sequence[Node], together: Iterable[tuple[Node, Node]], parts: int) -> list[list[Node]]:
    """Sorted nodes in about so many runs with as many spans each; no span of `together`, first to last, is cut."""
    place = {node: i for i, node in enumerate(nodes)}
    spans = sorted((place[a], place[b]) for a, b in together)
    most = -(-len(spans) // max(parts, 1))
    bounds, held, reach = [0], 0, 0
    for first, last in spans:
        if held >= most and first > reach:
            bounds.append(first)
            held = 0
        held, reach = held + 1, max(reach, last)
    return [list(nodes[a:b]) for a, b in zip(bounds, [*bounds[1:], len(nodes)], strict=True)]
