"""The build step: which models have to be built, each built in a process of its own, and what came of it."""

from __future__ import annotations

import difflib
import fnmatch
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from onnxcomp import places
from onnxcomp.build.fingerprint import ABSENT, Parts, dependencies, growing, needed, parts_of
from onnxcomp.build.hashes import Hashes
from onnxcomp.build.state import REPORTS, Record, State
from onnxcomp.config import Config, ModelEntry
from onnxcomp.errors import DataError, ModelError, OnnxcompError, UsageError
from onnxcomp.lock import file_lock
from onnxcomp.report.record import read_json
from onnxcomp.report.tables import missed
from onnxcomp.results import BuildReport, BuiltModel, Failure
from onnxcomp.runtime.progress import SILENT, Progress
from onnxcomp.verify.budget import EXIT_CODES, UNCHANGED

Tell = Callable[[str], None]
JUDGED = frozenset({UNCHANGED, *EXIT_CODES.values()})  # exit codes of results that were measured and refused


@dataclass(frozen=True)
class Planned:
    """A model of the configuration, and why it has to be built; no reasons: it stands as it is."""

    entry: ModelEntry
    parts: Parts
    reasons: list[str]


def plan(config: Config, *, only: Sequence[str] = (), force: bool = False) -> list[Planned]:
    """What `build` would do; nothing is written.

    Raises:
        UsageError: a word of `only` matches no model.
    """
    state = State(config)
    return _planned(config, state, Hashes(config.folder, state.hashes_file), only, force)


def build(
    config: Config,
    *,
    only: Sequence[str] = (),
    force: bool = False,
    jobs: int = 1,
    tell: Tell = lambda text: None,
    progress: Progress = SILENT,
) -> BuildReport:
    """Build the models that changed.

    Args:
        only: globs of names or outputs; empty means all models.
        force: build them even where nothing changed.
        jobs: so many models at a time; latencies are measured one at a time nevertheless.
        tell: called with a line for a person when something begins or ends.
        progress: shows how many models are done.

    Raises:
        UsageError: a word of `only` matches no model.
        OutputError: the state folder cannot be made.
    """
    start = time.perf_counter()
    check_places(config)
    state = State(config)
    state.prepare()
    with file_lock(
        state.folder / "build.lock", lambda: tell("another build of this configuration runs: waiting")
    ) as fd:
        state.clean()
        hashes = Hashes(config.folder, state.hashes_file)
        try:
            planned = _planned(config, state, hashes, only, force)
            built = _Run(config, state, hashes, tell, fd, progress).all(planned, jobs)
        finally:
            state.clean()
            hashes.save()
    return BuildReport(config.file.name, built, round(time.perf_counter() - start, 3))


def check_places(config: Config, depfile: Path | None = None) -> None:
    """Refuse a configuration in which a build would write over what one reads, before any work.

    Raises:
        OutputError: it does, or a place cannot be written.
    """
    folder = config.folder
    hashes = Hashes(folder, State(config).hashes_file)
    writes: dict[str, Path | None] = {"--depfile": depfile}
    reads = [config.file]
    for entry in config.models:
        for name, path in places.writes_of(entry.job).items():
            writes[f"{entry.name}: {name}"] = None if path is None or path == entry.job.cost_table else folder / path
        reads += [folder / path for path in needed(entry, hashes)]
    reports = {f"reports: {name}": folder / config.reports / name for name in REPORTS}
    places.check(reads, writes | reports)


def depfile_text(config: Config, only: Sequence[str] = ()) -> str:
    """Outputs and what they depend on, as Make, Ninja and CMake read it.

    Paths are relative or absolute as the configuration's own path was given, as compilers do it.
    """
    hashes = Hashes(config.folder, State(config).hashes_file)
    lines = []
    for entry in _selected(config, only):
        needed = [config.file, *dependencies(entry, hashes)]
        words = "".join(f" \\\n  {_make_word(path)}" for path in needed)
        lines.append(f"{_make_word(config.folder / entry.job.out)}:{words}")
    return "\n".join(lines) + "\n"


def _make_word(path: Path) -> str:
    return path.as_posix().replace("$", "$$").replace("#", "\\#").replace(" ", "\\ ")


def _selected(config: Config, only: Sequence[str]) -> list[ModelEntry]:
    names = [(entry.name, entry.job.out.as_posix()) for entry in config.models]
    for glob in only:
        if not any(fnmatch.fnmatchcase(name, glob) for both in names for name in both):
            near = difflib.get_close_matches(glob, [name for name, _ in names], 1, 0.0)[0]
            raise UsageError(f"no model is called {glob!r}", where=str(config.file), do=f"did you mean {near}?")
    return [
        entry
        for entry, both in zip(config.models, names, strict=True)
        if not only or any(fnmatch.fnmatchcase(name, glob) for glob in only for name in both)
    ]


