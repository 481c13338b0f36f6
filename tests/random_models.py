"""Random small models for property tests: every choice comes from one seed, and onnx and ONNX Runtime accept each."""

from __future__ import annotations

from collections.abc import Callable

import builders
import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL


class Writer:
    """Grows a graph of float tensors whose shapes it knows; nodes are drawn from what rewrites care about.

    Attributes:
        tensors: name to shape of every float tensor that can be read here; the batch is 2 but not always static.
    """

    def __init__(self, seed: int, *, static: bool = True) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[NodeProto] = []
        self.weights: dict[str, np.ndarray] = {}
        self.tensors: dict[str, tuple[int, ...]] = {}
        self.static = static
        self.count = 0

    def name(self, kind: str) -> str:
        self.count += 1
        return f"{kind}{self.count}"

    def pick(self, *, rank: int | None = None) -> str:
        fitting = [n for n, s in self.tensors.items() if rank is None or len(s) == rank]
        return str(self.random.choice(fitting)) if fitting else ""

    def choose(self, *options: object) -> object:
        return options[int(self.random.integers(len(options)))]

    def weight(self, array: np.ndarray) -> str:
        """A known value: an initializer, an old one again, or a Constant node."""
        kind = self.random.integers(4)
        if kind == 0:
            name = self.name("k")
            self.nodes.append(
                helper.make_node("Constant", [], [name], self.name("n"), value=numpy_helper.from_array(array))
            )
            return name
        for name, old in self.weights.items():
            if kind == 1 and old.dtype == array.dtype and old.shape == array.shape and (old == array).all():
                return name
        name = self.name("w")
        self.weights[name] = array
        return name

    def ints(self, *values: int) -> str:
        return self.weight(np.array(values, np.int64))

    def add(self, op: str, inputs: list[str], shape: tuple[int, ...], outputs: int = 1, **attributes: object) -> str:
        names = [self.name("t") for _ in range(outputs)]
        name = self.name("n") if self.random.integers(4) else ""
        self.nodes.append(helper.make_node(op, inputs, names, name, **attributes))
        self.tensors[names[0]] = shape
        return names[0]

    def step(self) -> None:
        """One more node, or a few that belong together."""
        x = self.pick()
        move: Callable[[str, tuple[int, ...]], None] = self.choose(
            self.identity, self.unary, self.again, self.binary, self.neutral, self.transpose, self.reshape,
            self.squeeze, self.flatten, self.slice, self.pad, self.concat, self.expand, self.cast, self.constant_chain,
            self.shape_arithmetic, self.split, self.dropout, self.gather, self.matmul,
        )  # type: ignore[assignment]  # fmt: skip
        move(x, self.tensors[x])

    def identity(self, x: str, shape: tuple[int, ...]) -> None:
        self.add("Identity", [x], shape)

    def unary(self, x: str, shape: tuple[int, ...]) -> None:
        self.add(str(self.choose("Relu", "Neg", "Abs", "Tanh", "Floor", "Sigmoid")), [x], shape)

    def again(self, x: str, shape: tuple[int, ...]) -> None:
        """The same node twice, one result minus half the other."""
        op = str(self.choose("Relu", "Abs", "Neg", "Exp"))
        a, b = self.add(op, [x], shape), self.add(op, [x], shape)
        half = self.add("Mul", [b, self.weight(np.float32(0.5))], shape)
        self.add("Sub", [a, half], shape)

    def binary(self, x: str, shape: tuple[int, ...]) -> None:
        same = [n for n, s in self.tensors.items() if s == shape]
        self.add(str(self.choose("Add", "Mul", "Sub")), [x, str(self.random.choice(same))], shape)

    def neutral(self, x: str, shape: tuple[int, ...]) -> None:
        op, value = self.choose(("Mul", 1.0), ("Add", 0.0), ("Sub", 0.0), ("Div", 1.0), ("Add", -0.0), ("Mul", 2.0))  # type: ignore[misc]
        wide = (1,) * int(self.random.integers(0, len(shape) + 1))
        self.add(op, [x, self.weight(np.full(wide, value, np.float32))], shape)

    def transpose(self, x: str, shape: tuple[int, ...]) -> None:
        if not shape:
            return
        perm = [int(p) for p in self.random.permutation(len(shape))]
        out = self.add("Transpose", [x], tuple(shape[p] for p in perm), perm=perm)
        if self.random.integers(2):
            back = [
                int(p) for p in (np.argsort(perm) if self.random.integers(2) else self.random.permutation(len(perm)))
            ]
            middle = self.tensors[out]
            self.add("Transpose", [out], tuple(middle[p] for p in back), perm=back)

    def reshape(self, x: str, shape: tuple[int, ...]) -> None:
        for _ in range(int(self.random.integers(1, 3))):
            size = int(np.prod(shape))
            options = [shape, (size,), (2, size // 2) if size % 2 == 0 else (1, size), (*shape, 1)]
            target = options[int(self.random.integers(len(options)))]
            written = list(target)
            if self.random.integers(2) and written:
                written[int(self.random.integers(len(written)))] = -1
            elif self.random.integers(2) and len(target) == len(shape) and target == shape:
                written = [0] * len(shape)
            x = self.add("Reshape", [x, self.ints(*written)], target)
            shape = target

    def squeeze(self, x: str, shape: tuple[int, ...]) -> None:
        axis = int(self.random.integers(0, len(shape) + 1))
        wide = (*shape[:axis], 1, *shape[axis:])
        y = self.add("Unsqueeze", [x, self.ints(axis)], wide)
        if self.random.integers(2):
            self.add("Squeeze", [y, self.ints(axis)], shape)

    def flatten(self, x: str, shape: tuple[int, ...]) -> None:
        axis = int(self.random.integers(0, len(shape) + 1))
        self.add("Flatten", [x], (int(np.prod(shape[:axis])), int(np.prod(shape[axis:]))), axis=axis)

    def slice(self, x: str, shape: tuple[int, ...]) -> None:
        if not shape:
            return
        axis = int(self.random.integers(len(shape)))
        end = int(self.choose(2**31 - 1, shape[axis], max(1, shape[axis] - 1)))  # type: ignore[call-overload]
        step = int(self.choose(1, 1, 2))  # type: ignore[call-overload]
        size = len(range(0, min(end, shape[axis]), step))
        inputs = [x, self.ints(0), self.ints(end), self.ints(axis), self.ints(step)]
        self.add("Slice", inputs, (*shape[:axis], size, *shape[axis + 1 :]))

    def pad(self, x: str, shape: tuple[int, ...]) -> None:
        if shape:
            pads = [0] * 2 * len(shape) if self.random.integers(2) else [1] + [0] * (2 * len(shape) - 1)
            self.add("Pad", [x, self.ints(*pads)], (shape[0] + pads[0], *shape[1:]))

    def concat(self, x: str, shape: tuple[int, ...]) -> None:
        if shape:
            times = int(self.random.integers(1, 3))
            self.add("Concat", [x] * times, (shape[0] * times, *shape[1:]), axis=0)

    def expand(self, x: str, shape: tuple[int, ...]) -> None:
        target = shape if self.random.integers(2) else (1,) * len(shape)
        if self.random.integers(3) == 0:
            self.add("Tile", [x, self.ints(*[1] * len(shape))], shape)
        else:
            self.add("Expand", [x, self.ints(*target)], shape)

    def cast(self, x: str, shape: tuple[int, ...]) -> None:
        if self.random.integers(2):
            self.add("Cast", [x], shape, to=FLOAT)
            return
        wide = int(self.choose(TensorProto.DOUBLE, TensorProto.FLOAT16))  # type: ignore[call-overload]
        out = self.add("Cast", [x], shape, to=wide)
        del self.tensors[out]
        self.add("Cast", [out], shape, to=FLOAT)

    def constant_chain(self, x: str, shape: tuple[int, ...]) -> None:
        """A value computed from initializers only."""
        rows = int(self.random.integers(1, 4))
        value = self.weight(self.random.standard_normal((rows, 4)).astype(np.float32))
        a = self.add("Transpose", [value], (4, rows), perm=[1, 0])
        b = self.add("Exp", [a], (4, rows))
        total = self.add("ReduceSum", [b, self.ints(0, 1)], (), keepdims=0)
        self.add("Mul", [x, total], shape)
        if self.random.integers(2):
            filled = self.add(
                "ConstantOfShape", [self.ints(*shape)], shape, value=numpy_helper.from_array(np.float32([0.5]))
            )
            self.add("Add", [x, filled], shape)

    def shape_arithmetic(self, x: str, shape: tuple[int, ...]) -> None:
        """Reshape to a shape that is picked from Shape(x) and put together again."""
        whole = self.add("Shape", [x], (len(shape),))
        parts = []
        for axis in range(len(shape)):
            size = self.add("Gather", [whole, self.ints(axis)], (1,))
            parts.append(size)
        joined = self.add("Concat", parts, (len(shape),), axis=0) if parts else whole
        for name in {whole, joined, *parts}:
            del self.tensors[name]
        self.add("Reshape", [x, joined], shape)

    def split(self, x: str, shape: tuple[int, ...]) -> None:
        if shape and shape[-1] % 2 == 0:
            names = [self.name("t"), self.name("t")]
            self.nodes.append(helper.make_node("Split", [x], names, self.name("n"), axis=-1))
            half = (*shape[:-1], shape[-1] // 2)
            self.tensors |= dict.fromkeys(names, half)

    def dropout(self, x: str, shape: tuple[int, ...]) -> None:
        self.add("Dropout", [x], shape, outputs=int(self.random.integers(1, 3)))

    def gather(self, x: str, shape: tuple[int, ...]) -> None:
        if shape:
            axis = int(self.random.integers(len(shape)))
            order = self.ints(*range(shape[axis]))
            self.add("Gather", [x, order], shape, axis=axis)

    def matmul(self, x: str, shape: tuple[int, ...]) -> None:
        if not shape:
            return
        weight = (self.random.standard_normal((shape[-1], 3)) / 4).astype(np.float32)
        y = self.add("MatMul", [x, self.weight(weight)], (*shape[:-1], 3))
        if self.random.integers(2):
            self.add("Add", [y, self.weight(np.arange(3, dtype=np.float32))], (*shape[:-1], 3))

    def branch(self) -> None:
        """An If whose branches read outer tensors and the same outer weight; its condition is known, or an input."""
        x = self.pick()
        shape = self.tensors[x]
        shared = self.name("w")
        self.weights[shared] = self.random.standard_normal(shape[-1:] or (1,)).astype(np.float32)
        graphs = []
        for op in ("Add", "Mul"):
            inner, out = self.name("b"), self.name("b")
            body = [
                helper.make_node(op, [x, shared], [inner], "body"),
                helper.make_node("Identity", [inner], [out], "body_out"),
            ]
            graphs.append(helper.make_graph(body, op, [], [helper.make_tensor_value_info(out, FLOAT, None)]))
        flag = self.weight(np.array(bool(self.random.integers(2)))) if self.random.integers(2) else "flag"
        out_shape = shape or (1,)
        self.add("If", [flag], out_shape, then_branch=graphs[0], else_branch=graphs[1])


def random_model(seed: int, *, nodes: int = 12, static: bool = True) -> onnx.ModelProto:
    """A model over x float [2 or N, 3, 4] and flag bool [], with up to five float outputs."""
    writer = Writer(seed, static=static)
    writer.tensors["x"] = (2, 3, 4)
    for _ in range(nodes):
        writer.step()
        if writer.random.integers(10) == 0:
            writer.branch()
    made = [n for n in writer.tensors if n != "x"]
    few = writer.random.choice(made, min(5, len(made)), replace=False)
    outputs = [builders.value(str(name), FLOAT, None) for name in sorted(few)]
    inputs = [builders.value("x", FLOAT, [2 if static else "N", 3, 4]), builders.value("flag", BOOL, [])]
    return builders.model(writer.nodes, inputs, outputs, writer.weights, check=False)


def random_feeds(seed: int) -> dict[str, np.ndarray]:
    """Feeds for `random_model`, with signed zeros among the values."""
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((2, 3, 4)).astype(np.float32)
    x[0, 0, :2] = (0.0, -0.0)
    return {"x": x, "flag": np.array(bool(seed % 2))}


def outputs(proto: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray] | None:
    """What ONNX Runtime computes, unoptimized; None where it fails, as it does on some bodies with captured scalars."""
    try:
        return builders.run(proto, feeds, optimized=False)
    except Exception as error:
        if "INVALID_GRAPH" in str(error) or "ShapeInferenceError" in str(error):
            raise  # the writer made an invalid model
        return None
