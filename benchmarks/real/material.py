"""What do real models read? Pictures, lines of text, speech, recordings and files, as their users have them."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from . import packages

Array = npt.NDArray[Any]
ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Material:
    """What the makers of feeds draw from.

    Attributes:
        folder: where packages are kept.
        photos: a folder of photographs.
        random: seeded anew for each model.
        current: the model that feeds are made for.
    """

    folder: Path
    photos: Path
    random: np.random.Generator
    current: Path = Path()

    def package(self, name: str, version: str) -> Path:
        return packages.fetch(name, version, self.folder)

    def pictures(self, count: int) -> Iterator[Image.Image]:
        """Photographs, each cut anew where more are asked for than there are."""
        files = sorted(path for path in self.photos.iterdir() if path.suffix.lower() in {".jpg", ".jpeg", ".png"})
        if not files:
            raise SystemExit(f"no photographs in {self.photos}: name a folder with --photos")
        for number in range(count):
            with Image.open(files[number % len(files)]) as opened:
                picture = opened.convert("RGB")
            if number >= len(files):
                w, h = picture.size
                left, top = self.random.integers(0, w // 4 + 1), self.random.integers(0, h // 4 + 1)
                picture = picture.crop((left, top, left + 3 * w // 4, top + 3 * h // 4))
            yield picture

    @cached_property
    def english(self) -> list[str]:
        """Words of the licence, in order: prose that stays as it is while pages change."""
        return (ROOT / "LICENSE").read_text(encoding="utf-8").split()

    def words(self, language: str) -> list[str]:
        """The word list of a language (`ru_RU`, `ar_AA`, `zh_CN`) that the package faker holds."""
        place = str(self.package("faker", "37.12.0"))
        if place not in sys.path:
            sys.path.append(place)
        provider = import_module(f"faker.providers.lorem.{language}").Provider
        return [str(word) for word in provider.word_list]

    def sentences(self, language: str, count: int, length: tuple[int, int], joint: str = " ") -> list[str]:
        words = self.words(language)
        return [
            joint.join(words[i] for i in self.random.integers(0, len(words), self.random.integers(*length)))
            for _ in range(count)
        ]

    def phrase(self, most: int) -> str:
        """Some neighbouring English words, at most so many characters."""
        start = int(self.random.integers(0, len(self.english) - 8))
        text = " ".join(self.english[start : start + 8]).encode("ascii", "ignore").decode()
        return text[:most].strip() or "empty"

    def line_picture(self, text: str, height: int, width: int = 0) -> Image.Image:
        """One printed line, dark on light or light on dark, a little blurred and noisy."""
        font = ImageFont.load_default(int(height * self.random.uniform(0.5, 0.72)))
        left, top, right, bottom = font.getbbox(text)
        ink = tuple(int(v) for v in self.random.integers(0, 90, 3))
        paper = tuple(int(v) for v in self.random.integers(170, 256, 3))
        if self.random.random() < 0.3:
            ink, paper = paper, ink
        picture = Image.new("RGB", (max(width, int(right - left) + height // 2), height), paper)
        place = (height // 4 - left, (height - (bottom - top)) // 2 - top)
        ImageDraw.Draw(picture).text(place, text, font=font, fill=ink)
        picture = picture.filter(ImageFilter.GaussianBlur(float(self.random.uniform(0, 0.8))))
        pixels = np.asarray(picture, np.float32) + self.random.normal(0, 4, (*picture.size[::-1], 1))
        return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))

    def captcha(self, text: str, size: tuple[int, int]) -> Image.Image:
        """Characters that stand askew on a coloured ground, crossed by lines."""
        width, height = size
        picture = Image.new("RGB", size, tuple(int(v) for v in self.random.integers(200, 256, 3)))
        draw = ImageDraw.Draw(picture)
        for _ in range(4):
            ends = self.random.integers(0, [width, height, width, height])
            draw.line([int(v) for v in ends], fill=tuple(int(v) for v in self.random.integers(90, 200, 3)))
        step = width / (len(text) + 1)
        for place, letter in enumerate(text):
            tile = Image.new("L", (height, height))
            font = ImageFont.load_default(int(height * self.random.uniform(0.55, 0.7)))
            ImageDraw.Draw(tile).text((height // 4, height // 8), letter, font=font, fill=255)
            tile = tile.rotate(float(self.random.uniform(-18, 18)), Image.Resampling.BILINEAR)
            ink = tuple(int(v) for v in self.random.integers(0, 120, 3))
            picture.paste(ink, (int(step * (place + 0.5) - height / 4), 0), tile)
        return picture

    def page(self, size: tuple[int, int]) -> Image.Image:
        """A photograph with printed lines on it, as scene text stands."""
        picture = next(iter(self.pictures(1))).resize(size)
        for _ in range(int(self.random.integers(2, 7))):
            line = self.line_picture(self.phrase(24), int(self.random.integers(18, 48)))
            room = [max(1, a - b) for a, b in zip(size, line.size, strict=True)]
            picture.paste(line, tuple(int(v) for v in self.random.integers(0, room)))
        return picture

    def speech(self, seconds: float, rate: int) -> Array:
        """Spoken English with pauses and noise: float32 [samples] within -1 to 1."""
        speak = _speaker(self.package("espeakng-loader", "0.2.4") / "espeakng_loader")
        parts: list[Array] = []
        while sum(map(len, parts)) < seconds * 22050:
            loud = float(self.random.uniform(0.2, 0.9))
            parts.append(speak(self.phrase(60)) * np.float32(loud))
            parts.append(np.zeros(int(22050 * self.random.uniform(0.3, 1.5)), np.float32))
        sound = np.concatenate(parts)
        sound = sound + self.random.normal(0, 10 ** self.random.uniform(-4, -2), len(sound))
        at = np.arange(int(seconds * rate)) * (22050 / rate)
        return np.interp(at, np.arange(len(sound)), sound).astype(np.float32)

    def music(self, seconds: float, rate: int) -> Array:
        """Notes of several voices with overtones and decay: float32 [samples]."""
        time = np.arange(int(seconds * rate)) / rate
        sound = self.random.normal(0, 0.002, len(time))
        for _ in range(int(6 * seconds)):
            start, pitch = self.random.uniform(0, seconds), 110 * 2 ** (self.random.integers(0, 40) / 12)
            here = slice(*np.searchsorted(time, [start, start + 3]))  # what follows is below -78 dB
            after = time[here] - start
            envelope = np.exp(-3 * after) * self.random.uniform(0.03, 0.15)
            sound[here] += sum(envelope / k * np.sin(2 * np.pi * k * pitch * after) for k in (1, 2, 3, 4))
        return sound.astype(np.float32)

    def eeg(self, seconds: float, rate: int) -> Array:
        """Pink noise with alpha waves and bursts of 12 to 15 Hz, in standard deviations: float32 [samples]."""
        count = int(seconds * rate)
        spectrum = np.fft.rfft(self.random.normal(size=count)) / np.sqrt(
            np.maximum(np.fft.rfftfreq(count, 1 / rate), 0.5)
        )
        wave, time = np.fft.irfft(spectrum, count), np.arange(count) / rate
        wave /= wave.std()
        wave += self.random.uniform(0, 0.8) * np.sin(2 * np.pi * 10 * time + self.random.uniform(0, 6))
        for _ in range(int(self.random.integers(0, 4))):
            bell = np.exp(-0.5 * ((time - self.random.uniform(0, seconds)) / 0.3) ** 2)
            wave += self.random.uniform(1, 3) * bell * np.sin(2 * np.pi * self.random.uniform(12, 15) * time)
        return ((wave - wave.mean()) / wave.std()).astype(np.float32)

    def files(self, count: int) -> list[bytes]:
        """Contents of files of many kinds: what Python's own installation and this project hold."""
        kinds: dict[str, list[Path]] = {}
        for top in (ROOT, Path(sys.base_prefix) / "lib"):
            for path in sorted(top.rglob("*")):
                if (
                    path.is_file()
                    and path.suffix
                    and len(kinds.setdefault(path.suffix, [])) < 40
                    and ".git" not in path.parts
                ):
                    kinds[path.suffix].append(path)
        rows = [path for group in kinds.values() for path in group]
        picked = self.random.permutation(len(rows))[:count]
        return [rows[i].read_bytes()[: 1 << 20] for i in picked]


