"""Which nodes run on integers, and which tensors therefore stand between Q and DQ?

Nodes with weights come first. What lies between them (residual adds, pools, data movement) joins where its inputs are
integers anyway and an integer node reads the result, so that no tensor is converted without need.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass, field

import numpy as np

from onnxcomp.graph.clone import Copied
from onnxcomp.graph.ir import Constant, Graph, Node, Variable
from onnxcomp.graph.single import unfit
from onnxcomp.graph.types import Shapes
from onnxcomp.layers.hidden import why_computed
from onnxcomp.ops.facts import Operators, Weight
from onnxcomp.passes.qdq.forms import silu_of
from onnxcomp.targets.base import Kernel, Target

IN_BODY = "it stands in a body of If, Loop or Scan, whose activations cannot be measured from outside"


@dataclass
class Plan:
    """What is to be quantized.

    Attributes:
        weighted: nodes with a weight that becomes int8, with where it stands; graph order.
        joined: operators without weights that run on integers, with the ports that take them; graph order.
        moving: nodes that only move data, between equal scales.
        rewritten: nodes that are moved between Q and DQ and work on the integers themselves.
        exposed: what leaves the graph or a body, so that its every value counts, whoever reads it beside.
        folds: the activation functions that a range could take over, by the tensor they read.
        folded: the activation function that a node's output range takes over, by the node.
        made: tensors that integer nodes write as integers.
        read: tensors that integer nodes read as integers.
        refused: nodes that have a kernel but keep float, with the reason.
        fenced: tensors that a float node gives, to be kept apart from the Q behind them.
    """

    weighted: dict[Node, Weight] = field(default_factory=dict)
    joined: dict[Node, tuple[int, ...]] = field(default_factory=dict)
    moving: list[Node] = field(default_factory=list)
    rewritten: list[Node] = field(default_factory=list)
    exposed: set[Variable] = field(default_factory=set)
    folds: dict[Variable, Node] = field(default_factory=dict)
    folded: dict[Node, Node] = field(default_factory=dict)
    made: dict[Variable, Node] = field(default_factory=dict)
    read: dict[Variable, None] = field(default_factory=dict)
    refused: dict[Node, str] = field(default_factory=dict)
    fenced: set[str] = field(default_factory=set)

    @property
    def tensors(self) -> list[Variable]:
        """Every tensor that gets a Q, once."""
        return list(dict.fromkeys((*self.read, *self.made)))

    def moved(self, copied: Copied) -> Plan:
        """The same for a copy of the graph."""
        nodes, at = copied.nodes, copied.variable
        return Plan(
            weighted={nodes[node]: weight for node, weight in self.weighted.items()},
            joined={nodes[node]: ports for node, ports in self.joined.items()},
            moving=[nodes[node] for node in self.moving],
            rewritten=[nodes[node] for node in self.rewritten],
            exposed={at(tensor) for tensor in self.exposed if isinstance(tensor, Variable)},
            folds={at(tensor): nodes[node] for tensor, node in self.folds.items()},
            folded={nodes[node]: nodes[fold] for node, fold in self.folded.items()},
            made={at(tensor): nodes[node] for tensor, node in self.made.items()},
            read={at(tensor): None for tensor in self.read},
            refused={nodes[node]: why for node, why in self.refused.items() if node in nodes},
            fenced=set(self.fenced),
        )

    def output(self, node: Node) -> Variable:
        """What a node's kernel writes: behind the activation function that was folded into it."""
        return self.folded.get(node, node).outputs[0]  # type: ignore[no-any-return]


def eligible(
    graph: Graph, shapes: Shapes, target: Target, operators: Operators, wanted: Callable[[Node], bool]
) -> tuple[dict[Node, Weight], dict[Node, str]]:
    """Nodes whose weight can become an integer, and for the others that multiply by weights the reason why not."""
    accepted: dict[Node, Weight] = {}
    refused: dict[Node, str] = {}
    top = set(graph.nodes)
    for node in graph.walk():
        if graph.is_function(node):
            refused[node] = f"it calls the local function {node.op}; functions are left alone"
            continue
        kernel = target.kernels.get(node.op) if not node.domain else None
        if kernel is None and not _multiplies(node, operators):
            continue
        if kernel is not None and not kernel.weighted:
            continue
        if not wanted(node):
            refused[node] = "not selected by include and exclude"
            continue
        if kernel is None:
            refused[node] = f"{target.name} has no integer kernel for it"
            continue
        if node not in top:
            refused[node] = IN_BODY
            continue
        weight = next(iter(operators.facts(node).weights(node)), None)
        reason = _refusal(node, weight, shapes) or kernel.refuses(node, weight, shapes)
        if reason or weight is None:
            refused[node] = reason
        else:
            accepted[node] = weight
    return accepted, refused


