"""SmoothGrad and its kin against their formulas over copies that are made one by one."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import heatproof as hp
from heatproof.errors import InputError
from heatproof.probing import SampleRandom
from support.nets import TinyCNN

KEYS, SAMPLES, NOISE, SEED = ["first", "second", "third"], 5, 0.2, 7
BASES: dict[str, dict[str, Any]] = {
    "gradient": {},
    "lrp_gamma": {"gamma": 0.4},
    "gradcam": {"layer": "conv2"},
    "integrated_gradients": {"baseline": 0.0, "steps": 2},
}


def maps_of_copies(model: nn.Module, images: Tensor, targets: list[int], base: str, **options: Any) -> Tensor:
    """The maps `[B, SAMPLES, h, w]` of noisy copies, each explained alone."""
    random, found = SampleRandom(SEED, KEYS), []
    for row, image in enumerate(images):
        for draw in range(SAMPLES):
            (drawn,) = random.draws([row], [draw]).normal(*image.shape, purpose="smoothing noise")
            noisy = image + NOISE * (image.max() - image.min()) * drawn
            shared = {"method": base, "resolution": "native", **options}
            found.append(hp.explain(model, noisy[None], [targets[row]], **shared)[0])
    return torch.stack(found).unflatten(0, (len(images), SAMPLES))


@pytest.mark.parametrize("base", BASES)
def test_mean_square_and_variance_of_the_maps_of_noisy_copies(base: str) -> None:
    model, images, targets = TinyCNN().eval(), torch.randn(3, 3, 16, 16), [2, 0, 1]
    each = maps_of_copies(model, images, targets, base, **BASES[base]).double()
    expected = {
        "smoothgrad": each.mean(1),
        "smoothgrad_squared": each.square().mean(1),
        "vargrad": each.var(1, correction=0),
    }
    for method, values in expected.items():
        found = hp.explain(
            model, images, targets, method=method, base=base, options=BASES[base], samples=SAMPLES, noise=NOISE,
            keys=KEYS, seed=SEED, batch_size=4, resolution="native",
        )  # fmt: skip
        torch.testing.assert_close(found.double(), values, rtol=1e-4, atol=1e-5 * float(values.abs().max()))


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_copies_go_through_the_model_in_batches_and_are_the_same_in_each(batch_size: int) -> None:
    sizes = []

    class Counting(TinyCNN):
        def forward(self, x: Tensor) -> Tensor:
            sizes.append(len(x))
            return super().forward(x)

    model, images = Counting().eval(), torch.randn(3, 3, 16, 16)
    options = {"method": "smoothgrad", "samples": SAMPLES, "keys": KEYS}
    expected = hp.explain(model, images, [0, 1, 2], **options, batch_size=5)
    sizes.clear()
    found = hp.explain(model, images, [0, 1, 2], **options, batch_size=batch_size)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert sum(sizes[1:]) == 3 * SAMPLES  # the first looks at the number of classes
    assert max(sizes[1:]) == min(batch_size, 3 * SAMPLES)


def test_of_a_linear_model_the_gradient_is_smooth_and_without_variance() -> None:
    model, images = nn.Sequential(nn.Flatten(), nn.Linear(64, 2)).eval(), torch.randn(2, 1, 8, 8)
    weight = model[1].weight[1].detach().view(1, 8, 8).expand(2, -1, -1)
    found = {
        name: hp.explain(model, images, [1, 1], method=name) for name in ("smoothgrad", "smoothgrad_squared", "vargrad")
    }
    torch.testing.assert_close(found["smoothgrad"], weight)
    torch.testing.assert_close(found["smoothgrad_squared"], weight.square())
    torch.testing.assert_close(found["vargrad"], torch.zeros_like(weight), atol=1e-12, rtol=0)


def test_a_base_that_draws_itself_draws_anew_for_each_copy() -> None:
    model, images = nn.Sequential(nn.Flatten(), nn.Linear(64, 2)).eval(), torch.randn(1, 1, 8, 8)
    maps = hp.explain(
        model, images, [1], method="vargrad", base="control_random", samples=9, noise=0.0, resolution="native"
    )
    assert (maps > 1e-3).all()


def test_what_cannot_be_smoothed_is_refused() -> None:
    model, images = TinyCNN().eval(), torch.rand(1, 3, 16, 16)
    for given, message in (
        ({"base": "lrp_gama"}, "Unknown explainer 'lrp_gama'"),
        ({"base": "lrp_gamma", "options": {"gama": 1}}, "lrp_gamma has no option 'gama'"),
        ({"samples": 0}, "samples must be a whole number"),
        ({"noise": -0.1}, "noise must be a number"),
        ({"base": "lrp_z", "precision": "bf16"}, "bf16"),
    ):
        with pytest.raises(InputError, match=message):
            hp.explain(model, images, method="smoothgrad", **given)
