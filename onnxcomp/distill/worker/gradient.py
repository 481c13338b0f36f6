"""How does a graph with a scalar loss become a session that also gives gradients? By ONNX Runtime's gradient builder.

The builder is called directly, and the result runs in a plain inference session whose parameters and gradients are
bound to our own memory. That spares `onnxruntime.training`, whose import needs torch, its checkpoint format, and the
accumulation of gradients.
"""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper
from onnxruntime.capi import _pybind_state as capi

from .channel import RefusedError
from .fixed import reads, split
from .optimizer import Flat

Array = NDArray[Any]

Work: TypeAlias = Callable[["Part", Mapping[str, Array], Array], float]

WHOLE_BATCH_THREADS = 2  # inside operators, where a batch cannot be shared: matrices are too small for more
RACING = ("Gather", "GatherElements", "GatherND")  # their gradients add up in the order in which threads come
STRAIGHT_THROUGH = ("Round",)  # their gradient is passed on as it comes (Bengio et al. 2013)


def prepare() -> None:
    """Once a process: silence, and the gradients that the runtime lacks."""
    onnxruntime.set_default_logger_severity(3)
    for op in STRAIGHT_THROUGH:
        definition = capi.GradientNodeDefinition()
        definition.op_type, definition.domain = "Identity", ""
        definition.inputs, definition.outputs = ["GO(0)"], ["GI(0)"]
        definition.attributes = []
        capi.register_gradient_definition(f"::{op}", [definition])


class Session:
    """A graph that runs on arrays of ours, read and written in place; several threads may run it at a time.

    Args:
        model: the graph, its parameters among the inputs.
        threads: inside one run.
        provider: execution provider; arrays stay in main memory whatever it is.
    """

    def __init__(self, model: onnx.ModelProto, threads: int, provider: str) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # threads that spin slow down ours
        options.enable_mem_pattern = False  # one block of all sizes beside the arena: 302 instead of 191 MB, no faster
        try:
            self._session = onnxruntime.InferenceSession(_bytes(model), options, providers=[provider])
        except Exception as error:
            raise _refused(error, "ONNX Runtime refuses the training graph") from error
        if provider not in self._session.get_providers():
            raise RefusedError("environment", f"{provider} does not run here", do="onnxcomp doctor --setup-training")

    def run(self, feeds: Mapping[str, Array], names: Sequence[str]) -> dict[str, Array]:
        """The named outputs."""
        wanted = {port.name for port in self._session.get_inputs()}
        try:
            found = self._session.run(
                list(names), {name: np.array(array) for name, array in feeds.items() if name in wanted}
            )
        except Exception as error:
            raise _refused(error, "the training graph does not run") from error
        return dict(zip(names, found, strict=True))

    def bound(self, arrays: Mapping[str, Array]) -> Callable[[], None]:
        """A function that runs the graph on these arrays, C-contiguous, by name of input or output."""
        binding = self._session.io_binding()
        held = []  # the binding knows addresses only
        for ports, bind in (
            (self._session.get_inputs(), binding.bind_input),
            (self._session.get_outputs(), binding.bind_output),
        ):
            for port in ports:
                array = arrays[port.name]
                held.append(array)
                bind(port.name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)

        def run(held: list[Array] = held) -> None:
            try:
                self._session.run_with_iobinding(binding)
            except Exception as error:
                raise _refused(error, "a step fails") from error

        return run


