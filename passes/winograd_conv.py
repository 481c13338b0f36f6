"""Which convolutions along one axis are faster by Winograd's minimal filtering: fewer products for the same sums?"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, prod
from typing import ClassVar, Literal

import numpy as np

from onnxcomp.graph.ir import Array, Constant, Graph, Node, Tensor, Variable
from onnxcomp.graph.shapes import infer
from onnxcomp.graph.types import Shapes
from onnxcomp.layers.affine import linear
from onnxcomp.layers.layer import Layer, UnfitError, multiplies
from onnxcomp.layers.rows import LayerInputs
from onnxcomp.manager.base import CostModel, Guarantee, Outcome, Pass, PassContext, Stage, option
from onnxcomp.ops.facts import Operators
from onnxcomp.targets.table import find

FLOAT32 = np.dtype(np.float32)
POINTS = (
    Fraction(0),
    *(sign * Fraction(n, d) for n, d in ((1, 1), (2, 1), (1, 2)) for sign in (1, -1)),
    Fraction(4),
    Fraction(-1, 4),
)
TILES = {3: 6, 4: 6, 5: 6, 6: 4, 7: 4}  # results of a tile, by the length of the kernel: more lose digits
BIAS = 2  # a Conv's port
LEAST_WORK = 1 << 24  # multiply-accumulates; smaller ones save microseconds, if anything
LEAST_CHANNELS = 32  # with fewer, turning the data into tiles takes what the products save
WORTH = 0.9  # of the time that its kernel takes otherwise, at most
ALIKE = 1.1  # of the time of 8-bit integers: what loses nothing goes before them where it takes about as long
WHOLE = 0.97  # of the time that the model takes otherwise
REARRANGES = 13  # the opset since which all operators that are written take what they are given


@dataclass(frozen=True)
class WinogradConv(Pass):
    """A long Conv along one axis multiplies tiles: m results of a kernel of r take m + r - 1 products and not m r.

    S. Winograd, Arithmetic Complexity of Computations (1980); A. Lavin and S. Gray, arXiv:1509.09308. The data are cut
    into tiles and turned by B^T (a Conv of one channel), multiplied with the turned weights G w (a Conv of one group a
    point), and turned back by A^T. The file keeps the weights as they are: G w is computed when the model is loaded.
    ONNX Runtime's CPU provider multiplies directly: [1, 256, 512] with a kernel [512, 256, 5] took 0.49 to 0.58 of its
    time in tiles of 6 (benchmarks/winograd_conv.py, one thread, AVX2), in float32, with 100 dB and more.

    Only what is measured to be faster is rewritten, so nothing is where times are not measured.
    """

    name: ClassVar[str] = "winograd-conv"
    guarantee: ClassVar[Guarantee] = Guarantee.CLOSE
    stage: ClassVar[Stage] = Stage.INTEGER  # no other pass should clip, prune or train what is in tiles

    than: Literal["float", "integers"] = option(
        "float", "what it has to be faster than: the Conv as it is, or 8-bit integers too, for passes in front of those"
    )

    def run(self, graph: Graph, context: PassContext) -> Outcome:
        """Rewrite every such Conv of the main graph."""
        outcome = Outcome()
        costs, wanted = context.costs, self.selects(graph)
        if costs is None or not find(context.target).timed_here or graph.opset < REARRANGES:
            return outcome
        forms, refused = _forms(graph, context, {node.name for node in graph.nodes if wanted(node)})
        for name, why in refused.items():
            outcome.skip(name, why)
        names = self._faster(graph, context, costs, list(forms), outcome)
        share = self._share(graph, context, costs, names) if names else None
        if share is None or share > WHOLE:
            for name in names:
                outcome.skip(name, "measured: the whole model is no faster with it in tiles")
            return outcome
        for name in names:
            forms[name].write(graph)
            outcome.change(name, f"tiles of {forms[name].tile}")
        graph.sort()
        outcome.summary = f"{len(names)} Conv multiply tiles: {share:.2f} of the model's time before"
        return outcome

    def _faster(
        self, graph: Graph, context: PassContext, costs: CostModel, names: list[str], outcome: Outcome
    ) -> list[str]:
        """The convolutions whose kernels pay."""
        if not names:
            return []
        exact = costs.node_times_us(graph)
        tiles = _times(graph, context, costs, names, Form.write)
        integers = _times(graph, context, costs, names, Form.on_integers) if self.than == "integers" else {}
        found = []
        for name in names:
            before, after, integer = exact.get(name, 0.0), tiles.get(name, 0.0), integers.get(name, 0.0)
            if 0 < after <= WORTH * before and (not integer or after <= ALIKE * integer):
                found.append(name)
            else:
                others = f"{before:.0f} us as it is" + (f", {integer:.0f} us in 8-bit integers" if integer else "")
                outcome.skip(name, f"measured: {after:.0f} us in tiles, {others}")
        return found

    def _share(self, graph: Graph, context: PassContext, costs: CostModel, names: list[str]) -> float:
        """The model's time with convolutions in tiles as a share of that without; 1 where integers are clearly faster.

        Whole models are measured in turns and by processor time, what single kernels are not.
        """
        before, after = costs.latency_ms(graph), costs.latency_ms(_written(graph, context, names, Form.write)[0])
        if self.than == "integers":
            integer = costs.latency_ms(_written(graph, context, names, Form.on_integers)[0])
            if after > ALIKE * integer:
                return 1.0
        return after / before


@dataclass(frozen=True)
class Form:
    """One convolution, and how it is written in tiles.

    Attributes:
        lines: the data have so many beside one another, each filtered by itself.
        length: of one, before padding.
        pads: values put before and behind each.
        taps: of the kernel.
    """

    layer: Layer
    lines: int
    length: int
    pads: tuple[int, int]
    taps: int

    @classmethod
    def of(cls, graph: Graph, node: Node, shapes: Shapes, context: PassContext) -> Form:
        """For a convolution along one axis.

        Raises:
            UnfitError: it has no such form, or is too small to gain.
        """
        layer = linear(graph, node, context.operators, graph.kept_inputs.keys())
        rows, shape = layer.rows, shapes.shape(node.inputs[0])
        assert rows is not None
        axis = _long(rows.kernel)
        sizes = [size for size in (shape or ())[2:] if isinstance(size, int)]
        if shape is None or len(sizes) != len(shape) - 2 or len(sizes) != len(rows.kernel):
            raise UnfitError("the size of its data is not known")
        if why := _refusal(layer, rows, axis, sizes):
            raise UnfitError(why)
        if layer.use.shared or graph.is_output(layer.constant):
            raise UnfitError("its weight is shared")
        first, last = rows.pads[axis], rows.pads[axis + len(sizes)]
        form = cls(layer, prod(sizes) // sizes[axis], sizes[axis], (first, last), rows.kernel[axis])
        if form.places < 1 or layer.constant.size * form.places * form.lines < LEAST_WORK:
            raise UnfitError("too small: turning its data into tiles costs more than it saves")
        return form

    @property
    def tile(self) -> int:
        """Results of a tile."""
        return TILES[self.taps]

    @property
    def points(self) -> int:
        """Products of a tile, and values that it reads."""
        return self.tile + self.taps - 1

    @property
    def places(self) -> int:
        """Results of a line."""
        return self.length + sum(self.pads) - self.taps + 1

    @property
    def tiles(self) -> int:
        """Of a line."""
        return ceil(self.places / self.tile)

    def write(self, graph: Graph) -> set[str]:
        """Rewrite the convolution; the names of all nodes that do its work. The node itself multiplies the tiles."""
        node, there, bias = self.layer.node, len(graph.nodes), self.layer.node.constant(BIAS)
        out, n = node.outputs[0], self.points
        outputs, inputs = self.layer.outputs, self.layer.inputs
        back, weight, forth = (matrix.astype(np.float32) for matrix in matrices(self.tile, self.taps))
        behind = (self.tiles - 1) * self.tile + n - self.length - self.pads[0]
        wide = self.lines * self.tiles
        op = _Writer(graph, node.name)

        x = op("Reshape", node.inputs[0], [-1, 1, self.lines, self.length])
        pads = [0, self.pads[0], 0, behind]
        x = op("Conv", x, forth[:, None, None, :], kernel_shape=[1, n], strides=[1, self.tile], pads=pads)
        # [N C, n, lines, tiles]
        x = op("Reshape", x, [-1, inputs, n, wide])
        x = op("Reshape", op("Transpose", x, perm=[0, 2, 1, 3]), [-1, n * inputs, 1, wide])
        w = op("Reshape", self.layer.constant, [outputs, inputs, self.taps])
        w = op("Transpose", op("MatMul", w, weight.T), perm=[2, 0, 1])  # [n, M, C], at load
        node.inputs = [x, op("Reshape", w, [n * outputs, inputs, 1, 1])]
        node.attrs, node.origin = {"group": n, "kernel_shape": [1, 1]}, {}
        product = Variable(graph.unique_name(f"{node.name}_tiles"), FLOAT32)
        node.outputs = [product]  # [N, n M, 1, lines tiles]

        y = op("MatMul", back, op("Reshape", product, [-1, n, outputs * wide]))
        y = op("Transpose", op("Reshape", y, [-1, self.tile, outputs * self.lines, self.tiles]), perm=[0, 2, 3, 1])
        self._ended(op, y, out, bias)
        return {node.name, *(new.name for new in graph.nodes[there:])}

    def _ended(self, op: _Writer, tiles: Variable, out: Variable, bias: Constant | None) -> None:
        """Give results [N, M lines, tiles, m] the convolution's own shape, without what is too much, and its bias."""
        rows = self.layer.rows
        assert rows is not None
        rank, axis, whole = len(rows.kernel), _long(rows.kernel), self.tiles * self.tile
        sizes = [self.lines] * rank
        sizes[axis] = whole
        steps: list[tuple[str, list[Tensor | Array | list[int]]]] = [("Reshape", [[-1, self.layer.outputs, *sizes]])]
        if whole > self.places:
            steps.append(("Slice", [[0], [self.places], [axis + 2]]))
        if bias is not None:
            steps.append(("Add", [bias.values.reshape(-1, *[1] * rank)]))
        x = tiles
        for name, more in steps[:-1]:
            x = op(name, x, *more)
        name, more = steps[-1]
        op(name, x, *more, outputs=[out])

    def on_integers(self, graph: Graph) -> set[str]:
        """Let the convolution multiply 8-bit integers, with scales that mean nothing; as `write`, to be timed only."""
        node, there = self.layer.node, len(graph.nodes)
        op, out = _Writer(graph, node.name), node.outputs[0]
        step = np.asarray(self.layer.constant.values, np.float32)
        step = np.asarray(max(float(np.abs(step).max()), 1e-6) / 127, np.float32)
        codes = np.rint(self.layer.constant.values / step).astype(np.int8)
        one, zero = np.asarray(1, np.float32), np.asarray(128, np.uint8)
        x = op("DequantizeLinear", op("QuantizeLinear", node.inputs[0], one, zero), one, zero)
        node.inputs = [x, op("DequantizeLinear", codes, step, np.asarray(0, np.int8))]
        node.outputs = [Variable(graph.unique_name(f"{node.name}_coarse"), FLOAT32)]
        op("DequantizeLinear", op("QuantizeLinear", node.outputs[0], one, zero), one, zero, outputs=[out])
        return {node.name, *(new.name for new in graph.nodes[there:])}


