"""Do operators train whatever their attributes, rank, groups and operands' shapes are? Random ones, seeded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import builders
import numpy as np
import pytest
from onnx import ModelProto
from test_distill_gradients import BATCH, OPERATORS, lay_out, run_matrix
from training_cases import TRAINING_ONLY, feeds
from training_sweep import DRAWS, drawn

from onnxcomp.distill import environment
from onnxcomp.distill.trainable import Prepared, prepare
from onnxcomp.errors import EnvironmentLacksError, OutputError
from onnxcomp.graph.codec import decode, encode

SEEDS = 3
LARGEST_ERROR = 0.03  # some of the models have a kink near


def models() -> dict[str, ModelProto]:
    found = {f"{name} {seed}": drawn(name, seed) for name in DRAWS for seed in range(SEEDS)}
    return {case: proto for case, proto in found.items() if proto is not None}


@pytest.fixture(scope="module")
def prepared() -> dict[str, tuple[ModelProto, Prepared, list[np.ndarray]]]:
    found = {}
    for case, proto in models().items():
        form = prepare(decode(proto), OPERATORS, {}, BATCH, also=("w*", "p*"))
        found[case] = proto, form, builders.run(proto, feeds(proto, BATCH))
    return found


def test_every_draw_gives_models() -> None:
    drawn_ones = {case.rpartition(" ")[0] for case in models()}
    assert drawn_ones == set(DRAWS)


def test_training_forms_compute_what_the_operators_compute(prepared: dict[str, Any]) -> None:
    for case, (proto, form, wanted) in prepared.items():
        assert not form.refused, f"{case}: {form.refused[0].why}"
        if set(form.graph.operators()) & TRAINING_ONLY:
            continue
        for want, got in zip(wanted, builders.run(encode(form.graph), feeds(proto, BATCH)), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4, err_msg=case)


def test_the_training_runtime_computes_the_same_and_its_gradients_are_right(
    prepared: dict[str, Any], tmp_path: Path
) -> None:
    try:
        runtime = environment.provide()
    except (EnvironmentLacksError, OutputError) as error:
        pytest.skip(f"no training runtime here: {error}")
    losses = {}
    for case, (proto, form, outputs) in prepared.items():
        if not form.trainable:
            continue
        generator = builders.rng(11)
        wanted = [(y + generator.standard_normal(y.shape)).astype(np.float32) for y in outputs]
        lay_out(tmp_path, case, proto, form, wanted)
        losses[case] = sum(float(((y - t) ** 2).mean()) for y, t in zip(outputs, wanted, strict=True))
    results = run_matrix(runtime, tmp_path)
    for case, loss in losses.items():
        assert case in results, f"{case}: the training runtime crashed: {results['']['error']}"
        found = results[case]
        assert "error" not in found, f"{case}: {found.get('error')}"
        assert found["loss"] == pytest.approx(loss, rel=1e-3), f"{case}: the training runtime computes something else"
        assert not found["wrong"], case
        assert found["median"] < LARGEST_ERROR, case
        assert found["same"], f"{case}: other bytes with other threads"
