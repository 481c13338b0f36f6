"""Where does digits-cnn.onnx come from? This trains it on scikit-learn's digits and writes the model and its data.

    pip install -e '.[models]'
    python models/make_digits.py            # about a minute on one core; writes beside this file

The data are the 1,797 images of 8x8 pixels that scikit-learn ships, split by class with a fixed seed into 1,000 for
training (and calibration) and 797 for testing. Pixel values 0..16 become uint8 0..255. The network is trained in
PyTorch; the ONNX graph is then written node by node from the trained weights, so that names are clean and every
BatchNormalization stands in the file as a node of its own, as an exporter in training mode would leave it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.nn import functional

SEED = 0
EPOCHS = 60
BATCH = 64
TEST_IMAGES = 797
OPSET = 17
LEARNING_RATE = 3e-3


class Unit(nn.Module):
    """A 3x3 convolution without bias and the BatchNormalization behind it; height and width are kept."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(channels_out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, in, H, W] -> [N, out, H, W]."""
        result: torch.Tensor = self.bn(self.conv(x))
        return result


class DigitsNet(nn.Module):
    """Two units, a residual block of two more, pooling, a last unit, the mean of each channel, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.unit1 = Unit(1, 32)
        self.unit2 = Unit(32, 64)
        self.unit3 = Unit(64, 64)
        self.unit4 = Unit(64, 64)
        self.unit5 = Unit(64, 64)
        self.fc = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images [N, 1, 8, 8] in 0..1 -> logits [N, 10]."""
        x = functional.relu(self.unit1(x))
        x = functional.relu(self.unit2(x))
        x = functional.relu(x + self.unit4(functional.relu(self.unit3(x))))
        x = functional.max_pool2d(x, 2)  # [N, 64, 4, 4]
        x = functional.relu(self.unit5(x))
        logits: torch.Tensor = self.fc(x.mean((2, 3)))
        return logits


def split() -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]:
    """Train images [1000, 8, 8], train labels, test images [797, 8, 8], test labels; all uint8."""
    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    labels = digits.target.astype(np.uint8)
    train, test, train_labels, test_labels = train_test_split(
        images, labels, test_size=TEST_IMAGES, random_state=SEED, stratify=labels
    )
    return train, train_labels, test, test_labels


def as_input(images: NDArray[np.uint8]) -> torch.Tensor:
    """uint8 [N, 8, 8] -> float32 [N, 1, 8, 8] in 0..1."""
    return torch.from_numpy(images[:, None].astype(np.float32) / np.float32(255))