def _planned(config: Config, state: State, hashes: Hashes, only: Sequence[str], force: bool) -> list[Planned]:
    found = []
    for entry in _selected(config, only):
        parts = parts_of(entry, hashes)
        reasons = state.reasons(entry, parts, hashes)
        found.append(Planned(entry, parts, reasons or (["it was asked for"] if force else [])))
    return found


def obstacle(item: Planned) -> OnnxcompError | None:
    """What would make the build of a model fail before any work, as far as that shows without opening a file."""
    from onnxcomp.work.asked import check_options

    job = item.entry.job
    inputs = {f"file {job.model.as_posix()}": ModelError, f"file {job.data}": DataError}
    for name, kind in inputs.items():
        if item.parts.get(name) == ABSENT:
            return kind(
                "there is no such file", where=name, do="check the path, which is relative to the configuration"
            )
    try:
        check_options(job)
    except OnnxcompError as error:
        return error
    return None


@dataclass
class _Run:
    """One run of the build: processes, and what is done with their answers (in the main thread alone)."""

    config: Config
    state: State
    hashes: Hashes
    tell: Tell
    lock: int
    progress: Progress = SILENT
    children: set[subprocess.Popen[bytes]] = field(default_factory=set)
    guard: threading.Lock = field(default_factory=threading.Lock)
    stopped: bool = False

    def all(self, planned: list[Planned], jobs: int) -> list[BuiltModel]:
        """Every model, in the order of the configuration."""
        results: dict[str, BuiltModel] = {}
        pool = ThreadPoolExecutor(jobs)
        waiting: dict[Future[tuple[dict[str, Any], float]], Planned] = {}
        try:
            for item in planned:
                if item.reasons:
                    waiting[pool.submit(self._answer, item)] = item
                else:
                    results[item.entry.name] = self._standing(item)
                    self.tell(f"{item.entry.name}: up to date")
            for item, answer in self.progress.track(_as_they_end(waiting), len(waiting), "building"):
                results[item.entry.name] = self._finished(item, *answer)
        finally:
            self._stop()
            pool.shutdown(wait=True, cancel_futures=True)
        self._settle(item.entry for item in planned)
        return [results[item.entry.name] for item in planned]

    def _standing(self, item: Planned) -> BuiltModel:
        job = item.entry.job
        report = read_json(self.config.folder / job.report_path)
        return BuiltModel(
            item.entry.name, "up to date", 0, job.out.as_posix(), job.report_path.as_posix(), report=report
        )

    def _answer(self, item: Planned) -> tuple[dict[str, Any], float]:
        """Run the worker; its answer, and how long it took in seconds."""
        order = {
            "table": item.entry.table,
            "scratch": str(self.state.scratch_of(item.entry).resolve()),
            "timing_lock": str((self.state.folder / "timing.lock").resolve()),
        }
        start = time.perf_counter()
        with self.guard:
            if self.stopped:
                return {}, 0.0
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "onnxcomp.build.worker"],
                cwd=self.config.folder,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=(self.lock,) if os.name == "posix" else (),  # a new build waits for orphans, too
            )
            self.children.add(process)
        self.tell(f"{item.entry.name}: building, {_listed(item.reasons)}")
        assert process.stdin is not None
        assert process.stdout is not None
        with suppress(BrokenPipeError):
            process.stdin.write(json.dumps(order).encode() + b"\n")
            process.stdin.flush()
        text = process.stdout.read()
        process.wait()
        with suppress(BrokenPipeError):
            process.stdin.close()
        seconds = time.perf_counter() - start
        with suppress(ValueError):
            found: dict[str, Any] = json.loads(text)
            return found, seconds
        return _died(process.returncode), seconds

    def _stop(self) -> None:
        with self.guard:
            self.stopped = True
            for process in self.children:
                if process.poll() is None:
                    process.kill()

    def _finished(self, item: Planned, answer: dict[str, Any], seconds: float) -> BuiltModel:
        entry, code = item.entry, int(answer["exit_code"])
        job = entry.job
        error = answer.get("error")
        made = BuiltModel(
            entry.name,
            "failed" if code else "built",
            code,
            job.out.as_posix(),
            job.report_path.as_posix(),
            item.reasons,
            error=Failure(**error) if error else None,
            seconds=round(seconds, 3),
        )
        if not error:
            made.report = read_json(self.config.folder / job.report_path)
        if code in JUDGED:
            made.notes += self._withdraw(entry, "; ".join(missed(made.report)) if made.report is not None else "")
        elif not code:
            self._remember(item, [Path(path) for path in answer["files"]], made)
        self.tell(f"{entry.name}: {_outcome(made)}")
        return made

    def _remember(self, item: Planned, files: list[Path], made: BuiltModel) -> None:
        """Write down an accepted build, unless what went into it changed meanwhile; drop data files it replaced."""
        before = self.state.read(item.entry)
        record = Record(item.parts, {path.as_posix(): self.hashes.of(path) for path in files})
        for path in before.outputs if before else ():
            if path not in record.outputs:
                self._remove(path, before.outputs[path] if before else "")
        now = parts_of(item.entry, self.hashes)
        own = growing(item.entry)
        if {**now, own: ""} != {**item.parts, own: ""}:
            self.state.forget(item.entry)
            made.notes.append("its files changed while it was built: the next build makes it again")
        else:
            self.state.write(item.entry, record)

    def _settle(self, entries: Iterable[ModelEntry]) -> None:
        """Take note of cost tables as they are now: what the builds added to them changes none of the results."""
        for entry in entries:
            name, record = growing(entry), self.state.read(entry)
            if name and record is not None:
                now = {**record.parts, name: parts_of(entry, self.hashes)[name]}
                if now != record.parts:
                    self.state.write(entry, replace(record, parts=now))

    def _withdraw(self, entry: ModelEntry, why: str) -> list[str]:
        """Take an earlier build away from where the refused one would stand; only files that are as we left them.

        The run that was refused may have done so already: what is told is what is gone.
        """
        record = self.state.read(entry)
        self.state.refuse(entry, why)
        notes = []
        for path, digest in record.outputs.items() if record else ():
            if Path(path) == entry.job.report_path:
                continue
            self._remove(path, digest)
            if not (self.config.folder / path).exists():
                notes.append(f"{path}, which an earlier state of the configuration had made, is no longer there")
        return notes

    def _remove(self, path: str, digest: str) -> bool:
        """Remove a file of an earlier build if it lies in the configuration's folder, is as it was left, and is ours.

        What the state says is not enough: its file may be damaged.
        """
        from onnxcomp.verify.provenance import written_by_us

        with suppress(OSError, ValueError, OnnxcompError):
            full, folder = self.config.folder / path, self.config.folder.resolve()
            inside = full.resolve().is_relative_to(folder) and not full.is_symlink()
            if inside and full.is_file() and self.hashes.of(Path(path)) == digest and written_by_us(full):
                full.unlink()
                return True
        return False


