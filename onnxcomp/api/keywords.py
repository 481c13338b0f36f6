"""Which keywords do the library's functions take? Made by docs/make_keywords.py from the settings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypedDict

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from onnxcomp.api.models import Model
    from onnxcomp.data.labels import LabelSource
    from onnxcomp.data.metric import MetricSource
    from onnxcomp.data.open import Source
    from onnxcomp.manager.pipeline import Passes


class OptimizeOptions(TypedDict, total=False):
    """Keywords of `onnxcomp.optimize`; all may be left out."""

    output: str | Path | None
    """The result; NAME.opt.onnx if not given."""
    passes: Passes | None
    """The passes to run, as a spec: name{option=value,...},name; `onnxcomp passes` lists them."""
    recipe: str | None
    """A named pipeline, or an aim that is reached step by step: smallest, fastest, balanced, safest; with neither
    passes nor recipe several are tried.
    """
    plan: str | Path | None
    """A plan to follow, which form each layer takes: the file that mixed-precision wrote beside its report, edited."""
    teacher: Model | None
    """The model that distill learns from; the model itself if not given."""
    data: Source | None
    """Samples: .npz, .npy, a folder of images or of test_data_set_N, or module.py:function that yields dicts."""
    labels: LabelSource | None
    """Labels of data, .npy or .csv, where it carries none."""
    eval_data: Source | None
    """Samples that judge; without it a part of data does."""
    eval_labels: LabelSource | None
    """Labels of eval_data, .npy or .csv."""
    metric: MetricSource | None
    """The task's metric, (outputs, labels) -> number, :min where lower is better; top-1 where labels are given."""
    task: str | None
    """What the outputs are: classes, decisions, tokens, pixels, ctc, boxes, embeddings, regression or state; or
    OUTPUT=KIND,...; guessed if not given.
    """
    calib_samples: int
    """Samples for calibration; at most half of data."""
    eval_samples: int | None
    """Judge on so many samples; if not given on all, but a run without eval-data ends once its limits are decided."""
    shapes: Mapping[str, Sequence[int]]
    """Sizes for an input's free dimensions, by input."""
    states: Mapping[str, str]
    """Of a stateful model: this output is this input of the next step; guessed from names if not given."""
    allow_random: bool
    """Calibrate on made-up samples if there is no data."""
    target: Literal["cpu", "arm64", "cuda", "tensorrt", "openvino"]
    """Where the model will run."""
    objective: Literal["latency", "size", "accuracy", "macs"]
    """What should get better."""
    report: str | Path | None
    """The report as JSON; NAME.opt.json beside the model if not given."""
    html: str | Path | None
    """The report as a page for people, a file of its own."""
    seed: int
    """For the split and everything drawn at random."""
    threads: int
    """Threads for calibration and verification, 0: every core; latency is measured with one."""
    memory: int | str | None
    """What the run may take beside the models: 4GB, 25% of the machine's; 2 GiB, and never more than half of it."""
    bench: bool
    """Measure latency."""
    cost_table: str | Path | None
    """Times that decide placements and recipes: replayed, new ones added; the user's cache if not given."""
    bench_seconds: float
    """How long to measure the final latency, in seconds."""
    verify: bool
    """Run the result against the original."""
    keep_initializer_inputs: bool
    """Leave weights listed as graph inputs among the inputs."""
    scale: float | None
    """Factor for pixels of 0..255, before mean and std."""
    mean: float | Sequence[float] | None
    """Subtracted after scaling; one number, or one a channel in the model's order, comma-separated."""
    std: float | Sequence[float] | None
    """Divided by at the end; like --mean."""
    layout: Literal["nchw", "nhwc"] | None
    """Where the model has its channels."""
    color: Literal["rgb", "bgr", "gray"] | None
    """Order of the model's channels."""
    resize: Literal["stretch", "letterbox", "center-crop"] | None
    """Stretch: to the model's size; letterbox: aspect kept, top-left, the rest padded; center-crop: the shorter
    side to the model's size, the middle cut out. Bilinear.
    """
    pad_value: int | None
    """Pixel value (0..255) that letterbox pads with."""
    max_drop: float | None
    """Most the metric may lose, absolute: 0.01 is one point."""
    min_sqnr: float | None
    """Least SQNR of any part of an output, in dB."""
    min_agreement: float | None
    """Least share of decisions that are the original's: classes, boxes, texts; 0.98, see --task."""
    max_size: int | str | None
    """Largest result: bytes, 4MB, or a share such as 30%."""
    min_speedup: float | None
    """Least speed-up, before/after."""


