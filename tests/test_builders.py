"""Are the shared test models valid, and does ONNX Runtime run each of them?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import builders
import numpy as np
import onnx
import pytest

BUILDERS: list[Callable[[], onnx.ModelProto]] = [
    builders.conv_bn_relu,
    builders.mlp,
    builders.residual_cnn,
    builders.shared_weight,
    builders.indirect_weights,
    builders.if_model,
    builders.loop_model,
    builders.function_model,
    builders.dynamic_cnn,
    builders.transformer,
    builders.depthwise_cnn,
]


@pytest.mark.parametrize("build", BUILDERS, ids=lambda b: b.__name__)
def test_model_runs_and_is_reproducible(build: Callable[[], onnx.ModelProto]) -> None:
    proto = build()
    assert proto.SerializeToString(deterministic=True) == build().SerializeToString(deterministic=True)
    outputs = builders.run(proto, builders.feeds_of(proto))
    assert all(np.isfinite(output).all() for output in outputs)
    assert any(np.ptp(output) > 0.1 for output in outputs), "an output that hardly varies tests nothing"


def test_variants_compute_the_same(tmp_path: Path) -> None:
    proto = builders.conv_bn_relu()
    feeds = builders.feeds_of(proto)
    expected = builders.run(proto, feeds)[0]
    listed = builders.weights_as_inputs(proto)
    assert len(listed.graph.input) == 1 + len(listed.graph.initializer)
    np.testing.assert_allclose(builders.run(listed, feeds)[0], expected, atol=1e-5)
    external = builders.save_external(proto, tmp_path / "m.onnx")
    assert (tmp_path / "weights.bin").stat().st_size > 0
    np.testing.assert_array_equal(builders.run(external, feeds)[0], expected)


def test_masked_tokens_do_not_reach_the_sentence() -> None:
    feeds = builders.transformer_feed()
    changed = {k: v.copy() for k, v in feeds.items()}
    changed["input_ids"][1, -1] = (changed["input_ids"][1, -1] + 1) % 64
    proto = builders.transformer()
    before, after = builders.run(proto, feeds)[0], builders.run(proto, changed)[0]
    np.testing.assert_allclose(before, after, atol=1e-5)
