"""How does a random model grow? A node joins only after ONNX Runtime has run it alone, for two batch sizes.

So shapes and types are known by running and never derived here, and what the runtime refuses is no part of a model.
What nodes there are to draw, the modules of moves register.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

BATCHES = (2, 3)
LARGEST = 1e4
ML, MS = "ai.onnx.ml", "com.microsoft"
OPSETS = (7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 23, 23)
FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
Values = tuple[np.ndarray, ...]  # of one tensor, a batch size each


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
            raise SkipError
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
            SkipError: it does not.
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
                    raise SkipError
                if array.size > 20000:
                    raise SkipError
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
            raise SkipError from error
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
        if self.chance(0.08):
            self.inputs["unused"] = (3,)
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
            except SkipError:
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
        if self.chance(0.05):  # an input that is an output itself
            outputs.append(str(self.random.choice(list(self.inputs))))
        if self.weights and self.chance(0.05):  # a weight that is an output itself
            constants.add(given := str(self.random.choice(list(self.weights))))
            self.values[given] = (self.weights[given],) * 2
            outputs.append(given)
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
        model = self._model(nodes, inputs, [self._info(n) for n in dict.fromkeys(outputs)], weights)
        return with_odd_names(model, self.random) if self.chance(0.1) else model

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


class SkipError(Exception):
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


def with_odd_names(model: ModelProto, random: np.random.Generator) -> ModelProto:
    """The model with names as some exporters write them, but for its ports and what stands in bodies and functions."""
    held = {n for node in model.graph.node for n in _reads(node)[sum(map(bool, node.input)) :]}
    kept = held | {port.name for port in (*model.graph.input, *model.graph.output)} | {""}
    odd = ("a b", "módulo/층", "x:0", "[0].weight", "{a}", "quote'\"", "a\\b", "--flag", "%s", "*")
    new: dict[str, str] = {}

    def name(old: str) -> str:
        return old if old in kept else new.setdefault(old, f"{odd[int(random.integers(len(odd)))]}{len(new)}")

    for node in model.graph.node:
        node.input[:] = [name(n) for n in node.input]
        node.output[:] = [name(n) for n in node.output]
        node.name = node.name and f"{node.name} {odd[int(random.integers(len(odd)))]}"
    for tensor in model.graph.initializer:
        tensor.name = name(tensor.name)
    return model


def open_model(proto: ModelProto, *, optimized: bool = False) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimized else level.ORT_DISABLE_ALL
    return ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


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
