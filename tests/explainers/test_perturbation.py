import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics.pairwise import cosine_distances
from torch.nn import functional as F

import heatproof as hp
from heatproof.errors import InputError
from heatproof.explainers import perturbation
from heatproof.models import Classifier
from heatproof.probing import SampleRandom
from heatproof.probing.segments import grid, make_segments, slic
from support.cases import PixelSum, Wavy, slow_ridge

SIZE = 12


def smooth(count, channels=1):
    """Images with areas that a segmentation can find."""
    areas = F.interpolate(torch.randn(count, channels, 4, 4), (SIZE, SIZE), mode="nearest")
    return areas + 0.1 * torch.randn(count, channels, SIZE, SIZE)


@pytest.fixture
def images():
    return smooth(3)


def clf(**options):
    return Classifier(Wavy(size=SIZE).eval(), channels=1, mean=[0.5], std=[0.25], **options)


def table(key, segments, samples):
    """The on/off table that a sample must get: its own stream, a column a segment, the first row all on."""
    on = torch.randint(2, (segments, samples), generator=SampleRandom(0, [key]).generator(0, "lime")).T.numpy()
    on[0] = 1
    return on


def slow_lime(image, segments, on, baseline, output, target):
    """LIME of one image: every version by itself, kernel and ridge from their formulas, float64."""
    values = []
    for row in on:
        off = np.isin(segments, np.nonzero(row == 0)[0])
        version = torch.where(torch.from_numpy(off), baseline, image)
        with torch.no_grad():
            values.append(float(output(clf()(version[None]).double())[0, target]))
    distance = cosine_distances(on, on[:1])[:, 0]
    weights = np.sqrt(np.exp(-(distance**2) / 0.25**2))
    return slow_ridge(on.astype(float), np.array(values), weights, alpha=1.0)[segments]


@pytest.mark.parametrize("output", ["probability", "logit"])
@pytest.mark.parametrize("segmentation", ["slic", "grid"])
def test_agreement_with_a_slow_replica(images, segmentation, output):
    targets, keys = torch.tensor([0, 2, 1]), ["a", "b", "c"]
    found = hp.explain(clf(), images, targets, method="lime", keys=keys, samples=60, segments=9, segmentation=segmentation,
                       baseline=0.3, output=output)  # fmt: skip
    regions = make_segments(segmentation, images, 9).numpy()
    assert regions.max((1, 2)).min() >= 4
    for b in range(3):
        on = table(keys[b], regions[b].max() + 1, 60)
        expected = slow_lime(images[b], regions[b], on, torch.tensor(0.3), clf().output(output), int(targets[b]))
        assert np.abs(found[b].numpy() - expected).max() < 1e-5 * np.abs(expected).max() + 1e-7


def test_the_baseline_is_each_segments_own_mean_by_default():
    images = smooth(2, channels=3)
    regions = slic(images, 6)
    assert (regions.amax((1, 2)) >= 3).all()
    found = perturbation._segment_means(images, regions)
    for b in range(2):
        for label in regions[b].unique():
            inside = regions[b] == label
            for c in range(3):
                expected = images[b, c][inside].mean()
                assert torch.allclose(found[b, c][inside], expected, atol=1e-6)
    model = Classifier(Wavy(channels=3, size=SIZE).eval())
    options = {"method": "lime", "samples": 30, "segments": 6}
    default = hp.explain(model, images, **options)
    assert torch.allclose(default, hp.explain(model, images, baseline=found, **options), atol=1e-6)
    assert not torch.allclose(default, hp.explain(model, images, baseline="mean", **options), atol=1e-4)


def test_a_sum_of_pixels_has_known_weights():
    # The logit is linear in the segments, so an (almost) unpenalised fit of many versions returns each segment's sum.
    weights = torch.randn(2, 1, SIZE, SIZE)
    images = 1000 * torch.rand(1, 1, SIZE, SIZE)
    found = hp.explain(PixelSum(weights).eval(), images, [1], method="lime", samples=2000, segments=9, segmentation="grid",
                       baseline=0.0, output="logit")  # fmt: skip
    contributions = (images[0, 0] * weights[1, 0]).double()
    regions = grid(images, 3, 3)[0]
    sums = torch.stack([contributions[regions == s].sum() for s in range(9)])
    assert torch.allclose(found[0].double(), sums[regions], atol=0.03 * float(sums.abs().max()))


