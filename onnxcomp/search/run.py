"""How does a search go? Trials are proposed, run and told until it is enough; then the best is judged.

The best model so far stands whole at its place all the while. What the search saw are the samples set aside for
choosing; the result is measured again on those that judge, and the next best is taken where the best does not hold.
"""

from __future__ import annotations

import random
import re
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from onnxcomp import driver, places
from onnxcomp.build.first import config_of, job_table, save_result
from onnxcomp.config import entry_of
from onnxcomp.distill import environment
from onnxcomp.errors import EnvironmentLacksError, ModelError, OnnxcompError, UsageError
from onnxcomp.job import Job
from onnxcomp.manager.base import Need
from onnxcomp.report.tables import size_text, time_text
from onnxcomp.results import Report
from onnxcomp.runtime.machine import usable_cores
from onnxcomp.runtime.progress import SILENT, Progress
from onnxcomp.search import kept
from onnxcomp.search import ledger as ledgers
from onnxcomp.search.evaluate import job_of_trials
from onnxcomp.search.keys import SearchKeys
from onnxcomp.search.ledger import Ledger, shown_url
from onnxcomp.search.output import Output
from onnxcomp.search.pool import DIED, Answer, Inline, Pool, Processes, alone
from onnxcomp.search.rows import Judge, Objective, Row, Source
from onnxcomp.search.space import Point, Space, space_of
from onnxcomp.search.strategies import Strategy, Told, drawn, first_points, strategy
from onnxcomp.settings import settings_of
from onnxcomp.verify.budget import UNCHANGED, Budget, Size
from onnxcomp.work.asked import check_options
from onnxcomp.work.key import key_of
from onnxcomp.work.study import Study
from onnxcomp.work.trial import Measured

DEFAULT_SECONDS = 900.0
FINALISTS, CLOSER_DB, MOST_AGAIN, BLIND = 5, 1.0, 200, 20
WAIT_SECONDS = 1.0
MOST_OTHERS = 3  # studies of the same storage that are named
_TIME = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s?)?")


@dataclass
class Found:
    """What a search came to.

    Attributes:
        rows: the trials that ended.
        best: the best one within the budget, on the samples that choose; None where there is none.
        taken: the one whose model was judged and written.
        report: of that; None where nothing is better than the source.
        left: passes that were not tried, and why.
    """

    job: Job
    judge: Judge
    rows: list[Row]
    best: Row | None
    taken: Row | None = None
    report: Report | None = None
    left: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    config: Path | None = None

    @property
    def exit_code(self) -> int:
        """That of the report; 13 where nothing was gained."""
        return UNCHANGED if self.report is None else self.report.exit_code


Tell = Callable[[str], None]


def study_file(job: Job) -> Path:
    """Where trials are kept if nothing else is said: NAME.search.db beside the result."""
    return job.out.with_name(f"{job.out.name.removesuffix('.onnx').removesuffix('.opt')}.search.db")


def writes_of(job: Job, keys: SearchKeys) -> dict[str, Path | None]:
    """The files that a search may write, by the flag that names each."""
    study = kept.file_of(keys.study) if keys.study else study_file(job)
    return {**places.writes_of(job), "--study": study, "the configuration": config_of(job)}


def search(job: Job, keys: SearchKeys, *, tell: Tell = lambda text: None, progress: Progress = SILENT) -> Found:
    """Search the best settings for a job.

    Args:
        tell: called with a line when a trial ends.

    Raises:
        OnnxcompError: a subclass tells what cannot be used: options, model, data, storage, cluster.
    """
    seconds = parse_time(keys.time_limit) if keys.time_limit is not None else None
    if seconds is None and keys.trials is None:
        seconds = DEFAULT_SECONDS
    _check(job, keys)
    ledgers.require()
    space = space_of_job(job, keys.without)
    trains = any(Need.TRAINING in move.cls.needs for move in space.moves)
    work = job_of_trials(job, trains=trains)
    _check_opens(work, keys)
    judge = Judge(objective_of(job), job.budget, Source(0, 0))
    name = f"onnxcomp-{key_of(work)[:24]}-{space.sha256[:8]}"
    pool = pool_of(work, keys)
    try:
        told = pool.source()
        for doubt in told.pop("doubts", ()):
            tell(f"warning: {doubt}")
        ledger = ledgers.open_ledger(keys.study or str(study_file(job)), name, space, judge, job.seed)
        ledger.keep_source(Source(**told))
        run = _Run(job, space, ledger, pool, strategy(keys.sampler), keys.trials, seconds, tell)
        for line in opening(job, ledger, run.output, shown_url(keys.study or str(study_file(job)))):
            tell(line)
        run.all(progress)
    finally:
        pool.close()
    found = Found(job, ledger.judge, ledger.finished, ledger.judge.best(ledger.finished), left=dict(space.left))
    found.notes += run.notes
    _settle(found, progress)
    if found.report is not None and found.exit_code == 0:
        run.output.settled()
        if run.output.foreign:
            found.notes.append(f"the model that stood at {job.out} before ({run.output.foreign}) was replaced")
    return found


