"""On which cores are latencies measured? On few that are idle, and on these throughout, where the system allows it.

A thread that the system moves starts with cold caches, and two threads that share the halves of one physical core slow
each other down. So the threads of a measurement get a core each, different physical ones as far as there are, the least
busy of those that the process may use. Only Linux lets a process say so; elsewhere nothing is pinned.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

LOOK_SECONDS = 0.1  # the kernel counts in hundredths of a second
# ONNX Runtime's name of the option that says where the threads of its pool run
AFFINITIES = "session.intra_op_thread_affinities"


def choose(threads: int) -> tuple[int, ...]:
    """Cores for so many threads, the calling one first; empty where nothing can be pinned."""
    if not hasattr(os, "sched_getaffinity"):
        return ()
    usable = sorted(os.sched_getaffinity(0))
    if threads > len(usable) or len(usable) < 2:
        return ()
    busy = _busy(usable)
    ordered = sorted(usable, key=lambda core: (busy.get(core, 0), -core))  # interrupts mostly go to the first core
    return _apart(ordered)[:threads]


@contextlib.contextmanager
def pinned(cores: tuple[int, ...]) -> Iterator[None]:
    """Keep the calling thread on the first of `cores`; threads that it starts meanwhile inherit that."""
    if not cores:
        yield
        return
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {cores[0]})
    except OSError:  # a container may forbid it
        yield
        return
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def session_config(cores: tuple[int, ...]) -> dict[str, str]:
    """What tells ONNX Runtime's own threads where to run: all cores but the calling thread's, counted from 1."""
    return {AFFINITIES: ";".join(str(core + 1) for core in cores[1:])} if len(cores) > 1 else {}


def _apart(ordered: list[int]) -> tuple[int, ...]:
    """The same cores, with one of each physical core before the second of any."""
    seen: set[str] = set()
    first: list[int] = []
    second: list[int] = []
    for core in ordered:
        siblings = _read(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list").strip() or str(core)
        (second if siblings in seen else first).append(core)
        seen.add(siblings)
    return (*first, *second)


def _busy(cores: list[int]) -> dict[int, int]:
    """Ticks that each core was not idle in the last tenth of a second; empty where the system does not tell."""
    before = _ticks()
    if not before:
        return {}
    time.sleep(LOOK_SECONDS)
    after = _ticks()
    return {core: after[core] - before[core] for core in cores if core in before and core in after}


def _ticks() -> dict[int, int]:
    """Ticks that each core has not been idle, from /proc/stat: user nice system idle iowait irq softirq steal."""
    found = {}
    for line in _read("/proc/stat").splitlines():
        name, *numbers = line.split()
        if name.startswith("cpu") and name[3:].isdigit() and len(numbers) >= 8:
            counts = [int(number) for number in numbers[:8]]
            found[int(name[3:])] = sum(counts) - counts[3] - counts[4]
    return found


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii")
    except OSError:
        return ""
