"""A model together with all that its inputs and outputs mean."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from heatproof.checks import check_choice, check_count
from heatproof.errors import InputError
from heatproof.images.geometry import Geometry, fit_geometry
from heatproof.images.read import RawImage, read_image

Task = Literal["multiclass", "multilabel"]
Fit = Literal["resize", "crop", "letterbox"]


@dataclass(frozen=True)
class Preprocessing:
    """How a stored image becomes a model input.

    `image_size` is (height, width) in pixels; `mean` and `std` are per channel, for intensities in [0, 1], or None
    where unknown. `channels` is what the model takes: 3 repeats a grey image, 1 takes the luminance of a colour image.
    `fit` is the geometry: `resize` (aspect ratio not kept), `crop` (short side to `short_side`, then the centre),
    `letterbox`.
    """

    image_size: tuple[int, int]
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    channels: int = 3
    fit: Fit = "resize"
    short_side: int | None = None

    def __post_init__(self) -> None:
        for side in self.image_size:
            check_count("image_size", side)
        check_choice("fit", self.fit, get_args(Fit))
        if self.short_side is not None and self.fit != "crop":
            raise InputError(
                f"short_side belongs to fit='crop', got fit={self.fit!r}: leave it out, or set it to None."
            )
        if self.channels not in (1, 3):
            raise InputError(f"channels must be 1 or 3, got {self.channels}.")
        if (self.mean is None) != (self.std is None):
            raise InputError("mean and std belong together: give both or neither.")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(values) != self.channels:
                raise InputError(
                    f"{name} needs one value for each of the {self.channels} channels, got {list(values)}."
                )
        if self.std is not None and min(self.std) <= 0:
            raise InputError(f"std must be positive, got {list(self.std)}.")

    def __call__(self, raw: RawImage) -> tuple[Tensor, Geometry]:
        """The model input `[C, H, W]` (float32) of one image, and the geometry that took it there."""
        geometry = fit_geometry(self.fit, raw.size, self.image_size, short_side=self.short_side)
        pixels = geometry.image(raw.pixels)
        if pixels.ndim == 3 and self.channels == 1:
            pixels = pixels @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
        if pixels.ndim == 2:
            pixels = np.repeat(pixels[..., None], self.channels, axis=2)
        channels_first = np.ascontiguousarray(pixels.transpose(2, 0, 1), dtype=np.float32)
        return self.normalize(torch.from_numpy(channels_first)), geometry

    def normalize(self, intensities: Tensor) -> Tensor:
        """Raw intensities in [0, 1], `[..., C, H, W]`, to model-input units."""
        mean, std = self._constants(intensities)
        return (intensities - mean) / std

    def denormalize(self, images: Tensor) -> Tensor:
        """The inverse of `normalize`."""
        mean, std = self._constants(images)
        return images * std + mean

    def _constants(self, like: Tensor) -> tuple[Tensor, Tensor]:
        if self.mean is None or self.std is None:
            raise InputError(
                "The normalisation of this model is unknown, so raw intensities cannot be had. Say which it is with "
                'Classifier(module, mean=..., std=...), or work in model-input units: baseline=0.0, units="normalized".'
            )
        shape = (len(self.mean), 1, 1)
        return like.new_tensor(self.mean).view(shape), like.new_tensor(self.std).view(shape)


class Classifier:
    """A classifier with its classes and preprocessing.

    Args:
        module: any `torch.nn.Module` that takes `[B, C, H, W]` and returns logits `[B, K]`, or an object with
            `.logits`.
        classes: the K class names; None where unknown.
        task: `multiclass` (softmax) or `multilabel` (sigmoid).
        image_size: one number or (height, width), in pixels.
        mean, std: per channel, for intensities in [0, 1].
        channels: channels that the module takes, 1 or 3.
        fit, short_side: the geometry of the input, see `Preprocessing`.
        source: what rebuilds the module without its weights (set by `load_classifier`, kept in checkpoints).

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
        >>> clf = Classifier(net.eval(), classes=["normal", "lesion"], image_size=4, channels=1, mean=[0.5], std=[0.25])
        >>> clf(torch.zeros(3, 1, 4, 4)).shape
        torch.Size([3, 2])
    """

    def __init__(
        self,
        module: nn.Module,
        classes: Sequence[str] | None = None,
        *,
        task: Task = "multiclass",
        image_size: int | tuple[int, int] = 224,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        channels: int = 3,
        fit: Fit = "resize",
        short_side: int | None = None,
        source: dict[str, Any] | None = None,
    ) -> None:
        if not isinstance(module, nn.Module):
            raise InputError(
                f"A Classifier needs a torch.nn.Module, got {type(module).__name__}. For an exported program, give the "
                "module that it was exported from."
            )
        if task not in ("multiclass", "multilabel"):
            raise InputError(f"task must be 'multiclass' or 'multilabel', got {task!r}.")
        if isinstance(classes, str) or (classes is not None and len(set(classes)) != len(classes)):
            raise InputError(f"classes must be a list of distinct names, got {classes!r}.")
        size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        self.module = module
        self.classes = None if classes is None else tuple(str(name) for name in classes)
        self.task: Task = task
        self.source = source
        self.preprocessing = Preprocessing(
            image_size=(int(size[0]), int(size[1])),
            mean=None if mean is None else tuple(float(v) for v in mean),
            std=None if std is None else tuple(float(v) for v in std),
            channels=channels,
            fit=fit,
            short_side=short_side,
        )

    def __repr__(self) -> str:
        classes = "unknown" if self.classes is None else list(self.classes)
        return f"Classifier({type(self.module).__name__}, classes={classes}, task={self.task!r}, {self.preprocessing})"

    @property
    def device(self) -> torch.device:
        """Where the first parameter lies (the CPU for a module without parameters)."""
        return next((p.device for p in self.module.parameters()), torch.device("cpu"))

    def to(self, device: torch.device | str) -> "Classifier":
        """Move the module in place; returns self."""
        self.module.to(device)
        return self

    def with_preprocessing(self, **changes: Any) -> "Classifier":
        """The same module under another preprocessing (fields of `Preprocessing`)."""
        other = Classifier(self.module, self.classes, task=self.task, source=self.source)
        other.preprocessing = replace(self.preprocessing, **changes)
        return other

    def __call__(self, images: Tensor) -> Tensor:
        """Logits `[B, K]` of preprocessed images `[B, C, H, W]`; gradients flow where the caller enabled them.

        Raises:
            InputError: the module or a part of it is in training mode, or what it returns are not these images' logits.
        """
        self._check_evaluating()
        logits = self.logits_of(self.module(images))
        if len(logits) != len(images):
            raise InputError(
                f"The model must return one row of logits for each image, got {len(logits)} rows for {len(images)} images."
            )
        return logits

    def _check_evaluating(self) -> None:
        for path, part in self.module.named_modules():
            if part.training and (not path or _minds_training(type(part))):  # type: ignore[arg-type]
                which = f"The module {path!r} ({type(part).__name__})" if path else "The model"
                raise InputError(
                    f"{which} is in training mode: dropout and batch norm would change the answers. Call model.eval() "
                    "(an exported program cannot: use the model that it was exported from)."
                )

    def logits_of(self, output: Any) -> Tensor:
        """The logits `[B, K]` in what the module returned.

        Raises:
            InputError: there are none, or not as many a sample as there are classes.
        """
        logits = getattr(output, "logits", output)
        if not isinstance(logits, Tensor):
            keys = f" with {', '.join(map(repr, output))}" if isinstance(output, Mapping) else ""
            raise InputError(
                "The model must return a tensor of logits [B, K] or an object with .logits, got "
                f"{type(output).__name__}{keys}. Wrap it in a module that picks the logits."
            )
        if logits.ndim != 2 or not logits.is_floating_point():
            raise InputError(
                f"The model must return floating-point logits of shape [B, K], got {tuple(logits.shape)} of {logits.dtype}. "
                "Wrap it in a module that makes them so."
            )
        if self.classes is not None and logits.shape[1] != len(self.classes):
            raise InputError(
                f"The model has {logits.shape[1]} outputs and {len(self.classes)} classes {list(self.classes)}: "
                "they must agree."
            )
        return logits

    def probabilities(self, logits: Tensor) -> Tensor:
        """Softmax (multiclass) or sigmoid (multilabel) of logits `[..., K]`."""
        return logits.softmax(-1) if self.task == "multiclass" else logits.sigmoid()

    def output(self, name: str) -> Callable[[Tensor], Tensor]:
        """The function from logits `[..., K]` to what a metric looks at: `probability` or `logit`."""
        if name == "probability":
            return self.probabilities
        if name == "logit":
            return lambda logits: logits
        raise InputError(f"output must be 'probability' or 'logit', got {name!r}.")

    def predict(self, images: Tensor) -> Tensor:
        """The class with the largest logit, int64 `[B]`."""
        with torch.no_grad():
            return self(images).argmax(1)

    @property
    def intensity_range(self) -> tuple[Tensor, Tensor]:
        """Black and white of the raw image in model-input units, float32 `[C, 1, 1]` each."""
        black = torch.zeros(self.preprocessing.channels, 1, 1)
        return self.preprocessing.normalize(black), self.preprocessing.normalize(black + 1)

    def read(self, paths: Sequence[str | Path]) -> Tensor:
        """Image files to model inputs `[B, C, H, W]`, float32, on the model's device.

        Raises:
            ImageError: a file is missing or unreadable; the message names it.
            InputError: a single path in place of a list, or an empty list.
        """
        if isinstance(paths, str | Path):
            raise InputError(f"read takes a list of paths, got the single path {str(paths)!r}: put it in a list.")
        if not len(paths):
            raise InputError("read takes at least one path, got an empty list.")
        return torch.stack([self.preprocessing(read_image(path))[0] for path in paths]).to(self.device)


def as_classifier(model: "Classifier | nn.Module") -> Classifier:
    """A bare module counts as a multi-class classifier with unknown classes and normalisation."""
    return model if isinstance(model, Classifier) else Classifier(model)


@cache
def _minds_training(kind: type[nn.Module]) -> bool:
    """Whether a module class looks at its `training` flag: one that does not, say a flattening, may be in either mode."""
    functions = [
        value for base in kind.__mro__ if base not in (nn.Module, object) for value in vars(base).values()
        if isinstance(value, FunctionType)
    ]  # fmt: skip
    return any(_reads(function.__code__, "training") for function in functions)


def _reads(code: CodeType, name: str) -> bool:
    return name in code.co_names or any(_reads(part, name) for part in code.co_consts if isinstance(part, CodeType))
