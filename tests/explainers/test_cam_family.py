"""The CAM family against its formulas, written out slowly in double precision on what a hook sees in a plain run."""

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import heatproof as hp
from heatproof.errors import EmptyMapWarning, InputError, UnsupportedModelError
from heatproof.explainers.feature_maps import principal_component, visible
from support.nets import TinyCNN, TinyViT

GRADIENT_METHODS = ("gradcam", "gradcam_plus_plus", "xgradcam", "hirescam", "layercam")
CAMS = {name for name, entry in hp.methods().items() if entry.family == "cam"}


class Head(nn.Module):
    """One layer of features and two dense layers, so that no gradient is the same in all cells; no average after them."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 6, 3, padding=1)
        self.act = nn.ReLU()
        self.hidden, self.head = nn.Linear(6 * 20, 7), nn.Linear(7, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.hidden(self.act(self.conv(x)).flatten(1))))


def net_and_images(count: int = 3) -> tuple[Head, Tensor]:
    net = Head().double().eval()
    for parameter in net.head.parameters():
        parameter.data *= 10  # so that the terms of higher order of Grad-CAM++ count
    return net, torch.randn(count, 2, 4, 5, dtype=torch.float64)


def features_and_slopes(net: Head, images: Tensor, target: int) -> tuple[np.ndarray, np.ndarray]:
    """`[B, D, h, w]` each."""
    features = net.act(net.conv(images)).detach().requires_grad_()
    logits = net.head(torch.tanh(net.hidden(features.flatten(1))))
    (slopes,) = torch.autograd.grad(logits[:, target].sum(), features)
    return features.detach().numpy(), slopes.numpy()


def weighted_by_hand(method: str, features: np.ndarray, slopes: np.ndarray) -> np.ndarray:
    """The weighted features of one image, `[D, h, w]`, cell by cell."""
    channels, rows, columns = features.shape
    cells = [(i, j) for i in range(rows) for j in range(columns)]
    found = np.zeros_like(features)
    weight = 0.0
    for k in range(channels):
        a, g = features[k], slopes[k]
        total = sum(a[c] for c in cells)
        if method == "gradcam":
            weight = sum(g[c] for c in cells) / len(cells)
        elif method == "xgradcam":
            weight = sum(g[c] * a[c] for c in cells) / total if total else 0.0
        elif method == "gradcam_plus_plus":
            weight = sum(g[c] ** 2 / (2 * g[c] ** 2 + total * g[c] ** 3) * max(g[c], 0) for c in cells if g[c] != 0)
        for c in cells:
            own = {"hirescam": g[c], "layercam": max(g[c], 0)}
            found[k][c] = own.get(method, weight) * a[c]
    return found


def principal_by_hand(values: np.ndarray) -> np.ndarray:
    """The projection `[h, w]` of values `[D, h, w]`, from the eigenvectors of the covariance; of either sign."""
    cells = values.reshape(len(values), -1).T
    centred = cells - cells.mean(0)
    _, vectors = np.linalg.eigh(centred.T @ centred)
    return (centred @ vectors[:, -1]).reshape(values.shape[1:])


def explain(net: nn.Module, images: Tensor, targets: Any, *, method: str, **options: Any) -> Tensor:
    return hp.explain(net, images, targets, method=method, resolution="native", **options)


@pytest.mark.parametrize("eigen_smooth", [False, True])
@pytest.mark.parametrize("method", GRADIENT_METHODS)
def test_against_the_formula(method: str, eigen_smooth: bool) -> None:
    net, images = net_and_images()
    found = explain(net, images, torch.arange(4).expand(3, 4), method=method, layer="act", eigen_smooth=eigen_smooth)
    assert (found > 0).flatten(2).any(2).sum() > 4
    for target in range(4):
        features, slopes = features_and_slopes(net, images, target)
        for n in range(3):
            weighted = weighted_by_hand(method, features[n], slopes[n])
            expected = weighted.sum(0)
            if eigen_smooth:
                projected = principal_by_hand(weighted)
                expected = projected * np.sign((projected * expected).sum())
            expected = torch.from_numpy(expected.clip(min=0)).float()
            torch.testing.assert_close(found[n, target], expected, rtol=1e-4, atol=1e-5 * float(expected.max()))


def test_eigencam_and_eigen_gradcam_against_the_formula() -> None:
    net, images = net_and_images()
    eigen = explain(net, images, [[0, 3]] * 3, method="eigencam", layer="act")
    assert torch.equal(eigen[:, 0], eigen[:, 1])
    of_class = explain(net, images, [3] * 3, method="eigen_gradcam", layer="act")
    features, slopes = features_and_slopes(net, images, 3)
    for n in range(3):
        projected = principal_by_hand(features[n])
        projected *= np.sign(projected.flat[np.abs(projected).argmax()])
        torch.testing.assert_close(eigen[n, 0], torch.from_numpy(projected.clip(min=0)).float(), rtol=1e-4, atol=1e-5)
        weighted = features[n] * slopes[n]
        projected = principal_by_hand(weighted)
        projected *= np.sign((projected * weighted.sum(0)).sum())
        torch.testing.assert_close(of_class[n], torch.from_numpy(projected.clip(min=0)).float(), rtol=1e-4, atol=1e-5)


def test_the_sign_of_a_principal_component() -> None:
    one_sided = torch.tensor([1.0, 1.0, 1.0, 9.0]).view(1, 2, 2, 1) * torch.tensor([1.0, -2.0])
    expected = torch.tensor([[-2.0, -2.0], [-2.0, 6.0]]) * math.sqrt(5)
    for sign in (1, -1):
        torch.testing.assert_close(principal_component(sign * one_sided)[0], expected)
        guide = sign * one_sided[..., 0]
        torch.testing.assert_close(principal_component(one_sided, guide)[0], sign * expected)


def test_a_principal_component_is_undefined_where_the_values_are_and_zero_where_they_are_constant() -> None:
    values = torch.randn(3, 2, 2, 5)
    alone = principal_component(values[2:])
    values[0, 1, 1, 3], values[1] = torch.nan, 7.0
    found = principal_component(values)
    assert found[0].isnan().all()
    assert torch.equal(found[1], torch.zeros(2, 2))
    torch.testing.assert_close(found[2:], alone)


@pytest.mark.parametrize("method", ["gradcam_plus_plus", "xgradcam"])
def test_a_dead_channel_has_no_weight(method: str) -> None:
    """Its sum, by which XGrad-CAM divides, is 0."""
    net, images = net_and_images()
    net.conv.bias.data[2] = -1e3
    found = explain(net, images, [1] * 3, method=method, layer="act")
    features, slopes = features_and_slopes(net, images, 1)
    assert (features[:, 2] == 0).all()
    expected = [weighted_by_hand(method, *pair).sum(0).clip(min=0) for pair in zip(features, slopes, strict=True)]
    torch.testing.assert_close(found, torch.from_numpy(np.stack(expected)).float(), rtol=1e-4, atol=1e-6)


def test_hirescam_before_a_dense_layer_sums_to_the_logit_less_the_bias() -> None:
    net = nn.Sequential(nn.Conv2d(1, 3, 1), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 4, 2)).eval()
    net[3].weight.data.abs_()  # so that nothing is cut off
    images = torch.rand(2, 1, 2, 2)
    found = explain(net, images, [0, 1], method="hirescam", layer="1")
    logits = net(images)[[0, 1], [0, 1]] - net[3].bias
    torch.testing.assert_close(found.sum((1, 2)), logits.detach())


@pytest.mark.parametrize("method", sorted(CAMS & {"gradcam", "layercam", "eigencam", "eigen_gradcam", "finercam"}))
def test_augmentation_is_the_mean_over_six_versions(method: str) -> None:
    net, images = net_and_images()
    net = net.float()
    images = images.float()
    found = explain(net, images, [1] * 3, method=method, layer="act", aug_smooth=True)
    versions = [explain(net, factor * images, [1] * 3, method=method, layer="act") for factor in (0.9, 1.0, 1.1)]
    mirrored = [
        explain(net, factor * images.flip(3), [1] * 3, method=method, layer="act") for factor in (0.9, 1.0, 1.1)
    ]
    expected = (sum(versions) + sum(maps.flip(2) for maps in mirrored)) / 6
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, versions[1], rtol=1e-2)


def test_the_smoothed_gradcam_has_both_smoothings() -> None:
    net, images = net_and_images()
    both = explain(net, images, [1] * 3, method="gradcam", layer="act", eigen_smooth=True, aug_smooth=True)
    assert torch.equal(explain(net, images, [1] * 3, method="gradcam_smoothed", layer="act"), both)


def finer_by_hand(net: Head, images: Tensor, target: int, alpha: float, similar: int | list[int]) -> Tensor:
    maps = []
    for image in images[:, None]:
        features = net.act(net.conv(image)).detach().requires_grad_()
        logits = net.head(torch.tanh(net.hidden(features.flatten(1))))[0]
        others = similar
        if isinstance(similar, int):
            others = sorted((k for k in range(4) if k != target), key=lambda k: abs(logits[k] - logits[target]).item())
            others = others[:similar]
        odds = logits.softmax(0)
        score = sum(odds[r] * (logits[target] - alpha * logits[r]) for r in others) / sum(odds[r] for r in others)
        (slopes,) = torch.autograd.grad(score, features)
        maps.append((features * slopes.mean((2, 3), keepdim=True)).sum(1).clamp(min=0)[0])
    return torch.stack(maps).detach().float()


@pytest.mark.parametrize(("alpha", "similar"), [(1.0, 1), (0.6, 2), (1.0, 3), (1.0, 9)])
def test_finercam_against_its_formula(alpha: float, similar: int) -> None:
    net, images = net_and_images(6)
    found = explain(net, images, [[0, 2]] * 6, method="finercam", layer="act", alpha=alpha, similar=similar)
    assert found.count_nonzero() > 0
    for t, target in enumerate((0, 2)):
        torch.testing.assert_close(
            found[:, t], finer_by_hand(net, images, target, alpha, similar), rtol=1e-4, atol=1e-6
        )


def test_finercam_against_a_class_of_choice_and_its_limits() -> None:
    net, images = net_and_images()
    options: dict[str, Any] = {"layer": "act", "resolution": "native"}
    found = hp.explain(net, images, [0, 0, 0], against=3, method="finercam", alpha=0.7, **options)
    torch.testing.assert_close(found, finer_by_hand(net, images, 0, 0.7, [3]), rtol=1e-4, atol=1e-6)
    plain = hp.explain(net, images, [0, 0, 0], against=3, method="gradcam", **options)
    torch.testing.assert_close(hp.explain(net, images, [0] * 3, against=3, method="finercam", **options), plain)
    plain = hp.explain(net, images, [0, 0, 0], method="gradcam", **options)
    torch.testing.assert_close(hp.explain(net, images, [0] * 3, method="finercam", alpha=0.0, **options), plain)
    with pytest.raises(UnsupportedModelError, match="compares classes.*gradcam"):
        hp.explain(Head(classes=1).double().eval(), images, [0, 0, 0], method="finercam", **options)
    for similar in (0, 1.5):
        with pytest.raises(InputError, match="similar must be a whole number"):
            hp.explain(net, images, [0, 0, 0], method="finercam", similar=similar, **options)


@pytest.mark.parametrize("baseline", [0.0, 0.7])
def test_scorecam_against_its_formula(baseline: float) -> None:
    """Features of half the images' size, one of them constant."""
    net = nn.Sequential(nn.Conv2d(2, 5, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 6, 3)).double().eval()
    net[0].weight.data[1], net[0].bias.data[1] = 0, 0.3
    net[3].weight.data *= 8
    images = torch.randn(3, 2, 4, 6, dtype=torch.float64)
    found = explain(net, images, [[0, 2]] * 3, method="scorecam", layer="1", baseline=baseline)
    assert found.count_nonzero() > 0
    with torch.no_grad():
        features = net[1](net[0](images))
        for n in range(3):
            logits = []
            for channel in F.interpolate(features[n : n + 1], (4, 6), mode="bilinear")[0]:
                span = channel.max() - channel.min()
                seen = (channel - channel.min()) / span if span > 0 else torch.zeros(4, 6)
                logits.append(net((seen * images[n] + (1 - seen) * baseline)[None])[0])
            for t, target in enumerate((0, 2)):
                weights = torch.stack(logits)[:, target].softmax(0)
                expected = (weights[:, None, None] * features[n]).sum(0).clamp(min=0)
                torch.testing.assert_close(found[n, t], expected.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("base", "options"), [("lrp_epsilon", {}), ("lrp_gamma", {"gamma": 0.5})])
