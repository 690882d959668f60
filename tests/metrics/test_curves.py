"""Deletion, insertion and their kin."""

import numpy as np
import pytest
import torch

from heatproof.errors import InputError
from heatproof.metrics import METRICS
from heatproof.metrics.faithfulness import deletion, insertion, lerf, monotonicity_arya, road, srg
from heatproof.metrics.registry import Curve
from heatproof.models import Classifier
from heatproof.probing import SampleRandom
from heatproof.probing.inpainting import NOISE, inpaint
from support.cases import PixelSum, Wavy, float64_output, make_case

LINEAR = {"baseline": 0.0, "output": "logit"}


@pytest.fixture
def images():
    return torch.randn(4, 1, 8, 8)


def slow_curve(f, image, values, step, baseline, insert):
    """The points of a curve for one image `[C, H, W]`, one changed image at a time; no ties in `values`."""
    order = sorted(range(values.size), key=lambda p: -values.flat[p])
    start, other = (baseline, image) if insert else (image, baseline)
    changed, points = start.astype(np.float64).copy(), [f(start.astype(np.float64))]
    for first in range(0, len(order), step):
        for p in order[first : first + step]:
            row, column = divmod(p, values.shape[1])
            changed[:, row, column] = other[:, row, column]
        points.append(f(changed))
    return points


def test_a_hand_computed_example():
    # In descending order of the map: b (4), a (3), d (2), c (1); contributions 1, 1, −4 and 6 of a sum of 4.
    images = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    maps = torch.tensor([[[3.0, 4.0], [1.0, 2.0]]])
    case = make_case(PixelSum(torch.tensor([[[[1.0, 0.5], [2.0, -1.0]]]])), images, maps)
    removed, put_back = deletion(case, step=1, **LINEAR), insertion(case, step=1, **LINEAR)
    assert removed.x.tolist() == put_back.x.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert removed.y.tolist() == [[4, 3, 2, 6, 0]]
    assert put_back.y.tolist() == [[0, 1, 2, -2, 4]]
    assert removed.area.item() == pytest.approx((4 / 2 + 3 + 2 + 6 + 0 / 2) / 4)
    assert put_back.area.item() == pytest.approx((0 / 2 + 1 + 2 - 2 + 4 / 2) / 4)
    # three pixels, then the last one
    uneven = deletion(case, step=3, **LINEAR)
    assert uneven.x.tolist() == [0, 0.75, 1]
    assert uneven.y.tolist() == [[4, 6, 0]]
    assert uneven.area.item() == pytest.approx(0.75 * (4 + 6) / 2 + 0.25 * (6 + 0) / 2)


@pytest.mark.parametrize("step", [1, 5, 64])
def test_a_sum_of_equal_pixels_falls_and_rises_in_a_straight_line(images, step):
    case = make_case(PixelSum(torch.full((1, 1, 8, 8), 1 / 64)), torch.ones(2, 1, 8, 8), torch.rand(2, 8, 8))
    for curve, expected in ((deletion(case, step=step, **LINEAR), 1.0), (insertion(case, step=step, **LINEAR), 0.0)):
        assert torch.allclose(curve.y.double(), (expected - curve.x).abs()[None], atol=1e-6)
        assert torch.allclose(curve.area, torch.full((2,), 0.5, dtype=torch.float64), atol=1e-6)


def test_the_closed_form_of_a_linear_model(images):
    weights, maps = torch.randn(1, 1, 8, 8), torch.randn(4, 8, 8)
    shares = (images[:, 0] * weights[0, 0]).flatten(1).double()
    case = make_case(PixelSum(weights), images, maps)
    order = maps.flatten(1).argsort(1, descending=True)
    place = (torch.arange(64) + 0.5) / 64  # where the pixel of each rank goes, on average over its step
    expected = (shares.gather(1, order) * place).sum(1)
    assert torch.allclose(deletion(case, step=1, **LINEAR).area, expected, atol=1e-5)
    assert torch.allclose(insertion(case, step=1, **LINEAR).area, shares.sum(1) - expected, atol=1e-5)


