"""The question of every perturbation method: what does the model say when these pixels are replaced?"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from heatproof.errors import InputError
from heatproof.probing.baselines import Baseline, make_baseline
from heatproof.probing.masks import Masks
from heatproof.probing.microbatch import MicroBatch
from heatproof.probing.precision import Precision, check_precision, forward_pass
from heatproof.probing.randomness import SampleRandom


class Model(Protocol):
    """What a probe asks of a classifier."""

    def __call__(self, images: Tensor) -> Tensor:
        """Logits `[n, classes]` of images `[n, C, H, W]`."""

    def output(self, name: str) -> Callable[[Tensor], Tensor]:
        """The function from logits to `probability` or `logit`."""

    @property
    def intensity_range(self) -> tuple[Tensor, Tensor]:
        """Black and white in model-input units, `[C, 1, 1]`; raises where the normalisation is unknown."""


@dataclass(frozen=True)
class BoundProbe:
    """A probe of one batch: `model` on masked versions of `images`, seen through `score`. Made by `bind`."""

    model: Model
    images: Tensor
    score: Callable[[Tensor], Tensor]
    random: SampleRandom
    micro: MicroBatch
    precision: Precision
    progress: Callable[[float], None] | None

    def __call__(self, masks: Masks, *, baseline: Baseline = "black", output: str = "probability") -> Tensor:
        """The output on each masked image.

        Args:
            masks: K masks of each of the B images, True = replaced.
            baseline: what replaces a pixel, see `make_baseline`.
            output: `probability` or `logit`.

        Returns:
            `[B, K, ...]`, where `...` is what `score` makes of an image's classes: nothing for one number, T for T targets.

        Raises:
            InputError: an unknown baseline or output, no masks, or masks of another size than the images.
        """
        if masks.count == 0:
            raise InputError("There are no masks to probe: give at least one.")
        replacement = make_baseline(
            baseline, self.images, black=lambda: self.model.intensity_range[0], random=self.random
        )
        view = self.model.output(output)
        found, start = [], 0
        while start < masks.count:
            stop = min(masks.count, start + max(1, self.micro.size // len(self.images)))
            found.append(self._scores(view(self._masked_logits(masks.chunk(start, stop), replacement))))
            start = stop
            if self.progress is not None:
                self.progress(start / masks.count)
        return torch.cat(found, 1)

    def unmasked(self, *, output: str = "probability") -> Tensor:
        """The output on the images as they are, `[B, ...]`; the forward pass runs once, however often it is asked for."""
        return self._scores(self.model.output(output)(self._logits)[:, None])[:, 0]

    def logits(self, images: Tensor) -> Tensor:
        """Logits `[n, classes]` of any images, under the probe's precision and micro-batch; no gradients."""
        with torch.no_grad():
            return self.micro.run(self._forward, images)

    @cached_property
    def _logits(self) -> Tensor:
        return self.logits(self.images)

    def _masked_logits(self, chunk: Tensor, replacement: Tensor) -> Tensor:
        """Logits `[B, k, classes]` under masks `[B, k, H, W]`."""
        if chunk.shape[0] != len(self.images) or chunk.shape[2:] != self.images.shape[2:]:
            raise InputError(f"Masks {list(chunk.shape)} do not fit images {list(self.images.shape)}.")
        masked = torch.where(chunk[:, :, None], replacement[:, None], self.images[:, None])
        return self.logits(masked.flatten(0, 1)).view(*chunk.shape[:2], -1)

    def _forward(self, images: Tensor) -> Tensor:
        return forward_pass(self.model, images, self.precision)

    def _scores(self, outputs: Tensor) -> Tensor:
        """`score` sees `[B, classes]`, one mask at a time, so that its rows are the images' rows."""
        return torch.stack([self.score(values) for values in outputs.unbind(1)], 1)


def bind(
    model: Model,
    images: Tensor,
    score: Callable[[Tensor], Tensor],
    *,
    random: SampleRandom,
    batch_size: int | MicroBatch | None = None,
    precision: Precision = "fp32",
    progress: Callable[[float], None] | None = None,
) -> BoundProbe:
    """A probe of `images`.

    Args:
        model: images to logits.
        images: `[B, C, H, W]`, preprocessed.
        score: from outputs (probabilities or logits) `[B, classes]` to `[B]` or `[B, T]`.
        random: one random stream an image.
        batch_size: images in one forward pass; by default measured. A `MicroBatch` shares what it learned between probes.
        precision: `fp32`, or `bf16` for forward passes in bfloat16.
        progress: called with the share of masks done, from 0 to 1.

    Raises:
        InputError: `bf16` on a device without it, or an impossible `batch_size`.
    """
    check_precision(precision, images.device)
    micro = batch_size if isinstance(batch_size, MicroBatch) else MicroBatch(batch_size)
    return BoundProbe(model, images, score, random, micro, precision, progress)
