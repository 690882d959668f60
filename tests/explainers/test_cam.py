"""Grad-CAM against its formula, with features and gradients taken by hooks."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import heatproof as hp
from heatproof.errors import InputError, UnsupportedModelError
from support.nets import TinyCNN, TinyViT


def by_hand(model: nn.Module, layer: nn.Module, images: Tensor, target: int, *, tokens: bool) -> Tensor:
    kept: list[Tensor] = []
    handle = layer.register_forward_hook(lambda _, __, output: kept.append(output))
    logits = model(images)
    handle.remove()
    (gradient,) = torch.autograd.grad(logits[:, target].sum(), kept[0])
    features = kept[0].detach()
    if tokens:
        features, gradient = (t[:, 1:].transpose(1, 2).unflatten(2, (4, 4)) for t in (features, gradient))
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
