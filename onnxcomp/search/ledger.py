"""Where is kept what a search tried? In a study of Optuna: a file of SQLite, or any storage that Optuna reaches.

A trial is entered before it runs and told when it ends. One whose process died stays in the storage as failed and is
entered anew, so that no trial is lost and none counts twice.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import re
import socket
import sqlite3
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxcomp.errors import EnvironmentLacksError, OutputError, UsageError
from onnxcomp.manager.options import Range
from onnxcomp.search.rows import Judge, Row, Source
from onnxcomp.search.space import Dimension, Point, Space, Value
from onnxcomp.work.trial import Measured

if TYPE_CHECKING:
    import optuna

ATTRIBUTE = "onnxcomp"
MOST_DEATHS = 2  # of a trial's process; with one more it is given up
OF_COMMAND = 0.25  # a death of the whole command, which most often somebody ended, counts for less
BEAT_SECONDS, SILENT_SECONDS, LOCK_SECONDS = 20.0, 180.0, 60.0
MIXED = 0x9E3779B1  # makes seeds of neighbouring trials differ in all bits
CONSTRAINT = "constraints:budget"  # under which Optuna keeps what `set_constraint("budget", ...)` says
REMEDY = "pip install 'onnxcomp[search]'"


class Ledger:
    """The trials of one study and one space. Made by `open_ledger`.

    What is tried stands in the storage, a transaction where a trial begins and few where it ends. Samplers that learn
    look at a copy in memory, made when the first one is asked: they ask for every parameter of every trial again and
    again. Of the storage one attribute a trial is read, in one query; Optuna would read each parameter as an object.
    """

    def __init__(self, study: optuna.Study, space: Space, judge: Judge, seed: int) -> None:
        self.study, self.space, self.judge, self.seed, self.owner = study, space, judge, seed, _owner()
        self.rows: dict[int, Row] = {}
        self._made: optuna.Study | None = None  # the copy, and what it is made of before that
        self._history: list[tuple[Row, dict[str, Any]]] = []
        self._open: dict[int, tuple[optuna.Trial | None, float]] = {}  # the copy's trial, deaths of processes so far
        self._queue: list[tuple[int, Point, float]] = []  # trials that wait: their numbers, points and deaths
        self._beaten = 0.0
        self.load()
        self.beat()

    # -- reading --

    def load(self) -> None:
        """Read all trials; those that wait, or whose process died, are to be run again."""
        beats = self.study.user_attrs
        others = [key.removeprefix("beat:") for key in beats if key.startswith("beat:")]
        dead = {owner for owner in others if self._dead(owner, beats)}
        for number, state, told in self._stored():
            if told.get("replaced") or number in self._open or (not told and state == "FAIL"):
                continue
            row = _row(number, told)
            if state == "WAITING":
                self._queue.append((row.number, row.point, float(told.get("deaths", 0))))
            elif state == "RUNNING":
                if row.owner in dead or self._dead(row.owner, beats):
                    self._again(row, float(told.get("deaths", 0)) + OF_COMMAND)
            elif row.number not in self.rows:
                self.rows[row.number] = row
                self._remember(row, told.get("system") or {})

    def _stored(self) -> list[tuple[int, str, dict[str, Any]]]:
        """Number, state and our attribute of every trial, in order of their numbers."""
        from optuna.storages._rdb import models
        from sqlalchemy import and_, select

        trials, attributes = models.TrialModel, models.TrialUserAttributeModel
        ours = and_(attributes.trial_id == trials.trial_id, attributes.key == ATTRIBUTE)
        query = (
            select(trials.number, trials.state, attributes.value_json)
            .outerjoin(attributes, ours)
            .where(trials.study_id == self.study._study_id)
            .order_by(trials.number)
        )
        with self._engine.connect() as connection:
            found = connection.execute(query).all()
        return [(number, state.name, json.loads(text) if text else {}) for number, state, text in found]

    def _remember(self, row: Row, system: dict[str, Any]) -> None:
        """Let samplers know of a trial of another time, or that none of them was asked for."""
        if row.measured is None or row.measured.bytes == 0:
            return
        self._history.append((row, system))
        if self._made is not None:
            self._made.add_trial(self._of_copy(row, system))

    def _of_copy(self, row: Row, system: dict[str, Any]) -> optuna.trial.FrozenTrial:
        from optuna.trial import TrialState, create_trial

        assert row.measured is not None
        with _quiet():
            return create_trial(
                state=TrialState.COMPLETE,
                values=[self.judge.score(row.measured), self.judge.loss(row.measured)],
                params=dict(row.point),
                distributions={name: _distribution(self.space.by_name[name]) for name in row.point},
                system_attrs=system,
            )

    @property
    def _copy(self) -> optuna.Study:
        """What samplers look at."""
        if self._made is None:
            self._made = _empty()
            self._made.add_trials([self._of_copy(row, system) for row, system in self._history])
        return self._made

    def _dead(self, owner: str, beats: Mapping[str, Any]) -> bool:
        """Whether the process that entered a trial is gone: one of this machine that does not run, or silent ones."""
        host, _, process = owner.rpartition(":")
        if owner == self.owner:
            return False
        if host == _host():
            return not _runs(process)
        return time.time() - float(beats.get(f"beat:{owner}", 0.0)) > SILENT_SECONDS

    def _again(self, row: Row, deaths: float) -> None:
        """Enter a trial anew whose process died, unless that was too often; the old one is failed."""
        if deaths <= MOST_DEATHS:
            self.enter(row.point, deaths=deaths)
            self._end(row, deaths, replaced=True)
        else:
            failed = replace(row, state="failed", why="its process died again and again")
            self._end(failed, deaths)
            self.rows[row.number] = failed

    def _end(self, row: Row, deaths: float, *, replaced: bool = False) -> None:
        """Fail a trial in the storage; `replaced`: it counts no more."""
        from optuna.trial import TrialState

        told = _told(replace(row, state="failed"), deaths) | {"replaced": replaced}
        trial_id = self._id(row.number)
        self.study._storage.set_trial_user_attr(trial_id, ATTRIBUTE, told)
        self.study._storage.set_trial_state_values(trial_id, TrialState.FAIL)

    def _id(self, number: int) -> int:
        return self.study._storage.get_trial_id_from_study_id_trial_number(self.study._study_id, number)

    @property
    def finished(self) -> list[Row]:
        """The trials that ended, in order of their numbers."""
        return [self.rows[number] for number in sorted(self.rows) if self.rows[number].state != "running"]

    @property
    def running(self) -> list[Row]:
        """Those under way in this process's hands."""
        return [row for row in self.rows.values() if row.state == "running"]

    @property
    def waiting(self) -> int:
        """How many are entered and not begun."""
        return len(self._queue)

    def keep_source(self, source: Source) -> None:
        """The source's figures, from now on and for whoever goes on; a latency that is known stays."""
        found = self.study.user_attrs.get("source")
        if found is not None and found["latency_ms"] is not None:
            source = replace(source, latency_ms=found["latency_ms"])
        if found != asdict(source):
            self.study.set_user_attr("source", asdict(source))
        self.judge = replace(self.judge, source=source)

    @property
    def written(self) -> dict[str, str]:
        """What the study wrote where: hashes of models, by their absolute paths."""
        found: dict[str, str] = self.study.user_attrs.get("written", {})
        return found

    def note_written(self, path: str, sha256: str) -> None:
        """Note what the study wrote, for whoever goes on."""
        self.study.set_user_attr("written", self.written | {path: sha256})

    def describe(self, words: str) -> None:
        """Keep what the study is asked, in words."""
        if self.study.user_attrs.get("asked") != words:
            self.study.set_user_attr("asked", words)

    def others(self) -> list[str]:
        """What else was searched for in the same storage, in words; the latest first."""
        import optuna

        with _quiet():
            told = optuna.get_all_study_summaries(self.study._storage, include_best_trial=False)
        others = [one for one in told if one.study_name != self.study.study_name and one.n_trials]
        others.sort(key=lambda one: -one._study_id)
        return [str(one.user_attrs.get("asked", "another search")) for one in others]

    # -- writing --

    def enter(self, point: Point, *, deaths: float = 0) -> None:
        """Put a point at the end of what waits."""
        row = Row(-1, self.space.spec(point), point)
        self._queue.append((self._create(row, "WAITING", deaths), point, deaths))

    def begin(
        self, sampler: Callable[[int], optuna.samplers.BaseSampler], point: Point | None = None, *, again: int = 0
    ) -> Row:
        """The next trial: one that waits, else of this point, else what the sampler says.

        Args:
            sampler: makes one from a seed, so that what it says depends on the trials told and nothing else.
            again: how often it was asked since a trial was told.
        """
        waiting, deaths = self._next_waiting()
        point = waiting if waiting is not None else point
        answers = sampler((self.seed + len(self.rows) * MIXED + again) % 2**32)
        learns = _learns(answers)
        trial, filled = None, None if point is None or learns else self._whole(point)
        if filled is None:
            with _quiet():
                seen = self._copy if learns else _empty()
                if point is not None:
                    seen.enqueue_trial(dict(point))
                seen.sampler = answers
                asked = seen.ask()
                filled = self.space.fill(functools.partial(_ask, asked))
            trial = asked if learns else None
        row = Row(-1, self.space.spec(filled), filled, owner=self.owner)
        row = replace(row, number=self._create(row, "RUNNING", deaths))
        self._open[row.number], self.rows[row.number] = (trial, deaths), row
        return row

    def _whole(self, point: Point) -> Point | None:
        """A point with the values that it is asked for and no others; None where it leaves any open."""
        with suppress(KeyError):
            return self.space.fill(lambda dimension: point[dimension.name])
        return None

    def _next_waiting(self) -> tuple[Point | None, float]:
        """The point of the first trial that waits and that nobody else took, and its deaths."""
        from optuna.trial import TrialState

        while self._queue:
            number, point, deaths = self._queue.pop(0)
            if self.study._storage.set_trial_state_values(self._id(number), TrialState.RUNNING):
                self._end(Row(number, self.space.spec(point), point), deaths, replaced=True)
                return point, deaths
        return None, 0

    def _create(self, row: Row, state: str, deaths: float) -> int:
        """Enter a trial in the storage; its number."""
        from optuna.trial import TrialState, create_trial

        storage = self.study._storage
        with _quiet():
            template = create_trial(state=TrialState[state], user_attrs={ATTRIBUTE: _told(row, deaths)})
            trial_id = storage.create_new_trial(self.study._study_id, template_trial=template)
        self._show_parameters(trial_id, row.point)
        return storage.get_trial_number_from_id(trial_id)

    def _show_parameters(self, trial_id: int, point: Point) -> None:
        """Write a point where other tools of Optuna look for it; nothing here reads it.

        All at once: Optuna itself asks three questions for every parameter, more than all else that a trial costs here.
        """
        from optuna.distributions import distribution_to_json
        from optuna.storages._rdb import models
        from sqlalchemy import insert

        ranges = {name: _distribution(self.space.by_name[name]) for name in point}
        written = [
            {
                "trial_id": trial_id,
                "param_name": name,
                "param_value": ranges[name].to_internal_repr(value),
                "distribution_json": distribution_to_json(ranges[name]),
            }
            for name, value in point.items()
        ]
        if written:
            with self._engine.begin() as connection:
                connection.execute(insert(models.TrialParamModel), written)

    @property
    def _engine(self) -> Any:
        """What the storage is reached by."""
        storage: Any = self.study._storage
        return getattr(storage, "_backend", storage).engine

    def tell(self, row: Row) -> None:
        """Close a trial with what came of it."""
        from optuna.trial import TrialState

        trial, deaths = self._open.pop(row.number)
        found = row.measured
        if found is None or found.bytes == 0:
            self._forget(trial)
            self._end(row, deaths)
        else:
            values = [self.judge.score(found), self.judge.loss(found)]
            missed = self.judge.violation(found)
            limit = missed if missed > 0 or row.sound else 1e-3
            if trial is None:
                system: dict[str, Any] = {CONSTRAINT: limit}
                self._remember(row, system)
            else:
                with _quiet():
                    trial.set_constraint("budget", limit)
                    self._copy.tell(trial, values)
                system = self._copy.get_trials(deepcopy=False)[trial.number].system_attrs
            storage, trial_id = self.study._storage, self._id(row.number)
            told = _told(row, deaths) | {"system": system}
            storage.set_trial_user_attr(trial_id, ATTRIBUTE, told)
            storage.set_trial_state_values(trial_id, TrialState.COMPLETE, values)
        self.rows[row.number] = row

    def drop(self, row: Row, *, again: bool) -> None:
        """Close a trial as if it had never been; `again`: enter its point anew, for whoever goes on."""
        trial, deaths = self._open.pop(row.number)
        self._forget(trial)
        if again:
            self.enter(row.point, deaths=deaths)
        self._end(row, deaths, replaced=True)
        del self.rows[row.number]

    def died(self, row: Row) -> None:
        """Close a trial whose process died, and enter it anew unless that was too often."""
        trial, deaths = self._open.pop(row.number)
        self._forget(trial)
        del self.rows[row.number]
        self._again(row, deaths + 1)

    def _forget(self, trial: optuna.Trial | None) -> None:
        """Close a trial of the copy without figures."""
        from optuna.trial import TrialState

        if trial is None:
            return
        with _quiet():
            self._copy.tell(trial, state=TrialState.FAIL)

    def beat(self) -> None:
        """Say that this process lives, for others that look at the storage."""
        if time.monotonic() - self._beaten > BEAT_SECONDS:
            self.study.set_user_attr(f"beat:{self.owner}", time.time())
            self._beaten = time.monotonic()