@pytest.mark.parametrize("curve", [deletion, insertion])
@pytest.mark.parametrize("output", ["probability", "logit"])
@pytest.mark.parametrize("step", [1, 7, None])
@pytest.mark.parametrize("channels", [1, 3])
def test_agreement_with_a_slow_replica_in_float64(curve, channels, step, output):
    images, maps = torch.randn(3, channels, 8, 8), torch.randn(3, 8, 8)
    targets = torch.tensor([0, 2, 1])
    model = Classifier(Wavy(channels=channels).eval(), channels=channels, mean=[0.4] * channels, std=[0.2] * channels)
    found = curve(make_case(model, images, maps, targets), step=step, output=output, baseline="black")
    net, black = Wavy(channels=channels).double().eval(), np.full((channels, 8, 8), -2.0)
    for b in range(3):

        def f(x, target=int(targets[b])):
            with torch.no_grad():
                logits = net(torch.from_numpy(x)[None])[0]
            return float((logits.softmax(0) if output == "probability" else logits)[target])

        expected = slow_curve(f, images[b].numpy(), maps[b].numpy(), step or 8, black, curve is insertion)
        assert found.y[b].tolist() == pytest.approx(expected, abs=1e-5)
        assert found.area[b].item() == pytest.approx(np.trapezoid(expected, found.x.numpy()), abs=1e-5)


def test_insertion_starts_from_a_blurred_image_and_deletion_ends_in_black(images):
    model = Classifier(Wavy().eval(), channels=1, mean=[0.5], std=[0.25])
    case = make_case(model, images, torch.randn(4, 8, 8))
    black = torch.full((4, 1, 8, 8), -2.0)
    assert torch.allclose(deletion(case, output="logit").y[:, -1], model(black)[:, 0], atol=1e-6)
    from heatproof.probing.baselines import blur

    blurred = model(blur(images, 8 / 20))[:, 0]
    assert torch.allclose(insertion(case, output="logit").y[:, 0], blurred, atol=1e-6)
    plain = model(images)[:, 0]
    assert torch.equal(deletion(case, output="logit").y[:, 0], plain)
    assert torch.equal(insertion(case, output="logit").y[:, -1], plain)


def test_the_true_order_is_best_and_its_reverse_worst(images):
    weights = torch.randn(1, 1, 8, 8)
    truth = images[:, 0] * weights[0]
    tried = [truth, *(torch.randn(4, 8, 8) for _ in range(20)), -truth]
    removed = [deletion(make_case(PixelSum(weights), images, maps), step=1, **LINEAR).area for maps in tried]
    put_back = [insertion(make_case(PixelSum(weights), images, maps), step=1, **LINEAR).area for maps in tried]
    assert torch.stack(removed).argmin(0).tolist() == torch.stack(put_back).argmax(0).tolist() == [0] * 4
    assert torch.stack(removed).argmax(0).tolist() == torch.stack(put_back).argmin(0).tolist() == [21] * 4


@pytest.mark.parametrize("curve", [deletion, insertion])
def test_absolute_ranks_absolute_values(images, curve):
    maps = torch.randn(4, 8, 8)
    found = curve(make_case(Wavy(), images, maps), baseline=0.0, absolute=True)
    assert torch.equal(found.y, curve(make_case(Wavy(), images, maps.abs()), baseline=0.0).y)
    signs = maps.sign()  # which rank, but for their absolute values
    assert curve(make_case(Wavy(), images, signs), baseline=0.0).y.isfinite().all()
    assert curve(make_case(Wavy(), images, signs), baseline=0.0, absolute=True).y.isnan().all()


@pytest.mark.parametrize("curve", [deletion, insertion])
def test_ties_are_broken_by_the_samples_own_draw(images, curve):
    maps = (torch.rand(4, 8, 8) > 0.5).float()
    seeds = [curve(make_case(Wavy(), images, maps, seed=seed), baseline=0.0, step=4).y for seed in (0, 0, 1)]
    assert torch.equal(seeds[0], seeds[1])
    assert not torch.allclose(seeds[0], seeds[2])