def test_lrp_gradcam_is_the_product_of_both(base: str, options: dict[str, float]) -> None:
    net, images, targets = TinyCNN().eval(), torch.rand(2, 3, 32, 32), [[0, 1]] * 2
    cam = hp.explain(net, images, targets, method="gradcam", layer="bn2", eigen_smooth=True, resolution="native")
    cam = F.interpolate(cam, (32, 32), mode="bilinear", align_corners=False)
    relevance = hp.explain(net, images, targets, method=base, **options)
    given: dict[str, Any] = {"base": base, "options": options} if options else {}
    found = hp.explain(net, images, targets, method="lrp_gradcam", layer="bn2", eigen_smooth=True, **given)
    torch.testing.assert_close(found, relevance * cam, rtol=1e-4, atol=1e-6 * float(found.abs().max()))
    assert (found < 0).any()


def test_lrp_gradcam_refuses_what_is_no_relevance() -> None:
    net, images = TinyCNN().eval(), torch.rand(1, 3, 32, 32)
    with pytest.raises(InputError, match="base must be 'lrp_z' or .*got 'lime'"):
        hp.explain(net, images, method="lrp_gradcam", base="lime")
    with pytest.raises(InputError, match="lrp_z has no option 'gamma'"):
        hp.explain(net, images, method="lrp_gradcam", base="lrp_z", options={"gamma": 1.0})


