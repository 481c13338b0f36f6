"""Model files broken in many ways, each from one seed: flipped bits, wrong sizes, dangling names, circles, odd text.

What comes out may be no protobuf at all, a model that no runtime takes, or one that is still right.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import builders
import numpy as np
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

SOURCES = (
    "mlp",
    "conv_bn_relu",
    "if_model",
    "loop_model",
    "transformer",
    "indirect_weights",
    "function_model",
    "functions",
)
Mutation = Callable[[ModelProto, np.random.Generator], None]
HUGE = (-1, 0, 2**31 - 1, 2**31, 2**40, 2**62, -(2**62))


def broken(seed: int, folder: Path) -> Path:
    """Write the broken model of a seed, with its external data if it has some."""
    random = np.random.default_rng(seed)
    proto = _source(str(random.choice(SOURCES)))
    if random.random() < 0.25:
        _outside(proto, folder, random)
    for _ in range(int(random.integers(1, 3))):
        name = str(random.choice(sorted(MUTATIONS)))
        try:
            MUTATIONS[name](proto, random)
        except (IndexError, ValueError):  # nothing there to break in this way
            continue
    data = proto.SerializeToString()
    if random.random() < 0.35:
        data = _spoil(data, random)
    path = folder / "model.onnx"
    path.write_bytes(data)
    return path


def _source(name: str) -> ModelProto:
    if name == "functions":
        return doubling_functions(4)
    made: ModelProto = getattr(builders, name)()
    return made


def doubling_functions(levels: int) -> ModelProto:
    """x [2] through functions, each of which calls the one below twice: 2^levels nodes when they are inlined."""
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("two", 1)]
    functions = []
    for level in range(levels):
        below, domain = (f"F{level - 1}", "two") if level else ("Tanh", "")
        nodes = [
            helper.make_node(below, ["a"], ["b"], domain=domain),
            helper.make_node(below, ["b"], ["c"], domain=domain),
        ]
        functions.append(helper.make_function("two", f"F{level}", ["a"], ["c"], nodes, imports))
    call = helper.make_node(f"F{levels - 1}", ["x"], ["y"], "call", domain="two")
    ports = [builders.value(n, TensorProto.FLOAT, [2]) for n in ("x", "y")]
    return builders.model([call], ports[:1], ports[1:], domains={"two": 1}, functions=functions, check=False)


def _outside(proto: ModelProto, folder: Path, random: np.random.Generator) -> None:
    """Move initializers to an external file, with right entries at first."""
    blob = b""
    for tensor in proto.graph.initializer:
        raw = numpy_helper.to_array(tensor).tobytes()
        for key in ("raw_data", "float_data", "int64_data"):
            tensor.ClearField(key)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", "weights.bin"), ("offset", str(len(blob))), ("length", str(len(raw)))):
            tensor.external_data.add(key=key, value=value)
        blob += raw
    (folder / "weights.bin").write_bytes(blob[: len(blob) - int(random.choice([0, 0, 0, 5]))])


def _spoil(data: bytes, random: np.random.Generator) -> bytes:
    raw = bytearray(data)
    kind = int(random.integers(4))
    if kind == 0:
        for _ in range(int(random.integers(1, 9))):
            raw[int(random.integers(min(len(raw), 2000)))] ^= 1 << int(random.integers(8))
    elif kind == 1:
        del raw[int(random.integers(len(raw))) :]
    elif kind == 2:
        at = int(random.integers(len(raw)))
        raw[at:at] = random.bytes(int(random.integers(1, 30)))
    else:
        at = int(random.integers(len(raw)))
        del raw[at : at + int(random.integers(1, 30))]
    return bytes(raw)


# -- mutations ---------------------------------------------------------------------------------------------------------

MUTATIONS: dict[str, Mutation] = {}


def mutation(function: Mutation) -> Mutation:
    MUTATIONS[function.__name__] = function
    return function


def _any(random: np.random.Generator, items: Any) -> Any:
    return items[int(random.integers(len(items)))]


def _node(proto: ModelProto, random: np.random.Generator) -> NodeProto:
    """A node of the graph, of a body or of a function."""
    nodes = list(proto.graph.node)
    for node in list(nodes):
        nodes += [n for a in node.attribute if a.HasField("g") for n in a.g.node]
    nodes += [n for f in proto.functions for n in f.node]
    found: NodeProto = _any(random, nodes)
    return found


@mutation
def dims(proto: ModelProto, random: np.random.Generator) -> None:
    tensor = _any(random, proto.graph.initializer)
    tensor.dims[int(random.integers(len(tensor.dims)))] = int(_any(random, (*HUGE, 1, 3, 7)))


@mutation
def more_dims(proto: ModelProto, random: np.random.Generator) -> None:
    _any(random, proto.graph.initializer).dims.append(int(_any(random, HUGE)))


@mutation
def data_cut(proto: ModelProto, random: np.random.Generator) -> None:
    tensor = _any(random, proto.graph.initializer)
    tensor.raw_data = tensor.raw_data[: int(random.integers(len(tensor.raw_data)))]


@mutation
def element_type(proto: ModelProto, random: np.random.Generator) -> None:
    _any(random, proto.graph.initializer).data_type = int(_any(random, (0, 2, 7, 8, 9, 10, 11, 16, 17, 22, 23, 99)))


@mutation
def dangling(proto: ModelProto, random: np.random.Generator) -> None:
    node = _node(proto, random)
    node.input[int(random.integers(len(node.input)))] = str(_any(random, ("nowhere", "", "\x00", "y", "x")))


@mutation
def twice(proto: ModelProto, random: np.random.Generator) -> None:
    _node(proto, random).output[0] = _any(random, proto.graph.node).output[0]


@mutation
def initializer_twice(proto: ModelProto, random: np.random.Generator) -> None:
    proto.graph.initializer.append(_any(random, proto.graph.initializer))


@mutation
def operator(proto: ModelProto, random: np.random.Generator) -> None:
    _node(proto, random).op_type = str(_any(random, ("", "Conv", "Nothing", "If", "Constant", "Identity", "a" * 5000)))


@mutation
def domain(proto: ModelProto, random: np.random.Generator) -> None:
    _node(proto, random).domain = str(_any(random, ("com.example", "ai.onnx.ml", "com.microsoft", "ai.onnx")))


@mutation
def attribute(proto: ModelProto, random: np.random.Generator) -> None:
    found = _any(random, _node(proto, random).attribute)
    if found.type == AttributeProto.INT:
        found.i = int(_any(random, HUGE))
    elif found.type == AttributeProto.INTS:
        found.ints[int(random.integers(len(found.ints)))] = int(_any(random, HUGE))
    else:
        found.type = int(random.integers(0, 16))


@mutation
def attribute_kind(proto: ModelProto, random: np.random.Generator) -> None:
    found = _any(random, _node(proto, random).attribute)
    made = _any(random, (1, 2.5, "text", [1, 2], [1.5], b"\xff\xfe"))
    found.CopyFrom(helper.make_attribute(found.name, made))


@mutation
def attribute_gone(proto: ModelProto, random: np.random.Generator) -> None:
    node = _node(proto, random)
    del node.attribute[int(random.integers(len(node.attribute)))]


@mutation
def attribute_strange(proto: ModelProto, random: np.random.Generator) -> None:
    made = _any(
        random, (helper.make_attribute("strange", 1), helper.make_attribute("axis", 99), AttributeProto(name="axis"))
    )
    _node(proto, random).attribute.append(made)


@mutation
def reference(proto: ModelProto, random: np.random.Generator) -> None:
    found = _any(random, _node(proto, random).attribute)
    found.CopyFrom(AttributeProto(name=found.name, type=AttributeProto.INT, ref_attr_name="nowhere"))


@mutation
def opset(proto: ModelProto, random: np.random.Generator) -> None:
    if random.random() < 0.3:
        del proto.opset_import[:]
    else:
        proto.opset_import[0].version = int(_any(random, (0, 1, 5, 6, 99, 2**40, -1)))


@mutation
def ir_version(proto: ModelProto, random: np.random.Generator) -> None:
    proto.ir_version = int(_any(random, (0, 1, 3, 99, 2**40, -1)))


@mutation
def own_circle(proto: ModelProto, random: np.random.Generator) -> None:
    node = _any(random, proto.graph.node)
    node.input[0] = node.output[0]


@mutation
def circle(proto: ModelProto, random: np.random.Generator) -> None:
    proto.graph.node[0].input[0] = proto.graph.node[-1].output[0]


@mutation
def function_circle(proto: ModelProto, random: np.random.Generator) -> None:
    function = _any(random, proto.functions)
    inputs, outputs = list(function.input), ["round"]
    function.node.append(helper.make_node(function.name, inputs, outputs, domain=function.domain))


@mutation
def function_odd(proto: ModelProto, random: np.random.Generator) -> None:
    function = _any(random, proto.functions)
    kind = int(random.integers(4))
    if kind == 0:
        del function.input[:]
    elif kind == 1:
        function.output[0] = "nowhere"
    elif kind == 2:
        del function.opset_import[:]
    else:
        proto.functions.append(function)


@mutation
def function_many(proto: ModelProto, random: np.random.Generator) -> None:
    proto.CopyFrom(doubling_functions(int(_any(random, (6, 9, 12)))))


@mutation
def external(proto: ModelProto, random: np.random.Generator) -> None:
    tensor = _any(random, proto.graph.initializer)
    tensor.data_location = TensorProto.EXTERNAL
    del tensor.external_data[:]
    where = _any(
        random, ("a" * 5000, "../secret", "/etc/hostname", "", ".", "weights.bin", "x/" * 800, "we\nird", "\x00")
    )
    tensor.external_data.add(key="location", value=str(where))
    if random.random() < 0.6:
        tensor.external_data.add(key="offset", value=str(_any(random, (*HUGE, "x", "1e3", ""))))
    if random.random() < 0.6:
        tensor.external_data.add(key="length", value=str(_any(random, (*HUGE, "x"))))


@mutation
def external_entry(proto: ModelProto, random: np.random.Generator) -> None:
    entry = _any(random, _any(random, proto.graph.initializer).external_data)
    entry.value = str(_any(random, (*HUGE, "x", "")))


@mutation
def sparse(proto: ModelProto, random: np.random.Generator) -> None:
    found = proto.graph.sparse_initializer.add(dims=[int(_any(random, (4, 2**40, -1, 0)))])
    found.values.CopyFrom(numpy_helper.from_array(np.float32([1, 2]), "sparse"))
    found.indices.CopyFrom(numpy_helper.from_array(np.array(_any(random, ([0, 3], [0, 99], [-1, 2], [0])), np.int64)))
    _node(proto, random).input.append("sparse")


@mutation
def graph_gone(proto: ModelProto, random: np.random.Generator) -> None:
    kind = int(random.integers(4))
    if kind == 0:
        proto.ClearField("graph")
    elif kind == 1:
        del proto.graph.node[:]
    elif kind == 2:
        del proto.graph.output[:]
    else:
        del proto.graph.input[:]


@mutation
def port_type(proto: ModelProto, random: np.random.Generator) -> None:
    port = _any(random, [*proto.graph.input, *proto.graph.output])
    kind = int(random.integers(5))
    if kind == 0:
        port.ClearField("type")
    elif kind == 1:
        port.type.tensor_type.elem_type = int(_any(random, (0, 8, 99)))
    elif kind == 2:
        port.type.CopyFrom(helper.make_sequence_type_proto(helper.make_tensor_type_proto(1, [2])))
    elif kind == 3:
        port.type.tensor_type.ClearField("shape")
    else:
        del port.type.tensor_type.shape.dim[:]
        for _ in range(int(random.integers(0, 4))):
            port.type.tensor_type.shape.dim.add(dim_value=int(_any(random, HUGE)))


@mutation
def inner_type(proto: ModelProto, random: np.random.Generator) -> None:
    name = _any(random, _any(random, proto.graph.node).output)
    shape = [int(_any(random, HUGE)) for _ in range(int(random.integers(0, 3)))]
    proto.graph.value_info.append(helper.make_tensor_value_info(name, int(_any(random, (1, 7, 10))), shape))


@mutation
def names(proto: ModelProto, random: np.random.Generator) -> None:
    made = str(_any(random, ("\x1b[31mred", "new\nline", "é" * 200, "x" * 200_000, "\x00", "../up")))
    node = _any(random, proto.graph.node)
    for other in proto.graph.node:
        other.input[:] = [made if n == node.output[0] else n for n in other.input]
    node.output[0] = made
    node.name = made


@mutation
def deep(proto: ModelProto, random: np.random.Generator) -> None:
    """Bodies in bodies in bodies."""
    inner = helper.make_graph(
        [helper.make_node("Identity", ["deep_c"], ["d"])], "inner", [], [builders.value("d", 9, [])]
    )
    for level in range(int(_any(random, (5, 40)))):
        node = helper.make_node("If", ["deep_c"], [f"d{level}"], then_branch=inner, else_branch=inner)
        if len(node.SerializeToString()) > 100_000:
            break
        inner = helper.make_graph([node], "inner", [], [builders.value(f"d{level}", 9, [])])
    proto.graph.initializer.append(numpy_helper.from_array(np.array(True), "deep_c"))
    proto.graph.node.extend(inner.node)


@mutation
def metadata(proto: ModelProto, random: np.random.Generator) -> None:
    for key in ("onnxcomp.spec", "onnxcomp.spec", "onnxcomp.input", "\x1b"):
        proto.metadata_props.add(key=key, value=str(_any(random, ("", "{", "\x00", "x" * 10000))))


@mutation
def text_tensor(proto: ModelProto, random: np.random.Generator) -> None:
    tensor = _any(random, proto.graph.initializer)
    tensor.data_type = TensorProto.STRING
    tensor.ClearField("raw_data")
    tensor.string_data.extend([b"\xff\xfe", b"text"])


@mutation
def constant_node(proto: ModelProto, random: np.random.Generator) -> None:
    value = numpy_helper.from_array(np.float32([1, 2]), "c")
    value.dims[0] = int(_any(random, HUGE))
    proto.graph.node.insert(0, helper.make_node("Constant", [], ["broken_constant"], value=value))


def bad_text(path: Path, random: np.random.Generator) -> None:
    """Bytes that are no UTF-8 in the place of a name."""
    data = path.read_bytes()
    for name in (b"conv", b"fc1", b"weight", b"x"):
        if name in data:
            path.write_bytes(data.replace(name, b"\xff" * len(name), int(random.integers(1, 5))))
            return
