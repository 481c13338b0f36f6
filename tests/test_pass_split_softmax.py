"""Does a Softmax along an inner axis give what it gave, in steps, and does one that is fast already stay?"""

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
from onnxcomp.passes.split_softmax import SplitSoftmax
from onnxcomp.testing import check_pass


def softmax(
    shape: Any = (1, 16, 4, 21), *, opset: int = 17, dtype: int = builders.FLOAT, **attrs: int
) -> onnx.ModelProto:
    """x -> Softmax -> y."""
    nodes = [helper.make_node("Softmax", ["x"], ["y"], "softmax", **attrs)]
    ports = [builders.value("x", dtype, shape)], [builders.value("y", dtype, shape)]
    return builders.model(nodes, *ports, opset=opset)


def operators(proto: onnx.ModelProto, x: np.ndarray) -> dict[str, int]:
    result = PassManager(Pipeline((SplitSoftmax(),))).run(decode(proto))
    wanted, got = (builders.run(m, {"x": x})[0] for m in (proto, io.to_bytes(result.graph)))
    assert got.shape == wanted.shape
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-7)
    return result.graph.operators()


@pytest.mark.parametrize("opset", [13, 17, 18, 21])
@pytest.mark.parametrize(
    ("shape", "axis"),
    [((2, 16, 4, 21), 1), ((2, 16, 4, 21), -3), ((12, 9, 8), 0), (("N", 21, "H", "W"), 1), ((2, 3, 4, 7, 9), 2)],
)
def test_steps_give_what_it_gave(shape: Any, axis: int, opset: int) -> None:
    sizes = [{"N": 2, "H": 11, "W": 13}.get(size, size) for size in shape]
    x = (30 * builders.rng().standard_normal(sizes)).astype(np.float32)  # powers of these overflow unless taken apart
    assert operators(softmax(shape, axis=axis, opset=opset), x) == {
        "ReduceMax": 1,
        "Sub": 1,
        "Exp": 1,
        "ReduceSum": 1,
        "Div": 1,
    }


@pytest.mark.parametrize(
    ("shape", "axis"),
    [((2, 4, 60), -1), ((2, 16, 80), 1), ((2, 16, 80, 1), 1), ((2, 16, 3, 4), 1), ((2, 1, 16, 80), 2)],
    ids=["last", "last but one", "an axis of size 1 moves nothing", "few places", "last but one of four"],
)
def test_what_is_fast_stays(shape: tuple[int, ...], axis: int) -> None:
    x = builders.rng().standard_normal(shape).astype(np.float32)
    assert operators(softmax(shape, axis=axis), x) == {"Softmax": 1}


@pytest.mark.parametrize(
    ("proto", "target"),
    [
        (softmax(axis=1, opset=11), "cpu"),
        (softmax(axis=1, dtype=onnx.TensorProto.DOUBLE), "cpu"),
        (softmax(axis=1), "tensorrt"),
        (softmax(axis=1), "cuda"),
    ],
    ids=["over all axes behind", "double", "another compiler", "another provider"],
)
def test_other_meanings_types_and_kernels_stay(proto: onnx.ModelProto, target: str) -> None:
    assert not SplitSoftmax().run(decode(proto), PassContext(target=target)).changes


def test_the_contract() -> None:
    check_pass(SplitSoftmax)
    check_pass(SplitSoftmax, softmax(axis=1))
