"""Does a shortcut of Slices and Pad become one Conv, and give what it gave?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import builders
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from onnxcomp.graph import io
from onnxcomp.graph.codec import decode
from onnxcomp.manager.base import PassContext
from onnxcomp.manager.pipeline import PassManager, Pipeline
from onnxcomp.passes.convolve_shortcuts import ConvolveShortcuts
from onnxcomp.testing import check_pass

FLOAT = builders.FLOAT
END = 2**63 - 1


def residual(
    slices: list[dict[int, tuple[int, int, int]]],
    padding: tuple[int, int] | None = (2, 3),
    *,
    channels: int = 4,
    size: tuple[int | str, ...] = (12, 12),
    strides: tuple[int, ...] = (2, 2),
    opset: int = 17,
    read: str = "",
    **pad: Any,
) -> onnx.ModelProto:
    """y = Relu(Conv(x) + Pad(Slices(x))); each of the Slices maps axes to start, end and step."""
    out = channels + sum(padding or ())
    weights = {"w": builders.normal(builders.rng(), out, channels, *[1] * len(size))}
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"], "conv", strides=list(strides))]
    taken = "x"
    for i, axes in enumerate(slices):
        names = [f"{what}{i}" for what in ("starts", "ends", "axes", "steps")]
        starts, ends, steps = zip(*axes.values(), strict=True)
        weights |= {
            name: np.int64(values) for name, values in zip(names, (starts, ends, list(axes), steps), strict=True)
        }
        nodes.append(helper.make_node("Slice", [taken, *names], [f"s{i}"], f"slice{i}"))
        taken = f"s{i}"
    if padding is not None:
        zeros = [0] * len(size)
        amounts = pad.pop("amounts", [0, padding[0], *zeros, 0, padding[1], *zeros])
        inputs = [taken]
        if opset < 11:
            pad |= {"pads": amounts}
        else:
            weights["amounts"] = np.int64(amounts)
            inputs.append("amounts")
            if "filled" in pad:
                weights["filled"] = np.float32(pad.pop("filled"))
                inputs.append("filled")
            if "axes" in pad:
                weights["pad_axes"] = np.int64(pad.pop("axes"))
                inputs += [""] * (3 - len(inputs)) + ["pad_axes"]
        nodes.append(helper.make_node("Pad", inputs, ["p"], "pad", **pad))
        taken = "p"
    nodes += [helper.make_node("Add", ["c", taken], ["a"], "add"), helper.make_node("Relu", ["a"], ["y"], "relu")]
    outputs = [builders.value("y", FLOAT, None)]
    if read:
        nodes.append(helper.make_node("Relu", [read], ["z"], "reader"))
        outputs.append(builders.value("z", FLOAT, None))
    return builders.model(
        nodes, [builders.value("x", FLOAT, ["N", channels, *size])], outputs, weights, opset=opset, check=False
    )


ROWS, COLUMNS = {2: (0, END, 2)}, {3: (0, END, 2)}


def same(proto: onnx.ModelProto) -> tuple[Any, Any]:
    result = PassManager(Pipeline((ConvolveShortcuts(),))).run(decode(proto))
    inputs = builders.feeds_of(proto)
    wanted, got = (builders.run(m, inputs) for m in (proto, io.to_bytes(result.graph)))
    for one, other in zip(wanted, got, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-6)
    return result.graph, result.records[0]


@given(
    steps=st.tuples(st.integers(1, 3), st.integers(1, 3)).filter(lambda s: max(s) > 1),
    padding=st.one_of(st.none(), st.tuples(st.integers(0, 3), st.integers(0, 3))),
    size=st.sampled_from([(12, 12), (7, 9), ("H", "W")]),
    joined=st.booleans(),
)
def test_any_stride_padding_and_size(steps: Any, padding: Any, size: Any, joined: bool) -> None:
    rows, columns = {2: (0, END, steps[0])}, {-1: (0, END, steps[1])}
    slices = [rows | columns] if joined else [rows, columns]
    graph, record = same(residual(slices, padding, size=size, strides=steps))
    assert graph.operators() == {"Conv": 2, "Add": 1, "Relu": 1}
    assert record.changes == 1


@pytest.mark.parametrize(
    "proto",
    [
        residual([COLUMNS, ROWS], opset=10),
        residual([ROWS, COLUMNS], opset=21, axes=[1], amounts=[2, 3]),
        residual([ROWS, COLUMNS], opset=21, axes=[-3], amounts=[2, 3], filled=0.0),
        residual([{2: (0, END, 3)}], size=(9,), strides=(3,)),
        residual([ROWS, COLUMNS, {2: (0, 6, 2)}], strides=(4, 2)),
        residual([ROWS | {1: (0, END, 1)}, COLUMNS]),
    ],
    ids=["opset 10", "axes", "an axis from behind", "one axis", "twice the same axis", "all channels by name"],
)
def test_other_ways_to_write_it(proto: onnx.ModelProto) -> None:
    graph, _ = same(proto)
    assert not {"Slice", "Pad"} & graph.operators().keys()


@pytest.mark.parametrize(
    "proto",
    [
        residual([{2: (1, END, 2)}, COLUMNS]),
        residual([{2: (0, 11, 2)}, COLUMNS], size=(12, 12)),
        residual([ROWS, COLUMNS], filled=1.0),
        residual([ROWS, COLUMNS], mode="edge"),
        residual([ROWS, COLUMNS], (0, 0), amounts=[0, 0, 1, 0, 0, 0, -1, 0]),
        residual([ROWS, COLUMNS], read="s0"),
        residual([ROWS, COLUMNS], read="s1"),
        residual([ROWS, COLUMNS], read="p"),
        residual([ROWS, COLUMNS], channels=60, padding=(30, 30)),
    ],
    ids=["offset", "early end", "ones", "edge", "rows", "read slice", "read places", "read pad", "many channels"],
)
def test_what_is_something_else_stays(proto: onnx.ModelProto) -> None:
    graph, record = same(proto)
    assert record.changes == 0
    assert graph.operators()["Slice"] == 2


def test_many_channels_say_why() -> None:
    outcome = ConvolveShortcuts().run(decode(residual([ROWS, COLUMNS], channels=60, padding=(30, 30))), PassContext())
    assert [(s.node, "7,200 weights" in s.why) for s in outcome.skips] == [("pad", True)]


def test_other_providers_are_not_looked_at() -> None:
    outcome = ConvolveShortcuts().run(decode(residual([ROWS, COLUMNS])), PassContext(target="tensorrt"))
    assert not outcome.changes


def test_contract() -> None:
    check_pass(ConvolveShortcuts(), residual([ROWS, COLUMNS]))


def test_resnet_of_the_paper(assets: Path) -> None:
    source = io.load(assets / "models" / "resnet20-cifar10.onnx")
    result = PassManager(Pipeline.parse("fold-constants{unpack=true},cleanup,convolve-shortcuts")).run(source)
    assert result.graph.operators()["Conv"] == 21
    assert not {"Slice", "Pad"} & result.graph.operators().keys()
    x = builders.rng().standard_normal((2, 3, 32, 32)).astype(np.float32)
    model = io.to_bytes(result.graph)
    wanted = builders.run(onnx.load(assets / "models" / "resnet20-cifar10.onnx"), {"input": x})[0]
    np.testing.assert_allclose(builders.run(model, {"input": x})[0], wanted, rtol=1e-4, atol=1e-4)
