"""Layer-wise relevance propagation to the pixels, for any model."""

import torch
from torch import Tensor

from heatproof.explainers.registry import explainer
from heatproof.models import Classifier, Targets
from heatproof.relevance import Preset, presets, run
from heatproof.relevance.mode import Start


@explainer("lrp_z", family="relevance", signed=True, paper="bach2015pixelwise")
def lrp_z(model: Classifier, images: Tensor, targets: Targets, *, strict: bool, start: Start = "logit") -> Tensor:
    """LRP with the plain z rule; on a ReLU network this is input times gradient.

    Relevance starts as the target's logit, or as 1 with `start="one"`; what biases absorb does not arrive.

    Returns:
        Maps `[B, T, H, W]`, summed over channels.
    """
    return _to_pixels(model, images, targets, presets.lrp_z(start), strict)


@explainer("lrp_epsilon", family="relevance", signed=True, paper="bach2015pixelwise")
def lrp_epsilon(
    model: Classifier,
    images: Tensor,
    targets: Targets,
    *,
    strict: bool,
    epsilon: float | None = None,
    relative: bool = False,
    start: Start = "logit",
) -> Tensor:
    """LRP with the ε rule: neurons near zero pass less on.

    `epsilon` is absolute, 1e-6 by default, or with `relative` a share of each sample's mean |z| in the layer, 0.25 by
    default.

    Returns:
        Maps `[B, T, H, W]`, summed over channels.
    """
    if epsilon is None:
        epsilon = 0.25 if relative else 1e-6
    return _to_pixels(model, images, targets, presets.lrp_epsilon(epsilon, relative, start), strict)


def _to_pixels(model: Classifier, images: Tensor, targets: Targets, preset: Preset, strict: bool) -> Tensor:
    passed = run(model, images, preset, strict=strict)
    scores = targets.score(passed.logits).unbind(1)
    return torch.stack([passed.relevance(score).sum(1) for score in scores], 1)
