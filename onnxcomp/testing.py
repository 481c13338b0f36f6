"""Does a pass keep the contract? The test that built-in passes and those of third parties share, with models for it."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxcomp.data.inputs import InputSpec
from onnxcomp.data.open import open_data, random_data
from onnxcomp.errors import UsageError
from onnxcomp.graph import io
from onnxcomp.graph.codec import decode
from onnxcomp.graph.ir import Array, Graph, Node, Tensor
from onnxcomp.graph.shapes import check_structure
from onnxcomp.manager.base import Guarantee, Need, Outcome, Pass, PassContext, SampleSource
from onnxcomp.manager.guarantee import interface_of
from onnxcomp.manager.options import searched
from onnxcomp.manager.pipeline import PassManager, Pipeline, RunResult
from onnxcomp.manager.spec import parse_passes

__all__ = ["ContractError", "check_pass", "dump", "hostile_models"]

SAMPLES = 8  # made up for passes that need data; enough to run them, not to judge them
SHOWN_ELEMENTS = 8


class ContractError(AssertionError):
    """A pass does not do what every pass promises; the message says what and on which model."""


def check_pass(
    pass_: Pass | type[Pass],
    graph: Graph | onnx.ModelProto | str | Path | None = None,
    *,
    data: Mapping[str, Array] | SampleSource | None = None,
    labels: Array | None = None,
) -> dict[str, RunResult]:
    """Run a pass and check what every pass promises.

    It is a frozen dataclass whose options are documented and survive the way through a spec string. It leaves the graph
    it is given untouched, keeps its guarantee, leaves valid ONNX with the same inputs and outputs, gives the same bytes
    in every run, says what it changed and why it skipped what it skipped; an exact one finds nothing to do in its own
    result; a glob that matches nothing is an error.

    Args:
        pass_: the pass, or its class to be made with default options.
        graph: what to run it on; all of `hostile_models` by default.
        data: arrays by input name, one sample a row, or a sample source; made up where the pass needs data and none is
            given.
        labels: one integer a sample.

    Returns:
        What the pass manager returned, by model name.

    Raises:
        ContractError: the pass breaks the contract.
        OnnxcompError: the pass fails on a model.
    """
    item = pass_() if isinstance(pass_, type) else pass_
    _check_declaration(item)
    given = hostile_models() if graph is None else {"the given model": graph}
    results = {}
    for name, model in given.items():
        start = _graph_of(model)
        context = PassContext(calibration=_samples(item, start, data, labels))
        results[name] = _check_run(item, start, context, name)
        _check_globs(item, start, context, name)
    return results


# -- the checks ------------------------------------------------------------------------------------------------


def _check_declaration(item: Pass) -> None:
    cls = type(item)
    name = getattr(cls, "name", "")
    _require(isinstance(name, str) and bool(name), f"{cls.__name__} has no name")
    parameters: Any = getattr(cls, "__dataclass_params__", None)
    _require(
        parameters is not None and parameters.frozen and "__dataclass_params__" in vars(cls), f"{name}: not frozen"
    )
    _require(bool(inspect.cleandoc(cls.__doc__ or "")), f"{name}: its class has no docstring")
    searched(cls)  # raises where what a search may try does not fit
    for field in dataclasses.fields(cls):
        _require(bool(field.metadata.get("doc")), f"{name}: option {field.name} has no help text")
    (parsed,) = parse_passes(str(item), lambda _: cls)
    _require(parsed == item, f"{name}: {item} reads back as {parsed}")


def _check_run(item: Pass, graph: Graph, context: PassContext, where: str) -> RunResult:
    before = io.to_bytes(graph)
    result = PassManager(Pipeline((item,))).run(graph, context)
    _require(io.to_bytes(graph) == before, f"{item} changed the graph it was given, on {where}")
    after = io.to_bytes(result.graph)
    _require(
        interface_of(decode(onnx.load_from_string(after))) == interface_of(graph), f"{item}: interface, on {where}"
    )
    again = PassManager(Pipeline((item,)), verify=False).run(graph, context)
    _require(io.to_bytes(again.graph) == after, f"{item} gives other bytes in a second run, on {where}")
    _check_words(item, result, where)
    direct = graph.clone()
    outcome = item.run(direct, context)
    _require(isinstance(outcome, Outcome), f"{item} returned no Outcome, on {where}")
    if not outcome.changes:
        direct.sort()
        _require(
            io.to_bytes(direct) == before,
            f"{item} changed the model {where!r} and did not say so: call outcome.change for each change, and "
            "own_constant, which gives a node a copy of a shared weight, only where one follows",
        )
    if item.promises() is Guarantee.EXACT:
        repeated = PassManager(Pipeline((item,)), verify=False).run(result.graph, context)
        _require(repeated.changes == 0, f"{item} finds more to do in its own result, on {where}: {_first(repeated)}")
    return result


def _check_words(item: Pass, result: RunResult, where: str) -> None:
    (record,) = result.records
    for skip in record.skips:
        _require(
            bool(skip.node) and bool(skip.why.strip()), f"{item} skipped {skip.node!r} without a reason, on {where}"
        )
    for change in record.details:
        _require(bool(change.node) and bool(change.what.strip()), f"{item} does not say what it changed, on {where}")
    check_structure(result.graph, strict=False)


def _check_globs(item: Pass, graph: Graph, context: PassContext, where: str) -> None:
    for key in ("include", "exclude"):
        strange: Any = {key: ("no node bears this name *",)}
        picky = dataclasses.replace(item, **strange)
        try:
            picky.run(graph.clone(), context)
        except UsageError as error:
            _require(key in str(error), f"{item}: the error for a glob that matches nothing does not name {key}")
        else:
            raise ContractError(f"{item}: a glob of {key} that matches nothing raised no UsageError, on {where}")


def _first(result: RunResult) -> str:
    return next((f"{change.node}: {change.what}" for change in result.records[0].details), "")


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise ContractError(what)


def _graph_of(model: Graph | onnx.ModelProto | str | Path) -> Graph:
    if isinstance(model, Graph):
        return model
    return decode(model) if isinstance(model, onnx.ModelProto) else io.load(model)


def _samples(
    item: Pass, graph: Graph, data: Mapping[str, Array] | SampleSource | None, labels: Array | None
) -> SampleSource | None:
    inputs = [
        InputSpec(t.name, t.dtype if t.dtype is not None else np.dtype(np.float32), t.shape) for t in graph.inputs
    ]
    if data is not None and not isinstance(data, Mapping):
        return data
    if data is None:
        if not item.required() & {Need.DATA, Need.LABELS}:
            return None
        made = random_data(inputs, SAMPLES)
        feeds = list(made.samples().batches(SAMPLES))
        if len(feeds) != 1 or any(len(v) != SAMPLES for v in feeds[0].values()):
            return made.samples()
        data, labels = feeds[0], np.arange(SAMPLES) % 2 if labels is None else labels
    return open_data(data, inputs, labels=labels).samples()


# -- a graph as text -------------------------------------------------------------------------------------------


def dump(graph: Graph) -> str:
    """A graph as text, for golden files: one line a tensor of the interface, an initializer, a node.

    Integer values of a few elements are shown; of others only type and shape, so that the text does not depend on how
    a machine rounds.
    """
    return "\n".join(_lines(graph, "")) + "\n"


def _lines(graph: Graph, indent: str) -> list[str]:
    lines = [f"{indent}input {t.name} {_typed(t)}" for t in graph.inputs]
    scope = None if graph.parent is None else graph
    stored = [c for c in graph.root.constants() if c.scope is scope]
    lines += [f"{indent}value {c.name} {_typed(c)}{_value(c.values)}" for c in (*stored, *graph.unused)]
    for node in graph.nodes:
        lines.append(indent + _node_line(node))
        for key, value in node.attrs.items():
            for body in value if isinstance(value, list) else [value]:
                if isinstance(body, Graph):
                    lines.append(f"{indent}  {key}:")
                    lines += _lines(body, indent + "    ")
    lines += [f"{indent}output {t.name} {_typed(t)}" for t in graph.outputs]
    return lines


def _node_line(node: Node) -> str:
    attributes = [f"{key}={_attribute(value)}" for key, value in sorted(node.attrs.items()) if _attribute(value)]
    op = f"{node.domain}.{node.op}" if node.domain else node.op
    inputs = ", ".join(t.name or "-" for t in node.inputs)
    outputs = ", ".join(t.name or "-" for t in node.outputs)
    return f"{outputs} = {op}({inputs})" + (f" {{{', '.join(attributes)}}}" if attributes else "")


def _attribute(value: Any) -> str:
    if isinstance(value, Graph) or (isinstance(value, list) and value and isinstance(value[0], Graph)):
        return ""
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{list(value.shape)}{_value(value)}"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _typed(tensor: Tensor) -> str:
    dtype = "?" if tensor.dtype is None else tensor.dtype.name if tensor.dtype != np.dtype(object) else "string"
    shape = tensor.shape
    return f"{dtype}{'' if shape is None else '[' + ', '.join('?' if d is None else str(d) for d in shape) + ']'}"


def _value(values: Array) -> str:
    few = values.size <= SHOWN_ELEMENTS and values.dtype.kind in "biu"
    return f" = {values.tolist()}" if few else ""


# -- models ----------------------------------------------------------------------------------------------------


def hostile_models() -> dict[str, onnx.ModelProto]:
    """Small models, made anew on each call, of what passes must not stumble over; ONNX Runtime runs each."""
    return {build.__name__.strip("_"): build() for build in _MODELS}


class _Writer:
    """Collects nodes and seeded weights of one small model."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, Array] = {}

    def weight(self, name: str, *shape: int, scale: float = 0.4) -> str:
        self.weights[name] = (self.random.standard_normal(shape) * scale).astype(np.float32)
        return name

    def value(self, name: str, value: Any, dtype: Any = np.int64) -> str:
        self.weights[name] = np.asarray(value, dtype)
        return name

    def add(self, op: str, inputs: list[str], output: str, name: str = "", **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [output], name, **attributes))
        return output

    def norm(self, x: str, y: str, channels: int, name: str) -> str:
        parts = [self.weight(f"{name}.{part}", channels) for part in ("scale", "bias", "mean", "var")]
        self.weights[parts[3]] = np.abs(self.weights[parts[3]]) + np.float32(0.5)
        return self.add("BatchNormalization", [x, *parts], y, name)

    def model(self, inputs: dict[str, Any], outputs: dict[str, Any], *, opset: int = 17) -> onnx.ModelProto:
        tensors = [numpy_helper.from_array(v, k) for k, v in self.weights.items()]
        ins, outs = ([_float(name, shape) for name, shape in ports.items()] for ports in (inputs, outputs))
        graph = helper.make_graph(self.nodes, "hostile", ins, outs, tensors)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def _float(name: str, shape: Any) -> onnx.ValueInfoProto:
    if isinstance(shape, onnx.ValueInfoProto):
        return shape
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def _plain_cnn() -> onnx.ModelProto:
    w = _Writer(0)
    w.add("Conv", ["x", w.weight("conv1.w", 8, 3, 3, 3), w.weight("conv1.b", 8)], "a", "conv1", pads=[1] * 4)
    w.add("Relu", [w.norm("a", "b", 8, "bn1")], "c", "relu1")
    w.add("Conv", ["c", w.weight("depthwise.w", 8, 1, 3, 3)], "d", "depthwise", pads=[1] * 4, group=8)
    w.add("Add", [w.norm("d", "e", 8, "bn2"), "c"], "f", "add")
    w.add("GlobalAveragePool", ["f"], "g", "pool")
    w.add("Flatten", ["g"], "h", "flatten")
    w.add("Gemm", ["h", w.weight("fc.w", 10, 8), w.weight("fc.b", 10)], "y", "fc", transB=1)
    return w.model({"x": ["N", 3, 8, 8]}, {"y": ["N", 10]})


