"""Do the weights that cost the outputs most take 8 bits where the rest takes few, within the bytes allowed?"""

from __future__ import annotations

import builders
import numpy as np
import onnx
import pytest
from nets import Net
from onnx import ModelProto
from test_pass_quantize_weights import quantized


def uneven() -> tuple[ModelProto, list[str]]:
    """Two products whose results are added: what the second gives is a hundred times as large."""
    net = Net(seed=3)
    x = net.input("N", 128)
    small, large = net.weight(128, 64, scale=0.01), net.weight(128, 64)
    out = net.op("Add", net.op("MatMul", x, small), net.op("MatMul", x, large))
    return onnx.shape_inference.infer_shapes(net.model(out)), [small, large]


def bits_of(after: ModelProto) -> list[int]:
    """Of the products, in the order of their weights' names."""
    nodes = sorted((n for n in after.graph.node if n.op_type == "MatMulNBits"), key=lambda n: n.input[1])
    return [a.i for n in nodes for a in n.attribute if a.name == "bits"]


def test_the_weight_that_costs_the_outputs_most_takes_eight_bits() -> None:
    before, _ = uneven()
    feeds = {"x0": np.random.default_rng(1).standard_normal((64, 128)).astype(np.float32)}
    after, record = quantized(before, "bits=4,least_sqnr=30,average=6.5,accuracy_level=1", feeds=feeds)
    assert bits_of(after) == [4, 8]
    assert any("1 of 2 weights take 8 bits" in note for note in record.notes)
    exact = builders.run(before, feeds)[0]
    narrow, _ = quantized(before, "bits=4,least_sqnr=0,accuracy_level=1", feeds=feeds)
    assert bits_of(narrow) == [4, 4]
    gained = builders.sqnr_db(exact, builders.run(after, feeds)[0])
    assert gained > builders.sqnr_db(exact, builders.run(narrow, feeds)[0]) + 6


@pytest.mark.parametrize("options", ["least_sqnr=5", "average=4.5", "average=0"])
def test_no_weight_takes_more_bits_than_are_needed_or_allowed(options: str) -> None:
    before, _ = uneven()
    feeds = {"x0": np.random.default_rng(1).standard_normal((64, 128)).astype(np.float32)}
    assert bits_of(quantized(before, f"bits=4,{options}", feeds=feeds)[0]) == [4, 4]


def test_without_samples_all_weights_have_the_bits_asked_for_and_it_is_said() -> None:
    after, record = quantized(uneven()[0], "bits=4,least_sqnr=60,average=8")
    assert bits_of(after) == [4, 4]
    assert any("no samples to run on" in note for note in record.notes)
