"""Training images for the methods that are made of them."""

from typing import Any

import torch

from heatproof.datasets.table import Dataset
from heatproof.explanation import methods
from heatproof.models import Classifier
from heatproof.study.chunks import Bench
from heatproof.study.data import draw
from heatproof.study.models import read_batch
from heatproof.study.recipe import MethodSpec
from heatproof.study.writing import Failures


def options_of(method: MethodSpec, bench: Bench, failures: Failures) -> dict[str, Any]:
    """The options of a method in a study, with the training images that it needs; they are read once."""
    entry = methods()[method.name]
    if "references" not in entry.needs:
        return method.options
    count = int(method.options.get("samples", entry.options["samples"]))
    if count not in bench.references:
        bench.references[count] = draw_references(bench.clf, bench.dataset, count, bench.recipe.seed, failures)
    return {**method.options, **bench.references[count]}


def draw_references(clf: Classifier, dataset: Dataset, count: int, seed: int, failures: Failures) -> dict[str, Any]:
    """`references` `[N, C, H, W]` and their `labels` `[N]`: of each class `count` training images, or all there are.

    Which ones depends on the seed and on the ids alone. An image of several classes comes once for each; one that cannot
    be read is left out and added to `failures`.
    """
    train = dataset.subset("train")
    applies, ids = train.targets() == 1, train.samples["sample_id"].astype(str)
    chosen = [
        (sample, label)
        for label in range(len(dataset.classes))
        for sample in sorted(ids[applies[:, label]], key=lambda sample: draw(seed, sample, "reference"))[:count]
    ]
    batch = read_batch(clf, dataset, sorted({sample for sample, _ in chosen}), failures, "references")
    pairs = [(batch.ids.index(sample), label) for sample, label in chosen if sample in batch.ids]
    rows, labels = torch.tensor(pairs, dtype=torch.int64).view(-1, 2).unbind(1)
    return {"references": batch.images[rows], "labels": labels}
