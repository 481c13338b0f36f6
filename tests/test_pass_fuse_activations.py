"""Does GELU become one node however it is spelled, and does what only looks like it stay?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import builders
import numpy as np
import onnx
import pytest
from onnx import helper

from onnxcomp.graph import io
from onnxcomp.graph.codec import decode
from onnxcomp.graph.ir import Graph
from onnxcomp.manager.base import PassContext
from onnxcomp.manager.pipeline import PassManager, Pipeline
from onnxcomp.passes.fuse_activations import FuseActivations
from onnxcomp.runtime.profile import kernels
from onnxcomp.testing import check_pass

FLOAT = builders.FLOAT
SHAPE: list[int | str] = ["N", 3, 5]
Step = Callable[..., str]

ROOT = float(np.sqrt(2 / np.pi))


def graph_of(
    spell: Callable[[Step], None],
    *,
    shape: tuple[int, ...] = (),
    opset: int = 17,
    dtype: int = FLOAT,
    outputs: tuple[str, ...] = ("y",),
) -> onnx.ModelProto:
    """x -> ... -> y, of nodes that `spell` makes by `step(op, *operands, to=name)`; numbers become constants."""
    nodes: list[onnx.NodeProto] = []
    weights: dict[str, np.ndarray] = {}

    def step(op: str, *operands: str | float, to: str = "") -> str:
        names = []
        for operand in operands:
            names.append(operand if isinstance(operand, str) else f"c{len(weights)}")
            if not isinstance(operand, str):
                weights[names[-1]] = np.full(shape, operand, helper.tensor_dtype_to_np_dtype(dtype))
        to = to or f"t{len(nodes)}"
        nodes.append(helper.make_node(op, names, [to], f"{op.lower()}{len(nodes)}"))
        return to

    spell(step)
    ports = [builders.value("x", dtype, SHAPE)], [builders.value(name, dtype, SHAPE) for name in outputs]
    return builders.model(nodes, *ports, weights, opset=opset)


def pytorch(step: Step, x: str = "x", to: str = "y", factor: float = 0.044715) -> None:
    """As torch.nn.functional.gelu(approximate="tanh") is exported in parts."""
    inner = step("Mul", step("Add", x, step("Mul", step("Pow", x, 3.0), factor)), ROOT)
    step("Mul", step("Mul", x, 0.5), step("Add", step("Tanh", inner), 1.0), to=to)


def jax(step: Step) -> None:
    """As jax.nn.gelu comes through tf2onnx: products for the cube, every constant on the left."""
    cube = step("Mul", "x", step("Mul", "x", step("Mul", 0.044715, "x")))
    half = step("Mul", 0.5, step("Add", 1.0, step("Tanh", step("Mul", ROOT, step("Add", "x", cube)))))
    step("Mul", "x", half, to="y")


def factored(step: Step) -> None:
    """x (1 + tanh(x (a + b x x))) / 2."""
    inner = step("Mul", "x", step("Add", step("Mul", step("Mul", "x", "x"), ROOT * 0.044715), ROOT))
    step("Div", step("Mul", step("Add", step("Tanh", inner), 1.0), "x"), 2.0, to="y")


def complement(step: Step) -> None:
    """By erf, as 0.5 x (1 - erf(-x / sqrt 2)): no spelling that the runtime knows."""
    half = step("Mul", "x", 0.5)
    step("Mul", half, step("Sub", 1.0, step("Erf", step("Div", step("Neg", "x"), float(np.sqrt(2))))), to="y")


def behind_a_scale(step: Step) -> None:
    """The input is itself a function of one tensor, and no part of GELU."""
    pytorch(step, x=step("Mul", step("Add", "x", 0.25), 2.0))


def twice(step: Step) -> None:
    pytorch(step, to="m")
    pytorch(step, x="m")


def fused(proto: onnx.ModelProto, spec: str = "fuse-activations") -> Graph:
    result = PassManager(Pipeline.parse(spec)).run(decode(proto))
    feeds = {"x": (4 * builders.rng().standard_normal((2, 3, 5))).astype(np.float32)}
    for wanted, got in zip(*(builders.run(m, feeds) for m in (proto, io.to_bytes(result.graph))), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=2e-6)
    return result.graph


@pytest.mark.parametrize("shape", [(), (1,), (1, 1, 1)])
@pytest.mark.parametrize("opset", [13, 17, 21])
@pytest.mark.parametrize("spell", [pytorch, jax, factored])
def test_the_form_with_tanh_is_one_node(spell: Any, opset: int, shape: tuple[int, ...]) -> None:
    assert fused(graph_of(spell, opset=opset, shape=shape)).operators() == {"FastGelu": 1}


def test_an_odd_spelling_with_erf_is_one_node() -> None:
    assert fused(graph_of(complement)).operators() == {"Gelu": 1}


def test_the_spelling_that_the_runtime_fuses_is_left_to_it() -> None:
    def usual(step: Step) -> None:
        one = step("Add", step("Erf", step("Div", "x", float(np.sqrt(2)))), 1.0)
        step("Mul", step("Mul", "x", one), 0.5, to="y")

    proto = graph_of(usual)
    assert "Erf" in fused(proto).operators()


def test_the_runtime_leaves_the_form_with_tanh_in_parts(tmp_path: Any) -> None:
    path = builders.save(graph_of(pytorch), tmp_path / "gelu.onnx")
    assert kernels(path)["Tanh"] == 1  # once it fuses them by itself, this pass is not needed


def test_what_stands_before_and_behind_stays() -> None:
    operators = fused(graph_of(behind_a_scale)).operators()
    assert operators == {"FastGelu": 1, "Add": 1, "Mul": 1}


def test_one_behind_the_other() -> None:
    assert fused(graph_of(twice)).operators() == {"FastGelu": 2}


def test_a_part_that_others_read_stays_whole() -> None:
    def read(step: Step) -> None:
        pytorch(step)
        step("Relu", "t4", to="z")  # the tanh inside

    proto = graph_of(read, outputs=("y", "z"))
    assert "FastGelu" not in fused(proto).operators()


@pytest.mark.parametrize("spec", ["fuse-activations"])
def test_another_function_stays(spec: str) -> None:
    proto = graph_of(lambda step: pytorch(step, factor=0.05))
    assert "Tanh" in fused(proto, spec).operators()


@pytest.mark.parametrize("target", ["tensorrt", "openvino"])
def test_targets_without_the_operator_keep_the_nodes(target: str) -> None:
    outcome = FuseActivations().run(decode(graph_of(pytorch)), PassContext(target=target))
    assert not outcome.changes


def test_other_types_stay() -> None:
    outcome = FuseActivations().run(decode(graph_of(jax, dtype=onnx.TensorProto.DOUBLE)), PassContext())
    assert not outcome.changes


def test_the_contract() -> None:
    check_pass(FuseActivations)
    check_pass(FuseActivations, graph_of(pytorch))
