"""Class activation maps whose weights come from what the model says of changed images, without gradients."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from heatproof.explainers.feature_maps import precise, run_to_features
from heatproof.explainers.registry import explainer
from heatproof.models import Classifier, Targets
from heatproof.probing import Baseline, BoundProbe


@explainer("scorecam", family="cam", signed=False, needs={"spatial_features"}, paper="wang2020scorecam")
def scorecam(
    model: Classifier,
    images: Tensor,
    targets: Targets,  # noqa: ARG001 the probe knows them
    *,
    probe: BoundProbe,
    layer: str | None = None,
    baseline: Baseline = 0.0,
) -> Tensor:
    """Score-CAM: a channel weighs as much as the target's logit on the image seen through that channel.

    `(Σ_k w_k A_k)⁺`, w the softmax over channels of `z_t(x ⊙ H_k)`, with H_k the channel enlarged bilinearly to the image
    and scaled to 0..1, or 0 where it is constant. It needs no gradients, but images seen through masks are unlike those
    that the model knows, and since all weights are positive it hardly tells classes apart. As many forward passes as there
    are channels.

    Args:
        model: a CNN or a vision transformer.
        images: `[B, C, H, W]`.
        targets: `[B, T]`; with a contrast class, the difference of the logits takes the logit's place.
        probe: the model on masked images.
        layer: as in `gradcam`.
        baseline: what stands where a channel is lowest, see `make_filling`: by default 0 in model-input units, as in the
            authors' code.

    Returns:
        Maps `[B, T, h, w]` on the grid of the features.
    """
    features = precise(run_to_features(model, images, layer).features)
    scores = probe(_ChannelMasks(features, images.shape[2:]), baseline=baseline, output="logit")
    return torch.einsum("bkt,bhwk->bthw", scores.softmax(1).to(features), features).clamp(min=0)


@dataclass(frozen=True)
class _ChannelMasks:
    """Mask k leaves of images of `size` (H, W) what channel k of the features `[B, h, w, D]` shows."""

    features: Tensor
    size: Sequence[int]

    @property
    def count(self) -> int:
        """The number of masks of each image."""
        return self.features.shape[3]

    def chunk(self, start: int, stop: int) -> Tensor:
        """The masks `start:stop`, float `[B, stop - start, H, W]`, 1 = replaced."""
        channels = self.features[..., start:stop].movedim(-1, 1)
        enlarged = F.interpolate(channels, tuple(self.size), mode="bilinear", align_corners=False)
        low, high = enlarged.amin((2, 3), keepdim=True), enlarged.amax((2, 3), keepdim=True)
        return torch.where(high > low, (high - enlarged) / (high - low), 1.0)
