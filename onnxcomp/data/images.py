"""How are pictures found in a folder and decoded, each once, with the unreadable ones named and left out?

Decoding rules, the same everywhere: 8 bits a channel (16-bit grey is divided by 257), palettes resolved, alpha dropped
(as training loaders do: what lies under it counts), turned upright by the EXIF orientation, first frame only.
"""

from __future__ import annotations

import functools
import os
import re
import struct
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from onnxcomp.data.pixels import Bytes, Pixels
from onnxcomp.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

Indices = npt.NDArray[np.intp]

SUFFIXES = frozenset(
    f".{name}"
    for name in (
        *("jpg", "jpeg", "jpe", "jfif", "png", "bmp", "dib", "gif", "tif", "tiff", "webp"),
        *("ppm", "pgm", "pbm", "pnm", "jp2", "j2k", "avif"),
    )
)
# only decoders of plain pictures; Pillow has others that start programs (EPS) or read rare formats
FORMATS = ("JPEG", "PNG", "BMP", "DIB", "GIF", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF")
MAX_PIXELS = 64_000_000  # 192 MB decoded; a larger one is a decompression bomb, or nothing that a model reads whole
CACHE_BYTES = 1 << 30


class BadImage(Exception):  # noqa: N818  a finding about one file, not an error of the run
    """Why one file cannot be used."""


@dataclass(frozen=True)
class Listing:
    """Image files in a fixed order. `labels`: [n] int64 if class folders gave them; what was guessed and left out."""

    files: tuple[Path, ...]
    labels: npt.NDArray[np.int64] | None = None
    guesses: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class Picture:
    """A decoded file, [height, width, 1 or 3], grey or RGB, and what was done to it."""

    pixels: Bytes
    remarks: tuple[str, ...] = ()


def list_images(folder: Path) -> Listing:
    """Images of a folder, sorted by name; of its subfolders if it has none itself: each of those is a class.

    Classes are numbered from 0 in the order of their names; names that are all whole numbers sort as numbers.

    Raises:
        DataError: no image is there.
    """
    own, others = _images_in(folder, deep=False)
    folders = [f for f in sorted(folder.iterdir()) if f.is_dir() and not f.name.startswith(".")]
    if own:
        problems = [f"{others} other file{'s' * (others > 1)} in {folder.name} left out"] * bool(others)
        if ignored := [f.name for f in folders if _images_in(f, deep=True)[0]]:
            problems.append(f"subfolders left out, since images lie beside them: {', '.join(ignored[:5])}")
        return Listing(tuple(own), problems=tuple(problems))
    found = {f.name: _images_in(f, deep=True)[0] for f in folders}
    found = {name: files for name, files in found.items() if files}
    if not found:
        raise DataError(
            f"the folder {folder.name} holds no images",
            where=str(folder),
            do=f"images end in {' '.join(sorted(SUFFIXES)[:8])} ...; or it holds test_data_set_0/input_0.pb",
        )
    if len(found) == 1:
        ((name, files),) = found.items()
        guess = f"no labels: {name} is the only subfolder; give them with --labels"
        return Listing(tuple(files), guesses=(guess,))
    names = sorted(found, key=int) if all(re.fullmatch(r"\d+", n) for n in found) else sorted(found)
    labels = np.repeat(np.arange(len(names)), [len(found[n]) for n in names])
    shown = ", ".join(f"{i}={n}" for i, n in enumerate(names[:3])) + (", ..." if len(names) > 3 else "")
    guess = f"labels taken from {len(names)} class folders ({shown}): override with --labels"
    return Listing(tuple(f for n in names for f in found[n]), labels, guesses=(guess,))


def decode(path: Path) -> Picture:
    """One picture by the rules at the top.

    Raises:
        BadImage: why it cannot be used.
    """
    from PIL import Image

    try:
        with Image.open(path, formats=_formats()) as image:
            if image.width * image.height > MAX_PIXELS:
                raise BadImage(f"declares {image.width}x{image.height} pixels, more than {MAX_PIXELS:,}")
            image.load()
            return _plain(image)
    except (BadImage, MemoryError):
        raise
    except Exception as error:  # decoders meet hostile bytes with many kinds of errors; each means: this file is bad
        raise BadImage(_reason(error, path)) from error


def _reason(error: Exception, path: Path) -> str:
    """A decoder's words without the file's name, which stands before them."""
    if "cannot identify" in str(error):
        return "not an image"
    return str(error).replace(str(path), path.name) or type(error).__name__


def look_at(files: Sequence[Path], most: int) -> tuple[tuple[int, int] | None, int]:
    """(height, width) if the first `most` images share one, and the most channels among them; reads only headers."""
    from PIL import Image

    sizes, channels = set(), 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `decode` judges the size
        for path in files[:most]:
            try:
                with Image.open(path, formats=_formats()) as image:
                    turned = _orientation(image) >= 5
                    sizes.add((image.width, image.height) if turned else (image.height, image.width))
                    channels = max(channels, 1 if _is_grey(image.mode) else 3)
            except Exception:  # it is named when it is its turn to be decoded
                continue
    return (sizes.pop() if len(sizes) == 1 and most >= len(files) else None), channels


class ImageFiles:
    """The pictures of one input: decoded on demand and kept at the model's size in a temporary file, as bytes."""

    def __init__(self, files: Sequence[Path], pixels: Pixels) -> None:
        self.files = tuple(files)
        self.pixels = pixels
        self.bad: dict[int, str] = {}
        self.remarks: Counter[str] = Counter()
        self._good: dict[int, int | None] = {}  # index -> slot in the cache
        self._cache: IO[bytes] | None = None
        self._slots = 0
        self._slot_bytes = int(np.prod(pixels.canvas_shape))

    def __len__(self) -> int:
        return len(self.files)

    def usable(self, indices: Indices) -> npt.NDArray[np.bool_]:
        """Which of these can be decoded; decodes what was not seen before, in threads."""
        from PIL import Image

        new = [int(i) for i in indices if int(i) not in self._good and int(i) not in self.bad]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `decode` judges the size itself
            with ThreadPoolExecutor(_workers()) as pool:
                for start in range(0, len(new), 32):  # in runs, so that few decoded pictures wait in memory
                    part = new[start : start + 32]
                    for index, found in zip(part, pool.map(self._canvas, part), strict=True):
                        if isinstance(found, BadImage):
                            self.bad[index] = str(found)
                        else:
                            self._good[index] = self._keep(found.pixels)
                            self.remarks.update(found.remarks)
        return np.array([int(i) not in self.bad for i in indices], bool)

    def read(self, indices: Indices) -> npt.NDArray[Any]:
        """The model's input for these pictures, all of them known to be usable.

        Raises:
            DataError: a file has changed since it was first read.
        """
        return self.pixels.tensor(np.stack([self._fetch(int(i)) for i in indices]))

    def _fetch(self, index: int) -> Bytes:
        slot = self._good.get(index)
        if slot is not None and self._cache is not None:
            self._cache.seek(slot * self._slot_bytes)
            data = np.frombuffer(self._cache.read(self._slot_bytes), np.uint8)
            return data.reshape(self.pixels.canvas_shape)
        found = self._canvas(index)
        if isinstance(found, BadImage):
            raise DataError(f"an image cannot be read: {found}", where=str(self.files[index]), do="remove the file")
        return found.pixels

    def _canvas(self, index: int) -> Picture | BadImage:
        try:
            picture = decode(self.files[index])
            high, wide = picture.pixels.shape[:2]
            if 1 in (high, wide) and 1 not in (self.pixels.height, self.pixels.width):
                raise BadImage(
                    f"{high} by {wide} pixels for a model that takes {self.pixels.height} by {self.pixels.width}: "
                    "a row is not stretched to a picture"
                )
            return Picture(self.pixels.canvas(picture.pixels), picture.remarks)
        except BadImage as reason:
            return reason

    def _keep(self, canvas: Bytes) -> int | None:
        """Write to the cache; None when it is full: such pictures are decoded again on each use."""
        if (self._slots + 1) * self._slot_bytes > CACHE_BYTES:
            return None
        try:
            if self._cache is None:
                self._cache = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  lives as long as the data set
            self._cache.seek(self._slots * self._slot_bytes)
            written = self._cache.write(np.ascontiguousarray(canvas).data)
        except OSError:
            return None  # no space in the temporary folder: decoding again is slower, not wrong
        if written != self._slot_bytes:
            return None
        self._slots += 1
        return self._slots - 1


def _images_in(folder: Path, *, deep: bool) -> tuple[list[Path], int]:
    """Sorted image files, and how many other files (hidden ones aside) there are."""
    files = [f for f in (folder.rglob("*") if deep else folder.iterdir()) if not f.name.startswith(".") and f.is_file()]
    images = sorted(f for f in files if f.suffix.lower() in SUFFIXES)
    return images, len(files) - len(images)


@functools.cache
def _formats() -> tuple[str, ...]:
    """Those of FORMATS that this build of Pillow can read."""
    from PIL import Image

    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _is_grey(mode: str) -> bool:
    return mode in ("1", "L", "LA", "La", "I", "F") or mode.startswith("I;16")


def _orientation(image: Image) -> int:
    """EXIF's number, 1 (upright) to 8; a broken EXIF block says nothing, and the picture is still good."""
    try:
        value = image.getexif().get(0x0112, 1)
    except (OSError, ValueError, SyntaxError, KeyError, TypeError, IndexError, struct.error):
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _plain(image: Image) -> Picture:
    """8 bits, grey or RGB, upright."""
    remarks = []
    mode, turn = image.mode, _orientation(image)
    if mode.startswith("I"):
        wide = np.asarray(image).astype(np.int64)
        if wide.min(initial=0) < 0 or wide.max(initial=0) > 65535:
            raise BadImage("holds 32-bit pixels, of which the range is not known: store 8 or 16 bits")
        pixels = narrow(wide)
        remarks.append("16-bit, divided by 257")
    elif mode == "F":
        raise BadImage("holds floating-point pixels, of which the range is not known: store 8 or 16 bits")
    else:
        if mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
            remarks.append("transparent, alpha dropped")
        if mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")
        target = "L" if _is_grey(mode) else "RGB"
        pixels = np.asarray(image if image.mode == target else image.convert(target))
    if turn != 1:
        pixels = _TURNS[turn](pixels)
        remarks.append("turned upright by EXIF")
    return Picture(pixels if pixels.ndim == 3 else pixels[..., None], tuple(remarks))


def narrow(wide: npt.NDArray[Any]) -> Bytes:
    """16-bit levels as 8-bit ones, rounded: 65535 becomes 255."""
    return ((wide.astype(np.uint32) + 128) // 257).astype(np.uint8)


# EXIF orientation -> how [height, width, ...] becomes upright
_TURNS: dict[int, Callable[[Bytes], Bytes]] = {
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.swapaxes(0, 1),
    6: lambda p: p.swapaxes(0, 1)[:, ::-1],
    7: lambda p: p.swapaxes(0, 1)[::-1, ::-1],
    8: lambda p: p.swapaxes(0, 1)[::-1],
}


def _workers() -> int:
    return max(1, min(4, os.cpu_count() or 1))
