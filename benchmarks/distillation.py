"""What does training bring to compressed models? Runs each student of the table and writes docs/distillation.md.

    python benchmarks/distillation.py [NAME]...

Needs the folder of models and data that ONNXCOMP_TEST_ASSETS names. The test sets judge only; they choose nothing.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from common import ROOT, keep, machine, need_assets, onnxcomp, table, write_page

PAGE = ROOT / "docs" / "distillation.md"
ABOUT = """Held-out loss: before the first step, and the
lowest. Sizes are of dense files. The last column: share of held-out samples on which the file and the trained graph
decide alike; on 4-bit activations a value in a million stands so near the middle of two levels that float and integer
arithmetic round it differently."""
CIFAR = ("--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225", "--scale", "1/255")


@dataclass(frozen=True)
class Student:
    """One line of the table. `target`: top-1 on the test set that the result must reach."""

    name: str
    about: str
    model: str
    data: str
    passes: str
    target: float


STUDENTS = (
    Student("lenet5-98", "98 % of weights zero, refitted, 1 epoch", "lenet5-mnist", "mnist",
            "prune-weights{ratio=0.98},distill{epochs=1,lr=0.04}", 0.991),
    Student("lenet5-99", "99 % of weights zero, refitted, 1 epoch", "lenet5-mnist", "mnist",
            "prune-weights{ratio=0.99},distill{epochs=1,lr=0.01}", 0.985),
    Student("lenet5-narrow-4bit", "8-16-40 channels, 4-bit weights, 1 epoch", "lenet5-mnist", "mnist",
            'prune-channels{keep=["/conv1*:8","/conv2*:16","/fc1*:40"]},distill{epochs=1,bits=4}', 0.990),
    Student("lenet5-2bit", "2-bit weights in every layer, 8-bit activations, 300 steps", "lenet5-mnist", "mnist",
            "distill{steps=300,bits=2,activation_bits=8,edge_bits=0}", 0.988),
    Student("lenet5-binary", "binary weights, 8-bit activations, edges 8-bit, 1 epoch", "lenet5-mnist", "mnist",
            "distill{epochs=1,bits=1,activation_bits=8}", 0.0),
    Student("lenet300-95", "95 % of weights zero, refitted, 3 epochs", "lenet300-100-mnist", "mnist",
            "prune-weights{ratio=0.95},distill{epochs=3,lr=0.01}", 0.978),
    Student("resnet20-half-150", "half the MACs, 150 steps of 64", "resnet20-cifar10", "cifar10",
            "prune-channels{macs=0.5},distill{steps=150,lr=0.01}", 0.826),
    Student("resnet20-half", "half the MACs, 3 epochs, mirrored and shifted", "resnet20-cifar10", "cifar10",
            "prune-channels{macs=0.5},distill{epochs=3,lr=0.01,augment=[flip,crop]}", 0.840),
    Student("resnet20-w4a4", "4-bit weights and activations, edges 8-bit, 3 epochs, mirrored and shifted",
            "resnet20-cifar10", "cifar10", "distill{epochs=3,bits=4,activation_bits=4,augment=[flip,crop]}", 0.850),
)  # fmt: skip


def measured(student: Student, assets: Path) -> dict[str, object]:
    """Run one and read its report."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ran = onnxcomp(
            "optimize", assets / "models" / f"{student.model}.onnx",
            "--data", assets / "data" / f"{student.data}-train.npz",
            "--eval-data", assets / "data" / f"{student.data}-test.npz",
            "--passes", student.passes, "-o", "student.onnx", "--report", "report.json", "--no-bench",
            *(CIFAR if student.data == "cifar10" else ()),
            cwd=folder,
        )  # fmt: skip
        if ran.returncode:
            sys.exit(ran.stderr)
        report = json.loads((folder / "report.json").read_text())
    (training,) = report["training"]
    return {
        "name": student.name,
        "passes": student.passes,
        "top1": report["accuracy"]["after"],
        "original": report["accuracy"]["before"],
        "bytes": [report["before"]["bytes"], report["after"]["bytes"]],
        "held_out": [training["held_out"][0][1], min(loss for _, loss in training["held_out"])],
        "steps": training["steps"],
        "seconds": training["seconds"],
        "step_ms": round(1000 * training["step_seconds"], 1),
        "metrics": report["passes"][-1]["metrics"],
        **machine(),
    }


def page() -> str:
    """The table of all that was measured so far."""
    known = {row["name"]: row for row in keep("distillation", [], "name")}
    lines = []
    for student in STUDENTS:
        row = known.get(student.name)
        if row is None:
            continue
        agreement = row["metrics"].get("written_agreement")
        lines.append(
            (
                f"{student.model}: {student.about}",
                f"{row['top1']:.4f}",
                f"{student.target:.3f}" if student.target else "",
                f"{row['original']:.4f}",
                f"{row['bytes'][1] / row['bytes'][0]:.1%}",
                f"{row['held_out'][0]:.3g} -> {row['held_out'][1]:.3g}",
                f"{row['steps']}",
                "" if agreement is None else f"{agreement:.2%}",
            )
        )
    head = ("student", "top-1", "target", "original", "size", "held-out loss", "steps", "file = trained")
    first = next(iter(known.values()))
    return f"{table(head, lines)}\n\n{first['cpu']}; ONNX Runtime {first['onnxruntime']}. {ABOUT}"


def main(names: list[str]) -> None:
    """Measure those named, or all, and write the page."""
    assets = need_assets()
    for student in STUDENTS:
        if not names or student.name in names:
            row = measured(student, assets)
            print(json.dumps(row), flush=True)
            keep("distillation", [row], "name")
    write_page(PAGE, "distillation", page())


if __name__ == "__main__":
    main(sys.argv[1:])