class DistillOptions(TypedDict, total=False):
    """Keywords of `onnxcomp.distill`; all may be left out."""

    output: str | Path | None
    """The result; NAME.opt.onnx if not given."""
    plan: str | Path | None
    """A plan to follow, which form each layer takes: the file that mixed-precision wrote beside its report, edited."""
    teacher: Model | None
    """The model that distill learns from; the model itself if not given."""
    data: Source | None
    """Samples: .npz, .npy, a folder of images or of test_data_set_N, or module.py:function that yields dicts."""
    labels: LabelSource | None
    """Labels of data, .npy or .csv, where it carries none."""
    eval_data: Source | None
    """Samples that judge; without it a part of data does."""
    eval_labels: LabelSource | None
    """Labels of eval_data, .npy or .csv."""
    metric: MetricSource | None
    """The task's metric, (outputs, labels) -> number, :min where lower is better; top-1 where labels are given."""
    task: str | None
    """What the outputs are: classes, decisions, tokens, pixels, ctc, boxes, embeddings, regression or state; or
    OUTPUT=KIND,...; guessed if not given.
    """
    calib_samples: int
    """Samples for calibration; at most half of data."""
    eval_samples: int | None
    """Judge on so many samples; if not given on all, but a run without eval-data ends once its limits are decided."""
    shapes: Mapping[str, Sequence[int]]
    """Sizes for an input's free dimensions, by input."""
    states: Mapping[str, str]
    """Of a stateful model: this output is this input of the next step; guessed from names if not given."""
    allow_random: bool
    """Calibrate on made-up samples if there is no data."""
    target: Literal["cpu", "arm64", "cuda", "tensorrt", "openvino"]
    """Where the model will run."""
    report: str | Path | None
    """The report as JSON; NAME.opt.json beside the model if not given."""
    html: str | Path | None
    """The report as a page for people, a file of its own."""
    seed: int
    """For the split and everything drawn at random."""
    threads: int
    """Threads for calibration and verification, 0: every core; latency is measured with one."""
    memory: int | str | None
    """What the run may take beside the models: 4GB, 25% of the machine's; 2 GiB, and never more than half of it."""
    bench: bool
    """Measure latency."""
    bench_seconds: float
    """How long to measure the final latency, in seconds."""
    scale: float | None
    """Factor for pixels of 0..255, before mean and std."""
    mean: float | Sequence[float] | None
    """Subtracted after scaling; one number, or one a channel in the model's order, comma-separated."""
    std: float | Sequence[float] | None
    """Divided by at the end; like --mean."""
    layout: Literal["nchw", "nhwc"] | None
    """Where the model has its channels."""
    color: Literal["rgb", "bgr", "gray"] | None
    """Order of the model's channels."""
    resize: Literal["stretch", "letterbox", "center-crop"] | None
    """Stretch: to the model's size; letterbox: aspect kept, top-left, the rest padded; center-crop: the shorter
    side to the model's size, the middle cut out. Bilinear.
    """
    pad_value: int | None
    """Pixel value (0..255) that letterbox pads with."""
    max_drop: float | None
    """Most the metric may lose, absolute: 0.01 is one point."""
    min_sqnr: float | None
    """Least SQNR of any part of an output, in dB."""
    min_agreement: float | None
    """Least share of decisions that are the original's: classes, boxes, texts; 0.98, see --task."""
    max_size: int | str | None
    """Largest result: bytes, 4MB, or a share such as 30%."""
    min_speedup: float | None
    """Least speed-up, before/after."""
    include: Sequence[str]
    """Globs of node or weight names to work on; empty means all."""
    exclude: Sequence[str]
    """Globs of node or weight names to leave alone."""
    epochs: float | None
    """Times every training sample is seen; 1 where steps is not given."""
    steps: int | None
    """Batches to train on, in place of epochs."""
    batch: int
    """Samples a step; fixed by the model where its inputs are."""
    lr: float | None
    """Learning rate after warm-up; 0.005, and smaller ones where that brings nothing."""
    scaled: bool
    """Lr is a share of each tensor's own RMS, with adamw; false: the same step for all."""
    optimizer: Literal["adamw", "sgd"]
    """AdamW, or SGD with momentum."""
    momentum: float
    """Of sgd."""
    weight_decay: float
    """Decoupled L2, as a share of lr; biases and scales are spared."""
    warmup: float
    """Share of the steps in which the learning rate rises."""
    schedule: Literal["cosine", "linear", "constant"]
    """How the learning rate falls afterwards."""
    clip_norm: float
    """Largest norm of the whole gradient; 0: any."""
    looks: int
    """How often the held-out loss is looked at."""
    patience: int
    """Looks without improvement that end the training; 0: never."""
    keep_best: bool
    """Keep the weights with the lowest held-out loss; the last ones where l1 or group_lasso pull."""
    loss: Literal["auto", "kl", "mse", "cosine"]
    """Soft targets, mean squared error over energy, or cosine; auto: as the outputs look."""
    temperature: float
    """That soft targets are softened by."""
    alpha: float
    """Share of soft targets in the loss; labels, where given, have the rest."""
    features: Sequence[str]
    """Tensors to match too: name, student=teacher, or a glob."""
    feature_weight: float
    """Of all features together in the loss."""
    augment: Sequence[Literal["flip", "crop"]]
    """Views of pictures, teacher and student the same: flip, crop, or both."""
    padding: int
    """Pixels that crop may shift."""
    bits: Literal[0, 1, 2, 3, 4, 5, 6, 7, 8]
    """Bits of weights; 1: binary; 0: float."""
    activation_bits: Literal[0, 2, 3, 4, 5, 6, 7, 8]
    """Bits of activations; 0: float."""
    edge_bits: Literal[0, 1, 2, 3, 4, 5, 6, 7, 8] | None
    """Least bits of the first and the last layer, 0: as all others; unset: 8 where activations are quantized."""
    bits_of: Sequence[str]
    """Weights of other bits, as "GLOB:BITS" over names of weights or nodes; the first that fits counts."""
    granularity: Literal["channel", "tensor"]
    """Whether each output channel of a weight on few bits learns a scale, or the weight one."""
    isa: Literal["portable", "native"]
    """8-bit weights safe on every x86, or best on CPUs with VNNI (and ARM, GPUs)."""
    sparsity: float | None
    """Share of weights that are zero at the end, in rounds."""
    macs: float | None
    """Share of multiply-accumulates left at the end, in rounds."""
    rounds: int
    """Prunings on the way to sparsity or macs."""
    l1: float
    """Pull of weights to zero, by soft thresholds of lr times this."""
    group_lasso: float
    """Pull of whole channels, heads and neurons to zero; drop-zero-channels cuts them."""
    keep_zeros: bool
    """Weights that are zero stay so."""
    keep_bounds: bool
    """Clipped weights stay within their bounds."""
    freeze: Sequence[str]
    """Globs of weights, or of nodes that read them, that do not move."""
    train: Sequence[str]
    """Globs of weights, or of nodes that read them: only these move."""
    fresh: Sequence[str]
    """Globs of weights, or of nodes that read them, that start at random: 16 times the rate."""
    anchor: bool
    """Train differences from the weights as they are: decay and l1 pull back to them."""
    statistics: Literal["trained", "frozen"]
    """What BatchNormalization does to its mean and variance."""


