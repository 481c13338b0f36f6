"""distill: the model is trained, by its own original, by labels, or both, and keeps what passes made of it."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from onnxcomp.distill import alike, environment
from onnxcomp.distill.augment import Augment, Way
from onnxcomp.errors import UsageError
from onnxcomp.files import scratch
from onnxcomp.graph.ir import Graph
from onnxcomp.graph.literals import is_weight, lift
from onnxcomp.manager.base import Guarantee, Need, Outcome, Pass, PassContext, Range, Stage, option
from onnxcomp.passes.training import gradual, quantized
from onnxcomp.passes.training.material import gather, rehearsal, samples_of
from onnxcomp.passes.training.objective import Aim, Pair, pairs
from onnxcomp.passes.training.quantized import Precision, Quantization
from onnxcomp.passes.training.trainer import Trainer
from onnxcomp.passes.training.turned import batch_first
from onnxcomp.runtime.progress import SILENT, Progress

REHEARSED = 32  # samples on which everything is tried that can be refused before the training


@dataclass(frozen=True)
class Distill(Pass):
    """Weights are trained so that the model gives what its original gave (Hinton, Vinyals and Dean 2015).

    The teacher is the model as it was before any pass; its answers to every sample, and to every augmented view, are
    computed once and kept in the user's cache. Training uses the samples that neither select nor judge; the loss on the
    select ones says which step was best. Zeros stay zero (pruned weights, n:m patterns), clipped weights stay within
    their bounds, BatchNormalization's statistics follow the batches. With `bits` the model trains as if its weights,
    and with `activation_bits` its activations, were integers, scales being learned (LSQ), and is written so: as
    quantize-qdq writes it, weights of four bits and fewer packed.

    With `sparsity` or `macs` the model is pruned on the way, in rounds, by a cubic schedule (Zhu and Gupta 2017).
    """

    name: ClassVar[str] = "distill"
    guarantee: ClassVar[Guarantee] = Guarantee.LOSSY
    needs: ClassVar[frozenset[Need]] = frozenset({Need.DATA, Need.TRAINING})

    epochs: float | None = option(
        None,
        "times every training sample is seen; 1 where steps is not given",
        above=0.0,
        maximum=100_000,
        search=Range(0.5, 8.0, log=True),
    )
    steps: int | None = option(None, "batches to train on, in place of epochs", minimum=1, maximum=10_000_000)
    batch: int = option(64, "samples a step; fixed by the model where its inputs are", minimum=1, maximum=1_000_000)
    lr: float | None = option(
        None,
        "learning rate after warm-up; 0.005, and smaller ones where that brings nothing",
        above=0.0,
        search=(None, 0.002, 0.01, 0.02),
    )
    scaled: bool = option(True, "lr is a share of each tensor's own RMS, with adamw; false: the same step for all")
    optimizer: Literal["adamw", "sgd"] = option("adamw", "AdamW, or SGD with momentum")
    momentum: float = option(0.9, "of sgd", minimum=0.0, below=1.0)
    weight_decay: float = option(0.0, "decoupled L2, as a share of lr; biases and scales are spared", minimum=0.0)
    warmup: float = option(0.1, "share of the steps in which the learning rate rises", minimum=0.0, maximum=1.0)
    schedule: Literal["cosine", "linear", "constant"] = option("cosine", "how the learning rate falls afterwards")
    clip_norm: float = option(0.0, "largest norm of the whole gradient; 0: any", minimum=0.0)
    looks: int = option(10, "how often the held-out loss is looked at", minimum=1)
    patience: int = option(0, "looks without improvement that end the training; 0: never", minimum=0)
    keep_best: bool = option(
        True, "keep the weights with the lowest held-out loss; the last ones where l1 or group_lasso pull"
    )

    teacher: Literal["original", "none"] = option("original", "learn from the model before any pass, or labels only")
    loss: Literal["auto", "kl", "mse", "cosine"] = option(
        "auto", "soft targets, mean squared error over energy, or cosine; auto: as the outputs look"
    )
    temperature: float = option(4.0, "that soft targets are softened by", above=0.0)
    alpha: float = option(
        0.9, "share of soft targets in the loss; labels, where given, have the rest", minimum=0.0, maximum=1.0
    )
    features: tuple[str, ...] = option((), "tensors to match too: name, student=teacher, or a glob")
    feature_weight: float = option(1.0, "of all features together in the loss", above=0.0)
    augment: tuple[Way, ...] = option((), "views of pictures, teacher and student the same: flip, crop, or both")
    padding: int = option(4, "pixels that crop may shift", minimum=1)

    bits: Literal[0, 1, 2, 3, 4, 5, 6, 7, 8] = option(0, "bits of weights; 1: binary; 0: float", search=(0, 8, 4, 2))
    activation_bits: Literal[0, 2, 3, 4, 5, 6, 7, 8] = option(
        0, "bits of activations; 0: float", search=(0, 8), when={"bits": (8, 4, 2)}
    )
    edge_bits: Literal[0, 1, 2, 3, 4, 5, 6, 7, 8] | None = option(
        None,
        "least bits of the first and the last layer, 0: as all others; unset: 8 where activations are quantized",
        search=(None, 4),
        when={"bits": (2,)},
    )
    bits_of: tuple[str, ...] = option(
        (), 'weights of other bits, as "GLOB:BITS" over names of weights or nodes; the first that fits counts'
    )
    granularity: Literal["channel", "tensor"] = option(
        "channel",
        "whether each output channel of a weight on few bits learns a scale, or the weight one",
        search=("channel", "tensor"),
        when={"bits": (4, 2)},
    )
    isa: Literal["portable", "native"] = option(
        "portable", "8-bit weights safe on every x86, or best on CPUs with VNNI (and ARM, GPUs)"
    )

    sparsity: float | None = option(None, "share of weights that are zero at the end, in rounds", above=0.0, below=1.0)
    macs: float | None = option(None, "share of multiply-accumulates left at the end, in rounds", above=0.0, below=1.0)
    rounds: int = option(4, "prunings on the way to sparsity or macs", minimum=1)
    l1: float = option(0.0, "pull of weights to zero, by soft thresholds of lr times this", minimum=0.0)
    group_lasso: float = option(
        0.0, "pull of whole channels, heads and neurons to zero; drop-zero-channels cuts them", minimum=0.0
    )
    keep_zeros: bool = option(True, "weights that are zero stay so")
    keep_bounds: bool = option(True, "clipped weights stay within their bounds")
    freeze: tuple[str, ...] = option((), "globs of weights, or of nodes that read them, that do not move")
    train: tuple[str, ...] = option((), "globs of weights, or of nodes that read them: only these move")
    fresh: tuple[str, ...] = option(
        (), "globs of weights, or of nodes that read them, that start at random: 16 times the rate"
    )
    anchor: bool = option(False, "train differences from the weights as they are: decay and l1 pull back to them")
    statistics: Literal["trained", "frozen"] = option(
        "trained", "what BatchNormalization does to its mean and variance"
    )

    def validate(self) -> None:
        """Options that exclude each other."""
        if self.epochs is not None and self.steps is not None:
            raise self._wrong("epochs and steps are given together", "give one of them")
        if self.sparsity is not None and self.macs is not None:
            raise self._wrong("sparsity and macs are given together", "give one, and distill twice for both")
        if self.freeze and self.train:
            raise self._wrong("freeze and train are given together", "give one of them")
        if self.teacher == "none" and (self.features or self.loss != "auto"):
            raise self._wrong("features and loss belong to a teacher", "leave them out")
        if not (self.bits or self.activation_bits) and (self.bits_of or self.granularity != "channel"):
            raise self._wrong("bits_of and granularity belong to weights on few bits", "give bits as well")
        for entry in self.bits_of:
            self._glob_and_bits(entry)
        if self.bits == 1 and self.sparsity is not None:
            raise self._wrong("binary weights are never zero", "leave sparsity out, or give bits=2")

    def belongs(self) -> Stage:
        """Among those that write integers where it does."""
        return Stage.INTEGER if self.bits or self.activation_bits else Stage.FLOAT

    def required(self) -> frozenset[Need]:
        """Labels as well where nothing else teaches."""
        return self.needs | ({Need.LABELS} if self.teacher == "none" else set())

    def provide(self, progress: Progress) -> None:
        """The environment in which the worker trains, made where it does not stand yet.

        Raises:
            EnvironmentLacksError: no fitting interpreter, or the packages cannot be had.
        """
        missing = environment.find() is None
        for _ in progress.track(range(missing), missing, "setting up the training runtime, about 200 MB"):
            environment.provide(say=progress.say)

    @property
    def aim(self) -> Aim:
        """The options about the loss as one value."""
        return Aim(self.loss, self.temperature, self.alpha, self.features, self.feature_weight)

    def run(self, graph: Graph, context: PassContext) -> Outcome:
        """Train in place.

        Raises:
            UsageError: a glob or feature matches nothing, or options do not fit the model.
            ModelError: nothing can be trained, or the teacher lacks outputs.
            DataError: samples, or labels, do not fit.
        """
        outcome = Outcome()
        if self.bits or self.activation_bits or self.sparsity or self.macs:
            lift(graph, is_weight)
        self.selects(graph)
        for globs in (self.freeze, self.train, self.fresh):
            self.matching(graph, globs)
        with batch_first(graph, context) as turned:
            self._run(graph, turned, outcome)
        outcome.summary = "; ".join(record.words for record in outcome.trainings)
        return outcome

    def _run(self, graph: Graph, context: PassContext, outcome: Outcome) -> None:
        """Train a graph whose samples lie along axis 0."""
        taught = pairs(graph, context.original or graph.clone(), self.aim) if self.teacher == "original" else []
        teacher = (context.original or graph.clone()) if taught else None
        self._rehearse(graph, context, teacher, taught, outcome)
        batch = min(self.batch, len(samples_of(context)))
        steps = self.steps or max(1, round((self.epochs or 1.0) * len(samples_of(context)) / batch))
        epochs = steps * batch / len(samples_of(context))
        with scratch() as folder:
            way = Augment(self.augment, self.padding)
            material = gather(context, teacher, taught, folder, epochs=epochs, augment=way)
            outcome.notes += material.notes
            trainer = Trainer(self, graph, context, outcome, material, taught)
            for index, (share, prune) in enumerate(gradual.rounds(self.sparsity, self.macs, self.rounds)):
                gradual.merge(outcome, prune.run(graph, context) if prune is not None else None)
                graph.sort()
                last = index == self.rounds - 1 or prune is None
                self._train(trainer, max(1, round(share * steps)), last, index)

    def _rehearse(
        self, graph: Graph, context: PassContext, teacher: Graph | None, taught: list[Pair], outcome: Outcome
    ) -> None:
        """Refuse what can be refused before anything is calibrated, asked or trained; prove the copy that trains."""
        material, sample = rehearsal(context, teacher, taught, REHEARSED)
        quiet = replace(context, calibration=sample, progress=SILENT)
        trainer = Trainer(self, graph.clone(), quiet, Outcome(), material, taught)
        trainer.rehearse(self._plan(trainer) if self.bits or self.activation_bits else None)
        outcome.notes += [note for note in trainer.outcome.notes if note.startswith(alike.NOT_COMPARED)]

    def _plan(self, trainer: Trainer) -> Quantization:
        usual = 8 if self.activation_bits else 0
        edge = usual if self.edge_bits is None else self.edge_bits
        own: dict[str, int] = {}
        for entry in self.bits_of:
            glob, bits = self._glob_and_bits(entry)
            own |= {name: bits for name in self.matching(trainer.graph, (glob,)) if name not in own}
        each = self.granularity == "channel"
        precision = Precision(self.bits or 8, self.activation_bits, edge, self.optimizer, self.isa, own, each)
        return quantized.plan(trainer.graph, precision, self.selects(trainer.graph), trainer.context)

    def _train(self, trainer: Trainer, steps: int, last: bool, seed: int) -> None:
        """One training; the last one on integers where bits are given."""
        if not last or not (self.bits or self.activation_bits):
            trainer.train(steps, seed=seed)
            return
        plan = self._plan(trainer)
        learned = trainer.train(steps, plan, seed=seed)
        trainer.outcome.notes += plan.notes
        rounded = plan.reference(learned)
        for node, words in plan.write(learned).items():
            trainer.outcome.change(node, words)
        trainer.compare(rounded)
        for refused, why in plan.refused.items():
            trainer.outcome.skip(refused, f"kept float: {why}")

    def matching(self, graph: Graph, globs: tuple[str, ...]) -> set[str]:
        """Names of initializers that globs name, or that nodes read which globs name.

        Raises:
            UsageError: a glob matches nothing.
        """
        found: set[str] = set()
        names = {c.name: {c.name, *(n.name for n in c.consumers)} for c in graph.constants()}
        for glob in globs:
            hits = {name for name, own in names.items() if any(fnmatch.fnmatchcase(n, glob) for n in own)}
            if not hits:
                raise self._no_match(
                    "freeze, train, fresh or bits_of", glob, {n for own in names.values() for n in own}
                )
            found |= hits
        return found

    def _glob_and_bits(self, entry: str) -> tuple[str, int]:
        glob, _, bits = entry.rpartition(":")
        if not glob or bits not in ("1", "2", "3", "4", "5", "6", "7", "8"):
            raise self._wrong(f"bits_of={entry!r} is not GLOB:BITS", 'for example bits_of=["/fc1*:2"], 1 to 8 bits')
        return glob, int(bits)

    def _wrong(self, what: str, do: str) -> UsageError:
        return UsageError(f"{self.name}: {what}", where=f"pass {self.name}", do=do)
