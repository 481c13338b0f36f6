"""Is an SQNR budget that was given met on samples that the run never saw? Twenty seeded runs a model.

    python benchmarks/budgets_held.py [digits bert lenet5 resnet20 minilm] [--runs 20] [--unseen 200]

Every run draws its own calibration samples and its own unseen ones from one set, so that both come from one source; the
judge is plain ONNX Runtime and numpy. At least 19 of 20 runs must keep what was asked for. lenet5, resnet20 and minilm
need ONNXCOMP_TEST_ASSETS. Rows go to results/budgets_held.json.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import common
import numpy as np
import onnxruntime

import onnxcomp

Feeds: TypeAlias = dict[str, np.ndarray[Any, Any]]

OF_TWENTY = 0.95


@dataclass(frozen=True)
class Case:
    """A model, what it must keep, and where its samples come from.

    Attributes:
        pool: model-ready samples by input name; runs draw from them.
        samples: that one run is given.
    """

    model: Path
    min_sqnr: float
    pool: Callable[[], Feeds]
    samples: int = 128


def cases() -> dict[str, Case]:
    """By name; shared models only where their folder is there."""
    here = common.ROOT / "models"

    def digits() -> Feeds:
        return {"image": np.load(here / "digits-train.npz")["images"][:, None].astype(np.float32) / 255}

    def rows() -> Feeds:
        drawn = np.random.default_rng(0)
        lengths = drawn.integers(4, 17, (2000, 1))
        return {
            "input_ids": drawn.integers(0, 200, (2000, 16)),
            "attention_mask": (np.arange(16) < lengths).astype(np.int64),
        }

    found = {
        "digits": Case(here / "digits-cnn.onnx", 40.0, digits),
        "bert": Case(here / "architectures" / "bert.onnx", 30.0, rows),
    }
    if (common.ASSETS / "meter.py").is_file():
        models = common.need_assets() / "models"
        import meter

        lenet, resnet = models / "lenet5-mnist.onnx", models / "resnet20-cifar10.onnx"
        found |= {
            "lenet5": Case(lenet, 35.0, lambda: {session(lenet).get_inputs()[0].name: meter.mnist("test")[0]}),
            "resnet20": Case(resnet, 28.0, lambda: {session(resnet).get_inputs()[0].name: meter.cifar("test")[0]}),
            "minilm": Case(models / "minilm-l6.onnx", 22.0, lambda: _joined(meter.packages("test"))),
        }
    return found


def _joined(parts: list[Feeds]) -> Feeds:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def session(model: Path) -> onnxruntime.InferenceSession:
    """On one thread, so that runs do not disturb one another."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def drawn(pool: Feeds, counts: tuple[int, int], seed: int) -> tuple[Feeds, Feeds]:
    """Two sets of samples that share none."""
    places = np.random.default_rng(seed).permutation(min(len(values) for values in pool.values()))
    first, second = places[: counts[0]], places[counts[0] : sum(counts)]
    return {name: values[first] for name, values in pool.items()}, {name: v[second] for name, v in pool.items()}


def worst_db(before: Path, after: Path, feeds: Feeds) -> float:
    """SQNR of the worst output in dB."""
    pairs = zip(session(before).run(None, feeds), session(after).run(None, feeds), strict=True)
    ratios = [
        np.square(a, dtype=np.float64).sum() / max(np.square(a - b, dtype=np.float64).sum(), 1e-30) for a, b in pairs
    ]
    return float(10 * np.log10(min(ratios)))


def one(case: Case, seed: int, unseen: int, folder: Path) -> tuple[float, float, float]:
    """(dB on unseen samples, the report's surely kept dB, share of the bytes) of one run."""
    given, judged = drawn(case.pool(), (case.samples, unseen), seed)
    out = folder / f"{seed}.onnx"
    spec = f"fold-constants,cleanup,fuse-batchnorm,mixed-precision{{min_sqnr={case.min_sqnr}}}"
    result = onnxcomp.optimize(
        case.model, output=out, data=given, passes=spec, seed=seed, bench=False, calib_samples=case.samples
    )
    if not out.exists():
        return np.inf, np.inf, 1.0  # nothing was written, so that nothing is lost
    sure = result.passes[-1].documents["plan"]["figures"]["sure_db"]
    return worst_db(case.model, out, judged), sure, result.after.bytes / result.before.bytes


def row(name: str, case: Case, runs: int, unseen: int) -> dict[str, Any]:
    """All runs of one model."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        found = [one(case, seed, unseen, Path(folder)) for seed in range(runs)]
    kept = sum(db >= case.min_sqnr for db, _, _ in found)
    return {
        "row": f"{name}, min_sqnr={case.min_sqnr:g}",
        "runs": runs,
        "kept": kept,
        "holds": kept >= OF_TWENTY * runs,
        "least_db": round(min(db for db, _, _ in found), 2),
        "median_db": round(float(np.median([db for db, _, _ in found])), 2),
        "median_sure_db": round(float(np.median([sure for _, sure, _ in found])), 2),
        "size": round(float(np.median([size for _, _, size in found])), 4),
        "seconds": round(time.perf_counter() - start, 1),
    }


def main() -> int:
    """Run, keep the rows, and say by the exit code whether every budget was met often enough."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = cases()
    parser.add_argument("names", nargs="*", default=["digits"], help=" ".join(known))
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--unseen", type=int, default=200)
    asked = parser.parse_args()
    rows = []
    for name in asked.names:
        rows.append(row(name, known[name], asked.runs, asked.unseen))
        print(rows[-1], flush=True)
    common.keep("budgets_held", rows, "row")
    return 0 if all(found["holds"] for found in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