def _shared_weight() -> onnx.ModelProto:
    w = _Writer(1)
    parts = [w.weight("w", 8, 8), w.weight("b", 8)]
    w.add("Gemm", ["x", *parts], "h", "fc1", transB=1)
    w.add("Relu", ["h"], "r", "relu")
    w.add("Gemm", ["r", *parts], "y", "fc2", transB=1)
    return w.model({"x": ["N", 8]}, {"y": ["N", 8]})


def _weights_behind_nodes() -> onnx.ModelProto:
    """Transpose, Reshape, Identity and Constant between a weight and its reader; nodes without names."""
    w = _Writer(2)
    w.add("Transpose", [w.weight("w1", 12, 8)], "w1t", perm=[1, 0])
    w.add("MatMul", ["x", "w1t"], "h1", "mm1")
    w.add("Reshape", [w.weight("w2", 72), w.value("shape", [12, 6])], "w2r")
    w.add("MatMul", ["h1", "w2r"], "h2", "mm2")
    w.add("Identity", [w.weight("w3", 6, 6)], "w3i")
    w.add("MatMul", ["h2", "w3i"], "h3", "mm3")
    value = (w.random.standard_normal((6, 4)) * 0.4).astype(np.float32)
    w.add("Constant", [], "w4", value=numpy_helper.from_array(value))
    w.add("MatMul", ["h3", "w4"], "y", "mm4")
    return w.model({"x": ["N", 8]}, {"y": ["N", 4]})