def outputs_of(
    model: onnx.ModelProto, feeds: Mapping[str, Array], names: Sequence[str], provider: str
) -> dict[str, Array]:
    """The named tensors as inference computes them.

    Raises:
        RefusedError: the runtime does not run the graph.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    _to_inference(copy)
    del copy.graph.output[:]
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return Session(copy, 1, provider).run(feeds, names)


class Part:
    """What one thread needs to run a piece of a batch: memory of the inputs, of the loss and of the gradients."""

    def __init__(self, feeds: dict[str, Array], shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.feeds = feeds
        self.loss = np.zeros((), np.float32)
        self.grads = Flat(shapes)
        self.before: Callable[[], None] = _nothing
        self.gradient: Callable[[], None] = _unbound
        self.evaluation: Callable[[], None] = _unbound

    def differentiate(self, arrays: Mapping[str, Array], rows: Array) -> float:
        """The loss of one piece; its gradient stands in `grads`."""
        return self._run(self.gradient, arrays, rows)

    def evaluate(self, arrays: Mapping[str, Array], rows: Array) -> float:
        """The loss of one piece."""
        return self._run(self.evaluation, arrays, rows)

    def _run(self, run: Callable[[], None], arrays: Mapping[str, Array], rows: Array) -> float:
        for name, place in self.feeds.items():
            if name in arrays:
                np.take(arrays[name], rows, axis=0, out=place)
        self.before()
        run()
        return float(self.loss)


class Trainable:
    """A loss and its gradients as functions of parameters in our memory.

    A batch may be a multiple of what the graph takes: its loss is then the mean over the pieces, which threads share
    among them. That scales better than threads inside each operator, takes less memory, and gives the same bytes for
    any number of threads: every piece is computed by one thread, and pieces are summed in their order. How an operator
    sums depends on the threads inside it, so that there are as many in every run of a batch that comes whole.

    Attributes:
        values, grads: the trainable parameters and their gradients.
        statistics: running means and variances; a call of `gradient` updates them in place.
        feeds: memory of the inputs, by name, with their shapes and types; an input that the arrays of a call do not
            name keeps what stands there.
        batch: rows that the graph takes at once.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        *,
        loss: str,
        trainable: Sequence[str],
        statistics: Sequence[str],
        threads: int,
        provider: str,
        pieces: int = 1,
        smooth: bool = False,
    ) -> None:
        """Build gradient and evaluation sessions.

        Args:
            pieces: a training batch has so many times the rows that the graph takes.
            smooth: let straight-through operators pass their values on unrounded, so that differences of the loss
                show the slope that the gradient claims.

        Raises:
            RefusedError: an operator has no gradient, or a parameter none that reaches it.
        """
        model = _with_loss_only(model, loss)
        if smooth:
            for node in model.graph.node:
                if node.op_type in STRAIGHT_THROUGH and not node.domain:
                    node.op_type = "Identity"
        stored = {tensor.name: tensor for tensor in model.graph.initializer}
        _check_parameters(model, stored, [*trainable, *statistics], loss)
        shapes = {name: tuple(stored[name].dims) for name in trainable}
        self.values = Flat(shapes)
        for name in trainable:
            self.values.views[name][...] = onnx.numpy_helper.to_array(stored[name])
        self.statistics = {name: np.array(onnx.numpy_helper.to_array(stored[name])) for name in statistics}
        fixed = {name: array.shape for name, array in self.statistics.items()}
        before = split(model, shapes | fixed)
        given = {value.name for value in (before.graph.output if before is not None else ())}
        _parameters_to_inputs(model, shapes | fixed)
        self._pieces = pieces
        # running statistics are updated in place: no two threads at a time
        share = 1 if self.statistics or provider != "CPUExecutionProvider" else max(1, min(threads, pieces))
        own = {value.name: value for value in before.graph.input} if before is not None else {}
        own |= {value.name: value for value in model.graph.input if value.name not in shapes | fixed}
        results = [own.pop(name) for name in given]
        self._parts = [Part({name: _batch(value) for name, value in own.items()}, shapes) for _ in range(share)]
        self.feeds = self._parts[0].feeds
        self.grads = Flat(shapes) if pieces > 1 else self._parts[0].grads
        self.batch = next((len(place) for place in self.feeds.values() if place.ndim), 1)
        evaluation = onnx.ModelProto()
        evaluation.CopyFrom(model)
        _to_inference(evaluation)
        each = 1 if pieces > 1 or races(model) else WHOLE_BATCH_THREADS
        if each > threads:
            _stay_on_one_core()
        sessions = Session(_with_gradients(model, trainable, loss), each, provider), Session(evaluation, each, provider)
        first = None if before is None else Session(before, each, provider)
        for part in self._parts:
            arrays: dict[str, Array] = {**part.feeds, **self.values.views, **self.statistics, loss: part.loss}
            arrays |= {value.name: _batch(value) for value in results}
            if first is not None:
                part.before = first.bound(arrays)
            grads = {f"{name}_grad": part.grads.views[name] for name in trainable}
            part.gradient, part.evaluation = sessions[0].bound(arrays | grads), sessions[1].bound(arrays)
        self._pool = ThreadPoolExecutor(share)

    def gradient(self, arrays: Mapping[str, Array], rows: Array) -> float:
        """The loss of a batch; its gradient stands in `grads`."""
        if self._pieces == 1:
            return self._parts[0].differentiate(arrays, rows)
        total = self.grads.vector
        total.fill(0)

        def add(part: Part) -> None:
            np.add(total, part.grads.vector, out=total)

        loss = self._shared(Part.differentiate, arrays, rows, add)
        total *= np.float32(1 / self._pieces)
        return loss

    def evaluate(self, arrays: Mapping[str, Array], rows: Array) -> float:
        """The loss of a batch as inference computes it, statistics untouched."""
        return self._shared(Part.evaluate, arrays, rows)

    def forward(self, arrays: Mapping[str, Array], rows: Array) -> float:
        """The loss of a batch as training computes it, for differences; statistics and `grads` may change."""
        return self.gradient(arrays, rows) if self.statistics else self.evaluate(arrays, rows)

    def _shared(
        self, work: Work, arrays: Mapping[str, Array], rows: Array, then: Callable[[Part], None] = lambda part: None
    ) -> float:
        """The mean loss over the pieces, done by all threads; `then` sees the parts in the order of their pieces."""
        pieces = np.split(rows, len(rows) // self.batch)
        running: deque[tuple[Part, Future[float]]] = deque()
        loss, free = 0.0, deque(self._parts)
        for piece in [*pieces, *([None] * len(self._parts))]:
            if running and (piece is None or not free):
                part, future = running.popleft()
                loss += future.result()
                then(part)
                free.append(part)
            if piece is not None:
                part = free.popleft()
                running.append((part, self._pool.submit(work, part, arrays, piece)))
        return loss / len(pieces)


def _nothing() -> None:
    """Where no node has to run before."""


def _unbound() -> None:
    raise AssertionError("bound in Trainable")


def read(path: str) -> onnx.ModelProto:
    """The model file that the parent wrote."""
    with open(path, "rb") as file:  # noqa: PTH123
        return onnx.load_model_from_string(file.read())


def rounds(model: onnx.ModelProto) -> bool:
    """Whether some operator's gradient is passed straight through."""
    return any(node.op_type in STRAIGHT_THROUGH and not node.domain for node in model.graph.node)


def races(model: onnx.ModelProto) -> bool:
    """Whether the gradient of some operator depends on how its threads run."""
    return any(node.op_type in RACING and not node.domain for node in model.graph.node)


def _stay_on_one_core() -> None:
    """Two threads were not asked for: they take turns."""
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[os.getpid() % len(cores)]})


