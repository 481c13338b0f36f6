"""Int8 by onnxcomp against NNCF's, both run by OpenVINO on this processor: error and time, same samples, one run.

    python benchmarks/openvino_nncf.py ASSETS [MODEL ...] [--folder DIR]     # MODEL: resnet20 yolox minilm

Needs a Python with onnxcomp, openvino and nncf. ASSETS holds models/ and data/. NNCF gets its settings in turn (both
presets, its own transformer mode for text, exact and fast bias correction), and its best error and its best time are
what onnxcomp is compared with. Times are of the process's own processor time, blocks of all models in turns.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Feed = dict[str, np.ndarray[Any, Any]]
MEAN, STD = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class Case:
    """A model, its samples, and how onnxcomp is told of them."""

    model: str
    flags: tuple[str, ...]
    calibration: list[Feed]
    judged: list[Feed]
    text: bool = False


def resnet20(assets: Path) -> Case:
    """512 pictures to calibrate, 1,000 others to judge."""

    def feeds(name: str, count: int, size: int) -> list[Feed]:
        pixels = np.load(assets / "data" / name)["images"][:count].transpose(0, 3, 1, 2).astype(np.float32) / 255
        shape = (1, 3, 1, 1)
        whole = (pixels - np.float32(MEAN).reshape(shape)) / np.float32(STD).reshape(shape)
        return [{"input": whole[i : i + size]} for i in range(0, count, size)]

    data = str(assets / "data" / "cifar10-train.npz")
    flags = ("--data", data, "--mean", ",".join(map(str, MEAN)), "--std", ",".join(map(str, STD)))
    flags = (*flags, "--calib-samples", "512")
    return Case("resnet20-cifar10.onnx", flags, feeds("cifar10-train.npz", 512, 1), feeds("cifar10-test.npz", 1000, 50))


def yolox(assets: Path) -> Case:
    """100 photographs to calibrate, 40 others to judge, letterboxed as the model wants them."""
    from PIL import Image

    def feed(path: Path) -> Feed:
        image = Image.open(path).convert("RGB")
        share = min(416 / image.width, 416 / image.height)
        small = image.resize((round(image.width * share), round(image.height * share)))
        canvas = np.full((416, 416, 3), 114, np.uint8)
        canvas[: small.height, : small.width] = np.asarray(small)
        return {"images": canvas[None, :, :, ::-1].transpose(0, 3, 1, 2).astype(np.float32)}

    photos = sorted((assets / "data" / "photos").glob("*.jpg"))
    calibration = [feed(path) for path in photos[:100]]
    flags = ("--data", "{calibration}", "--calib-samples", "100")
    return Case("yolox-nano.onnx", flags, calibration, [feed(path) for path in photos[100:140]])


def minilm(assets: Path) -> Case:
    """128 rows of text to calibrate, 200 others to judge."""

    def feeds(name: str, count: int) -> list[Feed]:
        with np.load(assets / "data" / name) as rows:
            return [{key: rows[key][i : i + 1] for key in ("input_ids", "attention_mask")} for i in range(count)]

    flags = ("--data", "{calibration}", "--calib-samples", "128")
    return Case("minilm-l6.onnx", flags, feeds("packages-train.npz", 128), feeds("packages-test.npz", 200), text=True)


CASES = {"resnet20": resnet20, "yolox": yolox, "minilm": minilm}


def ours(case: Case, model: Path, folder: Path) -> Path:
    """The default run's result for OpenVINO."""
    calibration = folder / "calibration.npz"
    np.savez(calibration, **{key: np.concatenate([f[key] for f in case.calibration]) for key in case.calibration[0]})
    out = folder / "onnxcomp.onnx"
    flags = [flag.format(calibration=calibration) for flag in case.flags]
    recipe = "fold-constants,cleanup,fuse-batchnorm,fuse-slices,cleanup,clip-weights{method=mse},quantize-qdq"
    command = [sys.executable, "-m", "onnxcomp", "optimize", str(model), *flags, "--target", "openvino"]
    subprocess.run([*command, "--passes", recipe, "-o", str(out), "--no-bench", "-q"], check=True)
    return out


