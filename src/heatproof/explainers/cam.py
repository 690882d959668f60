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
from heatproof.explainers.feature_maps import joined, over_versions, precise, principal_component, run_to_features
from heatproof.explainers.registry import EXPLAINERS, Explain, explainer
from heatproof.models import Classifier, Targets

Weigh = Callable[[Tensor, Tensor], Tensor]  # features and slopes -> weighted features, all [B, h, w, D]

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

    It tells roughly where the features lie that the target wants. Where the head is more than an average and a dense layer,
    it can also mark cells that the model did not use [draelos2020hirescam].

    Formula:
        (Σ_k mean(G_k) A_k)⁺

    Cost:
        1 forward pass, T ways back. They end at the features.

    Models:
        CNN, ConvNeXt, ViT, Swin. There must be features on a grid of the image.

    Args:
        model: a CNN or a vision transformer.
        images: `[B, C, H, W]`.
        targets: `[B, T]`.
        layer: name of the module whose output is used, as in `module.named_modules()`: `[B, C, h, w]`, `[B, h, w, C]`
            or tokens `[B, N, D]`. By default the last spatial feature map of a CNN; of a transformer the image tokens after
            the last block's first layer norm, or of one that attends within windows its last features.
        eigen_smooth: project the weighted features on their first principal component in place of their sum.
        aug_smooth: average over mirrored, darker and brighter versions of the image, six in all; six times the cost.

    Returns:
        Maps `[B, T, h, w]` on the grid of the features.

    Checked:
        pytorch-grad-cam `GradCAM`, to 2e-4: tests/peers/test_cam_family.py. After the peer's scaling of each map to 0..1.
        pytorch-grad-cam `GradCAM` on timm's and torchvision's models, to 1e-3: tests/peers/test_timm.py. After the peer's
            scaling of each map to 0..1.
        the formula in float64, cell by cell, to 1e-4: tests/explainers/test_cam_family.py.

    Example:
        >>> import heatproof as hp
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(16, 2))
        >>> hp.explain(net.eval(), torch.rand(1, 3, 4, 4), method="gradcam", layer="0", resolution="native").shape
        torch.Size([1, 2, 2])
    """
    return _cam(model, images, targets, _by_average_slope, layer, eigen_smooth, aug_smooth)


@explainer("gradcam_smoothed", family="cam", signed=False, needs={"spatial_features"}, paper="chung2024evaluating")
def gradcam_smoothed(model: Classifier, images: Tensor, targets: Targets, *, layer: str | None = None) -> Tensor:
    """Grad-CAM with both smoothings, `eigen_smooth` and `aug_smooth`.

    Less noisy than Grad-CAM, and not more faithful to the model for it: five of the six images were never asked about.
    Arguments are those of `gradcam`.

    Formula:
        mean over six versions of x of the first principal component of the mean(G_k) A_k, cells centred, its positive part

    Cost:
        6 forward passes, 6 · T ways back. They end at the features.

    Models:
        CNN, ConvNeXt, ViT, Swin.

    Returns:
        Maps `[B, T, h, w]` on the grid of the features.

    Checked:
        gradcam with both options, exactly: tests/explainers/test_cam_family.py.
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

    Made for several objects of a class in one image, and for features that are not negative: elsewhere a denominator can
    come near zero, and one of exactly 0 has no weight. Arguments are those of `gradcam`.

    Formula:
        (Σ_k w_k A_k)⁺, w_k = Σ_ij α_ij G_ij⁺, α_ij = G_ij² / (2 G_ij² + G_ij³ Σ_ab A_ab), all of channel k
        (from the score exp(f), whose common factor is left out)

    Cost:
        1 forward pass, T ways back. They end at the features.

    Models:
        CNN, ConvNeXt, ViT, Swin.

    Returns:
        Maps `[B, T, h, w]` on the grid of the features.

    Checked:
        pytorch-grad-cam `GradCAMPlusPlus`, to 2e-4: tests/peers/test_cam_family.py. After the peer's scaling of each map to
            0..1, where gradients are large: the peer adds 1e-6 to denominators.
        the formula in float64, cell by cell, to 1e-4: tests/explainers/test_cam_family.py.
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

    All channels together come near the score, as sensitivity and conservation ask. Made for features that are not negative:
    where those of a channel cancel, its weight grows without bound, and where they sum to exactly 0 it has none. Arguments
    are those of `gradcam`.

    Formula:
        (Σ_k w_k A_k)⁺, w_k = Σ_ij G_ij A_ij / Σ_ij A_ij, all of channel k

    Cost:
        1 forward pass, T ways back. They end at the features.

    Models:
        CNN, ConvNeXt, ViT, Swin.

    Returns:
        Maps `[B, T, h, w]` on the grid of the features.

    Checked:
        pytorch-grad-cam `XGradCAM`, to 2e-4: tests/peers/test_cam_family.py. After the peer's scaling of each map to
            0..1; the peer adds 1e-7 to denominators.
        the formula in float64, cell by cell, to 1e-4: tests/explainers/test_cam_family.py.
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

    Where one dense layer follows the features, the map before its negative part is cut off sums to the logit less the bias:
    it marks only cells that the model used. Elsewhere that is not guaranteed. Arguments are those of `gradcam`.

    Formula:
        (Σ_k G_k ⊙ A_k)⁺

    Cost:
        1 forward pass, T ways back. They end at the features.

    Models:
        CNN, ConvNeXt, ViT, Swin.

    Returns:
        Maps `[B, T, h, w]` on the grid of the features.

    Checked:
        pytorch-grad-cam `HiResCAM`, to 2e-4: tests/peers/test_cam_family.py. After the peer's scaling of each map to 0..1.
        the formula in float64, cell by cell, to 1e-4: tests/explainers/test_cam_family.py.
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

    It also serves early layers, whose grid is finer. Cells that count for the target only together with others that count
    against it show up as if they counted alone. Arguments are those of `gradcam`.

    Formula:
        (Σ_k G_k⁺ ⊙ A_k)⁺

    Cost:
        1 forward pass, T ways back. They end at the features.

    Models:
        CNN, ConvNeXt, ViT, Swin.

    Returns:
        Maps `[B, T, h, w]` on the grid of the features.

    Checked:
        pytorch-grad-cam `LayerCAM`, to 2e-4: tests/peers/test_cam_family.py. After the peer's scaling of each map to 0..1.
        the formula in float64, cell by cell, to 1e-4: tests/explainers/test_cam_family.py.
    """
    return _cam(model, images, targets, _by_positive_slope, layer, eigen_smooth, aug_smooth)


@explainer(
    "eigencam",
    family="cam",
    signed=False,
    needs={"spatial_features"},
    paper="muhammad2020eigencam",
    class_agnostic=True,
)
def eigencam(
    model: Classifier, images: Tensor, targets: Targets, *, layer: str | None = None, aug_smooth: bool = False
) -> Tensor:
    """Eigen-CAM: the positive part of the features' first principal component, the same map for every target.

    It shows what stands out to the network, not what decides. The component has no sign of its own, and the one that it gets
    may point away from what matters. Arguments are those of `gradcam`.

    Formula:
        (A v)⁺, v the direction in which the cells of A, centred, differ most; the cell farthest from their mean is positive

    Cost:
        1 forward pass, no ways back.

    Models:
        CNN, ConvNeXt, ViT, Swin.

    Returns:
        Maps `[B, T, h, w]` on the grid of the features.

    Checked:
        pytorch-grad-cam `EigenCAM`, to 1e-4: tests/peers/test_cam_family.py. With the peer's own correction of the sign.
        the eigenvectors of the covariance in float64, to 1e-4: tests/explainers/test_cam_family.py.
    """

    def maps_of(images: Tensor) -> Tensor:
        return principal_component(precise(run_to_features(model, images, layer).features)).clamp(min=0)

    maps = over_versions(maps_of, images) if aug_smooth else maps_of(images)
    return maps[:, None].expand(-1, targets.count, -1, -1)


@explainer("eigen_gradcam", family="cam", signed=False, needs={"spatial_features"}, paper="muhammad2020eigencam")
def eigen_gradcam(
    model: Classifier, images: Tensor, targets: Targets, *, layer: str | None = None, aug_smooth: bool = False
) -> Tensor:
    """Eigen-Grad-CAM: the first principal component of the features times their gradients, with the sign of their sum.

    `hirescam` with `eigen_smooth`: Eigen-CAM made to depend on the target. The centring takes out what all cells share, so
    the map tells where, not how much, the features speak for the target. Arguments are those of `gradcam`.

    Formula:
        ((G ⊙ A) v)⁺, v the direction in which the cells of G ⊙ A, centred, differ most, with the sign of Σ_k G_k ⊙ A_k

    Cost:
        1 forward pass, T ways back. They end at the features.

    Models:
        CNN, ConvNeXt, ViT, Swin.

    Returns:
        Maps `[B, T, h, w]` on the grid of the features.

    Checked:
        pytorch-grad-cam `EigenGradCAM`, to 1e-4: tests/peers/test_cam_family.py. Up to the sign, which the peer leaves
            as the decomposition happens to give it.
        the eigenvectors of the covariance in float64, to 1e-4: tests/explainers/test_cam_family.py.
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

    It shows the difference between look-alikes; what they share is missing even where the model relies on it. Probabilities
    weigh the classes, and the gradient goes through them, too.

    Formula:
        Grad-CAM of Σ_r p_r (z_t − α z_r) / Σ_r p_r, over the classes r whose logits z are nearest to the target's z_t, p
        their probabilities

    Cost:
        1 forward pass, T ways back. They end at the features.

    Models:
        CNN, ConvNeXt, ViT, Swin. There must be two classes or more.

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

    Checked:
        pytorch-grad-cam `FinerCAM`, to 2e-4: tests/peers/test_cam_family.py. After the peer's scaling of each map to
            0..1, of the model's own prediction: the only class that the peer compares.
        the formula in float64, to 1e-4: tests/explainers/test_cam_family.py.
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
    Relevance outside of the Grad-CAM is gone, so the sum says nothing any more.

    Formula:
        R(x) ⊙ upsampled(gradcam(x)), R the maps of the base method

    Cost:
        2 forward passes, 2 · T ways back.

    Models:
        CNN, ConvNeXt, ViT, Swin.

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

    Checked:
        the product of its two parts, to 1e-4: tests/explainers/test_cam_family.py.

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
            maps.append(joined(weighted, eigen_smooth=eigen_smooth))
        return torch.stack(maps, 1).clamp(min=0)

    return over_versions(maps_of, images) if aug_smooth else maps_of(images)


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