def readers(model: onnx.ModelProto, name: str) -> list[str]:
    """The nodes that read a tensor, as `Op name`."""
    return [f"{node.op_type} {node.name or node.output[0]}" for node in model.graph.node if name in node.input]


def _with_loss_only(model: onnx.ModelProto, loss: str) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    found = [output for output in copy.graph.output if output.name == loss]
    if not found:
        raise RefusedError(
            "model", f"the graph has no output {loss!r} to minimise", do="name the loss among its outputs"
        )
    del copy.graph.output[:]
    copy.graph.output.extend(found)
    _drop_unneeded(copy, loss)
    return copy


def _drop_unneeded(model: onnx.ModelProto, loss: str) -> None:
    """Keep the nodes that the loss depends on: the gradient builder stumbles over others."""
    needed = {loss}
    kept = []
    for node in reversed(model.graph.node):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(reads(node))
    del model.graph.node[:]
    model.graph.node.extend(reversed(kept))
    for entries in (model.graph.initializer, model.graph.input):
        used = [entry for entry in entries if entry.name in needed]
        del entries[:]
        entries.extend(used)


def _check_parameters(
    model: onnx.ModelProto, stored: Mapping[str, onnx.TensorProto], names: Sequence[str], loss: str
) -> None:
    for name in names:
        if name not in stored:
            raise RefusedError(
                "model",
                f"the parameter {name!r} takes no part in the loss",
                where=f"loss {loss!r}",
                do="train only initializers that the loss depends on, or freeze this one",
            )
        if stored[name].data_type != onnx.TensorProto.FLOAT:
            kind = onnx.TensorProto.DataType.Name(stored[name].data_type).lower()
            raise RefusedError(
                "model",
                f"the parameter {name!r} is {kind}, and only float can be trained",
                where=", ".join(readers(model, name)[:3]),
                do="convert the model to float32 first, or freeze this parameter",
            )