def _multiplies(node: Node, operators: Operators) -> bool:
    """Whether it multiplies its input with constant weights; a look-up in a table does not."""
    facts = operators.facts(node)
    return not facts.moves_data and any(node.constant(weight.port) is not None for weight in facts.weights(node))


def plan(
    graph: Graph,
    target: Target,
    operators: Operators,
    shapes: Shapes,
    weighted: dict[Node, Weight],
    *,
    chosen: Iterable[Node] | None = None,
    wide: bool = False,
    float_tensors: Iterable[Variable] = (),
    barred: Container[Node] = (),
    fenced: Iterable[str] = (),
) -> Plan:
    """Grow regions of integers around the nodes with weights.

    Args:
        weighted: nodes whose weights become integers.
        chosen: nodes without weights that join, whatever their neighbours do; None leaves it to the target's table.
        wide: let kernels join that the table leaves out by default.
        float_tensors: tensors that must not be quantized; what reads or writes one stays float.
        barred: nodes without weights that must not join.
        fenced: as in `Plan`, by name.
    """
    banned = set(float_tensors)
    result = Plan(exposed={tensor for scope in graph.scopes() for tensor in scope.outputs}, fenced=set(fenced))
    result.folds = _folds(graph, target, result.exposed)
    for node in graph.nodes:
        if node in weighted and not _touches(node, target, banned, result):
            result.weighted[node] = weighted[node]
        elif node in weighted:
            result.refused[node] = "a tensor it reads or writes has no usable range"
    if target.residual == "shortcut":
        _shortcuts(graph, result, banned)
        result.read = dict.fromkeys(v for n in graph.nodes for v in _reads(n, result, target))
        return result
    if chosen is None:
        fit = _joinable(graph, target, operators, shapes, result, wide, banned, barred)
        kept = _pruned(graph, result, fit, shapes, target)
    else:
        fits = (node for node in chosen if node not in barred)
        kept = {node: () for node in fits if not banned.intersection((*node.inputs, *node.outputs))}
    for node in graph.nodes:
        if node in kept:
            _place(node, result, target)
    for node in result.weighted:
        result.read.update(dict.fromkeys(_inputs(node, target)))
    for node in result.weighted:
        _finish(node, result, target)
    return result


def _folds(graph: Graph, target: Target, exposed: set[Variable]) -> dict[Variable, Node]:
    """By tensor, the activation function whose effect its range can have: it alone reads the tensor, beside no output.

    Nodes in bodies are none: whether they run at all is not known here.
    """
    found = {}
    for node in graph.nodes:
        if node.domain or node.op not in target.folds or len(node.inputs[0].outputs) != 1:
            continue
        limits = clip_limits(node) if node.op == "Clip" else (0.0, 0.0)
        if limits is not None and limits[0] <= 0 <= limits[1] and node.inputs[0] not in exposed:
            found[node.inputs[0]] = node
    return found


def clip_limits(node: Node) -> tuple[float, float] | None:
    """Lowest and highest value of a Clip; None where they are computed."""
    found = []
    for port, key, default in ((1, "min", -np.inf), (2, "max", np.inf)):
        if node.input(port) is not None:
            constant = node.constant(port)
            if constant is None or constant.size != 1:
                return None
            found.append(float(np.asarray(constant.values).reshape(-1)[0]))
        else:
            found.append(float(node.attrs.get(key, default)))
    return found[0], found[1]


# -- the steps ---------------------------------------------------------------------------------------------------------


