"""Which small models do the tests share? One function each, seeded, checked by onnx; add new ones at the end.

Import it as a plain module: tests/conftest.py puts this folder on sys.path, so `import builders` works in every test.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

FLOAT = TensorProto.FLOAT
INT64 = TensorProto.INT64


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def normal(generator: np.random.Generator, *shape: int, scale: float | None = None) -> np.ndarray:
    """float32 weights; the default scale is He's: sqrt(2 / fan in), fan in being all axes but the first."""
    fan_in = int(np.prod(shape[1:])) or 1
    return (generator.standard_normal(shape) * (scale or np.sqrt(2 / fan_in))).astype(np.float32)


def value(name: str, dtype: int, shape: Sequence[int | str | None] | None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def model(
    nodes: Sequence[NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    weights: dict[str, np.ndarray] | None = None,
    *,
    opset: int = 17,
    ir_version: int = 8,
    check: bool = True,
    domains: dict[str, int] | None = None,
    functions: Sequence[onnx.FunctionProto] = (),
) -> ModelProto:
    """A checked model; `weights` become initializers in the given order."""
    tensors = [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()]
    graph = helper.make_graph(nodes, "test", inputs, outputs, tensors)
    imports = [helper.make_opsetid("", opset)]
    imports += [helper.make_opsetid(domain, version) for domain, version in (domains or {}).items()]
    result = helper.make_model(graph, opset_imports=imports, ir_version=ir_version, functions=functions)
    if check:
        onnx.checker.check_model(result, full_check=True)
    return result


def save(proto: ModelProto, path: Path) -> Path:
    path.write_bytes(proto.SerializeToString(deterministic=True))
    return path


def norm_weights(name: str, channels: int, generator: np.random.Generator) -> dict[str, np.ndarray]:
    """BatchNormalization's four vectors, well away from 0 and 1."""
    return {
        f"{name}.scale": generator.uniform(0.5, 1.5, channels).astype(np.float32),
        f"{name}.bias": generator.standard_normal(channels).astype(np.float32),
        f"{name}.mean": (0.3 * generator.standard_normal(channels)).astype(np.float32),
        f"{name}.var": generator.uniform(0.5, 2.0, channels).astype(np.float32),
    }


def conv_bn_relu(
    channels_in: int = 3,
    channels_out: int = 8,
    kernel: int = 3,
    group: int = 1,
    bias: bool = False,
    *,
    op: str = "Conv",
    opset: int = 17,
    seed: int = 0,
) -> ModelProto:
    """x [N, in, 8, 8] -> conv -> bn -> relu -> y; `op` may be ConvTranspose."""
    generator = rng(seed)
    if op == "Conv":
        shape = (channels_out, channels_in // group, kernel, kernel)
    else:
        shape = (channels_in, channels_out // group, kernel, kernel)
    weights = {"conv.weight": normal(generator, *shape)}
    if bias:
        weights["conv.bias"] = normal(generator, channels_out, scale=0.5)
    weights |= norm_weights("bn", channels_out, generator)
    names = list(weights)
    split = 2 if bias else 1
    nodes = [
        helper.make_node(
            op, ["x", *names[:split]], ["c"], "conv", kernel_shape=[kernel] * 2, pads=[kernel // 2] * 4, group=group
        ),
        helper.make_node("BatchNormalization", ["c", *names[split:]], ["b"], "bn", epsilon=1e-4),
        helper.make_node("Relu", ["b"], ["y"], "relu"),
    ]
    inputs = [value("x", FLOAT, ["N", channels_in, 8, 8])]
    return model(nodes, inputs, [value("y", FLOAT, ["N", channels_out, 8, 8])], weights, opset=opset)


def mlp(sizes: Sequence[int] = (16, 32, 10), *, seed: int = 0, opset: int = 17, trans_b: int = 1) -> ModelProto:
    """x [N, sizes[0]] -> Gemm, Relu, ..., Gemm -> y [N, sizes[-1]]."""
    generator = rng(seed)
    nodes, weights, current = [], {}, "x"
    for i, (fan_in, fan_out) in enumerate(pairwise(sizes), 1):
        last = i == len(sizes) - 1
        w = normal(generator, fan_out, fan_in)
        weights[f"fc{i}.weight"] = w if trans_b else np.ascontiguousarray(w.T)
        weights[f"fc{i}.bias"] = normal(generator, fan_out, scale=0.1)
        out = "y" if last else f"h{i}"
        inputs = [current, f"fc{i}.weight", f"fc{i}.bias"]
        nodes.append(helper.make_node("Gemm", inputs, [out], f"fc{i}", transB=trans_b))
        if not last:
            nodes.append(helper.make_node("Relu", [out], [f"r{i}"], f"relu{i}"))
            current = f"r{i}"
    return model(
        nodes, [value("x", FLOAT, ["N", sizes[0]])], [value("y", FLOAT, ["N", sizes[-1]])], weights, opset=opset
    )


def residual_cnn(*, channels: int = 16, seed: int = 0, batch_norm: bool = True, opset: int = 17) -> ModelProto:
    """image [N, 3, 16, 16] -> stem, one residual block, mean, Gemm -> logits [N, 10]; what most CNNs are made of."""
    generator = rng(seed)
    weights: dict[str, np.ndarray] = {}
    nodes: list[NodeProto] = []

    def conv(name: str, x: str, fan_in: int, out: str) -> str:
        weights[f"{name}.weight"] = normal(generator, channels, fan_in, 3, 3)
        inputs = [x, f"{name}.weight"]
        if not batch_norm:
            weights[f"{name}.bias"] = normal(generator, channels, scale=0.1)
            inputs.append(f"{name}.bias")
        target = f"{name}.c" if batch_norm else out
        nodes.append(helper.make_node("Conv", inputs, [target], name, kernel_shape=[3, 3], pads=[1] * 4))
        if batch_norm:
            norm = norm_weights(f"{name}.bn", channels, generator)
            weights.update(norm)
            nodes.append(helper.make_node("BatchNormalization", [target, *norm], [out], f"{name}.bn"))
        return out

    def add(op: str, name: str, inputs: list[str], **attributes: object) -> str:
        nodes.append(helper.make_node(op, inputs, [name if name == "logits" else f"{name}.y"], name, **attributes))
        return nodes[-1].output[0]

    stem = add("Relu", "relu0", [conv("stem", "image", 3, "stem.y")])
    x = add("Relu", "relu1", [conv("block.conv1", stem, channels, "block.conv1.y")])
    x = add("Add", "block.add", [conv("block.conv2", x, channels, "block.conv2.y"), stem])
    x = add("GlobalAveragePool", "mean", [add("Relu", "relu2", [x])])
    x = add("Flatten", "flatten", [x])
    weights["head.weight"] = normal(generator, 10, channels)
    weights["head.bias"] = normal(generator, 10, scale=0.1)
    add("Gemm", "logits", [x, "head.weight", "head.bias"], transB=1)
    return model(
        nodes, [value("image", FLOAT, ["N", 3, 16, 16])], [value("logits", FLOAT, ["N", 10])], weights, opset=opset
    )


def shared_weight(*, seed: int = 0) -> ModelProto:
    """Two Gemm nodes that read the same weight and bias: x [N, 8] -> fc1 -> relu -> fc2 -> y [N, 8]."""
    generator = rng(seed)
    weights = {"w": normal(generator, 8, 8), "b": normal(generator, 8, scale=0.1)}
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["h"], "fc1", transB=1),
        helper.make_node("Relu", ["h"], ["r"], "relu"),
        helper.make_node("Gemm", ["r", "w", "b"], ["y"], "fc2", transB=1),
    ]
    return model(nodes, [value("x", FLOAT, ["N", 8])], [value("y", FLOAT, ["N", 8])], weights)


def indirect_weights(*, seed: int = 0) -> ModelProto:
    """Weights that reach their nodes through Transpose, Reshape, Constant and Identity, as exporters leave them.

    x [N, 8] -> MatMul(Transpose(w1)) -> MatMul(Reshape(w2)) -> MatMul(Identity(w3)) -> MatMul(Constant) -> y [N, 4].
    """
    generator = rng(seed)
    weights = {
        "w1": normal(generator, 12, 8),
        "w2": normal(generator, 72),
        "shape": np.array([12, 6], np.int64),
        "w3": normal(generator, 6, 6),
    }
    constant = numpy_helper.from_array(normal(generator, 6, 4), "w4_value")
    nodes = [
        helper.make_node("Transpose", ["w1"], ["w1t"], "transpose", perm=[1, 0]),
        helper.make_node("MatMul", ["x", "w1t"], ["h1"], "mm1"),
        helper.make_node("Reshape", ["w2", "shape"], ["w2r"], "reshape"),
        helper.make_node("MatMul", ["h1", "w2r"], ["h2"], "mm2"),
        helper.make_node("Identity", ["w3"], ["w3i"], "identity"),
        helper.make_node("MatMul", ["h2", "w3i"], ["h3"], "mm3"),
        helper.make_node("Constant", [], ["w4"], "constant", value=constant),
        helper.make_node("MatMul", ["h3", "w4"], ["y"], "mm4"),
    ]
    return model(nodes, [value("x", FLOAT, ["N", 8])], [value("y", FLOAT, ["N", 4])], weights)


def _branch(name: str, nodes: Sequence[NodeProto], output: str, weights: dict[str, np.ndarray]) -> GraphProto:
    tensors = [numpy_helper.from_array(array, key) for key, array in weights.items()]
    return helper.make_graph(nodes, name, [], [value(output, FLOAT, ["N", 8])], tensors)


def if_model(*, seed: int = 0) -> ModelProto:
    """An If whose branches both capture the outer weight `w` and the tensor `h`, and hold a weight of their own.

    flag bool [], x [N, 8] -> y [N, 8]. The outer weight is read outside too.
    """
    generator = rng(seed)
    weights = {"w": normal(generator, 8, 8)}
    then_nodes = [
        helper.make_node("MatMul", ["h", "w"], ["then_m"], "then_mm"),
        helper.make_node("Add", ["then_m", "then_b"], ["then_y"], "then_add"),
    ]
    else_nodes = [
        helper.make_node("MatMul", ["h", "w"], ["else_m"], "else_mm1"),
        helper.make_node("MatMul", ["else_m", "else_w"], ["else_y"], "else_mm2"),
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], "outer_mm"),
        helper.make_node(
            "If",
            ["flag"],
            ["y"],
            "if",
            then_branch=_branch("then", then_nodes, "then_y", {"then_b": normal(generator, 8, scale=1.0)}),
            else_branch=_branch("else", else_nodes, "else_y", {"else_w": normal(generator, 8, 8)}),
        ),
    ]
    inputs = [value("flag", TensorProto.BOOL, []), value("x", FLOAT, ["N", 8])]
    return model(nodes, inputs, [value("y", FLOAT, ["N", 8])], weights)


def loop_model(*, trips: int = 3, seed: int = 0) -> ModelProto:
    """A Loop whose body multiplies the carried state by a captured weight: x [2, 4] -> y [2, 4]."""
    generator = rng(seed)
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["state_in", "w"], ["mm"], "body_mm"),
            helper.make_node("Tanh", ["mm"], ["state_out"], "body_tanh"),
            helper.make_node("Identity", ["go_in"], ["go_out"], "body_go"),
        ],
        "body",
        [value("i", INT64, []), value("go_in", TensorProto.BOOL, []), value("state_in", FLOAT, [2, 4])],
        [value("go_out", TensorProto.BOOL, []), value("state_out", FLOAT, [2, 4])],
    )
    weights = {"trips": np.array(trips, np.int64), "go": np.array(True), "w": normal(generator, 4, 4)}
    nodes = [helper.make_node("Loop", ["trips", "go", "x"], ["y"], "loop", body=body)]
    return model(nodes, [value("x", FLOAT, [2, 4])], [value("y", FLOAT, [2, 4])], weights)


