"""Does onnxcomp reach its targets, and how does it stand to onnxruntime.quantization in the same run?

    python benchmarks/targets.py [NAME ...] [--no-peers]     # NAME: see TARGETS; default: all

Models, data and the judge (meter.py, baseline.py, which know nothing of onnxcomp) come from the folder that
ONNXCOMP_TEST_ASSETS names. Every figure is the judge's. Rows go to results/targets.json and from there into
docs/measured.md. Times are ratios to the float model, measured interleaved in one process at batch 1.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import common
import numpy as np
import onnx
from onnx import numpy_helper

MNIST = ("--data", "data/mnist-train.npz", "--eval-data", "data/mnist-test.npz")
CIFAR: tuple[str, ...] = (
    "--data",
    "data/cifar10-train.npz",
    "--eval-data",
    "data/cifar10-test.npz",
    "--mean",
    "0.485,0.456,0.406",
)
CIFAR += ("--std", "0.229,0.224,0.225", "--color", "rgb")
TEXT = (
    "--data",
    "data/packages-train.npz",
    "--eval-data",
    "data/packages-test.npz",
    "--metric",
    "metrics.py:recall_at_1",
)
PHOTOS = ("--data", "data/photos", "--scale", "1", "--color", "bgr", "--resize", "letterbox", "--pad-value", "114")
QUANTIZE = "fold-constants,cleanup,fuse-batchnorm,quantize-qdq"


@dataclass(frozen=True)
class Target:
    """One run of `onnxcomp optimize` and what it must reach.

    Attributes:
        model: as baseline.py calls it.
        flags: data flags; words that name a file of the assets folder are made absolute.
        passes: a spec, or empty for the default.
        limits: figure -> limit; `drop`, `size`, `time` are upper limits, `sqnr_db`, `quality`, `zeros` lower ones.
    """

    model: str
    flags: tuple[str, ...]
    passes: str = ""
    limits: dict[str, float] = field(default_factory=dict)


def prune(ratio: float) -> str:
    return f"prune-weights{{ratio={ratio},compensate=true}}"


TARGETS = {
    "resnet20 default": Target("resnet20", CIFAR, "", {"drop": 0.001, "sqnr_db": 33.5, "size": 0.31}),
    "resnet20 native": Target(
        "resnet20", CIFAR, f"{QUANTIZE}{{isa=native}}", {"drop": 0.002, "sqnr_db": 31.5, "size": 0.31}
    ),
    "lenet5 default": Target("lenet5", MNIST, "", {"drop": 0.0005, "sqnr_db": 41.0, "time": 0.60, "size": 0.265}),
    "lenet300 default": Target("lenet300", MNIST, "", {"sqnr_db": 41.5, "time": 0.55, "size": 0.27}),
    "minilm default": Target("minilm", TEXT, "", {"quality": 0.806, "sqnr_db": 27.0, "time": 0.46, "size": 0.265}),
    "minilm 4-bit": Target("minilm", TEXT, "quantize-weights{bits=4,block=32}", {"quality": 0.797, "size": 0.17}),
    "yolox default": Target("yolox", PHOTOS, ""),
    "lenet5 pruned 90 %": Target("lenet5", MNIST, prune(0.9), {"quality": 0.992, "zeros": 0.9, "seconds": 90}),
    "lenet5 pruned 95 %": Target("lenet5", MNIST, prune(0.95), {"quality": 0.990, "zeros": 0.95, "seconds": 90}),
    "lenet5 pruned 98 %": Target("lenet5", MNIST, prune(0.98), {"quality": 0.985, "zeros": 0.98, "seconds": 90}),
}
UPPER = {"drop", "size", "time", "seconds"}
PEERS = ("U8S8 per channel", "U8S8 per channel percentile", "dynamic per channel")


def measure(name: str, target: Target, assets: Path) -> dict[str, Any]:
    """Run one target and judge the file it wrote."""
    import baseline
    import meter

    before = assets / "models" / f"{baseline.MODELS[target.model]}.onnx"
    flags = [str(assets / word) if (assets / word.split(":")[0]).exists() else word for word in target.flags]
    if target.passes:
        flags += ["--passes", target.passes]
    with tempfile.TemporaryDirectory() as folder:
        after, report = Path(folder) / "after.onnx", Path(folder) / "report.json"
        start = time.perf_counter()
        done = common.onnxcomp("optimize", before, "-o", after, "--report", report, "-q", *flags, cwd=Path(folder))
        row = {"row": name, "model": target.model, "seconds": round(time.perf_counter() - start, 1)}
        row["exit_code"] = done.returncode
        if not report.exists():
            sys.exit(f"{name}: exit code {done.returncode}\n{done.stderr}")
        row["verdict"] = json.loads(report.read_text())["verdict"]
        if after.exists():
            row |= {"size": round(meter.size(after) / meter.size(before), 4), "zeros": round(zeros(after), 4)}
            row |= baseline.judge(target.model, str(before), str(after))
    row["missed"] = missed(row, target.limits)
    return row


def zeros(path: Path) -> float:
    """Share of zeros over all float weights with two or more dimensions."""
    arrays = [numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer if len(t.dims) > 1]
    weights = [a for a in arrays if np.issubdtype(a.dtype, np.floating)]
    total = sum(a.size for a in weights)
    return sum(int((a == 0).sum()) for a in weights) / total if total else 0.0


def quality(row: dict[str, Any]) -> list[float] | None:
    """The task metric before and after."""
    found: list[float] | None = row.get("top1") or row.get("recall_at_1")
    return found


def missed(row: dict[str, Any], limits: dict[str, float]) -> list[str]:
    """The limits that a row does not keep, in words."""
    found = quality(row)
    figures = row | ({"quality": found[1], "drop": round(found[0] - found[1], 6)} if found else {})
    result = []
    for name, limit in limits.items():
        if name not in figures:
            result.append(f"{name}: not measured")
        elif (figures[name] > limit) if name in UPPER else (figures[name] < limit):
            result.append(f"{name} {figures[name]} against {limit}")
    return result


def peers(models: list[str], assets: Path) -> Iterator[dict[str, Any]]:
    """onnxruntime.quantization at its known settings, on the same models."""
    command = [sys.executable, str(assets / "baseline.py"), *models]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            if not line.startswith("{"):  # what the quantizer says of its progress
                continue
            row = json.loads(line)
            if row["setting"] in PEERS:
                yield row | {"row": f"{row['model']} peer: {row['setting']}"}
    if process.returncode:
        sys.exit(f"baseline.py ended with {process.returncode}")


def page_table(rows: list[dict[str, Any]]) -> str:
    """The rows as they stand in docs/measured.md."""
    cells = []
    for row in sorted(rows, key=lambda r: (list(baseline_order()).index(r["model"]), "peer" in r["row"], r["row"])):
        found = quality(row)
        spread = "-".join(f"{v:.2f}" for v in row["spread"]) if "spread" in row else ""
        verdict = row.get("verdict", "")
        cells.append(
            [
                row["row"],
                f"{found[0]:.4f} -> {found[1]:.4f}" if found else "",
                row.get("sqnr_db", ""),
                f"{row['size']:.1%}" if "size" in row else "",
                f"{row['time']:.2f} ({spread})" if "time" in row else "",
                " of ".join(map(str, row["integer_convs"])) if "integer_convs" in row else "",
                row["seconds"],
                "" if not verdict else f"missed: {'; '.join(row['missed'])}" if row["missed"] else verdict,
            ]
        )
    head = ["model and setting", "quality", "SQNR dB", "size", "time (quartiles)", "integer convs", "s", "result"]
    facts = "; ".join(f"{key} {value}" for key, value in common.machine().items())
    return f"Measured on {facts}.\n\n{common.table(head, cells)}"


def baseline_order() -> tuple[str, ...]:
    """Models in the order of the table."""
    return tuple(dict.fromkeys(target.model for target in TARGETS.values()))


def write(rows: list[dict[str, Any]]) -> None:
    """Rows into the results and onto the page, beside those that stand there."""
    everything = common.keep("targets", rows, "row")
    common.write_page(common.ROOT / "docs" / "measured.md", "targets", page_table(everything))


def main() -> None:
    """Measure what is asked for and bring the page up to date."""
    parser = argparse.ArgumentParser(description="Judge onnxcomp against its targets and peers.")
    parser.add_argument("names", nargs="*", help=f"some of: {', '.join(TARGETS)}")
    parser.add_argument("--no-peers", action="store_true", help="leave onnxruntime.quantization out")
    arguments = parser.parse_args()
    assets = common.need_assets()
    chosen = {name: t for name, t in TARGETS.items() if not arguments.names or name in arguments.names}
    rows = []
    for name, target in chosen.items():
        rows.append(measure(name, target, assets))
        print(json.dumps(rows[-1]), flush=True)
    write(rows)
    if not arguments.no_peers:
        for row in peers(list(dict.fromkeys(t.model for t in chosen.values())), assets):
            rows.append(row)
            print(json.dumps(row), flush=True)
        write(rows)
    if any(row.get("missed") for row in rows):
        sys.exit("some targets were missed")


if __name__ == "__main__":
    main()