@dataclass(frozen=True)
class _Writer:
    """Adds nodes to a main graph; numbers among the inputs become initializers."""

    graph: Graph
    base: str

    def __call__(
        self,
        op: str,
        *inputs: Tensor | Array | list[int],
        outputs: Sequence[Tensor] | int = 1,
        **attrs: object,
    ) -> Variable:
        name = f"{self.base}_{op.lower()}"
        given = [value if isinstance(value, Constant | Variable) else self._stored(name, value) for value in inputs]
        made: Variable = self.graph.add_node(op, given, name=name, attrs=attrs, outputs=outputs).outputs[0]
        return made

    def _stored(self, name: str, value: Array | list[int]) -> Constant:
        return self.graph.add_constant(f"{name}_by", np.asarray(value, np.int64) if isinstance(value, list) else value)


def matrices(tile: int, taps: int) -> tuple[Array, Array, Array]:
    """A^T [m, n], G [n, r] and B^T [n, n] of F(m, r), n = m + r - 1, float64: y = A^T ((G w) * (B^T x)).

    By interpolation at n - 1 small points and at infinity, in exact fractions.
    """
    n = tile + taps - 1
    points = POINTS[: n - 1]

    def factors(roots: Sequence[Fraction]) -> list[Fraction]:
        """Coefficients of the product of (x - root), the constant one first."""
        found = [Fraction(1)]
        for root in roots:
            found = [low - root * high for low, high in zip([Fraction(0), *found], [*found, Fraction(0)], strict=True)]
        return found

    others = [[p for p in points if p != point] for point in points]
    scales = [prod((point - p for p in rest), start=Fraction(1)) for point, rest in zip(points, others, strict=True)]
    back = [[point**row for point in points] + [Fraction(row == tile - 1)] for row in range(tile)]
    weight = [[point**tap / scale for tap in range(taps)] for point, scale in zip(points, scales, strict=True)]
    weight.append([Fraction(tap == taps - 1) for tap in range(taps)])
    forth = [[*factors(rest), Fraction(0)] for rest in others] + [factors(points)]
    a, g, b = (np.array([[float(value) for value in row] for row in matrix]) for matrix in (back, weight, forth))
    return a, g, b


