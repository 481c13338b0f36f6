"""Is the tool right on models that nobody here chose? Models out of pinned packages, each with its own task's measure.

    python benchmarks/real_models.py [NAME ...] [--runs RUN,RUN] [--folder DIR] [--photos DIR] [--again] [--page]

Runs are default, onnxruntime (its own quantization), 4-bit, prune and distill, each over all models before the next.
Downloads the packages once into DIR (default: a folder of the user's cache), makes data as the models' users have them,
runs `onnxcomp` as a user would, and judges the files in plain ONNX Runtime: agreement with the float model by the
task's measure, the worst part of the outputs, size, and time (processor time of one thread, both models in turns in one
process). A row goes to results/real-models.json as soon as it is known, and a run that was stopped goes on behind the
last one; --again makes rows anew. --page only writes docs/real-models.md from the rows.
"""

from __future__ import annotations

import argparse
import itertools
import json
import pickle
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common
import numpy as np
import onnx
import onnxruntime
from real import measures, page
from real.catalog import MODELS, RealModel, parts_of
from real.feeds import Feed, session_of
from real.material import Material

CLEAN = "fold-constants,cleanup,fuse-batchnorm"
RUNS: dict[str, tuple[str, ...]] = {
    "default": (),
    "onnxruntime": (),
    "4-bit": ("--passes", f"{CLEAN},quantize-weights{{bits=4,block=32}}"),
    "prune": ("--passes", f"{CLEAN},prune-channels{{macs=0.7}}"),
    "distill": (),
}
LIMIT_SECONDS = 1200
STEPS = 20
READER = '''"""Feeds as the model takes them, one call each."""
import pickle
from pathlib import Path


def calibrate():
    yield from pickle.loads((Path(__file__).parent / "calibrate.pickle").read_bytes())


def judge():
    yield from pickle.loads((Path(__file__).parent / "judge.pickle").read_bytes())
'''


@dataclass
class Prepared:
    """One model with its data on disk.

    Attributes:
        source: the float model.
        data: --data and --eval-data as a user would give them.
        judged: feeds that nobody calibrates with.
        other: feeds of another size.
    """

    name: str
    model: RealModel
    source: Path
    data: tuple[str, str]
    calibrate: list[Feed]
    judged: list[Feed]
    other: list[Feed]


def prepare(name: str, folder: Path, photos: Path, work: Path) -> Prepared:
    """Download a model, make its feeds, and write them as files of data."""
    model = MODELS[name]
    material = Material(folder, photos, np.random.default_rng(7))
    source = material.current = material.package(model.package, model.version) / model.path
    first, second = model.samples
    feeds = model.feeds(material, first + second)
    calibrate, judged = feeds[:first], feeds[first:]
    other = model.other(material, 8) if model.other else []
    return Prepared(name, model, source, written(source, calibrate, judged, work), calibrate, judged, other)


def written(source: Path, calibrate: list[Feed], judged: list[Feed], work: Path) -> tuple[str, str]:
    """Arrays of rows where every input has one row a call, else a function that yields feeds."""
    shapes = {i.name: i.shape for i in session_of(source).get_inputs()}
    plain = all(s and not (isinstance(s[0], int) and s[0] != 1) for s in shapes.values())
    same = all(
        len({f[k].shape for f in [*calibrate, *judged]}) == 1 and calibrate[0][k].shape[:1] == (1,) for k in shapes
    )
    if plain and same:
        for name, feeds in (("calibrate", calibrate), ("judge", judged)):
            np.savez(work / f"{name}.npz", **{k: np.concatenate([f[k] for f in feeds]) for k in shapes})
        return str(work / "calibrate.npz"), str(work / "judge.npz")
    for name, feeds in (("calibrate", calibrate), ("judge", judged)):
        (work / f"{name}.pickle").write_bytes(pickle.dumps(feeds))
    (work / "reader.py").write_text(READER)
    return f"{work / 'reader.py'}:calibrate", f"{work / 'reader.py'}:judge"


