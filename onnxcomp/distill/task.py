"""What is the worker asked to train, and what does it give back? Plain data between those who plan and who train.

A planner (losses, students, fake quantization) builds one graph that ends in a scalar loss and says which rows of which
arrays each step reads. The engine hands both to the worker, which knows nothing of teachers, losses or quantization.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from onnxcomp.graph.ir import Array, Graph


@dataclass(frozen=True)
class Feeding:
    """Which samples each step reads.

    Attributes:
        arrays: by name of the graph's input, all samples along axis 0; memory maps are welcome, for they stay on disk.
        order: [steps, batch] int64, the rows of each step. A batch is what the graph takes at once, or a multiple of
            it: the loss is then the mean over the pieces. Two pieces or more a step are best where the loss is a mean
            over samples: threads share them, which is faster than threads inside each operator, and takes less memory.
        held_out: [batches, batch] int64, rows that are never trained on: the loss there stops early and keeps the best.
    """

    arrays: Mapping[str, Array]
    order: Array
    held_out: Array


@dataclass(frozen=True)
class Optimizer:
    """How weights move.

    Attributes:
        kind: AdamW (Loshchilov and Hutter 2019) or SGD with momentum.
        lr: learning rate after warm-up; `lr_scale` multiplies it by parameter name.
        weight_decay: decoupled L2, as a share of lr; `undecayed` names parameters spared (biases, learned scales).
        momentum, betas, epsilon: of SGD and AdamW.
        clip_norm: largest global norm of the gradients; 0 means no clipping.
        warmup_steps: steps of linear warm-up; `schedule` and `final_share` shape the rest, down to that share of lr.
    """

    kind: Literal["adamw", "sgd"] = "adamw"
    lr: float = 1e-3
    lr_scale: Mapping[str, float] = field(default_factory=dict)
    weight_decay: float = 0.0
    undecayed: frozenset[str] = frozenset()
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    clip_norm: float = 0.0
    warmup_steps: int = 0
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    final_share: float = 0.0


@dataclass(frozen=True)
class Constraint:
    """What one parameter must keep, restored after every step.

    Attributes:
        mask: of the parameter's shape, bool; False stays exactly zero (pruned weights, n:m patterns, frozen zeros).
        low, high: bounds, broadcast against the parameter (clipped weights, positive scales).
    """

    mask: Array | None = None
    low: Array | None = None
    high: Array | None = None


@dataclass(frozen=True)
class Slice:
    """Indices of one axis of one parameter."""

    parameter: str
    axis: int
    indices: tuple[int, ...]


@dataclass(frozen=True)
class Sparsity:
    """Penalties taken as proximal steps of size lr times strength, so that zeros are exact.

    Attributes:
        l1: strength by parameter name (soft threshold).
        groups: each a set of slices that live or die together (group lasso, Yuan and Lin 2006).
        group_strength: of the group lasso, times the root of a group's size.
    """

    l1: Mapping[str, float] = field(default_factory=dict)
    groups: tuple[tuple[Slice, ...], ...] = ()
    group_strength: float = 0.0


@dataclass(frozen=True)
class TrainingTask:
    """One job of the worker.

    Attributes:
        graph: the forward computation and its loss, in training form: static batch, every operator on the way from a
            trainable parameter to the loss has a gradient, `Round` passes its gradient straight through.
        loss: name of the scalar float32 output to minimise; other outputs are ignored.
        trainable: names of initializers that move.
        statistics: initializers that training BatchNormalization updates in place.
        constraints: by parameter name.
        evaluate_every: steps between looks at the held-out loss; 0 means only at the end.
        patience: looks without improvement before the run ends early; 0 means never.
        keep_best: give back the parameters with the lowest held-out loss, not the last ones.
        check_gradients: prove the gradient on the first batch before training (refuse beyond 1 % median error).
    """

    graph: Graph
    feeding: Feeding
    trainable: tuple[str, ...]
    loss: str = "loss"
    statistics: tuple[str, ...] = ()
    optimizer: Optimizer = field(default_factory=Optimizer)
    constraints: Mapping[str, Constraint] = field(default_factory=dict)
    sparsity: Sparsity = field(default_factory=Sparsity)
    evaluate_every: int = 0
    patience: int = 0
    keep_best: bool = True
    check_gradients: bool = True
    seed: int = 0
    threads: int = 2


@dataclass(frozen=True)
class TrainingResult:
    """What training gave back.

    Attributes:
        parameters: new values by name, of all trainable parameters and statistics.
        losses: [steps] training loss of every step done; `rates` its learning rates.
        held_out: (step, loss) at every look.
        best_step: the step whose parameters these are.
        ended: `done`, `early` (patience ran out) or `interrupted` (a signal; what was reached is given back).
        step_seconds: median seconds a step.
        peak_memory_bytes: of the worker.
        gradient_error: median relative error found by the self-check; None where it was not asked for.
        resumed_from: the step of the checkpoint that the run went on from; 0 for none.
    """

    parameters: Mapping[str, Array]
    losses: tuple[float, ...]
    rates: tuple[float, ...]
    held_out: tuple[tuple[int, float], ...]
    best_step: int
    ended: Literal["done", "early", "interrupted"]
    step_seconds: float
    peak_memory_bytes: int
    gradient_error: float | None = None
    resumed_from: int = 0


@dataclass(frozen=True)
class GradientMoments:
    """Gradients of the loss over batches, for importances that need them.

    Attributes:
        mean: mean gradient by parameter name; `square`: mean of its square (diagonal Fisher information).
        taylor: mean over batches of (w * gradient) squared, element by element.
    """

    mean: Mapping[str, Array]
    square: Mapping[str, Array]
    taylor: Mapping[str, Array]
