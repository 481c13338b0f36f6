"""What machine is this: processor, instruction sets, cores, memory, versions, and how much memory the process took."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import platform
import subprocess
import sys
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from onnxcomp.errors import UsageError

# our name -> the names under which Linux's /proc/cpuinfo or macOS's sysctl lists it; ordered from old to new
_ISA = {
    "sse4_2": ("sse4_2", "sse4.2"),
    "avx": ("avx", "avx1.0"),
    "f16c": ("f16c",),
    "fma": ("fma",),
    "avx2": ("avx2",),
    "avx512f": ("avx512f",),
    "avx512bw": ("avx512bw",),
    "avx512_vnni": ("avx512_vnni", "avx512vnni"),
    "avx_vnni": ("avx_vnni",),
    "avx_vnni_int8": ("avx_vnni_int8",),
    "avx512_bf16": ("avx512_bf16",),
    "avx512_fp16": ("avx512_fp16",),
    "amx_bf16": ("amx_bf16",),
    "amx_int8": ("amx_int8",),
    "neon": ("asimd", "neon", "advsimd"),
    "fp16": ("asimdhp", "feat_fp16"),
    "dotprod": ("asimddp", "feat_dotprod"),
    "i8mm": ("i8mm", "feat_i8mm"),
    "bf16": ("bf16", "feat_bf16"),
    "sve": ("sve",),
    "sve2": ("sve2",),
    "sme": ("sme", "feat_sme"),
}
_PACKAGES = (
    "onnxruntime-gpu",
    "onnxruntime",
    "onnx",
    "onnx-graphsurgeon",
    "numpy",
    "pillow",
    "tensorrt-rtx-cu13-bindings",
    "openvino",
)


@dataclass(frozen=True)
class Machine:
    """The machine that the measurements were made on. Memory in bytes; None where the system does not tell."""

    cpu: str
    isa: tuple[str, ...]
    cores: int
    physical_cores: int | None
    memory_bytes: int | None
    system: str
    python: str
    versions: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """What a report says about the machine."""
        return {
            "cpu": self.cpu,
            "isa": list(self.isa),
            "cores": self.cores,
            "physical_cores": self.physical_cores,
            "memory_bytes": self.memory_bytes,
            "system": self.system,
            "python": self.python,
        }


@cache
def machine() -> Machine:
    """Look at this machine; nothing here fails, what is unknown stays empty."""
    return Machine(
        cpu=_cpu_name(),
        isa=instruction_sets(),
        cores=usable_cores(),
        physical_cores=_physical_cores(),
        memory_bytes=_memory_bytes(),
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        versions=versions(),
    )


def versions(packages: tuple[str, ...] = _PACKAGES) -> dict[str, str]:
    """Version of each installed distribution, without importing it; what is not installed is left out."""
    found = {package: _version(package) for package in packages}
    return {package: version for package, version in found.items() if version is not None}


@cache
def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def conflict() -> str:
    """What is wrong with the installed builds of ONNX Runtime, with the cure; empty where nothing is.

    Every build installs the same module: of two, the files of the one that came last are mixed with the other's.
    """
    builds = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml", "onnxruntime-training")
    found = versions(builds)
    if len(found) < 2:
        return ""
    kept = "onnxruntime-gpu" if "onnxruntime-gpu" in found else next(iter(found))
    cure = f"pip uninstall -y {' '.join(found)} && pip install {kept}"
    return f"{' and '.join(found)} are installed side by side and overwrite each other's files: {cure}"


def usable_cores() -> int:
    """Cores this process may use: its affinity, cut by the quota of its control group."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _read("/sys/fs/cgroup/cpu.max").strip().partition(" ")
    if quota.isdigit() and period.isdigit():
        affinity = min(affinity, max(1, round(int(quota) / int(period))))
    return affinity


def check_threads(threads: int, flag: str = "--threads") -> None:
    """Refuse more threads than this machine can have a use for: each takes memory, and is started before any work.

    Raises:
        UsageError: they are, or fewer than none.
    """
    most = max(64, 4 * (os.cpu_count() or 1))
    if not 0 <= threads <= most:
        raise UsageError(
            f"{threads} threads are asked for, and this machine has {usable_cores()} cores",
            where=f"{flag} {threads}",
            do=f"give 0 for every core, or at most {most}",
        )


