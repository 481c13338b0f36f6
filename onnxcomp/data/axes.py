"""Along which axis of each input and output do samples lie, as far as the graph itself says?

Three things tell, in this order: recurrent operators, whose layout fixes which axis is time and which the batch; names
of symbolic sizes such as `batch`; and the habit that samples lie along axis 0. What is found here is a guess until a
run has proven it (onnxcomp.verify.batching).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import onnx
from onnx import shape_inference

from onnxcomp.graph.codec import encode_light
from onnxcomp.graph.ir import Dim, Graph, Variable, is_onnx
from onnxcomp.graph.shapes import propagated

RECURRENT = ("LSTM", "GRU", "RNN")
CONVOLUTIONS = ("Conv", "ConvTranspose")
INITIAL_STATES = (5, 6)  # ports of a recurrent operator: initial_h, initial_c
_NAMES = re.compile(r"batch|(^|[^a-z])(bs|bsz)([^a-z]|$)", re.IGNORECASE)
_LETTERS = re.compile(r"[nb]", re.IGNORECASE)  # as likely a length, so that the place has to speak for it too


@dataclass(frozen=True)
class Axes:
    """Axis of the samples by name of input and output; None where the whole array belongs to every sample.

    An input or output that is not listed has its samples along axis 0.

    Attributes:
        time: inputs whose axis 0 a recurrent operator reads as time.
    """

    inputs: Mapping[str, int | None] = field(default_factory=dict)
    outputs: Mapping[str, int | None] = field(default_factory=dict)
    time: frozenset[str] = frozenset()

    def input(self, name: str) -> int | None:
        """Axis of the samples in an input."""
        return self.inputs.get(name, 0)

    def output(self, name: str) -> int | None:
        """Axis of the samples in an output."""
        return self.outputs.get(name, 0)


def axes_of(graph: Graph) -> Axes:
    """What the graph says of its interface."""
    symbols = {t.name: _symbols(t) for t in graph.inputs if t.shape is not None}
    recurrent = any(node.op in RECURRENT for node in graph.walk())
    inferred = _inferred(graph, symbols) if recurrent else None
    batch, time, channels = _read_by(inferred) if inferred is not None else (set(), set(), set())
    batch -= time | channels  # which a convolution fixes, whatever a recurrent operator makes of them
    if not batch:
        batch = {s for t in graph.inputs if t.shape is not None for a, s in enumerate(t.shape) if _named(t, a, s)}
    inputs = {name: _place(found, batch, time) for name, found in symbols.items()}
    free = {name for name, found in symbols.items() if inputs[name] is not None and _is_free(graph, name, inputs[name])}
    for tensor in graph.inputs:
        if free and tensor.shape is not None and inputs[tensor.name] == 0:
            inputs[tensor.name] = _beside(tensor)
    known = batch | {symbols[name][axis] for name, axis in inputs.items() if axis is not None and symbols[name]}
    outputs = {t.name: _among(_found(t, inferred), known) for t in graph.outputs}
    ahead = {name for name, found in symbols.items() if found and found[0] in time and inputs[name] is None}
    return Axes(inputs, {name: axis for name, axis in outputs.items() if axis is not None}, frozenset(ahead))


def _symbols(tensor: Variable) -> tuple[str, ...]:
    """A symbol for every size of an input that is free, or fixed to 1, which may be a batch of one."""
    assert tensor.shape is not None
    return tuple(
        d if isinstance(d, str) and d else f"{tensor.name}.{axis}" if not d or d == 1 else f"={d}"
        for axis, d in enumerate(tensor.shape)
    )


def _place(symbols: tuple[str, ...], batch: set[str], time: set[str]) -> int | None:
    found = _among(symbols, batch)
    if found is not None or not symbols:
        return found
    return None if symbols[0] in time else 0


def _among(symbols: tuple[Dim, ...], wanted: set[str]) -> int | None:
    return next((axis for axis, symbol in enumerate(symbols) if symbol in wanted), None)


def _named(tensor: Variable, axis: int, size: Dim) -> bool:
    """Whether a symbolic size is called like a batch."""
    if not isinstance(size, str) or tensor.shape is None:
        return False
    first_is_free = not isinstance(tensor.shape[0], int) or tensor.shape[0] <= 0
    return bool(_NAMES.search(size)) or (bool(_LETTERS.fullmatch(size)) and (axis == 0 or first_is_free))


def _is_free(graph: Graph, name: str, axis: int | None) -> bool:
    shape = next(t.shape for t in graph.inputs if t.name == name)
    return bool(shape) and axis is not None and shape is not None and (not shape[axis] or isinstance(shape[axis], str))


def _beside(tensor: Variable) -> int | None:
    """The axis of an input of which nothing is known, beside others whose batch is free: of [2, ?, 64] the free one."""
    if not tensor.shape:
        return None
    fixed = [isinstance(d, int) and d > 0 for d in tensor.shape]
    return fixed.index(False) if fixed[0] and tensor.shape[0] != 1 and fixed.count(False) == 1 else 0


# -- what recurrent operators say --------------------------------------------------------------------------------------


def _inferred(graph: Graph, symbols: Mapping[str, tuple[str, ...]]) -> onnx.GraphProto | None:
    """The graph with a symbol for every size that may be a batch, and what follows from them for all tensors."""
    model = encode_light(graph)
    _forget(model.graph)
    for value in model.graph.input:
        for dim, symbol in zip(value.type.tensor_type.shape.dim, symbols.get(value.name, ()), strict=False):
            if not symbol.startswith("="):
                dim.dim_param = symbol
    try:
        return propagated(model).graph
    except (shape_inference.InferenceError, RuntimeError, ValueError):
        return None


def _forget(graph: onnx.GraphProto) -> None:
    del graph.value_info[:]
    for value in graph.output:
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.ClearField("shape")


def _read_by(graph: onnx.GraphProto) -> tuple[set[str], set[str], set[str]]:
    """The symbols that recurrent operators read as batch and as time, and those that convolutions read as channels."""
    batch: set[str] = set()
    time: set[str] = set()
    channels: set[str] = set()
    for scope in _scopes(graph):
        shapes = {v.name: v.type.tensor_type.shape.dim for v in (*graph.input, *scope.input, *scope.value_info)}
        for node in scope.node:
            if not is_onnx(node.domain):
                continue
            if node.op_type in CONVOLUTIONS:
                _note(shapes.get(node.input[0]), [(1, channels)])
            if node.op_type not in RECURRENT:
                continue
            layout = next((a.i for a in node.attribute if a.name == "layout"), 0)
            places = [(0, batch if layout else time), (1, time if layout else batch)]
            _note(shapes.get(node.input[0]), places)
            for port in INITIAL_STATES:
                if len(node.input) > port:
                    _note(shapes.get(node.input[port]), [(0 if layout else 1, batch)])
    return batch, time, channels


def _note(dims: object, places: list[tuple[int, set[str]]]) -> None:
    sizes = list(dims) if dims is not None else []  # type: ignore[call-overload]
    for axis, found in places:
        if len(sizes) > axis and sizes[axis].dim_param:
            found.add(sizes[axis].dim_param)


def _scopes(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                if body.node:
                    yield from _scopes(body)


def _found(tensor: Variable, graph: onnx.GraphProto | None) -> tuple[Dim, ...]:
    """The sizes of an output as inference names them, else as the file does."""
    for value in graph.output if graph is not None else ():
        if value.name == tensor.name and value.type.tensor_type.HasField("shape"):
            return tuple(d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim)
    return tensor.shape or ()
