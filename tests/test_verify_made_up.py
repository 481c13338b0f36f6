"""Are made-up samples of a size that the model takes, or is it said which sizes to give?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from builders import model, save, value
from onnx import TensorProto, helper

from onnxcomp.data.inputs import inputs_of
from onnxcomp.errors import DataError
from onnxcomp.verify.made_up import made_up_for


def windowed(path: Path, window: int) -> Path:
    """Reflects `window` values at the end: needs more than that many."""
    nodes = [
        helper.make_node("Pad", ["x", "pads"], ["padded"], mode="reflect"),
        helper.make_node("ReduceMean", ["padded"], ["y"], axes=[1], keepdims=0),
    ]
    pads = {"pads": np.array([0, 0, 0, window], np.int64)}
    inputs, outputs = [value("x", TensorProto.FLOAT, ["n", "t"])], [value("y", TensorProto.FLOAT, ["n"])]
    return save(model(nodes, inputs, outputs, pads), path)


def test_longer_sequences_are_tried_where_the_first_guess_is_refused(tmp_path: Path) -> None:
    path = windowed(tmp_path / "m.onnx", 100)
    made = made_up_for(path, inputs_of(path)[0], 3)
    assert next(made.samples().batches(1))["x"].shape == (1, 256)
    assert any("t of x = 256 guessed" in guess for guess in made.guesses)


def test_the_error_names_the_input_whose_size_to_give(tmp_path: Path) -> None:
    path = windowed(tmp_path / "m.onnx", 5000)
    with pytest.raises(DataError, match="sizes had to be guessed") as failure:
        made_up_for(path, inputs_of(path)[0], 3)
    assert "--shape x=..." in failure.value.do


def test_a_given_size_is_believed(tmp_path: Path) -> None:
    path = windowed(tmp_path / "m.onnx", 5000)
    made = made_up_for(path, inputs_of(path)[0], 1, shapes={"x": (1, 6000)})
    assert next(made.samples().batches(1))["x"].shape == (1, 6000)
    assert not made.guesses


def test_a_width_of_zero_is_kept(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    inputs, outputs = [value("x", TensorProto.FLOAT, ["n", 0])], [value("y", TensorProto.FLOAT, ["n", 4])]
    path = save(model(nodes, inputs, outputs, {"w": np.zeros((0, 4), np.float32)}), tmp_path / "m.onnx")
    (spec,), _ = inputs_of(path)
    assert (spec.shape, spec.dims) == (("n", 0), "[n, 0]")
    made = made_up_for(path, (spec,), 3)
    assert next(made.samples().batches(1))["x"].shape == (1, 0)
    assert not any("dimension 1" in guess for guess in made.guesses)
