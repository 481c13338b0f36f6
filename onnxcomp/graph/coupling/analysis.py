"""Which units can leave a graph, and what leaves with each? Runs the rules and gathers their labels to groups.

Dependency graphs for structural pruning were introduced for PyTorch by DepGraph (Fang et al., arXiv 2301.12900). Here
dependencies are kept for single indices, not whole axes, so that Flatten, Concat, channel shuffle and attention heads
need no special case: equal labels leave together, whatever way they took.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from onnxcomp.graph import shapes as shape_tools
from onnxcomp.graph.coupling.flow import Edit, Flow, Labels, Rule, Step, UnknownShapeError
from onnxcomp.graph.coupling.sharing import Copy, join_vectors, split_vectors
from onnxcomp.graph.evaluate import propagate
from onnxcomp.graph.ir import Array, Constant, Graph, Node, Tensor, Variable
from onnxcomp.graph.literals import lift
from onnxcomp.graph.types import Shapes
from onnxcomp.ops.facts import Operators

Kind = Literal["channels", "heads", "neurons", "hidden units"]
_MOST_CHOICES = 4  # how many ways to split an axis are tried at most


@dataclass(frozen=True)
class Slot:
    """Where the units of a group stand in one initializer.

    Attributes:
        indices: int64 [units, n]: the indices along the axis that leave with each unit.
    """

    constant: Constant
    axis: int
    indices: Array


@dataclass(frozen=True)
class Group:
    """Units that stand in the same axes of the same weights; each unit leaves by itself, with all its slices.

    Attributes:
        name: of the node that makes the units, unique among groups.
        units: int64 ids, in the order in which they stand in the first weight.
        slots: their slices.
        exact: whether a unit whose weights are all zero leaves without a trace.
        why_inexact: what changes otherwise.
    """

    name: str
    kind: Kind
    units: Array
    slots: tuple[Slot, ...]
    exact: bool
    why_inexact: str = ""

    @property
    def size(self) -> int:
        """Number of units."""
        return len(self.units)


@dataclass
class Coupling:
    """What depends on what in one graph; holds as long as the graph is not changed otherwise.

    Attributes:
        groups: what can leave, in graph order.
        kept: for weights whose output channels all stay, why; by node name.
        without_rule: operators that have no rule, and how many nodes.
        unit_of: int64 [atoms]: the unit of each atom.
        labels: atoms of every tensor's axes.
        lifted: Constant nodes and the initializers that took their places.
        copies: vectors that were shared.
    """

    graph: Graph
    groups: tuple[Group, ...]
    kept: dict[str, str]
    without_rule: dict[str, int]
    shapes: Shapes
    unit_of: Array
    labels: dict[Tensor, list[Labels | None]]
    edits: list[tuple[Node, tuple[Labels, ...], Edit]]
    unit_count: int
    open_units: Array
    lifted: list[tuple[Node, Constant]] = field(default_factory=list)
    copies: list[Copy] = field(default_factory=list)

    def axes(self, tensor: Tensor) -> list[Array | None]:
        """Units of a tensor's axes, index by index; None for a fixed axis."""
        return [None if labels is None else self.unit_of[labels] for labels in self.labels.get(tensor) or ()]

    def predicted(self, removed: Array) -> Shapes:
        """Shapes of one sample once units have left.

        Args:
            removed: bool [unit_count].
        """
        return _Predicted(self, ~removed)


class _Predicted(Shapes):
    """Shapes with labelled axes counted anew."""

    def __init__(self, coupling: Coupling, staying: Array) -> None:
        super().__init__(coupling.shapes.types)
        self.coupling, self.staying = coupling, staying

    def shape(self, tensor: Tensor | None) -> tuple[int | str | None, ...] | None:
        shape = self.coupling.shapes.shape(tensor)
        if shape is None or tensor is None:
            return shape
        axes = self.coupling.labels.get(tensor)
        if not axes or len(axes) != len(shape):
            return shape
        return tuple(
            size if labels is None else int(np.count_nonzero(self.staying[self.coupling.unit_of[labels]]))
            for size, labels in zip(shape, axes, strict=True)
        )


