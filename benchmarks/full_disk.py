"""Does every command that writes survive a full disk? `python benchmarks/full_disk.py`; it mounts a tmpfs.

Each command writes onto a file system that ends after so many kilobytes, where older outputs lie. What must hold: exit
0 with every output whole, or exit 6 with three lines and every output as it was or whole; nothing half, nothing
temporary. The same with what no user named: the folder of temporary files, the cache, the state of builds.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import kills
import onnx
from common import load_onnxcomp

from onnxcomp.cli.main import main as command_line

UNFINISHED = (
    ".lock",
    "-scratch",
    ".gitignore",
    ".db",
    ".db-wal",
    ".db-shm",
)  # empty by nature, or whole by their own journal
SIZES = (4, 8, 12, 20, 32, 48, 80, 128, 144, 168, 200, 260, 320, 400, 600)  # kilobytes
OLD = b"#old\n"
DATA = "--data train.npz --eval-data test.npz --calib-samples 32 --eval-samples 50"
TRAINED = "prune-weights{ratio=0.9},distill{steps=4}"
EXACT = "--passes cleanup,quantize-weights{bits=8}"
COMMANDS = {  # {d} is the small disk; what stands behind it is an output
    "optimize": f"optimize m.onnx {DATA} {EXACT} --no-bench -o {{d}}/m.onnx --report {{d}}/r.json --html {{d}}/m.html",
    "save-config": f"optimize m.onnx {DATA} {EXACT} --no-bench -o out/c.onnx --save-config {{d}}/onnxcomp.toml",
    "distill": f"optimize m.onnx {DATA} --passes {TRAINED} --no-bench -o {{d}}/d.onnx",
    "search": f"search m.onnx {DATA} --objective size --trials 2 --no-bench --workers 1 -o {{d}}/s.onnx"
    " --json {d}/s.rows.json --html {d}/s.page.html",
    "build": "build --force {d}/onnxcomp.toml --depfile {d}/m.d",
    "inspect": "inspect m.onnx --json {d}/i.json",
    "verify": "verify m.onnx m.onnx --data train.npz --json {d}/v.json",
    "explain": "explain m.onnx --data train.npz --no-times --json {d}/e.json --html {d}/e.html",
    "plan": "plan m.onnx --data train.npz --no-bench -o {d}/p.toml --json {d}/p.json",
    "ranges": "ranges int8.onnx -o {d}/ranges.json",
    "bench": "bench m.onnx --seconds 0.05 --json {d}/b.json",
    "compare": "compare m.onnx int8.onnx --data train.npz --no-bench --json {d}/c.json --markdown {d}/c.md"
    " --html {d}/c.html",
    "data check": "data check m.onnx --data train.npz -o {d}/sheet.png --json {d}/d.json",
    "init": "init m.onnx -o {d}/onnxcomp.toml",
    "doctor": "doctor --json {d}/doctor.json",
    "cache": "cache --json {d}/cache.json",
    "passes": "passes --json {d}/passes.json",
    "temporary files": f"optimize external.onnx {DATA} {EXACT} --no-bench -o out/t.onnx",
    "cache is full": f"optimize m.onnx {DATA} --recipe int8 --no-bench -o out/u.onnx",
    "state is full": "build --force {d}/onnxcomp.toml",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--command", action="append", choices=list(COMMANDS), help="this one only; several are allowed")
    parser.add_argument("--kilobytes", type=int, action="append", help="this size only; several are allowed")
    given = parser.parse_args()
    load_onnxcomp()
    broken: list[str] = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        kills.prepare(folder)
        code, told = run(folder, f"optimize m.onnx {DATA} --recipe int8 --no-bench -o int8.onnx".split(), {})
        assert not code, told
        runs = 0
        for name in given.command or COMMANDS:
            for kilobytes in given.kilobytes or SIZES:
                code, found = try_one(folder, name, kilobytes)
                runs += 1
                broken += [f"{name}, {kilobytes} kB, exit {code}: {words}" for words in found]
                print(f"\r{runs} runs, {len(broken)} broken promises", end="", file=sys.stderr, flush=True)
                if found:
                    print(f"\n{name}, {kilobytes} kB, exit {code}: {found}", flush=True)
    print(f"\n{runs} runs, {len(broken)} broken promises")
    return bool(broken)


def try_one(folder: Path, name: str, kilobytes: int) -> tuple[int, list[str]]:
    """Run a command with so small a disk; its exit code, and what was broken."""
    with kills.small_disk(kilobytes) as disk:
        words = COMMANDS[name].replace("{d}", str(disk)).split()
        named = [
            Path(w) for w in words if w.startswith(f"{disk}/") and (words[0] != "build" or not w.endswith(".toml"))
        ]
        for path in named:
            try:
                path.write_bytes(OLD)
            except OSError:  # no place for more of them
                path.unlink()
        environment = {
            "temporary files": {"TMPDIR": str(disk)},
            "cache is full": {"XDG_CACHE_HOME": str(disk)},
        }.get(name, {})
        if words[0] == "build":
            table = kills.TABLE if name == "build" else kills.TABLE.replace('"out/', f'"{folder}/out/')
            names = {'"m.onnx"': f'"{folder}/m.onnx"', '"external.onnx"': f'"{folder}/external.onnx"'}
            for old, new in names.items():
                table = table.replace(old, new)
            try:
                (disk / "onnxcomp.toml").write_text(table)
            except OSError:
                return 0, []
        code, told = run(folder, words, environment)
        found = [] if code in (0, 6) else ["neither 0 nor 6"]
        lines = told.count("\n")
        if (code == 6 and lines != 3 * told.count("error: ")) or "Traceback" in told:  # a build may have several
            found.append("no error of three lines")
        found += [f"{path.name} is half" for path in named if not whole(path) and path.read_bytes() != OLD]
        if not code:
            found += [f"{path.name} is the old one" for path in named if path.read_bytes() == OLD]
        left = [
            str(p.relative_to(disk)) for p in disk.rglob("*") if p.suffix == ".tmp" or p.name.startswith("onnxcomp-")
        ]
        found += [f"left lying: {path}" for path in left]
        found += [
            f"{path.name} is half"
            for path in disk.rglob("*")
            if path.is_file() and path not in named and not path.name.endswith(UNFINISHED) and not whole(path)
        ]
        return code, [f"{words}; {told[-400:]}" for words in found]


def whole(path: Path) -> bool:
    """Whether a file of one of our kinds was written to its end."""
    if not path.exists():
        return True
    try:
        if path.suffix == ".onnx":
            onnx.checker.check_model(onnx.load(path))
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".html":
            return path.read_text().rstrip().endswith("</html>")
        elif path.suffix == ".png":
            return b"IEND" in path.read_bytes()[-12:]
    except Exception:  # of many libraries: whatever it is, the file cannot be read
        return False
    return path.stat().st_size > 0


def run(folder: Path, words: Sequence[str], environment: dict[str, str]) -> tuple[int, str]:
    """Exit code and errors of one command, in a process forked from this one, which never opens a session."""
    errors = folder / "stderr"
    child = os.fork()
    if not child:
        os.chdir(folder)
        os.environ.update(environment)
        tempfile.tempdir = None
        for number, path in ((1, os.devnull), (2, errors)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        code = 99
        try:
            command_line([*words, "-q"])
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), errors.read_text(errors="replace")


if __name__ == "__main__":
    sys.exit(main())
