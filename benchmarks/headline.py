"""How small can a model be that plain ONNX Runtime runs? Runs each chain of the table and writes docs/searching.md.

    python benchmarks/headline.py [NAME]... [--models FOLDER]

Needs the folder of models and data that ONNXCOMP_TEST_ASSETS names. Training and choosing see the training sets alone,
of which a part is set aside to judge each run; the test sets judge only, by a script that knows nothing of onnxcomp.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common import ROOT, keep, machine, need_assets, onnxcomp, table, write_page

PAGE = ROOT / "docs" / "searching.md"
APART = {"mnist": 2000, "cifar10": 500}  # samples of the training set that judge the run
CIFAR = ("--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225")
LENET = (
    'fold-constants,cleanup,prune-channels{keep=["/conv1/Conv:8","/conv2/Conv:16","/fc1/Gemm:%d"]},distill{epochs=2}'
)
BLOCKS = 60  # of runs of both models in turn, whose processor times are compared


@dataclass(frozen=True)
class Chain:
    """One line of the table.

    Attributes:
        smaller, least: times smaller, and top-1 or recall@1 on the test set, that it must reach.
        faster: most of the original's time at batch 1; 0: none is asked.
    """

    name: str
    model: str
    data: str
    passes: str
    smaller: float
    least: float
    faster: float = 0.0


CHAINS = (
    Chain("lenet5-350", "lenet5-mnist", "mnist",
          f'{LENET % 40},distill{{epochs=7,bits=2,bits_of=["/conv1*:4","/fc2*:4"],granularity=tensor,augment=[crop],'
          "padding=2},compact{provenance=false}", 350, 0.990, 0.20),
    Chain("lenet5-150", "lenet5-mnist", "mnist",
          f'{LENET % 112},distill{{epochs=7,bits=2,bits_of=["/conv*:4","/fc2*:4"],granularity=tensor,augment=[crop],'
          "padding=2},compact{provenance=false}", 150, 0.992, 0.20),
    Chain("lenet300-100", "lenet300-100-mnist", "mnist",
          'fold-constants,cleanup,prune-channels{keep=["*fc1*:92","*fc2*:50"]},distill{epochs=2},'
          'distill{epochs=10,bits=2,bits_of=["*fc2*:4","*fc3*:4"],granularity=tensor,augment=[crop],padding=1},'
          "compact{provenance=false}", 48, 0.9815),
    Chain("resnet20", "resnet20-cifar10", "cifar10",
          'fold-constants,cleanup,distill{epochs=4,bits=2,edge_bits=4,bits_of=["/layer1/*:4","/layer2/*:4"],'
          "granularity=tensor,augment=[flip,crop]},"
          "compact{provenance=false}", 12, 0.8495),
)  # fmt: skip


def measured(chain: Chain, assets: Path, models: Path | None) -> dict[str, Any]:
    """Run one chain and judge the file on the test set; a model that lies in `models` already is judged as it is."""
    import meter

    source = assets / "models" / f"{chain.model}.onnx"
    if models is not None and (models / f"{chain.name}.json").exists():
        report = json.loads((models / f"{chain.name}.json").read_text())
        found = judged(chain, source, models / f"{chain.name}.onnx", meter)
        return found | {"seconds": round(report["seconds"])}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        out = (models or folder).resolve() / f"{chain.name}.onnx"
        out.parent.mkdir(parents=True, exist_ok=True)
        _part(assets / "data" / f"{chain.data}-train.npz", APART[chain.data], folder)
        start = time.perf_counter()
        ran = onnxcomp(
            "optimize", source, "--data", "train.npz", "--eval-data", "apart.npz", "--passes", chain.passes,
            "-o", out, "--no-bench", "--seed", "0", *(CIFAR if chain.data == "cifar10" else ()), cwd=folder,
        )  # fmt: skip
        if ran.returncode:
            sys.exit(ran.stderr)
        seconds = time.perf_counter() - start
        return judged(chain, source, out, meter) | {"seconds": round(seconds)}


def judged(chain: Chain, source: Path, out: Path, meter: Any) -> dict[str, Any]:
    """What the outside judge says of a file."""
    samples, labels = meter.cifar() if chain.data == "cifar10" else meter.mnist()
    return {
        "name": chain.name,
        "passes": chain.passes,
        "bytes": [meter.size(source), meter.size(out)],
        "top1": [meter.top1(source, samples, labels), meter.top1(out, samples, labels)],
        "time": processor_time(source, out, samples[:1], meter),
        **machine(),
    }


def processor_time(source: Path, out: Path, sample: np.ndarray[Any, Any], meter: Any) -> float:
    """Processor time of a file's run as a share of the source's, batch 1, one thread: median over turns."""
    sessions = [(s, s.get_inputs()[0].name) for s in (meter.session(source), meter.session(out))]

    def spent(session: Any, name: str, runs: int) -> float:
        start = time.thread_time()
        for _ in range(runs):
            session.run(None, {name: sample})
        return (time.thread_time() - start) / runs

    for pair in sessions:
        spent(*pair, 20)
    ratios = [spent(*sessions[1], 24) / spent(*sessions[0], 8) for _ in range(BLOCKS)]
    return round(float(np.median(ratios)), 3)


def page() -> str:
    """The table of all that was measured so far."""
    known = {row["name"]: row for row in keep("headline", [], "name")}
    lines = []
    for chain in CHAINS:
        row = known.get(chain.name)
        if row is None:
            continue
        before, after = row["bytes"]
        lines.append(
            (
                chain.name,
                f"{after:,}",
                f"{before / after:.1f} (≥ {chain.smaller:g})",
                f"{row['top1'][1]:.4f} (≥ {chain.least:g}; {row['top1'][0]:.4f} before)",
                f"{row['time']:.2f}" + (f" (≤ {chain.faster:g})" if chain.faster else ""),
                row["seconds"],
                f"`{chain.passes}`",
            )
        )
    head = ("model", "bytes", "times smaller", "top-1", "time", "s", "passes")
    first = next(iter(known.values()))
    return f"{table(head, lines)}\n\nSeed 0. {first['cpu']}, shared with others; ONNX Runtime {first['onnxruntime']}."


def main() -> None:
    """Measure those named, or all, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--models", type=Path, help="where models go; those that lie here with reports are only judged")
    given = parser.parse_args()
    assets = need_assets()
    for chain in CHAINS:
        if not given.names or chain.name in given.names:
            row = measured(chain, assets, given.models)
            print(json.dumps(row), flush=True)
            keep("headline", [row], "name")
    write_page(PAGE, "headline", page())


def _part(data: Path, apart: int, folder: Path) -> None:
    """train.npz and apart.npz: all but the last samples, and those."""
    with np.load(data) as stored:
        arrays = {key: stored[key] for key in stored.files}
    np.savez(folder / "train.npz", **{key: value[:-apart] for key, value in arrays.items()})
    np.savez(folder / "apart.npz", **{key: value[-apart:] for key, value in arrays.items()})


if __name__ == "__main__":
    main()
