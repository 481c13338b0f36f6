"""Are all usual image files decoded by one rule, and unreadable ones named, counted and left out?"""

from __future__ import annotations

import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from onnxcomp.data import images
from onnxcomp.data.guesses import RawImages, resolve
from onnxcomp.data.images import BadImage, ImageFiles, decode, list_images
from onnxcomp.data.inputs import InputSpec
from onnxcomp.data.open import open_data
from onnxcomp.data.preprocess import Preprocess
from onnxcomp.errors import DataError

SPEC = InputSpec("x", np.dtype(np.float32), ("n", 3, 8, 8))
RGB = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
EXACT = Preprocess(1, (0,), (1,), "nchw", "rgb", "stretch", 0)


def save(path: Path, array: np.ndarray, mode: str | None = None, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array, mode).save(path, **options)
    return path


def folder_of(path: Path, count: int) -> Path:
    for i in range(count):
        save(path / f"{i:03}.png", np.full((8, 8, 3), i, np.uint8))
    return path


@pytest.mark.parametrize("suffix", ["png", "bmp", "ppm", "tif", "webp"])
def test_lossless_formats_decode_exactly(tmp_path: Path, suffix: str) -> None:
    options = {"lossless": True} if suffix == "webp" else {}
    np.testing.assert_array_equal(decode(save(tmp_path / f"a.{suffix}", RGB, **options)).pixels, RGB)


def test_grey_stays_one_channel(tmp_path: Path) -> None:
    np.testing.assert_array_equal(decode(save(tmp_path / "a.png", RGB[..., 0])).pixels[..., 0], RGB[..., 0])


def test_palette_is_resolved(tmp_path: Path) -> None:
    image = Image.fromarray(RGB).quantize(16)
    image.save(tmp_path / "a.png")
    np.testing.assert_array_equal(decode(tmp_path / "a.png").pixels, np.asarray(image.convert("RGB")))


def test_palette_with_transparency_and_rgba_lose_their_alpha_and_it_is_said(tmp_path: Path) -> None:
    Image.fromarray(RGB).quantize(16).save(tmp_path / "p.png", transparency=0)
    alpha = np.random.default_rng(1).integers(0, 256, (8, 8, 1), np.uint8)
    save(tmp_path / "a.png", np.concatenate([RGB, alpha], axis=2))
    np.testing.assert_array_equal(decode(tmp_path / "a.png").pixels, RGB)
    for name in ("a.png", "p.png"):
        assert decode(tmp_path / name).remarks == ("transparent, alpha dropped",)
    dataset = open_data(tmp_path, [SPEC])
    dataset.samples()
    assert "2 images transparent, alpha dropped" in dataset.guesses


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_sixteen_bits_keep_their_range(tmp_path: Path, suffix: str) -> None:
    levels = np.array([[0, 257, 128 * 257], [65535, 300, 65000]], np.uint16)
    found = decode(save(tmp_path / f"a.{suffix}", levels)).pixels[..., 0]
    np.testing.assert_array_equal(found, np.rint(levels / 257))


