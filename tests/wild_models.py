"""Random valid models of many kinds: operators of opsets 7 to 23, bodies, functions, dynamic batches, odd forms.

Every choice comes from one seed. A node joins the graph only after ONNX Runtime has run it alone on the values that the
graph holds so far, for two batch sizes: so shapes and types are known by running and never derived here, and what the
runtime refuses is no part of a model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

BATCHES = (2, 3)
LARGEST = 1e4
ML, MS = "ai.onnx.ml", "com.microsoft"
OPSETS = (7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23)
FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
Values = tuple[np.ndarray, ...]  # of one tensor, a batch size each


@dataclass
class Wild:
    """A random model.

    Attributes:
        proto: the model.
        feeds: arrays by input name for a batch of any size.
    """

    seed: int
    proto: ModelProto
    feeds: Callable[[int, int], dict[str, np.ndarray]]


@dataclass
class _Scope:
    """Names that can be read, with their values."""

    values: dict[str, Values] = field(default_factory=dict)


class NoModelError(Exception):
    """The seed gives no model that ONNX Runtime runs."""


class Grower:
    """Grows one model."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.opset = int(self.random.choice(OPSETS))
        self.nodes: list[NodeProto] = []
        self.weights: dict[str, np.ndarray] = {}
        self.values: dict[str, Values] = {}
        self.inputs: dict[str, tuple[int, ...]] = {}
        self.functions: dict[str, onnx.FunctionProto] = {}
        self.pending: list[NodeProto] = []
        self.count = 0

    # -- drawing -----------------------------------------------------------------------------------------------

    def one(self, *options: Any) -> Any:
        return options[int(self.random.integers(len(options)))]

    def chance(self, share: float) -> bool:
        return bool(self.random.random() < share)

    def name(self, kind: str = "t") -> str:
        self.count += 1
        return f"{kind}{self.count}"

    def real(self, *shape: int, scale: float = 0.0) -> np.ndarray:
        fan = max(1, int(np.prod(shape[1:])))
        return (self.random.standard_normal(shape) * (scale or (1.5 / fan) ** 0.5)).astype(np.float32)

    def pick(self, *ranks: int, dtype: Any = np.float32, batch: bool = False) -> str:
        """A tensor of one of the ranks; later ones are likelier."""
        found = [
            name
            for name, (first, second) in self.values.items()
            if first.dtype == dtype and (not ranks or first.ndim in ranks) and first.size and first.size <= 4096
            if not batch or (first.ndim and first.shape[0] == BATCHES[0] and second.shape[0] == BATCHES[1])
        ]
        if not found:
            raise _SkipError
        odds = np.arange(1, len(found) + 1) ** 1.5
        return str(self.random.choice(found, p=odds / odds.sum()))

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.values[name][0].shape)

    # -- weights in many forms ---------------------------------------------------------------------------------

    def weight(self, array: np.ndarray) -> str:
        """A weight: an initializer, one that is there already, a Constant node, or behind nodes that keep its value."""
        if self.chance(0.1):
            array = np.where(self.random.random(array.shape) < 0.6, 0, array).astype(array.dtype)
        if array.ndim > 1 and self.chance(0.1):
            array = array.copy()
            array[self.random.integers(len(array))] = 0
        if self.chance(0.15):
            for name, old in self.weights.items():
                if old.shape == array.shape and old.dtype == array.dtype:
                    return name
        kind = self.random.random()
        if kind < 0.1:
            return self._pend("Constant", [], value=numpy_helper.from_array(array))
        if kind < 0.14 and array.ndim == 2:
            return self._pend("Transpose", [self.store(np.ascontiguousarray(array.T))], perm=[1, 0])
        if kind < 0.18:
            flat = self.store(array.reshape(-1))
            return self._pend("Reshape", [flat, self.store(np.array(array.shape, np.int64))])
        if kind < 0.21:
            return self._pend("Identity", [self.store(array)])
        if kind < 0.24 and array.dtype == np.float32:
            return self._pend("Cast", [self.store(array.astype(np.float16))], to=FLOAT)
        if kind < 0.27 and array.dtype == np.float32 and self.opset >= 10:
            codes = np.clip(np.round(array / 0.02), -127, 127).astype(np.int8)
            return self._pend(
                "DequantizeLinear", [self.store(codes), self.store(np.float32(0.02)), self.store(np.int8(0))]
            )
        if kind < 0.30 and array.ndim and array.shape[0] > 1:
            parts = [self.store(array[:1]), self.store(array[1:])]
            return self._pend("Concat", parts, axis=0)
        return self.store(array)

    def store(self, array: np.ndarray) -> str:
        name = self.name("w")
        self.weights[name] = np.asarray(array)
        return name

    def ints(self, *values: int) -> str:
        return self.store(np.array(values, np.int64))

    def _pend(self, op: str, inputs: Sequence[str], **attrs: Any) -> str:
        out = self.name("k")
        self.pending.append(helper.make_node(op, inputs, [out], self.one("", self.name("n")), **attrs))
        return out

    # -- trying ------------------------------------------------------------------------------------------------

    def add(self, op: str, inputs: Sequence[str], n: int = 1, domain: str = "", **attrs: Any) -> str:
        """Add a node with all that waits for it, where the runtime runs them; gives the first output.

        Raises:
            _SkipError: it does not.
        """
        outs = [self.name() for _ in range(n)]
        attrs = {key: value for key, value in attrs.items() if value is not None}
        node = helper.make_node(
            op, list(inputs), outs, "" if self.chance(0.2) else self.name("n"), domain=domain, **attrs
        )
        return self.put(node)

    def put(self, node: NodeProto) -> str:
        """Run the node and those that wait for it; keep them where they run on both batches."""
        nodes = [*self.pending, node]
        self.pending = []
        made = self._run(nodes)
        for values in made.values():
            for array in values:
                if array.dtype.kind == "f" and not (
                    np.isfinite(array).all() and np.abs(array).max(initial=0) < LARGEST
                ):
                    raise _SkipError
                if array.size > 20000:
                    raise _SkipError
        self.nodes.extend(nodes)
        self.values.update({name: values for name, values in made.items() if values[0].dtype != object})
        return node.output[0]

    def _run(self, nodes: Sequence[NodeProto]) -> dict[str, Values]:
        known = set(self.values) | set(self.weights)
        read = [name for node in nodes for name in _reads(node) if name in known]
        feeds = [{n: self.values[n][i] for n in read if n in self.values} for i in range(2)]
        weights = {n: self.weights[n] for n in read if n not in self.values}
        outputs = list(dict.fromkeys(o for node in nodes[-1:] for o in node.output if o))
        types = [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), [None] * a.ndim)
            for n, a in feeds[0].items()
        ]
        proto = self._model(nodes, types, [onnx.ValueInfoProto(name=o) for o in outputs], weights)
        try:
            session = open_model(proto)
            results = [session.run(outputs, feed) for feed in feeds]
        except Exception as error:
            raise _SkipError from error
        if not all(isinstance(a, np.ndarray) for result in results for a in result):
            return {}
        return {name: tuple(result[i] for result in results) for i, name in enumerate(outputs)}

    def _model(
        self, nodes: Sequence[NodeProto], inputs: Any, outputs: Any, weights: dict[str, np.ndarray]
    ) -> ModelProto:
        tensors = [numpy_helper.from_array(np.asarray(a), n) for n, a in weights.items()]
        graph = helper.make_graph(nodes, "wild", inputs, outputs, tensors)
        used = {n.domain for node in nodes for n in _all(node)} | {
            n.domain for f in self.functions.values() for n in f.node
        }
        imports = [helper.make_opsetid("", self.opset)]
        imports += [helper.make_opsetid(d, 2 if d == ML else 1) for d in sorted(used - {""})]
        ir = max(4, int(helper.find_min_ir_version_for(imports[:1])), 8 if self.functions else 4)
        return helper.make_model(graph, opset_imports=imports, ir_version=ir, functions=list(self.functions.values()))

    # -- the whole ---------------------------------------------------------------------------------------------

    def feed(self, batch: int, seed: int) -> dict[str, np.ndarray]:
        """Values for the model's inputs; smooth along the batch, so that samples resemble each other."""
        generator = np.random.default_rng(seed)
        found = {}
        for name, shape in self.inputs.items():
            whole = (batch, *shape)
            if name == "ids":
                found[name] = generator.integers(0, 20, whole)
            else:
                found[name] = generator.standard_normal(whole).astype(np.float32)
        return found

    def start(self) -> None:
        kinds = self.random.choice(["image", "signal", "vector", "ids"], int(self.one(1, 1, 1, 2)), replace=False)
        shapes = {
            "image": (int(self.one(1, 3, 4)), int(self.one(6, 8, 9)), int(self.one(6, 8, 7))),
            "signal": (int(self.one(4, 6)), int(self.one(8, 12))),
            "vector": (int(self.one(5, 8, 16)),),
            "ids": (int(self.one(4, 6)),),
        }
        self.inputs = {str(kind): shapes[str(kind)] for kind in kinds}
        first, second = (self.feed(size, 1) for size in BATCHES)
        self.values = {name: (first[name], second[name]) for name in first}

    def grow(self, steps: int) -> None:
        moves = [move for move in MOVES if move.since <= self.opset]
        odds = np.array([move.odds for move in moves])
        done = tries = 0
        while done < steps and tries < steps * 6:
            tries += 1
            move = moves[int(self.random.choice(len(moves), p=odds / odds.sum()))]
            try:
                move.make(self)
                done += 1
            except _SkipError:
                self.pending = []

    def finish(self) -> ModelProto:
        read = {name for node in self.nodes for name in _reads(node)}
        made = [n for n in self.values if n not in self.inputs]
        floats = [n for n in made if self.values[n][0].dtype == np.float32 and self.values[n][0].size]
        if not floats:
            raise NoModelError
        leaves = [n for n in made if n not in read] or floats[-1:]
        chosen = dict.fromkeys([floats[-1], *leaves[-2:], *(self.random.choice(made, int(self.random.integers(0, 3))))])
        outputs = [n for n in map(str, chosen) if self.values[n][0].dtype != object]
        nodes, constants = list(self.nodes), {n for n in outputs if n in self.weights}
        if self.chance(0.1):  # an input handed on as an output
            given = str(self.random.choice(list(self.inputs)))
            nodes.append(helper.make_node("Identity", [given], ["echo"]))
            self.values["echo"] = self.values[given]
            outputs.append("echo")
        inputs = [self._info(n, dims=("N", *s)) for n, s in self.inputs.items()]
        if self.chance(0.1):  # an old exporter lists its weights as inputs
            kept = [n for n in self.weights if any(n in _reads(node) for node in nodes)]
            inputs += [self._info(n, array=self.weights[n]) for n in kept[:5]]
        if self.chance(0.9):
            weights = {
                n: a for n, a in self.weights.items() if any(n in _reads(node) for node in nodes) or n in constants
            }
        else:
            weights = self.weights  # some are read by nobody
        return self._model(nodes, inputs, [self._info(n) for n in outputs], weights)

    def _info(
        self, name: str, dims: Sequence[Any] | None = None, array: np.ndarray | None = None
    ) -> onnx.ValueInfoProto:
        if array is not None:
            return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        first, second = self.values[name]
        if dims is None:
            same = first.ndim == second.ndim
            dims = [a if a == b else None for a, b in zip(first.shape, second.shape, strict=True)] if same else None
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(first.dtype), dims)


