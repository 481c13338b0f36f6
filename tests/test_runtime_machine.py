"""What a machine tells about itself is read the same way on every system."""

from __future__ import annotations

import json
import platform
import subprocess
import sys

import numpy as np
import pytest

from onnxcomp.runtime import machine as module
from onnxcomp.runtime.arithmetic import int8_arithmetic
from onnxcomp.runtime.machine import check_room, instruction_sets, machine, usable_cores

AVX2_ONLY = """processor\t: 0
model name\t: Some CPU @ 2.30GHz
physical id\t: 0
core id\t\t: 0
flags\t\t: fpu sse4_2 avx f16c fma avx2 bmi2

processor\t: 1
model name\t: Some CPU @ 2.30GHz
physical id\t: 0
core id\t\t: 0
flags\t\t: fpu sse4_2 avx f16c fma avx2 bmi2
"""
ARM = "processor\t: 0\nFeatures\t: fp asimd evtstrm asimdhp asimddp i8mm bf16 sve\nCPU part\t: 0xd40\n"


def pretend(monkeypatch: pytest.MonkeyPatch, **files: str) -> None:
    paths = {"cpuinfo": "/proc/cpuinfo", "quota": "/sys/fs/cgroup/cpu.max", "limit": "/sys/fs/cgroup/memory.max"}
    texts = {paths[key]: text for key, text in files.items()}
    monkeypatch.setattr(module, "_read", lambda path: texts.get(path, ""))
    monkeypatch.setattr(module.sys, "platform", "linux")


def test_instruction_sets_of_x86_and_arm(monkeypatch: pytest.MonkeyPatch):
    pretend(monkeypatch, cpuinfo=AVX2_ONLY)
    assert instruction_sets() == ("sse4_2", "avx", "f16c", "fma", "avx2")
    assert module._cpu_name() == "Some CPU @ 2.30GHz"
    assert module._physical_cores() == 1
    pretend(monkeypatch, cpuinfo=ARM)
    assert instruction_sets() == ("neon", "fp16", "dotprod", "i8mm", "bf16", "sve")


def test_instruction_sets_of_macos(monkeypatch: pytest.MonkeyPatch):
    answers = {
        "hw.optional": "hw.optional.neon: 1\nhw.optional.arm.FEAT_DotProd: 1\nhw.optional.arm.FEAT_I8MM: 0\n",
        "machdep.cpu.features": "FPU SSE4.2 AVX1.0",
    }

    def run(*command: str) -> str:
        return "\n".join(answers.get(word, "") for word in command)

    monkeypatch.setattr(module, "_run", run)
    monkeypatch.setattr(module.sys, "platform", "darwin")
    assert instruction_sets() == ("sse4_2", "avx", "neon", "dotprod")


def test_a_system_that_tells_nothing_is_no_error(monkeypatch: pytest.MonkeyPatch):
    pretend(monkeypatch)
    assert instruction_sets() == ()
    assert module._physical_cores() is None
    assert module._cpu_name()
    assert usable_cores() >= 1


@pytest.mark.parametrize(
    ("quota", "most"), [("150000 100000", 2), ("50000 100000", 1), ("max 100000", 10**6), ("", 10**6)]
)
def test_the_quota_of_a_container_counts(monkeypatch: pytest.MonkeyPatch, quota: str, most: int):
    pretend(monkeypatch, quota=quota)
    monkeypatch.setattr(module.os, "sched_getaffinity", lambda _: range(64), raising=False)
    assert usable_cores() == min(64, most)


def test_the_memory_limit_of_a_container_counts(monkeypatch: pytest.MonkeyPatch):
    pretend(monkeypatch, limit="1048576\n")
    assert module._memory_bytes() == 1048576


def test_this_machine_is_described_in_json():
    found = machine()
    assert json.loads(json.dumps(found.to_json())) == found.to_json()
    assert found.cores >= 1
    assert found.versions["numpy"] == np.__version__
    assert found.python == platform.python_version()


def test_the_peak_of_memory_keeps_what_was_given_back():
    code = (
        "import numpy as np; from onnxcomp.runtime.machine import peak_memory_bytes as peak\n"
        "a = peak(); block = np.ones(200 << 20, np.uint8); del block; print(a, peak())"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    before, after = map(int, answer.split())
    assert 0 < before < 150 << 20
    assert 190 << 20 <= after - before <= 260 << 20


def test_int8_arithmetic_is_what_the_instruction_sets_allow():
    found = int8_arithmetic()
    assert found in ("exact", "saturating")
    if {"avx512_vnni", "avx_vnni", "dotprod", "i8mm"} & set(machine().isa):
        assert found == "exact"


def test_two_builds_of_the_runtime_side_by_side_are_named_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"onnxruntime": "1.31.0", "onnxruntime-gpu": "1.31.1"}
    monkeypatch.setattr(module, "versions", lambda packages: installed)
    assert "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu" in module.conflict()
    del installed["onnxruntime"]
    assert module.conflict() == ""


def test_a_sample_that_no_memory_holds_is_refused_before_it_is_made() -> None:
    with pytest.raises(MemoryError, match="one sample has"):
        check_room(1, 1 << 60, "--calib-samples")