def open_ledger(url: str, name: str, space: Space, judge: Judge, seed: int = 0) -> Ledger:
    """The ledger of a study in a storage, made where it is not there yet.

    Args:
        url: of a storage that Optuna knows, or a file for SQLite.
        name: of the study; the same for what may be searched on together.
        judge: how trials stand to each other; its source gives way to what the ledger knows.
        seed: of the samplers.

    Raises:
        EnvironmentLacksError: Optuna is not installed, or the storage cannot be reached.
        UsageError: Optuna knows no storage of this kind.
        OutputError: the file's folder cannot be written.
    """
    optuna = _optuna()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with _quiet(), _reaching(url):
        study = optuna.create_study(
            storage=_storage(url), study_name=name, load_if_exists=True, directions=["minimize", "minimize"]
        )
        return Ledger(study, space, judge, seed)


def require() -> None:
    """Fail before any work where Optuna is missing; it is not imported yet, for that takes seconds.

    Raises:
        EnvironmentLacksError: it is.
    """
    if importlib.util.find_spec("optuna") is None:
        raise _lacking("no module of that name")


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise _lacking(str(error)) from error
    return optuna


def _lacking(why: str) -> EnvironmentLacksError:
    what = f"a search needs Optuna, which is not installed here ({why})"
    return EnvironmentLacksError(what, where="onnxcomp search", do=REMEDY)


