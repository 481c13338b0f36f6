"""Does a MaxPool read a smaller one of the same image, and give the same to the bit?"""

from __future__ import annotations

from typing import Any

import builders
import numpy as np
import onnx
import pytest
from nets import Net

from onnxcomp.graph.codec import decode, encode
from onnxcomp.manager.base import PassContext
from onnxcomp.manager.pipeline import PassManager, Pipeline
from onnxcomp.passes.chain_pools import ChainPools
from onnxcomp.testing import check_pass


def pyramid(*kernels: tuple[int, ...], first: dict[str, Any] | None = None) -> onnx.ModelProto:
    """Pools of one image around each place, side by side; `first` changes attributes of the first of them."""
    net = Net()
    x = net.op("Tanh", net.input("N", 3, *(7, 9, 5)[: len(kernels[0])]))
    made = []
    for place, kernel in enumerate(kernels):
        attrs = {"kernel_shape": list(kernel), "pads": [size // 2 for size in kernel] * 2}
        made.append(net.op("MaxPool", x, **(attrs | (first or {} if place == 0 else {}))))
    return onnx.shape_inference.infer_shapes(net.model(*made), strict_mode=True)


def chained(model: onnx.ModelProto, spec: str = "chain-pools") -> tuple[onnx.ModelProto, int]:
    result = PassManager(Pipeline.parse(spec)).run(decode(model), PassContext())
    return encode(result.graph), result.records[0].changes


def kernels_of(model: onnx.ModelProto) -> list[list[int]]:
    found = [
        next(a.ints for a in n.attribute if a.name == "kernel_shape") for n in model.graph.node if n.op_type != "Tanh"
    ]
    return sorted([int(size) for size in kernel] for kernel in found)


@pytest.mark.parametrize(
    ("model", "left"),
    [
        (pyramid((5, 5), (9, 9), (13, 13)), [[5, 5], [5, 5], [5, 5]]),
        (pyramid((13, 13), (3, 3), (5, 7)), [[3, 3], [3, 5], [9, 7]]),
        (pyramid((5,), (9,)), [[5], [5]]),
        (pyramid((3, 3, 3), (5, 5, 3)), [[3, 3, 1], [3, 3, 3]]),
        (pyramid((3, 7), (7, 3)), [[3, 7], [7, 3]]),
        (pyramid((9, 9), (5, 5), (9, 9)), [[5, 5], [5, 5], [5, 5]]),
    ],
)
def test_windows_are_made_of_smaller_ones(model: onnx.ModelProto, left: list[list[int]]) -> None:
    after, changes = chained(model)
    assert kernels_of(after) == left
    assert (changes > 0) == (left != kernels_of(model))
    fed = builders.feeds_of(model, batch=2)
    for wanted, got in zip(builders.run(model, fed), builders.run(after, fed), strict=True):
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize(
    "first",
    [
        {"strides": [2, 2]},
        {"dilations": [2, 2], "pads": [4, 4, 4, 4]},
        {"pads": [4, 4, 0, 0]},
        {"pads": [0, 0, 0, 0]},
        {"kernel_shape": [4, 4], "pads": [2, 2, 1, 1]},
        {"auto_pad": "SAME_UPPER", "pads": None},
    ],
)
def test_pools_of_other_windows_stay(first: dict[str, Any]) -> None:
    attrs = {name: value for name, value in first.items() if value is not None}
    model = pyramid((5, 5), (9, 9), first=attrs)
    if "auto_pad" in first:
        pool = next(node for node in model.graph.node if node.op_type == "MaxPool")
        pool.attribute.remove(next(a for a in pool.attribute if a.name == "pads"))
    after, changes = chained(model)
    assert changes == 0
    assert kernels_of(after) == kernels_of(model)


def test_only_what_is_named_is_chained() -> None:
    model = pyramid((5, 5), (9, 9), (13, 13))
    large = [node.name for node in model.graph.node][-1]
    assert kernels_of(chained(model, f'chain-pools{{exclude=["{large}"]}}')[0]) == [[5, 5], [5, 5], [13, 13]]


def test_the_pass_keeps_the_contract() -> None:
    check_pass(ChainPools(), decode(pyramid((5, 5), (9, 9), (13, 13))))