def analyse(graph: Graph, operators: Operators, sample: Mapping[str, tuple[int, ...]] | None = None) -> Coupling:
    """Find all groups of units that can leave a graph.

    Initializers take the place of Constant nodes first, and vectors that several nodes read are copied; `release`
    undoes that, `cut` makes it last.

    Args:
        sample: input shapes of one sample; free dimensions count as 1 where none is given.
    """
    lifted = lift(graph, stay=True)
    copies = split_vectors(graph)
    static = shape_tools.infer(graph)
    values = propagate(graph, static)
    bound = shape_tools.infer(graph, shape_tools.one_sample(graph, sample))
    choices: dict[Node, int] = {}
    for _ in range(_MOST_CHOICES):
        flow = Flow(graph, bound, static, values, choices)
        _flow(flow, operators)
        solved = _Solved(flow)
        again = solved.other_choices()
        if not again:
            break
        choices = choices | again
    found = solved.coupling(operators)
    found.lifted, found.copies = lifted, copies
    return found


def release(coupling: Coupling) -> None:
    """Give a graph that will not be cut its Constant nodes and shared vectors back."""
    join_vectors(coupling.copies)
    for node, constant in coupling.lifted:
        coupling.graph.replace_uses(constant, node.outputs[0])


def _flow(flow: Flow, operators: Operators) -> None:
    """Run every node's rule; close what leaves the main graph."""
    graph = flow.graph
    outputs = set(graph.outputs)
    for constant in graph.kept_inputs:
        flow.close_all(constant, f"{constant.name} is an input of the model")
    for node in graph.nodes:
        if node.bodies:
            _close_captures(flow, node)
        rule = None if graph.is_function(node) or node.bodies else operators.facts(node).coupling
        if node.op in ("Shape", "Size") and not node.domain:
            _sizes_read(flow, node)
        elif rule is None:
            _without_rule(flow, node)
        elif _known_number(flow, node):
            _close_constants(flow, node)
        else:
            _apply(flow, node, rule)
    for tensor in outputs:
        flow.close_all(tensor, f"{tensor.name} is an output of the model")


def _apply(flow: Flow, node: Node, rule: Rule) -> None:
    step = Step(flow, node, flow.graph.opset)
    marks = len(flow.ties), len(flow.edits), len(flow.inexact)
    try:
        rule(step)
        step.finish()
    except (UnknownShapeError, IndexError) as error:
        # an axis is missing that the operator always has: the model's fault, which is said where inference sees it
        if isinstance(error, IndexError) and not shape_tools.strict_enough(flow.graph):
            raise
        why = str(error) if isinstance(error, UnknownShapeError) else f"{node} reads tensors of unfit ranks"
        del flow.ties[marks[0] :], flow.edits[marks[1] :], flow.inexact[marks[2] :]
        for tensor in node.inputs:
            if tensor.name and flow.of(tensor) is not None:
                flow.close_all(tensor, why)
        for output in node.outputs:
            flow.labels.pop(output, None)


def _known_number(flow: Flow, node: Node) -> bool:
    """Whether a node only computes sizes and indices, which carry no units; integers made of weights do."""
    made = [tensor for tensor in node.inputs if tensor.name and not isinstance(tensor, Constant)]
    if any(labels is not None for tensor in made for labels in flow.of(tensor) or ()):
        return False
    first = node.output(0)
    return first is not None and first.name in flow.values and flow.values[first.name].dtype.kind in "iub"


def _close_constants(flow: Flow, node: Node) -> None:
    for tensor in node.inputs:
        if isinstance(tensor, Constant):
            flow.close_all(tensor, f"{node} computes sizes from it")


def _without_rule(flow: Flow, node: Node) -> None:
    if not node.bodies:
        flow.without_rule.append(node)
    for tensor in node.inputs:
        if tensor.name:
            flow.close_all(tensor, f"{node} has no rule")


def _close_captures(flow: Flow, node: Node) -> None:
    for body in node.bodies:
        for scope in body.scopes():
            for tensor in [t for inner in scope.nodes for t in inner.inputs] + list(scope.outputs):
                if tensor.name and (tensor in flow.labels or isinstance(tensor, Constant)):
                    flow.close_all(tensor, f"a body of {node} reads it")


_SIZE_OPS = "Shape Gather Slice Concat Cast Squeeze Unsqueeze Identity Mul Div Add Sub Reshape Split Where Equal"
_SIZE_ARITHMETIC = frozenset(_SIZE_OPS.split())


def _sizes_read(flow: Flow, node: Node) -> None:
    """Sizes of labelled axes may go into the target of Reshape and Expand, which are written anew, and nowhere else."""
    given = {tensor for scope in flow.graph.scopes() for tensor in scope.outputs}
    axes = flow.of(node.inputs[0]) or []
    start, end = node.attrs.get("start", 0), node.attrs.get("end")
    read = list(axes[start:end] if node.op == "Shape" else axes)
    if all(labels is None for labels in read):
        return
    for output in node.outputs:
        for labels in read if output in given else ():
            flow.close(labels, f"the output {output.name} is its size")
        for reader in dict.fromkeys(output.consumers):
            taken = read if node.op == "Size" else _taken(flow, reader, output, read)
            if all(labels is None for labels in taken):
                continue
            user = _other_user_of_sizes(output, reader, given)
            for labels in taken if user is not None else ():
                flow.close(labels, f"{user} depends on its size")


