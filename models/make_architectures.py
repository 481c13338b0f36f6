"""Small models with random weights of the architectures that people compress, as PyTorch's exporter writes them.

    python models/make_architectures.py models/architectures

Needs PyTorch, onnxscript and transformers (the `models` extra); the tests only read what it wrote. Every family's own
operators and wiring are there, at widths that keep a file near 100 kB.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    ConvNextConfig,
    ConvNextForImageClassification,
    SwinConfig,
    SwinForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

CLASSES = 10


class Logits(nn.Module):
    """A model of transformers that gives its logits and nothing else."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.model(*inputs).logits


class SqueezeExcite(nn.Module):
    """Channels weighed by what a small network says of their means."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, channels // 4, 1), nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = nn.functional.adaptive_avg_pool2d(x, 1)
        return x * nn.functional.hardsigmoid(self.up(nn.functional.relu(self.down(mean))))


class Bottleneck(nn.Module):
    """MobileNetV3's inverted residual (Howard et al. 2019)."""

    def __init__(self, fan_in: int, wide: int, fan_out: int, kernel: int, stride: int, *, squeeze: bool) -> None:
        super().__init__()
        act = nn.Hardswish if squeeze else nn.ReLU
        layers = [nn.Conv2d(fan_in, wide, 1, bias=False), nn.BatchNorm2d(wide), act()]
        layers += [nn.Conv2d(wide, wide, kernel, stride, kernel // 2, groups=wide, bias=False), nn.BatchNorm2d(wide)]
        layers += [SqueezeExcite(wide)] if squeeze else []
        layers += [act(), nn.Conv2d(wide, fan_out, 1, bias=False), nn.BatchNorm2d(fan_out)]
        self.body = nn.Sequential(*layers)
        self.residual = stride == 1 and fan_in == fan_out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x) if self.residual else self.body(x)


def mobilenet_v3() -> nn.Module:
    """Stem, four bottlenecks with and without squeeze and excitation, head with Hardswish."""
    return nn.Sequential(
        *[nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.Hardswish()],
        Bottleneck(8, 16, 8, 3, 1, squeeze=False),
        Bottleneck(8, 24, 12, 3, 2, squeeze=False),
        Bottleneck(12, 32, 12, 5, 1, squeeze=True),
        Bottleneck(12, 48, 16, 5, 2, squeeze=True),
        *[nn.Conv2d(16, 48, 1, bias=False), nn.BatchNorm2d(48), nn.Hardswish()],
        *[nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 64), nn.Hardswish(), nn.Linear(64, CLASSES)],
    )


class Tagger(nn.Module):
    """Embedding, two directions of LSTM, a tag for each word."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.layer = nn.Embedding(200, 24), nn.LSTM(24, 24, batch_first=True, bidirectional=True)
        self.tags = nn.Linear(48, CLASSES)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        return self.tags(self.layer(self.words(words))[0])


def bert() -> nn.Module:
    sizes = {"vocab_size": 200, "hidden_size": 32, "intermediate_size": 64, "max_position_embeddings": 64}
    return Logits(
        BertForSequenceClassification(
            BertConfig(num_hidden_layers=2, num_attention_heads=4, num_labels=CLASSES, **sizes)
        )
    )


def vit() -> nn.Module:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "image_size": 32, "patch_size": 8}
    return Logits(
        ViTForImageClassification(ViTConfig(num_hidden_layers=2, num_attention_heads=4, num_labels=CLASSES, **sizes))
    )


def swin() -> nn.Module:
    return Logits(
        SwinForImageClassification(
            SwinConfig(
                image_size=32,
                patch_size=2,
                embed_dim=16,
                depths=[2, 2],
                num_heads=[2, 4],
                window_size=4,
                num_labels=CLASSES,
            )
        )
    )


def convnext() -> nn.Module:
    return Logits(
        ConvNextForImageClassification(
            ConvNextConfig(
                num_stages=3,
                hidden_sizes=[12, 24, 32],
                depths=[1, 1, 1],
                patch_size=2,
                num_labels=CLASSES,
                image_size=32,
                layer_scale_init_value=0.1,
            )
        )
    )


IMAGE = (torch.zeros(2, 3, 32, 32),)
WORDS = (torch.ones(2, 16, dtype=torch.int64),)
ARCHITECTURES: dict[str, tuple[Callable[[], nn.Module], tuple[torch.Tensor, ...], list[str]]] = {
    "bert": (bert, (*WORDS, *WORDS), ["input_ids", "attention_mask"]),
    "convnext": (convnext, IMAGE, ["image"]),
    "lstm-tagger": (Tagger, WORDS, ["words"]),
    "mobilenet-v3": (mobilenet_v3, IMAGE, ["image"]),
    "swin": (swin, IMAGE, ["image"]),
    "vit": (vit, IMAGE, ["image"]),
}


def randomized(model: nn.Module) -> nn.Module:
    """Weights and statistics as of a trained net: no zeros, no ones."""
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if not value.is_floating_point():
            continue
        with torch.no_grad():
            if name.endswith("running_var"):
                value.uniform_(0.5, 1.5)
            elif value.ndim < 2:
                value.add_(0.1 * torch.randn_like(value))
            else:
                value.copy_(torch.randn_like(value) * (1.5 / value[0].numel()) ** 0.5)
    return model.eval()


def export(model: nn.Module, inputs: tuple[torch.Tensor, ...], names: list[str], path: Path) -> None:
    """By the exporter of today; by the tracing one where that fails on an open batch size, as on windows."""
    batch = torch.export.Dim("batch", min=1, max=1024)
    shapes: Any = tuple({0: batch} for _ in inputs)
    if isinstance(model, Logits):
        shapes = (shapes,)  # of *inputs
    same: Any = {"input_names": names, "output_names": ["logits"], "external_data": False}
    try:
        torch.onnx.export(model, inputs, str(path), opset_version=18, dynamo=True, dynamic_shapes=shapes, **same)
    except torch.onnx.OnnxExporterError:
        axes = {name: {0: "batch"} for name in (*names, "logits")}
        torch.onnx.export(model, inputs, str(path), opset_version=17, dynamo=False, dynamic_axes=axes, **same)


def without_traces(path: Path) -> None:
    """Drop what the exporter notes on its own source lines: it is half of a small file."""
    proto = onnx.load(path)
    for entry in (*proto.graph.node, *proto.graph.value_info, *proto.graph.input, *proto.graph.output, proto.graph):
        entry.ClearField("metadata_props")
        entry.ClearField("doc_string")
    path.write_bytes(proto.SerializeToString(deterministic=True))


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, (build, inputs, names) in ARCHITECTURES.items():
        torch.manual_seed(0)
        model = randomized(build())
        path = folder / f"{name}.onnx"
        export(model, inputs, names, path)
        without_traces(path)
        print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
