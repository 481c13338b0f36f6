"""Does a Conv of size 1 compute before pixels are repeated, and give what it gave?"""

from __future__ import annotations

from typing import Any

import builders
import numpy as np
import onnx
import pytest
from onnx import helper

from onnxcomp.graph.codec import decode, encode
from onnxcomp.manager.base import PassContext
from onnxcomp.manager.pipeline import PassManager, Pipeline
from onnxcomp.passes.conv_before_resize import ConvBeforeResize
from onnxcomp.results import PassRecord
from onnxcomp.testing import check_pass

FLOAT = builders.FLOAT
NEAREST = {"coordinate_transformation_mode": "asymmetric", "mode": "nearest", "nearest_mode": "floor"}


def pyramid(
    order: str = "us",
    *,
    outputs: tuple[int, ...] = (6,),
    kernel: int = 1,
    scales: tuple[float, ...] = (1, 1, 2, 2),
    opset: int = 17,
    how: dict[str, Any] | None = None,
    extra: bool = False,
    shown: bool = False,
    **conv: Any,
) -> onnx.ModelProto:
    """Convs with Relus on a Concat of `u`, 8 channels resized, and `s`, 5 that are not, in any order; or on one `u`.

    Args:
        extra: a Relu reads the Concat, too.
        shown: what is resized is an output of the model.
    """
    random, weights, nodes, names = builders.rng(), {}, [], []
    factors = np.asarray(scales, np.float32)
    for k, kind in enumerate(order):
        if kind == "s":
            nodes.append(helper.make_node("Sigmoid", ["x"], [f"s{k}"], f"side{k}"))
            names.append(f"s{k}")
            continue
        nodes.append(helper.make_node("Tanh", ["z"], [f"t{k}"], f"low{k}"))
        given = [f"t{k}"]
        attrs = dict(NEAREST if how is None else how)
        if opset >= 9:
            weights[f"scales{k}"] = factors
            weights["roi"] = np.zeros(0, np.float32)
            roi = "roi" if opset == 11 else ""  # it may be left out from 13 on
            given += [f"scales{k}"] if opset < 11 else [roi, f"scales{k}"]
        else:
            attrs["scales"] = [float(v) for v in scales]
        nodes.append(helper.make_node("Resize" if opset >= 10 else "Upsample", given, [f"u{k}"], f"up{k}", **attrs))
        names.append(f"u{k}")
    source = names[0]
    if len(order) > 1:
        source = "c"
        nodes.append(helper.make_node("Concat", names, ["c"], "concat", axis=1))
    channels = sum(8 if kind == "u" else 5 for kind in order)
    ends = []
    for k, size in enumerate(outputs):
        weights[f"w{k}"] = builders.normal(random, size, channels // conv.get("group", 1), kernel, kernel)
        weights[f"b{k}"] = builders.normal(random, size)
        nodes.append(helper.make_node("Conv", [source, f"w{k}", f"b{k}"], [f"p{k}"], f"conv{k}", **conv))
        nodes.append(helper.make_node("Relu", [f"p{k}"], [f"y{k}"], f"relu{k}"))
        ends.append(builders.value(f"y{k}", FLOAT, None))
    if extra:
        nodes.append(helper.make_node("Relu", [source], ["e"], "extra"))
        ends.append(builders.value("e", FLOAT, None))
    if shown:
        ends.append(builders.value("u0", FLOAT, None))
    large = [int(np.floor(4 * f)) for f in scales[-2:]]
    ports = [builders.value("x", FLOAT, ["N", 5, *large]), builders.value("z", FLOAT, ["N", 8, 4, 4])]
    ports = [port for port in ports if any(port.name in node.input for node in nodes)]
    weights = {name: value for name, value in weights.items() if any(name in node.input for node in nodes)}
    return builders.model(nodes, ports, ends, weights, opset=opset, check=False)


def feeds(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    shapes = {i.name: [d.dim_value or 3 for d in i.type.tensor_type.shape.dim] for i in model.graph.input}
    return {name: builders.normal(builders.rng(k), *shape) for k, (name, shape) in enumerate(shapes.items())}


def rewritten(model: onnx.ModelProto, spec: str = "conv-before-resize") -> tuple[onnx.ModelProto, PassRecord]:
    result = PassManager(Pipeline.parse(spec)).run(decode(model), PassContext())
    return encode(result.graph), result.records[0]


@pytest.mark.parametrize(
    "model",
    [
        pyramid(),
        pyramid("su"),
        pyramid("susu", outputs=(6, 8)),
        pyramid("uu"),
        pyramid("u"),
        pyramid("u", outputs=(3, 4)),
        pyramid(scales=(1, 1, 1, 3)),
        pyramid(scales=(1, 1, 1.5, 2.25), how={"mode": "nearest"}),  # half pixels, rounded: still a copy of pixels
        pyramid(opset=13),
        pyramid(opset=11),
        pyramid(opset=10, how={"mode": "nearest"}),
        pyramid(opset=9, how={"mode": "nearest"}),
        pyramid(opset=8, how={"mode": "nearest"}),
        pyramid(scales=(2, 2), opset=18, how={**NEAREST, "axes": [2, 3]}),
    ],
)
def test_the_small_image_is_computed_and_repeated(model: onnx.ModelProto) -> None:
    after, record = rewritten(model)
    convs = sum(node.op_type == "Conv" for node in model.graph.node)
    assert record.changes == convs
    makers = {name: node for node in after.graph.node for name in node.output}
    for node in after.graph.node:
        if node.op_type in ("Resize", "Upsample"):
            assert makers[node.input[0]].op_type == "Conv"
    fed = feeds(model)
    for wanted, got in zip(builders.run(model, fed), builders.run(after, fed), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


def test_multiplications_and_copies_are_fewer() -> None:
    after, _ = rewritten(pyramid())
    assert sorted(node.op_type for node in after.graph.node) == sorted(
        ["Tanh", "Sigmoid", "Conv", "Conv", "Resize", "Add", "Relu"]
    )
    weights = {i.name: tuple(i.dims) for i in after.graph.initializer}
    read = {node.name: weights[node.input[1]] for node in after.graph.node if node.op_type == "Conv"}
    assert read == {"conv0": (6, 5, 1, 1), "conv0_small": (6, 8, 1, 1)}


@pytest.mark.parametrize(
    "model",
    [
        pyramid(outputs=(9,)),  # more channels would be repeated than before
        pyramid(outputs=(6, 6)),
        pyramid("s" * 2),
        pyramid(kernel=3, pads=[1, 1, 1, 1]),
        pyramid(pads=[1, 1, 1, 1]),
        pyramid(strides=[2, 2]),
        pyramid("u", group=2, outputs=(6,)),
        pyramid(extra=True),
        pyramid("u", shown=True),
        pyramid("us", shown=True),
        pyramid(scales=(1, 1, 0.5, 0.5)),
        pyramid(how={"mode": "linear"}),
    ],
)
def test_what_gains_nothing_or_is_another_thing_stays(model: onnx.ModelProto) -> None:
    after, record = rewritten(model)
    assert record.changes == 0
    assert builders.ops(after) == builders.ops(model)


def test_scales_that_are_computed_stay() -> None:
    model = pyramid("u")
    model.graph.input.append(builders.value("scales0", FLOAT, [4]))
    model.graph.initializer.remove(next(i for i in model.graph.initializer if i.name == "scales0"))
    assert rewritten(model)[1].changes == 0


def test_only_what_is_named_is_rewritten() -> None:
    assert rewritten(pyramid(), 'conv-before-resize{include=["conv0"]}')[1].changes == 1
    assert rewritten(pyramid(), 'conv-before-resize{exclude=["conv0"]}')[1].changes == 0


def test_a_gpu_is_left_alone() -> None:
    result = PassManager(Pipeline.parse("conv-before-resize")).run(decode(pyramid()), PassContext(target="tensorrt"))
    assert result.records[0].changes == 0


def test_the_pass_keeps_the_contract() -> None:
    check_pass(ConvBeforeResize(), decode(pyramid("susu", outputs=(6, 8))))
