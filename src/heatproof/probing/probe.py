"""The question of every perturbation method: what does the model say when these pixels are replaced?"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Protocol

import torch
from torch import Tensor

from heatproof.errors import InputError
from heatproof.probing.baselines import Baseline, Filling, make_filling
from heatproof.probing.dropping import logits_without_tokens
from heatproof.probing.masks import Masks
from heatproof.probing.microbatch import MicroBatch
from heatproof.probing.precision import Precision, check_precision, forward_pass
from heatproof.probing.randomness import SampleRandom

_TOKEN_MASKS_AT_ONCE = 4096  # small as they are, many together leave large groups that lose as many tokens


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
            masks: K masks of each of the B images, over pixels, True = replaced, or the replaced share of each pixel as a
                float; under `drop` bool masks over the tokens.
            baseline: what replaces a pixel, see `make_filling`, or `drop`: tokens are taken out of the sequence of a vision
                transformer, see `logits_without_tokens`.
            output: `probability` or `logit`.

        Returns:
            `[B, K, ...]`, where `...` is what `score` makes of an image's classes: nothing for one number, T for T targets.

        Raises:
            InputError: an unknown baseline or output, no masks, or masks of another size than the images.
            UnsupportedModelError: `drop`, and the model is no vision transformer that can do with fewer tokens.
        """
        if masks.count == 0:
            raise InputError("There are no masks to probe: give at least one.")
        drops = isinstance(baseline, str) and baseline == "drop"
        answer = self._dropped if drops else partial(self._filled, self._filling(baseline))
        view = self.model.output(output)
        found, stop = [], 0
        while stop < masks.count:
            together = _TOKEN_MASKS_AT_ONCE if drops else self.micro.size  # which grows while it searches
            start, stop = stop, min(masks.count, stop + max(1, together // len(self.images)))
            found.append(self._scores(view(answer(masks.chunk(start, stop)))))
            if self.progress is not None:
                self.progress(stop / masks.count)
        return torch.cat(found, 1)

    def unmasked(self, *, output: str = "probability") -> Tensor:
        """The output on the images as they are, `[B, ...]`; the forward pass runs once, however often it is asked for."""
        return self._scores(self.model.output(output)(self.unmasked_logits)[:, None])[:, 0]

    def logits(self, images: Tensor) -> Tensor:
        """Logits `[n, classes]` of any images, under the probe's precision and micro-batch; no gradients."""
        with torch.no_grad():
            return self.micro.run(self._forward, images)

    @cached_property
    def unmasked_logits(self) -> Tensor:
        """The logits of the images themselves, `[B, classes]`."""
        return self.logits(self.images)

    def _filling(self, baseline: Baseline) -> Filling:
        return make_filling(
            baseline, self.images, black=lambda: self.model.intensity_range[0], random=self.random
        )  # fmt: skip

    def _filled(self, fill: Filling, chunk: Tensor) -> Tensor:
        """Logits `[B, k, classes]` under masks `[B, k, H, W]`."""
        if chunk.shape[0] != len(self.images) or chunk.shape[2:] != self.images.shape[2:]:
            raise InputError(f"Masks {list(chunk.shape)} do not fit images {list(self.images.shape)}.")
        return self.logits(fill(chunk).flatten(0, 1)).view(*chunk.shape[:2], -1)

    def _dropped(self, chunk: Tensor) -> Tensor:
        """Logits `[B, k, classes]` without the tokens of masks `[B, k, h, w]`; those that lose as many go together."""
        if chunk.shape[0] != len(self.images) or chunk.dtype != torch.bool:
            raise InputError(
                f"baseline='drop' needs bool masks over the tokens of {len(self.images)} images, got {chunk.dtype} "
                f"{list(chunk.shape)}."
            )
        flat = chunk.flatten(0, 1)
        counts = flat.flatten(1).sum(1)

        def forward(rows: Tensor) -> Tensor:
            images = self.images[rows // chunk.shape[1]]
            return logits_without_tokens(self._forward, images, flat[rows])

        groups = [(counts == count).nonzero()[:, 0] for count in counts.unique()]
        with torch.no_grad():
            found = torch.cat([self.micro.run(forward, rows) for rows in groups])
        return found[torch.cat(groups).argsort()].view(*chunk.shape[:2], -1)

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
