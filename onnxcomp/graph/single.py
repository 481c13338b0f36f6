"""How does a graph compute in float32 what it computes in half precision, in bfloat16 or in double?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from onnx import TensorProto
from onnx.helper import tensor_dtype_to_np_dtype

from onnxcomp.graph.ir import Array, Constant, Graph, Node, Tensor, Variable, elem_type, is_onnx
from onnxcomp.graph.literals import constant_value
from onnxcomp.graph.port_types import FLOAT, Port, made_from_attributes, ports
from onnxcomp.graph.types import Shapes
from onnxcomp.ops.facts import Operators

SINGLE = np.dtype(np.float32)
OTHERS = frozenset({"float16", "bfloat16", "float64"})
_CODES = frozenset({TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE})
# attributes that name the type of an output, or of what is computed on the way
_TYPES = ("to", "dtype", "output_dtype", "output_datatype", "stash_type", "precision", "softmax_precision")
_SPELLING = frozenset({np.dtype(object), np.dtype(str)})


def unfit(name: str, dtype: np.dtype[np.generic]) -> str:
    """Why a pass that takes float32 weights leaves one alone, and what would help."""
    return f"{name} is {dtype.name}" + (": compute-float32 goes before" if dtype.name in OTHERS else "")


@dataclass
class Widened:
    """What became of the nodes that computed in another floating type.

    Attributes:
        nodes: those that compute in float32 now, with the type that they had.
        kept: those that could not, and why.
        casts: how many Casts were added.
    """

    nodes: dict[Node, str] = field(default_factory=dict)
    kept: dict[Node, str] = field(default_factory=dict)
    casts: int = 0


def compute_in_single(
    graph: Graph, shapes: Shapes, operators: Operators, wanted: Callable[[Node], bool] = lambda _: True
) -> Widened:
    """Let all tensors of another floating type be float32; inputs and outputs of the model keep theirs.

    Types follow from the ONNX schemas: a node that may not be fed float32 keeps what it has, between Casts, and so does
    one that puts tensors into a sequence or an optional value, or takes them out. Weights that nothing but a Cast to
    float32 reads are stored so, and nothing computes in their type: they stay as they are.

    Args:
        shapes: the types of all tensors.
        wanted: nodes that it answers false for keep their type.
    """
    return _Widening(graph, shapes, operators, wanted).run()


class _Widening:
    def __init__(self, graph: Graph, shapes: Shapes, operators: Operators, wanted: Callable[[Node], bool]) -> None:
        self.graph, self.shapes, self.operators, self.wanted = graph, shapes, operators, wanted
        self.done = Widened()
        self.homes: dict[Tensor, Graph] = {}  # the scope that makes or takes a tensor
        self.narrow: dict[Variable, Variable] = {}  # what a tensor is behind the Cast to its old type
        self.closed: set[Graph] = set()  # bodies that take and give what a sequence holds

    def run(self) -> Widened:
        for scope in self.graph.scopes():
            for tensor in (*scope.inputs, *(t for node in scope.nodes for t in node.outputs)):
                self.homes[tensor] = scope
        for node in self.graph.walk():
            if node.bodies and self._holds_others(node):
                self.closed |= {scope for body in node.bodies for scope in body.scopes()}
        nodes = [node for node in self.graph.walk() if self._touches(node)]
        for node in nodes:
            why = self._why_not(node)
            if why:
                self.done.kept[node] = why
            elif not _unpacks(node, self.shapes):
                self.done.nodes[node] = self._kind(node)
        if not self.done.nodes:
            return self.done
        types = {t: kind for node in nodes for t in (*node.inputs, *node.outputs) if (kind := self._other(t))}
        for scope in self.closed:
            for tensor in scope.inputs:
                types.pop(tensor, None)
        self._interface(types)
        for node in self.done.kept:
            self._fence(node, types)
        self._retype(types)
        return self.done

    # -- which nodes -------------------------------------------------------------------------------------------

    def _other(self, tensor: Tensor | None) -> int:
        """The element type of a tensor that is floating, and not float32; 0 for others."""
        dtype = self.shapes.dtype(tensor) if tensor is not None and tensor.name else None
        return elem_type(dtype) if dtype is not None and dtype.name in OTHERS else 0

    def _touches(self, node: Node) -> bool:
        held = any(self._other(tensor) for tensor in (*node.inputs, *node.outputs))
        return held or any(node.attrs.get(key) in _CODES for key in _TYPES)  # SequenceEmpty has no tensor to tell by

    def _kind(self, node: Node) -> str:
        found = (self.shapes.dtype(t) for t in (*node.inputs, *node.outputs) if self._other(t))
        return next((dtype.name for dtype in found if dtype is not None), "another type")

    def _holds_others(self, node: Node) -> bool:
        """Whether a sequence or an optional value stands at a port: those have no type that is followed here."""
        for port in ports(node, self.graph.opset, self.operators) or []:
            untyped = port.takes_others and not node.bodies and self.shapes.dtype(port.tensor(node)) is None
            if untyped or not port.takes_tensors:
                return True
        return False

    def _why_not(self, node: Node) -> str:
        if any(self.homes[tensor] in self.closed for tensor in node.outputs):
            return "a sequence holds what its body takes and gives"
        if self._holds_others(node):
            return "what a sequence or an optional value holds keeps its type"
        if node.bodies:  # what they hold changes, and with it what the node takes and gives
            return ""
        if not self.wanted(node):
            return "not selected by include and exclude"
        if self.graph.is_function(node):
            return "it calls a local function, which stays as it is"
        found = ports(node, self.graph.opset, self.operators)
        if found is None:
            return f"the ONNX standard does not describe {node.op} of {node.domain or 'this opset'}"
        if node.op == "BitCast":
            return "it reads bits, not numbers"
        if any(self.shapes.dtype(tensor) in _SPELLING for tensor in node.outputs):
            return "the digits that it writes would be others"
        mine = [port for port in found if self._other(port.tensor(node))]
        if any(FLOAT not in port.allowed for port in mine):
            return f"{node.op} has no float32 form in opset {self.graph.opset}"
        free = made_from_attributes(found)
        if any(port.output and port.variable in free and not self._names_type(node, port) for port in mine):
            return f"nothing tells which type {node.op} gives"
        return ""

    def _names_type(self, node: Node, port: Port) -> bool:
        """Whether an attribute names the type of an output, so that another can be written."""
        value = constant_value(node) if is_onnx(node.domain) else None
        held = value if value is not None else node.attrs.get("value")
        return self._other(port.tensor(node)) in [node.attrs.get(key) for key in _TYPES] or (
            held is not None and getattr(held, "dtype", SINGLE).name in OTHERS
        )

    # -- rewriting ---------------------------------------------------------------------------------------------

    def _interface(self, types: dict[Tensor, int]) -> None:
        """Casts behind the model's inputs and before its outputs."""
        for tensor in self.graph.inputs:
            self._leave(tensor, types)
        for tensor in self.graph.outputs:
            code, maker = types.get(tensor, 0), tensor.producer
            if isinstance(tensor, Constant):  # a copy serves what computes
                continue
            if not code or maker is None or not self._computes(maker):
                continue
            inner = Variable(self.graph.unique_name(f"{tensor.name}_float"), SINGLE, tensor.shape)
            types.pop(tensor)
            types[inner] = code
            self.homes[inner] = self.homes[tensor]
            maker.outputs[maker.outputs.index(tensor)] = inner
            self._redirect(tensor, inner, list(tensor.consumers))
            self._cast(inner, code, self.graph, [tensor])
            self.narrow[inner] = tensor

    def _fence(self, node: Node, types: dict[Tensor, int]) -> None:
        """A node that keeps its type reads and writes it still."""
        for tensor in node.outputs:
            self._leave(tensor, types)
        for port, tensor in enumerate(node.inputs):
            if isinstance(tensor, Variable) and (code := types.get(tensor, 0)):
                node.inputs[port] = self._narrowed(tensor, code)

    def _leave(self, tensor: Variable, types: dict[Tensor, int]) -> None:
        """A tensor that keeps its type: one Cast for all that compute in float32 behind it."""
        readers = [node for node in tensor.consumers if self._computes(node)]
        if types.pop(tensor, 0) and (readers or self._inside(tensor)):
            self._redirect(tensor, self._cast(tensor, TensorProto.FLOAT, self.homes[tensor]), readers)

    def _computes(self, node: Node) -> bool:
        return node not in self.done.kept

    def _bodies(self) -> list[Graph]:
        return [scope for scope in self.graph.scopes() if scope is not self.graph and scope not in self.closed]

    def _inside(self, tensor: Tensor) -> bool:
        return any(tensor is out for scope in self._bodies() for out in scope.outputs)

    def _redirect(self, old: Tensor, new: Tensor, readers: list[Node]) -> None:
        self.graph.replace_uses(old, new, only=[node for node in readers if node.outputs[:1] != [new]])
        for scope in self._bodies():
            scope.outputs[:] = [new if t is old else t for t in scope.outputs]

    def _narrowed(self, tensor: Variable, code: int) -> Variable:
        if tensor not in self.narrow:
            self.narrow[tensor] = self._cast(tensor, code, self.homes[tensor])
        return self.narrow[tensor]

    def _cast(self, tensor: Tensor, to: int, scope: Graph, outputs: list[Variable] | int = 1) -> Variable:
        self.done.casts += 1
        node = scope.add_node("Cast", [tensor], name=f"{tensor.name}_cast", attrs={"to": int(to)}, outputs=outputs)
        made = node.outputs[0]
        assert isinstance(made, Variable)
        if made.dtype is None:
            made.dtype, made.shape = tensor_dtype_to_np_dtype(to), tensor.shape
        return made

    def _retype(self, types: dict[Tensor, int]) -> None:
        """The tensors that are left, and what names their types."""
        for tensor in types:
            if isinstance(tensor, Constant):
                self._retype_constant(tensor)
            else:
                tensor.dtype = SINGLE
        for scope in self._bodies():
            for tensor in scope.inputs:
                if tensor.dtype is not None and tensor.dtype.name in OTHERS:
                    tensor.dtype = SINGLE
        for node in self.done.nodes:
            for key in _TYPES:
                if node.attrs.get(key) in _CODES:
                    node.attrs[key] = int(TensorProto.FLOAT)
            value = node.attrs.get("value")
            if isinstance(value, np.ndarray) and value.dtype.name in OTHERS:
                node.attrs["value"] = _single(value)

    def _retype_constant(self, constant: Constant) -> None:
        readers = [node for node in constant.consumers if node in self.done.nodes]
        others = [node for node in constant.consumers if node not in self.done.nodes]
        if not readers and not self._inside(constant):
            return
        if not others and constant not in self.graph.kept_inputs and not _is_output(self.graph, constant):
            constant.values = _single(constant.values)
            return
        copy = self.graph.add_constant(f"{constant.name}_float", _single(constant.values))
        self._redirect(constant, copy, readers)


def _is_output(graph: Graph, tensor: Tensor) -> bool:
    return any(tensor is out for out in graph.outputs)


def _unpacks(node: Node, shapes: Shapes) -> bool:
    """Whether a node only gives a stored weight the type that is computed in."""
    return node.op == "Cast" and isinstance(node.inputs[0], Constant) and shapes.dtype(node.outputs[0]) == SINGLE


def _single(values: Array) -> Array:
    return np.asarray(values).astype(SINGLE)
