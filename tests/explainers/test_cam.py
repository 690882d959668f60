"""Grad-CAM against its formula, with features and gradients taken by hooks."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import heatproof as hp
from heatproof.errors import InputError, UnsupportedModelError
from support.nets import TinyCNN, TinyViT


def by_hand(
    model: nn.Module,
    layer: nn.Module,
    images: Tensor,
    target: int,
    *,
    tokens: bool = False,
    channels_last: bool = False,
) -> Tensor:
    kept: list[Tensor] = []
    handle = layer.register_forward_hook(lambda _, __, output: kept.append(output))
    logits = model(images)
    handle.remove()
    (gradient,) = torch.autograd.grad(logits[:, target].sum(), kept[0])
    features = kept[0].detach()
    if tokens:
        features, gradient = (t[:, 1:].transpose(1, 2).unflatten(2, (4, 4)) for t in (features, gradient))
    if channels_last:
        features, gradient = (t.permute(0, 3, 1, 2) for t in (features, gradient))
    maps = []
    for n in range(len(images)):
        total = torch.zeros(features.shape[2:])
        for channel in range(features.shape[1]):
            total += gradient[n, channel].mean() * features[n, channel]
        maps.append(total.clamp(min=0))
    return torch.stack(maps)


def test_the_last_feature_map_of_a_cnn() -> None:
    class Net(TinyCNN):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 2)
            x = self.last(x + F.relu(self.bn2(self.conv2(x))))
            return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))

    model, images = Net().eval(), torch.rand(3, 3, 32, 32)
    found = hp.explain(model, images, [1, 1, 1], method="gradcam", resolution="native")
    torch.testing.assert_close(found, by_hand(model, model.last, images, 1, tokens=False))


def test_the_tokens_of_a_transformer() -> None:
    model, images = TinyViT().eval(), torch.rand(3, 3, 32, 32)
    expected = torch.stack([by_hand(model, model.blocks[-1].norm1, images, k, tokens=True) for k in range(5)], 1)
    found = hp.explain(model, images, torch.arange(5).expand(3, 5), method="gradcam", resolution="native")
    torch.testing.assert_close(found, expected)
    assert found.count_nonzero() > 0


@pytest.mark.parametrize(("build", "layer", "tokens"), [(TinyCNN, "bn1", False), (TinyViT, "blocks.1.norm2", True)])
def test_a_layer_by_name(build: type[nn.Module], layer: str, tokens: bool) -> None:
    model, images = build().eval(), torch.rand(2, 3, 32, 32)
    expected = by_hand(model, model.get_submodule(layer), images, 0, tokens=tokens)
    found = hp.explain(model, images, [0, 0], method="gradcam", layer=layer, resolution="native")
    torch.testing.assert_close(found, expected)
    assert not any(part._forward_hooks for part in model.modules())


def test_a_layer_that_is_written_into_afterwards() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.relu(self.conv(x), inplace=True).mean((2, 3)))

    model, images = Net().eval(), torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        features = model.conv(images)
    weights = model.head.weight[1].view(1, 4, 1, 1) * (features > 0).float().mean((2, 3), keepdim=True) / 36
    found = hp.explain(model, images, [1, 1], method="gradcam", layer="conv", resolution="native")
    torch.testing.assert_close(found, (weights * features).sum(1).clamp(min=0).detach())


class ChannelsLast(nn.Module):
    """Patches, norms and dense layers along the last axis; four patches are merged into one; and back."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.norm1, self.merge = nn.LayerNorm(width), nn.Linear(4 * width, width)
        self.norm2, self.back = nn.LayerNorm(width), nn.Identity()
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.patches(x).permute(0, 2, 3, 1))
        x = torch.cat([x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)], -1)
        x = self.norm2(torch.tanh(self.merge(x)))
        return self.head(self.back(x.permute(0, 3, 1, 2)).square().mean((2, 3)))