def function_model(*, seed: int = 0) -> ModelProto:
    """A model that calls a local function `test.local::Dense` twice: x [N, 8] -> y [N, 8]."""
    generator = rng(seed)
    body = [
        helper.make_node("MatMul", ["a", "w"], ["m"], "mm"),
        helper.make_node("Relu", ["m"], ["r"], "relu"),
    ]
    function = helper.make_function("test.local", "Dense", ["a", "w"], ["r"], body, [helper.make_opsetid("", 17)])
    nodes = [
        helper.make_node("Dense", ["x", "w1"], ["h"], "dense1", domain="test.local"),
        helper.make_node("Dense", ["h", "w2"], ["y"], "dense2", domain="test.local"),
    ]
    weights = {"w1": normal(generator, 8, 8), "w2": normal(generator, 8, 8)}
    return model(
        nodes,
        [value("x", FLOAT, ["N", 8])],
        [value("y", FLOAT, ["N", 8])],
        weights,
        domains={"test.local": 1},
        functions=[function],
    )


def weights_as_inputs(proto: ModelProto) -> ModelProto:
    """A copy whose initializers are also listed as graph inputs, the habit of exporters before IR version 4."""
    result = ModelProto()
    result.CopyFrom(proto)
    result.ir_version = 3
    for tensor in result.graph.initializer:
        result.graph.input.append(value(tensor.name, tensor.data_type, list(tensor.dims)))
    return result