@lru_cache(maxsize=1)  # the library may be started once in a process
def _speaker(place: Path) -> Callable[[str], Array]:
    """espeak-ng, by its C interface: text -> float32 [samples] at 22,050 Hz."""
    library = ctypes.CDLL(str(place / "libespeak-ng.so"))
    rate = library.espeak_Initialize(2, 0, str(place / "espeak-ng-data").encode(), 0)  # 2: synchronous, to a callback
    if rate != 22050:
        raise SystemExit(f"espeak-ng speaks at {rate} Hz, 22,050 expected")
    library.espeak_SetVoiceByName(b"en")
    heard: list[Array] = []

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
    def take(wave: Any, count: int, _: Any) -> int:
        if count:
            heard.append(np.ctypeslib.as_array(wave, (count,)).copy())
        return 0

    library.espeak_SetSynthCallback(take)

    def speak(text: str) -> Array:
        heard.clear()
        said = text.encode()
        library.espeak_Synth(said, len(said) + 1, 0, 0, 0, 1, None, None)
        library.espeak_Synchronize()
        return np.concatenate([*heard, np.zeros(1, np.int16)]).astype(np.float32) / np.float32(32768)

    speak.callback = take  # type: ignore[attr-defined]  # the library keeps only a pointer to it
    return speak
