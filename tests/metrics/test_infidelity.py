"""Infidelity, under squares and under noise."""

import numpy as np
import pytest
import torch

from heatproof.errors import InputError
from heatproof.metrics.faithfulness import infidelity
from heatproof.models import Classifier
from heatproof.probing import SampleRandom
from support.cases import PixelSum, Wavy, float64_output, make_case

LINEAR = {"baseline": 0.3, "output": "logit"}


@pytest.fixture
def images():
    return torch.randn(4, 1, 8, 8)


def corners(key, window, count, size=8):
    """The squares that a sample draws: their first rows and columns."""
    random = SampleRandom(0, [key])
    places = [random.uniform(2, purpose=f"square {k}")[0] * (size - window + 1) for k in range(count)]
    return [tuple(place.long().tolist()) for place in places]


def slow_infidelity(given, drops, scale):
    beta = sum(g * d for g, d in zip(given, drops, strict=True)) / sum(g * g for g in given) if scale else 1.0
    return np.mean([(beta * g - d) ** 2 for g, d in zip(given, drops, strict=True)])


@pytest.mark.parametrize("scale", [True, False])
def test_the_slopes_of_a_sum_foretell_everything(images, scale):
    weights = torch.randn(1, 1, 8, 8)
    case = make_case(PixelSum(weights), images, weights[0].expand(4, -1, -1))
    for options in (LINEAR, {"noise": 0.5, "output": "logit"}):
        assert (infidelity(case, scale=scale, **options) < 1e-10).all()
    truth = make_case(PixelSum(weights), images, (images[:, 0] - 0.3) * weights[0])
    assert (infidelity(truth, scale=scale, contributions=True, **LINEAR) < 1e-10).all()


def test_a_unit_costs_nothing_where_it_is_fitted_and_its_square_where_not(images):
    weights = torch.randn(1, 1, 8, 8)
    once = make_case(PixelSum(weights), images, 3 * weights[0].expand(4, -1, -1))
    assert (infidelity(once, window=2, **LINEAR) < 1e-10).all()
    found = infidelity(once, window=2, samples=7, scale=False, **LINEAR)
    for b in range(4):
        changes = [((images[b, 0] - 0.3) * weights[0, 0])[i : i + 2, j : j + 2].sum() for i, j in corners(str(b), 2, 7)]
        assert found[b].item() == pytest.approx(float(4 * torch.stack(changes).square().mean()), rel=1e-4)


@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("contributions", [True, False])
@pytest.mark.parametrize("channels", [1, 3])
def test_squares_against_a_slow_replica_in_float64(channels, contributions, scale):
    images, maps, targets = torch.randn(3, channels, 8, 8), torch.randn(3, 8, 8), torch.tensor([0, 2, 1])
    case = make_case(Wavy(channels=channels), images, maps, targets)
    found = infidelity(case, samples=9, window=3, baseline=0.3, contributions=contributions, scale=scale)
    for b in range(3):
        f, image = float64_output(Wavy(channels=channels), int(targets[b]), "probability"), images[b].double().numpy()
        given, drops = [], []
        for i, j in corners(str(b), 3, 9):
            changed = image.copy()
            changed[:, i : i + 3, j : j + 3] = 0.3
            weight = np.ones((8, 8)) if contributions else (image - 0.3).mean(0)
            given.append((maps[b].double().numpy() * weight)[i : i + 3, j : j + 3].sum())
            drops.append(f(image) - f(changed))
        assert found[b].item() == pytest.approx(slow_infidelity(given, drops, scale), rel=1e-3, abs=1e-8)