def save_external(proto: ModelProto, path: Path, *, data_name: str = "weights.bin", threshold: int = 0) -> Path:
    """Write the model with its weights in a file beside it; returns the path of the .onnx file."""
    copy = ModelProto()
    copy.CopyFrom(proto)
    onnx.save_model(
        copy,
        str(path),
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location=data_name,
        size_threshold=threshold,
    )
    return path


def dynamic_cnn(*, seed: int = 0) -> ModelProto:
    """A fully convolutional net with symbolic and unnamed dimensions: x [N, 3, ?, ?] -> y [N, 4, H, W]."""
    generator = rng(seed)
    weights = {
        "conv1.weight": normal(generator, 8, 3, 3, 3),
        "conv1.bias": normal(generator, 8, scale=0.1),
        "conv2.weight": normal(generator, 4, 8, 1, 1),
    }
    nodes = [
        helper.make_node("Conv", ["x", "conv1.weight", "conv1.bias"], ["c"], "conv1", pads=[1] * 4),
        helper.make_node("Relu", ["c"], ["r"], "relu"),
        helper.make_node("Conv", ["r", "conv2.weight"], ["y"], "conv2"),
    ]
    inputs = [value("x", FLOAT, ["N", 3, None, None])]
    return model(nodes, inputs, [value("y", FLOAT, ["N", 4, None, None])], weights)


