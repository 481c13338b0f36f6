"""Training form of Resize: one constant matrix an axis, whatever its mode, for every mode is linear and separable."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper

from onnxcomp.errors import OnnxcompError
from onnxcomp.graph.ir import Array, elem_type
from onnxcomp.graph.rewriting import CannotRewriteError, Replacement, Site
from onnxcomp.ops.gradients.linear import along
from onnxcomp.runtime.session import open_session


def resize(site: Site) -> Replacement:
    """Each resized axis as a product with a matrix [before, after]: what ONNX Runtime makes of the unit vectors."""
    before, after = site.shape(), site.shape(site.node.outputs[0])
    if site.attr("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        raise CannotRewriteError("it crops to a region before it resizes")
    scales = _scales(site, before, after)
    result = site.x
    for axis, (old, new) in enumerate(zip(before, after, strict=True)):
        if old != new or scales[axis] != 1.0:
            result = along(site, result, len(before), axis, _matrix(site, old, new, scales[axis]))
    return result


def _scales(site: Site, before: tuple[int, ...], after: tuple[int, ...]) -> list[float]:
    """Scale of every axis as the operator computes it."""
    found = [new / old for old, new in zip(before, after, strict=True)]
    given, axes = site.value(2), site.attr("axes", None)
    if given is not None and given.size:
        for axis, scale in zip(axes or range(len(before)), given.reshape(-1).tolist(), strict=True):
            found[int(axis) % len(before)] = scale
    return found


def _matrix(site: Site, old: int, new: int, scale: float) -> Array:
    """[old, new]: the operator run on the rows of the unit matrix, along one axis."""
    given = site.value(2) is not None and site.value(2).size > 0  # type: ignore[union-attr]
    dropped = ("axes", "keep_aspect_ratio_policy")
    attrs: dict[str, Any] = {k: v for k, v in site.node.attrs.items() if k not in dropped}
    node = helper.make_node(
        "Resize", ["x", "", "scales"] if given else ["x", "", "", "sizes"], ["y"], "resize", **attrs
    )
    steer = np.array([1, 1, 1, scale], np.float32) if given else np.array([old, 1, 1, new], np.int64)
    graph = helper.make_graph(
        [node],
        "resize",
        [helper.make_tensor_value_info("x", elem_type(np.dtype(np.float32)), [old, 1, 1, old])],
        [onnx.ValueInfoProto(name="y")],
        [onnx.numpy_helper.from_array(steer, "scales" if given else "sizes")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", site.opset)], ir_version=8)
    try:
        found = open_session(model.SerializeToString(), threads=1).run(
            {"x": np.eye(old, dtype=np.float32).reshape(old, 1, 1, old)}
        )["y"]
    except OnnxcompError as error:
        raise CannotRewriteError(f"ONNX Runtime does not resize one axis of it: {error.what}") from error
    if found.shape != (old, 1, 1, new):
        raise CannotRewriteError("ONNX Runtime gives it another size than shape inference does")
    return found.reshape(old, new).astype(site.dtype)
