"""A provider is used or refused; nothing falls back in silence."""

from __future__ import annotations

from collections import Counter

import builders
import pytest

from onnxcomp.errors import EnvironmentLacksError, UsageError
from onnxcomp.runtime import providers
from onnxcomp.runtime.session import open_session


@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("cpu", "CPUExecutionProvider"),
        ("CUDA", "CUDAExecutionProvider"),
        ("tensorrt", "TensorrtExecutionProvider"),
        ("TensorrtExecutionProvider", "TensorrtExecutionProvider"),
        ("openvino", "OpenVINO"),
        ("OpenVINOExecutionProvider", "OpenVINOExecutionProvider"),
    ],
)
def test_short_and_full_names_are_known(name: str, full: str):
    assert providers.full_name(name) == full
    assert providers.full_name(providers.short_name(full)) == full


def test_an_unknown_name_is_a_usage_error_that_lists_the_known_ones():
    with pytest.raises(UsageError) as caught:
        providers.require("gpu")
    assert "cuda" in caught.value.do


def test_the_cpu_is_usable_and_runs_every_node():
    assert providers.usability(providers.CPU).usable
    session = open_session(builders.residual_cnn().SerializeToString())
    placed = session.placement()
    assert placed.provider == session.provider == providers.CPU
    assert placed.on_provider > 5
    assert placed.nodes_elsewhere == 0
    assert placed.elsewhere == Counter()


@pytest.mark.parametrize("name", ["cuda", "tensorrt", "openvino"])
def test_a_provider_that_cannot_run_here_is_refused_with_the_reason(name: str):
    probe = providers.usability(providers.full_name(name))
    if probe.usable:
        pytest.skip(f"{name} runs on this machine")
    with pytest.raises(EnvironmentLacksError) as caught:
        open_session(builders.mlp().SerializeToString(), provider=name)
    assert caught.value.exit_code == 5
    assert probe.reason and probe.reason in caught.value.what
    assert caught.value.do


def test_a_session_that_onnx_runtime_moves_to_the_cpu_is_refused(monkeypatch: pytest.MonkeyPatch):
    if providers.usability(providers.CUDA).usable:
        pytest.skip("CUDA runs on this machine")
    if providers.CUDA not in __import__("onnxruntime").get_available_providers():
        pytest.skip("this build of ONNX Runtime does not contain CUDA")
    monkeypatch.setattr(providers, "require", providers.full_name)
    with pytest.raises(EnvironmentLacksError, match="CUDAExecutionProvider cannot run here"):
        open_session(builders.mlp().SerializeToString(), provider="cuda")


def test_a_provider_that_takes_no_node_of_the_model_is_refused(monkeypatch: pytest.MonkeyPatch):
    nothing = providers.Placement("XnnpackExecutionProvider", 0, Counter({"Gemm": 2}))
    monkeypatch.setattr(providers, "require", lambda name: "XnnpackExecutionProvider")
    monkeypatch.setattr(providers, "placement", lambda session, provider: nothing)

    class Session:
        def __init__(self, *args: object, **kwargs: object) -> None: ...
        def get_providers(self) -> list[str]:
            return ["XnnpackExecutionProvider", "CPUExecutionProvider"]

        def get_inputs(self) -> list[object]:
            return []

        get_outputs = get_inputs

    monkeypatch.setattr("onnxruntime.InferenceSession", Session)
    with pytest.raises(EnvironmentLacksError, match="takes none of the nodes"):
        open_session(b"any", provider="xnnpack")


def test_loading_a_provider_leaves_no_words_on_the_terminal(capfd: pytest.CaptureFixture[str]):
    providers.usability.cache_clear()
    providers.usability(providers.CUDA)
    providers.usability(providers.TENSORRT)
    out, err = capfd.readouterr()
    assert out == ""
    assert err == ""
