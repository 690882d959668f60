"""DeepLIFT's Rescale rule in numbers, and its completeness on networks of many kinds."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import heatproof as hp
from heatproof.errors import RelevanceGapWarning, UnsupportedModelError, UnsupportedOperationError
from support.nets import TinyCNN, TinyViT


class Of(nn.Module):
    """A function of what a convolution makes of the image, under a dense layer."""

    def __init__(self, function: Callable[[Tensor], Tensor], cells: int = 144) -> None:
        super().__init__()
        self.conv, self.head, self.function = nn.Conv2d(2, 4, 3), nn.Linear(cells, 3), function

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.function(self.conv(x)).flatten(1))


COMPLETE: dict[str, Callable[[], nn.Module]] = {
    "residual": lambda: TinyCNN(channels=2),
    "sigmoid": lambda: Of(torch.sigmoid),
    "gelu": lambda: Of(F.gelu),
    "leaky": lambda: Of(F.leaky_relu),
    "in place": lambda: Of(lambda x: F.relu_(x) * 2),
    "clamped": lambda: Of(lambda x: x.clamp(-0.1, 0.3)),
    "exponential": lambda: Of(lambda x: x.exp() / 3),
    "max pooling": lambda: Of(lambda x: F.max_pool2d(x, 2), 36),
    "overlapping": lambda: Of(lambda x: F.max_pool2d(x, 3, 1).relu(), 64),
}


@pytest.mark.parametrize("name", COMPLETE)
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_the_sum_of_a_map_is_the_change_of_the_score(name: str, batch_size: int) -> None:
    model, images, baseline = COMPLETE[name]().double().eval(), torch.randn(3, 2, 8, 8), torch.randn(1, 2, 8, 8)
    images, baseline = images.double(), baseline.double()
    images[0, :, :4] = baseline[0, :, :4]  # units that do not differ
    targets = torch.tensor([[0, 1], [1, 2], [2, 0]])
    change = (model(images) - model(baseline)).gather(1, targets).float().detach()
    maps = hp.explain(model, images, targets, method="deep_lift", baseline=baseline, batch_size=batch_size)
    torch.testing.assert_close(maps.sum((2, 3)), change, rtol=1e-4, atol=1e-5)
    assert (maps[0, :, :4] == 0).all()


def test_in_numbers() -> None:
    """`relu(a + b − 1)` from (0, 0) to (2, 1): Δx = 3, Δy = 2, so m = 2/3, where the gradient is 1."""

    class One(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = (x.sum((1, 2, 3)) - 1).relu()
            return torch.stack([y, -3 * y], 1)

    images = torch.tensor([2.0, 1.0]).view(1, 1, 1, 2)
    found = hp.explain(One().eval(), images, [1], method="deep_lift", baseline=0.0)
    torch.testing.assert_close(found, torch.tensor([[[-4.0, -2.0]]]))


def test_where_differences_cancel_the_slope_is_the_gradient() -> None:
    """`sigmoid(a + b)` from (0, 0) to (1, −1): the slope at 0 is 1/4."""

    class One(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sum((1, 2, 3)).sigmoid()[:, None] * torch.tensor([1.0, 4.0])

    images = torch.tensor([1.0, -1.0]).view(1, 1, 1, 2)
    found = hp.explain(One().eval(), images, [1], method="deep_lift", baseline=0.0)
    torch.testing.assert_close(found, torch.tensor([[[1.0, -1.0]]]))


def test_max_pooling_in_numbers() -> None:
    """From (0, 3) to (5, 1), the maximum goes from 3 to 5: +2 for the image's winner, and the baseline's loses nothing.

    From (4, 0) to (1, 2) it goes from 4 to 2: nothing for the image's winner, and −2 for the baseline's.
    """

    class Most(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = F.max_pool2d(x, (1, 2)).flatten(1)
            return torch.cat([y, -y], 1)

    images = torch.tensor([[5.0, 1.0], [1.0, 2.0]]).view(2, 1, 1, 2)
    baseline = torch.tensor([[0.0, 3.0], [4.0, 0.0]]).view(2, 1, 1, 2)
    found = hp.explain(Most().eval(), images, [0, 0], method="deep_lift", baseline=baseline)
    torch.testing.assert_close(found[:, 0], torch.tensor([[2.0, 0.0], [-2.0, 0.0]]))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x * x.sigmoid(),
        lambda x: 1 / (1 + x.abs()),
        lambda x: torch.maximum(x, -2 * x),
        lambda x: x.softmax(1),
        lambda x: F.layer_norm(x, x.shape[1:]),
    ],
)
def test_what_has_no_multiplier_is_refused_or_told(function: Callable[[Tensor], Tensor]) -> None:
    model, images = Of(function).eval(), torch.randn(2, 2, 8, 8)
    with pytest.raises(UnsupportedOperationError, match="'deep_lift' has no rule"):
        hp.explain(model, images, method="deep_lift", baseline=0.0)
    with pytest.warns(RelevanceGapWarning):
        assert hp.explain(model, images, method="deep_lift", baseline=0.0, strict=False).isfinite().all()


def test_transformers_and_models_that_move_the_batch_away_are_refused() -> None:
    with pytest.raises(UnsupportedModelError):
        hp.explain(TinyViT(depth=1).eval(), torch.rand(1, 3, 32, 32), method="deep_lift", baseline=0.0)
    moved = Of(lambda x: x.movedim(0, 1).relu().movedim(0, 1)).eval()
    with pytest.raises(UnsupportedModelError, match="something else than the batch on the first axis"):
        hp.explain(moved, torch.randn(2, 2, 8, 8), method="deep_lift", baseline=0.0)
