"""Does every command that reads a model survive broken files? `python benchmarks/broken_files.py --count 200`.

Each seed gives a file (tests/broken_models.py); each command runs on it in a process of its own. What is counted:
exit 1 (an internal error), a death by signal, and more than 10 s of processor time. Any other exit code is an answer.
"""

from __future__ import annotations

import argparse
import collections
import os
import resource
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
import broken_models
from common import load_onnxcomp

from onnxcomp.cli.main import main as command_line

SECONDS = 10
COMMANDS = (
    "inspect model.onnx",
    "inspect model.onnx --groups --json out.json",
    "optimize model.onnx --no-bench",
    "optimize model.onnx --passes fold-constants,cleanup,fuse-batchnorm --no-bench",
    "optimize model.onnx --passes quantize-weights{bits=8} --no-bench --no-verify",
    "verify model.onnx model.onnx --allow-random",
    "verify model.onnx",
    "bench model.onnx --seconds 0.1",
    "data check model.onnx --data data.npz",
    "init model.onnx",
    "explain model.onnx --data data.npz --no-times",
    "explain model.onnx model.onnx --data data.npz --no-times",
    "plan model.onnx --data data.npz --no-bench",
    "ranges model.onnx -o ranges.json",
    "compare model.onnx model.onnx --allow-random --no-bench",
)


def main() -> None:
    """Run and print what went wrong; exit 1 where anything did."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--count", type=int, default=100, help="how many files")
    parser.add_argument("--all", action="store_true", help="every command on every file")
    parser.add_argument("--seconds", type=float, default=0.0, help="stop after so long; 0: do not")
    options = parser.parse_args()
    load_onnxcomp()
    start, runs, bad = time.monotonic(), 0, []
    codes: collections.Counter[int] = collections.Counter()
    for seed in range(options.first, options.first + options.count):
        if options.seconds and time.monotonic() - start > options.seconds:
            break
        drawn = np.random.default_rng(seed).choice(COMMANDS, 3, replace=False)
        for command in COMMANDS if options.all else dict.fromkeys([COMMANDS[0], *map(str, drawn)]):
            code, seconds, words = run(seed, command)
            runs += 1
            codes[code] += 1
            if code in (1, None) or code < 0 or seconds > SECONDS:
                bad.append((seed, command))
                print(f"seed {seed}  {command}  exit {code}  {seconds:.1f} s  {words}", flush=True)
    print(f"{runs} runs on files up to seed {seed}: {len(bad)} bad; exit codes {dict(sorted(codes.items()))}")
    sys.exit(bool(bad))


def run(seed: int, command: str) -> tuple[int, float, str]:
    """Exit code (negative: the signal that ended it), seconds of processor time and the first line of an error."""
    with tempfile.TemporaryDirectory() as folder:
        broken_models.broken(seed, Path(folder))
        np.savez(Path(folder) / "data.npz", x=np.zeros((4, 3), np.float32))
        child = os.fork()
        if not child:
            _child(folder, command)
        _, status, usage = os.wait4(child, 0)
        words = (Path(folder) / "stderr").read_text(errors="replace").splitlines()
    return os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime, words[0][:160] if words else ""


def _child(folder: str, command: str) -> None:
    """Be the command line, with an end to its time and memory."""
    os.chdir(folder)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT), number)
    resource.setrlimit(resource.RLIMIT_CPU, (4 * SECONDS, 4 * SECONDS))
    signal.alarm(200 * SECONDS)  # for what waits; a loaded machine is slow
    code = 99
    try:
        command_line(command.split())
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 0
    finally:
        os._exit(code)


if __name__ == "__main__":
    main()
