import functools
import itertools
import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics.pairwise import cosine_distances
from torch.nn import functional as F

import heatproof as hp
from heatproof.errors import InputError, UnsupportedModelError
from heatproof.explainers import perturbation
from heatproof.models import Classifier
from heatproof.probing import SampleRandom, SoftMasks
from heatproof.probing.dropping import logits_without_tokens
from heatproof.probing.segments import grid, make_segments, slic
from support.cases import PixelSum, Wavy, slow_ridge
from support.nets import TinyCNN, TinyViT

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


def test_segments_are_made_of_tokens_where_tokens_are_dropped():
    net, images = TinyViT(depth=2).eval(), torch.randn(2, 3, 32, 32)
    options = {"method": "lime", "samples": 30, "output": "logit", "keys": ["a", "b"]}
    found = hp.explain(net, images, [0, 1], baseline="drop", segmentation="patches", resolution="native", **options)
    assert found.shape == (2, 4, 4)
    for b in range(2):
        on = table("ab"[b], 16, 30)
        with torch.no_grad():
            values = [
                float(logits_without_tokens(net, images[b : b + 1], torch.from_numpy(row == 0).view(1, 4, 4))[0, b])
                for row in on
            ]
        distance = cosine_distances(on, on[:1])[:, 0]
        weights = np.sqrt(np.exp(-(distance**2) / 0.25**2))
        expected = slow_ridge(on.astype(float), np.array(values), weights, alpha=1.0)
        np.testing.assert_allclose(found[b].flatten().numpy(), expected, atol=1e-4 * np.abs(expected).max())
    blocks = hp.explain(net, images, [0, 1], baseline="drop", segmentation="grid", segments=4, **options)
    assert len(blocks[0].unique()) == 4
    assert torch.equal(blocks[:, :16, :16], blocks[:, :1, :1].expand(2, 16, 16))
    with pytest.raises(InputError, match=r"whole tokens: segmentation='patches' or 'grid'"):
        hp.explain(net, images, baseline="drop", **options)
    with pytest.raises(UnsupportedModelError, match="patches of a vision transformer"):
        hp.explain(TinyCNN().eval(), images, segmentation="patches", baseline=0.0, **options)


def test_patches_as_segments_of_pixels():
    net, images = TinyViT(depth=1).eval(), torch.randn(1, 3, 32, 32)
    found = hp.explain(net, images, [0], method="lime", segmentation="patches", samples=60)
    assert torch.equal(found, found[:, ::8, ::8].repeat_interleave(8, 1).repeat_interleave(8, 2))


def brute_force_shapley(value, count):
    """Every order of `count` players: the mean of what each adds when it comes."""
    found = np.zeros(count)
    for order in itertools.permutations(range(count)):
        present = set()
        for player in order:
            before = value(frozenset(present))
            present.add(player)
            found[player] += value(frozenset(present)) - before
    return found / math.factorial(count)


def test_kernel_shap_of_all_coalitions_is_the_shapley_value(images):
    model = clf()
    regions = grid(images, 2, 3)

    @functools.cache
    def value(b, on):
        keep = torch.isin(regions[b], torch.tensor(sorted(on), dtype=torch.long))
        with torch.no_grad():
            return (
                model.probabilities(model(torch.where(keep, images[b], torch.tensor(0.3))[None]))[0, b].double().item()
            )

    on, weights = perturbation._coalitions(SampleRandom(0, ["a"]), [6], 1000)
    assert on.shape == (1, 64, 6)
    for b in range(3):
        values = torch.tensor([[[value(b, frozenset(row.nonzero()[:, 0].tolist()))] for row in on[0]]])
        found = perturbation._shapley_regression(on, values.double(), weights, torch.ones(1, 6, dtype=torch.bool))
        expected = brute_force_shapley(functools.partial(value, b), 6)
        np.testing.assert_allclose(found[0, :, 0].numpy(), expected, atol=1e-7)
    maps = hp.explain(model, images, [0, 1, 2], method="kernel_shap", segments=9, segmentation="grid", baseline=0.3)
    nine = grid(images, 3, 3)
    inside = torch.stack([maps[0][nine[0] == s][0] for s in range(9)])
    with torch.no_grad():
        whole, none = (model.probabilities(model(x[None]))[0, 0] for x in (images[0], torch.full_like(images[0], 0.3)))
    torch.testing.assert_close(inside.sum(), whole - none, atol=1e-5, rtol=0)


def test_kernel_shap_of_a_sum_of_pixels_is_each_segments_sum_from_few_coalitions():
    weights, images = torch.randn(2, 1, SIZE, SIZE), torch.rand(2, 1, SIZE, SIZE)
    found = hp.explain(PixelSum(weights).eval(), images, [1, 0], method="kernel_shap", samples=40, segments=16,
                       segmentation="grid", baseline=0.0, output="logit")  # fmt: skip
    regions = grid(images, 4, 4)[0]
    for b, target in enumerate((1, 0)):
        contributions = images[b, 0] * weights[target, 0]
        sums = torch.stack([contributions[regions == s].sum() for s in range(16)])
        torch.testing.assert_close(found[b], sums[regions], atol=1e-5, rtol=1e-4)


def test_coalitions_are_drawn_from_the_kernel_in_pairs():
    on, weights = perturbation._draw_coalitions(torch.Generator().manual_seed(1), 10, 40001)
    assert torch.equal(weights, torch.ones(40001, dtype=torch.float64))
    assert torch.equal(on[:40000:2], ~on[1:40000:2])
    sizes = on[::2].sum(1)
    kernel = torch.tensor([1 / (k * (10 - k)) for k in range(1, 10)])
    observed = torch.bincount(sizes, minlength=10)[1:] / len(sizes)
    torch.testing.assert_close(observed, kernel / kernel.sum(), atol=0.02, rtol=0)
    assert (on.float().mean(0) - 0.5).abs().max() < 0.02


