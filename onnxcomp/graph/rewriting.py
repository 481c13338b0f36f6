"""How is one node replaced by others that compute the same? What a rewrite sees of the node, and how it answers.

A rewrite is one function for one operator. It looks at the node through its `Site`, makes new nodes with `Site.op`, and
returns the tensors that take the place of the node's outputs:

    def hard_sigmoid(site: Site) -> Tensor:
        return site.op("Clip", site.op("Add", site.op("Mul", site.x, site.attr("alpha", 0.2)), 0.5), 0.0, 1.0)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np

from onnxcomp.graph.ir import Array, Constant, Graph, Node, Tensor, Variable
from onnxcomp.graph.types import Shapes

AXES_AS_INPUT = 18  # from this opset on all Reduce operators take their axes as an input


class CannotRewriteError(Exception):
    """A rewrite does not fit this node; the message says why."""


Replacement: TypeAlias = Tensor | Sequence[Tensor | None]
Rewrite: TypeAlias = Callable[["Site"], Replacement | None]
"""Returns what replaces the outputs, in order (None where nobody reads one), or None: the node is right as it stands.

Raises CannotRewriteError where neither holds. New nodes are made by `Site.op` only; those of a failed rewrite go.
"""

Operand: TypeAlias = Tensor | float | Sequence[int] | Array | None


class Pool:
    """Small constants that rewrites need, each value once a graph."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._known: dict[tuple[str, tuple[int, ...], bytes], Constant] = {}

    def constant(self, value: Array) -> Constant:
        """The initializer with this value; a new one where there is none yet."""
        key = (value.dtype.name, value.shape, value.tobytes())
        if key not in self._known:
            self._known[key] = self.graph.add_constant("form", value)
        return self._known[key]


class Site:
    """One node to be replaced.

    Attributes:
        graph: the main graph that holds it.
        node: the node.
        shapes: of all tensors that stood in the graph before rewriting.
        opset: of the default domain.
        made: the nodes made so far.

    Args:
        learned: initializers that training moves.
    """

    def __init__(
        self,
        graph: Graph,
        node: Node,
        shapes: Shapes,
        pool: Pool | None = None,
        learned: frozenset[Tensor] = frozenset(),
    ) -> None:
        self.graph = graph
        self.node = node
        self.shapes = shapes
        self.opset = graph.opset
        self.made: list[Node] = []
        self._pool = pool or Pool(graph)
        self._learned = learned

    # -- looking -----------------------------------------------------------------------------------------------

    @property
    def x(self) -> Tensor:
        """The first input."""
        return self.tensor(0)

    def tensor(self, port: int) -> Tensor:
        """The tensor at an input port.

        Raises:
            CannotRewriteError: it is omitted.
        """
        found = self.node.input(port)
        if found is None:
            raise CannotRewriteError(f"input {port} is missing")
        return found

    def attr(self, name: str, default: Any) -> Any:
        """An attribute, strings decoded; `default` where it is not given."""
        value = self.node.attrs.get(name, default)
        return value.decode() if isinstance(value, bytes) else value

    def value(self, port: int) -> Array | None:
        """The fixed value at a port; None where it is omitted.

        Raises:
            CannotRewriteError: it is computed while the model runs.
        """
        if self.node.input(port) is None:
            return None
        constant = self.node.constant(port)
        if constant is None:
            raise CannotRewriteError(f"input {port} is known only when the model runs")
        return constant.values

    def shape(self, tensor: Tensor | None = None) -> tuple[int, ...]:
        """Shape of a tensor that stood in the graph before, in numbers; of the first input by default.

        Raises:
            CannotRewriteError: it is known only when the model runs.
        """
        found = self.shapes.static(self.x if tensor is None else tensor)
        if found is None:
            raise CannotRewriteError("a shape is known only when the model runs")
        return found

    def read(self, port: int = 0) -> bool:
        """Whether anything reads an output."""
        tensor = self.node.output(port)
        return tensor is not None and (bool(tensor.consumers) or self.graph.is_output(tensor))

    def learned(self, port: int) -> bool:
        """Whether training moves the initializer at a port."""
        return self.node.input(port) in self._learned

    def given(self) -> list[Tensor]:
        """All inputs that are not omitted."""
        return [t for t in self.node.inputs if t.name]

    @property
    def dtype(self) -> np.dtype[Any]:
        """dtype of the first input; float32 where inference does not know it."""
        return self.shapes.dtype(self.x) or np.dtype(np.float32)

    # -- making ------------------------------------------------------------------------------------------------

    def op(self, kind: str, *operands: Operand, outputs: int = 1, domain: str = "", **attrs: Any) -> Any:
        """A new node; gives its output, or a list of them where there are several.

        Args:
            operands: tensors; numbers, which become scalars of the site's dtype; sequences of integers, which become
                int64 vectors; arrays, kept as they are; None for an omitted input.
        """
        inputs = [self.as_tensor(operand) for operand in operands]
        name = f"{self.node.name}_{kind.lower()}"
        node = self.graph.add_node(kind, inputs, name=name, attrs=attrs, outputs=outputs, domain=domain)
        self.made.append(node)
        return node.outputs[0] if outputs == 1 else list(node.outputs)

    def as_tensor(self, operand: Operand) -> Tensor:
        """An operand of `op` as a tensor."""
        if isinstance(operand, Variable | Constant):
            return operand
        if operand is None:
            return Variable("")
        if isinstance(operand, np.ndarray | np.generic):
            return self._pool.constant(np.asarray(operand))
        if isinstance(operand, int | float):
            return self._pool.constant(np.asarray(operand, self.dtype))
        return self._pool.constant(np.asarray(operand, np.int64))

    def reduce(self, kind: str, x: Operand, axes: Sequence[int], *, keepdims: bool = True) -> Variable:
        """A Reduce operator over axes, written as the opset wants it."""
        if kind == "ReduceSum" or self.opset >= AXES_AS_INPUT:
            result: Variable = self.op(kind, x, list(axes), keepdims=int(keepdims))
            return result
        reduced: Variable = self.op(kind, x, keepdims=int(keepdims), axes=list(axes))
        return reduced

    def reshape(self, x: Operand, shape: Sequence[int]) -> Variable:
        """x under another shape; every size given."""
        result: Variable = self.op("Reshape", x, list(shape))
        return result

    def slice(self, x: Operand, axis: int, start: int, stop: int, step: int = 1) -> Variable:
        """x[start:stop:step] along one axis."""
        result: Variable = self.op("Slice", x, [start], [stop], [axis], [step])
        return result

    def again(self, **attrs: Any) -> list[Variable]:
        """The node itself once more with other attributes; gives all outputs. Attributes set to None go."""
        merged = {key: value for key, value in {**self.node.attrs, **attrs}.items() if value is not None}
        given = [t if t.name else None for t in self.node.inputs]
        return self._all(given, merged, len(self.node.outputs))

    def like(self, operands: Sequence[Operand], outputs: int = 1, **attrs: Any) -> list[Variable]:
        """A node of the same operator with other inputs; gives all outputs. Attributes set to None go."""
        merged = {key: value for key, value in {**self.node.attrs, **attrs}.items() if value is not None}
        return self._all(operands, merged, outputs)

    def _all(self, operands: Sequence[Operand], attrs: dict[str, Any], outputs: int) -> list[Variable]:
        found = self.op(self.node.op, *operands, outputs=outputs, domain=self.node.domain, **attrs)
        return found if isinstance(found, list) else [found]


