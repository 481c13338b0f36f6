"""Which nodes can a random model draw that hold others, or come from other domains? Bodies, functions, sequences."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import GraphProto, helper, numpy_helper
from wild_grower import BOOL, FLOAT, INT64, ML, MS, Grower, move
from wild_moves import after_layer, with_axes


def _value(name: str, kind: int = FLOAT, shape: Any = None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


@move(0.8)
def branch(g: Grower) -> None:
    """An If whose branches read outer tensors and hold weights, the same name in both at times."""
    x = g.pick(2, 3)
    width = g.shape(x)[-1]
    shared = g.store(g.real(width, 3))
    bodies: list[GraphProto] = []
    for side, op in (("a", "Relu"), ("b", "Tanh")):
        own = [numpy_helper.from_array(g.real(3), f"bias_{'x' if g.chance(0.3) else g.count}{side}")]
        tag = f"{side}{g.count}"
        nodes = [
            helper.make_node("MatMul", [x, shared], [f"m{tag}"], f"body_{tag}"),
            helper.make_node("Add", [f"m{tag}", own[0].name], [f"s{tag}"]),
            helper.make_node(op, [f"s{tag}"], [f"o{tag}"]),
        ]
        bodies.append(helper.make_graph(nodes, side, [], [_value(f"o{tag}")], own))
    flag = g.store(np.array(bool(g.one(0, 1))))
    if g.chance(0.5):
        total = with_axes(g, "ReduceSum", x, list(range(len(g.shape(x)))), 13, keepdims=0)
        flag = g.add("Greater", [total, g.store(np.float32(0))])
    g.put(helper.make_node("If", [flag], [g.name()], g.name("n"), then_branch=bodies[0], else_branch=bodies[1]))


@move(0.5)
def loop(g: Grower) -> None:
    """A Loop that multiplies its state by a weight a few times; the weight stands outside or inside."""
    x = g.pick(2)
    width = g.shape(x)[1]
    w = g.real(width, width) / width
    inside = g.chance(0.5)
    tag = str(g.count)
    weight = f"loop_w{tag}" if inside else g.store(w.astype(np.float32))
    nodes = [
        helper.make_node("MatMul", [f"state{tag}", weight], [f"p{tag}"]),
        helper.make_node("Tanh", [f"p{tag}"], [f"next{tag}"]),
        helper.make_node("Identity", [f"go{tag}"], [f"on{tag}"]),
        helper.make_node("Identity", [f"next{tag}"], [f"each{tag}"]),
    ]
    inputs = [_value(f"turn{tag}", INT64, []), _value(f"go{tag}", BOOL, []), _value(f"state{tag}")]
    outputs = [_value(f"on{tag}", BOOL, []), _value(f"next{tag}"), _value(f"each{tag}")]
    own = [numpy_helper.from_array(w.astype(np.float32), weight)] if inside else []
    body = helper.make_graph(nodes, "body", inputs, outputs, own)
    g.put(helper.make_node("Loop", [g.store(np.int64(2)), "", x], [g.name(), g.name()], body=body))


@move(0.4, since=9)
def scan(g: Grower) -> None:
    x = g.pick(3)
    _, _, width = g.shape(x)
    tag = str(g.count)
    weight = g.store((g.real(width, width) / width).astype(np.float32))
    nodes = [
        helper.make_node("MatMul", [f"e{tag}", weight], [f"p{tag}"]),
        helper.make_node("Relu", [f"p{tag}"], [f"o{tag}"]),
    ]
    body = helper.make_graph(nodes, "body", [_value(f"e{tag}")], [_value(f"o{tag}")])
    g.put(
        helper.make_node(
            "Scan", [x], [g.name()], body=body, num_scan_inputs=1, scan_input_axes=[1], scan_output_axes=[1]
        )
    )


@move(1.0, since=8)
def function(g: Grower) -> None:
    """A call of a local function, which may call another one."""
    x = g.pick(2, 3)
    width = g.shape(x)[-1]
    imports = [helper.make_opsetid("", g.opset), helper.make_opsetid("wild", 1)]
    if "Linear" not in g.functions:
        nodes = [helper.make_node("MatMul", ["a", "w"], ["m"]), helper.make_node("Add", ["m", "b"], ["o"])]
        g.functions["Linear"] = helper.make_function("wild", "Linear", ["a", "w", "b"], ["o"], nodes, imports)
        act = helper.make_node("LeakyRelu", ["h"], ["o"])
        act.attribute.append(onnx.AttributeProto(name="alpha", type=onnx.AttributeProto.FLOAT, ref_attr_name="slope"))
        nodes = [helper.make_node("Linear", ["a", "w", "b"], ["h"], domain="wild"), act]
        g.functions["Block"] = helper.make_function("wild", "Block", ["a", "w", "b"], ["o"], nodes, imports, ["slope"])
    op = g.one("Linear", "Block")
    inputs = [x, g.weight((g.real(width, 4) / width**0.5).astype(np.float32)), g.weight(g.real(4))]
    g.add(op, inputs, domain="wild", **({"slope": 0.2} if op == "Block" else {}))


@move(0.5)
def machine_learning(g: Grower) -> None:
    """Operators of ai.onnx.ml."""
    x = g.pick(2)
    width = g.shape(x)[1]
    op = g.one("Scaler", "Normalizer", "Imputer", "LinearRegressor", "Binarizer", "LinearClassifier")
    if op == "Scaler":
        g.add(op, [x], domain=ML, offset=g.real(width).tolist(), scale=(np.abs(g.real(width)) + 0.5).tolist())
    elif op == "Normalizer":
        g.add(op, [x], domain=ML, norm="L2")
    elif op == "Imputer":
        g.add(op, [x], domain=ML, imputed_value_floats=[0.5], replaced_value_float=0.0)
    elif op == "Binarizer":
        g.add(op, [x], domain=ML, threshold=0.1)
    elif op == "LinearRegressor":
        g.add(op, [x], domain=ML, coefficients=g.real(2 * width).tolist(), intercepts=[0.1, 0.2], targets=2)
    else:
        g.add(
            op,
            [x],
            2,
            domain=ML,
            coefficients=g.real(3 * width).tolist(),
            intercepts=[0.1, 0.2, 0.3],
            classlabels_ints=[0, 1, 2],
        )


@move(1.0, since=10)
def microsoft(g: Grower) -> None:
    """Operators that ONNX Runtime's own optimizer writes."""
    x = g.pick(2, 3)
    width = g.shape(x)[-1]
    op = g.one("Gelu", "FastGelu", "BiasGelu", "QuickGelu", "FusedMatMul", "SkipLayerNormalization",
               "SimplifiedLayerNormalization", "FusedConv", "FusedGemm", "Attention",
               "DynamicQuantizeMatMul")  # fmt: skip
    if op in ("Gelu", "QuickGelu"):
        g.add(op, [x], domain=MS)
    elif op == "FastGelu":
        g.add(op, [x, *([g.weight(g.real(width))] if g.chance(0.5) else [])], domain=MS)
    elif op == "BiasGelu":
        g.add(op, [x, g.weight(g.real(width))], domain=MS)
    elif op == "FusedMatMul":
        trans = int(g.one(0, 1))
        shape = (6, width) if trans else (width, 6)
        g.add(
            op,
            [x, g.weight((g.real(*shape) / 2).astype(np.float32))],
            domain=MS,
            transB=trans,
            alpha=float(g.one(1.0, 0.5)),
        )
    elif op == "SkipLayerNormalization":
        x = g.pick(3)
        width = g.shape(x)[-1]
        g.add(
            op,
            [
                x,
                x,
                g.weight(g.real(width, scale=1.0)),
                g.weight(g.real(width)),
                *([g.weight(g.real(width))] if g.chance(0.5) else []),
            ],
            domain=MS,
        )
    elif op == "SimplifiedLayerNormalization":
        g.add(op, [x, g.weight(g.real(width, scale=1.0))], axis=-1)
    elif op == "FusedConv":
        x = g.pick(4)
        g.add(
            op,
            [x, g.weight(g.real(4, g.shape(x)[1], 3, 3)), g.weight(g.real(4))],
            domain=MS,
            activation="Relu",
            pads=[1] * 4,
            kernel_shape=[3, 3],
        )
    elif op == "FusedGemm":
        x = g.pick(2)
        g.add(op, [x, g.weight(g.real(g.shape(x)[1], 5)), g.weight(g.real(5))], domain=MS, activation="Relu")
    elif op == "Attention":
        x = g.pick(3)
        width = g.shape(x)[-1]
        g.add(
            op,
            [x, g.weight((g.real(width, 3 * width) / 2).astype(np.float32)), g.weight(g.real(3 * width))],
            domain=MS,
            num_heads=int(g.one(1, 2)),
        )
    else:
        codes = np.asarray(g.random.integers(-100, 100, (width, 6)), np.int8)
        g.add(op, [x, g.store(codes), g.store(np.float32(0.01)), g.store(np.int8(0))], domain=MS)


