#!/usr/bin/env bash
# silero-vad 6.2.3: silero_vad_half.onnx is no half-precision copy of the others.
#
# The package ships six .onnx files of the voice detector. Five of them (silero_vad, _16k_op15, _op18_ifless,
# _openvino_16k, and _16k_sequence over a whole recording) give the same probabilities for the same chunks, to 1e-6. The
# sixth, silero_vad_half.onnx, has the same layers and sizes, so that it fits wherever the others do; but every weight of
# it is float32, not float16, and all but the STFT's basis are other numbers: it is another network. On 3 s of synthetic
# speech (93 chunks of 512 samples with 64 of context, onnxruntime 1.32.0) its probabilities differ by up to 0.93, and it
# calls half of the chunks speech where the others call 3 % so.
#
# So whoever takes it as the small or fast form of the same detector, or as the reference of a half-precision run, compares
# two models. Exits non-zero where that is no longer so.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install numpy==2.4.6 onnx==1.23.2 onnxruntime==1.32.0
"$folder/venv/bin/pip" -q install --no-deps silero-vad==6.2.3
"$folder/venv/bin/python" - <<'PYTHON'
import importlib.util
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper

ort.set_default_logger_severity(4)
data = Path(importlib.util.find_spec("silero_vad").submodule_search_locations[0]) / "data"
rate = 16000
t = np.arange(3 * rate) / rate
phase = 2 * np.pi * np.cumsum(120 + 20 * np.sin(4 * np.pi * t)) / rate
voice = sum(np.sin(k * phase) * np.exp(-(((k * 120 - 700) / 600) ** 2)) for k in range(1, 30))
noise = np.random.default_rng(0).standard_normal(len(t)) * 0.003
audio = (voice * (np.sin(6 * np.pi * t) > 0) * 0.2 + noise).astype(np.float32)


def probabilities(name):
    session = ort.InferenceSession(str(data / name), providers=["CPUExecutionProvider"])
    state, context, found = np.zeros((2, 1, 128), np.float32), np.zeros((1, 64), np.float32), []
    for start in range(0, len(audio) - 511, 512):
        chunk = np.concatenate([context, audio[None, start : start + 512]], 1)
        feed = {"input": chunk, "state": state}
        if any(port.name == "sr" for port in session.get_inputs()):
            feed["sr"] = np.array(rate, np.int64)
        output, state = session.run(None, feed)
        found.append(output.item())
        context = chunk[:, -64:]
    return np.array(found)


wanted = probabilities("silero_vad.onnx")
for name in ("silero_vad_16k_op15.onnx", "silero_vad_op18_ifless.onnx", "silero_vad_openvino_16k.onnx"):
    distance = np.abs(probabilities(name) - wanted).max()
    print(f"{name}: at most {distance:.1e} from silero_vad.onnx")
    assert distance < 1e-4
half = probabilities("silero_vad_half.onnx")
print(f"silero_vad_half.onnx: at most {np.abs(half - wanted).max():.2f} from silero_vad.onnx")
print(f"speech in {np.mean(wanted > 0.5):.0%} of the chunks, and in {np.mean(half > 0.5):.0%} by silero_vad_half.onnx")
assert np.abs(half - wanted).max() > 0.5
first, second = (onnx.load(data / f"silero_vad{end}.onnx").graph.initializer for end in ("_half", "_16k_op15"))
kinds = {onnx.TensorProto.DataType.Name(tensor.data_type) for tensor in first}
print(f"element types of the weights of silero_vad_half.onnx: {', '.join(sorted(kinds))}")
assert kinds == {"FLOAT"}
others = {tensor.name.removeprefix("model."): numpy_helper.to_array(tensor) for tensor in second}
equal = [t.name for t in first if np.array_equal(numpy_helper.to_array(t), others[t.name])]
print(f"equal weights: {equal} of {len(first)}")
assert len(equal) == 1
PYTHON