def _along_one_axis(node: Node, operators: Operators) -> bool:
    """Whether a node convolves with a kernel that is longer than 1 along one axis alone."""
    if node.op != "Conv" or not multiplies(node, operators):
        return False
    weight = node.constant(1)
    return weight is not None and len(weight.shape) in (3, 4) and sum(size > 1 for size in weight.shape[2:]) == 1


def _long(kernel: Sequence[int]) -> int:
    """Which axis a kernel is long along."""
    return max(range(len(kernel)), key=lambda axis: kernel[axis])


def _refusal(layer: Layer, rows: LayerInputs, axis: int, sizes: Sequence[int]) -> str:
    """Why a convolution has no form in tiles that may be faster; empty where it may."""
    rank = len(sizes)
    if layer.constant.dtype != FLOAT32:
        return f"{layer.constant.name} is {layer.constant.dtype.name}"
    if layer.group != 1:
        return "it has groups"
    if layer.node.input(BIAS) is not None and layer.node.constant(BIAS) is None:
        return "its bias is computed"
    if any(step != 1 for step in (*rows.strides, *rows.dilations)):
        return "it has strides or dilations"
    if rows.auto_pad not in ("NOTSET", "VALID"):
        return "its padding is automatic"
    if any(pad < 0 for pad in rows.pads) or any(rows.pads[a] or rows.pads[a + rank] for a in range(rank) if a != axis):
        return "its padding is negative, or along another axis"
    if axis != rank - 1 and sizes[-1] != 1:
        return "its kernel does not lie along the last axis"
    if rows.kernel[axis] not in TILES:
        return f"no tiles are known to gain for a kernel of {rows.kernel[axis]}"
    if min(layer.inputs, layer.outputs) < LEAST_CHANNELS:
        return "it has few channels: turning its data into tiles costs more than it saves"
    return ""