def theirs(case: Case, model: Path) -> Iterator[tuple[str, Any]]:
    """NNCF's results by setting."""
    import nncf
    import openvino

    kinds = [None, nncf.ModelType.TRANSFORMER] if case.text else [None]
    for preset, fast, kind in itertools.product(("performance", "mixed"), (True, False), kinds):
        dataset = nncf.Dataset(case.calibration)
        made = nncf.quantize(
            openvino.Core().read_model(model),
            dataset,
            preset=nncf.QuantizationPreset(preset),
            fast_bias_correction=fast,
            subset_size=len(case.calibration),
            model_type=kind,
        )
        yield f"nncf {preset}{'' if fast else ', exact bias'}{', transformer' if kind else ''}", made


def decibels(reference: list[list[Any]], found: list[list[Any]]) -> float:
    """Signal-to-noise ratio in dB of the worst output; of boxes, objectness and classes one by one in a detector's."""
    worst = np.inf
    for index in range(len(reference[0])):
        before = np.concatenate([answer[index].reshape(-1, answer[index].shape[-1]) for answer in reference])
        after = np.concatenate([answer[index].reshape(-1, answer[index].shape[-1]) for answer in found])
        parts = [slice(0, 4), slice(4, 5), slice(5, None)] if before.shape[1] == 85 else [slice(None)]
        for part in parts:
            noise = np.square(after[:, part].astype(np.float64) - before[:, part]).sum()
            worst = min(worst, 10 * np.log10(np.square(before[:, part].astype(np.float64)).sum() / max(noise, 1e-30)))
    return float(worst)


def measure(models: dict[str, Any], judged: list[Feed], seconds: float) -> dict[str, dict[str, float]]:
    """Error against the float model and share of its time, by name; the first is the float model."""
    import openvino

    core = openvino.Core()
    settings = {"INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    requests = {name: core.compile_model(m, "CPU", settings).create_infer_request() for name, m in models.items()}
    answers = {
        name: [[np.array(value) for value in request.infer(feed).values()] for feed in judged]
        for name, request in requests.items()
    }
    one = {key: value[:1] for key, value in judged[0].items()}
    times: dict[str, list[float]] = {name: [] for name in models}
    end = time.perf_counter() + seconds * len(models)
    while time.perf_counter() < end:
        for name, request in requests.items():
            start = time.process_time()
            for _ in range(5):
                request.infer(one)
            times[name].append((time.process_time() - start) / 5)
    first = next(iter(models))
    return {
        name: {
            "sqnr_db": round(decibels(answers[first], answers[name]), 2),
            "time": round(float(np.median(times[name]) / np.median(times[first])), 3),
        }
        for name in models
    }


def main() -> None:
    """Measure the models that are named, print a line each and the whole as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("assets", type=Path)
    parser.add_argument("names", nargs="*", default=list(CASES), help="resnet20 yolox minilm")
    parser.add_argument("--folder", type=Path, help="where models are kept; a temporary folder otherwise")
    parser.add_argument("--seconds", type=float, default=15.0, help="of timing for each model")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        for name in arguments.names:
            case = CASES[name](arguments.assets)
            folder = (arguments.folder or Path(scratch)) / name
            folder.mkdir(parents=True, exist_ok=True)
            model = arguments.assets / "models" / case.model
            models = {"float": model, "onnxcomp": ours(case, model, folder), **dict(theirs(case, model))}
            found = measure(models, case.judged, arguments.seconds)
            for label, row in found.items():
                print(f"{name:10} {label:40} {row['sqnr_db']:7.2f} dB  {row['time']:.3f} of float's time", flush=True)
            print(json.dumps({name: found}), flush=True)


if __name__ == "__main__":
    main()
