"""The CAM family as pytorch-grad-cam has it, and default layers on Swin and ConvNeXt of three libraries.

The peer adds 1e-6 or 1e-7 to denominators, gives principal components the sign that they happen to come with, scales each
map to 0..1 and resizes it; the comparison is of what is left.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import pytorch_grad_cam as peers
import torch
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from pytorch_grad_cam.utils.svd_on_activations import get_2d_projection_with_sign_correction
from torch import Tensor, nn
from torch.nn import functional as F

import heatproof as hp
from support import matrix
from support.nets import TinyViT

PEERS = {
    "gradcam": peers.GradCAM,
    "gradcam_plus_plus": peers.GradCAMPlusPlus,
    "xgradcam": peers.XGradCAM,
    "hirescam": peers.HiResCAM,
    "layercam": peers.LayerCAM,
    "eigencam": peers.EigenCAM,
    "eigen_gradcam": peers.EigenGradCAM,
}
COMPONENTS = ("eigencam", "eigen_gradcam")


class Net(nn.Module):
    """Features of the images' size, which nothing resizes, under two dense layers."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU())
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(6 * 64, 12), nn.Tanh(), nn.Linear(12, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def scaled_net() -> nn.Module:
    """With gradients beside which the peer's 1e-6 is nothing."""
    net = Net().eval()
    for parameter in net.head[-1].parameters():
        parameter.data *= 300
    return net


def tokens_to_grid(tokens: Tensor) -> Tensor:
    return tokens[:, 1:].transpose(1, 2).unflatten(2, (4, 4))


def peer_map(
    method: str, model: nn.Module, layer: nn.Module, images: Tensor, targets: list[int], **options: Any
) -> Tensor:
    turn = {"reshape_transform": options.pop("reshape_transform", None)}
    with PEERS[method](model=model, target_layers=[layer], **turn) as cam:
        found = cam(images, [ClassifierOutputTarget(t) for t in targets], **options)
    return torch.from_numpy(np.asarray(found))


def assert_same_up_to_display_scaling(found: Tensor, peer: Tensor) -> None:
    unit = F.interpolate(to_unit_range(found)[:, None], peer.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    torch.testing.assert_close(to_unit_range(unit), peer, atol=2e-4, rtol=0)


def to_unit_range(maps: Tensor) -> Tensor:
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return (maps - low) / (high - low + 1e-7)


@pytest.mark.parametrize("method", [name for name in PEERS if name not in COMPONENTS])
@pytest.mark.parametrize("build", [scaled_net, TinyViT])
def test_sums_over_channels(method: str, build: Callable[[], nn.Module]) -> None:
    net, turn, images, layer = build().eval(), None, torch.rand(3, 3, 8, 8), "features"
    if isinstance(net, TinyViT):
        if method == "gradcam_plus_plus":  # its gradients are not larger than what the peer adds
            net.head.weight.data *= 1e4
        images, layer, turn = torch.rand(3, 3, 32, 32), "blocks.3.norm1", tokens_to_grid
    seen = 0
    for target in range(4):
        peer = peer_map(method, net, net.get_submodule(layer), images, [target] * 3, reshape_transform=turn)
        found = hp.explain(net, images, [target] * 3, method=method, layer=layer, resolution="native")
        assert_same_up_to_display_scaling(found, peer)
        seen += int((found > 0).flatten(1).any(1).sum())
    assert seen > 4


@pytest.mark.parametrize(
    ("method", "options"), [*((name, {}) for name in COMPONENTS), ("gradcam", {"eigen_smooth": True})]
)
def test_principal_components_of_either_sign(
    method: str, options: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The peer cuts off what is negative: here the sign is turned before that where it differs."""
    net, images = scaled_net(), torch.rand(3, 3, 8, 8)
    found = hp.explain(net, images, [1] * 3, method=method, layer="features", resolution="native", **options)
    features = net.features(images).detach().requires_grad_()
    (slopes,) = torch.autograd.grad(net.head(features)[:, 1].sum(), features)
    weighted = {"eigencam": features, "eigen_gradcam": features * slopes}.get(
        method, features * slopes.mean((2, 3), keepdim=True)
    )
    theirs = torch.from_numpy(peers.utils.svd_on_activations.get_2d_projection(weighted.detach().numpy()))
    along = (theirs * weighted.detach().sum(1)).sum((1, 2), keepdim=True).sign()
    if method == "eigencam":
        theirs = torch.from_numpy(get_2d_projection_with_sign_correction(weighted.detach().numpy()))
        along = torch.ones(3, 1, 1)
    expected = (theirs * along).clamp(min=0)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.max()))


@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_finercam(alpha: float) -> None:
    """Of the model's own prediction, the only class that the peer compares."""
    net, images = Net().eval(), torch.rand(4, 3, 8, 8)  # probabilities near 0 are nothing beside the peer's 1e-9
    with peers.FinerCAM(model=net, target_layers=[net.features]) as cam:
        peer = torch.from_numpy(np.asarray(cam(images, alpha=alpha)))
    found = hp.explain(net, images, method="finercam", alpha=alpha, layer="features", resolution="native")
    assert_same_up_to_display_scaling(found, peer)


def test_scorecam() -> None:
    """On features of the images' size: to enlarge others, the peer aligns corners."""
    net, images = Net().eval(), torch.rand(3, 3, 8, 8)
    net.head[-1].weight.data *= 3
    with peers.ScoreCAM(model=net, target_layers=[net.features]) as cam:
        peer = torch.from_numpy(np.asarray(cam(images, [ClassifierOutputTarget(2)] * 3)))
    found = hp.explain(net, images, [2] * 3, method="scorecam", layer="features", resolution="native")
    assert found.count_nonzero() > 0
    assert_same_up_to_display_scaling(found, peer)


WITHOUT_A_LAYER: list[tuple[Callable[[], nn.Module], str, int, int]] = [  # model, its last features, size, side
    (matrix.timm_swin, "norm", 32, 4),
    (partial(matrix.hf_swin, "sdpa"), "swin.layernorm", 32, 4),
    (matrix.torchvision_swin, "norm", 64, 8),
    (partial(matrix.torchvision_swin, 2), "norm", 64, 8),
    (matrix.timm_convnext, "stages.3", 96, 3),
    (matrix.MODELS["hf-convnext"].build, "convnext.encoder.stages.3", 96, 3),
]


@pytest.mark.parametrize(("build", "layer", "size", "side"), WITHOUT_A_LAYER)
def test_the_default_layer_of_swin_and_convnext(
    build: Callable[[], nn.Module], layer: str, size: int, side: int
) -> None:
    """The formula on what a hook sees in a plain run."""
    model, images = matrix.as_if_trained(build()), torch.rand(2, 3, size, size)
    kept: list[Tensor] = []
    handle = model.get_submodule(layer).register_forward_hook(lambda _, __, output: kept.append(output))
    logits = hp.Classifier(model)(images)
    handle.remove()
    features, width = kept[0].detach(), kept[0].numel() // (2 * side * side)
    channels_first = features.shape == (2, width, side, side)
    found = hp.explain(model, images, [[0, 1, 2]] * 2, method="gradcam", resolution="native")
    assert found.count_nonzero() > 0
    for target in range(3):
        (slopes,) = torch.autograd.grad(logits[:, target].sum(), kept[0], retain_graph=True)
        pair = (values.movedim(1, -1) if channels_first else values for values in (features, slopes))
        a, g = (values.reshape(2, side, side, width) for values in pair)
        expected = (a * g.mean((1, 2), keepdim=True)).sum(-1).clamp(min=0)
        torch.testing.assert_close(found[:, target], expected, rtol=1e-4, atol=1e-5 * float(found.max()))
