"""Does the worker hold what it promises: its arithmetic, its protocol, and how it ends?"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_distill_engine import task

from onnxcomp.distill import engine, process
from onnxcomp.distill.engine import Checkpoint
from onnxcomp.distill.environment import Environment
from onnxcomp.distill.worker.constraints import Bound, Group, Keeper, soften
from onnxcomp.distill.worker.optimizer import PIECE, Flat, Schedule, Settings, Stepper
from onnxcomp.errors import EnvironmentLacksError, OnnxcompError, TrainingError

PLAIN = Settings("adamw", 0.9, 0.9, 0.999, 1e-8, 0.0, 0.0, {}, ())
SHAPES = {"a": (3, 5), "b": (PIECE + 7,), "c": ()}

# -- arithmetic ------------------------------------------------------------------------------------------------------


def filled(seed: int) -> Flat:
    flat = Flat(SHAPES)
    rng = np.random.default_rng(seed)
    for view in flat.views.values():
        view[...] = rng.standard_normal(view.shape)
    return flat


def test_flat_views_are_aligned_and_live() -> None:
    flat = filled(0)
    flat.views["a"][1, 2] = 7
    assert flat.vector[flat.places["a"]][7] == 7
    assert all(view.ctypes.data % 64 == 0 for view in flat.views.values())


def test_adamw_follows_its_formula() -> None:
    settings = replace(PLAIN, weight_decay=0.1, scales={"a": 0.5}, undecayed=("b",))
    values, steps = filled(0), [filled(i) for i in (1, 2, 3)]
    stepper = Stepper(settings, values.places, len(values.vector))
    expected = {name: view.astype(np.float64) for name, view in values.views.items()}
    first, second = ({name: np.zeros(shape) for name, shape in SHAPES.items()} for _ in range(2))
    for count, grads in enumerate(steps, 1):
        rate = 0.01 * count
        for name, g in grads.views.items():
            lr = rate * settings.scales.get(name, 1.0)
            expected[name] *= 1 - lr * (0 if name == "b" else 0.1)
            first[name] = 0.9 * first[name] + 0.1 * g.astype(np.float64)
            second[name] = 0.999 * second[name] + 0.001 * g.astype(np.float64) ** 2
            mean, power = first[name] / (1 - 0.9**count), second[name] / (1 - 0.999**count)
            expected[name] -= lr * mean / (np.sqrt(power) + 1e-8)
        stepper.step(values.vector, grads.vector, rate)
    for name, view in values.views.items():
        assert np.allclose(view, expected[name], atol=2e-6), name


def test_sgd_follows_its_formula() -> None:
    settings = replace(PLAIN, kind="sgd", momentum=0.8)
    values, steps = filled(0), [filled(i) for i in (1, 2)]
    expected, velocity = values.vector.astype(np.float64), 0.0
    stepper = Stepper(settings, values.places, len(values.vector))
    for grads in steps:
        velocity = 0.8 * velocity + grads.vector.astype(np.float64)
        expected = expected - 0.05 * velocity
        stepper.step(values.vector, grads.vector, 0.05)
    assert np.allclose(values.vector, expected, atol=1e-6)


def test_clipping_bounds_the_global_norm() -> None:
    values, grads = Flat({"a": (2,), "b": (2,)}), Flat({"a": (2,), "b": (2,)})
    grads.views["a"][...], grads.views["b"][...] = (3, 0), (0, 4)
    stepper = Stepper(replace(PLAIN, kind="sgd", momentum=0.0, clip_norm=1.0), values.places, len(values.vector))
    assert stepper.step(values.vector, grads.vector, 1.0) == pytest.approx(5)
    assert np.allclose(values.views["a"], (-0.6, 0))
    assert np.allclose(values.views["b"], (0, -0.8))


def test_infinite_gradient_moves_nothing() -> None:
    values, grads = filled(0), filled(1)
    before = values.vector.copy()
    grads.views["a"][0, 0] = np.inf
    stepper = Stepper(PLAIN, values.places, len(values.vector))
    assert not math.isfinite(stepper.step(values.vector, grads.vector, 1.0))
    assert np.array_equal(values.vector, before)


@pytest.mark.parametrize(
    ("kind", "rates"),
    [
        ("constant", [0.5, 1, 1, 1, 1, 1]),
        ("linear", [0.5, 1, 1, 0.775, 0.55, 0.325]),
        ("cosine", [0.5, 1, 1, 0.1 + 0.9 * (2 + 2**0.5) / 4, 0.55, 0.1 + 0.9 * (2 - 2**0.5) / 4]),
    ],
)
def test_schedules(kind: str, rates: list[float]) -> None:
    schedule = Schedule(1.0, 6, warmup=2, kind=kind, final_share=0.1)
    assert [schedule.rate(step) for step in range(6)] == pytest.approx(rates)


def test_soft_threshold_gives_exact_zeros() -> None:
    view = np.float32([-2, -0.5, 0, 0.4, 3])
    soften(view, 0.5)
    assert view.tolist() == [-1.5, 0, 0, 0, 2.5]
    assert not np.signbit(view[1:4]).any()


def test_group_lasso_shrinks_a_group_as_one() -> None:
    flat = Flat({"w": (2, 3), "b": (2,)})
    flat.views["w"][...], flat.views["b"][...] = [[3, 0, 0], [0.1, 0.1, 0.1]], [4, 0.1]
    groups = [Group((("w", 0, np.array([i])), ("b", 0, np.array([i]))), 4) for i in range(2)]
    Keeper(flat, {}, {}, groups, 0.5, {}).apply(1.0)  # threshold 0.5 * sqrt(4) = 1, norms 5 and 0.2
    assert np.allclose(flat.views["w"], [[2.4, 0, 0], [0, 0, 0]])
    assert flat.views["b"].tolist() == pytest.approx([3.2, 0])
    assert (flat.views["w"][1] == 0).all()


def test_masks_clear_gradients_and_negative_zeros() -> None:
    flat, grads = Flat({"w": (4,)}), Flat({"w": (4,)})
    flat.views["w"][...] = grads.views["w"][...] = -1
    keeper = Keeper(flat, {"w": Bound(mask=np.array([True, False, True, False]))}, {}, [], 0.0, {})
    keeper.mask_gradients(grads.vector)
    keeper.apply(0.1)
    assert grads.views["w"].tolist() == [-1, 0, -1, 0]
    assert flat.views["w"].tolist() == [-1, 0, -1, 0]
    assert not np.signbit(flat.views["w"][1])


# -- how a run ends --------------------------------------------------------------------------------------------------


class At:
    """A `Progress` that does something once, after so many items."""

    def __init__(self, item: int, act: Callable[[], None]) -> None:
        self.item = item
        self.act = act

    def say(self, text: str) -> None:
        pass

    def track(self, items: Iterable[Any], total: int | None, text: object) -> Iterator[Any]:
        for count, item in enumerate(items):
            if count == self.item:
                self.act()
            yield item


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """The worker processes started by the test."""
    started = []

    class Watched(subprocess.Popen[bytes]):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            started.append(self)

    monkeypatch.setattr(process.subprocess, "Popen", Watched)
    return started


def long_task(steps: int = 1500) -> Any:
    return task(steps=steps, evaluate_every=400, check_gradients=False)


def test_killed_run_resumes_to_the_same_bytes(
    runtime: Environment, workers: list[subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    whole = engine.train(long_task(), runtime=runtime)
    checkpoint = Checkpoint(tmp_path / "training.checkpoint", every_steps=7)
    resumed_from = []
    for item in (300, 700):  # killed twice, the second time after a resume
        killer = At(item, lambda: os.kill(workers[-1].pid, signal.SIGKILL))
        with pytest.raises(EnvironmentLacksError, match="SIGKILL"):
            engine.train(long_task(), runtime=runtime, checkpoint=checkpoint, progress=killer)
        with np.load(checkpoint.path) as stored:
            resumed_from.append(len(stored["losses"]))
    again = engine.train(long_task(), runtime=runtime, checkpoint=checkpoint)
    assert 0 < resumed_from[0] <= resumed_from[1] < 1500  # the second kill may come right after the start
    assert all(np.array_equal(whole.parameters[name], again.parameters[name]) for name in whole.parameters)
    assert (whole.losses, whole.rates, whole.held_out) == (again.losses, again.rates, again.held_out)
    assert not checkpoint.path.exists()


def test_same_task_goes_on_by_itself(
    runtime: Environment, workers: list[subprocess.Popen[bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "user_cache", lambda: tmp_path)
    checkpoint = Checkpoint(every_steps=100)
    interrupt = At(10, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        engine.train(long_task(6_000), runtime=runtime, checkpoint=checkpoint, progress=interrupt)
    assert len(list((tmp_path / "checkpoints").iterdir())) == 1
    assert engine.train(long_task(500), runtime=runtime, checkpoint=checkpoint).resumed_from == 0
    assert engine.train(long_task(6_000), runtime=runtime, checkpoint=checkpoint).resumed_from > 0
    assert not list((tmp_path / "checkpoints").iterdir())


def test_checkpoint_of_another_task_is_not_used(runtime: Environment, tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "c", every_steps=1)
    checkpoint.path.write_bytes(b"of something else")
    plain = engine.train(task(steps=5), runtime=runtime)
    assert engine.train(task(steps=5), runtime=runtime, checkpoint=checkpoint).losses == plain.losses


@pytest.mark.parametrize("keep", [True, False])
def test_interrupt_finishes_the_step_and_writes(
    runtime: Environment, workers: list[subprocess.Popen[bytes]], tmp_path: Path, keep: bool
) -> None:
    checkpoint = Checkpoint(tmp_path / "c", every_seconds=0)
    interrupt = At(100, lambda: os.kill(os.getpid(), signal.SIGINT))
    arguments: dict[str, Any] = {"runtime": runtime, "checkpoint": checkpoint, "progress": interrupt}
    if keep:
        result = engine.train(long_task(20_000), keep_on_interrupt=True, **arguments)
        assert result.ended == "interrupted"
        assert 0 < len(result.losses) < 20_000
    else:
        with pytest.raises(KeyboardInterrupt):
            engine.train(long_task(20_000), **arguments)
    assert checkpoint.path.is_file()
    assert workers[-1].poll() is not None


@pytest.mark.parametrize(("name", "advice"), [("SIGSEGV", "defect"), ("SIGFPE", "empty")])
def test_crash_is_named_by_its_signal(
    runtime: Environment, workers: list[subprocess.Popen[bytes]], name: str, advice: str
) -> None:
    crash = At(10, lambda: os.kill(workers[-1].pid, signal.Signals[name]))
    with pytest.raises(TrainingError, match=name) as caught:
        engine.train(long_task(20_000), runtime=runtime, progress=crash)
    assert advice in caught.value.do
    assert "step" in caught.value.where
    assert "onnxruntime:" not in caught.value.what, "the runtime's own chatter is no last word"


@pytest.mark.skipif(sys.platform != "linux", reason="limits of another process are Linux's")
def test_memory_that_runs_out_is_told_with_its_step(
    runtime: Environment, workers: list[subprocess.Popen[bytes]]
) -> None:
    import resource

    def limit() -> None:
        resource.prlimit(workers[-1].pid, resource.RLIMIT_AS, (1 << 20, 1 << 20))

    with pytest.raises(EnvironmentLacksError, match="memory") as caught:
        engine.train(long_task(20_000), runtime=runtime, progress=At(10, limit))
    assert "step" in caught.value.where
    assert "batch" in caught.value.do


def test_silent_worker_is_ended(
    runtime: Environment, workers: list[subprocess.Popen[bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "silent.py"
    script.write_text("import time\ntime.sleep(600)\n")
    monkeypatch.setattr(process, "START", script)
    monkeypatch.setattr(process, "GRACE_SECONDS", 0.1)
    with pytest.raises(TrainingError, match="said nothing"):
        process.Work(runtime, tmp_path, {}, idle_seconds=0.2).run(At(0, lambda: None), "text", total=1)
    assert workers[0].poll() == -signal.SIGKILL


# -- protocol --------------------------------------------------------------------------------------------------------


class Talk:
    """A worker, spoken to by hand."""

    def __init__(self, runtime: Environment, job: dict[str, Any]) -> None:
        command = [str(runtime.python), "-E", "-s", str(process.START)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()

    def event(self, name: str) -> dict[str, Any]:
        """The next event of that name."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            found: dict[str, Any] = json.loads(line)
            if found["event"] == name:
                return found
        raise AssertionError(f"no event {name}")