def test_kernel_shap_of_images_with_different_numbers_of_segments():
    random = SampleRandom(0, ["a", "b", "c"])
    on, weights = perturbation._coalitions(random, [1, 3, 8], 30)
    assert on.shape == (3, 32, 8)
    assert on[:, 0].all()
    assert [int(row.sum()) for row in on[:, 1]] == [7, 5, 0]  # what an image lacks is always on
    assert (weights > 0).sum(1).tolist() == [0, 6, 30]
    alone = perturbation._coalitions(random.take([1]), [3], 30)
    assert torch.equal(on[1, :8, :3], alone[0][0])


def slow_occlusion(model, image, target, window, stride, baseline):
    height, width = image.shape[-2:]
    total, covered = np.zeros((height, width)), np.zeros((height, width))
    with torch.no_grad():
        plain = model.probabilities(model(image[None]))[0, target]
        for top in range(0, math.ceil((height - window) / stride) * stride + 1, stride):
            for left in range(0, math.ceil((width - window) / stride) * stride + 1, stride):
                changed = image.clone()
                changed[:, top : top + window, left : left + window] = baseline
                loss = float(plain - model.probabilities(model(changed[None]))[0, target])
                total[top : top + window, left : left + window] += loss
                covered[top : top + window, left : left + window] += 1
    return total / covered


@pytest.mark.parametrize(("window", "stride"), [(4, None), (5, 3), (3, 3), (12, 1), (1, 1)])
def test_occlusion_against_a_slow_replica(images, window, stride):
    model = clf()
    found = hp.explain(model, images, [0, 2, 1], method="occlusion", window=window, stride=stride, baseline=0.2)
    for b, target in enumerate((0, 2, 1)):
        expected = slow_occlusion(model, images[b], target, window, stride or max(1, window // 2), 0.2)
        np.testing.assert_allclose(found[b].numpy(), expected, atol=1e-6)


def test_rise_is_the_mean_of_its_masks_weighted_by_the_output(images):
    model, keys = clf(), ["a", "b", "c"]
    found = hp.explain(model, images, [0, 2, 1], method="rise", samples=70, cells=3, keep=0.4, baseline=0.1, keys=keys)
    for b, target in enumerate((0, 2, 1)):
        total = torch.zeros(SIZE, SIZE, dtype=torch.float64)
        for k in range(70):
            seen = 1 - SoftMasks(SampleRandom(0, [keys[b]]), (SIZE, SIZE), 3, 0.4, 70).chunk(k, k + 1)[0, 0]
            version = images[b] * seen + 0.1 * (1 - seen)
            with torch.no_grad():
                total += model.probabilities(model(version[None]))[0, target].double() * seen
        torch.testing.assert_close(found[b].double(), total / (70 * 0.4), atol=1e-6, rtol=1e-4)


def test_soft_masks_are_an_enlarged_grid_at_a_random_place():
    masks = SoftMasks(SampleRandom(0, ["a"]), (20, 20), 4, 0.3, 400).chunk(0, 400)[0]
    assert masks.min() >= -1e-6
    assert masks.max() <= 1 + 1e-6
    assert abs(float(masks.mean()) - 0.7) < 0.03
    slopes = (masks[:, :, 1:] - masks[:, :, :-1]).abs().amax((1, 2))
    assert slopes.max() <= 1 / 5 + 1e-6  # a step from 0 to 1 takes a cell of 5 pixels
    assert len({tuple(mask[0].tolist()) for mask in masks}) > 100
    with pytest.raises(InputError, match="cells must be a whole number, from 1 to 20"):
        SoftMasks(SampleRandom(0, ["a"]), (20, 30), 21, 0.3, 4)


def test_token_drop_leaves_one_token_out_at_a_time():
    net, images = TinyViT(depth=2).eval(), torch.randn(2, 3, 32, 32)
    found = hp.explain(net, images, [3, 1], method="token_drop", output="logit", resolution="native")
    for b, target in enumerate((3, 1)):
        for place in range(16):
            without = logits_without_tokens(net, images[b : b + 1], (torch.arange(16) == place).view(1, 4, 4))
            loss = (net(images[b : b + 1]) - without)[0, target]
            torch.testing.assert_close(found[b].flatten()[place], loss, atol=1e-5, rtol=1e-4)
    with pytest.raises(UnsupportedModelError, match="patches of a vision transformer"):
        hp.explain(TinyCNN().eval(), images, method="token_drop")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "occlusion", "window": 13}, "window must be a whole number, from 1 to 12"),
        ({"method": "occlusion", "window": 4, "stride": 5}, "stride must be a whole number, from 1 to 4"),
        ({"method": "occlusion", "window": 4, "baseline": "drop"}, "use token_drop"),
        ({"method": "rise", "baseline": "drop"}, "use token_drop"),
        ({"method": "rise", "baseline": "inpaint", "samples": 2}, "replaces whole pixels"),
        ({"method": "rise", "keep": 1.0}, "keep must lie between 0 and 1"),
        ({"method": "rise", "samples": 0}, "samples must be a whole number"),
        ({"method": "kernel_shap", "samples": 0}, "samples must be a whole number"),
        ({"method": "kernel_shap", "segmentation": "quickshift"}, "segmentation must be 'slic' or 'grid' or 'patches'"),
    ],
)
def test_bad_options(images, options, message):
    with pytest.raises(InputError, match=message):
        hp.explain(clf(), images, **options)
