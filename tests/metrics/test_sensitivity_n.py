"""Profiles over the size of a set, and the rank correlation of what a map gives with how much the output depends."""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from heatproof.errors import InputError
from heatproof.metrics.faithfulness import monotonicity_correlation, sensitivity_n
from heatproof.probing import NestedSubsetMasks, SampleRandom
from support.cases import PixelSum, Wavy, float64_output, make_case, slow_pearson

LINEAR = {"baseline": 0.0, "output": "logit"}


@pytest.fixture
def images():
    return torch.randn(4, 1, 8, 8)


def test_the_true_contributions_of_a_sum_correlate_perfectly_at_every_size(images):
    weights = torch.randn(1, 1, 8, 8)
    truth = images[:, 0] * weights[0, 0]
    for maps, expected in ((truth, 1.0), (3 * truth, 1.0), (-truth, -1.0)):
        found = sensitivity_n(make_case(PixelSum(weights), images, maps), runs=10, **LINEAR)
        assert torch.allclose(found.y, torch.full_like(found.y, expected), atol=1e-6)
        assert torch.allclose(found.mean, torch.full((4,), expected, dtype=torch.float64), atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_profile_against_a_slow_replica_in_float64(channels):
    images, maps, targets = torch.randn(3, channels, 8, 8), torch.randn(3, 8, 8), torch.tensor([0, 2, 1])
    found = sensitivity_n(make_case(Wavy(channels=channels), images, maps, targets), runs=12, baseline=0.3)
    sizes = sorted({round(51 ** (i / 9)) for i in range(10)})
    assert found.x.tolist() == pytest.approx([n / 64 for n in sizes])
    assert len(sizes) in (9, 10)
    for b in range(3):
        f, random = float64_output(Wavy(channels=channels), int(targets[b]), "probability"), SampleRandom(0, [str(b)])
        image = images[b].double().numpy()
        profile = []
        for n in sizes:
            sums, drops = [], []
            for run in range(12):
                chosen = random.subset(max(sizes), 64, purpose=f"subset {run}")[0, :n].numpy()
                changed = image.copy().reshape(channels, 64)
                changed[:, chosen] = 0.3
                sums.append(maps[b].double().flatten()[chosen].sum().item())
                drops.append(f(image) - f(changed.reshape(image.shape)))
            profile.append(slow_pearson(sums, drops))
        assert found.y[b].tolist() == pytest.approx(profile, abs=5e-5)
        assert found.mean[b].item() == pytest.approx(np.mean(profile), abs=5e-5)


def test_a_size_at_which_nothing_is_to_be_seen_is_left_out_of_the_mean(images):
    # The map has one pixel, which 12 draws of a few pixels never hit: their sums are all 0.
    maps = torch.zeros(4, 8, 8)
    drawn = torch.cat([SampleRandom(0, ["0"]).subset(64, 64, purpose=f"subset {run}")[:, :4] for run in range(6)])
    free = next(p for p in range(64) if p not in drawn.flatten().tolist())
    maps.view(4, 64)[:, free] = 1.0
    found = sensitivity_n(make_case(Wavy(), images[:1], maps[:1]), runs=6, baseline=0.0)
    assert found.y[0, :3].isnan().all()
    assert not found.y.isnan().all()
    assert found.mean.item() == pytest.approx(float(found.y[~found.y.isnan()].mean()))


def test_nested_subsets_are_lazy_distinct_and_summed_like_their_masks():
    random, values = SampleRandom(0, ["a", "b"]), torch.randn(2, 5, 4)
    masks = NestedSubsetMasks(random, (5, 4), [1, 7, 20], 6)
    whole = masks.chunk(0, 18)
    assert masks.count == 18
    assert whole.sum((2, 3)).tolist() == [[1, 7, 20] * 6] * 2
    assert (whole[:, 0::3] <= whole[:, 1::3]).all()
    assert torch.allclose(masks.sums(values), (whole * values[:, None]).sum((2, 3)).double(), atol=1e-5)
    for start, stop in ((0, 1), (1, 3), (2, 8), (5, 18), (7, 8)):
        assert torch.equal(masks.chunk(start, stop), whole[:, start:stop])
    assert len(whole[0, 1::3].flatten(1).unique(dim=0)) == 6
    with pytest.raises(InputError, match="counts must be a whole number, from 1 to 20, got 21"):
        NestedSubsetMasks(random, (5, 4), [21], 2)


# how much the output depends on a set


def test_effects_of_a_sum_are_ranked_as_the_spread_of_what_is_drawn(images):
    # With one pixel a set, the expected squared change is that of w (x − u): a map of |w| sqrt(E (x − u)²) ranks the same.
    weights = torch.randn(1, 1, 8, 8)
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    draws = torch.stack([low + (high - low) * SampleRandom(0, list("0123")).uniform(1, 8, 8, purpose=f"resampling {i}")
                         for i in range(5)])  # fmt: skip
    effects = ((images - draws) * weights)[:, :, 0].square().mean(0)
    case = make_case(PixelSum(weights), images, effects.sqrt() * torch.randn(4, 8, 8).sign())
    found = monotonicity_correlation(case, step=1, samples=5, output="logit")
    assert torch.allclose(found, torch.ones(4, dtype=torch.float64), atol=1e-3)
    opposite = make_case(PixelSum(weights), images, 1 / effects)
    assert (monotonicity_correlation(opposite, step=1, samples=5, output="logit") < -0.999).all()


@pytest.mark.parametrize("step", [5, None])
@pytest.mark.parametrize("channels", [1, 3])
def test_monotonicity_correlation_against_a_slow_replica_in_float64(channels, step):
    images, maps, targets = torch.randn(3, channels, 8, 8), torch.randn(3, 8, 8), torch.tensor([0, 2, 1])
    case = make_case(Wavy(channels=channels), images, maps, targets)
    found = monotonicity_correlation(case, step=step, samples=4)
    for b in range(3):
        f, image = float64_output(Wavy(channels=channels), int(targets[b]), "probability"), images[b].double().numpy()
        low, high = image.min((1, 2), keepdims=True), image.max((1, 2), keepdims=True)
        random = SampleRandom(0, [str(b)])
        size = maps[b].abs().flatten().double().numpy()
        order = np.argsort(-size)
        sums, effects = [], []
        for start in range(0, 64, step or 8):
            chosen = order[start : start + (step or 8)]
            squares = []
            for i in range(4):
                new = low + (high - low) * random.uniform(channels, 8, 8, purpose=f"resampling {i}")[0].double().numpy()
                changed = image.copy().reshape(channels, 64)
                changed[:, chosen] = new.reshape(channels, 64)[:, chosen]
                squares.append((f(image) - f(changed.reshape(image.shape))) ** 2)
            sums.append(size[chosen].sum())
            effects.append(np.mean(squares))
        assert found[b].item() == pytest.approx(spearmanr(sums, effects).statistic, abs=1e-6)


def test_effects_within_rounding_are_no_effects(images):
    # f is about 8 and depends on its first row; what the other rows add is a few of its last digits, in any order.
    weights, images = 2e-7 * torch.rand(1, 1, 8, 8), images.clone()
    weights[0, 0, 0], images[:, 0, 0] = 1.0, 1.0 + 0.1 * torch.rand(4, 8)
    maps = torch.arange(8.0, 0, -1)[:, None] + 0.1 * torch.rand(4, 8, 8)  # the rows are the chunks
    found = monotonicity_correlation(make_case(PixelSum(weights), images, maps), samples=3, output="logit")
    expected = spearmanr(np.arange(8, 0, -1), [1, *[0] * 7]).statistic
    assert found.tolist() == pytest.approx([expected] * 4)


def test_an_output_that_depends_on_nothing_has_no_rank_correlation(images):
    still = make_case(PixelSum(torch.zeros(2, 1, 8, 8)), images, torch.randn(4, 8, 8))
    assert monotonicity_correlation(still, output="logit").isnan().all()
    signs = make_case(Wavy(), images, torch.randn(4, 8, 8).sign())
    assert monotonicity_correlation(signs).isnan().all()


@pytest.mark.parametrize(
    ("metric", "options", "message"),
    [
        (sensitivity_n, {"runs": 0}, "runs must be a whole number, at least 1, got 0"),
        (monotonicity_correlation, {"samples": 0}, "samples must be a whole number, at least 1, got 0"),
        (monotonicity_correlation, {"step": 65}, "step must be a whole number, from 1 to 64, got 65"),
    ],
)
def test_impossible_numbers_are_refused(images, metric, options, message):
    options = options | ({"baseline": 0.0} if metric is sensitivity_n else {})
    with pytest.raises(InputError, match=message):
        metric(make_case(Wavy(), images, torch.rand(4, 8, 8)), **options)