def _taken(flow: Flow, reader: Node, sizes: Variable, read: list[Labels | None]) -> list[Labels | None]:
    """Which of the sizes a node takes: some where it is a Gather or Slice with constant places."""
    places = np.arange(len(read))
    given = [_value(flow, reader, port) for port in range(1, len(reader.inputs))]
    if reader.domain or reader.input(0) is not sizes or any(value is None for value in given):
        return read
    flat = [np.asarray(value).reshape(-1) for value in given if value is not None]
    try:
        if reader.op == "Gather" and len(flat) == 1:
            return [read[i] for i in places[flat[0].astype(np.int64)]]
        if reader.op == "Slice" and len(flat) >= 2:
            step = int(flat[3][0]) if len(flat) > 3 else 1
            return [read[i] for i in places[int(flat[0][0]) : int(flat[1][0]) : step]]
    except IndexError:
        return read
    return read


def _value(flow: Flow, node: Node, port: int) -> Array | None:
    tensor = node.inputs[port]
    return tensor.values if isinstance(tensor, Constant) else flow.values.get(tensor.name)


def _other_user_of_sizes(sizes: Variable, reader: Node, given: Set[Tensor]) -> Node | None:
    """The first node behind a reader of sizes that is no arithmetic on the way to a Reshape or Expand, or that gives
    what the model or a body gives; None: there is none."""
    seen: set[Node] = set()
    stack = [(sizes, reader)]
    while stack:
        source, user = stack.pop()
        if user in seen or (
            user.op in ("Reshape", "Expand") and user.input(1) is source and user.input(0) is not source
        ):
            continue
        if user.op not in _SIZE_ARITHMETIC or user.domain or user.bodies or not given.isdisjoint(user.outputs):
            return user
        seen.add(user)
        stack += [(output, after) for output in user.outputs for after in dict.fromkeys(output.consumers)]
    return None


def components(count: int, first: Array, second: Array) -> Array:
    """For each of `count` items the least item it is connected with; vectorised hooking and pointer jumping."""
    parent = np.arange(count)
    while first.size:
        a, b = parent[first], parent[second]
        apart = a != b
        if not apart.any():
            break
        first, second = first[apart], second[apart]
        low, high = np.minimum(a[apart], b[apart]), np.maximum(a[apart], b[apart])
        np.minimum.at(parent, high, low)
        while True:
            jumped = parent[parent]
            if (jumped == parent).all():
                break
            parent = jumped
    return parent