def _branches() -> onnx.ModelProto:
    """An outer weight that both branches of an If capture; weights of the same name inside each."""
    w = _Writer(3)
    w.add("MatMul", ["x", w.weight("w", 8, 8)], "h", "outer")
    bodies = []
    for side in ("then", "else"):
        inside = numpy_helper.from_array((w.random.standard_normal((8, 8)) * 0.4).astype(np.float32), "inner")
        nodes = [
            helper.make_node("MatMul", ["h", "w"], [f"{side}_m"], f"{side}_outer"),
            helper.make_node("MatMul", [f"{side}_m", "inner"], [f"{side}_y"], f"{side}_inner"),
        ]
        bodies.append(helper.make_graph(nodes, side, [], [_float(f"{side}_y", ["N", 8])], [inside]))
    w.add("If", ["flag"], "y", "if", then_branch=bodies[0], else_branch=bodies[1])
    flag = helper.make_tensor_value_info("flag", TensorProto.BOOL, [])
    return w.model({"flag": flag, "x": ["N", 8]}, {"y": ["N", 8]})


def _loop() -> onnx.ModelProto:
    w = _Writer(4)
    w.weight("w", 4, 4)
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["state", "w"], ["m"], "body_mm"),
            helper.make_node("Tanh", ["m"], ["next"], "body_tanh"),
            helper.make_node("Identity", ["go"], ["still"], "body_go"),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            _float("state", [2, 4]),
        ],
        [helper.make_tensor_value_info("still", TensorProto.BOOL, []), _float("next", [2, 4])],
    )
    w.add("Loop", [w.value("trips", 3), w.value("start", True, np.bool_), "x"], "y", "loop", body=body)
    return w.model({"x": [2, 4]}, {"y": [2, 4]})