@pytest.mark.parametrize("size", [(32, 32), (24, 40)])
@pytest.mark.parametrize(
    ("layer", "channels_last"),
    [("patches", False), ("norm1", True), ("merge", True), ("norm2", True), ("back", False)],
)
def test_features_whose_channels_come_last(layer: str, channels_last: bool, size: tuple[int, int]) -> None:
    model, images = ChannelsLast(width=20).eval(), torch.rand(2, 3, *size)
    expected = by_hand(model, model.get_submodule(layer), images, 1, channels_last=channels_last)
    stride = 4 if layer in ("patches", "norm1") else 8
    assert expected.shape == (2, size[0] // stride, size[1] // stride)
    assert expected.count_nonzero() > 0
    found = hp.explain(model, images, [1, 1], method="gradcam", layer=layer, resolution="native")
    torch.testing.assert_close(found, expected)


def test_a_grid_of_other_strides_along_both_sides_is_that_of_a_convolution() -> None:
    model, images = ChannelsLast(width=20), torch.rand(2, 3, 32, 32)
    model.patches = nn.Conv2d(3, 20, (2, 8), (2, 8))
    expected = by_hand(model.eval(), model.norm1, images, 1, channels_last=True)
    assert expected.shape == (2, 16, 4)
    found = hp.explain(model, images, [1, 1], method="gradcam", layer="norm1", resolution="native")
    torch.testing.assert_close(found, expected)


def test_features_that_end_with_their_channels_last() -> None:
    class Net(ChannelsLast):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.norm1(self.patches(x).permute(0, 2, 3, 1)).mean((1, 2)))

    model, images = Net().eval(), torch.rand(2, 3, 24, 40)
    expected = by_hand(model, model.norm1, images, 1, channels_last=True)
    assert expected.count_nonzero() > 0
    torch.testing.assert_close(hp.explain(model, images, [1, 1], method="gradcam", resolution="native"), expected)


def test_features_of_either_layout_are_refused_and_those_of_a_cnn_are_not() -> None:
    images = torch.rand(2, 3, 32, 32)
    for width in (8, 9):
        with pytest.raises(UnsupportedModelError, match=rf"\[2, 8, 8, {width}\] are .*both would be a grid"):
            hp.explain(ChannelsLast(width).eval(), images, method="gradcam", layer="norm1")
    odd = nn.Sequential(nn.Conv2d(3, 20, 1), nn.Upsample((3, 31)), nn.Identity(), nn.Flatten(), nn.Linear(20 * 93, 2))
    turned = nn.Sequential(odd[:3], Turned(), odd[3:]).eval()
    with pytest.raises(UnsupportedModelError, match=r"\[2, 20, 3, 31\] are .*neither would be a grid"):
        hp.explain(turned, images, method="gradcam", layer="0.2")
    model = TinyCNN(width=16).eval()
    with torch.no_grad():
        assert model.conv2(torch.rand(1, 16, 16, 16)).shape == (1, 16, 16, 16)
    found = hp.explain(model, images, [1, 1], method="gradcam", layer="conv2", resolution="native")
    torch.testing.assert_close(found, by_hand(model, model.conv2, images, 1))


class Turned(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1)


def test_windows_of_an_image_are_no_features_of_it() -> None:
    class Net(ChannelsLast):
        def forward(self, x: Tensor) -> Tensor:
            x = self.patches(x).unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 4, 5, 1).flatten(0, 2).flatten(1, 2)
            return self.head(self.norm1(x).square().mean(1).unflatten(0, (-1, 16)).mean(1))

    with pytest.raises(UnsupportedModelError, match=r"of 2 images, and the layer gives \[32, 4, 6\]"):
        hp.explain(Net().eval(), torch.rand(2, 3, 32, 32), method="gradcam", layer="norm1")


def test_wrong_layers_are_errors() -> None:
    model, images = TinyCNN().eval(), torch.rand(1, 3, 32, 32)
    with pytest.raises(InputError, match="no module named 'conv3'.*conv2"):
        hp.explain(model, images, method="gradcam", layer="conv3")
    with pytest.raises(UnsupportedModelError, match="layer gives"):
        hp.explain(model, images, method="gradcam", layer="head")


def test_a_network_without_feature_maps_is_an_error() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2)).eval()
    with pytest.raises(UnsupportedModelError, match="feature map"):
        hp.explain(model, torch.rand(1, 3, 2, 2), method="gradcam")
