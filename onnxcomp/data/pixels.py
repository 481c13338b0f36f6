"""How do 8-bit pictures become the tensor that the model takes? Colour, size, (pixel*scale - mean)/std, layout."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from onnxcomp.data.inputs import InputSpec
from onnxcomp.errors import UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

Bytes = npt.NDArray[np.uint8]
Color = Literal["rgb", "bgr", "gray", "as stored"]
Resize = Literal["stretch", "letterbox", "center-crop"]
# how an input without the usual four dimensions holds a picture: no batch, no channel, or one row of numbers
Layout = Literal["nchw", "nhwc", "chw", "hwc", "nhw", "flat-nchw", "flat-nhwc"]


@dataclass(frozen=True)
class Pixels:
    """One concrete preprocessing. `mean` and `std` have one entry a channel, in the order of the model's channels."""

    spec: InputSpec
    layout: Layout
    channels: int
    height: int
    width: int
    color: Color
    resize: Resize
    pad_value: int
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def batched(self) -> bool:
        """Whether axis 0 of the tensor counts samples."""
        return self.layout not in ("chw", "hwc")

    @property
    def canvas_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of a picture that is ready but for the arithmetic."""
        return self.height, self.width, self.channels

    @cached_property
    def table(self) -> npt.NDArray[Any]:
        """The tensor's value of every pixel value, [channels, 256], in the model's dtype.

        All arithmetic happens here, in double precision, so that each value is rounded once.

        Raises:
            UsageError: a value does not fit the model's dtype.
        """
        levels = np.arange(256, dtype=np.float64) * self.scale
        values = (levels - np.array(self.mean)[:, None]) / np.array(self.std)[:, None]
        dtype = self.spec.dtype
        if dtype.kind in "iu":
            values = np.rint(values)
            limits = np.iinfo(dtype)
            fits = values.min() >= limits.min and values.max() <= limits.max
        else:
            with np.errstate(over="ignore"):
                fits = bool(np.isfinite(values.astype(dtype).astype(np.float64)).all())
        if not fits:
            raise UsageError(
                f"pixels become {values.min():g}..{values.max():g}, which {dtype} cannot hold",
                where=f"the input {self.spec}",
                do="correct --scale, --mean and --std: the meaning is (pixel*scale - mean)/std",
            )
        table: npt.NDArray[Any] = values.astype(dtype)
        return table

    def canvas(self, picture: Bytes) -> Bytes:
        """One picture [h, w, c] in RGB or grey -> [height, width, channels] in the model's colours and size."""
        return self._colored(self._sized(self._counted(picture)))

    def canvases(self, pictures: Bytes) -> Bytes:
        """Pictures [n, h, w, c] of one size -> [n, height, width, channels]; fast if nothing is resized."""
        pictures = self._counted(pictures)
        if pictures.shape[1:3] != (self.height, self.width):
            pictures = np.stack([self._sized(p) for p in pictures]) if len(pictures) else self._empty()
        return self._colored(pictures)

    def tensor(self, canvases: Bytes) -> npt.NDArray[Any]:
        """Canvases [n, height, width, channels] -> the model's input; n must be 1 where the input has no batch axis."""
        n = len(canvases)
        first = self.layout in ("nchw", "chw", "flat-nchw", "nhw")
        shape = (n, self.channels, self.height, self.width) if first else (n, self.height, self.width, self.channels)
        out = np.empty(shape, self.table.dtype)
        for channel in range(self.channels):
            plane = out[:, channel] if first else out[..., channel]
            # 8-bit indices are always in range: "clip" only spares the copy that "raise" makes
            np.take(self.table[channel], canvases[..., channel], out=plane, mode="clip")
        if self.layout == "nhw":
            return out[:, 0]
        if self.layout.startswith("flat"):
            return out.reshape(n, -1)
        return out if self.batched else out[0]

    def restore(self, tensor: npt.NDArray[Any]) -> Bytes:
        """The inverse of `tensor` for people to look at: [n, height, width, 3 or 1], RGB or grey, 0..255."""
        values = np.asarray(tensor, np.float64)
        if self.layout in ("nchw", "chw", "flat-nchw", "nhw"):
            values = values.reshape(-1, self.channels, self.height, self.width).transpose(0, 2, 3, 1)
        else:
            values = values.reshape(-1, self.height, self.width, self.channels)
        values = (values * np.array(self.std) + np.array(self.mean)) / self.scale
        pixels: Bytes = np.clip(np.rint(values), 0, 255).astype(np.uint8)
        if self.color == "bgr":
            pixels = pixels[..., ::-1]
        return pixels if self.channels in (1, 3) else pixels[..., :1]

    def describe(self) -> str:
        """The preprocessing in one line, for reports."""
        mean, std = (v if len(set(v)) > 1 else v[:1] for v in (self.mean, self.std))
        return (
            f"{self.resize} to {self.height}x{self.width} (height x width), {self.color}, {self.layout}, "
            f"(pixel*{self.scale:g} - {','.join(f'{v:g}' for v in mean)})/{','.join(f'{v:g}' for v in std)}"
            + (f", padded with {self.pad_value}" if self.resize == "letterbox" else "")
        )

    def _counted(self, pictures: Bytes) -> Bytes:
        """Grey <-> colour, alpha dropped: the last axis gets as many channels as the model has."""
        own = pictures.shape[-1]
        if self.color == "as stored":
            return pictures
        if own in (2, 4):
            pictures, own = pictures[..., :-1], own - 1
        if own == 3 and self.channels == 1:
            return _luma(pictures)
        if own == 1 and self.channels == 3:
            return np.repeat(pictures, 3, axis=-1)
        if own == 3 and self.color == "gray":
            return np.repeat(_luma(pictures), 3, axis=-1)
        return pictures

    def _colored(self, canvases: Bytes) -> Bytes:
        return canvases[..., ::-1] if self.color == "bgr" else canvases

    def _empty(self) -> Bytes:
        return np.empty((0, *self.canvas_shape), np.uint8)

    def _sized(self, picture: Bytes) -> Bytes:
        if picture.shape[:2] == (self.height, self.width):
            return picture
        high, wide = picture.shape[:2]
        if self.resize == "letterbox":
            ratio = min(self.width / wide, self.height / high)
            # truncated, as the reference implementation of YOLOX does
            w, h = max(1, int(wide * ratio)), max(1, int(high * ratio))
            out = np.full(self.canvas_shape, self.pad_value, np.uint8)
            out[:h, :w] = _resampled(picture, w, h)
            return out
        if self.resize == "center-crop":
            ratio = max(self.width / wide, self.height / high)
            w, h = max(self.width, round(wide * ratio)), max(self.height, round(high * ratio))
            left, top = (w - self.width) // 2, (h - self.height) // 2
            return _resampled(picture, w, h)[top : top + self.height, left : left + self.width]
        return _resampled(picture, self.width, self.height)


def _resampled(picture: Bytes, width: int, height: int) -> Bytes:
    """Bilinear with antialiasing, Pillow's; more than three channels go one by one."""
    from PIL import Image

    if (height, width) == picture.shape[:2]:
        return picture
    if picture.shape[2] == 3:
        return np.asarray(_resize(Image.fromarray(np.ascontiguousarray(picture)), width, height))
    planes = [Image.fromarray(np.ascontiguousarray(picture[..., c])) for c in range(picture.shape[2])]
    return np.stack([np.asarray(_resize(p, width, height)) for p in planes], axis=-1)


def _resize(image: Image, width: int, height: int) -> Image:
    from PIL import Image as Pillow

    return image.resize((width, height), Pillow.Resampling.BILINEAR)


def _luma(pictures: Bytes) -> Bytes:
    """ITU-R 601-2 luma in Pillow's own fixed-point form, so that arrays and files give equal bytes."""
    r, g, b = (pictures[..., c].astype(np.uint32) for c in range(3))
    return ((r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16).astype(np.uint8)[..., None]