def _local_function() -> onnx.ModelProto:
    w = _Writer(5)
    nodes = [helper.make_node("MatMul", ["a", "k"], ["m"], "mm"), helper.make_node("Relu", ["m"], ["r"], "relu")]
    dense = helper.make_function("test.local", "Dense", ["a", "k"], ["r"], nodes, [helper.make_opsetid("", 17)])
    w.add("Dense", ["x", w.weight("w1", 8, 8)], "h", "dense1", domain="test.local")
    w.add("Dense", ["h", w.weight("w2", 8, 8)], "y", "dense2", domain="test.local")
    model = w.model({"x": ["N", 8]}, {"y": ["N", 8]})
    model.opset_import.append(helper.make_opsetid("test.local", 1))
    model.functions.append(dense)
    return model


def _weights_as_inputs() -> onnx.ModelProto:
    """As exporters wrote before IR version 4, at an old opset."""
    w = _Writer(6)
    w.add("Conv", ["x", w.weight("w", 4, 3, 3, 3), w.weight("b", 4)], "c", "conv")
    w.norm("c", "y", 4, "bn")
    model = w.model({"x": [1, 3, 8, 8]}, {"y": [1, 4, 6, 6]}, opset=9)
    model.ir_version = 3
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return model


def _tied_embedding() -> onnx.ModelProto:
    """A table that is looked up and, transposed, multiplied; int64 input, two outputs, a dead node."""
    w = _Writer(7)
    w.add("Gather", [w.weight("table", 32, 8), "ids"], "e", "embed")
    w.add("Transpose", ["table"], "t", "transpose", perm=[1, 0])
    w.add("Relu", ["e"], "r", "relu")
    w.add("MatMul", ["r", "t"], "logits", "mm")
    w.add("Exp", ["r"], "dead", "dead")
    w.weight("unused", 4)
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["N", "S"])
    return w.model({"ids": ids}, {"logits": ["N", "S", 32], "e": ["N", "S", 8]})


def _detours() -> onnx.ModelProto:
    """Shape arithmetic, no-ops and repeats as exporters leave them, with unnamed dimensions."""
    w = _Writer(8)
    w.add("Shape", ["x"], "s")
    w.add("Gather", ["s", w.value("zero", [0])], "n", axis=0)
    w.add("Concat", ["n", w.value("rest", [-1])], "flat", axis=0)
    w.add("Reshape", ["x", "flat"], "f")
    w.add("Identity", ["f"], "i")
    w.add("Cast", ["i"], "k", to=TensorProto.FLOAT)
    w.add("Gemm", ["k", w.weight("w", 48, 6), w.weight("b", 6)], "p")
    w.add("Gemm", ["k", "w", w.value("b_again", w.weights["b"], np.float32)], "q")
    w.add("Mul", ["p", w.value("one", 1, np.float32)], "m")
    w.add("Add", ["m", "q"], "y")
    return w.model({"x": [None, 3, 4, 4]}, {"y": [None, 6]})


_MODELS: tuple[Callable[[], onnx.ModelProto], ...] = (
    _plain_cnn,
    _shared_weight,
    _weights_behind_nodes,
    _branches,
    _loop,
    _local_function,
    _weights_as_inputs,
    _tied_embedding,
    _detours,
)
