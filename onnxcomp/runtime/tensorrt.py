"""What does TensorRT make of a model? Its own parser and builder are asked, without a GPU.

`tensorrt-rtx-cu13-bindings` and `-libs` hold NVIDIA's ONNX parser and engine builder as wheels. They parse and build on
any machine; only to run an engine, or to load one, takes a GPU. The builder's log names the layers of the engine with
the types of their inputs and constants and with the ONNX nodes that each was made of: from there it is read which Conv,
Gemm and MatMul really compute on 8-bit integers.

The builder is that of TensorRT-RTX, whose parser and rules for Q and DQ are those of TensorRT 10; which kernels win
there may differ.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxcomp.errors import EnvironmentLacksError, UsageError
from onnxcomp.graph.io import read_proto
from onnxcomp.runtime import child

if TYPE_CHECKING:
    from onnx import ModelProto

PACKAGE = "tensorrt_rtx_bindings"
REMEDY = "pip install 'onnxcomp[tensorrt]' (95 MB, Linux and Windows on x86-64)"
CAPABILITY = "SM89"  # Ada; int8 has been there in every generation since Turing
SEPARATOR = "\x1f"  # between the nodes of a layer
PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
# generated kernels: what they read as int8 they turn to float before they multiply (their names say Cast, Mul, Fc)
GENERATED = frozenset({"kgen", "runtime_fusion"})
LINE = re.compile(r"^Name: (?P<name>.*?), LayerType: (?P<kind>[^,]+), ")


@dataclass(frozen=True)
class EngineLayer:
    """A layer of a built engine: its kind, the types of its inputs and constants, and the ONNX nodes it came from."""

    name: str
    kind: str
    inputs: tuple[str, ...]
    constants: tuple[str, ...]
    nodes: tuple[str, ...]

    @property
    def integer(self) -> bool:
        """Whether it multiplies 8-bit activations with 8-bit weights."""
        operands = [*self.inputs, *self.constants][:2]
        return self.kind not in GENERATED and len(operands) == 2 and set(operands) == {"Int8"}


@dataclass(frozen=True)
class Product:
    """A Conv, Gemm or MatMul of the model. `asked`: it has Q and DQ on both sides. `integer`: it became int8.

    `kind`: of the engine's layer that computes it; empty where none is named after it.
    """

    node: str
    op: str
    asked: bool
    integer: bool
    kind: str


@dataclass(frozen=True)
class Acceptance:
    """What the parser and the builder said.

    Attributes:
        version: of TensorRT-RTX.
        problems: why the model is not accepted: node, operator and text; empty when it is.
        products: every node that multiplies, in order.
    """

    version: str
    problems: tuple[tuple[str, str, str], ...]
    products: tuple[Product, ...]

    @property
    def accepted(self) -> bool:
        """Whether it parses and builds."""
        return not self.problems

    @property
    def refused(self) -> list[Product]:
        """Products with Q and DQ that did not become int8 all the same."""
        return [product for product in self.products if product.asked and not product.integer]


def installed() -> bool:
    """Whether the parser is there; nothing is loaded."""
    return importlib.util.find_spec(PACKAGE) is not None


def acceptance(model: Path, shapes: Mapping[str, tuple[int, ...]]) -> Acceptance:
    """Parse a model and build an engine of it, in a process of its own.

    Args:
        model: a file; external data beside it.
        shapes: the sizes of each input with free dimensions, for which the engine is built.

    Raises:
        EnvironmentLacksError: the parser is not installed.
        UsageError: an input with free dimensions has no sizes.
        ModelError: the file cannot be read, or the process died.
    """
    if not installed():
        raise EnvironmentLacksError("TensorRT's parser is not installed", where=f"Python package {PACKAGE}", do=REMEDY)
    proto = read_proto(model)
    order = {"model": str(model.resolve()), "shapes": {name: list(shape) for name, shape in shapes.items()}}
    answer = child.ask("onnxcomp.runtime.tensorrt", order, where=str(model), doing="builds the engine")
    layers = list(parse_layers(answer["layers"]))
    found = tuple(_products(proto, layers)) if not answer["problems"] else ()
    return Acceptance(answer["version"], tuple((n, o, t) for n, o, t in answer["problems"]), found)


def parse_layers(text: str) -> Iterator[EngineLayer]:
    """The layers that the builder's log lists under `Layers:`, one a line."""
    for line in text.split("\n"):  # `splitlines` would take the separator of names for an end of line
        if head := LINE.match(line):
            marks = line.partition(", Metadata: ")[2].split(SEPARATOR)
            nodes = tuple(mark.removeprefix("[ONNX Layer: ").removesuffix("]") for mark in marks)
            yield EngineLayer(head["name"], head["kind"], _types(line, "Inputs"), _types(line, "Constants"), nodes)


