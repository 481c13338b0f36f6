"""How much would the loss change without a weight? First-order Taylor expansion, by the training runtime.

Molchanov et al., arXiv 1906.10771: (w * dL/dw)^2, its mean over batches of labelled samples. A unit's importance is the
sum over its weights, which estimates a change of the loss and so compares across layers as it stands.
"""

from __future__ import annotations

from collections.abc import Mapping

from onnxcomp.distill import engine
from onnxcomp.distill.augment import Augment
from onnxcomp.distill.losses import append_loss
from onnxcomp.distill.task import Feeding, TrainingTask
from onnxcomp.distill.trainable import prepare
from onnxcomp.files import scratch
from onnxcomp.graph import shapes as shape_tools
from onnxcomp.graph.ir import Array, Graph
from onnxcomp.manager.base import PassContext
from onnxcomp.passes.training.material import gather, held_out, order, samples_of
from onnxcomp.passes.training.objective import label_terms

BATCH = 32


def taylor_moments(graph: Graph, context: PassContext) -> Mapping[str, Array]:
    """Mean over batches of (weight * gradient)^2 of the cross-entropy with the labels, by initializer, its shape.

    Raises:
        DataError: there are no labels, or they are classes of no output.
        ModelError: no gradient leads from the outputs to any weight.
        EnvironmentLacksError: no training runtime.
    """
    batch = min(BATCH, len(samples_of(context)))
    with scratch() as folder:
        material = gather(context, None, [], folder, epochs=1, augment=Augment((), 0))
        rows, labels = material.rows, material.labels
        shapes = {name: (1, *shape) for name, shape in rows.sample_shapes.items()}
        prepared = prepare(graph, context.operators, shapes, batch, statistics="frozen")
        prepared.require()
        inferred = shape_tools.infer(prepared.graph)
        tensors = prepared.graph.tensors()
        static = {name: s for name, t in tensors.items() if (s := inferred.static(t)) is not None}
        terms = label_terms(prepared.graph, static, labels)
        append_loss(prepared.graph, terms, static, None if labels is None else (prepared.batch, *labels.shape[1:]))
        steps = max(1, rows.plain // prepared.batch)
        task = TrainingTask(
            graph=prepared.graph,
            feeding=Feeding(
                material.arrays([], {t.name for t in prepared.graph.inputs}),
                order(rows, steps, prepared.batch, context.seed),
                held_out(rows, prepared.batch),
            ),
            trainable=prepared.trainable,
            loss=prepared.graph.outputs[0].name,
            seed=context.seed,
            threads=context.threads,
        )
        return engine.gradient_moments(task, steps, progress=context.progress).taylor