class _Solved:
    """Atoms gathered to units."""

    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        if flow.ties:
            first = np.concatenate([a for a, _ in flow.ties])
            second = np.concatenate([b for _, b in flow.ties])
        else:
            first = second = np.zeros(0, np.int64)
        root = components(flow.atoms, first, second)
        self.unit_of: Array = root
        self.count = 0
        if flow.atoms:
            roots, self.unit_of = np.unique(root, return_inverse=True)
            self.count = len(roots)
        self.closed = np.zeros(self.count, bool)
        self.reason = np.full(self.count, -1)
        for number, (labels, _) in enumerate(flow.closed):
            units = self.unit_of[labels]
            self.reason[units[~self.closed[units]]] = number
            self.closed[units] = True

    def other_choices(self) -> dict[Node, int]:
        """Splits whose labels came to nothing and that have another part to hand them to."""
        found: dict[Node, int] = {}
        for node, (labels, options) in self.flow.splits.items():
            units = np.unique(self.unit_of[labels])
            current = self.flow.choices.get(node, 0)
            if (len(units) < 2 or self.closed[units].all()) and current + 1 < options:
                found[node] = current + 1
        return found

    def coupling(self, operators: Operators) -> Coupling:
        """Groups of open units."""
        flow = self.flow
        groups = tuple(self._groups(operators))
        named: dict[Node, str] = {}
        for node in flow.graph.nodes:
            for weight, constant in operators.weights(node):
                made = (flow.labels.get(constant) or [None] * 9)[weight.out_axis % len(constant.shape)]
                if made is not None and self.closed[self.unit_of[made]].all():
                    named[node] = flow.closed[int(self.reason[self.unit_of[made[0]]])][1]
        counts: dict[str, int] = {}
        for node in flow.without_rule:
            counts[node.op] = counts.get(node.op, 0) + 1
        labels = {tensor: axes for tensor, axes in flow.labels.items() if axes is not None}
        return Coupling(
            flow.graph,
            groups,
            {node.name: why for node, why in named.items()},
            counts,
            flow.shapes,
            self.unit_of,
            labels,
            flow.edits,
            self.count,
            ~self.closed,
        )

    def _groups(self, operators: Operators) -> Iterator[Group]:
        """Units with equal signature: the same axes of the same initializers, equally often."""
        flow = self.flow
        slots = [
            (constant, axis, self.unit_of[labels])
            for constant in _in_graph_order(flow)
            for axis, labels in enumerate(flow.labels[constant] or ())
            if labels is not None
        ]
        signature = np.zeros(self.count, np.uint64)
        generator = np.random.default_rng(0)
        keys = generator.integers(1, 2**63, len(slots), dtype=np.uint64)
        first_slot = np.full(self.count, len(slots))
        for number, (_, _, units) in enumerate(slots):
            np.add.at(signature, units, keys[number])
            np.minimum.at(first_slot, units, number)
        usable = ~self.closed & (first_slot < len(slots))
        inexact = self._inexact()
        by_key: dict[int, list[tuple[Constant, int, Array]]] = {}
        members: dict[int, Array] = {}
        for constant, axis, units in slots:
            open_here = usable[units]
            for key in np.unique(signature[units[open_here]]) if open_here.any() else ():
                place = np.flatnonzero(open_here & (signature[units] == key))
                if int(key) not in members:
                    order = np.unique(units[place], return_index=True)
                    members[int(key)] = order[0][np.argsort(order[1])]
                by_key.setdefault(int(key), []).append((constant, axis, place))
        names: dict[str, int] = {}
        for key, units in members.items():
            if len(units) < 2:
                continue
            found = tuple(
                Slot(constant, axis, _by_unit(self.unit_of, flow, constant, axis, place, units))
                for constant, axis, place in by_key[key]
            )
            node, kind = _maker(found, operators)
            names[node] = names.get(node, 0) + 1
            name = node if names[node] == 1 else f"{node}#{names[node]}"
            why = next((inexact[int(u)] for u in units if int(u) in inexact), "")
            yield Group(name, kind, units, found, not why, why)

    def _inexact(self) -> dict[int, str]:
        found: dict[int, str] = {}
        for labels, why in self.flow.inexact:
            for unit in np.unique(self.unit_of[labels]):
                found.setdefault(int(unit), why)
        return found


def _in_graph_order(flow: Flow) -> list[Constant]:
    """Labelled initializers, those of earlier nodes first."""
    found: dict[Constant, None] = {}
    for node in flow.graph.nodes:
        for tensor in node.inputs:
            if isinstance(tensor, Constant) and tensor in flow.labels:
                found.setdefault(tensor)
    return list(found)


def _by_unit(unit_of: Array, flow: Flow, constant: Constant, axis: int, place: Array, units: Array) -> Array:
    """[units, n] indices: `place` sorted by unit, in the order of `units`."""
    labels = (flow.labels[constant] or [])[axis]
    assert labels is not None
    rank = np.argsort(units)
    position = rank[np.searchsorted(units, unit_of[labels[place]], sorter=rank)]
    return place[np.argsort(position, kind="stable")].reshape(len(units), -1)


def _maker(slots: tuple[Slot, ...], operators: Operators) -> tuple[str, Kind]:
    """The node that makes the units: the first whose weight has them as output channels; else the first reader."""
    for slot in slots:
        for node in slot.constant.consumers:
            for weight, constant in operators.weights(node):
                if constant is not slot.constant:
                    continue
                if weight.role == "recurrent" and weight.out_axis == slot.axis:
                    return node.name, "hidden units"
                if weight.role == "kernel" and weight.out_axis % len(constant.shape) == slot.axis:
                    if node.op in ("Conv", "ConvTranspose", "FusedConv"):
                        return node.name, "channels"
                    return node.name, "heads" if slot.indices.shape[1] > 1 else "neurons"
    reader = next((node for slot in slots for node in slot.constant.consumers), None)
    return reader.name if reader is not None else slots[0].constant.name, "channels"


def variables(coupling: Coupling) -> Iterator[tuple[Variable, list[Labels | None]]]:
    """Computed tensors that carry labels."""
    for tensor, axes in coupling.labels.items():
        if isinstance(tensor, Variable) and any(labels is not None for labels in axes):
            yield tensor, axes