class VerifyOptions(TypedDict, total=False):
    """Keywords of `onnxcomp.verify`; all may be left out."""

    labels: LabelSource | None
    """Labels of data, .npy or .csv, where it carries none."""
    metric: MetricSource | None
    """The task's metric, (outputs, labels) -> number, :min where lower is better; top-1 where labels are given."""
    task: str | None
    """What the outputs are: classes, decisions, tokens, pixels, ctc, boxes, embeddings, regression or state; or
    OUTPUT=KIND,...; guessed if not given.
    """
    eval_samples: int | None
    """Judge on so many samples; if not given on all, but a run without eval-data ends once its limits are decided."""
    shapes: Mapping[str, Sequence[int]]
    """Sizes for an input's free dimensions, by input."""
    states: Mapping[str, str]
    """Of a stateful model: this output is this input of the next step; guessed from names if not given."""
    allow_random: bool
    """Calibrate on made-up samples if there is no data."""
    seed: int
    """For the split and everything drawn at random."""
    threads: int
    """Threads for calibration and verification, 0: every core; latency is measured with one."""
    scale: float | None
    """Factor for pixels of 0..255, before mean and std."""
    mean: float | Sequence[float] | None
    """Subtracted after scaling; one number, or one a channel in the model's order, comma-separated."""
    std: float | Sequence[float] | None
    """Divided by at the end; like --mean."""
    layout: Literal["nchw", "nhwc"] | None
    """Where the model has its channels."""
    color: Literal["rgb", "bgr", "gray"] | None
    """Order of the model's channels."""
    resize: Literal["stretch", "letterbox", "center-crop"] | None
    """Stretch: to the model's size; letterbox: aspect kept, top-left, the rest padded; center-crop: the shorter
    side to the model's size, the middle cut out. Bilinear.
    """
    pad_value: int | None
    """Pixel value (0..255) that letterbox pads with."""
    max_drop: float | None
    """Most the metric may lose, absolute: 0.01 is one point."""
    min_sqnr: float | None
    """Least SQNR of any part of an output, in dB."""
    min_agreement: float | None
    """Least share of decisions that are the original's: classes, boxes, texts; 0.98, see --task."""
    max_size: int | str | None
    """Largest result: bytes, 4MB, or a share such as 30%."""
    min_speedup: float | None
    """Least speed-up, before/after."""
    fp16: bool
    """TensorRT may compute in half precision."""
    sparsity: bool
    """TensorRT may use 2:4 sparse kernels where weights allow them."""
    cuda_graph: bool
    """Record the kernels of a run once and replay them."""
    exact_float32: bool
    """CUDA: float products without TF32, which keeps 10 bits of 23."""
    builder_level: int | None
    """TensorRT: how long the builder searches, 0 to 5; its own default is 3."""
    engine_cache: str | Path | None
    """TensorRT: folder where engines and kernel timings are kept."""
    profile: Sequence[str]
    """TensorRT: sizes of an input with free dimensions, each like 1x3x224x224; again for each input."""
    provider_option: Sequence[str]
    """Any further option of the provider, by its own name."""