def _parameters_to_inputs(model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Parameters become inputs, so that both sessions read them from our memory."""
    graph = model.graph
    listed = {value.name for value in graph.input}
    kept = [tensor for tensor in graph.initializer if tensor.name not in shapes]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    for name, shape in shapes.items():
        if name not in listed:
            graph.input.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape))


def _batch(value: onnx.ValueInfoProto) -> Array:
    """Memory for one input; every size must be known, for kernels of the gradient crash on a symbolic batch."""
    kind = value.type.tensor_type
    shape = [dim.dim_value if dim.HasField("dim_value") else 0 for dim in kind.shape.dim]
    if not kind.HasField("shape") or not all(shape):
        raise RefusedError(
            "model",
            f"the input {value.name!r} of the training graph has no fixed shape",
            where=f"input {value.name}",
            do="fix the batch and every other size before training",
        )
    return np.zeros(shape, helper.tensor_dtype_to_np_dtype(kind.elem_type))


def _to_inference(model: onnx.ModelProto) -> None:
    """BatchNormalization with its running statistics, no Dropout."""
    for node in model.graph.node:
        if node.op_type == "Dropout" and len(node.input) > 2:
            node.input[2] = ""
        if node.op_type == "BatchNormalization":
            for attribute in node.attribute:
                if attribute.name == "training_mode":
                    attribute.i = 0
            del node.output[1:]


def _with_gradients(model: onnx.ModelProto, trainable: Sequence[str], loss: str) -> onnx.ModelProto:
    """The graph with one more output for each trainable parameter: NAME_grad."""
    options = onnxruntime.SessionOptions()
    wanted = set(trainable)
    try:
        inferred = onnx.shape_inference.infer_shapes(model)
        optimized = capi.get_optimized_model(_bytes(inferred), wanted, options)
        builder = capi.GradientGraphBuilder(optimized, {loss}, wanted, loss, options)
        builder.build()
        built = onnx.load_model_from_string(builder.get_model())
    except Exception as error:
        raise _refused(error, "the gradient of this graph cannot be built") from error
    there = {output.name: output for output in built.graph.output}
    if missing := [name for name in trainable if f"{name}_grad" not in there]:
        raise RefusedError(
            "model",
            f"no gradient of the loss reaches the parameter {missing[0]!r}",
            where=", ".join(readers(model, missing[0])[:3]),
            do="freeze it, or replace the operators between it and the loss that have no gradient",
        )
    outputs = [there[loss], *(there[f"{name}_grad"] for name in trainable)]
    del built.graph.output[:]
    built.graph.output.extend(outputs)
    return built


def _bytes(model: onnx.ModelProto) -> bytes:
    try:
        data: bytes = model.SerializeToString()
    except Exception as error:
        raise RefusedError(
            "model", "the training graph does not fit protobuf's 2 GiB", do="train fewer parameters of a smaller model"
        ) from error
    return data


def _refused(error: Exception, what: str) -> RefusedError:
    """What the runtime says, without its signatures and source lines."""
    text = re.sub(r"\s+", " ", re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", str(error))).strip()
    text = re.sub(r"/\S*onnxruntime_src/\S+:\d+ ?", "", text).rpartition(" was false. ")[2]
    if found := re.search(r"gradient builder has not been registered: (\S+) for node (.*)", text):
        return RefusedError(
            "model",
            f"{found[1]} has no gradient, and stands between trained parameters and the loss",
            where=f"node {found[1]} {found[2]}".strip(),
            do="freeze the parameters before it, or write it in operators that have gradients",
        )
    if found := re.search(r"failed to find NodeArg by name: (.+)_grad", text):
        return RefusedError(
            "model",
            f"no gradient of the loss reaches the parameter {found[1]!r}",
            where="every way from it to the loss ends at an input without a gradient",
            do="freeze it, or write the operator that reads it in others",
        )
    if "allocat" in text and "emory" in text:
        return RefusedError("memory", f"memory ran out: {text[:200]}", do="train with a smaller batch")
    return RefusedError("model", f"{what}: {text[:400]}", do="freeze what cannot be trained, or replace the operator")
