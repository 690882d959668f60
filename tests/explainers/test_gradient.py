"""The gradient family against autograd by hand, closed forms and the completeness of integrated gradients."""

import pytest
import torch
from torch import Tensor, nn

import heatproof as hp
from heatproof.errors import InputError
from support.nets import TinyCNN


class Squares(nn.Module):
    """Logit k is `Σ w_k x²`, whose integrated gradients are `w_k (x² − x′²)` whatever the number of steps."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 2, 4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bchw,kchw->bk", x.square(), self.weight)


def gradient_by_hand(model: nn.Module, images: Tensor, targets: list[int]) -> Tensor:
    leaf = images.clone().requires_grad_()
    logits = model(leaf)
    (found,) = torch.autograd.grad(sum(logits[n, t] for n, t in enumerate(targets)), leaf)
    return found


def test_saliency_and_input_x_gradient_are_those_of_autograd() -> None:
    model, images, targets = TinyCNN().eval(), torch.randn(3, 3, 16, 16), [2, 0, 1]
    gradient = gradient_by_hand(model, images, targets)
    torch.testing.assert_close(hp.explain(model, images, targets, method="saliency"), gradient.abs().amax(1))
    found = hp.explain(model, images, targets, method="input_x_gradient")
    torch.testing.assert_close(found, (images * gradient).sum(1))


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("baseline", [0.5, "mean", "tensor"])
def test_integrated_gradients_in_closed_form(steps: int, baseline: float | str) -> None:
    model, images = Squares().eval(), torch.randn(2, 2, 4, 4)
    values = {
        0.5: torch.full_like(images, 0.5),
        "mean": images.mean((2, 3), keepdim=True),
        "tensor": torch.randn(2, 2, 4, 4),
    }
    given = values["tensor"] if baseline == "tensor" else baseline
    found = hp.explain(model, images, [0, 2], method="integrated_gradients", baseline=given, steps=steps)
    expected = (model.weight[[0, 2]] * (images.square() - values[baseline].square())).sum(1)
    torch.testing.assert_close(found, expected.detach())


def test_the_baseline_is_black_and_a_contrast_is_a_difference() -> None:
    model, images = Squares().eval(), torch.randn(2, 2, 4, 4)

    class Three(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return model(x[:, :2]) + x[:, 2].sum((1, 2))[:, None]

    images = torch.cat([images, images[:, :1]], 1)
    classifier = hp.Classifier(Three().eval(), image_size=4, mean=[0.5, 0.4, 0.2], std=[0.25, 0.2, 0.1])
    black = torch.tensor([-2.0, -2.0, -2.0]).view(3, 1, 1)
    found = hp.explain(classifier, images, [0, 1], against=2, method="integrated_gradients", steps=1)
    difference = (model.weight[[0, 1]] - model.weight[2]) * (images[:, :2].square() - black[:2].square())
    torch.testing.assert_close(found, difference.sum(1).detach())  # the third channel adds the same to every class
    with pytest.raises(InputError, match="baseline=0.0"):
        hp.explain(Three().eval(), images, [0, 1], method="integrated_gradients")


def test_integrated_gradients_are_complete_in_the_limit_by_the_midpoint_rule() -> None:
    """The error of the midpoint rule falls with the square of the steps on a smooth network."""
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(6 * 36, 3)).double().eval()
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    gap = (model(images) - model(torch.zeros_like(images)))[:, 1].detach()
    errors = []
    for steps in (5, 50):
        maps = hp.explain(model, images, [1, 1], method="integrated_gradients", baseline=0.0, steps=steps)
        errors.append((maps.double().flatten(1).sum(1) - gap).abs().max())
    assert errors[1] < errors[0] / 20
    assert errors[1] < 1e-3 * gap.abs().max()


@pytest.mark.parametrize("batch_size", [1, 2, 7, None])
def test_the_points_of_the_way_go_through_the_model_in_batches_of_the_size_given(batch_size: int | None) -> None:
    sizes = []

    class Counting(Squares):
        def forward(self, x: Tensor) -> Tensor:
            sizes.append(len(x))
            return super().forward(x)

    model, images = Counting().eval(), torch.randn(3, 2, 4, 4)
    hp.explain(model, images, [0, 1, 2], method="integrated_gradients", baseline=0.0, steps=10, batch_size=batch_size)
    way = sizes[1:]  # the first looks at the number of classes
    assert sum(way) == 30
    assert max(way) == (batch_size or 8)


def test_steps_must_be_a_count() -> None:
    with pytest.raises(InputError, match="steps must be a whole number, at least 1, got 0"):
        hp.explain(Squares().eval(), torch.rand(1, 2, 4, 4), method="integrated_gradients", baseline=0.0, steps=0)