@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("channels", [1, 3])
def test_noise_against_a_slow_replica_in_float64(channels, scale):
    images, maps, targets = torch.randn(3, channels, 8, 8), torch.randn(3, 8, 8), torch.tensor([0, 2, 1])
    found = infidelity(make_case(Wavy(channels=channels), images, maps, targets), samples=21, noise=0.2, scale=scale)
    for b in range(3):
        f, image = float64_output(Wavy(channels=channels), int(targets[b]), "probability"), images[b].double().numpy()
        random, given, drops = SampleRandom(0, [str(b)]), [], []
        for k in range(21):
            noise = 0.2 * random.normal(channels, 8, 8, purpose=f"infidelity noise {k}")[0].double().numpy()
            given.append((noise.mean(0) * maps[b].double().numpy()).sum())
            drops.append(f(image) - f(image - noise))
        assert found[b].item() == pytest.approx(slow_infidelity(given, drops, scale), rel=1e-3, abs=1e-8)


def test_equal_channels_that_change_alike_are_one_channel(images):
    class Grey(torch.nn.Module):
        def forward(self, x):
            return torch.einsum("bchw,hw->b", x, torch.linspace(-1, 1, 64).view(8, 8))[:, None]

    maps = torch.randn(4, 8, 8)
    one = infidelity(make_case(Grey(), images, maps), scale=False, **LINEAR)
    three = infidelity(make_case(Grey(), images.expand(-1, 3, -1, -1), 3 * maps), scale=False, **LINEAR)
    assert torch.allclose(three, 9 * one, rtol=1e-4)  # f and what the map gives are both three times as large


def test_the_default_square_is_a_seventh_of_the_shorter_side():
    case = make_case(Wavy(size=16), torch.randn(2, 1, 16, 16), torch.randn(2, 16, 16))
    assert torch.equal(infidelity(case, baseline=0.0), infidelity(case, window=2, baseline=0.0))
    assert not torch.equal(infidelity(case, baseline=0.0), infidelity(case, window=3, baseline=0.0))


def test_squares_lie_anywhere_inside_and_each_place_is_drawn_equally_often():
    seen = []

    class Seen(torch.nn.Module):
        def forward(self, x):
            seen.append((x == 0).flatten(1))
            return x.flatten(1)[:, :2]

    case = make_case(Classifier(Seen().eval()), torch.ones(1, 1, 4, 5), torch.rand(1, 4, 5), batch_size=500)
    infidelity(case, samples=3000, window=3, baseline=0.0)
    squares = torch.cat(seen)
    squares = squares[squares.any(1)]
    kinds, counts = squares.unique(dim=0, return_counts=True)
    assert len(kinds) == 2 * 3
    assert (squares.sum(1) == 9).all()
    assert ((counts - 500).abs() < 5 * (3000 * (1 / 6) * (5 / 6)) ** 0.5).all()


def test_a_map_that_gives_nothing_to_any_square_explains_nothing(images):
    maps = torch.zeros(1, 8, 8)
    maps[0, 0, 0] = 1.0
    assert (0, 0) not in corners("0", 1, 4)
    found = infidelity(make_case(Wavy(), images[:1], maps), samples=4, window=1, baseline=0.0)
    other = infidelity(make_case(Wavy(), images[:1], 1e-9 * torch.randn(1, 8, 8)), samples=4, window=1, baseline=0.0,
                       scale=False)  # fmt: skip
    assert found.item() == pytest.approx(other.item(), rel=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 0}, "samples must be a whole number, at least 1, got 0"),
        ({"window": 0}, "window must be a whole number, from 1 to 8, got 0"),
        ({"window": 9}, "window must be a whole number, from 1 to 8, got 9"),
        ({"noise": -0.1}, "noise must be a number, at least 0, got -0.1"),
        ({"noise": 0.1, "window": 3}, "window=3 is that of squares: leave it out beside noise=0.1"),
        ({"noise": 0.1, "contributions": True}, "contributions=True is that of squares"),
        ({"noise": 0.1, "baseline": 0.0}, "baseline=0.0 is that of squares"),
        ({"baseline": "inpaint"}, "give contributions=True"),
    ],
)
def test_impossible_perturbations_are_refused(images, options, message):
    with pytest.raises(InputError, match=message):
        infidelity(
            make_case(Wavy(), images, torch.rand(4, 8, 8)),
            **({"baseline": 0.0} if "noise" not in options else {}) | options,
        )
