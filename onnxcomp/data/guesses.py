"""How does preprocessing become concrete: what is taken from the model, and what is guessed and said?"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from onnxcomp.data.inputs import Dim, InputSpec
from onnxcomp.data.pixels import Color, Layout, Pixels, Resize
from onnxcomp.data.preprocess import Preprocess, flag
from onnxcomp.errors import DataError, UsageError

CHANNELS = (1, 3, 4)


@dataclass(frozen=True)
class RawImages:
    """What is known of pictures before they are read: `size` is (height, width) if all share one."""

    size: tuple[int, int] | None
    channels: int


def resolve(
    preprocess: Preprocess, spec: InputSpec, raw: RawImages, metadata: Mapping[str, str] | None = None
) -> tuple[Pixels, tuple[str, ...]]:
    """Make a preprocessing concrete for one input.

    What is not given is taken from the input's shape, then from metadata that exporters write (the `Image.*` keys of
    the ONNX metadata standard, Ultralytics' keys), else guessed.

    Returns:
        The preprocessing, and a line for every guess with the flag that overrides it.

    Raises:
        DataError: the input cannot hold a picture.
        UsageError: flags that contradict the model's shape, or each other.
    """
    hints = _hints(metadata or {})
    guesses: list[str] = []

    def choose(name: str, fallback: Any, shown: str, why: str) -> Any:
        given = getattr(preprocess, name)
        if given is not None:
            return given
        if name in hints:
            value, source = hints[name]
            guesses.append(f"{_words(name)} {_show(value)} taken from the model's metadata ({source}): {_over(name)}")
            return value
        guesses.append(f"{_words(name)} {shown} guessed{why}: {_over(name)}")
        return fallback

    layout, unclear = layout_of(spec, preprocess.layout, raw)
    if unclear:
        guesses.append(f"layout {layout} guessed {unclear}: override with --layout")
    elif not preprocess.layout:
        guesses.append(f"layout {layout} taken from the input's shape {spec.dims}: override with --layout")
    channels, height, width = _dims(spec, layout, raw, hints, guesses)
    color = _color(preprocess, spec, channels, raw, choose)
    zero_point = 128.0 if spec.dtype.name == "int8" else 0.0
    scale = choose("scale", *_default_scale(spec))
    mean = choose("mean", (zero_point,), f"{zero_point:g}", f" from the input's type {spec.dtype}" * bool(zero_point))
    std = choose("std", (1.0,), "1", "")
    same = raw.size == (height, width)
    resize = "stretch" if same and not preprocess.resize else choose("resize", "stretch", "stretch", "")
    pad = 0 if resize != "letterbox" or same else choose("pad_value", 114, "114", ", the usual grey")
    pixels = Pixels(
        spec=spec,
        layout=layout,
        channels=channels,
        height=height,
        width=width,
        color=color,
        resize=cast(Resize, resize),
        pad_value=pad,
        scale=scale,
        mean=_per_channel("mean", mean, channels, spec),
        std=_per_channel("std", std, channels, spec),
    )
    _ = pixels.table  # a scale that the model's dtype cannot hold is an error now, not in the middle of the work
    return pixels, tuple(guesses)


def layout_of(spec: InputSpec, given: str | None, raw: RawImages) -> tuple[Layout, str]:
    """Where the input has its channels, and why that is unclear (empty when it is not).

    Raises:
        DataError: the input cannot hold a picture.
    """
    shape = spec.shape
    if shape is None:
        return cast(Layout, given or "nchw"), "" if given else "because the model does not say its input's rank"
    if len(shape) == 2:
        clear = bool(given) or raw.channels == 1
        return ("flat-nhwc" if given == "nhwc" else "flat-nchw"), "" if clear else "for rows of numbers"
    if len(shape) == 3:
        return _layout_of_three(shape, given), ""
    if len(shape) != 4:
        raise DataError(
            f"the data are images, and the input {spec} cannot hold them",
            where=f"the input {spec.name}",
            do="give arrays under the names of the model's inputs (.npz), or module.py:function that yields feeds",
        )
    if given:
        return cast(Layout, given), ""
    for usual in ((raw.channels,), (1, 3), (4,)):
        first, last = shape[1] in usual, shape[3] in usual
        if first != last:
            return ("nchw" if first else "nhwc"), ""
    if isinstance(shape[1], int) != isinstance(shape[3], int):
        # no usual number of channels; the only size that the model fixes is the channels'
        return ("nchw" if isinstance(shape[1], int) else "nhwc"), f"from the input {spec}"
    return "nchw", f"from the input {spec}"


def _layout_of_three(shape: tuple[Dim, ...], given: str | None) -> Layout:
    """A picture without a batch axis, or grey pictures without a channel axis."""
    if given:
        return "hwc" if given == "nhwc" else "chw"
    if shape[2] in CHANNELS:
        return "hwc"
    return "chw" if shape[0] in CHANNELS else "nhw"


def _dims(
    spec: InputSpec, layout: Layout, raw: RawImages, hints: Mapping[str, tuple[Any, str]], guesses: list[str]
) -> tuple[int, int, int]:
    """Channels, height and width of the tensor."""
    if spec.shape is None or layout.startswith("flat"):
        channels, height, width = None, None, None
    else:
        axes = {"nchw": (1, 2, 3), "nhwc": (3, 1, 2), "chw": (0, 1, 2), "hwc": (2, 0, 1), "nhw": (None, 1, 2)}[layout]
        channels, height, width = (None if axis is None else spec.fixed(axis) for axis in axes)
    if channels is None:
        channels = 1 if layout == "nhw" or raw.channels < 3 else 3 if raw.channels == 4 else raw.channels
    if layout.startswith("flat"):
        return _flat_dims(spec, channels, raw)
    if height and width:
        return channels, height, width
    free = f"{'x'.join(str(d) for d in (height or 'H', width or 'W'))} of the input {spec}"
    size, why = hints.get("size", (raw.size, "the data"))
    if size is None:
        size, why = (224, 224), "nothing: the images have different sizes"
    height, width = height or size[0], width or size[1]
    guesses.append(f"size {height}x{width} for {free} guessed from {why}: override with --shape {spec.name}=...")
    return channels, height, width


def _flat_dims(spec: InputSpec, channels: int, raw: RawImages) -> tuple[int, int, int]:
    length = spec.fixed(1)
    if raw.size and length in (None, channels * raw.size[0] * raw.size[1]):
        return channels, *raw.size
    for count in (channels, 1, 3):
        side = math.isqrt((length or 0) // count)
        if length and count * side * side == length:
            return count, side, side
    raise DataError(
        f"the images do not fill the input {spec}",
        where=f"the input {spec.name}",
        do="give an array under the input's own name, of its type and rank",
    )


def _color(preprocess: Preprocess, spec: InputSpec, channels: int, raw: RawImages, choose: Callable[..., Any]) -> Color:
    if channels == 1:
        if preprocess.color in ("rgb", "bgr"):
            raise UsageError(
                f"the model has one channel, --color {preprocess.color} needs three",
                where=f"the input {spec}",
                do="leave --color out",
            )
        return "gray"
    if channels == 3:
        return cast(Color, choose("color", "rgb", "rgb", ""))
    if channels == raw.channels:
        return "as stored"
    raise DataError(
        f"the model takes {channels} channels and the images have {raw.channels}",
        where=f"the input {spec}",
        do="give an array under the input's own name, of its type and rank; --layout says where the channels are",
    )


def _default_scale(spec: InputSpec) -> tuple[float, str, str]:
    if spec.dtype.kind in "iu":
        return 1.0, "1", f" from the input's type {spec.dtype}"
    return 1 / 255, "1/255", " from uint8 images"


def _per_channel(name: str, values: tuple[float, ...], channels: int, spec: InputSpec) -> tuple[float, ...]:
    if len(values) not in (1, channels):
        raise UsageError(
            f"{flag(name)} has {len(values)} numbers and the model {channels} channel{'s' * (channels > 1)}",
            where=f"the input {spec}",
            do="give one number, or one a channel",
        )
    return values if len(values) == channels else values * channels


# https://github.com/onnx/onnx/blob/main/docs/MetadataProps.md
_FORMATS = {"Gray8": "gray", "Rgb8": "rgb", "Bgr8": "bgr"}
_RANGES: dict[str, tuple[float, float]] = {  # name -> (scale, mean)
    "NominalRange_0_255": (1.0, 0.0),
    "Normalized_0_1": (1 / 255, 0.0),
    "Normalized_1_1": (1 / 127.5, 1.0),
    "NominalRange_16_235": (219 / 255, -16.0),
}


def _hints(metadata: Mapping[str, str]) -> dict[str, tuple[Any, str]]:
    """What the model's metadata say: option -> (value, the key it comes from)."""
    hints: dict[str, tuple[Any, str]] = {}
    if metadata.get("author") == "Ultralytics" and "stride" in metadata:
        hints["scale"] = (1 / 255, "Ultralytics")
        hints["color"] = ("rgb", "Ultralytics")
        hints["resize"] = ("center-crop" if metadata.get("task") == "classify" else "letterbox", "Ultralytics task")
        if size := _size(metadata.get("imgsz", "")):
            hints["size"] = (size, "the model's metadata (Ultralytics imgsz)")
    if color := _FORMATS.get(metadata.get("Image.BitmapPixelFormat", "")):
        hints["color"] = (color, "Image.BitmapPixelFormat")
    if pair := _RANGES.get(metadata.get("Image.NominalPixelRange", "")):
        hints["scale"], hints["mean"] = ((value, "Image.NominalPixelRange") for value in (pair[0], (pair[1],)))
    return hints


def _size(text: str) -> tuple[int, int] | None:
    """Height and width from a text like `[640, 640]`."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None  # a hint that cannot be read is no hint
    pair = value if isinstance(value, list | tuple) and len(value) == 2 else (value, value)
    return (pair[0], pair[1]) if all(isinstance(v, int) and 0 < v <= 65536 for v in pair) else None


def _over(name: str) -> str:
    return f"override with {flag(name)}"


def _words(name: str) -> str:
    return {"color": "colour order", "pad_value": "pad value"}.get(name, name)


def _show(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(_show(v) for v in value)
    if isinstance(value, float):
        return "1/255" if value == 1 / 255 else f"{value:g}"
    return str(value)
