"""Which samples do both models put into other classes, and what do they look like?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxcomp.data.dataset import Samples
from onnxcomp.data.sheet import thumbnail, viewable
from onnxcomp.results import Fidelity, Flip


def flips(fidelity: Fidelity, samples: Samples) -> list[Flip]:
    """The first samples of each output of classes that changed their class, in order, a sample once.

    Args:
        samples: what the fidelity was measured on.
    """
    dataset, labels = samples.dataset, samples.labels
    placed = in_feeds_of_one(fidelity, samples)
    found: dict[int, Flip] = {}
    for sample, before, after in (flip for agreement in fidelity.agreements for flip in agreement.flips):
        whole = labels is not None and labels.ndim == 1 and labels.dtype.kind in "iu" and sample < len(labels)
        label = int(labels[sample]) if labels is not None and whole else None
        name = dataset.name_of(int(samples.indices[sample])) if placed else f"sample {sample}"
        found.setdefault(sample, Flip(sample, name, before, after, label))
    return [found[sample] for sample in sorted(found)]


def in_feeds_of_one(fidelity: Fidelity, samples: Samples) -> bool:
    """Whether a sample's number is its place; where data are whole feeds of several rows each, rows are counted."""
    counted = fidelity.samples if fidelity.certainty is None else fidelity.certainty.available
    return counted == len(samples)


def pictures(found: Sequence[Flip], samples: Samples) -> dict[int, str]:
    """What the model sees of each, by sample, as a `data:` address; empty where no input holds pictures."""
    dataset = samples.dataset
    batch = dataset.reader.batch or 1
    for spec in dataset.inputs:
        shown = {}
        for flip in found:
            start = flip.sample // batch * batch
            own = Samples(dataset, np.asarray(samples.indices[start : start + batch]))
            feed = next(own.batches(batch))
            picture = viewable(feed[spec.name], spec, dataset.pixels.get(spec.name))
            if picture is None or len(picture) <= flip.sample - start:
                break
            shown[flip.sample] = thumbnail(picture[flip.sample - start])
        if shown:
            return shown
    return {}
