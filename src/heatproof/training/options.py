"""The options of `fit`, checked."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch

from heatproof.checks import check_choice, check_count, check_number
from heatproof.errors import InputError
from heatproof.models.device import resolve_device
from heatproof.probing.precision import check_precision
from heatproof.training.augment import Augmentation

Optimizer = Literal["adamw", "adam", "sgd"]
Schedule = Literal["constant", "cosine"]
TrainingPrecision = Literal["fp32", "bf16", "fp16"]

BACKBONE = "backbone"
"""The word of `freeze` for everything but the head."""
BALANCED = "balanced"
"""The word of `class_weights` for weights against the imbalance."""


@dataclass(frozen=True)
class Options:
    """What the training loop needs to know, see `fit`."""

    epochs: int
    batch_size: int
    optimizer: Optimizer
    momentum: float | None
    lr: float
    weight_decay: float
    schedule: Schedule
    warmup: float
    layer_decay: float
    freeze: str | tuple[str, ...]
    patience: int | None
    augment: Augmentation | None
    class_weights: str | Mapping[str, float] | None
    label_smoothing: float
    grad_clip: float | None
    precision: TrainingPrecision
    seed: int
    device: torch.device
    workers: int
    memory_gib: float

    @classmethod
    def of(cls, **values: Any) -> "Options":
        """Check the arguments of `fit`; `InputError` for one out of range or of no effect beside the others."""
        values["device"] = resolve_device(values["device"])
        _check_precision(values["precision"], values["device"])
        _check_numbers(values)
        values["momentum"] = _momentum(values["momentum"], values["optimizer"])
        values["freeze"] = _patterns(values["freeze"])
        values["augment"] = Augmentation.of(values["augment"])
        values["class_weights"] = _class_weights(values["class_weights"])
        return cls(**values)

    @property
    def record(self) -> dict[str, Any]:
        """The options as JSON values."""
        return {**asdict(self), "device": str(self.device), "freeze": _plain(self.freeze)}

    @property
    def identity(self) -> dict[str, Any]:
        """Those that the trained weights depend on: not how fast, nor on which of several devices."""
        kept = {name: value for name, value in self.record.items() if name not in ("workers", "memory_gib")}
        return {**kept, "device": self.device.type}


def _check_precision(precision: str, device: torch.device) -> None:
    check_choice("precision", precision, get_args(TrainingPrecision))
    if precision != "fp16":
        check_precision(precision, device)
    elif device.type != "cuda":
        raise InputError(
            f"precision='fp16' trains with a gradient scaler on CUDA devices only, this device is {device.type}. "
            "Use 'fp32', or 'bf16' where the processor has it."
        )


def _check_numbers(values: Mapping[str, Any]) -> None:
    check_choice("optimizer", values["optimizer"], get_args(Optimizer))
    check_choice("schedule", values["schedule"], get_args(Schedule))
    for name in ("epochs", "batch_size"):
        check_count(name, values[name])
    if values["patience"] is not None:
        check_count("patience", values["patience"])
    check_number("lr", values["lr"], low=1e-12)
    for name in ("weight_decay", "warmup", "workers", "seed", "memory_gib"):
        check_number(name, values[name])
    check_number("layer_decay", values["layer_decay"], low=1e-3, high=1)
    check_number("label_smoothing", values["label_smoothing"], high=0.999)
    if values["grad_clip"] is not None:
        check_number("grad_clip", values["grad_clip"], low=1e-12)
    if values["warmup"] >= values["epochs"]:
        raise InputError(
            f"warmup must be shorter than the training of {values['epochs']} epochs, got {values['warmup']} epochs."
        )


def _momentum(momentum: float | None, optimizer: str) -> float | None:
    if optimizer == "sgd":
        return check_number("momentum", 0.9 if momentum is None else momentum, high=0.999)
    if momentum is not None:
        raise InputError(
            f"momentum belongs to optimizer='sgd', got optimizer={optimizer!r} and momentum={momentum!r}: leave it out."
        )
    return None


def _patterns(freeze: str | Sequence[str] | None) -> str | tuple[str, ...]:
    if freeze is None or freeze == BACKBONE:
        return freeze or ()
    if isinstance(freeze, str) or not all(isinstance(pattern, str) for pattern in freeze):
        raise InputError(f"freeze must be {BACKBONE!r} or a list of names with *, got {freeze!r}.")
    return tuple(freeze)


def _class_weights(weights: str | Mapping[str, float] | None) -> str | dict[str, float] | None:
    if weights is None or weights == BALANCED:
        return weights if weights is None else BALANCED
    if not isinstance(weights, Mapping) or not weights:
        raise InputError(
            f"class_weights must be {BALANCED!r}, a mapping from class to weight or None, got {weights!r}."
        )
    return {name: check_number(f"class_weights[{name!r}]", value, low=1e-6) for name, value in weights.items()}


def _plain(freeze: str | tuple[str, ...]) -> str | list[str]:
    return freeze if isinstance(freeze, str) else list(freeze)