def _forms(graph: Graph, context: PassContext, names: Collection[str]) -> tuple[dict[str, Form], dict[str, str]]:
    """The convolutions along one axis among some nodes: those that have a form, and why the others have none."""
    nodes = [node for node in graph.nodes if node.name in names and _along_one_axis(node, context.operators)]
    shapes = infer(graph, declared=False) if nodes else None
    found: dict[str, Form] = {}
    refused: dict[str, str] = {}
    for node in nodes:
        assert shapes is not None
        try:
            found[node.name] = Form.of(graph, node, shapes, context)
        except UnfitError as error:
            refused[node.name] = str(error)
    return found, refused


def _written(
    graph: Graph, context: PassContext, names: list[str], write: Callable[[Form, Graph], set[str]]
) -> tuple[Graph, dict[str, set[str]]]:
    """A copy of the graph with some convolutions written another way, and the nodes that do the work of each."""
    other = graph.clone()
    parts = {name: write(form, other) for name, form in _forms(other, context, names)[0].items()}
    other.sort()
    return other, parts


def _times(
    graph: Graph, context: PassContext, costs: CostModel, names: list[str], write: Callable[[Form, Graph], set[str]]
) -> dict[str, float]:
    """Microseconds of convolutions as they are written in a copy of the graph, by name."""
    other, parts = _written(graph, context, names, write)
    times = costs.node_times_us(other)
    return {name: sum(times.get(part, 0.0) for part in members) for name, members in parts.items()}
