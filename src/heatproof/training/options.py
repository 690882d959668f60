"""The options of `fit`, checked."""

from dataclasses import dataclass
from typing import Any

import torch

from heatproof.checks import check_count, check_number
from heatproof.models.device import resolve_device
from heatproof.probing.precision import check_precision


@dataclass(frozen=True)
class Options:
    """What the training loop needs to know, see `fit`."""

    epochs: int
    batch_size: int
    lr: float
    weight_decay: float
    patience: int | None
    seed: int
    device: torch.device
    precision: str
    augment: bool
    workers: int

    @classmethod
    def of(cls, **values: Any) -> "Options":
        """Check the arguments of `fit`; `InputError` for one out of range."""
        device = resolve_device(values.pop("device"))
        check_precision(values["precision"], device)
        for name in ("epochs", "batch_size"):
            check_count(name, values[name])
        if values["patience"] is not None:
            check_count("patience", values["patience"])
        check_number("lr", values["lr"], low=1e-12)
        for name in ("weight_decay", "workers", "seed"):
            check_number(name, values[name])
        return cls(device=device, **values)