def test_bilevel_is_black_and_white(tmp_path: Path) -> None:
    Image.fromarray(RGB[..., 0] > 100).save(tmp_path / "a.png")
    np.testing.assert_array_equal(decode(tmp_path / "a.png").pixels[..., 0], (RGB[..., 0] > 100) * 255)


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    Image.fromarray(RGB).convert("CMYK").save(tmp_path / "a.jpg")
    assert decode(tmp_path / "a.jpg").pixels.shape == (8, 8, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_turns_upright_as_pillow_does(tmp_path: Path, orientation: int) -> None:
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    save(tmp_path / "a.png", RGB[:5], exif=exif)
    with Image.open(tmp_path / "a.png") as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(decode(tmp_path / "a.png").pixels, expected)


def test_floating_point_pixels_are_refused_not_guessed(tmp_path: Path) -> None:
    save(tmp_path / "a.tif", np.random.default_rng(0).random((4, 4)).astype(np.float32))
    with pytest.raises(BadImage, match="floating-point"):
        decode(tmp_path / "a.tif")


def test_unreadable_images_among_good_ones_are_named_counted_and_left_out(tmp_path: Path) -> None:
    folder_of(tmp_path, 10)
    whole = (tmp_path / "003.png").read_bytes()
    (tmp_path / "003.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "007.png").write_text("not an image")
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    jpeg = save(tmp_path / "cut.jpg", noise)
    jpeg.write_bytes(jpeg.read_bytes()[:900])
    (tmp_path / "empty.jpg").touch()
    dataset = open_data(tmp_path, [SPEC], preprocess=EXACT)
    samples = dataset.samples()
    assert len(samples) == 8
    values = np.concatenate([feed["x"] for feed in samples.batches(3)])[:, 0, 0, 0]
    assert values.tolist() == [0, 1, 2, 4, 5, 6, 8, 9]
    told = "\n".join(dataset.problems)
    assert told.startswith("4 images are unreadable")
    for name in ("003.png", "007.png", "cut.jpg", "empty.jpg"):
        assert name in told


def test_many_unreadable_images_are_named_up_to_a_limit(tmp_path: Path) -> None:
    folder_of(tmp_path, 2)
    for i in range(30):
        (tmp_path / f"bad{i:02}.png").touch()
    dataset = open_data(tmp_path, [SPEC])
    assert len(dataset.samples()) == 2
    assert dataset.problems[0].startswith("30 images") and dataset.problems[-1] == "and 20 more"


def test_only_unreadable_images_is_an_error_at_once(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    with pytest.raises(DataError, match="no usable sample") as caught:
        open_data(tmp_path, [SPEC])
    assert "a.png" in caught.value.where


@pytest.mark.parametrize("shape", [(1, 400, 3), (400, 1, 3), (1, 1, 3)])
def test_a_row_of_pixels_among_pictures_is_named_and_not_stretched(tmp_path: Path, shape: tuple[int, ...]) -> None:
    folder_of(tmp_path, 4)
    save(tmp_path / "flat.png", np.zeros(shape, np.uint8))
    dataset = open_data(tmp_path, [SPEC], preprocess=EXACT)
    assert len(dataset.samples()) == 4
    assert any(f"flat.png: {shape[0]} by {shape[1]} pixels for a model" in line for line in dataset.problems)


def bomb(path: Path, side: int) -> Path:
    """A small PNG that declares side x side pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    ihdr = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(1 << 20))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", ihdr) + chunk(b"IDAT", body) + chunk(b"IEND", b""))
    return path


@pytest.mark.parametrize("side", [9_000, 12_000, 60_000])
def test_decompression_bomb_is_left_out_without_memory(tmp_path: Path, side: int) -> None:
    folder_of(tmp_path, 3)
    bomb(tmp_path / "bomb.png", side)
    tracemalloc.start()
    dataset = open_data(tmp_path, [SPEC])
    assert len(dataset.samples()) == 3
    assert tracemalloc.get_traced_memory()[1] < 32 << 20
    tracemalloc.stop()
    assert "bomb.png" in "\n".join(dataset.problems)


def test_each_file_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder_of(tmp_path, 6)
    count: list[Path] = []
    monkeypatch.setattr(images, "decode", lambda path: count.append(path) or decode(path))
    samples = open_data(tmp_path, [SPEC], preprocess=EXACT).samples()
    first = [feed["x"].copy() for feed in samples.batches(4)]
    second = [feed["x"] for feed in samples.batches(4)]
    np.testing.assert_array_equal(np.concatenate(first), np.concatenate(second))
    assert len(count) == 6


def test_full_cache_decodes_again_and_gives_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder_of(tmp_path, 6)
    monkeypatch.setattr(images, "CACHE_BYTES", 3 * 8 * 8 * 3)
    (feed,) = open_data(tmp_path, [SPEC], preprocess=EXACT).samples().batches(6)
    assert feed["x"][:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4, 5]


def test_image_that_goes_away_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "CACHE_BYTES", 0)
    folder_of(tmp_path, 2)
    samples = open_data(tmp_path, [SPEC]).samples()
    (tmp_path / "001.png").unlink()
    with pytest.raises(DataError, match="cannot be read"):
        list(samples.batches())


def test_class_folders_are_labels_in_order_of_names(tmp_path: Path) -> None:
    for name in ("cat", "ant", "bee"):
        folder_of(tmp_path / name, 2)
    listing = list_images(tmp_path)
    assert [f.parent.name for f in listing.files] == ["ant", "ant", "bee", "bee", "cat", "cat"]
    assert listing.labels is not None and listing.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert "--labels" in listing.guesses[0]


def test_numbered_class_folders_sort_as_numbers(tmp_path: Path) -> None:
    for number in range(12):
        folder_of(tmp_path / str(number), 1)
    listing = list_images(tmp_path)
    assert [int(f.parent.name) for f in listing.files] == list(range(12))


def test_hidden_and_other_files_do_not_count(tmp_path: Path) -> None:
    folder_of(tmp_path, 2)
    (tmp_path / ".DS_Store").touch()
    (tmp_path / "readme.txt").touch()
    folder_of(tmp_path / "sub", 1)
    listing = list_images(tmp_path)
    assert len(listing.files) == 2 and listing.labels is None
    assert any("1 other file" in line for line in listing.problems)
    assert any("sub" in line for line in listing.problems)


@pytest.mark.parametrize("inside", [[], ["notes.txt"]])
def test_folder_without_images_is_an_error(tmp_path: Path, inside: list[str]) -> None:
    for name in inside:
        (tmp_path / name).touch()
    with pytest.raises(DataError, match="no images"):
        open_data(tmp_path, [SPEC])


def test_one_subfolder_alone_gives_no_labels(tmp_path: Path) -> None:
    folder_of(tmp_path / "all", 2)
    dataset = open_data(tmp_path, [SPEC])
    assert dataset.labels is None and any("all" in line for line in dataset.guesses)


def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    for i in range(60):
        save(tmp_path / f"{i:02}.png", noise)
    pixels, _ = resolve(Preprocess(), InputSpec("x", np.dtype(np.float32), (1, 3, 256, 256)), RawImages(None, 3))
    peaks = []
    for count in (8, 60):
        files = ImageFiles(sorted(tmp_path.iterdir())[:count], pixels)
        tracemalloc.start()
        assert files.usable(np.arange(count)).all()
        for i in range(count):
            files.read(np.array([i]))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] * 2 + (8 << 20)
