"""What training lowers: cross-entropy of one class an image, or binary cross-entropy of each label."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from heatproof.errors import InputError, near_names
from heatproof.models.classifier import Task
from heatproof.training.options import BALANCED


class Loss(NamedTuple):
    """A sum of losses in nats and the weight it is divided by; sums and weights of several batches can be added."""

    total: Tensor
    weight: Tensor

    @property
    def mean(self) -> Tensor:
        """The loss itself; 0 where nothing is known."""
        return self.total / self.weight.clamp_min(torch.finfo(self.total.dtype).tiny)


def classification_loss(
    logits: Tensor, targets: Tensor, task: Task, *, weights: Tensor | None = None, smoothing: float = 0.0
) -> Loss:
    """The loss of a batch.

    Multi-class: cross-entropy; an image counts as much as its class weighs. Multi-label: the binary cross-entropy of
    every known label; the weight of a class multiplies the loss of its positives, unknown labels are left out.
    Smoothing moves that share of the target to all classes alike (`szegedy2016rethinking`), or half of it to the
    opposite of the label.

    Args:
        logits: `[B, K]`.
        targets: `[B, K]`, 1 the class applies, 0 it does not, NaN unknown (multi-label only).
        task: which of the two.
        weights: `[K]`, all 1 by default.
        smoothing: from 0 to below 1.

    Example:
        >>> known = torch.tensor([[1.0, torch.nan]])
        >>> classification_loss(torch.zeros(1, 2), known, "multilabel").mean  # ln 2
        tensor(0.6931)
    """
    if task == "multiclass":
        labels = targets.argmax(1)
        total = F.cross_entropy(logits, labels, weights, reduction="sum", label_smoothing=smoothing)
        return Loss(total, total.new_tensor(len(labels)) if weights is None else weights[labels].sum())
    known = ~targets.isnan()
    smooth = targets.nan_to_num() * (1 - smoothing) + smoothing / 2
    losses = F.binary_cross_entropy_with_logits(logits, smooth, reduction="none", pos_weight=weights)
    return Loss((losses * known).sum(), known.sum().to(losses))


def class_weights(
    weights: str | Mapping[str, float] | None, targets: Tensor, task: Task, classes: Sequence[str]
) -> Tensor | None:
    """The weights `[K]` of the classes; None where all weigh 1.

    `balanced`: multi-class `N / (K · images of the class)`, so that every class weighs the same in total; multi-label
    `negatives / positives` of the class among its known labels. A mapping leaves the classes that it does not name at 1.

    Args:
        weights: `balanced`, a mapping or None.
        targets: of the training images, `[N, K]`, see `classification_loss`.
        task: of the classifier.
        classes: its K classes.

    Raises:
        InputError: a weight for something that is no class.

    Example:
        >>> three_to_one = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> class_weights("balanced", three_to_one, "multiclass", ["normal", "lesion"])
        tensor([0.6667, 2.0000])
    """
    if weights is None:
        return None
    if weights == BALANCED:
        positives, negatives = (targets == 1).sum(0), (targets == 0).sum(0)
        return len(targets) / (len(classes) * positives) if task == "multiclass" else negatives / positives
    given: Mapping[str, float] = dict(weights)  # type: ignore[arg-type]
    for name in given:
        if name not in classes:
            raise InputError(f"class_weights: {name!r} is no class. {near_names(name, classes)}")
    return torch.tensor([float(given.get(name, 1)) for name in classes])
