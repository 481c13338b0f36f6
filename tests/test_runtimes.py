"""Is it said when ONNX Runtime's own optimizations make another function of the original?"""

from __future__ import annotations

from pathlib import Path

import builders
import numpy as np
import pytest
from onnx import TensorProto, helper

import onnxcomp


def residual(folder: Path, axis: int) -> Path:
    """y = LayerNormalization(x + x W): ONNX Runtime 1.31.1 fuses both to an operator that knows the last axis only."""
    generator = np.random.default_rng(0)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"], name="product"),
        helper.make_node("Add", ["x", "m"], ["a"], name="residual"),
        helper.make_node("LayerNormalization", ["a", "s", "b"], ["y"], name="norm", axis=axis),
    ]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 6, 32]) for name in ("x", "y")]
    weights = {"w": builders.normal(generator, 32, 32), "s": np.ones(32, np.float32), "b": np.zeros(32, np.float32)}
    x = builders.normal(generator, 40, 6, 32) * np.linspace(0.1, 9, 6, dtype=np.float32)[:, None]
    np.savez(folder / "d.npz", x=x.astype(np.float32))
    return builders.save(builders.model(nodes, ports[:1], ports[1:], weights, opset=17), folder / "m.onnx")


@pytest.mark.parametrize(("axis", "told"), [(1, True), (-1, False)])
def test_a_pattern_that_the_optimizer_takes_for_another_is_named_first(axis: int, told: bool, tmp_path: Path) -> None:
    path, output = residual(tmp_path, axis), tmp_path / "out.onnx"
    data = str(tmp_path / "d.npz")
    report = onnxcomp.optimize(path, data=data, passes="cleanup,quantize-weights", output=output, bench=False)
    for doubts in (report.doubts, onnxcomp.verify(path, output, data=data).doubts):
        assert any("optimizations make another function" in doubt for doubt in doubts) == told


def test_a_model_that_draws_random_numbers_accuses_nobody(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("RandomNormalLike", ["x"], ["r"], name="noise"),
        helper.make_node("Mul", ["x", "r"], ["y"], name="times"),
    ]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 8]) for name in ("x", "y")]
    path = builders.save(builders.model(nodes, ports[:1], ports[1:], {}, opset=17), tmp_path / "m.onnx")
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32))
    data = str(tmp_path / "x.npy")
    report = onnxcomp.optimize(path, data=data, passes="cleanup", output=tmp_path / "out.onnx", bench=False)
    for doubts in (report.doubts, onnxcomp.verify(path, path, data=data).doubts):
        assert not any("another function" in doubt for doubt in doubts)