def opening(job: Job, ledger: Ledger, output: Output, place: str) -> Iterator[str]:
    """What is said before the first trial: which study it is, how far it is, and what stands at the output's place."""
    asked = asked_words(job)
    ledger.describe(asked)
    done, again = len(ledger.finished), ledger.waiting
    if done or again:
        cut = f", {again} {'was' if again == 1 else 'were'} cut off and run again under new numbers" if again else ""
        yield f"resuming: {done} trial{'s' * (done != 1)} done{cut}; {asked}, kept in {place}"
    else:
        others = ledger.others()
        more = f"; and {len(others) - MOST_OTHERS} more" if len(others) > MOST_OTHERS else ""
        beside = f"; not one of those kept there before ({'; '.join(others[:MOST_OTHERS])}{more})" if others else ""
        yield f"new study: {asked}, kept in {place}{beside}"
    if warning := output.warning():
        yield f"warning: {warning}"


def asked_words(job: Job) -> str:
    """What tells one study of a model from another, as far as it is a matter of words: objective and budget."""
    limits = []
    for item in settings_of(Budget):
        value = getattr(job.budget, item.field)
        if value is not None:
            limits.append(f"{item.name} {_size_words(value) if isinstance(value, Size) else f'{value:g}'}")
    return f"{job.objective} within {', '.join(limits)}" if limits else f"{job.objective} without a budget"


def _size_words(size: Size) -> str:
    return size_text(size.bytes or 0) if size.share is None else f"{100 * size.share:g}%"


def space_of_job(job: Job, without: tuple[str, ...] = ()) -> Space:
    """What can be tried with what a job gives."""
    set_up = environment.find() is not None
    training = "" if set_up else "the training runtime is not set up: onnxcomp doctor --setup-training"
    has_data = job.data is not None or job.allow_random
    return space_of(
        target=job.target,
        data=has_data,
        labels=job.labels is not None,
        training=training if has_data else "it needs --data",
        without=without,
    )


def objective_of(job: Job) -> Objective:
    """The objective of a job that can be searched for.

    Raises:
        UsageError: it is none.
    """
    if job.objective == "accuracy":
        raise UsageError(
            "a search makes a model smaller or faster within a budget for accuracy",
            where="--objective accuracy",
            do="give size, latency or macs",
        )
    return job.objective


