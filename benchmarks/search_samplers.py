"""Which sampler finds the best model in equal time? Each searches the digits from the same seeds.

python benchmarks/search_samplers.py [--seconds 60] [--seeds 1] [--objective size] [--out samplers.json] [SAMPLER ...]

Time is processor time, training included, so that what else a machine does favours none.

--thousand measures instead how long it takes to list, front and resume a study of 1,000 trials.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

from onnxcomp.job import Job
from onnxcomp.search.keys import SAMPLERS, SearchKeys
from onnxcomp.search.ledger import Ledger, open_ledger
from onnxcomp.search.rows import Judge, Source, to_json
from onnxcomp.search.run import _Run, job_of_trials, key_of, pool_of, space_of_job
from onnxcomp.search.strategies import strategy
from onnxcomp.verify.budget import Budget
from onnxcomp.work.trial import Measured

ROOT = Path(__file__).resolve().parent.parent / "models"


def spent() -> float:
    """Seconds of processor time of this process and of those it started that ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def searched(sampler: str, seconds: float, seed: int, objective: str) -> dict[str, object]:
    """One search: the share of the objective that its best trial leaves, and the trials it took."""
    with tempfile.TemporaryDirectory() as folder:
        job = Job(
            ROOT / "digits-cnn.onnx",
            data=str(ROOT / "digits-train.npz"),
            output=Path(folder, "best.onnx"),
            objective=objective,  # type: ignore[arg-type]
            budget=Budget(max_drop=0.01),
            seed=seed,
            bench=objective == "latency",
            threads=1,
        )
        space = space_of_job(job)
        work = job_of_trials(job, trains="distill" not in space.left)
        judge = Judge(objective, job.budget, Source(0, 0))  # type: ignore[arg-type]
        ledger = open_ledger(str(Path(folder, "s.db")), key_of(work), space, judge, seed)
        pool = pool_of(work, SearchKeys(workers=0))
        try:
            told = pool.source()
            ledger.keep_source(Source(told["bytes"], told["macs"]))
            run = _Run(job, space, ledger, pool, strategy(sampler), None, None, lambda text: None)
            start = spent()
            for row in run._ended():
                run._told(row)
                if spent() - start > seconds:
                    break
        finally:
            pool.close()
        best = ledger.judge.best(ledger.finished)
        score = None if best is None or best.measured is None else round(ledger.judge.score(best.measured), 4)
        return {"sampler": sampler, "seed": seed, "best": score, "trials": len(ledger.finished)}


def thousand() -> None:
    """A study of 1,000 made-up trials: seconds to open it, which a resume does, and to list it with its front."""
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder, "s.db"))
        judge = Judge("size", Budget(max_drop=0.01), Source(1_000_000, 1_000_000))
        space = space_of_job(Job(ROOT / "digits-cnn.onnx", data=str(ROOT / "digits-train.npz")))
        ledger = open_ledger(file, "s", space, judge)
        _fill(ledger, 1000)
        start, used = time.perf_counter(), time.process_time()
        again = open_ledger(file, "s", space, judge)
        opened, cpu = time.perf_counter() - start, time.process_time() - used
        start = time.perf_counter()
        found = to_json(again.finished, again.judge)
        listed = time.perf_counter() - start
        print(f"{len(found['trials'])} trials: opened in {opened:.2f} s ({cpu:.2f} s of processor time), ", end="")
        print(f"listed with their front in {listed:.3f} s")


def _fill(ledger: Ledger, count: int) -> None:
    from dataclasses import replace

    for number in range(count):
        row = ledger.begin(strategy("random").sampler)
        figures = Measured(row.spec, True, True, bytes=500_000 - number, macs=1, drop=number % 7 / 1000, accuracy=0.9)
        ledger.tell(replace(row, state="measured", measured=figures, seconds=1.0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("samplers", nargs="*", choices=[[], *SAMPLERS])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--objective", default="size")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--thousand", action="store_true")
    given = parser.parse_args()
    if given.thousand:
        thousand()
        return
    rows = []
    for seed in range(given.seeds):
        for sampler in given.samplers or SAMPLERS:
            rows.append(searched(sampler, given.seconds, seed, given.objective))
            print(json.dumps(rows[-1]), flush=True)
    if given.out is not None:
        given.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
