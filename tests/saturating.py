"""What does a quantized model compute on x86 without VNNI? Its integer products in numpy, saturating in 16 bits.

`vpmaddubsw` multiplies unsigned with signed bytes and adds two neighbouring products in 16 bits, with saturation; only
then are the sums widened. Neighbours are taken in the kernels' order: kernel positions first, input channels last.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
from onnx import ModelProto, NodeProto, helper, numpy_helper

LOW, HIGH = -(2**15), 2**15 - 1
Scaled = tuple[np.ndarray, np.ndarray, np.ndarray]  # integers, scale, zero point


def run(
    model: ModelProto, feeds: dict[str, np.ndarray], *, saturating: bool = True, offset: int = 0
) -> list[np.ndarray]:
    """The outputs of a model of Q, DQ and float nodes.

    Args:
        saturating: whether sums of two products saturate; without, this is what VNNI computes.
        offset: 0 pairs the columns (0,1), (2,3), ...; 1 pairs (1,2), (3,4), ...
    """
    values: dict[str, np.ndarray] = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer} | feeds
    scaled: dict[str, Scaled] = {}
    opset = next(o.version for o in model.opset_import if not o.domain)
    for node in model.graph.node:
        inputs = [values[name] for name in node.input if name]
        if node.op_type == "QuantizeLinear":
            values[node.output[0]] = quantize(*inputs)
        elif node.op_type == "DequantizeLinear":
            zero = inputs[2] if len(inputs) > 2 else np.zeros_like(inputs[1], inputs[0].dtype)
            scaled[node.output[0]] = inputs[0], inputs[1], zero
            axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
            shape = [-1 if a == axis else 1 for a in range(inputs[0].ndim)] if inputs[1].ndim else []
            numbers = inputs[0].astype(np.float32) - zero.astype(np.float32).reshape(shape)
            values[node.output[0]] = numbers * inputs[1].reshape(shape)
        elif node.op_type in ("Conv", "Gemm", "MatMul") and all(name in scaled for name in node.input[:2]):
            bias = inputs[2] if len(inputs) > 2 else None
            values[node.output[0]] = product(
                node, scaled[node.input[0]], scaled[node.input[1]], bias, saturating, offset
            )
        else:
            values |= zip(node.output, float_node(node, inputs, opset), strict=True)
    return [values[t.name] for t in model.graph.output]


def quantize(x: np.ndarray, scale: np.ndarray, zero: np.ndarray) -> np.ndarray:
    """QuantizeLinear of one scale."""
    limits = np.iinfo(zero.dtype)
    return np.clip(np.rint(x / scale) + zero.astype(np.float32), limits.min, limits.max).astype(zero.dtype)


def product(
    node: NodeProto, data: Scaled, weight: Scaled, bias: np.ndarray | None, saturating: bool, offset: int
) -> np.ndarray:
    """Conv, Gemm or MatMul on integers, back to float."""
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    (x, x_scale, x_zero), (w, w_scale, _) = data, weight
    if node.op_type != "Conv":
        matrix = w.T if attributes.get("transB", 0) else w
        rows = x.reshape(-1, x.shape[-1])
        sums = accumulate(rows, matrix, saturating, offset) - int(x_zero) * matrix.astype(np.int64).sum(axis=0)
        found = (sums * (float(x_scale) * w_scale)).astype(np.float32).reshape(*x.shape[:-1], -1)
        return found if bias is None else found + bias
    group, kernel = attributes.get("group", 1), w.shape[2:]
    patches = columns(x, int(x_zero), kernel, attributes)  # [N, OH, OW, kh, kw, C]
    found = []
    for part in range(group):
        into, out = x.shape[1] // group, len(w) // group
        rows = patches[..., part * into : (part + 1) * into].reshape(-1, kernel[0] * kernel[1] * into)
        kernels = w[part * out : (part + 1) * out]
        matrix = kernels.transpose(0, 2, 3, 1).reshape(out, -1).T
        depthwise = into == 1 and group > 1  # multiplied in 32 bits
        sums = accumulate(rows, matrix, saturating and not depthwise, offset)
        found.append(sums - int(x_zero) * matrix.astype(np.int64).sum(axis=0))
    scale = float(x_scale) * w_scale
    result = np.concatenate(found, axis=1) * scale
    result = result.reshape(*patches.shape[:3], -1).transpose(0, 3, 1, 2).astype(np.float32)
    return result if bias is None else result + bias.reshape(-1, 1, 1)


def columns(x: np.ndarray, zero: int, kernel: tuple[int, ...], attributes: dict[str, object]) -> np.ndarray:
    """[N, C, H, W] -> [N, OH, OW, kh, kw, C], padded with the zero point."""
    top, left, bottom, right = attributes.get("pads", [0] * 4)  # type: ignore[misc]
    dilations, strides = attributes.get("dilations", [1, 1]), attributes.get("strides", [1, 1])
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=zero)
    spans = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True))  # type: ignore[arg-type]
    windows = np.lib.stride_tricks.sliding_window_view(padded, spans, axis=(2, 3))
    windows = windows[:, :, :: strides[0], :: strides[1], :: dilations[0], :: dilations[1]]  # type: ignore[index]
    return windows.transpose(0, 2, 3, 4, 5, 1)


def accumulate(rows: np.ndarray, matrix: np.ndarray, saturating: bool, offset: int) -> np.ndarray:
    """uint8 [rows, k] times int8 [k, out]: float64 sums, exact, of pairs that may have saturated."""
    sums = rows.astype(np.float64) @ matrix.astype(np.float64)
    if not saturating:
        return sums
    wide = matrix.astype(np.int32)
    for left in range(offset, len(matrix) - 1, 2):
        first, second = wide[left], wide[left + 1]
        most = np.maximum(first, 0) + np.maximum(second, 0), np.minimum(first, 0) + np.minimum(second, 0)
        risky = np.flatnonzero((255 * most[0] > HIGH) | (255 * most[1] < LOW))
        if risky.size:
            a, b = rows[:, left, None].astype(np.int32), rows[:, left + 1, None].astype(np.int32)
            pair = a * first[risky] + b * second[risky]
            sums[:, risky] += np.clip(pair, LOW, HIGH) - pair
    return sums


def float_node(node: NodeProto, inputs: list[np.ndarray], opset: int) -> list[np.ndarray]:
    """One node by ONNX Runtime."""
    given = dict(zip([name for name in node.input if name], inputs, strict=True))
    ports = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in given.items()
    ]
    graph = helper.make_graph([node], "one", ports, [onnx.ValueInfoProto(name=name) for name in node.output])
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found: list[np.ndarray] = session.run(None, {name: np.asarray(array) for name, array in given.items()})
    return found
