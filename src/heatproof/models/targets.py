"""What is explained: a class of each image, or several, alone or against another."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from heatproof.errors import InputError, near_names


@dataclass(frozen=True)
class Targets:
    """Target classes `index` `[B, T]` and, where a contrast is explained, the classes `against` `[B, T]` (int64)."""

    index: Tensor
    against: Tensor | None = None

    @classmethod
    def of(cls, index: Tensor, against: Tensor | int | None, classes: int) -> "Targets":
        """Check and build targets for a model with `classes` outputs; `index` is int `[B]` or `[B, T]`."""
        index = _as_table(index, "targets", classes)
        if against is None:
            return cls(index)
        if isinstance(against, int):
            against = torch.full_like(index, against)
        against = _as_table(against.to(index.device), "against", classes)
        if against.shape != index.shape:
            raise InputError(
                f"against must have the shape of targets {tuple(index.shape)} or be one class, "
                f"got {tuple(against.shape)}."
            )
        return cls(index, against)

    @property
    def count(self) -> int:
        """T, the number of targets an image."""
        return self.index.shape[1]

    def score(self, logits: Tensor) -> Tensor:
        """The explained score of `logits` `[B, K]` -> `[B, T]`: the target's logit, less that of `against`."""
        chosen = logits.gather(1, self.index)
        return chosen if self.against is None else chosen - logits.gather(1, self.against)

    def in_turn(self, logits: Tensor) -> Iterator[tuple[Tensor, bool]]:
        """The score `[B]` of one target an image after the other, and whether it is the last."""
        for i, score in enumerate(self.score(logits).unbind(1), 1):
            yield score, i == self.count

    def rows(self, start: int, stop: int) -> "Targets":
        """The targets of the images `start:stop`."""
        against = None if self.against is None else self.against[start:stop]
        return Targets(self.index[start:stop], against)


def class_index(classes: Sequence[str] | None, name: str, argument: str, *, others: Sequence[str] = ()) -> int:
    """The place of the class `name` among a model's outputs; `others` are further values that `argument` may have.

    Raises:
        InputError: no such class; the message lists the near ones.

    Example:
        >>> class_index(["normal", "lesion"], "lesion", "target")
        1
    """
    known = list(classes or ())
    if name not in known:
        raise InputError(f"{argument}: the model has no class {name!r}. {near_names(name, [*others, *known])}")
    return known.index(name)


def _as_table(index: Tensor, name: str, classes: int) -> Tensor:
    index = torch.as_tensor(index)
    if index.is_floating_point() or index.dtype == torch.bool or index.ndim not in (1, 2):
        raise InputError(
            f"{name} must be integers of shape [B] or [B, T], got {index.dtype} of shape {tuple(index.shape)}."
        )
    if index.numel() and (int(index.min()) < 0 or int(index.max()) >= classes):
        raise InputError(
            f"{name} must lie in 0..{classes - 1} for a model with {classes} outputs, "
            f"got values from {int(index.min())} to {int(index.max())}."
        )
    index = index.long()
    return index[:, None] if index.ndim == 1 else index