@pytest.mark.parametrize("curve", [deletion, insertion])
def test_an_undefined_map_has_no_curve_and_the_others_keep_theirs(images, curve):
    maps = torch.rand(4, 8, 8)
    expected = curve(make_case(Wavy(), images, maps), baseline=0.0)
    broken = maps.clone()
    broken[0], broken[2, 3, 3] = 0.5, torch.nan
    found = curve(make_case(Wavy(), images, broken), baseline=0.0)
    assert found.y.isnan().all(1).tolist() == found.area.isnan().tolist() == [True, False, True, False]
    assert torch.equal(found.y[[1, 3]], expected.y[[1, 3]])


def test_pixel_flipping_is_deletion():
    assert METRICS["pixel_flipping"] is METRICS["deletion"]


def test_the_area_follows_the_trapezoid_rule_on_uneven_steps():
    x, y = torch.tensor([0.0, 0.1, 0.7, 1.0], dtype=torch.float64), torch.rand(3, 4)
    assert torch.allclose(Curve(x, y).area, torch.from_numpy(np.trapezoid(y.double().numpy(), x.numpy(), axis=1)))


@pytest.mark.parametrize("curve", [deletion, insertion])
@pytest.mark.parametrize("step", [0, 65, 3.0])
def test_an_impossible_step_is_refused(images, curve, step):
    with pytest.raises(InputError, match="step must be a whole number, from 1 to 64"):
        curve(make_case(Wavy(), images, torch.rand(4, 8, 8)), step=step, baseline=0.0)


# least relevant first, and the gain of one order over the other


def test_ascending_order_by_hand():
    # the example of above: in ascending order c (1), d (2), a (3), b (4); contributions 6, −4, 1 and 1 of a sum of 4
    images = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    maps = torch.tensor([[[3.0, 4.0], [1.0, 2.0]]])
    case = make_case(PixelSum(torch.tensor([[[[1.0, 0.5], [2.0, -1.0]]]])), images, maps)
    assert lerf(case, step=1, **LINEAR).y.tolist() == [[4, -2, 2, 1, 0]]
    assert lerf(case, step=3, **LINEAR).y.tolist() == [[4, 1, 0]]
    gain = srg(case, step=1, **LINEAR)
    assert gain.y.tolist() == [[0, -5, 0, -5, 0]]
    assert gain.area.item() == pytest.approx(-10 / 4)


@pytest.mark.parametrize("step", [1, 5, None])
def test_the_lowest_first_is_the_highest_first_of_the_opposite_map(images, step):
    maps = torch.randn(4, 8, 8)
    opposite = deletion(make_case(Wavy(), images, -maps), step=step, baseline=0.0)
    case = make_case(Wavy(), images, maps)
    found = lerf(case, step=step, baseline=0.0)
    assert torch.equal(found.x, opposite.x)
    assert torch.allclose(found.y, opposite.y, atol=1e-6)
    difference = found.area - deletion(case, step=step, baseline=0.0).area
    assert torch.allclose(srg(case, step=step, baseline=0.0).area, difference, atol=1e-6)


def test_the_gain_of_a_linear_model_in_closed_form(images):
    weights, maps = torch.randn(1, 1, 8, 8), torch.randn(4, 8, 8)
    shares = (images[:, 0] * weights[0, 0]).flatten(1).double()
    place = (torch.arange(64) + 0.5) / 64
    ranked = shares.gather(1, maps.flatten(1).argsort(1, descending=True))
    expected = (ranked * (place.flip(0) - place)).sum(1)
    assert torch.allclose(srg(make_case(PixelSum(weights), images, maps), step=1, **LINEAR).area, expected, atol=1e-5)


# remove and debias


