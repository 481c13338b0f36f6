"""Kernel times add up, and the kernels are those that really run."""

from __future__ import annotations

from typing import Any

import builders
import numpy as np
import pytest

from onnxcomp.errors import ModelError
from onnxcomp.runtime.profile import LEAST_RUNS, kernels, node_times, summarise, undisturbed
from onnxcomp.runtime.session import Session


def test_every_kernel_that_runs_gets_a_time():
    proto = builders.residual_cnn()
    found = node_times(proto.SerializeToString(), builders.feeds_of(proto), runs=5)
    assert sum(time.op == "Conv" for time in found) == 3
    assert {time.provider for time in found} == {"CPUExecutionProvider"}
    assert all(time.microseconds >= 0 for time in found)
    assert len({time.name for time in found}) == len(found)


@pytest.mark.parametrize(("seconds", "runs"), [(0.0, 2 + LEAST_RUNS), (60.0, 22)])
def test_a_slow_model_is_run_less_often(seconds: float, runs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[Any] = []
    real = Session.run

    def counted(self: Session, *others: Any) -> Any:
        done.append(self)
        return real(self, *others)

    monkeypatch.setattr(Session, "run", counted)
    proto = builders.residual_cnn()
    found = node_times(proto.SerializeToString(), builders.feeds_of(proto), runs=20, warm_up=2, seconds=seconds)
    assert len(done) == runs and all(time.microseconds > 0 for time in found if time.op == "Conv")


def test_nodes_inside_if_and_loop_bodies_are_seen():
    for proto in (builders.if_model(), builders.loop_model()):
        found = node_times(proto.SerializeToString(), builders.feeds_of(proto), runs=3)
        assert {"If", "Loop"} & {time.op for time in found}
        assert len(found) > 1
        assert all(time.microseconds >= 0 for time in found)


def event(name: str, op: str, start: int, duration: int) -> dict[str, Any]:
    args = {"op_name": op, "provider": "CPUExecutionProvider"}
    return {"cat": "Node", "name": f"{name}_kernel_time", "ts": start, "dur": duration, "args": args}


def run_event(start: int, duration: int) -> dict[str, Any]:
    return {"cat": "Session", "name": "model_run", "ts": start, "dur": duration}


def test_the_time_of_a_loop_is_without_its_body():
    events = [
        run_event(0, 100),
        event("loop", "Loop", 10, 50),
        event("body", "Add", 15, 20),
        event("body", "Add", 36, 20),
        event("after", "Relu", 60, 5),
    ]
    times = {time.name: time.microseconds for time in summarise(events)}
    assert times == {"loop": 10.0, "body": 40.0, "after": 5.0}


def test_warm_up_runs_do_not_count():
    events = [run_event(0, 90), event("a", "Relu", 1, 80), run_event(100, 9), event("a", "Relu", 101, 4)]
    assert [time.microseconds for time in summarise(events, warm_up=1)] == [4.0]


def test_runs_that_others_disturbed_do_not_count():
    assert undisturbed([900, 3, 1000, 500, 1, 800, 700, 600]) == 2
    assert undisturbed([5]) == 5
    assert undisturbed([10, 0]) == 0


def test_kernels_shows_fusions_and_bodies():
    found = kernels(builders.conv_bn_relu().SerializeToString())
    assert found["BatchNormalization"] == 0
    assert found["Conv"] + found["FusedConv"] == 1
    body = kernels(builders.if_model().SerializeToString())
    assert body["If"] == 1
    assert body.total() > 1


def test_kernels_of_large_weights_keep_them_out_of_the_message():
    proto = builders.mlp((1024, 1024, 10))  # 4 MB: beyond the size that stays in the file
    assert sum(kernels(proto.SerializeToString())[op] for op in ("Gemm", "FusedGemm")) == 2


def test_a_model_that_does_not_load_has_no_kernels():
    with pytest.raises(ModelError):
        kernels(b"nothing")


def test_profiling_writes_nothing_into_the_current_folder(tmp_path: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    node_times(builders.mlp().SerializeToString(), {"x": np.zeros((1, 16), np.float32)}, runs=1)
    assert list(tmp_path.iterdir()) == []