def _storage(url: str) -> Any:
    import optuna
    from sqlalchemy import URL

    if "://" not in url:
        path = Path(url)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"the file of the study cannot be made: {error.strerror}", where=f"file {path}", do="give --study"
            ) from error
        url = URL.create("sqlite", database=str(path.absolute())).render_as_string(hide_password=False)
        return optuna.storages.RDBStorage(url, engine_kwargs={"creator": functools.partial(_sqlite, path)})
    return optuna.storages.RDBStorage(url, engine_kwargs={"pool_pre_ping": True})


def _sqlite(path: Path) -> sqlite3.Connection:
    """A connection that waits for other processes, and for the disk only at checkpoints.

    With the log written ahead a kill loses no transaction; a power cut may lose the last.
    """
    connection = sqlite3.connect(path, timeout=LOCK_SECONDS, check_same_thread=False)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    return connection


def shown_url(url: str) -> str:
    """A storage's address without user and password."""
    return re.sub(r"//[^/@]*@", "//***@", url)


@contextmanager
def _reaching(url: str) -> Iterator[None]:
    """Turns what goes wrong on the way to a storage, of whatever package it is, into errors of ours."""
    shown = shown_url(url)
    try:
        yield
    except (EnvironmentLacksError, OutputError, UsageError):
        raise
    except Exception as error:
        cause = error
        while cause.__cause__ is not None and isinstance(cause.__cause__, Exception):
            cause = cause.__cause__
        words = (str(cause) or type(cause).__name__).splitlines()[0]
        kind = type(error).__name__
        if kind in ("ArgumentError", "NoSuchModuleError"):
            raise UsageError(
                f"this is no storage that Optuna knows: {words}", where=f"--study {shown}", do="sqlite:///FILE is one"
            ) from error
        if words in ("database or disk is full", "disk I/O error"):
            raise OutputError(
                f"the study cannot be written: {words}",
                where=f"--study {shown}",
                do="choose a folder that is writable and has space, with -o or --study",
            ) from error
        raise EnvironmentLacksError(
            f"the storage of the search cannot be reached: {words}",
            where=f"--study {shown}",
            do="check that it runs and that its driver is installed, or leave --study out for a file beside the output",
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Optuna calls some of what is used here experimental, each time anew."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _empty() -> optuna.Study:
    """A study in memory, of loss and objective."""
    made: optuna.Study = _optuna().create_study(directions=["minimize", "minimize"])
    return made


def _learns(sampler: optuna.samplers.BaseSampler) -> bool:
    """Whether what a sampler says depends on the trials before."""
    return not isinstance(sampler, _optuna().samplers.RandomSampler)


def _ask(trial: optuna.Trial, dimension: Dimension) -> Value:
    values = dimension.values
    if not isinstance(values, Range):
        chosen: Value = trial.suggest_categorical(dimension.name, values)
        return chosen
    if dimension.whole:
        return trial.suggest_int(dimension.name, int(values.low), int(values.high), log=values.log)
    return trial.suggest_float(dimension.name, values.low, values.high, log=values.log)


def _distribution(dimension: Dimension) -> Any:
    """The same as Optuna tells it."""
    from optuna import distributions

    values = dimension.values
    if not isinstance(values, Range):
        return distributions.CategoricalDistribution(values)
    kind = distributions.IntDistribution if dimension.whole else distributions.FloatDistribution
    low, high = (int(values.low), int(values.high)) if dimension.whole else (values.low, values.high)
    return kind(low, high, log=values.log)  # type: ignore[arg-type]


def _told(row: Row, deaths: float) -> dict[str, Any]:
    """A row as the storage keeps it."""
    return {
        "spec": row.spec,
        "point": row.point,
        "state": row.state,
        "measured": None if row.measured is None else row.measured.to_json(),
        "why": row.why,
        "seconds": row.seconds,
        "owner": row.owner,
        "deaths": deaths,
    }


def _row(number: int, told: Mapping[str, Any]) -> Row:
    found = told.get("measured")
    return Row(
        number,
        told["spec"],
        told["point"],
        told["state"],
        None if found is None else Measured.of_json(found),
        told["why"],
        told["seconds"],
        told["owner"],
    )


# -- processes ---------------------------------------------------------------------------------------------------------


def _host() -> str:
    return socket.gethostname()


def _owner() -> str:
    """This process, so that no other, then or later, is taken for it."""
    return f"{_host()}:{os.getpid()}-{_begun(os.getpid())}"


def _runs(process: str) -> bool:
    pid, _, begun = process.partition("-")
    if not pid.isdigit():
        return False
    if os.name == "nt":
        return True  # asking there with a signal ends the process: its silence tells
    with suppress(OSError):
        os.kill(int(pid), 0)
        return _begun(int(pid)) == begun
    return False


def _begun(pid: int) -> str:
    """When a process began, in the kernel's clock; empty where the system does not tell."""
    with suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()[19]
    return ""
