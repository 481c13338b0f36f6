"""How long does the tool take to start, and how much time and memory do large models and calibration need?

    python benchmarks/scale.py [start] [nodes] [large] [calibration]     # default: all; `large` writes 5 GB

Rows go to results/scale.json and from there into docs/measured.md. `calibration` needs ONNXCOMP_TEST_ASSETS.
Memory is the peak resident set of a process of its own, as the kernel counted it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import common
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Row = dict[str, Any]
LARGE_LAYERS, LARGE_WIDTH = 9, 8192  # 9 * 8192 * 8192 * 4 bytes = 2.4 GB
NODES = 5000


WATCH = """
import json, os, subprocess, sys, time
start = time.perf_counter()
process = subprocess.Popen(sys.argv[2:], stdout=sys.stderr)
_, status, usage = os.wait4(process.pid, 0)
found = [time.perf_counter() - start, usage.ru_maxrss * 1024, os.waitstatus_to_exitcode(status)]
open(sys.argv[1], "w").write(json.dumps(found))
"""


def child(*command: str | Path, cwd: Path | None = None) -> tuple[float, int, int]:
    """Seconds, peak resident bytes and exit code of a process; its output is shown only when it fails.

    A process of little memory starts it: Linux counts what the parent held at the start among the peak of its child.
    """
    environment = os.environ | {"PYTHONPATH": str(common.ROOT)}
    with tempfile.NamedTemporaryFile("r") as result:
        watched = [sys.executable, "-c", WATCH, result.name, *map(str, command)]
        done = subprocess.run(watched, cwd=cwd, env=environment, capture_output=True, text=True, check=True)
        seconds, peak, code = json.load(result)
    if code not in (0, 13):
        sys.exit(f"{' '.join(map(str, command))}\n{done.stderr}")
    return seconds, peak, code


def start() -> Iterator[Row]:
    """Median of ten starts, warm disk."""
    python = (sys.executable, "-c")
    bare = statistics.median(child(*python, "pass")[0] for _ in range(10))
    for name, code, limit in (
        ("import onnxcomp", "import onnxcomp", 0.3),
        ("onnxcomp --help", "from onnxcomp.cli.main import main; main(['--help'])", 0.5),
    ):
        seconds = statistics.median(child(*python, code)[0] for _ in range(10))
        yield {"row": name, "seconds": round(seconds, 3), "limit": f"{limit} s", "note": f"python alone {bare:.3f} s"}


def chain(nodes: int) -> onnx.ModelProto:
    """A model of many small nodes: Conv, Add and Relu in turn, an Identity now and then."""
    rng = np.random.default_rng(0)
    steps, weights, x = [], [], "x"
    for i in range(nodes):
        op = ("Conv", "Add", "Relu", "Identity")[i % 4]
        inputs = [x]
        if op in ("Conv", "Add"):
            shape = (8, 8, 1, 1) if op == "Conv" else (1, 8, 1, 1)
            weights.append(numpy_helper.from_array(rng.normal(0, 0.3, shape).astype(np.float32), f"w{i}"))
            inputs.append(f"w{i}")
        x = f"t{i}" if i < nodes - 1 else "y"
        steps.append(helper.make_node(op, inputs, [x], f"n{i}"))
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 8, 4, 4]) for name in ("x", "y")]
    graph = helper.make_graph(steps, "chain", ends[:1], ends[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


CLEAN = """
import sys, time
import onnxcomp
start = time.perf_counter()
pipeline = onnxcomp.Pipeline.parse("fold-constants,cleanup")
result = onnxcomp.PassManager(pipeline, verify=False).run(onnxcomp.load(sys.argv[1]))
onnxcomp.save(result.graph, sys.argv[2])
print(time.perf_counter() - start)
"""


def nodes(folder: Path) -> Iterator[Row]:
    """Load, clean-up and save of a model with many nodes."""
    source = folder / "chain.onnx"
    onnx.save(chain(NODES), str(source))
    command = [sys.executable, "-c", CLEAN, str(source), str(folder / "chain.opt.onnx")]
    environment = os.environ | {"PYTHONPATH": str(common.ROOT)}
    runs = [subprocess.run(command, env=environment, capture_output=True, text=True, check=True) for _ in range(3)]
    seconds = statistics.median(float(run.stdout) for run in runs)
    yield {"row": f"load, clean up, save: {NODES:,} nodes", "seconds": round(seconds, 2), "limit": "3 s", "note": ""}


def write_large(path: Path) -> Path:
    """A chain of wide MatMuls with 2.4 GB of external data, written without holding it."""
    rng = np.random.default_rng(0)
    block = rng.normal(0, LARGE_WIDTH**-0.5, (LARGE_WIDTH, LARGE_WIDTH)).astype(np.float32)
    steps, weights, x = [], [], "x"
    with path.with_name("large.bin").open("wb") as file:
        for i in range(LARGE_LAYERS):
            tensor = TensorProto(name=f"w{i}", data_type=TensorProto.FLOAT, dims=block.shape)
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", "large.bin"), ("offset", file.tell()), ("length", block.nbytes)):
                tensor.external_data.add(key=key, value=str(value))
            file.write(np.roll(block, i, axis=0).data)  # no two layers alike, else clean-up merges them
            weights.append(tensor)
            out = "y" if i == LARGE_LAYERS - 1 else f"h{i}"
            steps.append(helper.make_node("MatMul", [x, f"w{i}"], [out], f"layer{i}"))
            x = out
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", LARGE_WIDTH]) for name in ("x", "y")]
    graph = helper.make_graph(steps, "large", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def large(folder: Path) -> Iterator[Row]:
    """cleanup and weight quantization of a model over 2 GB, with and without verification."""
    source = write_large(folder / "large.onnx")
    flags: list[str]
    for name, flags, limit in (("without verification", ["--no-verify"], 1.5e9), ("with verification", [], 5e9)):
        out: list[str | Path] = ["-o", folder / "out.onnx", "--report", folder / "out.json", "--no-bench", "-q"]
        passes = ["--passes", "cleanup,quantize-weights", *flags]
        seconds, peak, code = child(sys.executable, "-m", "onnxcomp", "optimize", source, *out, *passes, cwd=folder)
        row = f"2.4 GB: cleanup, quantize-weights {name}"
        note = f"exit code {code}"
        yield {"row": row, "seconds": round(seconds, 1), "peak": peak, "limit": f"{limit / 1e9:g} GB", "note": note}


PEER = """
import sys, time
sys.path.insert(0, sys.argv[1])
import baseline, onnx, onnx.version_converter
from onnxruntime.quantization import quantize_static, QuantFormat, QuantType
raised = sys.argv[2] + "/raised.onnx"
onnx.save(onnx.version_converter.convert_version(onnx.load(sys.argv[1] + "/models/yolox-nano.onnx"), 17), raised)
feeds = baseline.feeds_of("yolox", "images")
start = time.perf_counter()
quantize_static(raised, sys.argv[2] + "/peer.onnx", baseline.Reader(feeds), quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, per_channel=True)
print(time.perf_counter() - start)
"""


CALIBRATE = "quantize-qdq{activations=minmax,rounding=nearest,bias_correction=false,min_sqnr=0}"


def calibration(folder: Path) -> Iterator[Row]:
    """Min-max calibration on photographs against quantize_static's, and whether memory grows with the samples.

    The rows with `CALIBRATE` do what quantize_static does; the last one is the pass as it comes.
    """
    assets = common.need_assets()
    photos: list[str | Path] = ["--data", assets / "data" / "photos", "--scale", "1", "--color", "bgr"]
    photos += ["--resize", "letterbox", "--pad-value", "114", "--no-verify", "--no-bench", "-q"]
    base, least = 0, 0
    for samples, spec in ((16, "cleanup"), (16, CALIBRATE), (100, CALIBRATE), (100, "quantize-qdq")):
        out, report = folder / "yolox.onnx", folder / "yolox.json"
        command: list[str | Path] = [
            sys.executable,
            "-m",
            "onnxcomp",
            "optimize",
            assets / "models" / "yolox-nano.onnx",
        ]
        command += ["-o", out, "--report", report, "--passes", spec, "--calib-samples", str(samples), *photos]
        _, peak, _ = child(*command, cwd=folder)
        if spec == "cleanup":
            base = peak
            continue
        record = next(r for r in json.loads(report.read_text())["passes"] if r["name"] == "quantize-qdq")
        growth = peak - base
        least = least or growth
        what = "min-max" if spec == CALIBRATE else "all it does by default"
        limit = "400 MB more than without" if spec == CALIBRATE else ""
        if samples == 100 and limit:
            limit = f"quantize_static's time; {limit}; 105 % of 16 photographs'"
        yield {
            "row": f"yolox-nano: quantize-qdq, {what}, {samples} photographs",
            "seconds": round(record["seconds"], 1),
            "peak": peak,
            "limit": limit,
            "note": f"{growth / 1e6:.0f} MB more than without, {growth / least:.0%}; decoding included",
        }
    done = subprocess.run(
        [sys.executable, "-c", PEER, str(assets), str(folder)], capture_output=True, text=True, check=True
    )
    seconds = float(done.stdout.splitlines()[-1])
    note = "feeds ready in memory"
    yield {"row": "yolox-nano: quantize_static min-max, 100 photographs", "seconds": round(seconds, 1), "note": note}


def page_table(rows: list[Row]) -> str:
    """The rows as they stand in docs/measured.md."""
    facts = "; ".join(f"{key} {value}" for key, value in common.machine().items())
    cells = [
        [r["row"], r["seconds"], f"{r['peak'] / 1e9:.2f} GB" if "peak" in r else "", r.get("limit", ""), r["note"]]
        for r in rows
    ]
    head = ["what", "seconds", "peak memory", "limit", "note"]
    return f"Measured on {facts}.\n\n{common.table(head, cells)}"


def main() -> None:
    """Measure what is asked for and bring the page up to date."""
    parser = argparse.ArgumentParser(description="Start-up, scale and memory.")
    parser.add_argument("parts", nargs="*", help="start, nodes, large, calibration; default: all")
    parser.add_argument("--folder", type=Path, help="where large files go; default: the system's temporary folder")
    arguments = parser.parse_args()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        parts = {
            "start": start,
            "nodes": lambda: nodes(folder),
            "large": lambda: large(folder),
            "calibration": lambda: calibration(folder),
        }
        for part in arguments.parts or parts:
            for row in parts[part]():
                rows.append(row)
                print(json.dumps(row), flush=True)
    everything = common.keep("scale", rows, "row")
    common.write_page(common.ROOT / "docs" / "measured.md", "scale", page_table(everything))


if __name__ == "__main__":
    main()
