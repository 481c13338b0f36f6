"""Does every source that users have at hand become feeds that fit the model, or a clear error?"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from builders import model, save, value
from nets import Net
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from onnxcomp.data import feeds
from onnxcomp.data.dataset import Dataset
from onnxcomp.data.feeds import convert
from onnxcomp.data.inputs import InputSpec, inputs_of, interface_of, with_shapes
from onnxcomp.data.open import open_data, random_data
from onnxcomp.data.preprocess import Preprocess
from onnxcomp.errors import DataError, ModelError, UsageError
from onnxcomp.graph.codec import decode
from onnxcomp.graph.io import load
from onnxcomp.graph.io import save as store

F32, I64, U8 = (np.dtype(t) for t in (np.float32, np.int64, np.uint8))
RNG = np.random.default_rng(0)
IMAGE = InputSpec("x", F32, ("n", 1, 4, 5))
GREY = RNG.integers(0, 256, (10, 4, 5), np.uint8)
TOKENS = [InputSpec("ids", I64, ("n", "s")), InputSpec("mask", I64, ("n", "s"))]


def together(dataset: Dataset, size: int | None = None) -> dict[str, np.ndarray]:
    feeds = list(dataset.samples().batches(size))
    return {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}


# inputs


def test_inputs_leave_out_initializers_and_keep_free_dimensions(tmp_path: Path) -> None:
    proto = model(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        [value("x", TensorProto.FLOAT, ["n", None, 3]), value("w", TensorProto.FLOAT, [3])],
        [value("y", TensorProto.FLOAT, ["n", None, 3])],
        {"w": np.ones(3, np.float32)},
    )
    helper.set_model_props(proto, {"key": "word"})
    specs, metadata = inputs_of(save(proto, tmp_path / "m.onnx"))
    assert specs == (InputSpec("x", F32, ("n", None, 3)),) and metadata == {"key": "word"}


def test_file_that_is_no_model_is_a_model_error(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"hello")
    with pytest.raises(ModelError):
        inputs_of(tmp_path / "m.onnx")
    with pytest.raises(ModelError):
        inputs_of(tmp_path / "none.onnx")


def test_shapes_fill_free_dimensions_only() -> None:
    assert with_shapes([IMAGE], {"x": (2, 1, 4, 5)})[0].shape == (2, 1, 4, 5)
    for shape in ((1, 3, 4, 5), (1, 1, 4)):
        with pytest.raises(UsageError, match="does not fit"):
            with_shapes([IMAGE], {"x": shape})
    with pytest.raises(UsageError, match="no input 'y'") as caught:
        with_shapes([IMAGE], {"y": (1,)})
    assert "did you mean x" in caught.value.do


# arrays


@pytest.mark.parametrize("suffix", ["npz", "npy", "array", "mapping", "function"])
def test_raw_grey_pictures_from_every_kind_of_array(tmp_path: Path, suffix: str) -> None:
    np.savez_compressed(tmp_path / "d.npz", images=GREY)
    np.save(tmp_path / "d.npy", GREY)
    kinds = {"array": GREY, "mapping": {"images": GREY}, "function": lambda: {"images": GREY}}
    dataset = open_data(kinds.get(suffix, tmp_path / f"d.{suffix}"), [IMAGE])
    found = together(dataset, 3)["x"]
    np.testing.assert_array_equal(found, (GREY[:, None] / 255).astype(np.float32))
    assert any("--scale" in line for line in dataset.guesses)


def test_labels_of_the_npz_come_along(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", images=GREY, labels=np.arange(10, dtype=np.uint8))
    dataset = open_data(tmp_path / "d.npz", [IMAGE])
    assert dataset.labels is not None and dataset.labels.dtype == np.int64
    assert dataset.subset([7, 2]).labels.tolist() == [7, 2]


def test_array_under_the_inputs_name_type_and_rank_is_model_ready() -> None:
    ready = RNG.standard_normal((10, 1, 4, 5)).astype(np.float32)
    dataset = open_data({"x": ready}, [IMAGE], preprocess=Preprocess(scale=9))
    np.testing.assert_array_equal(together(dataset)["x"], ready)
    assert not any("guessed" in line for line in dataset.guesses)
    assert any("--scale not used" in line for line in dataset.problems)


def test_float_images_of_the_inputs_rank_are_model_ready() -> None:
    ready = RNG.standard_normal((10, 1, 4, 5))
    np.testing.assert_array_equal(together(open_data({"images": ready}, [IMAGE]))["x"], ready.astype(np.float32))


def test_uint8_images_are_raw_even_where_the_input_is_called_images() -> None:
    spec = InputSpec("images", F32, ("n", 1, 4, 5))
    found = together(open_data({"images": GREY}, [spec], preprocess=Preprocess(scale=1)))["images"]
    np.testing.assert_array_equal(found[:, 0], GREY)


@pytest.mark.parametrize("shape", [(10, 4, 5, 3), (10, 3, 4, 5), (10, 4, 5, 4), (10, 4, 5, 1)])
def test_raw_colour_pictures_of_either_layout(shape: tuple[int, ...]) -> None:
    raw = RNG.integers(0, 256, shape, np.uint8)
    spec = InputSpec("x", F32, ("n", 3, 4, 5))
    found = together(open_data({"images": raw}, [spec], preprocess=Preprocess(scale=1)))["x"]
    expected = raw if shape[1] == 3 else np.broadcast_to(raw[..., :3], (10, 4, 5, 3)).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(found, expected)


def test_sixteen_bit_pictures_are_raw_too() -> None:
    found = together(open_data({"images": GREY.astype(np.uint16) * 257}, [IMAGE], preprocess=Preprocess(scale=1)))
    np.testing.assert_array_equal(found["x"][:, 0], GREY)


def test_pictures_of_another_size_are_resized_as_files_are(tmp_path: Path) -> None:
    raw = RNG.integers(0, 256, (3, 9, 7, 3), np.uint8)
    for i, picture in enumerate(raw):
        Image.fromarray(picture).save(tmp_path / f"{i}.png")
    spec = InputSpec("x", F32, (1, 3, 6, 6))
    for resize in ("stretch", "letterbox", "center-crop"):
        pre = Preprocess(resize=resize)
        arrays = together(open_data({"images": raw}, [spec], preprocess=pre))["x"]
        np.testing.assert_array_equal(arrays, together(open_data(tmp_path, [spec], preprocess=pre))["x"])


def test_flat_inputs_take_pictures_row_by_row() -> None:
    spec = InputSpec("x", F32, ("n", 20))
    for raw in (GREY, GREY.reshape(10, 20)):
        found = together(open_data({"images": raw}, [spec], preprocess=Preprocess(scale=1)))["x"]
        np.testing.assert_array_equal(found, GREY.reshape(10, 20))


def test_input_without_a_batch_axis_gets_one_picture_a_feed() -> None:
    raw = RNG.integers(0, 256, (4, 6, 5, 3), np.uint8)
    feeds = list(open_data({"images": raw}, [InputSpec("x", F32, (3, 6, 5))]).samples().batches(16))
    assert [feed["x"].shape for feed in feeds] == [(3, 6, 5)] * 4


def test_stacked_feeds_are_one_feed_a_row_and_it_is_said() -> None:
    stack = RNG.standard_normal((6, 1, 3, 4, 5)).astype(np.float32)
    dataset = open_data({"x": stack}, [InputSpec("x", F32, (1, 3, 4, 5))])
    feeds = list(dataset.samples().batches())
    assert len(feeds) == 6 and feeds[0]["x"].shape == (1, 3, 4, 5)
    assert any("whole feed" in line for line in dataset.guesses)


def test_several_inputs_are_cut_into_the_same_rows() -> None:
    table = {"mask": RNG.integers(0, 2, (9, 6)), "ids": RNG.integers(0, 99, (9, 6))}
    feeds = list(open_data(table, TOKENS).samples().batches(4))
    assert [len(feed["ids"]) for feed in feeds] == [4, 4, 1] and list(feeds[0]) == ["ids", "mask"]
    np.testing.assert_array_equal(np.concatenate([feed["mask"] for feed in feeds]), table["mask"])


def test_narrower_integers_are_widened_and_wider_ones_checked() -> None:
    table = {"ids": RNG.integers(0, 99, (4, 6), np.int32), "mask": np.ones((4, 6), bool)}
    assert together(open_data(table, TOKENS))["mask"].dtype == I64
    narrow = InputSpec("ids", np.dtype(np.int32), ("n", "s"))
    assert convert(np.array([[5]]), narrow, "here").dtype == np.int32
    with pytest.raises(DataError, match="does not fit int32"):
        list(open_data({"ids": np.array([[1], [2**40]])}, [narrow]).samples().batches())


def test_constant_inputs_are_the_same_in_every_feed() -> None:
    specs = [InputSpec("x", F32, ("n", 3)), InputSpec("size", F32, (2,)), InputSpec("limit", F32, ())]
    table = {
        "x": RNG.standard_normal((8, 3)).astype(np.float32),
        "size": np.array([4, 5], np.float32),
        "limit": np.float32(0.5),
    }
    feeds = list(open_data(table, specs).samples().batches(3))
    assert [len(feed["x"]) for feed in feeds] == [3, 3, 2]
    assert all(feed["size"].tolist() == [4, 5] and feed["limit"].shape == () for feed in feeds)


def test_only_array_left_is_taken_and_said_unused_ones_are_named() -> None:
    table = {"other": RNG.standard_normal((3, 2)).astype(np.float32)}
    dataset = open_data(table, [InputSpec("x", F32, ("n", 2))])
    assert any("other taken for the input x" in line for line in dataset.guesses)
    more = open_data({**table, "x": table["other"]}, [InputSpec("x", F32, ("n", 2))])
    assert any("other" in line and "left out" in line for line in more.problems)


def test_fixed_batch_drops_what_fills_no_batch_and_counts_so() -> None:
    dataset = open_data({"images": GREY}, [InputSpec("x", F32, (4, 1, 4, 5))])
    samples = dataset.samples()
    assert len(samples) == 8 and [len(f["x"]) for f in samples.batches(100)] == [4, 4]
    assert len(samples.head(1)) == 4


def test_shape_option_fixes_the_batch_too() -> None:
    dataset = open_data({"images": GREY}, [IMAGE], shapes={"x": (5, 1, 4, 5)})
    assert [len(feed["x"]) for feed in dataset.samples().batches()] == [5, 5]


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"ids": np.ones((3, 4), int), "mask": np.ones((2, 4), int)}, "different numbers"),
        ({"ids": np.ones((3, 4), int)}, "no array for the input mask"),
        ({"ids": np.ones((3, 4)), "mask": np.ones((3, 4), int)}, "float64 data for the input ids"),
        ({"ids": np.ones(3, int), "mask": np.ones(3, int)}, "shape"),
        ({"ids": np.ones((0, 4), int), "mask": np.ones((0, 4), int)}, "no samples"),
        ({}, "no array"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(table: dict[str, np.ndarray], words: str) -> None:
    with pytest.raises(DataError, match=words):
        open_data(table, TOKENS)


@pytest.mark.parametrize(
    "array",
    [
        np.ones((5, 3, 4, 5), np.float32), np.ones((5, 4, 5), np.float32), np.ones((5, 1, 4, 5), np.int64),
        np.array(["a", "b"]), np.ones((5, 2, 2, 2, 2), np.uint8), np.ones((5, 1, 4, 6), np.float32),
    ],
)  # fmt: skip
def test_wrong_shapes_and_types_for_pictures_are_refused(array: np.ndarray) -> None:
    with pytest.raises(DataError) as caught:
        open_data(array, [IMAGE])
    assert caught.value.where and caught.value.do


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_named_by_sample_and_input(bad: float) -> None:
    ready = np.zeros((10, 1, 4, 5), np.float32)
    ready[7, 0, 2, 2] = bad
    with pytest.raises(DataError, match="NaN" if np.isnan(bad) else "infinity") as caught:
        list(open_data({"x": ready}, [IMAGE]).samples().batches(4))
    assert "sample 7" in caught.value.where and "input x" in caught.value.where


def test_nan_and_infinity_are_taken_where_the_model_makes_something_finite_of_them() -> None:
    ready = np.zeros((6, 1, 4, 5), np.float32)
    ready[2], ready[4, 0, 1, 1] = -np.inf, np.nan
    mask = np.full((1, 4, 5), -np.inf, np.float32)

    def run(feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"y": np.where(np.isinf(feed["x"]), 0, feed["x"])}  # a model that knows infinity, and not NaN

    dataset = open_data({"x": ready}, [IMAGE])
    dataset.give_session(run)
    good = dataset.subset([0, 1, 2, 3])
    np.testing.assert_array_equal(np.concatenate([f["x"] for f in good.batches(3)]), ready[:4])
    assert any("infinity in input x" in problem for problem in dataset.problems)
    with pytest.raises(DataError, match="NaN") as caught:
        list(dataset.samples().batches(6))
    assert "sample 4" in caught.value.where

    spec = InputSpec("m", np.dtype(np.float32), (1, 4, 5))
    fixed = open_data({"x": ready[:2], "m": mask}, [IMAGE, spec])
    fixed.give_session(lambda feed: {"y": feed["x"]})
    assert np.isneginf(next(fixed.samples().batches(2))["m"]).all()


# whole feeds


def tensor_file(path: Path, array: np.ndarray, name: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(numpy_helper.from_array(array, name).SerializeToString())


@pytest.mark.parametrize("names", [("ids", "mask"), ("", ""), ("in1", "in2"), ("mask", "ids")])
def test_test_data_sets_by_name_or_by_place(tmp_path: Path, names: tuple[str, str]) -> None:
    for k in (0, 1, 10, 2):
        tensor_file(tmp_path / f"test_data_set_{k}" / "input_0.pb", np.full((2, 3), k), names[0])
        tensor_file(tmp_path / f"test_data_set_{k}" / "input_1.pb", np.full((2, 3), -k), names[1])
    dataset = open_data(tmp_path, TOKENS)
    sign = -1 if names[0] == "mask" else 1
    assert [sign * int(f["ids"][0, 0]) for f in dataset.samples().batches(64)] == [0, 1, 2, 10]
    assert len(open_data(tmp_path / "test_data_set_1", TOKENS)) == 1


def test_damaged_tensor_files_are_refused(tmp_path: Path) -> None:
    spec = [InputSpec("x", F32, (2,))]
    (tmp_path / "input_0.pb").write_bytes(b"\xff\xff\xff")
    with pytest.raises(DataError, match=r"input_0\.pb is not a serialized tensor"):
        open_data(tmp_path, spec)
    lying = TensorProto(dims=[1 << 40], data_type=TensorProto.FLOAT, raw_data=bytes(8))
    (tmp_path / "input_0.pb").write_bytes(lying.SerializeToString())
    with pytest.raises(DataError):
        open_data(tmp_path, spec)
    outside = TensorProto(dims=[2], data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    outside.external_data.append(onnx.StringStringEntryProto(key="location", value="../secret"))
    (tmp_path / "input_0.pb").write_bytes(outside.SerializeToString())
    with pytest.raises(DataError, match="another file"):
        open_data(tmp_path, spec)


MODULE = """
import numpy as np
def feeds():
    for i in range(5):
        yield {"x": np.full((2, 1, 4, 5), i, np.float32), "labels": [i, i]}
