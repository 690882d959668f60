"""Class activation maps: feature maps, weighted by how much the target wants them.

Features A and their gradient G = ∂score/∂A are `[B, h, w, D]`: D channels on a grid (h, w) of the image. A method says how
it weighs the features; a map is the positive part of their sum over channels. It cannot tell what speaks against the
target, and is as coarse as the grid. The methods share three options:

* `layer`: name of the module whose output is used, as in `module.named_modules()`: `[B, C, h, w]`, `[B, h, w, C]` or tokens
  `[B, N, D]`. By default the last spatial feature map of a CNN; of a vision transformer the image tokens after the last
  block's first layer norm; of one that attends within windows its last features.
* `eigen_smooth`: instead of their sum, project the weighted features on their first principal component, the cells centred,
  with the sign that agrees with the sum. It keeps the one pattern that most channels share.
* `aug_smooth`: the mean of the maps of six versions of the image, as it is and mirrored, each times 0.9, 1.0 and 1.1 in
  model-input units. Six times the cost.

Unless they say otherwise, methods take one forward pass, and one backward pass to the features for each target.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from heatproof.checks import check_choice, check_count, check_number
from heatproof.errors import UnsupportedModelError
from heatproof.explainers.feature_maps import precise, principal_component, run_to_features
from heatproof.explainers.registry import EXPLAINERS, Explain, explainer
from heatproof.models import Classifier, Targets

Weigh = Callable[[Tensor, Tensor], Tensor]  # features and slopes -> weighted features, all [B, h, w, D]

_FACTORS = (0.9, 1.0, 1.1)
_GRID = (1, 2)


@explainer("gradcam", family="cam", signed=False, needs={"spatial_features"}, paper="selvaraju2017gradcam")
def gradcam(
    model: Classifier,
    images: Tensor,
    targets: Targets,
    *,
    layer: str | None = None,
    eigen_smooth: bool = False,
    aug_smooth: bool = False,
) -> Tensor:
    """Grad-CAM: the positive part of the feature maps weighted by their average gradient.

    `(Σ_k mean(G_k) A_k)⁺`. Where the head is more than an average and a dense layer, it can also mark cells that the model
    did not use.

    Args:
        model: a CNN or a vision transformer.
        images: `[B, C, H, W]`.
        targets: `[B, T]`.
        layer: name of the module whose output is used, as in `module.named_modules()`: `[B, C, h, w]`, `[B, h, w, C]`
            or tokens `[B, N, D]`. By default the last spatial feature map of a CNN; of a transformer the image tokens after
            the last block's first layer norm, or of one that attends within windows its last features.
        eigen_smooth: project the weighted features on their first principal component in place of their sum.
        aug_smooth: average over mirrored, darker and brighter versions of the image, six in all.

    Returns:
        Maps `[B, T, h, w]` on the grid of the features.
    """
    return _cam(model, images, targets, _by_average_slope, layer, eigen_smooth, aug_smooth)


@explainer("gradcam_smoothed", family="cam", signed=False, needs={"spatial_features"}, paper="chung2024evaluating")
def gradcam_smoothed(model: Classifier, images: Tensor, targets: Targets, *, layer: str | None = None) -> Tensor:
    """Grad-CAM with both smoothings, `eigen_smooth` and `aug_smooth`; `layer` as in `gradcam`.

    Six forward passes. Less noisy than Grad-CAM, and not more faithful to the model for it.

    Returns:
        Maps `[B, T, h, w]` on the grid of the features.
    """
    return _cam(model, images, targets, _by_average_slope, layer, eigen_smooth=True, aug_smooth=True)


@explainer("gradcam_plus_plus", family="cam", signed=False, needs={"spatial_features"}, paper="chattopadhay2018gradcam")
def gradcam_plus_plus(
    model: Classifier,
    images: Tensor,
    targets: Targets,
    *,
    layer: str | None = None,
    eigen_smooth: bool = False,
    aug_smooth: bool = False,
) -> Tensor:
    """Grad-CAM++: a channel weighs as much as its positive gradients, more for cells where few others are active.

    `(Σ_k w_k A_k)⁺`, `w_k = Σ_ij α_ij G_ij⁺`, `α_ij = G² / (2 G² + G³ Σ_ab A_ab)`, which follows from the score
    exp(logit); that common factor is left out. Made for several objects of a class in one image, and for features that are
    not negative: elsewhere a denominator can come near zero, and one of exactly 0 has no weight. Options as in `gradcam`.

    Returns:
        Maps `[B, T, h, w]` on the grid of the features.
    """
    return _cam(model, images, targets, _by_higher_orders, layer, eigen_smooth, aug_smooth)


@explainer("xgradcam", family="cam", signed=False, needs={"spatial_features"}, paper="fu2020axiom")
def xgradcam(
    model: Classifier,
    images: Tensor,
    targets: Targets,
    *,
    layer: str | None = None,
    eigen_smooth: bool = False,
    aug_smooth: bool = False,
) -> Tensor:
    """XGrad-CAM: Grad-CAM whose gradients are averaged with the features as weights.

    `(Σ_k w_k A_k)⁺`, `w_k = Σ_ij G_ij A_ij / Σ_ij A_ij`, so that all channels together come near the score, as sensitivity
    and conservation ask. Made for features that are not negative: where those of a channel cancel, its weight grows without
    bound, and where they sum to exactly 0 it has none. Options as in `gradcam`.

    Returns:
        Maps `[B, T, h, w]` on the grid of the features.
    """
    return _cam(model, images, targets, _by_weighted_slope, layer, eigen_smooth, aug_smooth)


@explainer("hirescam", family="cam", signed=False, needs={"spatial_features"}, paper="draelos2020hirescam")
def hirescam(
    model: Classifier,
    images: Tensor,
    targets: Targets,
    *,
    layer: str | None = None,
    eigen_smooth: bool = False,
    aug_smooth: bool = False,
) -> Tensor:
    """HiResCAM: the positive part of the features times their gradients, cell by cell.

    `(Σ_k G_k A_k)⁺`. Where one dense layer follows the features, the map before its negative part is cut off sums to the
    logit less the bias: it marks only cells that the model used. Options as in `gradcam`.

    Returns:
        Maps `[B, T, h, w]` on the grid of the features.
    """
    return _cam(model, images, targets, torch.mul, layer, eigen_smooth, aug_smooth)


@explainer("layercam", family="cam", signed=False, needs={"spatial_features"}, paper="jiang2021layercam")
def layercam(
    model: Classifier,
    images: Tensor,
    targets: Targets,
    *,
    layer: str | None = None,
    eigen_smooth: bool = False,
    aug_smooth: bool = False,
) -> Tensor:
    """LayerCAM: the positive part of the features times their positive gradients, cell by cell.

    `(Σ_k G_k⁺ A_k)⁺`. It also serves early layers, whose grid is finer; cells that count for the target only together with
    others that count against it show up as if they counted alone. Options as in `gradcam`.

    Returns:
        Maps `[B, T, h, w]` on the grid of the features.
    """
    return _cam(model, images, targets, _by_positive_slope, layer, eigen_smooth, aug_smooth)


@explainer("eigencam", family="cam", signed=False, needs={"spatial_features"}, paper="muhammad2020eigencam")
def eigencam(
    model: Classifier, images: Tensor, targets: Targets, *, layer: str | None = None, aug_smooth: bool = False
) -> Tensor:
    """Eigen-CAM: the positive part of the features' first principal component, the same map for every target.

    Each image's cells are centred and projected on the direction in which they differ most; the cell farthest from their
    mean is made positive, since a component has no sign. It shows what stands out to the network, not what decides. One
    forward pass. Options as in `gradcam`.

    Returns:
        Maps `[B, T, h, w]` on the grid of the features.
    """

    def maps_of(images: Tensor) -> Tensor:
        return principal_component(precise(run_to_features(model, images, layer).features)).clamp(min=0)

    maps = _over_versions(maps_of, images) if aug_smooth else maps_of(images)
    return maps[:, None].expand(-1, targets.count, -1, -1)


@explainer("eigen_gradcam", family="cam", signed=False, needs={"spatial_features"}, paper="muhammad2020eigencam")
def eigen_gradcam(
    model: Classifier, images: Tensor, targets: Targets, *, layer: str | None = None, aug_smooth: bool = False
) -> Tensor:
    """Eigen-Grad-CAM: the first principal component of the features times their gradients, with the sign of their sum.

    `hirescam` with `eigen_smooth`: Eigen-CAM made to depend on the target. The centring takes out what all cells share, so
    the map tells where, not how much, the features speak for the target. Options as in `gradcam`.

    Returns:
        Maps `[B, T, h, w]` on the grid of the features.
    """
    return _cam(model, images, targets, torch.mul, layer, eigen_smooth=True, aug_smooth=aug_smooth)


@explainer("finercam", family="cam", signed=False, needs={"spatial_features"}, paper="zhang2025finercam")
def finercam(
    model: Classifier,
    images: Tensor,
    targets: Targets,
    *,
    layer: str | None = None,
    alpha: float = 1.0,
    similar: int = 3,
    eigen_smooth: bool = False,
    aug_smooth: bool = False,
) -> Tensor:
    """Finer-CAM: Grad-CAM of what sets the target apart from the classes most like it.

    Grad-CAM of `Σ_r p_r (z_t − α z_r) / Σ_r p_r`, over the classes r whose logits z are nearest to the target's, with their
    probabilities p (which the gradient goes through, too). It shows the difference between look-alikes; what they share is
    missing even where the model relies on it.

    Args:
        model: a CNN or a vision transformer of two classes or more.
        images: `[B, C, H, W]`.
        targets: `[B, T]`; with a contrast class, that one is the only r.
        layer: as in `gradcam`.
        alpha: α, how much of the other classes is taken away; 0 is Grad-CAM.
        similar: number of classes r, or all others where there are fewer.
        eigen_smooth: as in `gradcam`.
        aug_smooth: as in `gradcam`.

    Returns:
        Maps `[B, T, h, w]` on the grid of the features.
    """
    check_number("alpha", alpha)
    check_count("similar", similar)
    apart = _ApartFromSimilar(targets.index, targets.against, alpha, similar)
    return _cam(model, images, apart, _by_average_slope, layer, eigen_smooth, aug_smooth)


@explainer("lrp_gradcam", family="cam", signed=True, needs={"spatial_features"}, paper="selvaraju2017gradcam")
def lrp_gradcam(
    model: Classifier,
    images: Tensor,
    targets: Targets,
    *,
    explain: Explain,
    base: str = "lrp_epsilon",
    options: Mapping[str, Any] | None = None,
    layer: str | None = None,
    eigen_smooth: bool = False,
    aug_smooth: bool = False,
) -> Tensor:
    """LRP seen through Grad-CAM: a map of relevance times the upsampled Grad-CAM of the same target.

    As Guided Grad-CAM is made of guided backpropagation: LRP brings the fine detail and the sign, Grad-CAM the place.
    Relevance outside of the Grad-CAM is gone, so the sum says nothing any more. The cost of both.

    Args:
        model: a CNN or a vision transformer.
        images: `[B, C, H, W]`.
        targets: `[B, T]`.
        explain: maps by another explainer.
        base: a method of the relevance family.
        options: of the base method.
        layer: of Grad-CAM, as in `gradcam`.
        eigen_smooth: as in `gradcam`.
        aug_smooth: as in `gradcam`.

    Returns:
        Maps `[B, T, H, W]`.

    Raises:
        InputError: `base` is no method of the relevance family, or does not know an option.

    Example:
        >>> import heatproof as hp
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(16, 2))
        >>> images = torch.rand(1, 3, 4, 4)
        >>> hp.explain(net.eval(), images, method="lrp_gradcam", base="lrp_gamma", options={"gamma": 0.5}).shape
        torch.Size([1, 4, 4])
    """
    check_choice("base", base, [name for name, entry in EXPLAINERS.items() if entry.family == "relevance"])
    cam = _cam(model, images, targets, _by_average_slope, layer, eigen_smooth, aug_smooth)
    relevance = explain(images, targets, base, options or {})
    return relevance * F.interpolate(cam, relevance.shape[-2:], mode="bilinear", align_corners=False)


@dataclass(frozen=True)
class _ApartFromSimilar(Targets):
    """Targets whose score is what sets them apart from the `similar` classes with the nearest logits."""

    alpha: float = 1.0
    similar: int = 3

    def score(self, logits: Tensor) -> Tensor:
        """The target's logit less α times the mean of the others', weighted by their probabilities, `[B, T]`."""
        chosen = logits.gather(1, self.index)
        others = self._others(logits.detach(), chosen.detach())
        rest = logits[:, None].expand(-1, self.count, -1).gather(2, others)
        return chosen - self.alpha * (rest.softmax(2) * rest).sum(2)

    def _others(self, logits: Tensor, chosen: Tensor) -> Tensor:
        """The classes to compare with, `[B, T, R]`."""
        if self.against is not None:
            return self.against[:, :, None]
        if logits.shape[1] < 2:
            raise UnsupportedModelError("finercam compares classes, and the model has one. Use gradcam.")
        distance = (logits[:, None] - chosen[:, :, None]).abs().scatter(2, self.index[:, :, None], torch.inf)
        nearest = distance.argsort(dim=2, stable=True)
        return nearest[:, :, : min(self.similar, logits.shape[1] - 1)]


def _cam(
    model: Classifier,
    images: Tensor,
    targets: Targets,
    weigh: Weigh,
    layer: str | None,
    eigen_smooth: bool,
    aug_smooth: bool,
) -> Tensor:
    """The positive part of the features as `weigh` has them, over channels, `[B, T, h, w]`."""

    def maps_of(images: Tensor) -> Tensor:
        seen = run_to_features(model, images, layer)
        features = precise(seen.features)
        maps = []
        for score, last in targets.in_turn(seen.passed.logits):
            weighted = weigh(features, precise(seen.slopes(score, last=last)))
            total = weighted.sum(-1)
            maps.append(principal_component(weighted, guide=total) if eigen_smooth else total)
        return torch.stack(maps, 1).clamp(min=0)

    return _over_versions(maps_of, images) if aug_smooth else maps_of(images)


def _over_versions(maps_of: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """The mean of the maps of `images` as they are and mirrored, darker and brighter."""
    versions = [images * factor for factor in _FACTORS]
    maps = [maps_of(version) + maps_of(version.flip(-1)).flip(-1) for version in versions]
    return torch.stack(maps).sum(0) / (2 * len(_FACTORS))


def _by_average_slope(features: Tensor, slopes: Tensor) -> Tensor:
    return slopes.mean(_GRID, keepdim=True) * features


def _by_higher_orders(features: Tensor, slopes: Tensor) -> Tensor:
    """With G² cancelled from the fraction, which would vanish among small numbers."""
    shares = _ratio(torch.ones_like(slopes), 2 + slopes * features.sum(_GRID, keepdim=True))
    return (shares * slopes.clamp(min=0)).sum(_GRID, keepdim=True) * features


def _by_weighted_slope(features: Tensor, slopes: Tensor) -> Tensor:
    weights = _ratio((slopes * features).sum(_GRID, keepdim=True), features.sum(_GRID, keepdim=True))
    return weights * features


def _by_positive_slope(features: Tensor, slopes: Tensor) -> Tensor:
    return slopes.clamp(min=0) * features


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Their ratio, 0 where the denominator is."""
    return torch.where(denominator == 0, 0, numerator / denominator)
