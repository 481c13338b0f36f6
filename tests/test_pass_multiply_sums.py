"""Do sums along inner axes give what they gave as products with ones, and do those that are fast already stay?"""

from __future__ import annotations

from typing import Any

import builders
import numpy as np
import onnx
import pytest
from onnx import helper

from onnxcomp.graph import io
from onnxcomp.graph.codec import decode
from onnxcomp.manager.base import PassContext
from onnxcomp.manager.pipeline import PassManager, Pipeline
from onnxcomp.passes.multiply_sums import MultiplySums
from onnxcomp.testing import check_pass


def summed(
    op: str, shape: Any, axes: list[int], *, keepdims: int = 1, opset: int = 17, dtype: int = builders.FLOAT
) -> onnx.ModelProto:
    """x -> ReduceSum or ReduceMean -> y, its axes where the opset wants them."""
    as_input = opset >= (13 if op == "ReduceSum" else 18)
    rank = len(shape) if keepdims else len(shape) - len(axes)
    if as_input:
        node = helper.make_node(op, ["x", "axes"], ["y"], "sum", keepdims=keepdims)
    else:
        node = helper.make_node(op, ["x"], ["y"], "sum", keepdims=keepdims, axes=axes)
    ports = [builders.value("x", dtype, shape)], [builders.value("y", dtype, [None] * rank)]
    return builders.model([node], *ports, {"axes": np.array(axes, np.int64)} if as_input else {}, opset=opset)


def rewritten(proto: onnx.ModelProto, x: np.ndarray[Any, Any]) -> dict[str, int]:
    context = PassContext(sample_shapes={"x": x.shape})
    result = PassManager(Pipeline((MultiplySums(),))).run(decode(proto), context)
    made = io.to_bytes(result.graph)
    for rows in (x, np.concatenate([x, 2 * x])):  # as many rows as there are, whatever was seen
        wanted = builders.run(proto, {"x": rows})[0]
        got = builders.run(made, {"x": rows})[0]
        assert got.shape == wanted.shape
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)
    return result.graph.operators()


@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("opset", [11, 13, 17, 18, 21])
@pytest.mark.parametrize("op", ["ReduceSum", "ReduceMean"])
@pytest.mark.parametrize(
    ("shape", "axes"),
    [(("N", 64, 256), [1]), (("N", 64, 256), [-2]), (("N", 8, 4, 16, 32), [1, 2]), (("N", 7, 7, 320), [2, 1])],
)
def test_products_give_what_sums_gave(op: str, shape: Any, axes: list[int], opset: int, keepdims: int) -> None:
    x = builders.rng().standard_normal((1, *shape[1:])).astype(np.float32)
    made = rewritten(summed(op, shape, axes, keepdims=keepdims, opset=opset), x)
    assert made["MatMul"] == 1 and op not in made


@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("opset", [11, 17])
def test_as_many_are_added_up_as_there_are_at_run_time(opset: int, keepdims: int) -> None:
    proto = summed("ReduceSum", ("N", "R", "K"), [1], keepdims=keepdims, opset=opset)
    made = rewritten(proto, builders.rng().standard_normal((1, 96, 128)).astype(np.float32))
    assert made["MatMul"] == 1 and "ReduceSum" not in made


@pytest.mark.parametrize(
    ("shape", "axes", "op"),
    [
        (("N", 64, 256), [2], "ReduceSum"),
        (("N", 64, 256), [1, 2], "ReduceSum"),
        (("N", 16, 16), [1], "ReduceSum"),
        (("N", 8, 16, 256), [1, 3], "ReduceMean"),
        (("N", 8, 64, 256), [2], "ReduceMean"),
        (("N", 1, 64, 256), [1], "ReduceMean"),
        (("N", "R", 256), [1], "ReduceMean"),
        (("N", 64, "H", "W"), [1], "ReduceSum"),
    ],
    ids=["last", "all", "few", "apart", "several blocks", "one value", "a mean of unknown many", "unknown behind"],
)
def test_what_is_fast_or_not_known_stays(shape: tuple[Any, ...], axes: list[int], op: str) -> None:
    sizes = [{"N": 1, "R": 64, "H": 32, "W": 16}.get(size, size) for size in shape]
    x = builders.rng().standard_normal(sizes).astype(np.float32)
    assert rewritten(summed(op, shape, axes), x) == {op: 1}


@pytest.mark.parametrize(
    ("proto", "target"),
    [
        (summed("ReduceSum", (1, 64, 256), [1], dtype=onnx.TensorProto.DOUBLE), "cpu"),
        (summed("ReduceSum", (1, 64, 256), [1]), "tensorrt"),
        (summed("ReduceSum", (1, 64, 256), [1]), "cuda"),
    ],
    ids=["double", "another compiler", "another provider"],
)
def test_other_types_and_kernels_stay(proto: onnx.ModelProto, target: str) -> None:
    assert not MultiplySums().run(decode(proto), PassContext(target=target)).changes


def test_the_contract() -> None:
    check_pass(MultiplySums)
    check_pass(MultiplySums, summed("ReduceSum", (1, 64, 256), [1]))