def check_room(samples: int, sample_bytes: int, flag: str) -> None:
    """Refuse a count of made-up samples that would not fit into half of this machine's memory.

    Raises:
        UsageError: it would not.
        MemoryError: not even one would.
    """
    room = (_memory_bytes() or 0) // 2
    if room and sample_bytes > room:
        raise MemoryError(f"one sample has {sample_bytes:,} bytes")
    if room and samples * sample_bytes > room:
        raise UsageError(
            f"{samples:,} samples of {sample_bytes:,} bytes do not fit into half of this machine's memory",
            where=f"{flag} {samples}",
            do=f"give at most {max(1, room // max(1, sample_bytes)):,}",
        )


def peak_memory_bytes() -> int:
    """The largest resident size this process has had, in bytes; 0 where the system does not tell.

    On Linux VmHWM: unlike `getrusage` it does not carry the size of the process that started this one.
    """
    for line in _read("/proc/self/status").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        return _windows_peak()
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def reset_peak_memory() -> int:
    """Let the peak start anew from what is resident now, where the system can (Linux); returns that, in bytes.

    Elsewhere the peak so far is returned, which later ones cannot fall below.
    """
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return peak_memory_bytes()
    for line in _read("/proc/self/status").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return peak_memory_bytes()


def instruction_sets() -> tuple[str, ...]:
    """The vector and matrix instruction sets that matter for inference, from old to new."""
    flags = _flags()
    return tuple(name for name, spellings in _ISA.items() if flags.intersection(spellings))


def _flags() -> frozenset[str]:
    if sys.platform == "darwin":
        listed = _sysctl("machdep.cpu.features", "machdep.cpu.leaf7_features").lower().split()
        optional = (line.rpartition(":") for line in _sysctl_all("hw.optional").lower().splitlines())
        arm = {key.rpartition(".")[2].strip() for key, _, value in optional if value.strip() == "1"}
        return frozenset(listed) | arm
    if sys.platform == "win32":
        present = ctypes.windll.kernel32.IsProcessorFeaturePresent
        numbers = {"neon": 19, "sse4_2": 38, "avx": 39, "avx2": 40, "avx512f": 41, "asimddp": 43}
        return frozenset(name for name, number in numbers.items() if present(number))
    for line in _read("/proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if key.strip().lower() in ("flags", "features"):
            return frozenset(value.lower().split())
    return frozenset()


def _cpu_name() -> str:
    if sys.platform == "darwin":
        return _sysctl("machdep.cpu.brand_string").strip() or platform.machine()
    fields = dict.fromkeys(("model name", "Model", "Hardware"), "")
    for line in _read("/proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in fields and not fields[key.strip()]:
            fields[key.strip()] = value.strip()
    return next((name for name in fields.values() if name), "") or platform.processor() or platform.machine()


def _physical_cores() -> int | None:
    if sys.platform == "darwin":
        text = _sysctl("hw.physicalcpu").strip()
        return int(text) if text.isdigit() else None
    cores, package = set(), ""
    for line in _read("/proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "physical id":
            package = value.strip()
        elif key.strip() == "core id":
            cores.add((package, value.strip()))
    return len(cores) or None


def _memory_bytes() -> int | None:
    if sys.platform == "win32":
        return None
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None
    limit = _read("/sys/fs/cgroup/memory.max").strip()
    return min(total, int(limit)) if limit.isdigit() else total


def _windows_peak() -> int:
    class Counters(ctypes.Structure):
        _fields_ = (
            ("cb", ctypes.c_ulong),
            ("faults", ctypes.c_ulong),
            ("peak", ctypes.c_size_t),
            ("rest", ctypes.c_size_t * 7),
        )

    counters = Counters(cb=ctypes.sizeof(Counters))
    windll = getattr(ctypes, "windll", None)
    if windll is None:
        return 0
    handle = ctypes.c_void_p(windll.kernel32.GetCurrentProcess())
    ok = windll.psapi.GetProcessMemoryInfo(handle, ctypes.byref(counters), counters.cb)
    return int(counters.peak) if ok else 0


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _sysctl(*names: str) -> str:
    return _run("sysctl", "-n", *names)


def _sysctl_all(prefix: str) -> str:
    return _run("sysctl", prefix)


def _run(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
