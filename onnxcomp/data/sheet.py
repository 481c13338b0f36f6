"""What do the pictures look like that the model sees? A contact sheet, drawn from the tensors themselves."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxcomp.data.inputs import InputSpec
from onnxcomp.data.pixels import Bytes, Pixels

SMALLEST, LARGEST = 96, 224  # shorter and longer side of a tile in pixels
TINY = 48  # a picture of so many pixels is shown pixel by pixel
COLUMNS, GAP, LINE = 6, 8, 15
INK, FAINT, WRONG, PAPER = (30, 30, 30), (110, 110, 110), (190, 20, 20), (250, 250, 250)


@dataclass(frozen=True)
class Tile:
    """One picture, [height, width, 1 or 3], and a caption; `wrong` draws the caption in red."""

    picture: Bytes
    caption: str = ""
    wrong: bool = False


def viewable(tensor: npt.NDArray[Any], spec: InputSpec, pixels: Pixels | None) -> Bytes | None:
    """A batch as the model gets it -> [n, height, width, 1 or 3] to look at; None if it holds no pictures.

    Preprocessing that is known is undone, so that a value a pixel cannot have is clipped. Model-ready tensors are
    stretched from their own lowest to their highest value, and read in the order of channels that they have.
    """
    if pixels is not None:
        return pixels.restore(tensor)
    if spec.rank != 4 or tensor.ndim != 4 or min(tensor.shape[2], max(tensor.shape[1], tensor.shape[3])) < 8:
        return None
    if tensor.shape[1] in (1, 3):
        tensor = tensor.transpose(0, 2, 3, 1)
    elif tensor.shape[3] not in (1, 3):
        return None
    values = tensor.astype(np.float64)
    low, high = float(values.min()), float(values.max())
    shown: Bytes = np.rint((values - low) * (255 / max(high - low, 1e-12))).astype(np.uint8)
    return shown


def thumbnail(picture: Bytes) -> str:
    """[h, w, 1 or 3] -> a `data:` address of at most `SMALLEST` pixels: PNG where it is tiny already, else JPEG."""
    from PIL import Image

    tiny = max(picture.shape[:2]) <= TINY
    image = Image.fromarray(np.ascontiguousarray(picture[..., 0] if picture.shape[2] == 1 else picture))
    image.thumbnail((SMALLEST, SMALLEST), Image.Resampling.BILINEAR)
    file = io.BytesIO()
    image.save(file, "PNG" if tiny else "JPEG", **({} if tiny else {"quality": 80}))
    return f"data:image/{'png' if tiny else 'jpeg'};base64,{base64.b64encode(file.getvalue()).decode()}"


def contact_sheet(tiles: Sequence[Tile], title: Sequence[str]) -> bytes:
    """A PNG of the tiles in a grid under some lines of text."""
    from PIL import Image, ImageDraw

    pictures = [_scaled(tile.picture) for tile in tiles]
    wide = max(p.shape[1] for p in pictures) + GAP
    high = max(p.shape[0] for p in pictures) + GAP + LINE
    columns = min(COLUMNS, len(tiles))
    rows = -(-len(tiles) // columns)
    top = GAP + LINE * len(title) + GAP
    width = max(columns * wide + GAP, 480)
    sheet = Image.new("RGB", (width, top + rows * high + GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, line in enumerate(title):
        draw.text((GAP, GAP + number * LINE), _fitting(draw, line, width - 2 * GAP), INK if number == 0 else FAINT)
    for number, (tile, picture) in enumerate(zip(tiles, pictures, strict=True)):
        x, y = GAP + number % columns * wide, top + number // columns * high
        sheet.paste(Image.fromarray(np.ascontiguousarray(picture)), (x, y))
        caption = _fitting(draw, tile.caption, wide - GAP)
        draw.text((x, y + picture.shape[0] + 1), caption, WRONG if tile.wrong else FAINT)
    file = io.BytesIO()
    sheet.save(file, "PNG")
    return file.getvalue()


def _scaled(picture: Bytes) -> Bytes:
    """[h, w, 1 or 3] -> [h', w', 3]: small ones enlarged by whole factors, so that each pixel stays one square."""
    from PIL import Image

    if picture.shape[2] == 1:
        picture = np.repeat(picture, 3, axis=2)
    high, wide = picture.shape[:2]
    factor = -(-SMALLEST // min(high, wide))
    if factor > 1 and max(high, wide) * factor <= 2 * LARGEST:
        return picture.repeat(factor, axis=0).repeat(factor, axis=1)
    if max(high, wide) <= LARGEST:
        return picture
    ratio = LARGEST / max(high, wide)
    size = max(1, round(wide * ratio)), max(1, round(high * ratio))
    return np.asarray(Image.fromarray(np.ascontiguousarray(picture)).resize(size, Image.Resampling.BILINEAR))


def _fitting(draw: Any, text: str, width: int) -> str:
    """The text, cut with an ellipsis where it is too wide; other than ASCII is replaced, as the built-in font needs.

    A name may hold line breaks, and what else no letter stands for: each is one mark.
    """
    text = "".join(letter if " " <= letter <= "~" else "?" for letter in text)
    if draw.textlength(text) <= width:
        return text
    while text and draw.textlength(text + "...") > width:
        text = text[:-1]
    return text + "..."
