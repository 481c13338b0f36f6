"""Load time and memory of one model, measured in a process of its own; and the cores that latencies are measured on."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import builders
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxcomp.errors import DataError, ModelError
from onnxcomp.runtime import child, pinning
from onnxcomp.runtime import footprint as module
from onnxcomp.runtime.footprint import footprint
from onnxcomp.runtime.session import open_session

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts memory and pins threads so")


def product(megabytes: int) -> onnx.ModelProto:
    size = int((megabytes * 2**20 / 4) ** 0.5)
    weight = numpy_helper.from_array(np.random.default_rng(0).standard_normal((size, size)).astype(np.float32), "w")
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", values[:1], values[1:], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@LINUX
def test_memory_is_the_models_own(tmp_path: Path):
    path = builders.save(product(48), tmp_path / "large.onnx")
    size = onnx.load(path).graph.input[0].type.tensor_type.shape.dim[1].dim_value
    ballast = np.ones(100 << 20, np.uint8)  # of this process, which is not the one that is measured
    large = footprint(path, {"x": np.ones((1, size), np.float32)})
    small = footprint(builders.mlp().SerializeToString(), builders.feeds_of(builders.mlp()))
    assert ballast[0]
    assert 40 << 20 < large.peak_memory_bytes < 200 << 20
    assert small.peak_memory_bytes < 30 << 20
    assert large.process_memory_bytes > large.peak_memory_bytes
    assert large.load_seconds > 0 and large.reload_seconds > 0 and large.first_run_seconds > 0


def test_feeds_of_every_kind_reach_the_process(tmp_path: Path):
    import ml_dtypes

    for array in (
        np.array(3.0, np.float32),
        np.zeros((0, 4), np.int64),
        np.array([["a", "b"]], object),
        np.arange(6).reshape(2, 3).astype(ml_dtypes.bfloat16),
        np.arange(6).reshape(3, 2).T.astype(np.float16),
    ):
        back = module._loaded(*module._stored(array, tmp_path / "x.npy"))
        assert (back.dtype, back.shape) == (array.dtype, array.shape)
        assert (back == array).all()


def test_what_is_wrong_in_the_process_is_an_error_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    proto = builders.mlp()
    with pytest.raises(ModelError, match="no whole ONNX model"):
        (tmp_path / "half.onnx").write_bytes(proto.SerializeToString()[:-99])
        footprint(tmp_path / "half.onnx", builders.feeds_of(proto))
    with pytest.raises(DataError, match="takes"):
        footprint(proto.SerializeToString(), {"x": np.zeros((1, 3), np.float32)})
    monkeypatch.setattr(child.subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=-9, stdout=b""))
    with pytest.raises(ModelError, match="SIGKILL") as caught:
        footprint(proto.SerializeToString(), builders.feeds_of(proto))
    assert "memory" in caught.value.do


# -- cores --


@LINUX
def test_the_calling_thread_is_pinned_and_let_go():
    before = os.sched_getaffinity(0)
    cores = pinning.choose(1)
    if not cores:
        pytest.skip("this process may use one core only")
    with pytest.raises(RuntimeError, match="stop"), pinning.pinned(cores):
        assert os.sched_getaffinity(0) == {cores[0]}
        raise RuntimeError("stop")
    assert os.sched_getaffinity(0) == before
    with pinning.pinned(()):
        assert os.sched_getaffinity(0) == before


@LINUX
def test_threads_of_the_runtime_get_cores_of_their_own():
    cores = pinning.choose(2)
    if len(cores) < 2:
        pytest.skip("this process may use one core only")
    before = {int(task.name) for task in Path("/proc/self/task").iterdir()}
    with pinning.pinned(cores):
        session = open_session(builders.mlp().SerializeToString(), threads=2, config=pinning.session_config(cores))
        session.run(builders.feeds_of(builders.mlp()))
        new = {int(task.name) for task in Path("/proc/self/task").iterdir()} - before
        deadline = time.monotonic() + 10
        while True:  # a thread takes its place when it first runs, which may be after the session's first run
            masks = [os.sched_getaffinity(task) for task in new]
            if {cores[1]} in masks or time.monotonic() > deadline:
                break
            time.sleep(0.01)
        assert {cores[1]} in masks  # the pool's thread; what else a library starts may sit with the caller
        assert all(mask <= set(cores) for mask in masks)


def test_idle_cores_and_different_physical_ones_come_first(monkeypatch: pytest.MonkeyPatch):
    siblings = {0: "0,4", 1: "1,5", 2: "2,6", 3: "3,7", 4: "0,4", 5: "1,5", 6: "2,6", 7: "3,7"}
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(pinning, "_read", lambda path: siblings[int(path.split("/cpu/cpu")[1].split("/")[0])])
    monkeypatch.setattr(pinning, "_busy", lambda cores: {7: 9, 3: 8, 2: 1})
    assert pinning.choose(8) == (6, 5, 4, 3, 1, 0, 2, 7)
    assert pinning.choose(2) == (6, 5)
    assert pinning.choose(9) == ()
    assert pinning.session_config((6, 5, 0)) == {pinning.AFFINITIES: "6;1"}
    assert pinning.session_config((6,)) == {}


def test_a_system_that_pins_nothing_is_left_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert pinning.choose(1) == ()
