"""Is a pruned model explained layer by layer, with no record of what was taken out?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import builders
import numpy as np
import pytest
from onnx import ModelProto

from onnxcomp.explanation.alignment import aligned
from onnxcomp.explanation.explain import explain
from onnxcomp.explanation.report import Explanation
from onnxcomp.graph.io import load, save
from onnxcomp.manager.pipeline import PassManager, Pipeline


@pytest.mark.parametrize("axis", [2, 3])
@pytest.mark.parametrize("seed", range(4))
def test_the_channels_that_are_left_are_found_by_their_values(axis: int, seed: int) -> None:
    generator = builders.rng(seed)
    before = np.maximum(generator.standard_normal((6, 1, 24, 24)), 0) * generator.uniform(0.3, 1, 24)
    left = np.sort(generator.choice(24, 15, replace=False))
    after = before.take(left, axis)
    after = after + 0.1 * after.std() * generator.standard_normal(after.shape)
    after[(slice(None),) * axis + (4,)] = 0  # and one is dead
    found = aligned(before, after)
    assert found is not None and (found.axis, found.of) == (axis - 1, 24)
    alive = np.arange(15) != 4
    assert np.array_equal(found.indices[alive], left[alive])
    assert found.take(before[0]).shape == after[0].shape


@pytest.mark.parametrize(
    ("shape", "other"),
    [
        ((4, 1, 16, 8), (4, 1, 9, 7)),  # two axes
        ((4, 1, 16), (4, 1, 16)),  # none
        ((4, 1, 9), (4, 1, 16)),  # more than there were
        ((4, 2, 8), (4, 1, 8)),  # rows
        ((4, 1, 16, 8), (4, 1, 128)),
        ((4, 1, 16), (4, 1, 0)),
    ],
)
def test_what_is_no_choice_of_channels_is_not_taken_for_one(shape: tuple[int, ...], other: tuple[int, ...]) -> None:
    generator = builders.rng()
    assert aligned(generator.standard_normal(shape), generator.standard_normal(other)) is None


def test_tensors_that_have_nothing_in_common_are_not_aligned() -> None:
    generator = builders.rng()
    assert aligned(generator.standard_normal((8, 1, 32, 6, 6)), generator.standard_normal((8, 1, 20, 6, 6))) is None


def pruned(proto: ModelProto, spec: str, folder: Path, samples: int = 12) -> tuple[Explanation, Path, Path]:
    """What is said of a model and of that model after some passes, both read from files."""
    before = builders.save(proto, folder / "before.onnx")
    graph = PassManager(Pipeline.parse(spec)).run(load(before)).graph
    save(graph, folder / "after.onnx")
    feeds = builders.feeds_of(proto, batch=samples)
    return explain(before, folder / "after.onnx", feeds, times=False), before, folder / "after.onnx"


@pytest.mark.parametrize("build", [builders.mlp, builders.residual_cnn, builders.depthwise_cnn])
def test_every_layer_that_lost_what_it_reads_has_an_error_of_its_own(
    build: Callable[[], ModelProto], tmp_path: Path
) -> None:
    found, before, after = pruned(build(), "prune-channels{ratio=0.3}", tmp_path)
    shapes = [{c.name: c.shape for c in load(path).constants()} for path in (before, after)]
    nodes = {node.name: node for node in load(before).nodes}
    lost = 0
    for row in found.layers:
        kernel = nodes[row.node].inputs[1].name
        if shapes[0][kernel] == shapes[1].get(kernel):
            continue
        assert row.own_sqnr_db is not None or row.equal, row
        if "that it reads are left" in row.why:
            lost += 1
            assert 0 < row.own_sqnr_db < 40 or nodes[row.node].attrs.get("group", 1) > 1  # which loses nothing
    assert lost


def test_the_figure_is_what_the_layer_gives_for_what_is_left(tmp_path: Path) -> None:
    """The second layer reads 20 of 32 units, without any weight fitted to that."""
    proto = builders.mlp((16, 32, 10))
    found, before, after = pruned(proto, "prune-channels{ratio=0.375,compensate=false}", tmp_path)
    weights = {c.name: np.asarray(c.values, np.float64) for c in load(before).constants()}
    left = {c.name: np.asarray(c.values, np.float64) for c in load(after).constants()}
    assert left["fc1.weight"].shape == (20, 16)
    stays = [int(np.flatnonzero((weights["fc1.weight"] == row).all(1))[0]) for row in left["fc1.weight"]]
    x = builders.feeds_of(proto, batch=12)["x"]
    hidden = np.maximum(x @ weights["fc1.weight"].T + weights["fc1.bias"], 0)
    wanted = hidden @ weights["fc2.weight"].T + weights["fc2.bias"]
    given = hidden[:, stays] @ left["fc2.weight"].T + left["fc2.bias"]
    row = next(row for row in found.layers if row.node == "fc2")
    assert row.own_sqnr_db == pytest.approx(
        10 * np.log10(np.square(wanted).sum() / np.square(wanted - given).sum()), abs=0.01
    )
    assert "20 of the 32 channels that it reads are left" in row.why


def test_the_advice_is_to_leave_out_the_layer_in_front(tmp_path: Path) -> None:
    found, _, _ = pruned(builders.mlp((16, 32, 24, 10)), "prune-channels{ratio=0.4}", tmp_path)
    rows = {row.node: row for row in found.layers}
    assert "exclude=[fc1]" in rows["fc2"].advice and "exclude=[fc2]" in rows["fc3"].advice