def outputs(path: Path, feeds: Sequence[Feed]) -> list[list[Any]]:
    session = session_of(path)
    return [session.run(None, feed) for feed in feeds]


def time_ratio(before: Path, after: Path, feed: Feed, seconds: float = 3.0) -> float:
    """Median over turns of the second model's processor time as a share of the first's, one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    pair = [onnxruntime.InferenceSession(str(p), options, providers=["CPUExecutionProvider"]) for p in (before, after)]

    def spent(session: onnxruntime.InferenceSession, calls: int) -> float:
        start = time.thread_time()
        for _ in range(calls):
            session.run(None, feed)
        return time.thread_time() - start

    calls = max(1, round(0.01 / max(min(spent(pair[0], 1) for _ in range(3)), 1e-6)))
    spent(pair[1], 2)
    ratios: list[float] = []
    end = time.monotonic() + seconds
    while len(ratios) < 9 or (time.monotonic() < end and len(ratios) < 200):
        first = spent(pair[0], calls)
        ratios.append(spent(pair[1], calls) / first)
    return float(np.median(ratios))


def judge(prepared: Prepared, after: Path) -> dict[str, Any]:
    """Size, time, agreement and the worst part of a file, without onnxcomp."""
    model = prepared.model
    a, b = outputs(prepared.source, prepared.judged), outputs(after, prepared.judged)
    parts = {}
    for name in parts_of(model, a[0]):
        x, y = (np.concatenate([parts_of(model, run)[name].ravel() for run in runs]) for runs in (a, b))
        parts[name] = round(measures.sqnr_db(x, y), 1)
    worst = min(parts, key=parts.__getitem__) if parts else None
    found = {
        "size": round(bytes_of(after) / bytes_of(prepared.source), 4),
        "time": round(time_ratio(prepared.source, after, prepared.judged[0]), 3),
        "agreement": round(model.measure(a, b), 4),
        "worst_part": [worst, parts[worst]] if worst else None,
    }
    if prepared.other:
        x, y = outputs(prepared.source, prepared.other), outputs(after, prepared.other)
        found["agreement_other_size"] = round(model.measure(x, y), 4)
    return found


def bytes_of(path: Path) -> int:
    model = onnx.load(path, load_external_data=False)
    names = {e.value for t in model.graph.initializer for e in t.external_data if e.key == "location"}
    return path.stat().st_size + sum((path.parent / name).stat().st_size for name in names)


def run_onnxcomp(prepared: Prepared, run: str, work: Path) -> dict[str, Any]:
    """One run of the command line and what became of it."""
    after, report = work / f"{run}.onnx", work / f"{run}.json"
    data = ["--data", prepared.data[0], "--eval-data", prepared.data[1], *prepared.model.flags]
    if run == "distill":
        student = next(
            (work / f"{r}.onnx" for r in ("prune", "4-bit") if (work / f"{r}.onnx").exists()), prepared.source
        )
        command = ["distill", student, "--teacher", prepared.source, "--steps", str(STEPS), *data]
    else:
        command = ["optimize", prepared.source, *RUNS[run], *data]
    start = time.monotonic()
    for old in (after, report):
        old.unlink(missing_ok=True)
    try:
        done = common.onnxcomp(*command, "-o", after, "--report", report, cwd=work, timeout_s=LIMIT_SECONDS)
    except subprocess.TimeoutExpired:
        return {"exit_code": None, "seconds": LIMIT_SECONDS, "said": f"not done within {LIMIT_SECONDS} s"}
    row: dict[str, Any] = {"exit_code": done.returncode, "seconds": round(time.monotonic() - start, 1)}
    said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    row["said"] = (
        _without_folders(said[0])[:300]
        if done.returncode in (0, 10, 11, 12, 13, 14, 15) and said
        else _without_folders(" | ".join(said[-3:]))[:400]
    )
    if report.exists():
        row["peak_memory_mb"] = round(json.loads(report.read_text())["peak_memory_bytes"] / 1e6)
    if done.returncode == 0 and after.exists():
        row |= judge(prepared, after)
    return row


def _without_folders(text: str) -> str:
    return re.sub(r"(?:/[\w.+-]+)+/", "", text)


def run_peer(prepared: Prepared, work: Path) -> dict[str, Any]:
    """onnxruntime.quantization at its better known settings: static where convolutions are, else dynamic."""
    from onnxruntime import quantization as peer

    class Feeds(peer.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = iter(prepared.calibrate[:32])

        def get_next(self) -> Feed | None:
            return next(self.left, None)

    kinds = {node.op_type for node in onnx.load(prepared.source, load_external_data=False).graph.node}
    after, start = work / "onnxruntime.onnx", time.monotonic()
    after.unlink(missing_ok=True)
    row: dict[str, Any] = {"setting": "static U8S8 per channel" if "Conv" in kinds else "dynamic per channel"}
    try:
        if "Conv" in kinds:
            peer.quantize_static(
                prepared.source,
                after,
                Feeds(),
                quant_format=peer.QuantFormat.QDQ,
                activation_type=peer.QuantType.QUInt8,
                per_channel=True,
            )
        else:
            peer.quantize_dynamic(prepared.source, after, per_channel=True)
        row |= judge(prepared, after)
    except Exception as error:  # a row says that the peer failed, whatever it raised
        row["said"] = _without_folders(f"{type(error).__name__}: {error}")[:200]
    return row | {"seconds": round(time.monotonic() - start, 1)}


def made(name: str, run: str, options: argparse.Namespace) -> dict[str, Any]:
    """One row. Files stay under --folder, for the runs that start from them and for people who look into one."""
    work = options.folder / "made" / name
    work.mkdir(parents=True, exist_ok=True)
    prepared = prepare(name, options.folder, options.photos, work)
    row = run_peer(prepared, work) if run == "onnxruntime" else run_onnxcomp(prepared, run, work)
    known = {"row": f"{name} {run}", "model": name, "run": run, "measure": MODELS[name].says}
    return known | {"code": state(), "machine": machine()} | row


def machine() -> str:
    """Where a row was measured: its time tells nothing of another CPU."""
    found = common.machine()
    return f"{found['cpu']}, ONNX Runtime {found['onnxruntime']}"


def state() -> str:
    """The commit that a row is of."""
    words = ["git", "-C", common.ROOT, "rev-parse", "--short", "HEAD"]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=False)
    return done.stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*MODELS, []], metavar="NAME")
    parser.add_argument("--runs", default=",".join(RUNS))
    parser.add_argument("--folder", type=Path, default=Path.home() / ".cache" / "onnxcomp-benchmarks")
    parser.add_argument("--photos", type=Path, default=common.ASSETS / "data" / "photos")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--page", action="store_true")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    runs = options.runs.split(",")
    if unknown := set(runs) - set(RUNS):
        parser.error(f"no run is called {', '.join(unknown)}: {', '.join(RUNS)}")
    if options.one:
        row = made(options.names[0], runs[0], options)
        common.keep("real-models", [row], "row")
        print(json.dumps(row, ensure_ascii=False), flush=True)
        return
    if not options.page:
        known = {row["row"] for row in common.keep("real-models", [], "row")} if not options.again else set()
        for run, name in itertools.product(runs, options.names or MODELS):
            if f"{name} {run}" not in known:  # a row a process: what one leaves behind must not judge the next
                words = ["--runs", run, "--folder", options.folder, "--photos", options.photos, "--one", name]
                subprocess.run([sys.executable, __file__, *map(str, words)], check=False)
    page.write(common.keep("real-models", [], "row"), list(MODELS), list(RUNS))


if __name__ == "__main__":
    main()