def _types(line: str, key: str) -> tuple[str, ...]:
    """Data types in a bracketed list, whose entries hold brackets themselves."""
    start = line.find(f" {key}: [")
    if start < 0:
        return ()
    begin = start + len(key) + 3
    depth = 0
    for end in range(begin, len(line)):
        depth += (line[end] == "[") - (line[end] == "]")
        if depth == 0:
            return tuple(re.findall(r"Datatype: (\w+)", line[begin:end]))
    return ()


def _products(proto: ModelProto, layers: Sequence[EngineLayer]) -> Iterator[Product]:
    made_by = {output: node.op_type for node in proto.graph.node for output in node.output}
    for node in proto.graph.node:
        if node.op_type not in PRODUCTS:
            continue
        name = node.name or f"node_of_{node.output[0]}"  # as the parser calls it
        own = [layer for layer in layers if name in layer.nodes]
        own.sort(key=lambda layer: layer.kind in GENERATED)
        asked = [made_by.get(side) == "DequantizeLinear" for side in node.input[:2]]
        integer = any(layer.integer for layer in own)
        yield Product(name, node.op_type, all(asked), integer, own[0].kind if own else "")


# -- the child ---------------------------------------------------------------------------------------------------------


def build(order: dict[str, Any]) -> dict[str, Any]:
    """Parse and build; the builder's list of layers, or what it did not like."""
    import importlib

    trt = importlib.import_module(PACKAGE)
    log = _log(trt)
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    answer: dict[str, Any] = {"version": trt.__version__, "problems": [], "layers": ""}
    if not parser.parse_from_file(order["model"]):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        answer["problems"] = [(error.node_name(), error.node_operator(), _plain(error.desc())) for error in errors]
        answer["problems"] = answer["problems"] or [("", "", "the parser refuses the model without a reason")]
        return answer
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, CAPABILITY), 0)
    _set_sizes(builder, config, network, order["shapes"])
    if builder.build_serialized_network(network, config) is None:
        texts = [_plain(text) for level, text in log.lines if "ERROR" in level]
        answer["problems"] = [("", "", text) for text in texts[:3]] or [("", "", "no engine could be built")]
        return answer
    answer["layers"] = next((text for _, text in log.lines if text.startswith("Layers:")), "")
    return answer


def _set_sizes(builder: Any, config: Any, network: Any, shapes: Mapping[str, Sequence[int]]) -> None:
    profile = builder.create_optimization_profile()
    free = False
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        if all(size >= 0 for size in tensor.shape):
            continue
        if tensor.name not in shapes:
            raise UsageError(
                f"the input {tensor.name} has free dimensions", where="--shape", do=f"give --shape {tensor.name}=..."
            )
        sizes = tuple(shapes[tensor.name])
        profile.set_shape(tensor.name, sizes, sizes, sizes)
        free = True
    if free:
        config.add_optimization_profile(profile)


def _log(trt: Any) -> Any:
    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: list[tuple[str, str]] = []

        def log(self, severity: Any, text: str) -> None:
            self.lines.append((severity.name, text))

    return Log()


def _plain(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


def to_json(found: Acceptance) -> dict[str, Any]:
    """JSON-ready data."""
    return {"accepted": found.accepted, **dataclasses.asdict(found)}


if __name__ == "__main__":
    sys.exit(child.serve(build))
