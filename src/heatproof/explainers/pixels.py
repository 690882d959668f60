"""From a preset of relevance rules to maps of pixels."""

from typing import get_args

import torch
from torch import Tensor

from heatproof.checks import check_choice
from heatproof.models import Classifier, Targets
from heatproof.relevance import ForwardPass, Preset, run
from heatproof.relevance.mode import Start


def to_pixels(model: Classifier, images: Tensor, targets: Targets, preset: Preset, strict: bool) -> Tensor:
    """The maps `[B, T, H, W]` of a preset: the relevance of each pixel, summed over channels."""
    return summed(run_checked(model, images, preset, strict), targets)


def run_checked(model: Classifier, images: Tensor, preset: Preset, strict: bool) -> ForwardPass:
    """The forward pass under a preset whose start a user has named.

    Raises:
        InputError: the start is neither `logit` nor `one`.
    """
    check_choice("start", preset.start, get_args(Start))
    return run(model, images, preset, strict=strict)


def summed(passed: ForwardPass, targets: Targets) -> Tensor:
    """The relevance of each pixel, summed over channels, for each target `[B, T, H, W]`."""
    scores = targets.in_turn(passed.logits)
    return torch.stack([passed.relevance(score, last=last).sum(1) for score, last in scores], 1)