@move(0.6, since=11)
def sequence(g: Grower) -> None:
    """Tensors in a sequence, as torch.chunk and unbind export them."""
    x = g.pick(2, 3)
    made, out = g.name("s"), g.name()
    axis = len(g.shape(x)) - 1
    g.pending.append(helper.make_node("SplitToSequence", [x, g.store(np.int64(2))], [made], axis=axis))
    if g.chance(0.5):
        g.put(helper.make_node("SequenceAt", [made, g.store(np.int64(0))], [out]))
    else:
        g.put(helper.make_node("ConcatFromSequence", [made], [out], axis=axis))


@move(0.5)
def all_known(g: Grower) -> None:
    """A layer whose inputs are all weights, or whose weight is computed from the data."""
    if g.chance(0.5):
        y = g.add("Conv", [g.weight(g.real(1, 2, 5, 5)), g.weight(g.real(3, 2, 3, 3))])
        after_layer(g, y, 3)
    else:
        x = g.pick(4)
        kernel = g.add("Mul", [g.weight(g.real(3, g.shape(x)[1], 1, 1)), g.store(np.float32(0.5))])
        scaled = g.add(
            "BatchNormalization",
            [kernel, *[g.weight((np.abs(g.real(g.shape(x)[1])) + 0.5).astype(np.float32)) for _ in range(4)]],
        )
        g.add("Conv", [x, scaled])


@move(0.4, since=23)
def newest(g: Grower) -> None:
    x = g.pick(4)
    g.add("Attention", [x, x, x])