@pytest.mark.parametrize("output", ["probability", "logit"])
@pytest.mark.parametrize("channels", [1, 3])
def test_road_against_one_imputed_image_at_a_time(channels, output):
    images, maps, targets = torch.randn(3, channels, 9, 8), torch.randn(3, 9, 8), torch.tensor([0, 2, 1])
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(channels * 72, 3), torch.nn.Tanh()).eval()
    found = road(make_case(net, images, maps, targets), output=output)
    counts = [7, 14, 21, 28, 36, 43, 50, 57, 64]  # tenths of 72, rounded down
    assert found.x.tolist() == pytest.approx([count / 72 for count in counts])
    for b in range(3):
        f = float64_output(net, int(targets[b]), output)
        noise = NOISE * SampleRandom(0, [str(b)]).normal(channels, 9, 8, purpose="inpaint noise")
        order = sorted(range(72), key=lambda p: -maps[b].flatten()[p])
        for k, count in enumerate(counts):
            mask = torch.zeros(72, dtype=torch.bool)
            mask[order[:count]] = True
            changed = inpaint(images[b : b + 1], mask.view(1, 1, 9, 8), noise)[0, 0]
            assert found.y[b, k].item() == pytest.approx(f(changed.double().numpy()), abs=1e-5)
        assert found.mean[b].item() == pytest.approx(float(found.y[b].double().mean()))


def test_road_of_decisions(images):
    # Class 1 wins as long as the first pixel is there.
    weights = torch.zeros(2, 1, 8, 8)
    weights[1, 0, 0, 0] = 1.0
    maps, images = torch.rand(2, 8, 8), torch.ones(2, 1, 8, 8)
    maps[0, 0, 0], maps[1, 0, 0] = 2.0, -1.0  # the first to go, and the last
    given = {"output": "prediction", "baseline": -1.0}
    case = make_case(PixelSum(weights), images, maps)
    assert road(case, **given).y.tolist() == [[0] * 9, [1] * 9]
    both = make_case(
        Classifier(PixelSum(weights - 0.5 / 64).eval(), task="multilabel"), images, maps, torch.tensor([0, 1])
    )
    # the logit of the first class is −0.5 and rises as pixels turn to −1, to 0 with half of them: no until then
    assert road(both, **given).y.tolist() == [[1, 1, 1, 1, 1, 0, 0, 0, 0], [1] * 9]


# adding pixels in ascending order


def test_monotonicity_by_hand():
    # ascending |a|: c (1), d (2), a (3), b (4); they add 6, −4, 1, 1: three steps of four do not fall
    images = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    maps = torch.tensor([[[-3.0, 4.0], [1.0, -2.0]]])
    case = make_case(PixelSum(torch.tensor([[[[1.0, 0.5], [2.0, -1.0]]]])), images, maps)
    assert monotonicity_arya(case, step=1, **LINEAR).item() == 0.75
    assert monotonicity_arya(case, step=2, **LINEAR).item() == 1.0  # 6 − 4 and 1 + 1
    assert monotonicity_arya(case, step=3, **LINEAR).item() == 0.5  # the first step is the short one: 6, and then −2


def test_steps_that_change_nothing_do_not_fall(images):
    weights = torch.zeros(1, 1, 8, 8)
    weights[0, 0, :4] = 0.1
    case = make_case(PixelSum(weights), images.abs() + 1, torch.randn(4, 8, 8))
    assert monotonicity_arya(case, step=1, **LINEAR).tolist() == [1.0] * 4
    falling = make_case(PixelSum(-weights), images.abs() + 1, torch.randn(4, 8, 8))
    assert monotonicity_arya(falling, step=1, **LINEAR).tolist() == [0.5] * 4


@pytest.mark.parametrize("step", [1, 4, None])
def test_monotonicity_against_a_slow_replica(images, step):
    maps, targets = torch.randn(4, 8, 8), torch.tensor([0, 2, 1, 0])
    found = monotonicity_arya(make_case(Wavy(), images, maps, targets), step=step, baseline=0.3)
    for b in range(4):
        f = float64_output(Wavy(), int(targets[b]), "probability")
        points = slow_curve(f, images[b].numpy(), -maps[b].abs().numpy(), step or 8, np.full((1, 8, 8), 0.3), True)
        assert found[b].item() == pytest.approx(np.mean(np.diff(points) >= 0), abs=1e-9)


@pytest.mark.parametrize("metric", [lerf, srg, road])
def test_a_curve_of_a_map_of_negative_values_is_that_of_the_map_shifted(images, metric):
    maps = torch.rand(4, 8, 8)
    given = {} if metric is road else {"baseline": 0.0}
    found = [metric(make_case(Wavy(), images, tried), **given).y for tried in (maps, maps - 2)]
    assert torch.equal(*found)