class _SkipError(Exception):
    """A node that does not fit here."""


def _reads(node: NodeProto) -> list[str]:
    found = [n for n in node.input if n]
    for attribute in node.attribute:
        for body in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            for inner in body.node:
                found.extend(_reads(inner))
            found.extend(o.name for o in body.output)
    return found


def _all(node: NodeProto) -> list[NodeProto]:
    return [node, *(n for a in node.attribute if a.HasField("g") for inner in a.g.node for n in _all(inner))]


def open_model(proto: ModelProto, *, optimized: bool = False) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimized else level.ORT_DISABLE_ALL
    return ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


# -- moves: each draws one node, or a few ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Move:
    """One kind of step: how likely, from which opset on."""

    make: Callable[[Grower], Any]
    odds: float
    since: int


MOVES: list[Move] = []


def move(odds: float = 1.0, since: int = 7) -> Callable[[Callable[[Grower], Any]], Callable[[Grower], Any]]:
    def keep(make: Callable[[Grower], Any]) -> Callable[[Grower], Any]:
        MOVES.append(Move(make, odds, since))
        return make

    return keep


@move(4)
def conv(g: Grower) -> None:
    x = g.pick(3, 4, 4)
    channels, dims = g.shape(x)[1], len(g.shape(x)) - 2
    groups = [k for k in (1, 1, 1, 2, channels) if channels % k == 0]
    group = int(g.one(*groups))
    out = group * int(g.one(1, 2, 4, 8))
    k = int(g.one(1, 2, 3))
    pads = g.one({"pads": [k // 2] * 2 * dims}, {"auto_pad": "SAME_UPPER"}, {"auto_pad": "VALID"}, {})
    bias = [g.weight(g.real(out, scale=0.2))] if g.chance(0.7) else []
    w = g.weight(g.real(out, channels // group, *[k] * dims))
    strides = [int(g.one(1, 1, 2))] * dims
    y = g.add("Conv", [x, w, *bias], group=group, strides=strides, **pads)
    after_layer(g, y, out)


@move(1)
def conv_transpose(g: Grower) -> None:
    x = g.pick(3, 4, 4)
    channels, dims = g.shape(x)[1], len(g.shape(x)) - 2
    group = int(g.one(*[k for k in (1, 1, 2, channels) if channels % k == 0]))
    out = int(g.one(1, 2, 4))
    k = int(g.one(2, 3))
    bias = [g.weight(g.real(out * group))] if g.chance(0.5) else []
    y = g.add(
        "ConvTranspose",
        [x, g.weight(g.real(channels, out, *[k] * dims)), *bias],
        group=group,
        strides=[int(g.one(1, 2))] * dims,
    )
    after_layer(g, y, out * group)


def after_layer(g: Grower, y: str, channels: int) -> None:
    """What stands behind a layer: a norm, its parts, an activation, or nothing."""
    if g.chance(0.3):
        batch_norm(g, y)
    elif g.chance(0.2):
        shape = (channels, *[1] * (len(g.shape(y)) - 2))
        g.add(g.one("Mul", "Add", "Sub", "Div"), [y, g.weight(np.abs(g.real(*shape)) + np.float32(0.5))])
    if g.chance(0.4):
        g.add(g.one("Relu", "LeakyRelu", "Sigmoid", "Tanh", "Elu"), [y])


@move(1)
def batch_norm(g: Grower, x: str = "") -> None:
    x = x or g.pick(2, 3, 4)
    c = g.shape(x)[1]
    extra = [g.real(c), g.real(c, scale=0.3), g.real(c, scale=0.3), (np.abs(g.real(c)) + 0.5).astype(np.float32)]
    training = {"training_mode": 1} if g.opset >= 14 and g.chance(0.05) else {}
    g.add(
        "BatchNormalization",
        [x, *map(g.weight, extra)],
        3 if training else 1,
        epsilon=float(g.one(1e-5, 1e-3)),
        **training,
    )


@move(3)
def matmul(g: Grower) -> None:
    x = g.pick(2, 3, 4)
    k, n = g.shape(x)[-1], int(g.one(3, 4, 8, 16))
    if g.chance(0.15):
        g.add("MatMul", [g.weight(g.real(n, g.shape(x)[-2])), x])
        return
    y = g.add("MatMul", [x, g.weight((g.real(k, n) / k**0.5).astype(np.float32))])
    if g.chance(0.6):
        bias = g.weight(g.real(*g.one((n,), (1, n))))
        y = g.add("Add", g.one([y, bias], [bias, y]))
    if g.chance(0.4):
        g.add(g.one("Relu", "Tanh", "Softplus"), [y])


@move(2)
def gemm(g: Grower) -> None:
    x = g.pick(2)
    k, n, trans = g.shape(x)[1], int(g.one(3, 5, 8)), int(g.one(0, 1))
    shape = g.one((n,), (1, n), (), (1,), None if g.opset >= 11 else (n,))
    bias = [] if shape is None else [g.weight(np.asarray(g.random.standard_normal(shape), np.float32))]
    scale = g.one({}, {"alpha": 0.5}, {"beta": 2.0}, {"alpha": 2.0, "beta": 0.0})
    y = g.add("Gemm", [x, g.weight(g.real(*((n, k) if trans else (k, n)))), *bias], transB=trans, **scale)
    if g.chance(0.3):
        batch_norm(g, y)
    if g.chance(0.4):
        g.add("Relu", [y])


@move(1.5)
def recurrent(g: Grower) -> None:
    x = g.pick(3)
    op, parts = g.one(("LSTM", 4), ("GRU", 3), ("RNN", 1))
    h, width, both = int(g.one(2, 4)), g.shape(x)[2], g.chance(0.3)
    d = 2 if both else 1
    r = g.real(d, parts * h, h)
    if g.chance(0.3):
        r[:, :, 0] = 0
    inputs = [x, g.weight(g.real(d, parts * h, width)), g.weight(r)]
    if g.chance(0.6):
        inputs.append(g.weight(g.real(d, 2 * parts * h)))
    y = g.add(
        op, inputs, int(g.one(1, 2)), hidden_size=h, direction="bidirectional" if both else g.one("forward", "reverse")
    )
    if g.chance(0.7):
        y = g.add("Transpose", [y], perm=[0, 2, 1, 3])
        g.add("Reshape", [y, g.ints(0, 0, -1)])


@move(1)
def embedding(g: Grower) -> None:
    ids = g.pick(1, 2, dtype=np.int64)
    table = g.weight(g.real(20, int(g.one(4, 8)), scale=0.5))
    g.add("Gather", [table, ids], axis=0)


@move(0.5)
def gather_constant(g: Grower) -> None:
    """Rows of what a Constant node holds, picked by a number or by positions."""
    table = g._pend("Constant", [], value=numpy_helper.from_array(g.real(int(g.one(3, 6)), 4)))
    g.add("Gather", [table, g.store(np.array(g.one(0, [1], [0, 2]), np.int64))], axis=0)


@move(1)
def binary(g: Grower) -> None:
    x = g.pick()
    same = [n for n, v in g.values.items() if v[0].shape == g.values[x][0].shape and v[0].dtype == np.float32]
    g.add(g.one("Add", "Mul", "Sub", "Add"), [x, str(g.random.choice(same))])


@move(1.5)
def with_constant(g: Grower) -> None:
    x = g.pick()
    shape = g.shape(x)
    wide = g.one((), (1,), shape[-1:], (1,) * len(shape), (*shape[1:2], *[1] * (len(shape) - 2)))
    value = np.asarray(g.one(0.0, 1.0, 0.5, -0.0, None) or 0.7, np.float32)
    array = np.broadcast_to(value, wide) if g.chance(0.5) else (np.abs(g.real(*wide)) + 0.3).astype(np.float32)
    pair = [x, g.weight(np.ascontiguousarray(array))]
    op = g.one("Add", "Mul", "Sub", "Div", "Max", "Min", "PRelu", "Pow") if g.opset > 7 else g.one("Add", "Mul")
    g.add(op, pair if op == "PRelu" or g.chance(0.7) else pair[::-1])  # the slope of a PRelu may not widen its input


@move(2)
def unary(g: Grower) -> None:
    names = "Relu Neg Abs Tanh Floor Sigmoid Exp Softplus Softsign Elu Selu HardSigmoid LeakyRelu Identity Ceil Sin Cos"
    later = {
        9: "Erf Sign Sinh Asinh",
        10: "ThresholdedRelu",
        11: "Round",
        12: "Celu",
        14: "HardSwish",
        18: "Mish",
        20: "Gelu",
    }
    options = names.split() + [n for since, more in later.items() if g.opset >= since for n in more.split()]
    g.add(g.one(*options), [g.pick()])


@move(0.7)
def gate(g: Grower) -> None:
    """x * sigmoid(x), or x of another gate."""
    x = g.pick()
    g.add("Mul", [x, g.add(g.one("Sigmoid", "Tanh", "HardSigmoid"), [x])])


@move(1)
def normalize(g: Grower) -> None:
    x = g.pick(2, 3, 4)
    shape = g.shape(x)
    c, last = shape[1], shape[-1]
    kind = g.one("InstanceNormalization", "Softmax", "LRN", "MeanVarianceNormalization", "LayerNormalization",
                 "LogSoftmax", "Hardmax", "GroupNormalization", "RMSNormalization", "LpNormalization")  # fmt: skip
    if kind in ("Softmax", "LogSoftmax", "Hardmax"):
        g.add(kind, [x], axis=int(g.one(*range(1, len(shape)), *([-1] if g.opset > 10 else []))))
    elif kind == "InstanceNormalization":
        g.add(kind, [x, g.weight(g.real(c)), g.weight(g.real(c))])
    elif kind == "LayerNormalization":
        size = g.one((last,), (1,), (1, last))
        g.add(
            kind, [x, g.weight(g.real(*size, scale=1.0)), *([g.weight(g.real(last))] if g.chance(0.6) else [])], axis=-1
        )
    elif kind == "RMSNormalization":
        g.add(kind, [x, g.weight(g.real(last, scale=1.0))], axis=-1)
    elif kind == "GroupNormalization":
        groups = int(g.one(*[k for k in (1, 2, c) if c % k == 0]))
        size = c if g.opset >= 21 else groups
        g.add(kind, [x, g.weight(g.real(size, scale=1.0)), g.weight(g.real(size))], num_groups=groups)
    else:
        g.add(kind, [x], **({"size": 3} if kind == "LRN" else {}))


@move(1)
def pool(g: Grower) -> None:
    x = g.pick(3, 4, 4)
    dims = len(g.shape(x)) - 2
    op = g.one("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LpPool")
    if op.startswith("Global"):
        g.add(op, [x])
        return
    k = int(g.one(2, 3))
    attrs: dict[str, Any] = {"kernel_shape": [k] * dims, "strides": [int(g.one(1, 2))] * dims}
    attrs |= g.one({}, {"pads": [1] * 2 * dims}, {"auto_pad": "SAME_UPPER"}, {"pads": [0] * dims + [1] * dims})
    if op == "AveragePool":
        attrs |= g.one(
            {},
            {"count_include_pad": 1},
            {"ceil_mode": 1} if g.opset >= 10 else {},
            {"dilations": [2] * dims} if g.opset >= 19 else {},
        )
    g.add(op, [x], **attrs)


def _axes(g: Grower, op: str, x: str, axes: Sequence[int], since: int, **attrs: Any) -> str:
    if g.opset < since:
        return g.add(op, [x], axes=list(axes), **attrs)
    return g.add(op, [x, g.ints(*axes)], **attrs)


@move(1)
def reduce(g: Grower) -> None:
    x = g.pick(2, 3, 4)
    rank = len(g.shape(x))
    axes = sorted(int(a) for a in g.random.choice(range(1, rank), int(g.random.integers(1, rank)), replace=False))
    op = g.one(
        "ReduceMean",
        "ReduceSum",
        "ReduceMax",
        "ReduceMin",
        "ReduceL2",
        "ReduceSumSquare",
        "ReduceL1",
        "ReduceLogSumExp",
    )
    _axes(g, op, x, axes, 13 if op == "ReduceSum" else 18, keepdims=int(g.one(0, 1)))


@move(1)
def arrange(g: Grower) -> None:
    """Move elements: transposes, reshapes, squeezes, slices, concatenations."""
    x = g.pick(2, 3, 4)
    shape = g.shape(x)
    rank = len(shape)
    kind = g.one(
        "Transpose",
        "Reshape",
        "Flatten",
        "Unsqueeze",
        "Slice",
        "Concat",
        "Split",
        "Pad",
        "Tile",
        "Expand",
        "Gather",
        "Space",
    )
    if kind == "Transpose":
        g.add(kind, [x], perm=[0, *(int(p) + 1 for p in g.random.permutation(rank - 1))] if g.chance(0.8) else None)
    elif kind == "Reshape":
        g.add(
            kind,
            [x, g.ints(*g.one([0, -1], [-1, *shape[1:]], [0, *shape[:0:-1]], [0, 1, *shape[1:]], [-1, shape[-1]]))],
        )
    elif kind == "Flatten":
        g.add(kind, [x], axis=int(g.one(1, 1, rank - 1)))
    elif kind == "Unsqueeze":
        y = _axes(g, kind, x, [int(g.one(1, rank))], 13)
        if g.chance(0.4):
            _axes(g, "Squeeze", y, [g.shape(y).index(1)], 13)
    elif kind == "Slice":
        axis, step = int(g.random.integers(1, rank)), int(g.one(1, 1, 2))
        if g.opset < 10:
            g.add(kind, [x], axes=[axis], starts=[int(g.one(0, 1))], ends=[int(g.one(-1, 9999))])
        else:
            g.add(kind, [x, g.ints(int(g.one(0, 1))), g.ints(int(g.one(-1, 9999))), g.ints(axis), g.ints(step)])
    elif kind == "Concat":
        fitting = [
            n
            for n, v in g.values.items()
            if v[0].dtype == np.float32 and v[0].shape[:1] + v[0].shape[2:] == shape[:1] + shape[2:]
        ]
        fitting = [n for n in fitting if len(g.shape(n)) == rank]
        g.add(kind, [x, *map(str, g.random.choice(fitting, int(g.one(1, 2))))], axis=1)
    elif kind == "Split":
        axis = int(g.random.integers(1, rank))
        if shape[axis] % 2 == 0:
            g.add(kind, [x], 2, axis=axis, **({"num_outputs": 2} if g.opset >= 18 else {}))
    elif kind == "Pad":
        pads = [0] * 2 * rank
        pads[-1], pads[rank - 1] = int(g.one(0, 1)), int(g.one(0, 1))
        g.add(kind, [x], pads=pads) if g.opset < 11 else g.add(kind, [x, g.ints(*pads)], mode=g.one("constant", "edge"))
    elif kind == "Tile":
        g.add(kind, [x, g.ints(*[1] * (rank - 1), int(g.one(1, 2)))])
    elif kind == "Expand" and g.opset >= 8:
        g.add(kind, [x, g.ints(*g.one([1] * rank, [1, *shape[1:]]))])
    elif kind == "Gather":
        axis = int(g.random.integers(1, rank))
        g.add(kind, [x, g.store(np.array(g.one(0, [0], [0, shape[axis] - 1]), np.int64))], axis=axis)
    elif kind == "Space" and rank == 4:
        g.add(*g.one(("DepthToSpace", [x]), ("SpaceToDepth", [x])), blocksize=2)
    else:
        raise _SkipError


@move(0.6)
def resize(g: Grower) -> None:
    x = g.pick(4)
    mode, by = (
        g.one("nearest", "linear"),
        g.one((2.0, 2.0), (2.0, 3.0), (1.5, 1.2), (0.5, 2.0) if g.opset > 9 else (1.0, 2.0)),
    )
    scales = np.float32([1, 1, *by])
    if g.opset < 9:
        g.add("Upsample", [x], mode=mode, scales=scales.tolist())
    elif g.opset < 11:
        g.add("Upsample" if g.opset == 9 else "Resize", [x, g.store(scales)], mode=mode)
    else:
        how = g.one("half_pixel", "asymmetric", "align_corners")
        g.add(
            "Resize",
            [x, g.store(np.zeros(0, np.float32)), g.store(scales)],
            mode=mode,
            coordinate_transformation_mode=how,
        )


@move(0.8)
def shape_arithmetic(g: Grower) -> None:
    x = g.pick(2, 3, 4, batch=True)
    whole = g.add("Shape", [x])
    first = g.add("Gather", [whole, g.ints(0)], axis=0)
    target = g.add("Concat", [first, g.ints(-1)], axis=0)
    g.add("Reshape", [x, target])


@move(0.7)
def integers(g: Grower) -> None:
    """Casts to integers and truth values and back, comparisons, choices."""
    x = g.pick(2, 3)
    kind = g.one("Cast", "Where", "ArgMax", "Greater", "TopK", "OneHot", "NonZero", "Half", "Double", "CumSum")
    if kind == "Cast":
        g.add("Cast", [g.add("Cast", [x], to=g.one(INT64, TensorProto.INT32, BOOL, TensorProto.INT8))], to=FLOAT)
    elif kind == "Half":
        g.add("Cast", [g.add("Cast", [x], to=TensorProto.FLOAT16)], to=FLOAT)
    elif kind == "Double":
        half = g.add("Cast", [x], to=TensorProto.DOUBLE)
        g.add("Cast", [g.add(g.one("Relu", "Identity", "Neg", "Abs"), [half])], to=FLOAT)
    elif kind == "Where" and g.opset >= 9:
        g.add("Where", [g.add("Greater", [x, g.store(np.float32(0))]), x, g.weight(np.float32(0.5))])
    elif kind == "ArgMax":
        g.add(kind, [x], axis=1, keepdims=int(g.one(0, 1)))
    elif kind == "Greater":
        g.add("Cast", [g.add(kind, [x, g.store(np.float32(0.1))])], to=FLOAT)
    elif kind == "TopK":
        g.add(kind, [x], 2, k=2, axis=-1) if g.opset < 10 else g.add(kind, [x, g.ints(2)], 2, axis=-1)
    elif kind == "OneHot" and g.opset >= 9:
        g.add(
            kind,
            [g.add("ArgMax", [x], axis=-1, keepdims=0), g.store(np.int64(g.shape(x)[-1])), g.store(np.float32([0, 1]))],
        )
    elif kind == "NonZero" and g.opset >= 9:
        g.add(kind, [x])
    elif kind == "CumSum" and g.opset >= 11:
        g.add(kind, [x, g.store(np.int64(1))])
    else:
        raise _SkipError


@move(0.8, since=10)
def rounded(g: Grower) -> None:
    """A pair of Q and DQ, as in a model that is quantized already."""
    x = g.pick(2, 3, 4)
    scale, zero = g.store(np.float32(0.05)), g.store(g.one(np.uint8(128), np.int8(0)))
    q = g.add("QuantizeLinear", [x, scale, zero])
    g.add("DequantizeLinear", [q, scale, zero])


@move(0.7)
def attention(g: Grower) -> None:
    x = g.pick(3)
    width = g.shape(x)[2]
    q, k, v = (g.add("MatMul", [x, g.weight((g.real(width, width) / width**0.5).astype(np.float32))]) for _ in range(3))
    scores = g.add("MatMul", [q, g.add("Transpose", [k], perm=[0, 2, 1])])
    scores = g.add("Div", [scores, g.store(np.float32(width**0.5))])
    axis = {} if g.opset >= 13 else {"axis": 2}
    mixed = g.add("MatMul", [g.add("Softmax", [scores], **axis), v])
    g.add("Add", [x, mixed])


@move(0.4, since=12)
def einsum(g: Grower) -> None:
    x = g.pick(3)
    g.add("Einsum", [x, g.weight(g.real(g.shape(x)[2], 5))], equation=g.one("abc,cd->abd", "abc,cd->adb"))


@move(0.5)
def layer_norm_parts(g: Grower) -> None:
    x = g.pick(2, 3)
    mean = _axes(g, "ReduceMean", x, [len(g.shape(x)) - 1], 18, keepdims=1)
    centred = g.add("Sub", [x, mean])
    square = g.add("Mul", [centred, centred]) if g.chance(0.5) else g.add("Pow", [centred, g.store(np.float32(2))])
    variance = _axes(g, "ReduceMean", square, [len(g.shape(x)) - 1], 18, keepdims=1)
    root = g.add("Sqrt", [g.add("Add", [variance, g.store(np.float32(1e-5))])])
    y = g.add("Div", [centred, root])
    g.add("Mul", [y, g.weight(g.real(g.shape(x)[-1], scale=1.0))])


@move(0.5)
def dropout(g: Grower) -> None:
    g.add("Dropout", [g.pick()], int(g.one(1, 1, 2)))


@move(0.4)
def constants_only(g: Grower) -> None:
    a = g.add("Exp", [g.store(g.real(2, 3))])
    x = g.pick(2, 3)
    total = _axes(g, "ReduceSum", a, [0, 1], 13, keepdims=0)
    g.add("Mul", [x, total])


def _value(name: str, kind: int = FLOAT, shape: Any = None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


@move(0.8)
def branch(g: Grower) -> None:
    """An If whose branches read outer tensors and hold weights, the same name in both at times."""
    x = g.pick(2, 3)
    width = g.shape(x)[-1]
    shared = g.store(g.real(width, 3))
    bodies: list[GraphProto] = []
    for side, op in (("a", "Relu"), ("b", "Tanh")):
        own = [numpy_helper.from_array(g.real(3), f"bias_{'x' if g.chance(0.3) else g.count}{side}")]
        tag = f"{side}{g.count}"
        nodes = [
            helper.make_node("MatMul", [x, shared], [f"m{tag}"], f"body_{tag}"),
            helper.make_node("Add", [f"m{tag}", own[0].name], [f"s{tag}"]),
            helper.make_node(op, [f"s{tag}"], [f"o{tag}"]),
        ]
        bodies.append(helper.make_graph(nodes, side, [], [_value(f"o{tag}")], own))
    flag = g.store(np.array(bool(g.one(0, 1))))
    if g.chance(0.5):
        total = _axes(g, "ReduceSum", x, list(range(len(g.shape(x)))), 13, keepdims=0)
        flag = g.add("Greater", [total, g.store(np.float32(0))])
    g.put(helper.make_node("If", [flag], [g.name()], g.name("n"), then_branch=bodies[0], else_branch=bodies[1]))


@move(0.5)
def loop(g: Grower) -> None:
    """A Loop that multiplies its state by a weight a few times; the weight stands outside or inside."""
    x = g.pick(2)
    width = g.shape(x)[1]
    w = g.real(width, width) / width
    inside = g.chance(0.5)
    tag = str(g.count)
    weight = f"loop_w{tag}" if inside else g.store(w.astype(np.float32))
    nodes = [
        helper.make_node("MatMul", [f"state{tag}", weight], [f"p{tag}"]),
        helper.make_node("Tanh", [f"p{tag}"], [f"next{tag}"]),
        helper.make_node("Identity", [f"go{tag}"], [f"on{tag}"]),
        helper.make_node("Identity", [f"next{tag}"], [f"each{tag}"]),
    ]
    inputs = [_value(f"turn{tag}", INT64, []), _value(f"go{tag}", BOOL, []), _value(f"state{tag}")]
    outputs = [_value(f"on{tag}", BOOL, []), _value(f"next{tag}"), _value(f"each{tag}")]
    own = [numpy_helper.from_array(w.astype(np.float32), weight)] if inside else []
    body = helper.make_graph(nodes, "body", inputs, outputs, own)
    g.put(helper.make_node("Loop", [g.store(np.int64(2)), "", x], [g.name(), g.name()], body=body))


@move(0.4, since=9)
def scan(g: Grower) -> None:
    x = g.pick(3)
    _, _, width = g.shape(x)
    tag = str(g.count)
    weight = g.store((g.real(width, width) / width).astype(np.float32))
    nodes = [
        helper.make_node("MatMul", [f"e{tag}", weight], [f"p{tag}"]),
        helper.make_node("Relu", [f"p{tag}"], [f"o{tag}"]),
    ]
    body = helper.make_graph(nodes, "body", [_value(f"e{tag}")], [_value(f"o{tag}")])
    g.put(
        helper.make_node(
            "Scan", [x], [g.name()], body=body, num_scan_inputs=1, scan_input_axes=[1], scan_output_axes=[1]
        )
    )


@move(1.0, since=8)
def function(g: Grower) -> None:
    """A call of a local function, which may call another one."""
    x = g.pick(2, 3)
    width = g.shape(x)[-1]
    imports = [helper.make_opsetid("", g.opset), helper.make_opsetid("wild", 1)]
    if "Linear" not in g.functions:
        nodes = [helper.make_node("MatMul", ["a", "w"], ["m"]), helper.make_node("Add", ["m", "b"], ["o"])]
        g.functions["Linear"] = helper.make_function("wild", "Linear", ["a", "w", "b"], ["o"], nodes, imports)
        act = helper.make_node("LeakyRelu", ["h"], ["o"])
        act.attribute.append(onnx.AttributeProto(name="alpha", type=onnx.AttributeProto.FLOAT, ref_attr_name="slope"))
        nodes = [helper.make_node("Linear", ["a", "w", "b"], ["h"], domain="wild"), act]
        g.functions["Block"] = helper.make_function("wild", "Block", ["a", "w", "b"], ["o"], nodes, imports, ["slope"])
    op = g.one("Linear", "Block")
    inputs = [x, g.weight((g.real(width, 4) / width**0.5).astype(np.float32)), g.weight(g.real(4))]
    g.add(op, inputs, domain="wild", **({"slope": 0.2} if op == "Block" else {}))


@move(0.5)
def machine_learning(g: Grower) -> None:
    """Operators of ai.onnx.ml."""
    x = g.pick(2)
    width = g.shape(x)[1]
    op = g.one("Scaler", "Normalizer", "Imputer", "LinearRegressor", "Binarizer", "LinearClassifier")
    if op == "Scaler":
        g.add(op, [x], domain=ML, offset=g.real(width).tolist(), scale=(np.abs(g.real(width)) + 0.5).tolist())
    elif op == "Normalizer":
        g.add(op, [x], domain=ML, norm="L2")
    elif op == "Imputer":
        g.add(op, [x], domain=ML, imputed_value_floats=[0.5], replaced_value_float=0.0)
    elif op == "Binarizer":
        g.add(op, [x], domain=ML, threshold=0.1)
    elif op == "LinearRegressor":
        g.add(op, [x], domain=ML, coefficients=g.real(2 * width).tolist(), intercepts=[0.1, 0.2], targets=2)
    else:
        g.add(
            op,
            [x],
            2,
            domain=ML,
            coefficients=g.real(3 * width).tolist(),
            intercepts=[0.1, 0.2, 0.3],
            classlabels_ints=[0, 1, 2],
        )


@move(1.0, since=10)
def microsoft(g: Grower) -> None:
    """Operators that ONNX Runtime's own optimizer writes."""
    x = g.pick(2, 3)
    width = g.shape(x)[-1]
    op = g.one("Gelu", "FastGelu", "BiasGelu", "QuickGelu", "FusedMatMul", "SkipLayerNormalization",
               "SimplifiedLayerNormalization", "FusedConv", "FusedGemm", "Attention",
               "DynamicQuantizeMatMul")  # fmt: skip
    if op in ("Gelu", "QuickGelu"):
        g.add(op, [x], domain=MS)
    elif op == "FastGelu":
        g.add(op, [x, *([g.weight(g.real(width))] if g.chance(0.5) else [])], domain=MS)
    elif op == "BiasGelu":
        g.add(op, [x, g.weight(g.real(width))], domain=MS)
    elif op == "FusedMatMul":
        trans = int(g.one(0, 1))
        shape = (6, width) if trans else (width, 6)
        g.add(
            op,
            [x, g.weight((g.real(*shape) / 2).astype(np.float32))],
            domain=MS,
            transB=trans,
            alpha=float(g.one(1.0, 0.5)),
        )
    elif op == "SkipLayerNormalization":
        x = g.pick(3)
        width = g.shape(x)[-1]
        g.add(
            op,
            [
                x,
                x,
                g.weight(g.real(width, scale=1.0)),
                g.weight(g.real(width)),
                *([g.weight(g.real(width))] if g.chance(0.5) else []),
            ],
            domain=MS,
        )
    elif op == "SimplifiedLayerNormalization":
        g.add(op, [x, g.weight(g.real(width, scale=1.0))], axis=-1)
    elif op == "FusedConv":
        x = g.pick(4)
        g.add(
            op,
            [x, g.weight(g.real(4, g.shape(x)[1], 3, 3)), g.weight(g.real(4))],
            domain=MS,
            activation="Relu",
            pads=[1] * 4,
            kernel_shape=[3, 3],
        )
    elif op == "FusedGemm":
        x = g.pick(2)
        g.add(op, [x, g.weight(g.real(g.shape(x)[1], 5)), g.weight(g.real(5))], domain=MS, activation="Relu")
    elif op == "Attention":
        x = g.pick(3)
        width = g.shape(x)[-1]
        g.add(
            op,
            [x, g.weight((g.real(width, 3 * width) / 2).astype(np.float32)), g.weight(g.real(3 * width))],
            domain=MS,
            num_heads=int(g.one(1, 2)),
        )
    else:
        codes = np.asarray(g.random.integers(-100, 100, (width, 6)), np.int8)
        g.add(op, [x, g.store(codes), g.store(np.float32(0.01)), g.store(np.int8(0))], domain=MS)


@move(0.6, since=11)
def sequence(g: Grower) -> None:
    """Tensors in a sequence, as torch.chunk and unbind export them."""
    x = g.pick(2, 3)
    made, out = g.name("s"), g.name()
    axis = len(g.shape(x)) - 1
    g.pending.append(helper.make_node("SplitToSequence", [x, g.store(np.int64(2))], [made], axis=axis))
    if g.chance(0.5):
        g.put(helper.make_node("SequenceAt", [made, g.store(np.int64(0))], [out]))
    else:
        g.put(helper.make_node("ConcatFromSequence", [made], [out], axis=axis))


@move(0.5)
def all_known(g: Grower) -> None:
    """A layer whose inputs are all weights, or whose weight is computed from the data."""
    if g.chance(0.5):
        y = g.add("Conv", [g.weight(g.real(1, 2, 5, 5)), g.weight(g.real(3, 2, 3, 3))])
        after_layer(g, y, 3)
    else:
        x = g.pick(4)
        kernel = g.add("Mul", [g.weight(g.real(3, g.shape(x)[1], 1, 1)), g.store(np.float32(0.5))])
        scaled = g.add(
            "BatchNormalization",
            [kernel, *[g.weight((np.abs(g.real(g.shape(x)[1])) + 0.5).astype(np.float32)) for _ in range(4)]],
        )
        g.add("Conv", [x, scaled])


@move(0.4, since=23)
def newest(g: Grower) -> None:
    x = g.pick(4)
    g.add("Attention", [x, x, x])


def wild(seed: int) -> Wild:
    """The model of a seed. A few seeds give none at first and draw again, as the seed says."""
    for again in range(20):
        grower = Grower(seed * 20 + again)
        grower.start()
        grower.grow(int(grower.random.integers(3, 14)))
        try:
            proto = grower.finish()
            _check(proto, grower)
        except (NoModelError, onnx.checker.ValidationError, ValueError, RuntimeError):
            continue
        except Exception as error:  # ONNX Runtime's own errors share no class
            if "onnxruntime" not in type(error).__module__:
                raise
            continue
        return Wild(seed, proto, grower.feed)
    raise NoModelError(f"seed {seed}")


def _check(proto: ModelProto, grower: Grower) -> None:
    """The whole model runs, optimized or not, and gives the same."""
    deprecated = any(n.op_type == "GroupNormalization" for n in proto.graph.node) and grower.opset < 21
    if not deprecated:
        onnx.checker.check_model(proto)
    plain, optimized = open_model(proto), open_model(proto, optimized=True)
    for batch in BATCHES:
        feed = grower.feed(batch, 7)
        for a, b in zip(plain.run(None, feed), optimized.run(None, feed), strict=True):
            if a.shape != b.shape or (a.dtype.kind == "f" and not np.isfinite(a).all()):
                raise NoModelError
            if a.dtype.kind == "f" and np.abs(a - b).max(initial=0) > 1e-3 * max(1e-3, np.abs(a).max(initial=0)):
                raise NoModelError