def transformer(
    *, vocabulary: int = 64, width: int = 32, heads: int = 2, hidden: int = 64, seed: int = 0, opset: int = 17
) -> ModelProto:
    """One encoder block as exporters write it: input_ids, attention_mask int64 [N, S] -> embedding float32 [N, width].

    Gather embedding, attention with a mask from Cast/Sub/Mul, LayerNormalization, Gelu in parts (Erf), mean pooling.
    """
    generator = rng(seed)
    size = width // heads
    weights: dict[str, np.ndarray] = {"embedding": normal(generator, vocabulary, width, scale=1.0)}
    nodes: list[NodeProto] = []

    def constant(name: str, array: np.ndarray) -> str:
        weights[name] = array
        return name

    def add(op: str, name: str, inputs: list[str], **attributes: object) -> str:
        out = "sentence" if name == "sentence" else f"{name}.y"
        nodes.append(helper.make_node(op, inputs, [out], name, **attributes))
        return out

    def dense(name: str, x: str, fan_in: int, fan_out: int) -> str:
        weight = constant(f"{name}.weight", np.ascontiguousarray(normal(generator, fan_out, fan_in, scale=0.2).T))
        bias = constant(f"{name}.bias", normal(generator, fan_out, scale=0.1))
        return add("Add", f"{name}.add", [bias, add("MatMul", name, [x, weight])])

    def norm(name: str, x: str) -> str:
        scale = constant(f"{name}.scale", generator.uniform(0.5, 1.5, width).astype(np.float32))
        bias = constant(f"{name}.bias", normal(generator, width, scale=0.1))
        return add("LayerNormalization", name, [x, scale, bias], axis=-1, epsilon=1e-5)

    split = constant("split", np.array([0, 0, heads, size], np.int64))
    merge = constant("merge", np.array([0, 0, width], np.int64))
    one, low = constant("one", np.float32([1])), constant("low", np.float32([-1e4]))
    x = norm("embed_norm", add("Gather", "embed", ["embedding", "input_ids"], axis=0))  # [N, S, width]
    mask = add("Cast", "mask_float", ["attention_mask"], to=FLOAT)  # [N, S]
    last_axis, middle = constant("last_axis", np.array([-1], np.int64)), constant("middle", np.array([1, 2], np.int64))
    mask4 = add("Unsqueeze", "mask_wide", [mask, middle])  # [N, 1, 1, S]
    penalty = add("Mul", "mask_low", [add("Sub", "mask_off", [one, mask4]), low])

    def project(name: str, perm: list[int]) -> str:
        return add(
            "Transpose", f"{name}.t", [add("Reshape", f"{name}.r", [dense(name, x, width, width), split])], perm=perm
        )

    query, key, val = project("query", [0, 2, 1, 3]), project("key", [0, 2, 3, 1]), project("value", [0, 2, 1, 3])
    root = constant("root", np.float32([np.sqrt(size)]))
    scores = add("Add", "masked", [add("Div", "scaled", [add("MatMul", "scores", [query, key]), root]), penalty])
    mixed = add("MatMul", "mixed", [add("Softmax", "softmax", [scores], axis=-1), val])
    merged = add("Reshape", "merge_heads", [add("Transpose", "heads_last", [mixed], perm=[0, 2, 1, 3]), merge])
    x = norm("norm1", add("Add", "skip1", [dense("attention_out", merged, width, width), x]))
    wide = dense("intermediate", x, width, hidden)
    half, sqrt2 = constant("half", np.float32([0.5])), constant("sqrt2", np.float32([np.sqrt(2)]))
    gate = add("Add", "gelu_one", [add("Erf", "gelu_erf", [add("Div", "gelu_div", [wide, sqrt2])]), one])
    gelu = add("Mul", "gelu_half", [add("Mul", "gelu_mul", [wide, gate]), half])
    x = norm("norm2", add("Add", "skip2", [dense("ffn_out", gelu, hidden, width), x]))
    mask3 = add("Unsqueeze", "mask_pool", [mask, last_axis])  # [N, S, 1]
    tokens = constant("token_axis", np.array([1], np.int64))
    total = add("ReduceSum", "total", [add("Mul", "kept", [x, mask3]), tokens], keepdims=0)
    add("Div", "sentence", [total, add("ReduceSum", "count", [mask3, tokens], keepdims=0)])
    inputs = [value(name, INT64, ["N", "S"]) for name in ("input_ids", "attention_mask")]
    return model(nodes, inputs, [value("sentence", FLOAT, ["N", width])], weights, opset=opset)


