"""Does preprocessing give the tensor that its flags say, and is every guess named with its flag?"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from onnxcomp.data.guesses import RawImages, resolve
from onnxcomp.data.inputs import InputSpec
from onnxcomp.data.preprocess import Preprocess
from onnxcomp.errors import DataError, UsageError

F32 = np.dtype(np.float32)


def spec(*shape: int | str | None, dtype: np.dtype = F32) -> InputSpec:
    return InputSpec("x", dtype, shape)


def picture(h: int, w: int, c: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (h, w, c), np.uint8)


def run(pre: Preprocess, target: InputSpec, image: np.ndarray) -> np.ndarray:
    pixels, _ = resolve(pre, target, RawImages(image.shape[:2], image.shape[2]))
    return pixels.tensor(pixels.canvas(image)[None])


@given(
    scale=st.sampled_from([1.0, 1 / 255, 2 / 255]),
    mean=st.lists(st.floats(-200, 200), min_size=3, max_size=3),
    std=st.lists(st.floats(0.1, 80), min_size=3, max_size=3),
    layout=st.sampled_from(["nchw", "nhwc"]),
    color=st.sampled_from(["rgb", "bgr"]),
)
def test_tensor_is_pixel_times_scale_minus_mean_over_std(scale, mean, std, layout, color) -> None:
    image = picture(5, 4)
    pre = Preprocess(scale=scale, mean=mean, std=std, layout=layout, color=color)
    found = run(pre, spec("n", 3, 5, 4) if layout == "nchw" else spec("n", 5, 4, 3), image)
    ordered = image[..., ::-1] if color == "bgr" else image
    expected = (ordered.astype(np.float64) * scale - np.array(mean)) / np.array(std)
    expected = expected.transpose(2, 0, 1) if layout == "nchw" else expected
    np.testing.assert_array_equal(found[0], expected.astype(np.float32))


@given(scale=st.sampled_from([1.0, 1 / 255]), color=st.sampled_from(["rgb", "bgr"]), seed=st.integers(0, 99))
def test_restore_undoes_tensor(scale, color, seed) -> None:
    image = picture(6, 7, seed=seed)
    pre = Preprocess(scale=scale, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4), color=color)
    pixels, _ = resolve(pre, spec(None, 3, 6, 7), RawImages((6, 7), 3))
    np.testing.assert_array_equal(pixels.restore(pixels.tensor(pixels.canvas(image)[None]))[0], image)


def test_letterbox_is_top_left_bilinear_and_padded() -> None:
    image = picture(30, 50)
    found = run(Preprocess(scale=1, resize="letterbox", pad_value=9), spec(1, 3, 40, 40), image)[0]
    resized = np.asarray(Image.fromarray(image).resize((40, 24), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(found[:, :24], resized.transpose(2, 0, 1))
    assert (found[:, 24:] == 9).all()


def test_center_crop_cuts_the_middle_of_the_shorter_sides_fit() -> None:
    image = picture(30, 60)
    found = run(Preprocess(scale=1, resize="center-crop"), spec(1, 3, 15, 15), image)[0]
    resized = np.asarray(Image.fromarray(image).resize((30, 15), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(found, resized[:, 7:22].transpose(2, 0, 1))


@pytest.mark.parametrize("resize", ["stretch", "letterbox", "center-crop"])
@given(h=st.integers(1, 40), w=st.integers(1, 40), th=st.integers(1, 40), tw=st.integers(1, 40))
def test_every_size_becomes_the_models(resize, h, w, th, tw) -> None:
    found = run(Preprocess(resize=resize), spec("n", 3, th, tw), picture(h, w))
    assert found.shape == (1, 3, th, tw)


@given(h=st.integers(1, 9), w=st.integers(1, 9))
def test_grey_of_arrays_equals_pillows(h, w) -> None:
    image = picture(h, w)
    found = run(Preprocess(scale=1, layout="nchw"), spec("n", 1, h, w), image)[0, 0]
    np.testing.assert_array_equal(found, np.asarray(Image.fromarray(image).convert("L")))


def test_grey_becomes_three_equal_channels_and_alpha_is_dropped() -> None:
    grey, rgba = picture(5, 6, 1), picture(5, 6, 4)
    assert (run(Preprocess(scale=1), spec("n", 3, 5, 6), grey)[0] == grey[..., 0]).all()
    np.testing.assert_array_equal(run(Preprocess(scale=1), spec("n", 5, 6, 3), rgba)[0], rgba[..., :3])


def test_three_equal_luma_channels_when_gray_is_asked_of_three() -> None:
    found = run(Preprocess(scale=1, color="gray"), spec("n", 3, 4, 4), picture(4, 4))[0]
    assert (found[0] == found[1]).all() and (found[1] == found[2]).all()


@pytest.mark.parametrize(
    ("shape", "layout", "size"),
    [
        (("n", 3, 8, 9), "nchw", (3, 8, 9)),
        (("n", 8, 9, 3), "nhwc", (3, 8, 9)),
        (("n", 1, 8, 9), "nchw", (1, 8, 9)),
        ((3, 8, 9), "chw", (3, 8, 9)),
        ((8, 9, 3), "hwc", (3, 8, 9)),
        (("n", 8, 9), "nhw", (1, 8, 9)),
        (("n", 72), "flat-nchw", (1, 8, 9)),
        (("n", None, None, None), "nchw", (3, 8, 9)),
        (("n", 12, 8, 9), "nchw", (12, 8, 9)),
    ],
)
def test_layout_follows_from_the_shape(shape, layout, size) -> None:
    channels = 1 if layout == "flat-nchw" else size[0]
    pixels, _ = resolve(Preprocess(), spec(*shape), RawImages((8, 9), channels))
    assert (pixels.layout, (pixels.channels, pixels.height, pixels.width)) == (layout, size)


def test_each_guess_names_its_flag() -> None:
    _, guesses = resolve(Preprocess(), spec("n", 3, 8, 8), RawImages((9, 9), 3))
    for flag in ("--layout", "--scale", "--mean", "--std", "--color", "--resize"):
        assert any(flag in line for line in guesses), flag
    assert "scale 1/255 guessed from uint8 images: override with --scale" in guesses


def test_nothing_is_guessed_where_all_is_given() -> None:
    full = Preprocess(1, (0,), (1,), "nchw", "rgb", "letterbox", 3)
    assert resolve(full, spec("n", 3, 8, 8), RawImages((9, 9), 3))[1] == ()


def test_free_size_is_taken_from_the_images_or_guessed_and_said() -> None:
    pixels, guesses = resolve(Preprocess(), spec("n", 3, "h", "w"), RawImages((9, 7), 3))
    assert (pixels.height, pixels.width) == (9, 7)
    pixels, guesses = resolve(Preprocess(), spec("n", 3, "h", "w"), RawImages(None, 3))
    assert (pixels.height, pixels.width) == (224, 224)
    assert any("--shape x=" in line for line in guesses)


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"Image.BitmapPixelFormat": "Bgr8", "Image.NominalPixelRange": "NominalRange_0_255"}, ("bgr", 1.0, 0.0)),
        ({"Image.NominalPixelRange": "Normalized_1_1"}, ("rgb", 1 / 127.5, 1.0)),
        ({"Image.NominalPixelRange": "Normalized_0_1", "Image.BitmapPixelFormat": "Rgb8"}, ("rgb", 1 / 255, 0.0)),
        ({"author": "Ultralytics", "stride": "32", "task": "detect", "imgsz": "[8, 8]"}, ("rgb", 1 / 255, 0.0)),
    ],
)
def test_metadata_of_exporters_is_honoured_and_said(metadata, expected) -> None:
    pixels, guesses = resolve(Preprocess(), spec("n", 3, None, None), RawImages(None, 3), metadata)
    assert (pixels.color, pixels.scale, pixels.mean[0]) == expected
    assert any("metadata" in line and "--scale" in line for line in guesses)
    if "imgsz" in metadata:
        assert (pixels.height, pixels.width, pixels.resize, pixels.pad_value) == (8, 8, "letterbox", 114)


def test_integer_inputs_get_pixels_as_they_are() -> None:
    image = picture(4, 4)
    np.testing.assert_array_equal(run(Preprocess(), spec("n", 4, 4, 3, dtype=np.dtype(np.uint8)), image)[0], image)
    signed = run(Preprocess(), spec("n", 4, 4, 3, dtype=np.dtype(np.int8)), image)[0]
    np.testing.assert_array_equal(signed, (image.astype(int) - 128))


@pytest.mark.parametrize(
    "wrong",
    [
        {"scale": "abc"}, {"scale": 0}, {"scale": "1/0"}, {"scale": float("nan")}, {"mean": "1,,2"}, {"std": "0,1,1"},
        {"layout": "chwn"}, {"color": "brg"}, {"resize": "letterboxed"}, {"pad_value": 256}, {"pad_value": "1.5"},
        {"mean": []}, {"scale": True},
    ],
)  # fmt: skip
def test_wrong_values_are_usage_errors_that_name_the_flag(wrong) -> None:
    with pytest.raises(UsageError) as caught:
        Preprocess(**wrong)
    assert next(iter(wrong)).replace("_", "-") in str(caught.value)


def test_near_miss_is_named() -> None:
    with pytest.raises(UsageError, match="did you mean letterbox"):
        Preprocess(resize="leterbox")
    with pytest.raises(UsageError, match="did you mean mean"):
        Preprocess.from_mapping({"maen": 1})


def test_values_of_config_files_and_command_lines_are_equal() -> None:
    assert Preprocess(scale="1/255", mean=".1, .2,.3") == Preprocess.from_mapping(
        {"scale": 1 / 255, "mean": [0.1, 0.2, 0.3]}
    )


@pytest.mark.parametrize(
    ("pre", "shape"),
    [
        (Preprocess(mean=(1, 2)), ("n", 3, 8, 8)),
        (Preprocess(color="bgr"), ("n", 1, 8, 8)),
        (Preprocess(scale=1e38, std=(1e-9,)), ("n", 3, 8, 8)),
    ],
)
def test_flags_that_contradict_the_model_are_refused(pre, shape) -> None:
    with pytest.raises(UsageError):
        resolve(pre, spec(*shape), RawImages((8, 8), 3))


@pytest.mark.parametrize("shape", [("n",), ("n", 3, 4, 8, 8), ("n", 7, 8, 9), ("n", 50)])
def test_inputs_that_hold_no_picture_are_refused(shape) -> None:
    with pytest.raises(DataError):
        resolve(Preprocess(), spec(*shape), RawImages((8, 8), 3))