def one_sided_net() -> nn.Module:
    """Its features never speak for class 0, always for class 1."""
    net = nn.Sequential(nn.Conv2d(1, 3, 1), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 16, 2)).eval()
    net[0].weight.data.abs_()
    net[3].weight.data.abs_()
    net[3].weight.data[0] *= -1
    return net


@pytest.mark.parametrize("method", sorted({*GRADIENT_METHODS, "lrp_gradcam"}))
def test_a_map_that_is_zero_everywhere_comes_with_one_warning(method: str) -> None:
    """More images than are explained at a time; a contrast class does not change that."""
    net, images = one_sided_net(), torch.rand(11, 1, 4, 4) + 0.1
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = hp.explain(net, images, [[0, 1]] * 11, method=method)
    (warning,) = caught
    assert warning.category is EmptyMapWarning
    assert warning.filename == __file__
    assert str(warning.message).startswith(f"11 of 22 maps by {method} are zero everywhere")
    assert torch.equal(found[:, 0], torch.zeros(11, 4, 4))
    assert (found[:, 1] != 0).flatten(1).any(1).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hp.explain(net, images, [1] * 11, method=method)


class Merging(nn.Module):
    """Patches, attention within windows of 2 × 2, patches merged, attention again; tokens on a grid or in a row."""

    def __init__(self, *, in_a_row: bool, width: int = 12) -> None:
        super().__init__()
        self.patches, self.merge = nn.Conv2d(3, width, 4, 4), nn.Linear(4 * width, width)
        self.qkv = nn.ModuleList([nn.Linear(width, 3 * width) for _ in range(2)])
        self.norm, self.head, self.in_a_row = nn.LayerNorm(width), nn.Linear(width, 3), in_a_row

    def windows(self, x: Tensor, qkv: nn.Module) -> Tensor:
        batch, height, width, channels = x.shape
        cut = x.reshape(batch, height // 2, 2, width // 2, 2, channels).transpose(2, 3).reshape(-1, 1, 4, channels)
        q, k, v = qkv(cut).chunk(3, -1)
        mixed = F.scaled_dot_product_attention(q, k, v)
        mixed = mixed.reshape(batch, height // 2, width // 2, 2, 2, channels).transpose(2, 3)
        return x + mixed.reshape(batch, height, width, channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.windows(self.patches(x).permute(0, 2, 3, 1), self.qkv[0])
        x = self.merge(torch.cat([x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)], -1))
        x = self.windows(x, self.qkv[1])
        x = self.norm(x.flatten(1, 2) if self.in_a_row else x)
        return self.head(torch.tanh(x.mean(1 if self.in_a_row else (1, 2))))


@pytest.mark.parametrize("size", [(32, 32), (32, 48)])
@pytest.mark.parametrize("in_a_row", [False, True])
def test_the_default_of_windowed_attention_is_the_last_grid_of_features(
    *, in_a_row: bool, size: tuple[int, int]
) -> None:
    """Also where the grid is no square, which tokens in a row do not tell."""
    net, images = Merging(in_a_row=in_a_row).eval(), torch.rand(2, 3, *size)
    kept: list[Tensor] = []
    handle = net.norm.register_forward_hook(lambda _, __, output: kept.append(output))
    (slopes,) = torch.autograd.grad(net(images)[:, 1].sum(), kept)
    handle.remove()
    grid = (2, size[0] // 8, size[1] // 8, -1)
    features, slopes = kept[0].detach().reshape(grid), slopes.reshape(grid)
    expected = (features * slopes.mean((1, 2), keepdim=True)).sum(-1).clamp(min=0)
    assert expected.count_nonzero() > 0
    torch.testing.assert_close(explain(net, images, [1, 1], method="gradcam"), expected)
    expected = (features * slopes).sum(-1).clamp(min=0)
    torch.testing.assert_close(explain(net, images, [1, 1], method="hirescam"), expected)


def test_what_was_pooled_and_turned_is_no_feature_map() -> None:
    """As in ConvNeXt, whose norm turns the average to have its channels last."""

    class Net(TinyCNN):
        def forward(self, x: Tensor) -> Tensor:
            x = F.adaptive_avg_pool2d(F.relu(self.bn1(self.conv1(x))), 1)
            return self.head(F.layer_norm(x.permute(0, 2, 3, 1), (20,)).permute(0, 3, 1, 2).flatten(1))

    net, images = Net(width=20).eval(), torch.rand(2, 3, 8, 8)
    features = F.relu(net.bn1(net.conv1(images))).detach().requires_grad_()
    logits = net.head(F.layer_norm(features.mean((2, 3)), (20,)))
    (slopes,) = torch.autograd.grad(logits[0, 0] + logits[1, 1], features)
    expected = (features * slopes).sum(1).clamp(min=0).detach()  # slopes are the same in all cells
    assert expected.count_nonzero() > 0
    torch.testing.assert_close(explain(net, images, [0, 1], method="gradcam"), expected)


@pytest.mark.parametrize("method", sorted(CAMS))
def test_a_transformer_needs_no_layer(method: str) -> None:
    net, images = TinyViT().eval(), torch.rand(2, 3, 32, 32)
    targets = torch.arange(5).expand(2, 5)
    found = hp.explain(net, images, targets, method=method)
    named = hp.explain(net, images, targets, method=method, layer="blocks.3.norm1")
    assert found.count_nonzero() > 0
    torch.testing.assert_close(found, named, rtol=1e-4, atol=1e-5 * float(found.abs().max()))


def test_a_constant_channel_shows_nothing_also_where_enlarging_it_rounds() -> None:
    channels = torch.full((1, 2, 3, 3), 0.1)
    channels[0, 1, 1, 1] = 0.3
    shown = visible(channels, (17, 19))
    assert shown[0, 0].count_nonzero() == 0
    assert (shown[0, 1].min(), shown[0, 1].max()) == (0, 1)