def _refusal(node: Node, weight: Weight | None, shapes: Shapes) -> str:
    if weight is None:
        source = node.input(1)
        maker = source.producer if source is not None else None
        return f"its weight {why_computed(maker)}" if maker is not None else "it multiplies two activations"
    constant = node.constant(weight.port)
    if constant is None:
        source = node.input(weight.port)
        maker = source.producer if source is not None else None
        return f"its weight {why_computed(maker)}" if maker is not None else "its weight is an input of the model"
    if constant.dtype != np.float32:
        return unfit("its weight", constant.dtype)
    if any(isinstance(t, Constant) for port, t in enumerate(node.inputs[:2]) if port != weight.port):
        return "its activations are a constant"
    for port in range(len(node.inputs)):
        dtype = shapes.dtype(node.input(port))
        if dtype is not None and dtype != np.float32:
            return f"its inputs are {dtype.name}"
        fixed = node.constant(port)
        if fixed is not None and not np.isfinite(fixed.values).all():
            return "its weight or bias holds NaN or infinity"
    return "" if constant.size else "its weight is empty"


def _touches(node: Node, target: Target, banned: set[Variable], result: Plan) -> bool:
    kernel = target.kernels[node.op]
    ports = kernel.ports if kernel.ports is not None else tuple(range(len(node.inputs)))
    if any(node.inputs[port] in banned for port in ports):
        return True
    writes = target.outputs and not kernel.float_output
    return writes and _written(node, result) in banned


def _written(node: Node, result: Plan) -> Variable:
    tensor: Variable = node.outputs[0]
    return result.folds[tensor].outputs[0] if tensor in result.folds else tensor


def _joinable(
    graph: Graph,
    target: Target,
    operators: Operators,
    shapes: Shapes,
    result: Plan,
    wide: bool,
    banned: set[Variable],
    barred: Container[Node],
) -> dict[Node, tuple[int, ...]]:
    """Nodes whose inputs are all integers, forward through the graph, with the ports that take integers."""
    available: set[Variable] = {n.inputs[p] for n in result.weighted for p in (target.kernels[n.op].ports or ())}
    found: dict[Node, tuple[int, ...]] = {}
    folded: set[Node] = set()
    gates: set[Node] = set()  # x * sigmoid(x) is one float kernel, faster than two on integers
    for node in graph.nodes:
        gates.update(silu_of(node.outputs[0]) or () if node.outputs else ())
        if node in result.weighted:
            available.add(_written(node, result))
            if node.outputs[0] in result.folds:
                folded.add(result.folds[node.outputs[0]])
            continue
        if node in folded or node in gates or node in barred:
            continue
        ports = _integer_ports(node, target, operators, shapes, graph.opset, wide=wide)
        if not ports or not node.outputs or any(node.inputs[port] not in available for port in ports):
            continue
        writes = [t for t in node.outputs if t.name]
        if node.op in target.kernels:
            reader = result.folds.get(node.outputs[0])
            if reader is not None:
                folded.add(reader)
                writes = [reader.outputs[0]]
        if any(t in banned for t in writes):
            continue
        found[node] = ports
        available.update(writes)
    return found


def _integer_ports(
    node: Node, target: Target, operators: Operators, shapes: Shapes, opset: int, *, wide: bool
) -> tuple[int, ...]:
    """Ports that take integers if the node joins a region; empty where it cannot."""
    if node.domain or node.bodies:
        return ()
    if any(shapes.dtype(t) not in (None, np.dtype(np.float32)) for t in node.outputs if t.name):
        return ()
    kernel = target.kernels.get(node.op)
    if kernel is not None:
        return _kernel_ports(node, kernel, shapes, wide=wide)
    facts = operators.facts(node)
    first = node.input(0)
    if first is None or isinstance(first, Constant):
        return ()
    if node.op in target.moves and facts.moves_data and max(opset, target.opset) >= target.moves[node.op]:
        return (0,)
    if node.op in target.rewritten and _works_on_integers(node):
        return (0,)
    return ()


def _kernel_ports(node: Node, kernel: Kernel, shapes: Shapes, *, wide: bool) -> tuple[int, ...]:
    if kernel.weighted or not (kernel.by_default or wide) or kernel.refuses(node, None, shapes):
        return ()
    ports = tuple(range(len(node.inputs))) if kernel.ports is None else kernel.ports
    if any(isinstance(node.input(port), Constant) or node.input(port) is None for port in ports):
        return ()
    return ports


