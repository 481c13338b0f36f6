"""What can go without changing a bit of any output? Dead nodes, no-ops, duplicates, detours."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx

from onnxcomp.graph.codec import encode_node
from onnxcomp.graph.io import let_go
from onnxcomp.graph.ir import Array, Constant, Graph, Node, Tensor, Variable, is_onnx
from onnxcomp.graph.noops import Known, permutation, unchanged
from onnxcomp.graph.shapes import infer
from onnxcomp.graph.sweeping import Here, sweep, until_stable
from onnxcomp.manager.base import Guarantee, Outcome, Pass, PassContext

CHUNK_ELEMENTS = 1 << 20
SAMPLE_ELEMENTS = 512  # values that tell most different weights apart without reading them whole
RESHAPES = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze"})
DELIBERATE = frozenset({"QuantizeLinear", "DequantizeLinear"})  # runtimes match them one by one: equal ones stay


@dataclass(frozen=True)
class Cleanup(Pass):
    """Nothing in the graph is dead, done twice or done for nothing; outputs are bit-equal.

    Removes nodes and initializers that nothing reads, optional outputs that nobody takes, nodes that hand on their
    input unchanged (rules over shapes that are certain, not patterns), equal initializers and equal nodes; joins
    neighbouring Transposes and neighbouring reshapes. Inputs, outputs and their names stay. A second run changes
    nothing.
    """

    name: ClassVar[str] = "cleanup"
    guarantee: ClassVar[Guarantee] = Guarantee.EXACT

    def run(self, graph: Graph, context: PassContext) -> Outcome:
        """Clean until nothing changes."""
        outcome = Outcome()
        before = len(graph.constants()) + sum(len(scope.unused) for scope in graph.scopes())
        nodes = sum(1 for _ in graph.walk())
        sweeper = _Sweeper(self, graph, context, outcome)
        sweeper.unused()
        sweeper.dead()
        until_stable(sweeper.merged)
        sweeper.outputs_nobody_takes()
        gone = nodes - sum(1 for _ in graph.walk())
        if outcome.changes:
            stored = before - len(graph.constants())
            outcome.summary = f"{gone} of {nodes} nodes and {max(stored, 0)} of {before} initializers removed"
        return outcome


class _Sweeper:
    """One run of the pass over one graph."""

    def __init__(self, item: Cleanup, graph: Graph, context: PassContext, outcome: Outcome) -> None:
        self.graph = graph
        self.operators = context.operators
        self.outcome = outcome
        self.wanted = item.selects(graph)
        self.digests: dict[Constant, bytes] = {}
        graph.sort()
        self.outputs: set[Tensor] = {t for scope in graph.scopes() for t in scope.outputs}
        self.known = Known.of(graph, infer(graph, declared=False))

    # -- what nothing reads ------------------------------------------------------------------------------------

    def unused(self) -> None:
        """Initializers that nothing reads, unless they are listed as inputs."""
        for scope in self.graph.scopes():
            for constant in scope.unused:
                if constant not in self.graph.kept_inputs:
                    self.outcome.change(constant, "removed: nothing reads it")
            scope.unused = [c for c in scope.unused if c in self.graph.kept_inputs]

    def dead(self) -> None:
        """Nodes that no output depends on."""
        sweep(self.graph, self._dead, backwards=True)

    def _dead(self, node: Node, here: Here) -> list[Node]:
        del here
        if not self.wanted(node) or any(t.name and (t.consumers or t in self.outputs) for t in node.outputs):
            return []
        self.outcome.change(node, "removed: nothing reads its results")
        self.graph.remove_nodes([node]) if node.bodies else node.inputs.clear()
        return [node]

    def outputs_nobody_takes(self) -> None:
        """Optional outputs, such as the indices of a MaxPool, cost time even where nobody takes them."""
        for node in self.graph.walk():
            if len(node.outputs) < 2 or node.op == "BatchNormalization" or not is_onnx(node.domain):
                continue  # the outputs of a BatchNormalization say whether it trains
            try:
                schema = onnx.defs.get_schema(node.op, self.graph.opset, "")
            except onnx.defs.SchemaError:
                continue
            optional = onnx.defs.OpSchema.FormalParameterOption.Optional
            for port in range(len(node.outputs) - 1, 0, -1):
                tensor = node.outputs[port]
                free = not tensor.name or not (tensor.consumers or tensor in self.outputs)
                if not free or port >= len(schema.outputs) or schema.outputs[port].option != optional:
                    continue
                if tensor.name and self.wanted(node):
                    self.outcome.change(node, f"output {schema.outputs[port].name} dropped: nothing reads it")
                    node.outputs[port] = Variable("")
            while len(node.outputs) > 1 and not node.outputs[-1].name:
                node.outputs.pop()

    # -- initializers ------------------------------------------------------------------------------------------

    def equal_initializers(self) -> None:
        """One initializer for each value; the first in the file stays, or one that is an output."""
        kept = self.graph.kept_inputs
        alike = [c for c in self.graph.constants() if c not in kept and not self._updated(c)]
        for group in _equal(alike, self.digests):
            first = next((c for c in group if c in self.outputs), group[0])
            if first.scope is not None and any(c.scope is not first.scope for c in group):
                if first in self.outputs:
                    continue
                shared = Constant(self.graph.unique_name(first.name), first.payload, None, first.envelope)
                group.insert(0, shared)
                first = shared
            for constant in group:
                if constant is not first and constant not in self.outputs and self._readable(constant):
                    self.outcome.change(constant, f"merged with {first.name}: the same value")
                    self.graph.replace_uses(constant, first)

    def _updated(self, constant: Constant) -> bool:
        """Whether a node that trains writes running statistics to where they stand, as ONNX Runtime does."""
        return any(
            node.inputs[port] is constant
            for node in constant.consumers
            if len(node.outputs) > 1
            for port in self.operators.facts(node).statistics_ports
            if port < len(node.inputs)
        )

    def _readable(self, constant: Constant) -> bool:
        return all(self.wanted(node) for node in constant.consumers)

    # -- nodes -------------------------------------------------------------------------------------------------

    def merged(self) -> int:
        """Join what is equal, initializers first, until no node changes; how much changed."""
        self.equal_initializers()
        return until_stable(self._swept)

    def _swept(self) -> int:
        """One pass over all nodes in order; how much changed."""
        before = len(self.outcome.changes)
        seen: dict[tuple[object, ...], list[Node]] = defaultdict(list)

        def rule(node: Node, here: Here) -> list[Node]:
            if not self.wanted(node):
                return []
            if self._skipped_over(node, here.nodes) or self._joined(node) or self._repeats(node, here, seen):
                return [] if node.inputs else [node]
            return []

        sweep(self.graph, rule)
        found = len(self.outcome.changes) - before
        if found:
            self.dead()
        return found

    def _skipped_over(self, node: Node, here: set[Node]) -> bool:
        """Let the readers of a node that changes nothing read what it reads."""
        same = unchanged(node, self.known, self.operators)
        return same is not None and self._pass_on(node, same.tensor, here, f"removed: {same.why}")

    def _pass_on(self, node: Node, source: Tensor, here: set[Node], what: str) -> bool:
        """Put `source` in the place of a node's first output; False where names or other outputs forbid it."""
        output = node.outputs[0]
        if any(t.name and (t.consumers or t in self.outputs) for t in node.outputs[1:]):
            return False
        if output in self.outputs:
            maker = source.producer
            if maker is None or maker not in here or source in self.outputs:
                return False
            self._detach(node)
            self._rename(maker, source, output)
        else:
            self._detach(node)
            self.graph.replace_uses(output, source)
        self.outcome.change(node, what)
        return True

    def _rename(self, maker: Node, source: Tensor, output: Variable) -> None:
        """Let `maker` produce `output`, which others know by name, instead of `source`."""
        self.graph.replace_uses(source, output)
        port = next(i for i, t in enumerate(maker.outputs) if t is source)
        maker.outputs[port] = output

    def _detach(self, node: Node) -> None:
        node.inputs.clear()
        node.outputs.clear()

    def _joined(self, node: Node) -> bool:
        """One Transpose for two, one Reshape for two; True where the node is gone."""
        maker = node.inputs[0].producer if node.inputs else None
        if maker is None or any(not is_onnx(n.domain) for n in (node, maker)):
            return False
        alone = len(maker.outputs[0].consumers) == 1 and maker.outputs[0] not in self.outputs
        if not self.wanted(maker) or not self.known.fixed(maker) or not self.known.fixed(node):
            return False
        if node.op == maker.op == "Transpose":
            return self._joined_transposes(node, maker, alone)
        if alone and node.op in RESHAPES and maker.op in RESHAPES:
            self._join_reshapes(node, maker)
        return False

    def _joined_transposes(self, node: Node, maker: Node, alone: bool) -> bool:
        outer, inner = permutation(node, self.known.shapes), permutation(maker, self.known.shapes)
        if outer is None or inner is None or len(outer) != len(inner):
            return False
        perm = [inner[axis] for axis in outer]
        if perm == sorted(perm):
            output = node.outputs[0]
            if output in self.outputs:
                return False
            source = maker.inputs[0]
            self._detach(node)
            self.graph.replace_uses(output, source)
            self.outcome.change(node, f"removed: undoes {maker}")
            return True
        if alone:
            node.attrs["perm"] = perm
            node.inputs[0] = maker.inputs[0]
            self.outcome.change(node, f"joined with {maker}")
        return False

    def _join_reshapes(self, node: Node, maker: Node) -> None:
        """The second of two reshapes starts from the first one's input."""
        given = self.known.values(node, 1) if node.op == "Reshape" and self.known.opset >= 5 else None
        if given is not None and (0 not in given or node.attrs.get("allowzero", 0)):
            node.inputs[0] = maker.inputs[0]
        elif (target := self._target(node)) is None:
            return
        elif self.known.opset >= 5:
            shape = self.graph.add_constant(f"{node.name}_shape", np.array(target, np.int64))
            node.op, node.attrs, node.inputs = "Reshape", {}, [maker.inputs[0], shape]
        else:
            node.op, node.attrs, node.inputs = "Reshape", {"shape": target}, [maker.inputs[0]]
        self.outcome.change(node, f"joined with {maker}")

    def _target(self, node: Node) -> list[int] | None:
        """The shape to ask a Reshape for, with one -1 for an unknown size; None where more is unknown."""
        shape = self.known.shapes.shape(node.outputs[0])
        if shape is None or 0 in shape or sum(not isinstance(d, int) for d in shape) > 1:
            return None
        return [d if isinstance(d, int) else -1 for d in shape]

    def _repeats(self, node: Node, here: Here, seen: dict[tuple[object, ...], list[Node]]) -> bool:
        """Let the readers of a node that computes what an earlier one of this scope computed read the earlier one."""
        facts = self.operators.facts(node)
        if node.bodies or facts.random or node.op in DELIBERATE or not (facts.known or is_onnx(node.domain)):
            return False
        earlier = seen[(here.scope, node.op, node.domain, *node.inputs, "|", len(node.inputs))]
        for twin in earlier:
            if self._equal_attributes(node, twin) and self._stands_in(twin, node):
                self.outcome.change(node, f"removed: computes the same as {twin}")
                return True
        earlier.append(node)
        return False

    def _equal_attributes(self, a: Node, b: Node) -> bool:
        if not a.attrs and not b.attrs:
            return True
        if a.attrs.keys() != b.attrs.keys():
            return False
        return _attributes(a) == _attributes(b)

    def _stands_in(self, twin: Node, node: Node) -> bool:
        """Let `twin` serve the readers of `node`; False where that would take a name from an output."""
        pairs = [(t, twin.output(port)) for port, t in enumerate(node.outputs) if t.consumers or t in self.outputs]
        if any(mine is None or (t in self.outputs and mine in self.outputs) for t, mine in pairs):
            return False
        self._detach(node)
        for tensor, mine in pairs:
            assert mine is not None
            if tensor in self.outputs:
                self._rename(twin, mine, tensor)
            else:
                self.graph.replace_uses(tensor, mine)
        return True