def rewrite(
    graph: Graph,
    node: Node,
    rule: Rewrite,
    shapes: Shapes,
    pool: Pool | None = None,
    learned: frozenset[Tensor] = frozenset(),
) -> bool:
    """Let a rule replace a node, in place; outputs keep their names. The caller sorts the graph afterwards.

    Returns:
        Whether the node was replaced; False where the rule leaves it as it stands.

    Raises:
        CannotRewriteError: from the rule; the graph is then as it was.
    """
    site = Site(graph, node, shapes, pool, learned)
    there = len(graph.nodes)
    found: Replacement | None = None
    try:
        found = rule(site)
    finally:
        del graph.nodes[there:]
        if found is None:
            _unlink(site.made)
    if found is None:
        return False
    results = [found] if isinstance(found, Variable | Constant) else list(found)
    outputs = list(node.outputs)
    at = graph.nodes.index(node)
    graph.nodes[at : at + 1] = site.made
    _unlink([node])
    for made in site.made:
        if made.domain:
            graph.import_domain(made.domain)
    renamed: dict[Tensor, Tensor] = {}
    for output, result in zip(outputs, results, strict=False):
        if output.name and result is not None:
            _produce(graph, output, renamed.get(result, result), site.made, at)
            renamed.setdefault(result, output)
    return True


def _unlink(nodes: Sequence[Node]) -> None:
    for node in nodes:
        node.inputs.clear()
        node.outputs.clear()


def _produce(graph: Graph, output: Variable, result: Tensor, made: list[Node], at: int) -> None:
    """Let the new nodes make the old output tensor, so that its name and its readers stay."""
    maker = result.producer
    if maker is not None and maker in made:
        for reader in dict.fromkeys(result.consumers):
            for port, tensor in enumerate(reader.inputs):
                if tensor is result:
                    reader.inputs[port] = output
        for port, tensor in enumerate(maker.outputs):
            if tensor is result:
                maker.outputs[port] = output
        return
    name = graph.unique_name(f"{output.name}_identity")
    graph.nodes.insert(at + len(made), Node("Identity", name, {}, [result], [output]))
