"""Where in a graph are activations multiplied with weights, whatever form the weights have?

A layer is a node whose record counts multiply-accumulates and one of whose operands depends on no input of the graph.
So a convolution, the same with its weight behind DequantizeLinear, and QLinearConv are alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from onnxcomp.graph.clone import extract
from onnxcomp.graph.ir import Array, Constant, Graph, Node, Tensor, Variable
from onnxcomp.graph.types import Shapes
from onnxcomp.ops.facts import Operators, Weight, no_macs
from onnxcomp.ops.record import IntegerForm
from onnxcomp.runtime.session import open_graph

MOST_HOPS = 12  # from a layer to the tensors where it is measured
WEIGHT_BYTES = 1 << 30  # a larger weight is not decoded for a look


PASSED = {"QuantizeLinear", "DequantizeLinear", "Cast", "DynamicQuantizeLinear", "Identity"}
MOVES = {"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten"}
AFFINE = {"Add", "Sub", "Mul", "Div", "BatchNormalization"}


@dataclass(frozen=True, eq=False)
class Place:
    """A tensor where a layer's values are taken or given.

    Attributes:
        tensor: float, or integers that `scale` and `zero` make floats of.
        low, high: what the quantization on the way lets through, where there is one with fixed scale; else infinite.
        step: its step; 0 where there is none.
        plain: whether nothing scales, shifts or moves the values between here and the layer.
    """

    tensor: Variable
    scale: Tensor | None = None
    zero: Tensor | None = None
    low: float = -np.inf
    high: float = np.inf
    step: float = 0.0
    plain: bool = True


@dataclass(frozen=True, eq=False)
class Layer:
    """One product with a weight.

    Attributes:
        node: the product.
        index: its place among the graph's layers, in the order in which they run.
        kind: the float operator that it computes.
        entries: where it takes its input, the nearest first: in front of its quantization, then in front of what
            scales, shifts, moves or bends it element by element.
        product: where its output stands in front of a bias that a node of its own adds.
        linear, active: where it stands behind bias and scale, and behind the activation function too.
        linear_ops, active_ops: the operators passed on the way there.
        weight: float32 [out, in], or None where it could not be read.
        codes: the stored integers, or None.
        bias: float [out], zeros where there is none.
        fused: whether it has operands beside input and weight that are computed, as a residual sum has.
    """

    node: Node
    index: int
    kind: str
    entries: tuple[Place, ...]
    product: Place
    linear: Place
    active: Place
    linear_ops: tuple[str, ...]
    active_ops: tuple[str, ...]
    weight: Array | None
    codes: Array | None
    bias: Array | None
    fused: bool
    vectors: tuple[Array, ...] = ()


@dataclass
class Reading:
    """A graph with what is known of it before it runs on data.

    Attributes:
        fixed: values of tensors that depend on no input, by tensor; those asked for only.
        moving: tensors that depend on an input of the graph.
    """

    graph: Graph
    shapes: Shapes
    operators: Operators
    moving: set[Tensor] = field(default_factory=set)
    fixed: dict[Tensor, Array] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.moving = set(self.graph.inputs)
        for node in self.graph.nodes:
            body = [t for b in node.bodies for inner in b.walk() for t in inner.inputs]
            body += [t for b in node.bodies for t in b.outputs]
            if any(t in self.moving for t in (*node.inputs, *body)) or self.operators.facts(node).random:
                self.moving.update(node.outputs)

    def is_fixed(self, tensor: Tensor | None) -> bool:
        """Whether a tensor has one value whatever the inputs are."""
        return tensor is not None and bool(tensor.name) and tensor not in self.moving

    def value(self, tensor: Tensor | None) -> Array | None:
        """The value of a fixed tensor that was read; None where it is computed or absent."""
        if isinstance(tensor, Constant):
            return tensor.values if tensor.nbytes <= WEIGHT_BYTES else None
        return None if tensor is None else self.fixed.get(tensor)

    def read(self, tensors: Iterable[Tensor]) -> None:
        """Compute fixed tensors, all in one run."""
        wanted = [t for t in dict.fromkeys(tensors) if isinstance(t, Variable) and t not in self.fixed]
        if not wanted:
            return
        values = open_graph(extract(self.graph, (), wanted).graph, optimize=False).run({})
        self.fixed.update((t, values[t.name]) for t in wanted)


def layers(graph: Graph, shapes: Shapes, operators: Operators) -> tuple[Reading, list[Layer]]:
    """The layers of the main graph, in the order in which they run.

    Raises:
        ModelError: the weights' forms cannot be computed.
    """
    reading = Reading(graph, shapes, operators)
    found = [(node, form) for node in graph.nodes if (form := form_of(node, reading)) is not None]
    wanted: list[Tensor] = []
    for node, form in found:
        wanted += [t for t in node.inputs if reading.is_fixed(t)]
        wanted += [t for near in _around(node, form) for t in near.inputs if reading.is_fixed(t)]
    reading.read(wanted)
    return reading, [_layer(node, form, index, reading) for index, (node, form) in enumerate(found)]


def form_of(node: Node, reading: Reading) -> IntegerForm | None:
    """How a node takes input and weight; None where it multiplies no activations with a weight."""
    facts = reading.operators.facts(node)
    form = facts.integers
    if form is None:
        if facts.macs is no_macs:
            return None
        data, weight = (1, 0) if reading.is_fixed(node.input(0)) else (0, 1)
        form = IntegerForm(node.op, data, weight, bias=2 if node.op != "MatMul" else -1)
    moving, weight_tensor = node.input(form.data), node.input(form.weight)
    if not isinstance(moving, Variable) or moving not in reading.moving or not reading.is_fixed(weight_tensor):
        return None
    return form


def _around(node: Node, form: IntegerForm) -> list[Node]:
    """Nodes near a layer whose fixed operands may be asked for."""
    found, tensor = [], node.input(form.data)
    for _ in range(MOST_HOPS):
        maker = tensor.producer if tensor is not None else None
        if maker is None:
            break
        found.append(maker)
        tensor = maker.input(0)
    ahead = node.output()
    for _ in range(MOST_HOPS):
        if ahead is None or not ahead.consumers:
            break
        found += ahead.consumers
        ahead = ahead.consumers[0].output()
    return found


def _layer(node: Node, form: IntegerForm, index: int, reading: Reading) -> Layer:
    out = node.output()
    assert out is not None
    start = _decoded(out, *_ports(node, form.exit), reading) if form.exit else Place(out)
    product, linear, linear_ops, active, active_ops = _ahead(start, reading)
    weight, codes = _weight(node, form, reading)
    bias = _bias(node, form, reading)
    aside = {form.data, *reading.operators.facts(node).quantization_ports}
    others = [t for p, t in enumerate(node.inputs) if t.name and p not in aside and t in reading.moving]
    ahead = [c for tensor in (out, linear.tensor) for c in _readers(tensor)]
    vectors = [v for c in ahead for t in c.inputs if (v := reading.value(t)) is not None and v.ndim == 1 and v.size > 1]
    return Layer(
        node,
        index,
        form.like,
        _behind(node, form, reading),
        product,
        linear,
        active,
        linear_ops,
        active_ops,
        weight,
        codes,
        bias,
        bool(others) and form.like not in ("LSTM", "GRU", "RNN"),
        tuple(vectors),
    )


def _readers(tensor: Variable) -> Iterator[Node]:
    """What reads a tensor, or its values behind Q and DQ."""
    for node in tensor.consumers:
        if node.op in PASSED and node.output() is not None:
            yield from _readers(node.outputs[0])
        else:
            yield node


def _ports(node: Node, ports: tuple[int, int]) -> tuple[Tensor | None, Tensor | None]:
    return node.input(ports[0]), node.input(ports[1])


def _behind(node: Node, form: IntegerForm, reading: Reading) -> tuple[Place, ...]:
    """Where the input can be given, the nearest first."""
    tensor = node.input(form.data)
    assert isinstance(tensor, Variable)
    low, high, step, plain = -np.inf, np.inf, 0.0, True
    places: list[Place] = []
    decoded = (node, form.entry) if form.entry else None  # what makes floats of the integers that `tensor` holds
    for _ in range(MOST_HOPS):
        maker = tensor.producer
        if maker is not None and maker.op in PASSED and isinstance(maker.input(0), Variable):
            if maker.op == "QuantizeLinear":
                least, most, step = limits_of(maker, reading)
                low, high, decoded = max(low, least), min(high, most), None
            elif maker.op == "DequantizeLinear":
                decoded = maker, (1, 2)
            tensor = maker.inputs[0]
            continue
        if decoded:
            return (*places, Place(tensor, *_ports(*decoded), low, high, step, plain))
        if _is_float(tensor, reading):
            places.append(Place(tensor, None, None, low, high, step, plain))
        if maker is None:
            break
        if _only_first_moves(maker, reading, AFFINE):
            low, high, step, plain = -np.inf, np.inf, 0.0, False  # the limits are those of another scale
        elif maker.op == "Clip" and _only_first_moves(maker, reading, {"Clip"}):
            least, most = _bounds(maker, reading)
            low, high = max(low, least), min(high, most)
        elif not (
            _only_first_moves(maker, reading, MOVES)
            or (reading.operators.facts(maker).elementwise and _only_first_moves(maker, reading, {maker.op}))
        ):
            break
        tensor = _moving_input(maker, reading)
    return tuple(places)


def _ahead(start: Place, reading: Reading) -> tuple[Place, Place, tuple[str, ...], Place, tuple[str, ...]]:
    """In front of the bias, behind bias and scale, and behind the activation function, with the operators passed."""
    product = linear = active = start
    ops: dict[str, list[str]] = {"linear": [], "active": []}
    place, stage = start, "linear"
    for _ in range(MOST_HOPS):
        node = _only_consumer(place.tensor, reading)
        if node is None:
            break
        if node.op in PASSED:
            if node.op == "DynamicQuantizeLinear" or _quantizes_for_a_layer(node, reading):
                break
            place = _quantized(place, node, reading)
        elif _only_first_moves(node, reading, AFFINE) or _scaled_at_run_time(node, place.tensor, reading):
            if stage == "active":
                break
            ops[stage].append(node.op)
            place = Place(node.outputs[0])
        elif reading.operators.facts(node).elementwise and _only_first_moves(node, reading, {node.op}):
            if ops["active"]:
                break
            stage = "active"
            ops[stage].append(node.op)
            place = Place(node.outputs[0])
        else:
            break
        if place.scale is not None or _is_float(place.tensor, reading):
            active = place
            linear = place if stage == "linear" else linear
            product = place if stage == "linear" and not {"Add", "Sub"} & {*ops[stage]} else product
    return product, linear, tuple(ops["linear"]), active, tuple(ops["active"])


def _quantizes_for_a_layer(node: Node, reading: Reading) -> bool:
    """Whether what is rounded here is the input of another layer, which then answers for it."""
    if node.op != "QuantizeLinear":
        return False
    near = node.outputs[0].consumers
    readers = [r for back in near if back.op in PASSED for t in back.outputs for r in t.consumers]
    return any(form_of(reader, reading) is not None for reader in (*readers, *near))


def _quantized(place: Place, node: Node, reading: Reading) -> Place:
    if node.op == "QuantizeLinear":
        low, high, step = limits_of(node, reading)
        return Place(node.outputs[0], node.input(1), node.input(2), low, high, step)
    if node.op == "DequantizeLinear":
        return Place(node.outputs[0], None, None, place.low, place.high, place.step)
    return Place(node.outputs[0], place.scale, place.zero, place.low, place.high, place.step)


def _decoded(tensor: Variable, scale: Tensor | None, zero: Tensor | None, reading: Reading) -> Place:
    """Where a node gives integers at a scale of its own."""
    return Place(tensor, scale, zero, *_limits(scale, zero, reading))


def limits_of(node: Node, reading: Reading) -> tuple[float, float, float]:
    """Lowest and highest value that a QuantizeLinear lets through, and its step; the widest of several scales."""
    return _limits(node.input(1), node.input(2), reading)


def _limits(scale_at: Tensor | None, zero_at: Tensor | None, reading: Reading) -> tuple[float, float, float]:
    scale, zero = reading.value(scale_at), reading.value(zero_at)
    if scale is None or not scale.size:
        return -np.inf, np.inf, 0.0
    dtype = np.dtype(np.uint8) if zero is None else zero.dtype
    if dtype.kind not in "iu":
        return -np.inf, np.inf, 0.0
    info, at = np.iinfo(dtype), np.float64(0) if zero is None else zero.astype(np.float64)
    wide = scale.astype(np.float64)
    return float(((info.min - at) * wide).min()), float(((info.max - at) * wide).max()), float(wide.max())


def _bounds(node: Node, reading: Reading) -> tuple[float, float]:
    """Of a Clip: inputs since opset 11, attributes before."""
    found = []
    for port, name, default in ((1, "min", -np.inf), (2, "max", np.inf)):
        value = reading.value(node.input(port))
        found.append(float(node.attrs.get(name, default)) if value is None else float(value.reshape(-1)[0]))
    return found[0], found[1]


def _only_consumer(tensor: Variable, reading: Reading) -> Node | None:
    """The node that reads a tensor; of several that only quantize it, the first."""
    nodes = list(dict.fromkeys(tensor.consumers))
    if not nodes or (len(nodes) > 1 and any(n.op not in PASSED or n.op != nodes[0].op for n in nodes)):
        return None
    return None if reading.graph.is_output(tensor) and nodes[0].op not in PASSED else nodes[0]


def _only_first_moves(node: Node, reading: Reading, among: set[str]) -> bool:
    return (
        node.op in among
        and not node.bodies
        and len([t for t in node.inputs if t in reading.moving]) == 1
        and len([t for t in node.outputs if t.name]) == 1
    )


def _moving_input(node: Node, reading: Reading) -> Variable:
    return next(t for t in node.inputs if t in reading.moving and isinstance(t, Variable))


def _scaled_at_run_time(node: Node, tensor: Variable, reading: Reading) -> bool:
    """A Mul by a scale that dynamic quantization computes: one number, or one a channel."""
    if node.op != "Mul":
        return False
    other = next((t for t in node.inputs if t is not tensor), None)
    for _ in range(4):
        maker = other.producer if isinstance(other, Variable) else None
        if maker is None:
            return False
        if maker.op == "DynamicQuantizeLinear":
            return True
        other = next((t for t in maker.inputs if t in reading.moving), None)
    return False


def _is_float(tensor: Tensor, reading: Reading) -> bool:
    """Whether a tensor near a product holds floats; behind operators that inference knows nothing of, it does."""
    dtype = reading.shapes.dtype(tensor)
    return dtype is None or dtype.kind == "f" or dtype.name.startswith("bfloat")


def _weight(node: Node, form: IntegerForm, reading: Reading) -> tuple[Array | None, Array | None]:
    """The weight as float32 [out, in] and the integers it is stored as, as far as they can be read."""
    value = reading.value(node.input(form.weight))
    if value is None:
        return None, None
    if node.op == "MatMulNBits":
        return _decoded_blocks(node, reading), None
    codes = value if value.dtype.kind in "iu" else _stored(node.input(form.weight), reading)
    plain = value.astype(np.float32)
    ports: list[Tensor] = [Variable("x"), Constant("w", plain)]
    domain = node.domain if form.like == node.op else ""
    stand_in = Node(form.like, node.name, node.attrs, ports[::-1] if form.data == 1 else ports, domain=domain)
    found = reading.operators.facts(stand_in).weights(stand_in)
    kernel: Weight | None = next((w for w in found if w.port == stand_in.inputs.index(_constant_of(stand_in))), None)
    if kernel is None:
        return None, codes
    matrix = kernel.to_matrix(plain)
    zero, scale = _port(node, form.zero, reading), _port(node, form.scale, reading)
    if zero is not None and zero.size in (1, len(matrix)):
        matrix = matrix - zero.astype(np.float32).reshape(-1, 1)
    if scale is not None and scale.size in (1, len(matrix)):
        matrix = matrix * scale.astype(np.float32).reshape(-1, 1)
    return matrix, codes


def _bias(node: Node, form: IntegerForm, reading: Reading) -> Array | None:
    """As floats [out]; integers have the scales of input and weight."""
    bias = reading.value(node.input(form.bias)) if form.bias >= 0 else None
    if bias is None or bias.dtype.kind == "f":
        return None if bias is None else bias.reshape(-1)
    scales = [_port(node, form.entry[0] if form.entry else -1, reading), _port(node, form.scale, reading)]
    result = bias.reshape(-1).astype(np.float32)
    for scale in scales:
        if scale is None or scale.size not in (1, result.size):
            return None
        result = result * scale.reshape(-1).astype(np.float32)
    return result


def _constant_of(node: Node) -> Tensor:
    return next(t for t in node.inputs if isinstance(t, Constant))


def _port(node: Node, port: int, reading: Reading) -> Array | None:
    return reading.value(node.input(port)) if port >= 0 else None


def _stored(tensor: Tensor | None, reading: Reading) -> Array | None:
    """The integers that a chain of decoding nodes starts from."""
    for _ in range(MOST_HOPS):
        if isinstance(tensor, Constant):
            values: Array = tensor.values
            return values if values.dtype.kind in "iu" else None
        maker = tensor.producer if tensor is not None else None
        if maker is None:
            return None
        tensor = maker.input(0)
    return None


def _decoded_blocks(node: Node, reading: Reading) -> Array | None:
    """MatMulNBits's weight [N, K]: what it makes of the identity."""
    size = int(node.attrs["K"])
    if size * size * 4 > WEIGHT_BYTES // 8:
        return None
    graph = Graph(model=reading.graph.root.model)
    fed = Variable("identity", np.dtype(np.float32), (size, size))
    rest = [
        Constant(t.name, v) if (v := reading.value(t)) is not None else Variable("") for t in list(node.inputs)[1:5]
    ]
    graph.inputs = [fed]
    made = graph.add_node(node.op, [fed, *rest], attrs=dict(node.attrs) | {"accuracy_level": 1}, domain=node.domain)
    made.outputs[0].dtype = np.dtype(np.float32)
    graph.outputs = [made.outputs[0]]
    found = open_graph(graph).run({"identity": np.eye(size, dtype=np.float32)})
    return np.ascontiguousarray(next(iter(found.values())).T)


def feeds_shapes(feeds: Mapping[str, Array]) -> dict[str, tuple[int, ...]]:
    """The shape of every input, by name."""
    return {name: array.shape for name, array in feeds.items()}
