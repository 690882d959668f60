"""Regions replaced in the order of the map: IROF, region perturbation, selectivity."""

import numpy as np
import pytest
import torch

from heatproof.errors import InputError, UnsupportedModelError
from heatproof.metrics.faithfulness import irof, region_perturbation, selectivity
from heatproof.probing.segments import make_segments
from support.cases import PixelSum, Wavy, float64_output, make_case

LINEAR = {"baseline": 0.0, "output": "logit"}


@pytest.fixture
def images():
    return torch.randn(4, 1, 8, 8)


def slow_outputs(f, image, values, segments, baseline, combine):
    """The output without the first 0, 1, 2, ... segments in descending order of `combine` of their values."""
    order = sorted(range(segments.max() + 1), key=lambda s: -combine(values[segments == s]))
    changed, outputs = image.astype(np.float64).copy(), [f(image.astype(np.float64))]
    for s in order:
        changed[:, segments == s] = baseline[:, segments == s]
        outputs.append(f(changed))
    return np.array(outputs)


def tiles(height, width, side):
    rows, columns = np.mgrid[:height, :width]
    return rows // side * -(-width // side) + columns // side


def by_hand():
    """Four quadrants whose sums of the map are 4, 8, −4 and 2, and which add 8, 4, 1 and 3 to the output of 16."""
    maps = torch.tensor([[1.0, 2.0], [-1.0, 0.5]]).repeat_interleave(2, 0).repeat_interleave(2, 1)[None]
    parts = torch.tensor([[2.0, 1.0], [0.25, 0.75]]).repeat_interleave(2, 0).repeat_interleave(2, 1)[None, None]
    return make_case(PixelSum(torch.ones(1, 1, 4, 4)), parts, maps)


def test_every_metric_by_hand():
    case = by_hand()  # replaced in the order 4, 8, 3, 1: what is left is 16, 12, 4, 1 and 0
    left = selectivity(case, window=2, **LINEAR)
    assert left.y.tolist() == [[16, 12, 4, 1, 0]]
    assert left.x.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert left.area.item() == pytest.approx((16 / 2 + 12 + 4 + 1) / 4)
    lost = region_perturbation(case, window=2, **LINEAR)
    assert lost.y.tolist() == [[0, 4, 12, 15, 16]]
    assert lost.mean.item() == pytest.approx(47 / 5)
    two = region_perturbation(case, window=2, regions=2, **LINEAR)
    assert (two.x.tolist(), two.y.tolist()) == ([0, 0.25, 0.5], [[0, 4, 12]])
    assert two.mean.item() == pytest.approx(16 / 3)
    # least relevant first: 1, 3, 8, 4
    assert region_perturbation(case, window=2, order="lerf", **LINEAR).y.tolist() == [[0, 1, 4, 12, 16]]
    found = irof(case, segments=4, segmentation="grid", **LINEAR)
    assert found.item() == pytest.approx(1 - (12 + 4 + 1 + 0) / 4 / 16)
    # |a|: 8, 4, −4 (a tie of sums with 4), 2
    assert region_perturbation(case, window=2, absolute=True, **LINEAR).y[0, [1, 4]].tolist() == [4, 16]