def test_weighted_ridge_against_scikit_learn_and_the_normal_equations():
    x, y = torch.rand(2, 40, 7).double().round(), torch.randn(2, 40, 3).double()
    weights = torch.rand(2, 40).double()
    found = perturbation._weighted_ridge(x, y, weights)
    for b in range(2):
        fitted = Ridge(alpha=1.0).fit(x[b].numpy(), y[b].numpy(), sample_weight=weights[b].numpy())
        assert np.allclose(found[b].T.numpy(), fitted.coef_, atol=1e-10)
        for t in range(3):
            expected = slow_ridge(x[b].numpy(), y[b, :, t].numpy(), weights[b].numpy(), 1.0)
            assert np.allclose(found[b, :, t].numpy(), expected, atol=1e-10)


def test_the_kernel_of_the_cosine_distance_with_segments_that_an_image_lacks():
    on = torch.rand(2, 30, 8) > 0.5
    on[:, 0], on[0, 1] = True, False
    on[1, :, 5:] = True  # the second image has five segments
    found = perturbation._kernel(on, torch.tensor([8, 5]))
    for b, count in enumerate((8, 5)):
        rows = on[b, :, :count].numpy().astype(float)
        distance = cosine_distances(rows, rows[:1])[:, 0]
        assert np.allclose(found[b].numpy(), np.sqrt(np.exp(-(distance**2) / 0.25**2)), atol=1e-12)
    assert found[:, 0].tolist() == [1, 1]


def test_draws_of_a_segment_do_not_depend_on_how_many_follow():
    random = SampleRandom(0, ["a", "b"])
    on = perturbation._draw_on(random, [5, 9], 40)
    assert torch.equal(perturbation._draw_on(random, [9, 9], 40)[0, :, :5], on[0, :, :5])
    assert on[0, :, 5:].all()
    assert on[:, 0].all()
    assert torch.equal(on[1], torch.from_numpy(table("b", 9, 40)).bool())
    assert abs(on[1, 1:].float().mean() - 0.5) < 5 * (0.25 / (39 * 9)) ** 0.5


@pytest.mark.parametrize("features", [1, 3, 8])
def test_features_keeps_the_largest_weights(images, features):
    options = {"method": "lime", "samples": 80, "segments": 16, "segmentation": "grid", "batch_size": 8}
    full = hp.explain(clf(), images, **options)
    found = hp.explain(clf(), images, features=features, **options)
    for before, after in zip(full, found, strict=True):
        cut = before.unique().abs().sort(descending=True).values[features - 1]
        assert torch.equal(after, before.where(before.abs() >= cut, 0.0))
    assert torch.equal(hp.explain(clf(), images, features=99, **options), full)


def test_several_targets_and_contrasts(images):
    options = {"method": "lime", "samples": 40, "segments": 9, "output": "logit"}
    targets = torch.tensor([[0, 1], [1, 2], [2, 0]])
    both = hp.explain(clf(), images, targets, **options)
    for t in range(2):
        assert torch.allclose(both[:, t], hp.explain(clf(), images, targets[:, t], **options), atol=1e-6)
    contrast = hp.explain(clf(), images, targets[:, 0], against=targets[:, 1], **options)
    assert torch.allclose(contrast, both[:, 0] - both[:, 1], atol=1e-5)


def test_a_map_does_not_depend_on_the_batch(images):
    options = {"method": "lime", "samples": 50, "segments": 9}
    full = hp.explain(clf(), images, **options)
    for b in range(3):
        assert torch.allclose(hp.explain(clf(), images[b : b + 1], **options)[0], full[b], atol=1e-6)
    for size in (1, 2, 64):
        assert torch.allclose(hp.explain(clf(), images, batch_size=size, **options), full, atol=1e-6)
    assert not torch.allclose(hp.explain(clf(), images, seed=1, **options), full, atol=1e-3)


def test_a_model_that_ignores_the_image_gets_a_map_of_zeros(images):
    found = hp.explain(PixelSum(torch.zeros(2, 1, SIZE, SIZE)).eval(), images, method="lime", samples=20, segments=4)
    assert torch.equal(found, torch.zeros_like(found))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 0}, "samples must be a whole number"),
        ({"segments": 0}, "segments must be a whole number, from 1 to 144"),
        ({"features": 0}, "features must be a whole number"),
        ({"segmentation": "felzenszwalb"}, "segmentation must be 'slic' or 'grid'"),
        ({"baseline": "segment_men"}, "Unknown baseline 'segment_men'"),
        ({"output": "loss"}, "output must be"),
    ],
)
def test_impossible_options_are_refused(images, options, message):
    with pytest.raises(InputError, match=message):
        hp.explain(clf(), images, method="lime", **({"samples": 5} | options))