class BenchOptions(TypedDict, total=False):
    """Keywords of `onnxcomp.bench`; all may be left out."""

    shapes: Mapping[str, Sequence[int]]
    """Sizes for an input's free dimensions, by input."""
    states: Mapping[str, str]
    """Of a stateful model: this output is this input of the next step; guessed from names if not given."""
    seed: int
    """For the split and everything drawn at random."""
    scale: float | None
    """Factor for pixels of 0..255, before mean and std."""
    mean: float | Sequence[float] | None
    """Subtracted after scaling; one number, or one a channel in the model's order, comma-separated."""
    std: float | Sequence[float] | None
    """Divided by at the end; like --mean."""
    layout: Literal["nchw", "nhwc"] | None
    """Where the model has its channels."""
    color: Literal["rgb", "bgr", "gray"] | None
    """Order of the model's channels."""
    resize: Literal["stretch", "letterbox", "center-crop"] | None
    """Stretch: to the model's size; letterbox: aspect kept, top-left, the rest padded; center-crop: the shorter
    side to the model's size, the middle cut out. Bilinear.
    """
    pad_value: int | None
    """Pixel value (0..255) that letterbox pads with."""
    fp16: bool
    """TensorRT may compute in half precision."""
    sparsity: bool
    """TensorRT may use 2:4 sparse kernels where weights allow them."""
    cuda_graph: bool
    """Record the kernels of a run once and replay them."""
    exact_float32: bool
    """CUDA: float products without TF32, which keeps 10 bits of 23."""
    builder_level: int | None
    """TensorRT: how long the builder searches, 0 to 5; its own default is 3."""
    engine_cache: str | Path | None
    """TensorRT: folder where engines and kernel timings are kept."""
    profile: Sequence[str]
    """TensorRT: sizes of an input with free dimensions, each like 1x3x224x224; again for each input."""
    provider_option: Sequence[str]
    """Any further option of the provider, by its own name."""