@pytest.mark.parametrize("output", ["probability", "logit"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("window", [1, 2, 3, 8])
def test_windows_against_a_slow_replica_in_float64(channels, window, output):
    images, maps, targets = torch.randn(3, channels, 8, 8), torch.randn(3, 8, 8), torch.tensor([0, 2, 1])
    case = make_case(Wavy(channels=channels), images, maps, targets)
    area = selectivity(case, window=window, output=output, baseline=0.4)
    loss = region_perturbation(case, window=window, output=output, baseline=0.4)
    for b in range(3):
        f, baseline = float64_output(Wavy(channels=channels), int(targets[b]), output), np.full((channels, 8, 8), 0.4)
        expected = slow_outputs(f, images[b].numpy(), maps[b].numpy(), tiles(8, 8, window), baseline, np.sum)
        assert area.y[b].tolist() == pytest.approx(expected, abs=1e-5)
        assert area.area[b].item() == pytest.approx(np.trapezoid(expected) / (len(expected) - 1), abs=1e-5)
        assert loss.mean[b].item() == pytest.approx((expected[0] - expected).mean(), abs=1e-5)


@pytest.mark.parametrize("segmentation", ["slic", "grid"])
@pytest.mark.parametrize("channels", [1, 3])
def test_irof_against_a_slow_replica_in_float64(channels, segmentation):
    ramp = torch.linspace(0, 2, 12)
    images = 0.3 * torch.randn(3, channels, 12, 12) + ramp + ramp[:, None]
    images[1] *= ramp.cos()
    maps, targets = torch.randn(3, 12, 12), torch.tensor([0, 2, 1])
    segments = make_segments(segmentation, images, 9)
    if segmentation == "slic":
        assert len(set((segments.amax((1, 2))).tolist())) > 1  # images with different numbers of segments
    net = Wavy(channels=channels, size=12)
    found = irof(make_case(net, images, maps, targets), segments=9, segmentation=segmentation)
    for b in range(3):
        f = float64_output(net, int(targets[b]), "probability")
        baseline = np.broadcast_to(images[b].double().mean((1, 2), keepdim=True).numpy(), images[b].shape)
        outputs = slow_outputs(f, images[b].numpy(), maps[b].numpy(), segments[b].numpy(), baseline, np.mean)
        assert found[b].item() == pytest.approx((1 - outputs[1:] / outputs[0]).mean(), abs=1e-5)


def test_irof_of_a_sum_in_closed_form(images):
    # The k best segments take what they contribute, so the mean over k weighs each by the places after it.
    images, weights, maps = images.abs() + 1, torch.rand(1, 1, 8, 8), torch.randn(4, 8, 8)
    found = irof(make_case(PixelSum(weights), images, maps), segments=16, segmentation="grid", **LINEAR)
    shares = (images * weights)[:, 0].double().unfold(1, 2, 2).unfold(2, 2, 2).sum((3, 4)).flatten(1)
    sums = maps.double().unfold(1, 2, 2).unfold(2, 2, 2).sum((3, 4)).flatten(1)
    ranked = shares.gather(1, sums.argsort(1, descending=True))
    expected = (ranked * torch.arange(16, 0, -1)).sum(1) / 16 / shares.sum(1)
    assert torch.allclose(found, expected, atol=1e-5)


def test_an_output_of_zero_has_no_share_to_lose(images):
    images[1] = 0.0
    found = irof(make_case(PixelSum(torch.ones(1, 1, 8, 8)), images, torch.rand(4, 8, 8)), segments=4,
                 segmentation="grid", **LINEAR)  # fmt: skip
    assert found.isnan().tolist() == [False, True, False, False]


def test_random_order_knows_nothing_of_the_map(images):
    case = [make_case(Wavy(), images, maps) for maps in (torch.rand(4, 8, 8), torch.rand(4, 8, 8))]
    drawn = [region_perturbation(c, window=2, order="random", baseline=0.0).y for c in case]
    assert torch.equal(*drawn)
    assert not torch.equal(drawn[0], region_perturbation(case[0], window=2, baseline=0.0).y)
    other = make_case(Wavy(), images, torch.rand(4, 8, 8), seed=1)
    assert not torch.equal(drawn[0], region_perturbation(other, window=2, order="random", baseline=0.0).y)


def test_ties_are_drawn_alike_beside_images_with_more_segments():
    images = torch.zeros(2, 1, 12, 12)
    images[0, 0, :6], images[1] = 1.0, torch.randn(1, 12, 12)
    maps = torch.rand(2, 12, 12).round()
    net = Wavy(size=12)
    counts = make_segments("slic", images, 30).amax((1, 2))
    assert counts[0] != counts[1]
    both = irof(make_case(net, images, maps), segments=30)
    alone = irof(make_case(net, images[:1], maps[:1]), segments=30)
    assert both[0].item() == pytest.approx(alone.item(), abs=1e-6)


def test_fewer_windows_than_the_default_number_are_all_replaced(images):
    case = make_case(Wavy(), images, torch.rand(4, 8, 8))
    assert region_perturbation(case, baseline=0.0).y.shape == (4, 2)  # a window of 9 pixels holds the image
    assert region_perturbation(case, window=1, baseline=0.0).y.shape == (4, 65)
    wide = make_case(Wavy(size=12), torch.randn(1, 1, 12, 12), torch.rand(1, 12, 12))
    assert region_perturbation(wide, window=1, baseline=0.0).y.shape == (1, 101)  # of 144


@pytest.mark.parametrize(
    ("metric", "options", "message"),
    [
        (selectivity, {"window": 0}, "window must be a whole number, from 1 to 8, got 0"),
        (region_perturbation, {"window": 9}, "window must be a whole number, from 1 to 8, got 9"),
        (region_perturbation, {"window": 4, "regions": 5}, "regions must be a whole number, from 1 to 4, got 5"),
        (region_perturbation, {"window": 4, "regions": 0}, "regions must be a whole number, from 1 to 4, got 0"),
        (region_perturbation, {"order": "first"}, "order must be 'morf' or 'lerf' or 'random', got 'first'"),
        (irof, {"segments": 0}, "segments must be a whole number, from 1 to 64, got 0"),
        (irof, {"segments": 65}, "segments must be a whole number, from 1 to 64, got 65"),
        (irof, {"segmentation": "voronoi"}, "segmentation must be 'slic' or 'grid' or 'patches'"),
    ],
)
def test_impossible_regions_are_refused(images, metric, options, message):
    with pytest.raises(InputError, match=message):
        metric(make_case(Wavy(), images, torch.rand(4, 8, 8)), **({"baseline": 0.0} | options))


def test_patches_are_those_of_a_vision_transformer(images):
    with pytest.raises(UnsupportedModelError, match="patches of a vision transformer"):
        irof(make_case(Wavy(), images, torch.rand(4, 8, 8)), segmentation="patches")
