"""Where does training run? In an environment of its own, made from a lock of pinned and hashed wheels.

onnxruntime-training installs the same module as the onnxruntime that everything else runs on, so the two cannot share
an interpreter. The environment lies in the user's cache under the hash of its lock: a new lock is a new environment,
and one that stands is never changed. It is built beside its place and renamed when it is complete and has been tried.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from onnxcomp.errors import EnvironmentLacksError, OutputError
from onnxcomp.files import user_cache
from onnxcomp.lock import file_lock
from onnxcomp.runtime import providers

CPU, CUDA = "cpu", "cuda"
PYTHONS = {CPU: ((3, 12), (3, 11)), CUDA: ((3, 11),)}  # what the last release of onnxruntime-training has wheels for
LOCKS = {kind: Path(__file__).with_name(f"training-{kind}.lock") for kind in PYTHONS}
DOWNLOAD_MB = {CPU: 42, CUDA: 332}
MARK = "complete.json"
INSTALL_SECONDS = 1800  # pip retries by itself; this only ends what hangs
_TRY = "import onnx, onnxruntime; from onnxruntime.capi import _pybind_state as c; c.GradientGraphBuilder"
_TRY_CUDA = (
    "import onnx, onnxruntime as o; from onnx import helper as h; i = h.make_tensor_value_info('x', 1, [1]); "
    "m = h.make_model(h.make_graph([h.make_node('Identity', ['x'], ['y'])], 'g', [i], "
    "[h.make_tensor_value_info('y', 1, [1])]), opset_imports=[h.make_opsetid('', 17)], ir_version=8); "
    "p = o.InferenceSession(m.SerializeToString(), providers=['CUDAExecutionProvider']).get_providers(); "
    "assert 'CUDAExecutionProvider' in p, 'CUDA 11.8 and cuDNN 8 are not all there'"
)
_ELSEWHERE = "check the network, or fetch the wheels elsewhere: onnxcomp doctor --setup-training --wheels DIR"
_ASK = "import sys, venv, ensurepip; print(*sys.version_info[:2])"

Say = Callable[[str], None]


@dataclass(frozen=True)
class Environment:
    """An environment that stands.

    Attributes:
        kind: `cpu` or `cuda`.
        folder: where it lies; `python` its interpreter.
        size_bytes: on disk.
        seconds: that making it took.
    """

    kind: str
    folder: str
    size_bytes: int
    seconds: float

    @property
    def provider(self) -> str:
        """The execution provider that trains."""
        return providers.CUDA if self.kind == CUDA else providers.CPU

    @property
    def python(self) -> Path:
        """The interpreter that runs the worker."""
        return _python_of(Path(self.folder))


def choose(*, usable_gpu: bool, system: str = sys.platform, machine: str = "") -> str:
    """The package to train with: CUDA's where a GPU runs and the package exists (Linux on x86-64), else the CPU's."""
    fits = system == "linux" and (machine or platform.machine()) in ("x86_64", "AMD64")
    return CUDA if usable_gpu and fits else CPU


def find(kind: str = CPU) -> Environment | None:
    """The environment that stands, or None; nothing is started or written."""
    folder = _place(kind)
    try:
        told = json.loads((folder / MARK).read_text(encoding="utf-8"))
        found = Environment(kind, str(folder), told["size_bytes"], told["seconds"])
    except (OSError, ValueError, KeyError):
        return None
    return found if found.python.exists() else None  # its base interpreter may be gone


def provide(
    kind: str | None = None, *, wheels: Path | None = None, say: Say = lambda text: None, again: bool = False
) -> Environment:
    """The environment, made where it does not stand yet; two processes at a time make it once.

    Args:
        kind: by default CUDA's where a GPU is usable, and the CPU's where that one cannot be had.
        wheels: a folder of wheels to install from, with no network at all.
        say: called with a line for a person when something begins or ends.
        again: try CUDA's again although it did not run here before.

    Raises:
        EnvironmentLacksError: no fitting interpreter, or the packages cannot be had.
        OutputError: the cache folder cannot be written.
    """
    if kind is not None:
        return _provided(kind, wheels, say)
    if choose(usable_gpu=providers.usability(providers.CUDA).usable) == CUDA:
        failed = _place(CUDA).with_suffix(".failed")
        if again or not failed.exists():
            try:
                return _provided(CUDA, wheels, say)
            except EnvironmentLacksError as error:
                say(f"training runs on the processor: {error.what}")
                failed.write_text(f"{error}\n", encoding="utf-8")  # 300 MB are not fetched again at each run
    return _provided(CPU, wheels, say)


def _provided(kind: str, wheels: Path | None, say: Say) -> Environment:
    if found := find(kind):
        return found
    folder = _place(kind)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        waiting = "another process sets up the training runtime: waiting for it"
        with file_lock(folder.with_suffix(".lock"), lambda: say(waiting)):
            return find(kind) or _make(kind, folder, wheels, say)
    except OSError as error:
        raise OutputError(
            f"the training runtime cannot be written: {error.strerror or error}",
            where=f"folder {folder.parent}",
            do="make room there, or set XDG_CACHE_HOME to a folder that is writable",
        ) from error


def _place(kind: str) -> Path:
    digest = hashlib.sha256(LOCKS[kind].read_bytes()).hexdigest()[:16]
    return user_cache() / "training" / f"{kind}-{digest}"


def _python_of(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def _make(kind: str, folder: Path, wheels: Path | None, say: Say) -> Environment:
    start = time.perf_counter()
    base = interpreter(kind)
    half = folder.with_name(f"{folder.name}.half")
    for leftover in (half, folder):  # an interrupted try, or an environment whose interpreter is gone
        shutil.rmtree(leftover, ignore_errors=True)
    source = f"from {wheels}" if wheels else f"from the package index (about {DOWNLOAD_MB[kind]} MB)"
    say(f"setting up the training runtime with {base} {source}")
    _run([base, "-m", "venv", str(half)], f"{base} cannot make an environment", "install its venv module")
    python = str(_python_of(half))
    fetched = folder.with_name(f"{folder.name}.wheels")
    if wheels is None:
        _fetch(python, kind, fetched, say)
    version = ".".join(map(str, _version(base)))
    do = f"put the wheels that {LOCKS[kind].name} names, for Python {version}, into {wheels}" if wheels else _ELSEWHERE
    found = str((wheels or fetched).resolve())
    install = [*_pip(python, "install", LOCKS[kind]), "--no-index", "--find-links", found]
    _run(install, "the packages of the training runtime cannot be installed", do)
    tries = [_TRY, _TRY_CUDA] if kind == CUDA else [_TRY]
    for words in tries:
        _run([python, "-E", "-s", "-c", words], "the training runtime does not start", "the reason stands above")
    size = sum(path.lstat().st_size for path in half.rglob("*"))
    made = Environment(kind, str(folder), size, round(time.perf_counter() - start, 1))
    (half / MARK).write_text(json.dumps(asdict(made)) + "\n", encoding="utf-8")
    half.rename(folder)
    shutil.rmtree(fetched, ignore_errors=True)
    say(f"the training runtime stands: {size / 1e6:.0f} MB in {made.seconds:.0f} s, {folder}")
    return made


def _fetch(python: str, kind: str, into: Path, say: Say) -> None:
    """Download the wheels of a lock, one after the other: those that an interrupted try left whole are kept."""
    into.mkdir(exist_ok=True)
    entries = re.split(r"\n(?=\w)", LOCKS[kind].read_text(encoding="utf-8"))[1:]
    for number, pinned in enumerate(entries, 1):
        if any(hashlib.sha256(path.read_bytes()).hexdigest() in pinned for path in into.glob("*.whl")):
            continue
        one = into / "one.lock"
        one.write_text(pinned, encoding="utf-8")
        download = [*_pip(python, "download", one), "--dest", str(into)]
        _run(download, "the packages of the training runtime cannot be had", _ELSEWHERE)
        so_far = sum(path.stat().st_size for path in into.glob("*.whl")) / 1e6
        name = pinned.partition(" ")[0]
        say(f"  {name}: {number} of {len(entries)} packages, {so_far:.0f} of about {DOWNLOAD_MB[kind]} MB")


def _pip(python: str, command: str, requirements: Path) -> list[str]:
    words = [python, "-m", "pip", "--disable-pip-version-check", "--no-input", command, "--quiet", "--no-deps"]
    return [*words, "--require-hashes", "--only-binary", ":all:", "--requirement", str(requirements)]


def interpreter(kind: str = CPU) -> str:
    """An interpreter that the packages have wheels for: the running one, one on PATH, or one that uv has or gets.

    Raises:
        EnvironmentLacksError: there is none.
    """
    versions = PYTHONS[kind]
    for candidate in _candidates(versions):
        if _version(candidate) in versions:
            return candidate
    names = " or ".join(".".join(map(str, version)) for version in reversed(versions))
    raise EnvironmentLacksError(
        f"the training runtime needs Python {names}, and there is none with its venv module",
        where=f"this is Python {platform.python_version()}; looked on PATH and asked uv",
        do=f"install python{versions[0][0]}.{versions[0][1]}, or uv (it brings one by itself: pip install uv)",
    )


def _candidates(versions: tuple[tuple[int, int], ...]) -> Iterator[str]:
    if sys.version_info[:2] in versions:
        yield getattr(sys, "_base_executable", None) or sys.executable
        yield sys.executable
    for version in versions:
        if found := shutil.which(f"python{version[0]}.{version[1]}"):
            yield found
    if uv := shutil.which("uv"):
        wanted = ".".join(map(str, versions[0]))
        _quiet([uv, "python", "install", wanted])
        if found := _quiet([uv, "python", "find", wanted]):
            yield found


def _version(python: str) -> tuple[int, ...]:
    """Its version, or empty where it does not run or cannot make environments."""
    words = _quiet([python, "-E", "-s", "-c", _ASK]).split()
    return tuple(int(word) for word in words) if all(word.isdigit() for word in words) else ()


def _quiet(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def clean_environment() -> dict[str, str]:
    """Our variables without those that would lead another interpreter to our packages, or pip away from the lock.

    Where pip finds packages (index, proxy, certificates) stays the user's; what a lock decides does not.
    """
    dropped = {"PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__"}
    dropped |= {f"PIP_{name}" for name in ("TARGET", "PREFIX", "ROOT", "NO_BINARY", "PLATFORM", "PYTHON_VERSION")}
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    quiet = {"ORT_DISABLE_TELEMETRY": os.environ.get("ORT_DISABLE_TELEMETRY", "1")}
    return kept | quiet | {"PIP_CONSTRAINT": os.devnull, "PIP_USER": "0"}


def _run(command: list[str], what: str, do: str) -> None:
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=INSTALL_SECONDS,
            env=clean_environment(),
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise EnvironmentLacksError(
            f"{what}: no end after {INSTALL_SECONDS} s", where=" ".join(command), do=do
        ) from error
    if done.returncode:
        lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR")] or lines[-2:]
        raise EnvironmentLacksError(f"{what}: {' '.join(errors)[:400]}", where=" ".join(command[:4]), do=do)