def _attributes(node: Node) -> list[bytes]:
    return sorted(a.SerializeToString(deterministic=True) for a in encode_node(node).attribute)


def _equal(constants: list[Constant], digests: dict[Constant, bytes]) -> Iterator[list[Constant]]:
    """Groups of two and more initializers of the same type, shape and bytes, in the order given.

    Values are read one at a time: a few of each first, all only where those agree. `digests` keeps what was read.
    """

    def digest(constant: Constant) -> bytes:
        if constant not in digests:
            digests[constant] = _digest(constant)
        return digests[constant]

    for alike in _split(constants, lambda c: (c.dtype.name, c.shape)):
        for group in _split(alike, lambda c: b"" if c.size <= SAMPLE_ELEMENTS else _sample(c)):
            yield from _split(group, digest)


def _split(group: list[Constant], key: Callable[[Constant], object]) -> list[list[Constant]]:
    parts: dict[object, list[Constant]] = defaultdict(list)
    for constant in group:
        parts[key(constant)].append(constant)
    return [part for part in parts.values() if len(part) > 1]


def _sample(constant: Constant) -> bytes:
    places = np.linspace(0, constant.size - 1, SAMPLE_ELEMENTS).astype(np.int64)
    values = constant.values
    sample = _bytes(values[np.unravel_index(places, values.shape)])
    let_go(constant)
    return sample


def _digest(constant: Constant) -> bytes:
    values = constant.values
    digest = hashlib.blake2b(digest_size=32)
    if not values.ndim:
        return _bytes(values)
    rows = max(1, CHUNK_ELEMENTS // max(1, values.size // max(1, len(values))))
    for start in range(0, len(values), rows):
        digest.update(_bytes(values[start : start + rows]))
    let_go(constant)
    return digest.digest()


def _bytes(values: Array) -> bytes:
    return repr(values.tolist()).encode() if values.dtype == np.dtype(object) else values.tobytes()
