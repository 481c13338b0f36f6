"""How much is a verdict worth? Why the samples that judged tell less than they seem to, in words for the first line."""

from __future__ import annotations

import numpy as np

from onnxcomp.results import Accuracy, Fidelity
from onnxcomp.runtime.session import Array

LEAST = 20  # samples; fewer tell little
CHANCE = 1.2  # times the share of the commonest label: a model below that has learned little of these samples
GOOD = 0.9  # a model that is right so often is right, however common a label is


def doubts(fidelity: Fidelity | None, accuracy: Accuracy | None, labels: Array | None = None) -> list[str]:
    """What stands beside a verdict; empty where the evidence is sound.

    Args:
        labels: of the samples that judged.
    """
    found: list[str] = []
    if fidelity is not None:
        if fidelity.source == "synthetic":
            found.append(f"judged on {fidelity.samples} made-up samples only")
        elif fidelity.samples < LEAST:
            found.append(f"judged on {fidelity.samples} sample{'s' * (fidelity.samples != 1)} only")
        for agreement in fidelity.agreements:
            found += [line for line in agreement.doubts if fidelity.source == "data"]
        found += [
            f"output {name} of the original is NaN or infinite throughout"
            for name, output in fidelity.outputs.items()
            if output.finite_share == 0
        ]
    found += chance(accuracy, labels)
    return list(dict.fromkeys(found))


def chance(accuracy: Accuracy | None, labels: Array | None) -> list[str]:
    """Whether the original itself hardly does better than always naming the commonest label."""
    if accuracy is None or accuracy.metric != "top1" or labels is None or labels.dtype.kind not in "iu":
        return []
    if not labels.size or accuracy.before >= GOOD:
        return []
    counts = np.unique(labels, return_counts=True)[1]
    common = float(counts.max() / labels.size)
    if accuracy.before > CHANCE * common:
        return []
    return [
        f"the original itself is right on {accuracy.before:.1%}, the commonest label alone on {common:.1%}: "
        "are preprocessing, labels and classes right"
    ]
