"""Class activation maps whose weights come from what the model says of changed images, without gradients."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from heatproof.explainers.feature_maps import FeatureSite, joined, over_versions, precise, run_to_features, visible
from heatproof.explainers.gradient import of_rows
from heatproof.explainers.registry import explainer
from heatproof.models import Classifier, Targets
from heatproof.probing import Baseline, BoundProbe, Precision
from heatproof.probing.precision import forward_pass


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

    It needs no gradients. But images seen through masks are unlike those that the model knows, and since all weights are
    positive it hardly tells classes apart.

    Formula:
        (Σ_k w_k A_k)⁺, w the softmax over channels of f(x ⊙ H_k), H_k the channel A_k enlarged bilinearly to the image and
        scaled to 0..1, or 0 where it is constant

    Cost:
        1 + D forward passes, no ways back.

    Models:
        CNN, ConvNeXt, ViT, Swin.

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

    Checked:
        pytorch-grad-cam `ScoreCAM`, to 2e-4: tests/peers/test_cam_family.py. After the peer's scaling of each map to
            0..1, on features of the images' size: to enlarge others, the peer aligns corners.
        the formula in float64, to 1e-4: tests/explainers/test_cam_family.py.
    """
    features = precise(run_to_features(model, images, layer).features)
    scores = probe(_ChannelMasks(features, images.shape[2:]), baseline=baseline, output="logit")
    return torch.einsum("bkt,bhwk->bthw", scores.softmax(1).to(features), features).clamp(min=0)


@explainer("ablationcam", family="cam", signed=False, needs={"spatial_features"}, paper="desai2020ablationcam")
def ablationcam(
    model: Classifier,
    images: Tensor,
    targets: Targets,
    *,
    probe: BoundProbe,
    layer: str | None = None,
    eigen_smooth: bool = False,
    aug_smooth: bool = False,
) -> Tensor:
    """Ablation-CAM: a channel weighs as much as the share of the score that is lost without it.

    It needs no gradients, which saturate. Channels are taken out one at a time: where several say the same, none of them is
    missed, and the map leaves out what the model relies on most safely.

    Formula:
        (Σ_k w_k A_k)⁺, w_k = (f − f_k) / |f|, f_k the score with A_k set to 0 (of a transformer, on the image's tokens)

    Cost:
        2 + D forward passes, no ways back. D of them begin at the features where the model allows it, as most do: each costs
        what comes after them.

    Models:
        CNN, ConvNeXt, ViT, Swin. It must run the same operations each time that it is called.

    Args:
        model: a CNN or a vision transformer.
        images: `[B, C, H, W]`.
        targets: `[B, T]`; with a contrast class, the score is the difference of the logits.
        probe: how passes are made.
        layer: as in `gradcam`.
        eigen_smooth: as in `gradcam`.
        aug_smooth: as in `gradcam`.

    Returns:
        Maps `[B, T, h, w]` on the grid of the features. NaN where f is 0.

    Checked:
        pytorch-grad-cam `AblationCAM`, to 2e-4: tests/peers/test_ablationcam.py. After the peer's scaling of each map
            to 0..1. The peer divides by f, as the paper does, which turns every sign where f is negative; of features
            that can be negative it sets channels to −1e7 in place of 0.
        the formula in float64, one changed pass after the other, to 1e-4: tests/explainers/test_ablationcam.py.

    Raises:
        UnsupportedModelError: the model runs other operations each time, so that its features are not found again.
    """

    def maps_of(images: Tensor) -> Tensor:
        features, site = _features_and_site(model, images, layer)
        weights = _shares_lost(model, images, targets, site, features.shape[3], probe).to(features)
        of_targets = (features * weight[:, None, None] for weight in weights.unbind(2))
        return torch.stack([joined(weighted, eigen_smooth=eigen_smooth) for weighted in of_targets], 1).clamp(min=0)

    return over_versions(maps_of, images) if aug_smooth else maps_of(images)


def _features_and_site(model: Classifier, images: Tensor, layer: str | None) -> tuple[Tensor, FeatureSite]:
    """The features alone, without the graph of the pass that made them."""
    seen = run_to_features(model, images, layer)
    return precise(seen.features), seen.site


def _shares_lost(
    model: Classifier, images: Tensor, targets: Targets, site: FeatureSite, channels: int, probe: BoundProbe
) -> Tensor:
    """The share of each score that is lost without each channel, `[B, D, T]`; NaN where the score is 0."""

    def score_of(row: int) -> Tensor:
        def scores(some: Tensor) -> Tensor:
            logits = _logits_without(some, model, images[row : row + 1], site, probe.precision)
            return of_rows(targets, torch.full_like(some, row)).score(logits)

        return probe.micro.run(scores, torch.arange(channels, device=images.device))

    with torch.no_grad():
        left = torch.stack([score_of(row) for row in range(len(images))])
        whole = targets.score(probe.logits(images))[:, None]
    size = whole.abs()
    return (whole - left) / torch.where(size > 0, size, torch.nan)


def _logits_without(
    channels: Tensor, model: Classifier, image: Tensor, site: FeatureSite, precision: Precision
) -> Tensor:
    """The logits `[n, classes]` of one image without each of `channels` `[n]`.

    By one pass to the features and n from there on; by n whole ones where the model is not made for more images behind its
    features than before, and says so or gives other than n rows.
    """

    def changed(images: Tensor) -> Tensor:
        with site.without_channels(channels):
            return model.logits_of(model.module(images))  # as many as there are channels, of perhaps one image

    with suppress(Exception):  # whatever the model says
        logits = forward_pass(changed, image, precision)
        if len(logits) == len(channels):
            return logits
    return forward_pass(changed, image.expand(len(channels), -1, -1, -1).contiguous(), precision)


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
        return 1 - visible(self.features[..., start:stop].movedim(-1, 1), self.size)
