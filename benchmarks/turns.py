"""Is a build of onnxcomp faster than another? Whole processes of two checkouts in turns, and the ratios of their times.

    python benchmarks/turns.py BEFORE AFTER [JOB]... [--rounds N] [--python EXECUTABLE]

BEFORE and AFTER are checkouts; one interpreter with all packages runs both. Each process has an empty cache of its own,
so that no cost table of another run answers for it. A round runs each checkout once, in alternating order; of the
rounds' ratios the median is told, of wall and of processor time (the latter is what other work on the machine disturbs
least), and of peak memory. Jobs need the models and data of ONNXCOMP_TEST_ASSETS; `large` writes 2.4 GB.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from common import ASSETS, ROOT, table
from scale import write_large

MODELS, DATA = ASSETS / "models", ASSETS / "data"
PHOTOS = ("--data", DATA / "photos", "--scale", "1", "--color", "bgr", "--resize", "letterbox", "--pad-value", "114")
CIFAR = ("--data", DATA / "cifar10-train.npz", "--eval-data", DATA / "cifar10-test.npz", "--color", "rgb")
CIFAR += ("--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225")
TEXT = ("--data", DATA / "packages-train.npz")


@dataclass(frozen=True)
class Job:
    """What is timed: arguments of `onnxcomp`, or code for the interpreter. `most`: of the wall time before."""

    most: float
    arguments: tuple[str | Path, ...] = ()
    code: str = ""
    photographs: int = 0

    def command(self, python: str, folder: Path) -> list[str]:
        """The process to start in a folder of its own."""
        if self.code:
            return [python, "-c", self.code]
        arguments = [str(a) for a in self.arguments]
        if self.photographs:
            arguments[arguments.index(str(DATA / "photos"))] = str(some_photographs(folder, self.photographs))
        if arguments[0] == "optimize" and arguments[1] == "large.onnx":
            arguments[1] = str(folder.parent.parent / "large.onnx")
        return [python, "-m", "onnxcomp", *arguments]


def optimize(model: str, *rest: str | Path) -> tuple[str | Path, ...]:
    return ("optimize", MODELS / model, "-o", "out.onnx", "-q", *rest)


JOBS = {
    "minilm": Job(0.35, optimize("minilm-l6.onnx", *TEXT)),
    "minilm-4bit": Job(0.35, optimize("minilm-l6.onnx", "--passes", "quantize-weights{bits=4,block=32}", *TEXT)),
    "yolox": Job(0.6, optimize("yolox-nano.onnx", *PHOTOS), photographs=100),
    "yolox-prune": Job(
        0.4, optimize("yolox-nano.onnx", "--passes", "prune-channels{macs=0.8}", *PHOTOS), photographs=64
    ),
    "resnet20-size": Job(0.5, optimize("resnet20-cifar10.onnx", "--objective", "size", *CIFAR)),
    "large": Job(0.6, ("optimize", "large.onnx", "-o", "out.onnx", "-q", "--passes", "quantize-weights")),
    "help": Job(1.0, ("--help",)),
    "import": Job(1.0, code="import onnxcomp"),
}


@dataclass(frozen=True)
class Cost:
    """What one process took. `failed`: its exit code."""

    wall_s: float
    processor_s: float
    peak_bytes: int
    failed: int


def some_photographs(folder: Path, count: int) -> Path:
    """The first photographs by name, as links."""
    found = folder / "photographs"
    found.mkdir()
    for file in sorted((DATA / "photos").iterdir())[:count]:
        (found / file.name).symlink_to(file)
    return found


def run(job: Job, checkout: Path, python: str, folder: Path) -> Cost:
    """One process of one checkout."""
    folder.mkdir(parents=True)
    places = {"PYTHONPATH": str(checkout.resolve()), "XDG_CACHE_HOME": str(folder / "cache")}
    command = job.command(python, folder)
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=folder, env=os.environ | places, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    peak = used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Cost(wall, used.ru_utime + used.ru_stime, peak, process.returncode)


def compare(name: str, checkouts: Sequence[Path], python: str, rounds: int, folder: Path) -> list[str]:
    """A row of the table: medians of both, and of the ratios."""
    costs: list[tuple[Cost, Cost]] = []
    for number in range(rounds):
        order = (0, 1) if number % 2 == 0 else (1, 0)
        found = {i: run(JOBS[name], checkouts[i], python, folder / f"{name}-{number}" / str(i)) for i in order}
        costs.append((found[0], found[1]))
        told = ", ".join(f"{cost.wall_s:.1f} s ({cost.processor_s:.1f} s of processors)" for cost in costs[-1])
        print(f"{name} {number}: {told}", file=sys.stderr, flush=True)
    if any(cost.failed for pair in costs for cost in pair):
        return [name, *["failed"] * 5, f"{JOBS[name].most:g}"]

    def ratio(of: Callable[[Cost], float]) -> str:
        return f"{statistics.median(of(after) / of(before) for before, after in costs):.2f}"

    walls = [statistics.median(pair[side].wall_s for pair in costs) for side in (0, 1)]
    ratios = [ratio(lambda c: c.wall_s), ratio(lambda c: c.processor_s), ratio(lambda c: c.peak_bytes)]
    return [name, *(f"{wall:.1f} s" for wall in walls), *ratios, f"{JOBS[name].most:g}"]


def main() -> None:
    """Run the jobs asked for, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path, nargs="?", default=ROOT)
    parser.add_argument("jobs", nargs="*", metavar="JOB", help=f"of {', '.join(JOBS)}; all by default")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--python", default=sys.executable)
    asked = parser.parse_args()
    if unknown := set(asked.jobs) - JOBS.keys():
        parser.error(f"there is no job {', '.join(sorted(unknown))}")
    with tempfile.TemporaryDirectory(prefix="turns-") as place:
        names = asked.jobs or list(JOBS)
        if "large" in names:
            write_large(Path(place) / "large.onnx")
        checkouts = (asked.before, asked.after)
        rows = [compare(name, checkouts, asked.python, asked.rounds, Path(place)) for name in names]
    head = ("job", "before", "after", "wall", "processor", "peak memory", "wall at most")
    print(table(head, rows))


if __name__ == "__main__":
    main()
