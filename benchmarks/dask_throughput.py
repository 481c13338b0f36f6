"""Do two workers of a Dask cluster get through a study in half the time of one?

    python benchmarks/dask_throughput.py [--trials 200] [--blocks 4]

A scheduler and workers as processes of this machine search the digits of `models/` at random: few samples, no timings.
Blocks with one worker and with two take turns, so that what else the machine does slows both; workers have opened their
study before the clock starts. Prints trials a minute, their ratio, and the processor time that a trial costs the
command itself, which no number of workers divides.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from common import ROOT, machine
from distributed import LocalCluster

from onnxcomp.job import Job
from onnxcomp.runtime.progress import SILENT
from onnxcomp.search.cluster import Cluster, ask_source
from onnxcomp.search.ledger import open_ledger
from onnxcomp.search.rows import Judge, Source
from onnxcomp.search.run import _Run, key_of, space_of_job
from onnxcomp.search.strategies import strategy
from onnxcomp.verify.budget import Budget

LEFT = ("distill", "mixed-precision")  # minutes a trial


def block(workers: int, trials: int, seed: int, folder: Path) -> tuple[float, float]:
    """Seconds that some trials take, and processor seconds of this process meanwhile."""
    job = Job(
        ROOT / "models" / "digits-cnn.onnx",
        data=str(folder / "few.npz"),
        output=folder / "best.onnx",
        objective="size",
        budget=Budget(max_drop=0.02),
        calib_samples=32,
        bench=False,
        threads=1,
        seed=seed,
    )
    cluster = LocalCluster(
        n_workers=workers, threads_per_worker=1, dashboard_address=None, memory_limit=0, local_directory=str(folder)
    )
    with cluster:
        pool = Cluster(cluster.scheduler_address, job)
        try:
            for address in pool._client.scheduler_info()["workers"]:
                pool._client.submit(ask_source, pool._key, pure=False, workers=[address]).result()
            space = space_of_job(job, LEFT)
            judge = Judge("size", job.budget, Source(0, 0))
            ledger = open_ledger(str(folder / f"{workers}-{seed}.db"), key_of(job), space, judge, seed)
            told = pool.source()
            ledger.keep_source(Source(told["bytes"], told["macs"]))
            run = _Run(job, space, ledger, pool, strategy("random"), trials, None, lambda text: None)
            start, used = time.monotonic(), time.process_time()
            run.all(SILENT)
            return time.monotonic() - start, time.process_time() - used
        finally:
            pool.close()


def main() -> None:
    """Take turns and print what came of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--blocks", type=int, default=4)
    given = parser.parse_args()
    each = given.trials // given.blocks
    seconds = {1: 0.0, 2: 0.0}
    here = 0.0
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        with np.load(ROOT / "models" / "digits-train.npz") as arrays:
            np.savez(folder / "few.npz", **{name: arrays[name][:240] for name in arrays.files})
        for number in range(given.blocks):
            for workers in seconds:
                wall, used = block(workers, each, number, folder)
                seconds[workers] += wall
                here += used
                print(f"block {number + 1}: {each} trials, {workers} workers: {wall:.1f} s", flush=True)
    count = each * given.blocks
    for workers, wall in seconds.items():
        print(f"{workers} workers: {count} trials in {wall:.0f} s, {count / wall * 60:.0f} a minute")
    own = 1e3 * here / (2 * count)
    print(f"ratio {seconds[1] / seconds[2]:.2f}; {own:.0f} ms of the command's processor time a trial")
    print(f"{machine()['cpu']}")


if __name__ == "__main__":
    main()
