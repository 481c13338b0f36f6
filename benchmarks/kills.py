"""Does a kill at any moment lose nothing, leave nothing half, and nothing lying after the next start?

python benchmarks/kills.py [--kills 200] [--seed 0]     # prints a line for each broken promise, and a summary

Runs optimize, build, distill and search on the digits model, kills each at a random moment of its usual duration
(SIGKILL and SIGTERM in turns), and looks: inputs are as they were; every output is as it was before the run or whole;
after one more, finished run no temporary file or folder of a killed one is left. `--study` kills one search so often
and lets it go on each time: trials that ended stay, none counts twice, the best model is whole. `--full` writes onto a
small file system that is full, where a tmpfs can be mounted; `--together` starts two runs onto one output.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import onnx

ROOT = Path(__file__).resolve().parent.parent
DATA = ["--data", "train.npz", "--eval-data", "test.npz", "--calib-samples", "64", "--eval-samples", "100"]
TRAINING = "prune-weights{ratio=0.9},distill{steps=20}"
COMMANDS = {
    "optimize": [
        "optimize",
        "m.onnx",
        *DATA,
        "--recipe",
        "int8",
        "--no-bench",
        "-o",
        "out/m.onnx",
        "--html",
        "out/m.html",
    ],
    "build": ["build", "--force"],
    "distill": ["optimize", "m.onnx", *DATA, "--passes", TRAINING, "--no-bench", "-o", "out/d.onnx"],
    "search": [
        "search",
        "m.onnx",
        *DATA,
        "--objective",
        "size",
        "--trials",
        "4",
        "--no-bench",
        "--workers",
        "1",
        "-o",
        "out/s.onnx",
    ],
}
TABLE = """passes = "fold-constants,cleanup,fuse-batchnorm,prune-weights{ratio=0.5}"
bench = false
[[model]]
path = "m.onnx"
output = "out/b.onnx"
html = "out/b.html"
[[model]]
path = "external.onnx"
output = "out/e.onnx"
"""
INPUTS = ("m.onnx", "external.onnx", "weights.bin", "train.npz", "test.npz", "onnxcomp.toml")


def prepare(folder: Path) -> None:
    """The model, once with its weights beside it, data, and a configuration."""
    models = ROOT / "models"
    shutil.copy(models / "digits-cnn.onnx", folder / "m.onnx")
    for part in ("train", "test"):
        shutil.copy(models / f"digits-{part}.npz", folder / f"{part}.npz")
    proto = onnx.load(folder / "m.onnx")
    onnx.save(proto, folder / "external.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    (folder / "onnxcomp.toml").write_text(TABLE)


def start(folder: Path, command: str) -> subprocess.Popen[bytes]:
    environment = os.environ | {"TMPDIR": str(folder / "tmp")}
    (folder / "tmp").mkdir(exist_ok=True)
    words = [sys.executable, "-m", "onnxcomp", *COMMANDS[command], "-q"]
    return subprocess.Popen(words, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def hashes(folder: Path, names: tuple[str, ...]) -> dict[str, str]:
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}


def halves(folder: Path) -> Iterator[str]:
    """Outputs that are not whole: a model that does not load with its weights, a report or page that is cut off."""
    for path in (folder / "out").glob("*"):
        if path.name.startswith("."):
            continue  # a temporary file, which the next start removes
        try:
            if path.suffix == ".onnx":
                onnx.checker.check_model(onnx.load(path))
            elif path.suffix == ".json":
                json.loads(path.read_text())
            elif path.suffix == ".html" and not path.read_text().rstrip().endswith("</html>"):
                yield f"{path.name} is cut off"
        except Exception as error:
            yield f"{path.name}: {type(error).__name__}: {error}"


def left_lying(folder: Path) -> Iterator[str]:
    yield from (f"tmp/{path.name}" for path in (folder / "tmp").iterdir())
    yield from (str(path.relative_to(folder)) for path in folder.rglob("*.tmp"))
    if (folder / ".onnxcomp" / "scratch").exists():
        yield ".onnxcomp/scratch"


def finished(folder: Path, command: str) -> tuple[float, str]:
    """Run to the end; the seconds that took, and what was wrong with it."""
    begin = time.perf_counter()
    process = start(folder, command)
    _, told = process.communicate()
    wrong = f"{command} ended with {process.returncode}: {told.decode()[-300:]}" if process.returncode else ""
    return time.perf_counter() - begin, wrong


def kills(folder: Path, count: int, seed: int, names: list[str]) -> list[str]:
    """Kill so many runs of these commands, and say what was broken."""
    rng = random.Random(seed)
    usual = {}
    for name in names:
        usual[name], wrong = finished(folder, name)
        assert not wrong, wrong
    before, broken = hashes(folder, INPUTS), []
    for number in range(count):
        name, how = names[number % len(names)], (signal.SIGKILL, signal.SIGTERM)[number // len(names) % 2]
        process = start(folder, name)
        moment = rng.uniform(0, 1.05) * usual[name]
        try:
            process.wait(moment)
        except subprocess.TimeoutExpired:
            process.send_signal(how)
            begin = time.perf_counter()
            process.wait()
            if (took := time.perf_counter() - begin) > 120:  # a loaded machine takes its time
                broken.append(f"{number}: {name} ended {took:.0f} s after {how.name}")
        process.stderr and process.stderr.close()
        found = [f"{name} was changed" for name, digest in hashes(folder, INPUTS).items() if digest != before[name]]
        found += halves(folder)
        if number % 10 == 9 or number == count - 1:  # a next start of each command
            time.sleep(2)  # workers see that their parent is gone
            found += [wrong for one in names if (wrong := finished(folder, one)[1])]
            found += [f"left lying: {path}" for path in left_lying(folder)]
        found = [f"{number}: {name} {how.name} after {moment:.2f} s: {words}" for words in found]
        print(*found, sep="\n", end="\n" * bool(found), flush=True)
        broken += found
        print(f"\r{number + 1} kills, {len(broken)} broken promises", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return broken


def study_kills(folder: Path, count: int, seed: int) -> list[str]:
    """One search, killed so often at random moments: what its study has lost, counted twice or left half.

    It is killed within the time that its start and two trials take, so that some kills hit each.
    """
    rng = random.Random(seed)
    searching = COMMANDS["study"] = list(COMMANDS["search"])
    trials = searching.index("--trials") + 1
    searching[trials] = "2"
    usual, wrong = finished(folder, "study")
    assert not wrong, wrong
    searching[trials] = "1000"
    broken: list[str] = []
    known = trials_of(folder / "out" / "s.search.db")
    for number in range(count):
        process = start(folder, "study")
        process.stderr and process.stderr.close()
        moment = rng.uniform(0.0, usual)
        with suppress(subprocess.TimeoutExpired):
            process.wait(moment)
            broken.append(f"{number}: ended by itself with {process.returncode}")
        process.kill()
        process.wait()
        ended = trials_of(folder / "out" / "s.search.db")
        broken += [f"{number}: lost {spec}" for spec in known if spec not in ended]
        broken += [f"{number}: {spec} is another" for spec, told in known.items() if ended.get(spec, told) != told]
        broken += [f"{number}: {words}" for words in halves(folder)]
        print(f"kill {number + 1} after {moment:.1f} s: {len(ended)} trials ended", file=sys.stderr, flush=True)
        known = ended
    searching[trials] = str(len(known) + 2)
    broken += [wrong for wrong in [finished(folder, "study")[1]] if wrong]
    if (last := len(trials_of(folder / "out" / "s.search.db"))) != len(known) + 2:
        broken.append(f"{last} trials in place of {len(known) + 2}")
    return broken + [f"left lying: {path}" for path in left_lying(folder)]


def trials_of(study: Path) -> dict[str, str]:
    """What came of the trials that ended and count, by spec; as it stands in the storage, read without onnxcomp."""
    if not study.exists():
        return {}
    ask = (
        "select value_json from trials join trial_user_attributes using (trial_id) "
        "where key = 'onnxcomp' and state in ('COMPLETE', 'FAIL')"
    )
    with closing(sqlite3.connect(study, timeout=30)) as connection:
        try:
            rows = [json.loads(text) for (text,) in connection.execute(ask)]
        except sqlite3.OperationalError:  # killed before its tables were made
            return {}
    found: dict[str, str] = {}
    for row in rows:
        if not row.get("replaced"):
            assert row["spec"] not in found, f"{row['spec']} counts twice"
            found[row["spec"]] = json.dumps([row["state"], row["measured"]])
    return found


def together(folder: Path, rounds: int) -> list[str]:
    """Two runs onto one output: both end well, and one of them stands whole, with nothing beside it."""
    broken = []
    for number in range(rounds):
        pair = [start(folder, "optimize") for _ in range(2)]
        codes = [(process.communicate(), process.returncode)[1] for process in pair]
        broken += [f"round {number}: {words}" for words in (*halves(folder), *left_lying(folder))]
        if codes != [0, 0]:
            broken.append(f"round {number}: exit codes {codes}")
    return broken


@contextmanager
def small_disk(kilobytes: int) -> Iterator[Path]:
    """A file system of this size; needs the right to mount one."""
    with tempfile.TemporaryDirectory() as place:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", place], check=True)
        try:
            yield Path(place)
        finally:
            subprocess.run(["umount", place], check=True)


def full(folder: Path) -> list[str]:
    """Outputs onto disks that end after so many kilobytes, from none to enough."""
    broken = []
    for kilobytes in (4, 8, 16, 32, 64, 100, 128, 136, 140, 144, 148, 152, 160, 176, 200, 256, 512, 1024):
        with small_disk(kilobytes) as disk:
            words = [sys.executable, "-m", "onnxcomp", *COMMANDS["optimize"][:-4], "-q"]
            words += ["-o", str(disk / "m.onnx"), "--html", str(disk / "m.html")]
            done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
            names = sorted(path.name for path in disk.iterdir())
            if done.returncode not in (0, 6) or any(name.endswith(".tmp") for name in names):
                broken.append(f"{kilobytes} kB: exit code {done.returncode}, {names}: {done.stderr[-300:]}")
            if done.returncode == 0 and names != ["m.html", "m.json", "m.onnx"]:
                broken.append(f"{kilobytes} kB: exit code 0 with {names}")
    return broken


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--command", action="append", choices=list(COMMANDS), help="this one only; several are allowed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--study", type=int, default=0, metavar="KILLS")
    parser.add_argument("--together", type=int, default=0, metavar="ROUNDS")
    parser.add_argument("--full", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        prepare(folder)
        broken = kills(folder, given.kills, given.seed, given.command or list(COMMANDS)) if given.kills else []
        broken += study_kills(folder, given.study, given.seed) if given.study else []
        broken += together(folder, given.together)
        broken += full(folder) if given.full else []
    print("\n".join(broken) or "no promise broken")
    return bool(broken)


if __name__ == "__main__":
    sys.exit(main())