def _works_on_integers(node: Node) -> bool:
    """Relu, Clip and Pad do the same to integers as to the numbers they stand for, zero being an integer too."""
    if node.op == "Relu":
        return True
    if node.op == "Clip":
        limits = clip_limits(node)
        return limits is not None and limits[0] <= 0 <= limits[1]
    value = node.constant(2)
    zero = node.input(2) is None or (value is not None and not np.asarray(value.values).any())
    return node.op == "Pad" and (zero or _text(node.attrs.get("mode", "constant")) != "constant")


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _pruned(
    graph: Graph, result: Plan, candidates: dict[Node, tuple[int, ...]], shapes: Shapes, target: Target
) -> dict[Node, tuple[int, ...]]:
    """Those whose result an integer node reads, or that make the tensor smaller: from the outputs backwards."""
    reads: set[Variable] = {n.inputs[p] for n in result.weighted for p in (target.kernels[n.op].ports or ())}
    kept: dict[Node, tuple[int, ...]] = {}
    for node in reversed(graph.nodes):
        ports = candidates.get(node)
        if ports is None:
            continue
        written = [_written(node, result)] if node.op in target.kernels else [t for t in node.outputs if t.name]
        if any(t in reads for t in written) or (_shrinks(node, ports, shapes) and not graph.is_output(written[0])):
            kept[node] = ports
            reads.update(node.inputs[port] for port in ports)
    return kept


def _shrinks(node: Node, ports: tuple[int, ...], shapes: Shapes) -> bool:
    out = shapes.static(node.outputs[0])
    into = [shapes.static(node.inputs[port]) for port in ports]
    if out is None or any(shape is None for shape in into):
        return node.op in ("GlobalAveragePool", "AveragePool", "MaxPool")
    return int(np.prod(out)) < sum(int(np.prod(shape)) for shape in into if shape is not None)


def _place(node: Node, result: Plan, target: Target) -> None:
    """Enter a joined node into the plan."""
    kernel = target.kernels.get(node.op)
    ports: tuple[int, ...] = (0,)
    if kernel is not None:
        ports = tuple(range(len(node.inputs))) if kernel.ports is None else kernel.ports or ()
        result.joined[node] = ports
        reader = result.folds.get(node.outputs[0])
        if reader is not None:
            result.folded[node] = reader
        result.made[result.output(node)] = node
    else:
        (result.moving if node.op in target.moves else result.rewritten).append(node)
        for tensor in node.outputs:
            if tensor.name:
                result.made[tensor] = node
    for port in ports:
        result.read[node.inputs[port]] = None


def _finish(node: Node, result: Plan, target: Target) -> None:
    """Enter what a node with a weight writes, where the kernel wants integers or an integer node reads them."""
    written = _written(node, result)
    if not target.kernels[node.op].float_output or written in result.read:
        reader = result.folds.get(node.outputs[0])
        if reader is not None:
            result.folded[node] = reader
        result.made[written] = node


def _inputs(node: Node, target: Target) -> list[Variable]:
    kernel = target.kernels[node.op]
    ports = tuple(range(len(node.inputs))) if kernel.ports is None else kernel.ports
    return [node.inputs[port] for port in ports]


def _reads(node: Node, result: Plan, target: Target) -> list[Variable]:
    if node in result.weighted:
        return _inputs(node, target)
    return [node.inputs[port] for port in result.joined.get(node, ())]


def _shortcuts(graph: Graph, result: Plan, banned: set[Variable]) -> None:
    """Residual adds of targets that fuse them into the convolution: the other side is quantized."""
    for node in graph.nodes:
        if node.op != "Add" or node.domain or any(isinstance(t, Constant) for t in node.inputs):
            continue
        makers = [t.producer for t in node.inputs]
        fused = [m in result.weighted and len(t.outputs) == 1 for m, t in zip(makers, node.inputs, strict=True)]
        if fused.count(True) == 0:
            continue
        other = 1 - fused.index(True)
        if node.inputs[other] not in banned:
            result.joined[node] = (other,)