def _as_they_end(
    waiting: dict[Future[tuple[dict[str, Any], float]], Planned],
) -> Iterator[tuple[Planned, tuple[dict[str, Any], float]]]:
    """The models whose processes have ended, each with its answer and the seconds that took."""
    while waiting:
        done, _ = wait(waiting, return_when=FIRST_COMPLETED)
        for future in done:
            yield waiting.pop(future), future.result()


def _outcome(made: BuiltModel) -> str:
    if made.error is not None:
        return f"failed, {made.error.what}"
    report = made.report
    assert report is not None
    size = f"{report.after.bytes / max(1, report.before.bytes):.1%} of the size" if report.output else ""
    speed = [f"speed-up {bench.speedup:.2f}" for bench in report.benchmarks[:1] if report.output]
    words = [report.verdict, size, *speed]
    words += missed(report) if made.exit_code else [report.reason]
    if report.verdict == "over-budget" and report.output is not None:
        words.append(f"kept as {report.output.path}")
    return ", ".join(word for word in (*words, f"{made.seconds:.1f} s") if word)


def _died(code: int) -> dict[str, Any]:
    """The answer of a process that gave none."""
    if code == 130:
        return _error("the build of this model was interrupted", "build again")
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"exit code {code}"
    hint = "it may have run out of memory" if name == "SIGKILL" else "see what it printed above"
    return _error(f"the process that built the model ended with {name}", hint)


def _error(what: str, do: str) -> dict[str, Any]:
    found = OnnxcompError(what, where="the build process", do=do)
    return {"exit_code": 1, "files": [], "error": {"what": found.what, "where": found.where, "do": found.do}}


def _listed(reasons: list[str]) -> str:
    return "; ".join(reasons[:3]) + (f"; and {len(reasons) - 3} more" if len(reasons) > 3 else "")