def table():
    return {"x": np.zeros((6, 1, 4, 5), np.float32), "labels": np.arange(6)}
def broken():
    yield {"x": np.zeros((2, 1, 4, 5), np.float32)}
    raise KeyError("gone")
def wrong():
    yield [1, 2]
def nothing():
    return iter(())
def number():
    return 3
"""


def test_function_that_yields_dicts(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MODULE)
    dataset = open_data(f"{tmp_path}/mine.py:feeds", [IMAGE])
    assert len(dataset) == 5 and dataset.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    part = dataset.subset([3, 1])
    assert [int(f["x"][0, 0, 0, 0]) for f in part.batches()] == [3, 1] and part.labels.tolist() == [3, 3, 1, 1]
    assert len(open_data(f"{tmp_path}/mine.py:table", [IMAGE]).samples()) == 6


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("broken", "KeyError"), ("wrong", "not a dict"), ("nothing", "no feeds"), ("number", "a value of type int"),
    ],
)  # fmt: skip
def test_functions_that_fail_are_told_in_their_own_words(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "mine.py").write_text(MODULE)
    with pytest.raises(DataError, match=words) as caught:
        open_data(f"{tmp_path}/mine.py:{name}", [IMAGE])
    if name == "broken":
        assert "mine.py, line 10" in caught.value.where


def test_missing_functions_and_files_are_usage_errors(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MODULE)
    with pytest.raises(UsageError, match="no function feed") as caught:
        open_data(f"{tmp_path}/mine.py:feed", [IMAGE])
    assert "did you mean feeds" in caught.value.do
    (tmp_path / "bad.py").write_text("import nothing_of_this_name")
    with pytest.raises(UsageError, match="ModuleNotFoundError") as caught:
        open_data(f"{tmp_path}/bad.py:f", [IMAGE])
    assert "bad.py, line 1" in caught.value.where
    with pytest.raises(UsageError, match="no file"):
        open_data(f"{tmp_path}/none.py:f", [IMAGE])


def test_generator_is_read_once_and_gives_the_same_again() -> None:
    drawn = (RNG.standard_normal((2, 1, 4, 5)).astype(np.float32) for _ in range(4))
    dataset = open_data(({"x": array} for array in drawn), [IMAGE])
    first, second = together(dataset), together(dataset)
    np.testing.assert_array_equal(first["x"], second["x"])
    assert len(dataset) == 4


def test_endless_generator_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxcomp.data.feeds.SPOOL_BYTES", 1 << 16)
    endless: Iterator[dict[str, np.ndarray]] = ({"x": np.zeros((9, 1, 4, 5))} for _ in itertools.count())
    with pytest.raises(DataError, match="never end"):
        open_data(endless, [IMAGE])


def test_feed_is_checked_for_names_shapes_and_values() -> None:
    good = {"x": np.zeros((2, 1, 4, 5), np.float32)}
    for bad, words in (
        ({}, "no array for x"),
        ({**good, "y": np.ones(1)}, "unknown y"),
        ({"x": np.zeros((2, 1, 4, 4), np.float32)}, "shape"),
        ({"x": np.zeros((2, 1, 4, 5), np.int64)}, "int64 data"),
        ({"x": np.full((2, 1, 4, 5), np.nan, np.float32)}, "NaN"),
    ):
        with pytest.raises(DataError, match=words) as caught:
            list(open_data([good, bad], [IMAGE]).samples().batches())
        assert "feed 1" in caught.value.where


def test_strings_and_bfloat16_pass_through() -> None:
    import ml_dtypes

    text = InputSpec("t", np.dtype(object), ("n",))
    (feed,) = open_data([{"t": np.array(["ab", "c"])}], [text]).samples().batches()
    assert feed["t"].dtype == object and feed["t"].tolist() == ["ab", "c"]
    spec = InputSpec("b", np.dtype(ml_dtypes.bfloat16), (2,))
    generator = ({"b": np.array([1.5, 2], ml_dtypes.bfloat16)} for _ in range(2))
    feeds = list(open_data(generator, [spec]).samples().batches())
    assert len(feeds) == 2 and feeds[0]["b"].astype(np.float32).tolist() == [1.5, 2]


# paths


@pytest.mark.parametrize("name", ["none.npz", "folder/none", "nothing.py", "a.txt", "x" * 5000, "a.txt/b"])
def test_missing_and_unknown_paths_are_data_errors(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.txt").write_text("1 2 3")
    with pytest.raises(DataError):
        open_data(tmp_path / name, [IMAGE])


def test_folder_that_cannot_be_listed_is_a_data_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_folder: Path) -> Iterator[Path]:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refused)
    with pytest.raises(DataError, match="Permission denied"):
        open_data(tmp_path, [IMAGE])


# made-up data


def test_made_up_integers_are_rows_of_the_table_they_look_up() -> None:
    net = Net()
    tokens, segments = (net.input("N", 6, dtype=TensorProto.INT64) for _ in range(2))
    words = net.op("Gather", net.weight(1000, 4), net.op("Cast", tokens, to=TensorProto.INT32))
    kinds = net.op("Gather", net.weight(2, 4), segments)
    specs = interface_of(decode(net.model(net.op("Add", words, kinds)))).inputs
    assert [spec.rows for spec in specs] == [1000, 2]
    (feed,) = random_data(specs, 64).samples().batches(64)
    first, second = feed.values()
    assert 500 < first.max() < 1000 and first.min() >= 0
    assert set(np.unique(second)) == {0, 1}


def test_random_data_fits_every_kind_of_input_and_repeats() -> None:
    specs = [
        InputSpec("x", F32, ("n", 3, "h", "w")),
        InputSpec("ids", I64, ("n", "s")),
        InputSpec("mask", np.dtype(bool), ("n", "s")),
    ]
    one, two = (random_data(specs, 5, 3, {"x": (2, 3, 8, 8)}) for _ in range(2))
    assert one.source == "synthetic" and one.synthetic
    for a, b in zip(one.samples().batches(), two.samples().batches(), strict=True):
        assert all((a[k] == b[k]).all() for k in a)
    first = next(one.samples().batches())
    assert first["ids"].min() >= 0 and first["ids"].max() <= 1 and first["mask"].dtype == bool
    assert any("--shape ids=" in line for line in one.guesses)
    assert not (next(random_data(specs, 5, 4).samples().batches(1))["ids"] == first["ids"][:1]).all()


def test_random_data_of_free_batch_comes_in_batches_that_do_not_depend_on_size() -> None:
    spec = [InputSpec("x", F32, ("n", 4))]
    whole = next(random_data(spec, 6).samples().batches(6))["x"]
    parts = np.concatenate([f["x"] for f in random_data(spec, 6).samples().batches(2)])
    np.testing.assert_array_equal(whole, parts)


def test_random_data_for_unlike_inputs_gives_whole_feeds() -> None:
    specs = [InputSpec("x", F32, (4, 3)), InputSpec("k", F32, ()), InputSpec("y", F32, (2,))]
    feeds = list(random_data(specs, 3).samples().batches(8))
    assert len(feeds) == 3 and feeds[0]["k"].shape == () and feeds[0]["y"].shape == (2,)


def test_random_strings_are_refused() -> None:
    with pytest.raises(DataError, match="made up"):
        random_data([InputSpec("t", np.dtype(object), ("n",))], 2)


# the models and data of the assets


def test_feeds_equal_the_outside_judges(assets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(assets))
    import meter

    cifar = Preprocess(mean=".485,.456,.406", std=".229,.224,.225")
    yolox = Preprocess(scale=1, color="bgr", resize="letterbox", pad_value=114)
    for name, data, pre, expected, tolerance in (
        ("lenet5-mnist", "mnist-test.npz", Preprocess(), meter.mnist()[0], 0),
        ("resnet20-cifar10", "cifar10-test.npz", cifar, meter.cifar()[0], 1e-6),
        ("yolox-nano", "photos", yolox, meter.photos("yolox", 40), 0),
    ):
        inputs, metadata = inputs_of(assets / "models" / f"{name}.onnx")
        dataset = open_data(assets / "data" / data, inputs, preprocess=pre, metadata=metadata)
        feeds = dataset.subset(np.arange(len(expected))).batches()
        found = np.concatenate([next(iter(feed.values())) for feed in feeds])
        assert found.dtype == expected.dtype and np.abs(found - expected).max() <= tolerance, name


def test_tokens_of_the_assets_are_model_ready(assets: Path) -> None:
    inputs, _ = inputs_of(assets / "models" / "minilm-l6.onnx")
    dataset = open_data(assets / "data" / "packages-test.npz", inputs)
    assert len(dataset) == 2000 and dataset.labels is None and not dataset.guesses
    stored = np.load(assets / "data" / "packages-test.npz")
    np.testing.assert_array_equal(together(dataset)["input_ids"], stored["input_ids"])


def test_a_negative_size_is_free(tmp_path: Path) -> None:
    shape = [-1, 3]
    path = save(
        model([helper.make_node("Relu", ["x"], ["y"])], [value("x", 1, shape)], [value("y", 1, shape)]),
        tmp_path / "free.onnx",
    )
    graph = load(path)
    assert graph.inputs[0].shape == (None, 3)
    store(graph, tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (np.zeros((6, 784), np.uint8), "pictures of 1 by 784 pixels"),
        (np.zeros((6, 1, 784), np.uint8), "pictures of 1 by 784 pixels"),
        (np.zeros((6, 0, 28, 3), np.uint8), "no height or no width"),
        (np.zeros((6, 28, 0), np.uint8), "no height or no width"),
        (np.zeros((6, 28, 28, 5), np.uint8), "cannot be read"),
        (np.zeros((6, 5, 28, 28), np.uint8), "cannot be read"),
    ],
)
def test_pictures_that_cannot_fit_are_named_and_not_stretched(raw: np.ndarray, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        open_data({"images": raw}, [InputSpec("x", F32, ("n", 3, 28, 28))]).samples()
    assert caught.value.where and caught.value.do


def test_pictures_of_five_channels_feed_a_model_of_five_channels() -> None:
    raw = np.zeros((6, 8, 8, 5), np.uint8)
    for spec in (InputSpec("x", F32, ("n", 5, 8, 8)), InputSpec("x", F32, ("n", 8, 8, 5))):
        assert next(open_data({"images": raw}, [spec]).samples().batches(2))["x"].size == 2 * 8 * 8 * 5


def test_rows_of_numbers_still_feed_flat_inputs() -> None:
    raw = np.zeros((6, 784), np.uint8)
    assert len(open_data({"images": raw}, [InputSpec("x", F32, ("n", 784))])) == 6


def test_feeds_without_end_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeds, "MOST_FEEDS", 50)

    def endless():
        while True:
            yield {"x": np.zeros((1, 2), np.float32)}

    with pytest.raises(DataError, match="never ends"):
        open_data(endless, [InputSpec("x", F32, ("n", 2))])


def test_a_pipe_among_test_sets_is_no_input(tmp_path: Path) -> None:
    (tmp_path / "test_data_set_0").mkdir()
    os.mkfifo(tmp_path / "test_data_set_0" / "input_0.pb")
    with pytest.raises(DataError):
        open_data(tmp_path, [InputSpec("x", F32, ("n", 2))])


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((2**31, 2**31 - 1, -(2**62)), "of such sizes there are none"),
        ((1, -3), "of such sizes there are none"),
        ((2**31 - 1,), "one would take 8,589,934,588 bytes"),
        ((2**31, 5), "one would take"),
        ((2**62, 1, 0), "one would take"),
    ],
)
def test_impossible_sizes_are_refused_before_data_are_made_up(shape: tuple[int, ...], words: str) -> None:
    with pytest.raises(DataError, match=words):
        random_data([InputSpec("x", np.dtype(np.float32), shape)], 4)