def transformer_feed(batch: int = 2, tokens: int = 6, vocabulary: int = 64, seed: int = 0) -> dict[str, np.ndarray]:
    """A feed for `transformer`: random ids, the last token of every second row masked out."""
    generator = rng(seed)
    mask = np.ones((batch, tokens), np.int64)
    mask[1::2, -1] = 0
    return {"input_ids": generator.integers(0, vocabulary, (batch, tokens)), "attention_mask": mask}


def depthwise_cnn(*, channels: int = 16, seed: int = 0) -> ModelProto:
    """x [N, 3, 16, 16] -> Conv, Clip(0, 6), depthwise Conv, Relu, 1x1 Conv -> y; MobileNet's parts."""
    generator = rng(seed)
    weights = {
        "stem.weight": normal(generator, channels, 3, 3, 3),
        "stem.bias": normal(generator, channels, scale=0.1),
        "low": np.array(0, np.float32),
        "high": np.array(6, np.float32),
        "depthwise.weight": normal(generator, channels, 1, 3, 3),
        "depthwise.bias": normal(generator, channels, scale=0.1),
        "pointwise.weight": normal(generator, 8, channels, 1, 1),
    }
    nodes = [
        helper.make_node("Conv", ["x", "stem.weight", "stem.bias"], ["a"], "stem", pads=[1] * 4),
        helper.make_node("Clip", ["a", "low", "high"], ["b"], "relu6"),
        helper.make_node(
            "Conv", ["b", "depthwise.weight", "depthwise.bias"], ["c"], "depthwise", pads=[1] * 4, group=channels
        ),
        helper.make_node("Relu", ["c"], ["d"], "relu"),
        helper.make_node("Conv", ["d", "pointwise.weight"], ["y"], "pointwise"),
    ]
    return model(nodes, [value("x", FLOAT, ["N", 3, 16, 16])], [value("y", FLOAT, ["N", 8, 16, 16])], weights)