def jitter(batch: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Turn, scale, shear and shift every image a little, each by its own random affine map."""
    maps = torch.eye(2, 3).repeat(len(batch), 1, 1)
    maps[:, :, :2] += 0.12 * torch.randn(len(batch), 2, 2, generator=generator)
    maps[:, :, 2] += 0.12 * torch.randn(len(batch), 2, generator=generator)
    grid = functional.affine_grid(maps, list(batch.shape), align_corners=False)
    return functional.grid_sample(batch, grid, align_corners=False)


def train(images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> DigitsNet:
    """Train from the fixed seed: AdamW, one-cycle learning rate, jittered images, smoothed labels."""
    torch.manual_seed(SEED)
    torch.set_num_threads(1)  # the order of sums, and so the weights, would depend on the number of threads
    torch.use_deterministic_algorithms(True)
    generator = torch.Generator().manual_seed(SEED)
    x, y = as_input(images), torch.from_numpy(labels.astype(np.int64))
    net = DigitsNet()
    optimizer = torch.optim.AdamW(net.parameters(), lr=LEARNING_RATE, weight_decay=0.02)
    steps = len(x) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=EPOCHS * steps)
    for epoch in range(EPOCHS):
        net.train()
        order = torch.randperm(len(x), generator=generator)
        total = 0.0
        for chosen in order[: steps * BATCH].split(BATCH):
            loss = functional.cross_entropy(net(jitter(x[chosen], generator)), y[chosen], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(f"epoch {epoch + 1:2}/{EPOCHS}  loss {total / steps:.4f}", flush=True)
    return net.eval()


class GraphWriter:
    """Nodes and initializers of the ONNX graph, in order of execution."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[TensorProto] = []

    def add(self, op: str, name: str, inputs: list[str], **attributes: object) -> str:
        """Append a node whose one output is named after it; returns that name."""
        output = "logits" if name == "fc" else f"{name}_out"
        self.nodes.append(helper.make_node(op, inputs, [output], name=name, **attributes))
        return output

    def weight(self, name: str, value: torch.Tensor) -> str:
        """Append a float32 initializer; returns its name."""
        self.weights.append(numpy_helper.from_array(value.detach().numpy().astype(np.float32), name))
        return name

    def unit(self, number: int, unit: Unit, x: str) -> str:
        """Conv and BatchNormalization as two nodes, conv1 and bn1."""
        conv, bn = f"conv{number}", f"bn{number}"
        weight = self.weight(f"{conv}.weight", unit.conv.weight)
        x = self.add("Conv", conv, [x, weight], kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[1, 1])
        assert unit.bn.running_mean is not None
        assert unit.bn.running_var is not None
        parameters = [
            self.weight(f"{bn}.scale", unit.bn.weight),
            self.weight(f"{bn}.bias", unit.bn.bias),
            self.weight(f"{bn}.mean", unit.bn.running_mean),
            self.weight(f"{bn}.var", unit.bn.running_var),
        ]
        return self.add("BatchNormalization", bn, [x, *parameters], epsilon=unit.bn.eps)


def to_onnx(net: DigitsNet) -> onnx.ModelProto:
    """The trained network as an ONNX model with dynamic batch: image [N, 1, 8, 8] -> logits [N, 10]."""
    w = GraphWriter()
    x = w.add("Relu", "relu1", [w.unit(1, net.unit1, "image")])
    shortcut = w.add("Relu", "relu2", [w.unit(2, net.unit2, x)])
    x = w.add("Relu", "relu3", [w.unit(3, net.unit3, shortcut)])
    x = w.add("Add", "add", [shortcut, w.unit(4, net.unit4, x)])
    x = w.add("MaxPool", "pool", [w.add("Relu", "relu4", [x])], kernel_shape=[2, 2], strides=[2, 2])
    x = w.add("Relu", "relu5", [w.unit(5, net.unit5, x)])
    x = w.add("Flatten", "flatten", [w.add("GlobalAveragePool", "mean", [x])], axis=1)
    w.add("Gemm", "fc", [x, w.weight("fc.weight", net.fc.weight), w.weight("fc.bias", net.fc.bias)], transB=1)
    graph = helper.make_graph(
        w.nodes,
        "digits-cnn",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 10])],
        w.weights,
        doc_string="A small CNN for scikit-learn's digits; input: pixels / 255.",
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8, producer_name="make_digits.py"
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def save_npz(path: Path, images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> None:
    """Write `images` and `labels`; NumPy stamps the zip entries with a constant date, so bytes repeat."""
    np.savez_compressed(path, images=images, labels=labels)


def main() -> None:
    """Train, write the three files, print the accuracy on the test images."""
    parser = argparse.ArgumentParser(description="Train digits-cnn.onnx and write it with its data.")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent, help="folder to write into")
    out: Path = parser.parse_args().out
    images, labels, test_images, test_labels = split()
    net = train(images, labels)
    with torch.no_grad():
        predicted = net(as_input(test_images)).argmax(1).numpy()
    onnx.save(to_onnx(net), out / "digits-cnn.onnx")
    save_npz(out / "digits-train.npz", images, labels)
    save_npz(out / "digits-test.npz", test_images, test_labels)
    print(f"top-1 on {len(test_labels)} test images: {(predicted == test_labels).mean():.4f}")


if __name__ == "__main__":
    main()
