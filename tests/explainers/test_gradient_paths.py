"""Gradients along ways against closed forms, and replicas that integrate finely in float64."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

import heatproof as hp
from heatproof.errors import InputError
from heatproof.explainers.paths import quadrature
from heatproof.probing import SampleRandom

RULES = ["midpoint", "left", "right", "trapezoid", "gauss_legendre"]


class Powers(nn.Module):
    """Logit k is `Σ w_k xᵖ`."""

    def __init__(self, power: int) -> None:
        super().__init__()
        self.weight, self.power = nn.Parameter(torch.randn(3, 2, 4, 4)), power

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bchw,kchw->bk", x**self.power, self.weight)


def smooth_net(channels: int = 2, size: int = 8) -> nn.Module:
    layers = nn.Conv2d(channels, 5, 3), nn.Tanh(), nn.Flatten(), nn.Linear(5 * (size - 2) ** 2, 3)
    return nn.Sequential(*layers).double().eval()


@pytest.mark.parametrize("steps", [2, 3, 8])
def test_gauss_legendre_is_that_of_numpy(steps: int) -> None:
    places, weights = np.polynomial.legendre.leggauss(steps)
    found = quadrature("gauss_legendre", steps)
    torch.testing.assert_close(found[0], torch.from_numpy((places + 1) / 2), atol=1e-14, rtol=0)
    torch.testing.assert_close(found[1], torch.from_numpy(weights / 2), atol=1e-14, rtol=0)


@pytest.mark.parametrize("rule", RULES)
def test_integrated_gradients_by_each_rule_in_numbers(rule: str) -> None:
    """From 0 to x, the gradient of w x⁴ averages to `4 w x³ Σ w_k a_k³`, whose true value is w x³."""
    model, images = Powers(4).double().eval(), torch.randn(2, 2, 4, 4).double()
    factor = {
        "midpoint": (1 + 27 + 125) / 216 / 3,
        "left": (1 + 8) / 27 / 3,
        "right": (1 + 8 + 27) / 27 / 3,
        "trapezoid": (0.5 * 0 + 1 / 8 + 0.5 * 1) / 2,
        "gauss_legendre": 1 / 4,
    }[rule]
    found = hp.explain(model, images, [0, 2], method="integrated_gradients", baseline=0.0, steps=3, rule=rule)
    expected = (4 * factor * model.weight[[0, 2]] * images**4).sum(1)
    torch.testing.assert_close(found, expected.detach().float())


def test_a_rule_that_does_not_exist_and_a_trapezoid_of_one_step_are_refused() -> None:
    model, images = Powers(2).eval(), torch.rand(1, 2, 4, 4)
    for given, message in (
        ({"rule": "simpson"}, "rule must be 'midpoint' or"),
        ({"rule": "trapezoid", "steps": 1}, "needs steps=2 or more"),
    ):
        with pytest.raises(InputError, match=message):
            hp.explain(model, images, [0], method="integrated_gradients", baseline=0.0, **given)


@pytest.mark.parametrize("method", ["expected_gradients", "gradient_shap"])
@pytest.mark.parametrize("baselines", ["tensor", "noise", 0.5])
def test_expected_gradients_are_the_mean_over_the_same_draws(method: str, baselines: str | float) -> None:
    model, images, keys, samples = smooth_net(), torch.randn(2, 2, 8, 8).double(), ["a", "b"], 6
    references = torch.randn(4, 2, 8, 8).double()
    expected, chosen = torch.zeros(2, 8, 8).double(), set()
    for row, image in enumerate(images):
        for draw in range(samples):
            streams = SampleRandom(3, keys).draws([row], [draw])
            end = image
            if method == "gradient_shap":
                end = image + 0.3 * (image.max() - image.min()) * streams.normal(2, 8, 8, purpose="noise")[0].double()
            if baselines == "tensor":
                which = int(streams.uniform(1, purpose="reference")[0, 0] * 4)
                chosen.add(which)
                start = references[which]
            elif baselines == "noise":
                low, high = end.amin((1, 2), keepdim=True), end.amax((1, 2), keepdim=True)
                start = low + (high - low) * streams.uniform(2, 8, 8, purpose="noise baseline")[0].double()
            else:
                start = torch.full_like(end, baselines)
            share = streams.uniform(1, 1, 1, purpose="place on the way")[0].double()
            leaf = (start + share * (end - start)).requires_grad_()
            (slope,) = torch.autograd.grad(model(leaf[None])[0, row], leaf)
            expected[row] += ((end - start) * slope).sum(0) / samples
    options = {"noise": 0.3} if method == "gradient_shap" else {}
    given = references if baselines == "tensor" else baselines
    found = hp.explain(
        model,
        images,
        [0, 1],
        method=method,
        baselines=given,
        samples=samples,
        keys=keys,
        seed=3,
        batch_size=5,
        **options,
    )
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    assert baselines != "tensor" or len(chosen) > 1


def test_expected_gradients_sum_to_the_score_less_its_mean_over_the_references() -> None:
    """Of a linear model exactly so for each reference; the mean over many draws comes close to that over all."""
    model, images = nn.Sequential(nn.Flatten(), nn.Linear(16, 2)).eval(), 3 + torch.randn(2, 1, 4, 4)
    one = torch.randn(1, 1, 4, 4)
    found = hp.explain(model, images, [0, 1], method="expected_gradients", baselines=one, samples=3)
    expected = (model(images) - model(one)).diagonal().detach()
    torch.testing.assert_close(found.sum((1, 2)), expected, rtol=1e-4, atol=1e-4)


def test_references_that_do_not_fit_are_refused() -> None:
    model, images = Powers(2).eval(), torch.rand(2, 2, 4, 4)
    for references in (torch.rand(2, 4, 4), torch.rand(3, 2, 4, 5), torch.rand(0, 2, 4, 4)):
        with pytest.raises(InputError, match=r"baselines must be reference images \[R, 2, 4, 4\]"):
            hp.explain(model, images, [0, 1], method="expected_gradients", baselines=references)


def test_blur_integrated_gradients_are_the_integral_of_their_formula() -> None:
    """`−∫ ∇f(L_s) ∂L_s/∂s ds`, with scipy's blur, differences for ∂L/∂s, and many more steps."""
    size, sigma, fine = 8, 2.0, 400
    model, images = smooth_net(size=size), torch.randn(2, 2, size, size).double()
    images = images + images.roll(1, -1)

    def blurred(image: Tensor, scale: float) -> Tensor:
        planes = [gaussian_filter(plane.numpy(), scale, mode="nearest", truncate=5.0) for plane in image]
        return torch.from_numpy(np.stack(planes))

    expected = torch.zeros(2, size, size).double()
    for row, image in enumerate(images):
        for step in range(fine):
            s, h = (step + 0.5) / fine * sigma, sigma / fine / 10
            leaf = blurred(image, s).requires_grad_()
            (slope,) = torch.autograd.grad(model(leaf[None])[0, row], leaf)
            rate = (blurred(image, s + h) - blurred(image, s - h)) / (2 * h)
            expected[row] -= (slope * rate).sum(0) * sigma / fine
    found = hp.explain(model, images, [0, 1], method="blur_integrated_gradients", sigma=sigma, steps=200)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=0.02 * float(expected.abs().max()))


def test_blur_integrated_gradients_sum_to_the_change_from_the_blurred_image() -> None:
    """Whatever the number of steps where the score is a square; the blur is that of the baseline `blur`."""
    from heatproof.probing.baselines import blur

    model, images = Powers(2).double().eval(), torch.randn(2, 2, 4, 4).double()
    change = (model(images) - model(blur(images, 1.0)))[:, 1].detach().float()
    for given in ({"steps": 3}, {"steps": 5, "sigma": 1.0}):
        found = hp.explain(model, images, [1, 1], method="blur_integrated_gradients", **given)
        torch.testing.assert_close(found.sum((1, 2)), change, rtol=1e-4, atol=1e-5)