def pool_of(job: Job, keys: SearchKeys) -> Pool:
    """Where the trials run."""
    if keys.dask is not None:
        try:
            from onnxcomp.search.cluster import Cluster
        except ImportError as error:
            raise EnvironmentLacksError(
                f"a search on a cluster needs dask.distributed, which is not installed here ({error})",
                where=f"--dask {keys.dask}",
                do="pip install 'onnxcomp[search,dask]'",
            ) from error
        return Cluster(keys.dask, job)
    if keys.workers == 0:
        return Inline(job)
    threads = job.threads or max(1, usable_cores() // keys.workers)
    return Processes(table_of(replace(job, threads=threads)), Path(), keys.workers)


def table_of(job: Job) -> dict[str, Any]:
    """A job as the table of a model in a configuration, its paths relative to the current folder."""
    table: dict[str, Any] = tomllib.loads(job_table(job, Path()))["model"][0]
    entry_of(table)
    return table


def parse_time(text: str) -> float:
    """`90`, `90s`, `15m`, `1h30m` as seconds.

    Raises:
        UsageError: it is none of these, or not above 0.
    """
    found = _TIME.fullmatch(text.strip().lower())
    parts = [float(part) if part else 0.0 for part in found.groups()] if found else [0.0]
    seconds = sum(part * unit for part, unit in zip(parts, (3600, 60, 1), strict=False))
    if not seconds > 0:
        raise UsageError(f"{text!r} is no time", where="--time-limit", do="give 15m, 2h or 90s")
    return seconds


def _check(job: Job, keys: SearchKeys) -> None:
    check_options(job)
    places.check_job(job)
    objective = objective_of(job)
    if objective == "latency" and not job.bench:
        raise UsageError("latency cannot be searched for without a benchmark", where="--no-bench", do="drop it")
    if not job.verify:
        raise UsageError("a search needs verification", where="--no-verify", do="drop --no-verify")
    if keys.dask is not None and keys.workers != 1:
        raise UsageError(
            "--workers are processes here, and --dask has workers of its own",
            where="--workers and --dask",
            do="give one of them",
        )
    writes = writes_of(job, keys)
    places.check(places.only_read(job), writes)
    if writes["--study"] is not None:
        kept.check(writes["--study"])


def _check_opens(job: Job, keys: SearchKeys) -> None:
    """Open model and data here, where trials run elsewhere: what is wrong is told before a process is started.

    Raises:
        OnnxcompError: as `Study.open`.
    """
    if keys.dask is not None or keys.workers:
        with Study.open(job):
            pass


@dataclass
class _Run:
    """One run of a search: what is proposed, and what is done with what comes back."""

    job: Job
    space: Space
    ledger: Ledger
    pool: Pool
    strategy: Strategy
    trials: int | None
    seconds: float | None
    tell: Tell
    notes: list[str] = field(default_factory=list)
    best: Row | None = None
    _start: float = field(default_factory=time.monotonic)
    _exhausted: bool = False

    def __post_init__(self) -> None:
        self.output = Output(self.job, self.ledger)
        self._before = len(self.ledger.finished)

    def all(self, progress: Progress) -> None:
        """Trials until it is enough; those under way when the time is out are entered anew for whoever goes on."""
        self.best = self.ledger.judge.best(self.ledger.finished)
        if self.best is not None and (self.output.left_half or not self.job.out.exists()):
            self._write(self.best)
        left = None if self.trials is None else max(0, self.trials - len(self.ledger.finished))
        try:
            for row in progress.track(self._ended(), left, self._words):
                self._told(row)
        finally:
            with suppress(OnnxcompError):
                for row in self.ledger.running:
                    self.ledger.drop(row, again=True)

    def _ended(self) -> Iterator[Row]:
        """Trials as they end."""
        while True:
            while len(self.ledger.running) < self.pool.capacity and self._more():
                self._begin()
            if not self.ledger.running or self._late():
                return
            self.ledger.beat()
            wait = WAIT_SECONDS if self.seconds is None else min(WAIT_SECONDS, max(0.05, self._left()))
            if (ended := self.pool.answer(wait)) is not None:
                yield self._close(*ended)

    def _more(self) -> bool:
        if self._exhausted or self._late():
            return False
        return self.trials is None or len(self.ledger.finished) + len(self.ledger.running) < self.trials

    def _late(self) -> bool:
        return self.seconds is not None and self._left() <= 0

    def _left(self) -> float:
        """Seconds that are left."""
        return (self.seconds or 0.0) - (time.monotonic() - self._start)

    def _begin(self) -> None:
        """Enter the next trial that is none of those known, and hand it out."""
        known = {row.spec for row in self.ledger.rows.values()}
        for again in range(MOST_AGAIN):
            row = self.ledger.begin(self.strategy.sampler, self._proposed(again), again=again)
            if row.spec not in known:
                self.pool.submit(row.number, {"spec": row.spec, "best": self._bar()})
                return
            self.ledger.drop(row, again=False)
        self._exhausted = True
        self.notes.append("the search ended early: everything that it came upon had been tried")

    def _proposed(self, again: int) -> Point | None:
        """A point that was not tried; None: the sampler is asked.

        A sampler that keeps to what is known is helped by chance.
        """
        rows = [self.ledger.rows[number] for number in sorted(self.ledger.rows)]
        told = Told(self.space, self.ledger.judge, rows)
        specs = told.specs
        generator = random.Random(f"{self.job.seed} {len(rows)} {again}")
        for point in first_points(self.space, self.ledger.judge, self.job.target):
            if self._new(point, specs):
                return point
        for point in self.strategy.propose(told, generator):
            if self._new(point, specs):
                return point
        if again >= BLIND:
            return drawn(self.space, generator)
        return None

    def _new(self, point: Point, specs: set[str]) -> bool:
        """Whether a point is one that passes take, and was not tried."""
        with suppress(UsageError):
            return self.space.spec(point) not in specs
        return False

    def _bar(self) -> dict[str, float] | None:
        """What a trial has to beat."""
        best = self.ledger.judge.best(self.ledger.finished)
        if best is None or best.measured is None:
            return None
        found = best.measured
        return {"bytes": found.bytes, "macs": found.macs, "loss": self.ledger.judge.loss(found)}

    def _close(self, number: int, answer: Answer) -> Row:
        row = self.ledger.rows[number]
        if answer["state"] == DIED:
            self.ledger.died(row)
            return self.ledger.rows.get(number, replace(row, why=answer["why"]))
        measured = None if answer["measured"] is None else Measured.of_json(answer["measured"])
        row = replace(row, state=answer["state"], measured=measured, why=answer["why"], seconds=answer["seconds"])
        if measured is not None and measured.latency_ms and measured.latency_ratio:
            first = round(measured.latency_ms / measured.latency_ratio, 6)
            self.ledger.keep_source(replace(self.ledger.judge.source, latency_ms=first))
        self.ledger.tell(row)
        return row

    def _told(self, row: Row) -> None:
        """Say what came of a trial, and write its model where it is the best so far."""
        best = self.ledger.judge.best(self.ledger.finished)
        better = best is not None and best.number == row.number
        if best is not None and better:
            self.best = best
            if best.measured is not None and best.measured.better:
                self._write(best)
        self.tell(f"{row_words(row, self.ledger.judge)}{', the best so far' if better else ''} ({self._pace()})")

    def _write(self, row: Row) -> None:
        self.output.put(row.spec, lambda path: self.pool.write(row.number, row.spec, path))

    def _pace(self) -> str:
        """How far the search is: trials, time that went by in this run, and time that is left or is likely to be."""
        done, passed = len(self.ledger.finished), time.monotonic() - self._start
        words = f"{done} trials" if self.trials is None else f"{done} of {self.trials} trials"
        limits = [] if self.seconds is None else [(max(0.0, self.seconds - passed), "")]
        if self.trials is not None:
            each = passed / max(1, done - self._before)
            limits.append((max(0, self.trials - done) * each, "about "))
        left, about = min(limits, default=(0.0, ""))
        return f"{words}, {time_text(passed)}" + (f", {about}{time_text(left)} left" if left else "")

    def _words(self) -> str:
        done = len(self.ledger.finished)
        best = (
            ""
            if self.best is None or self.best.measured is None
            else f", best {share_words(self.best, self.ledger.judge)}"
        )
        left = "" if self.seconds is None else f", {time_text(max(0.0, self._left()))} left"
        return f"{done} trials{best}{left}"


def share_words(row: Row, judge: Judge) -> str:
    """What the objective says of a trial."""
    assert row.measured is not None
    return f"{judge.score(row.measured):.1%} of the {'time' if judge.objective == 'latency' else judge.objective}"


def row_words(row: Row, judge: Judge) -> str:
    """A trial in a line."""
    if row.measured is None:
        return f"trial {row.number}: failed: {row.why}"
    found = row.measured
    quality = "" if found.drop is None else f", {judge.metric_words(found.drop)}"
    if found.drop is None and found.sqnr_db is not None:
        quality = f", SQNR {found.sqnr_db:.1f} dB"
    why = f", {row.why}" if row.why and not row.sound else ""
    return f"trial {row.number}: {share_words(row, judge)}{quality}{why}"


# -- the end -----------------------------------------------------------------------------------------------------------


def _settle(found: Found, progress: Progress) -> None:
    """Judge the best trials on samples that no trial saw, and write the first that holds, or the nearest."""
    judge, rows = found.judge, found.rows
    gained = sorted((r for r in rows if r.sound and r.measured is not None and r.measured.better), key=judge.order)
    if not gained and any(row.sound for row in rows):
        return
    nearest = judge.nearest(rows)
    if nearest is None:
        why = next((row.why for row in rows if row.why), "none was run")
        raise ModelError(
            f"no trial could be measured: {why}", where=f"file {found.job.model}", do="see onnxcomp inspect"
        )
    tried: list[tuple[Row, Report]] = []
    waiting = gained or [nearest]
    while waiting and len(tried) < FINALISTS:
        row = waiting.pop(0)
        tried.append((row, _judged(found.job, row, progress)))
        if tried[-1][1].exit_code == 0:
            break
        waiting = [other for other in waiting if closer(other, row)]
        found.notes.append(f"trial {row.number} does not hold on the samples that judge: {tried[-1][1].reason}")
    taken = next((pair for pair in tried if pair[1].exit_code == 0), None) or min(tried, key=_missed)
    if taken is not tried[-1]:
        taken = (taken[0], _judged(found.job, taken[0], progress))
    found.taken, found.report = taken
    found.config = save_result(found.job, taken[0].spec)


def closer(row: Row, failed: Row) -> bool:
    """Whether a trial is worth judging after another failed there: it keeps clearly more of the original.

    A metric on few samples has luck in it, and the best of many trials the most; noise of the outputs has little.
    """
    one, other = row.measured, failed.measured
    if one is None or other is None or one.sqnr_db is None or other.sqnr_db is None:
        return True
    return one.sqnr_db >= other.sqnr_db + CLOSER_DB


def _judged(job: Job, row: Row, progress: Progress) -> Report:
    return driver.run(replace(job, passes=row.spec, recipe=None), progress, alone=alone)


def _missed(pair: tuple[Row, Report]) -> float:
    accuracy = pair[1].accuracy
    return accuracy.drop if accuracy is not None else 0.0