def feeds_of(proto: ModelProto, *, batch: int = 2, seed: int = 0, free: int = 8) -> dict[str, np.ndarray]:
    """Random feeds for float and bool inputs: the first symbolic dimension is the batch, other unknown ones `free`."""
    generator = rng(seed)
    stored = {tensor.name for tensor in proto.graph.initializer}
    feeds: dict[str, np.ndarray] = {}
    for entry in proto.graph.input:
        if entry.name in stored:
            continue
        dims = entry.type.tensor_type.shape.dim
        shape = [d.dim_value if d.HasField("dim_value") else batch if i == 0 else free for i, d in enumerate(dims)]
        dtype = helper.tensor_dtype_to_np_dtype(entry.type.tensor_type.elem_type)
        if dtype == np.bool_:
            feeds[entry.name] = np.asarray(generator.integers(0, 2, shape), np.bool_)
        elif np.issubdtype(dtype, np.integer):
            feeds[entry.name] = np.asarray(generator.integers(0, 8, shape), dtype)
        else:
            feeds[entry.name] = generator.standard_normal(shape).astype(dtype)
    return feeds


def run(proto: ModelProto | Path | bytes, feeds: dict[str, np.ndarray], *, optimized: bool = True) -> list[np.ndarray]:
    """The outputs by ONNX Runtime on CPU, one thread; `optimized` off runs the graph as it is written."""
    import onnxruntime as ort  # slow to import: only the tests that run models pay for it

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    source = str(proto) if isinstance(proto, Path) else proto if isinstance(proto, bytes) else proto.SerializeToString()
    session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    result: list[np.ndarray] = session.run(None, feeds)
    return result


def ops(proto: ModelProto) -> dict[str, int]:
    """How often each operator stands in the model, bodies included."""
    counts: dict[str, int] = {}

    def visit(graph: GraphProto) -> None:
        for node in graph.node:
            counts[node.op_type] = counts.get(node.op_type, 0) + 1
            for attribute in node.attribute:
                if attribute.type == AttributeProto.GRAPH:
                    visit(attribute.g)

    visit(proto.graph)
    return counts


def sqnr_db(reference: np.ndarray, other: np.ndarray) -> float:
    """Signal to quantization noise in dB; infinite where both are equal."""
    noise = float(np.sum((reference.astype(np.float64) - other) ** 2))
    return float("inf") if noise == 0 else float(10 * np.log10(np.sum(reference.astype(np.float64) ** 2) / noise))


def custom_operator(*, seed: int = 0) -> ModelProto:
    """A model with an operator of an unknown domain, which no runtime has a kernel for: x [N, 8] -> y [N, 4]."""
    nodes = [
        helper.make_node("Dense", ["x", "w"], ["h"], "dense", domain="my.domain", sharpness=2.5),
        helper.make_node("Relu", ["h"], ["y"], "relu"),
    ]
    weights = {"w": normal(rng(seed), 8, 4)}
    outputs = [value("y", FLOAT, ["N", 4])]
    return model(nodes, [value("x", FLOAT, ["N", 8])], outputs, weights, domains={"my.domain": 1})