class ExplainOptions(TypedDict, total=False):
    """Keywords of `onnxcomp.explain`; all may be left out."""

    shapes: Mapping[str, Sequence[int]]
    """Sizes for an input's free dimensions, by input."""
    seed: int
    """For the split and everything drawn at random."""
    threads: int
    """Threads for calibration and verification, 0: every core; latency is measured with one."""
    scale: float | None
    """Factor for pixels of 0..255, before mean and std."""
    mean: float | Sequence[float] | None
    """Subtracted after scaling; one number, or one a channel in the model's order, comma-separated."""
    std: float | Sequence[float] | None
    """Divided by at the end; like --mean."""
    layout: Literal["nchw", "nhwc"] | None
    """Where the model has its channels."""
    color: Literal["rgb", "bgr", "gray"] | None
    """Order of the model's channels."""
    resize: Literal["stretch", "letterbox", "center-crop"] | None
    """Stretch: to the model's size; letterbox: aspect kept, top-left, the rest padded; center-crop: the shorter
    side to the model's size, the middle cut out. Bilinear.
    """
    pad_value: int | None
    """Pixel value (0..255) that letterbox pads with."""


class CompareOptions(TypedDict, total=False):
    """Keywords of `onnxcomp.compare`; all may be left out."""

    labels: LabelSource | None
    """Labels of data, .npy or .csv, where it carries none."""
    metric: MetricSource | None
    """The task's metric, (outputs, labels) -> number, :min where lower is better; top-1 where labels are given."""
    task: str | None
    """What the outputs are: classes, decisions, tokens, pixels, ctc, boxes, embeddings, regression or state; or
    OUTPUT=KIND,...; guessed if not given.
    """
    eval_samples: int | None
    """Judge on so many samples; if not given on all, but a run without eval-data ends once its limits are decided."""
    shapes: Mapping[str, Sequence[int]]
    """Sizes for an input's free dimensions, by input."""
    states: Mapping[str, str]
    """Of a stateful model: this output is this input of the next step; guessed from names if not given."""
    allow_random: bool
    """Calibrate on made-up samples if there is no data."""
    seed: int
    """For the split and everything drawn at random."""
    threads: int
    """Threads for calibration and verification, 0: every core; latency is measured with one."""
    bench: bool
    """Measure latency."""
    bench_seconds: float
    """How long to measure the final latency, in seconds."""
    scale: float | None
    """Factor for pixels of 0..255, before mean and std."""
    mean: float | Sequence[float] | None
    """Subtracted after scaling; one number, or one a channel in the model's order, comma-separated."""
    std: float | Sequence[float] | None
    """Divided by at the end; like --mean."""
    layout: Literal["nchw", "nhwc"] | None
    """Where the model has its channels."""
    color: Literal["rgb", "bgr", "gray"] | None
    """Order of the model's channels."""
    resize: Literal["stretch", "letterbox", "center-crop"] | None
    """Stretch: to the model's size; letterbox: aspect kept, top-left, the rest padded; center-crop: the shorter
    side to the model's size, the middle cut out. Bilinear.
    """
    pad_value: int | None
    """Pixel value (0..255) that letterbox pads with."""
