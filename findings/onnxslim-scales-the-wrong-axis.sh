#!/usr/bin/env bash
# onnxslim 0.1.98: a factor behind a layer is folded into its weight along an axis that only has the same size, without a word.
#
# Mul by a constant behind Conv, ConvTranspose or Gemm becomes part of the weight (the fusions are on by default). What is looked at is how
# many values the constant has, not where they stand:
#   Conv, then Mul by [W] or [H, 1] where W or H is the number of output channels   a window over the width, a mask over the height
#                         becomes a factor per channel; so does a window over time behind a 1-D Conv. [C, 1, 1] is right
#   ConvTranspose with groups, then Mul by [W], W the outputs of one group          the same
#   Gemm, Reshape, Mul by [N], where the Gemm's result has another reader too       the other reader gets scaled values as well
# Seen: errors as large as the outputs; without the coincidence of sizes, and with Add in the place of Mul, all
# is right. onnx 1.23.2's full check passes what comes out, and onnxslim compares outputs only when asked (model_check).
# Maps of n channels and size n are common: 8 x 8 x 8, 16 x 16 x 16. skip_fusion_patterns leaves a fusion out. Exits non-zero where that is no longer so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnxslim==0.1.98 onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6
here=$(cd "$(dirname "$0")" && pwd)
ORT_DISABLE_TELEMETRY=1 PYTHONPATH="$here" PYTHONDONTWRITEBYTECODE=1 "$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
import onnx
import onnxslim
from common import NONE, expect, model, random, session
from onnx import helper


def array(*shape):
    return random.normal(size=shape).astype(np.float32)


def off(nodes, shape, weights, **options):
    """The largest error after onnxslim, as a share of the largest value."""
    proto = onnx.load_from_string(model(nodes, shape, weights))
    inferred = onnx.shape_inference.infer_shapes(proto)
    proto.graph.output[0].CopyFrom(inferred.graph.output[0])
    onnx.checker.check_model(proto, full_check=True)
    slim = onnxslim.slim(onnx.load_from_string(proto.SerializeToString()), **options)
    onnx.checker.check_model(slim, full_check=True)
    x = array(*shape)
    before, after = (session(m.SerializeToString(), NONE).run(None, {"x": x})[0] for m in (proto, slim))
    return abs(before - after).max() / abs(before).max()


def layer(op, shape, weight, then, factor, **attributes):
    nodes = [helper.make_node(op, ["x", "w"], ["c"], **attributes), helper.make_node(then, ["c", "k"], ["y"])]
    return nodes, shape, {"w": array(*weight), "k": array(*factor)}


IMAGE, SOUND = [2, 4, 8, 8], [2, 4, 8]
WRONG = {
    "Conv of 8 channels, Mul by a row of 8": layer("Conv", IMAGE, (8, 4, 1, 1), "Mul", (8,)),
    "Conv of 8 channels, Mul by a column of 8": layer("Conv", IMAGE, (8, 4, 1, 1), "Mul", (8, 1)),
    "1-D Conv of 8 channels, Mul by a window of 8": layer("Conv", SOUND, (8, 4, 1), "Mul", (8,)),
    "ConvTranspose of 2 groups of 8, Mul by 8": layer("ConvTranspose", SOUND, (4, 8, 1), "Mul", (8,), group=2),
}
for name, case in WRONG.items():
    found = off(*case)
    expect(f"{name}: {found:.1f} of the largest value off", found > 0.3)
    expect(f"{name}: right with the fusions left out", off(*case, skip_fusion_patterns=["FusionConvMul", "FusionConvTransposeMul"]) < 1e-5)

RIGHT = {
    "Mul by a value per channel": layer("Conv", IMAGE, (8, 4, 1, 1), "Mul", (8, 1, 1)),
    "Conv of 6 channels, Mul by a row of 8": layer("Conv", IMAGE, (6, 4, 1, 1), "Mul", (8,)),
    "Conv of 8 channels, Add of a row of 8": layer("Conv", IMAGE, (8, 4, 1, 1), "Add", (8,)),
    "1-D Conv of 8 channels, Add of a window of 8": layer("Conv", SOUND, (8, 4, 1), "Add", (8,)),
}
for name, case in RIGHT.items():
    expect(f"{name}: right", off(*case) < 1e-5)

HELD = {"w": array(5, 4), "b": array(5), "s": np.int64([2, 3, 5]), "k": array(5)}
for then in ("Mul", "Add"):
    for others in (1, 0):
        nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["g"], transB=1), helper.make_node("Reshape", ["g", "s"], ["r"])]
        nodes.append(helper.make_node(then, ["r", "k"], ["t" if others else "y"]))
        if others:
            nodes += [helper.make_node("ReduceMax", ["g"], ["m"], keepdims=0), helper.make_node("Add", ["t", "m"], ["y"])]
        found, case = off(nodes, [6, 4], HELD), f"Gemm, Reshape, {then}, {1 + others} reader{'s' * others}"
        if then == "Mul" and others:
            expect(f"{case}: {found:.1f} of the largest value off", found > 0.1)
        else:
            expect(f"{case}: right", found < 1e-5)
PYTHON
