"""How does a graph with a scalar loss become a session that also gives gradients? By ONNX Runtime's gradient builder.

The builder is called directly, and the result runs in a plain inference session whose parameters and gradients are
bound to our own memory. That spares `onnxruntime.training`, whose import needs torch, its checkpoint format, and the
accumulation of gradients.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper
from onnxruntime.capi import _pybind_state as capi

from .channel import RefusedError
from .optimizer import Flat

Array = NDArray[Any]

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


class Bound:
    """A session whose inputs and outputs are arrays of ours.

    Args:
        model: the graph, its parameters among the inputs.
        arrays: by name of input or output, C-contiguous; read and written in place.
        provider: execution provider; arrays stay in main memory whatever it is.
    """

    def __init__(self, model: onnx.ModelProto, arrays: Mapping[str, Array], threads: int, provider: str) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(_bytes(model), options, providers=[provider])
        except Exception as error:
            raise _refused(error, "ONNX Runtime refuses the training graph") from error
        self._binding = self._session.io_binding()
        self._arrays = dict(arrays)  # the binding holds addresses only
        for port in self._session.get_inputs():
            array = self._arrays[port.name]
            self._binding.bind_input(port.name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        for port in self._session.get_outputs():
            array = self._arrays[port.name]
            self._binding.bind_output(port.name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)

    def run(self) -> None:
        """Compute the outputs from what the inputs hold."""
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as error:
            raise _refused(error, "a step fails") from error


class Trainable:
    """A loss and its gradients as functions of parameters in our memory.

    Attributes:
        values, grads: the trainable parameters and their gradients.
        statistics: running means and variances; a call of `gradient` updates them in place.
        feeds: by input name, where the next batch goes.
        loss: the last loss computed, [] float32.
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
        smooth: bool = False,
    ) -> None:
        """Build gradient and evaluation sessions.

        Args:
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
        shapes = {name: tuple(stored[name].dims) for name in (*trainable, *statistics)}
        self.values = Flat({name: shapes[name] for name in trainable})
        self.grads = Flat({name: shapes[name] for name in trainable})
        self.statistics = {name: np.zeros(shapes[name], np.float32) for name in statistics}
        for name in trainable:
            self.values.views[name][...] = onnx.numpy_helper.to_array(stored[name])
        for name in statistics:
            self.statistics[name][...] = onnx.numpy_helper.to_array(stored[name])
        self.loss = np.zeros((), np.float32)
        _parameters_to_inputs(model, shapes)
        self.feeds = {v.name: _batch(v) for v in model.graph.input if v.name not in shapes}
        arrays: dict[str, Array] = {**self.feeds, **self.values.views, **self.statistics, loss: self.loss}
        self.has_statistics = bool(statistics)
        evaluation = onnx.ModelProto()
        evaluation.CopyFrom(model)
        _to_inference(evaluation)
        built = _with_gradients(model, trainable, loss)
        gradients = {f"{name}_grad": self.grads.views[name] for name in trainable}
        self._gradient = Bound(built, {**arrays, **gradients}, threads, provider)
        self._evaluation = Bound(evaluation, arrays, threads, provider)

    def feed(self, arrays: Mapping[str, Array], rows: Array) -> None:
        """Copy the rows of a batch into place."""
        for name, place in self.feeds.items():
            np.take(arrays[name], rows, axis=0, out=place)

    def gradient(self) -> float:
        """Loss and gradients of the batch that `feed` put in place."""
        self._gradient.run()
        return float(self.loss)

    def evaluate(self) -> float:
        """Loss of the batch as inference computes it, statistics untouched."""
        self._evaluation.run()
        return float(self.loss)

    def forward(self) -> float:
        """Loss of the batch as training computes it, for differences; statistics may move."""
        return self.gradient() if self.has_statistics else self.evaluate()


def read(path: str) -> onnx.ModelProto:
    """The model file that the parent wrote."""
    with open(path, "rb") as file:  # noqa: PTH123
        return onnx.load_model_from_string(file.read())


def rounds(model: onnx.ModelProto) -> bool:
    """Whether some operator's gradient is passed straight through."""
    return any(node.op_type in STRAIGHT_THROUGH and not node.domain for node in model.graph.node)


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
            needed.update(_reads(node))
    del model.graph.node[:]
    model.graph.node.extend(reversed(kept))
    for entries in (model.graph.initializer, model.graph.input):
        used = [entry for entry in entries if entry.name in needed]
        del entries[:]
        entries.extend(used)


def _reads(node: onnx.NodeProto) -> list[str]:
    found = list(node.input)
    for attribute in node.attribute:
        for body in (attribute.g, *attribute.graphs):
            for inner in body.node:
                found += _reads(inner)
            found += [output.name for output in body.output]
    return found


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
    if "allocat" in text and "emory" in text:
        return RefusedError("memory", f"memory ran out: {text[:200]}", do="train with a smaller batch")
    return RefusedError("model", f"{what}: {text[:400]}", do="freeze what cannot be trained, or replace the operator")