def written_job(folder: Path) -> dict[str, Any]:
    job = engine._job(long_task(200_000), folder) | {"command": "train", "checkpoint": engine._checkpoint(task(), None)}
    return job | {"protocol": process.PROTOCOL, "provider": "CPUExecutionProvider"}


def test_worker_ends_with_its_parent(runtime: Environment, tmp_path: Path) -> None:
    talk = Talk(runtime, written_job(tmp_path))
    assert talk.event("hello")["versions"]["onnxruntime"].startswith("1.19")
    assert talk.event("step")["step"] >= 1
    assert talk.process.stdin is not None
    talk.process.stdin.close()
    assert talk.process.wait(timeout=30) == 130


def test_another_protocol_is_refused(runtime: Environment, tmp_path: Path) -> None:
    talk = Talk(runtime, written_job(tmp_path) | {"protocol": 99})
    assert "protocol 99" in talk.event("error")["what"]
    assert talk.process.wait(timeout=30) == 1


def test_worker_prints_nothing_but_events(runtime: Environment, tmp_path: Path) -> None:
    job = engine._job(task(steps=3), tmp_path) | {"command": "check"}
    talk = Talk(runtime, job | {"protocol": process.PROTOCOL, "provider": "CPUExecutionProvider"})
    assert talk.process.stdout is not None
    events = [json.loads(line)["event"] for line in talk.process.stdout]
    assert list(dict.fromkeys(events)) == ["hello", "ready", "checking", "check", "done"]


def test_worker_runs_without_our_packages(runtime: Environment, tmp_path: Path) -> None:
    """The training environment holds neither onnxcomp nor what it stands on."""
    code = "import importlib.util as u; print([n for n in ('onnxcomp', 'click', 'rich') if u.find_spec(n)])"
    found = subprocess.check_output([runtime.python, "-E", "-s", "-c", code], text=True, cwd=tmp_path)
    assert found.strip() == "[]"


def test_two_threads_may_train_at_once(runtime: Environment) -> None:
    """No signal handlers outside the main thread."""
    failures: list[OnnxcompError] = []

    def run() -> None:
        try:
            engine.train(task(steps=5), runtime=runtime)
        except OnnxcompError as error:
            failures.append(error)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
