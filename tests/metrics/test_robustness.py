import numpy as np
import pytest
import torch

from heatproof.errors import InputError
from heatproof.metrics.robustness import (
    Draws,
    avg_sensitivity,
    consistency,
    continuity,
    local_lipschitz,
    max_sensitivity,
)
from heatproof.models import Classifier
from heatproof.probing import SampleRandom
from support.cases import PixelSum, Wavy, make_case


def grey(net, std=0.25, **options):
    return Classifier(net.eval(), channels=1, mean=[0.5], std=[std], **options)


def first_channel(images, targets):
    return images[:, 0]


def squares(images, targets):
    return images.square().sum(1) * (1 + targets)[:, None, None]


@pytest.fixture
def images():
    return torch.rand(3, 1, 8, 8)


def noise(images, draw, radius, std):
    """The draw that each sample must get, from its own stream."""
    streams = [SampleRandom(0, [str(b)]) for b in range(len(images))]
    rows = [s.uniform(*x.shape, purpose=f"perturbation {draw}")[0] for s, x in zip(streams, images, strict=True)]
    return (2 * torch.stack(rows).double() - 1) * radius / std


@pytest.mark.parametrize(("function", "reduce"), [(avg_sensitivity, np.mean), (max_sensitivity, np.max)])
@pytest.mark.parametrize("denominator", ["map", "input"])
def test_agreement_with_the_definition(images, function, reduce, denominator):
    targets = torch.tensor([0, 1, 2])
    case = make_case(grey(Wavy()), images, squares(images, targets), targets, explainer=squares)
    found = function(case, samples=7, radius=0.1, denominator=denominator)
    for b in range(3):
        x = images[b].double()
        ratios = []
        for draw in range(7):
            u = noise(images, draw, 0.1, 0.25)[b]
            change = ((x + u) ** 2 - x**2).sum(0) * (1 + b)
            below = (x**2).sum(0) * (1 + b) if denominator == "map" else x
            ratios.append(float(change.norm() / below.norm()))
        assert found[b].item() == pytest.approx(reduce(ratios), rel=1e-5)


def test_an_explanation_that_is_the_image_changes_by_the_noise(images):
    case = make_case(grey(Wavy()), images, images[:, 0], explainer=first_channel)
    found = avg_sensitivity(case, samples=200, radius=0.05)
    # ‖u‖ of P uniform values on [−r, r] is close to r √(P / 3); in normalised units r is 0.05 / 0.25
    expected = 0.2 * (64 / 3) ** 0.5 / images[:, 0].flatten(1).norm(dim=1).double()
    assert torch.allclose(found, expected, rtol=0.02)


def test_radius_units(images):
    case = make_case(grey(Wavy(), std=0.1), images, images[:, 0], explainer=first_channel)
    raw = max_sensitivity(case, radius=0.02)
    assert torch.allclose(raw, max_sensitivity(case, radius=0.2, units="normalized"), rtol=1e-5)
    colour = torch.rand(2, 3, 8, 8)
    model = Classifier(Wavy(channels=3).eval(), channels=3, mean=[0.5] * 3, std=[0.5, 0.2, 0.1])
    per_channel = next(iter(Draws(make_case(model, colour, colour[:, 0]), 1, 0.02, "raw").groups()))[0] - colour
    largest = per_channel.abs().amax((0, 2, 3))
    assert torch.allclose(largest, torch.tensor([0.04, 0.1, 0.2]), rtol=0.05)


def test_an_unknown_normalisation_names_the_way_out(images):
    case = make_case(Wavy(), images, images[:, 0], explainer=first_channel)
    with pytest.raises(InputError, match='units="normalized"'):
        avg_sensitivity(case)
    assert avg_sensitivity(case, units="normalized").isfinite().all()


def test_a_constant_explainer_is_perfectly_stable(images):
    maps = torch.rand(3, 8, 8)
    case = make_case(grey(Wavy()), images, maps, explainer=lambda x, t: maps.repeat(len(x) // 3, 1, 1))
    assert avg_sensitivity(case).tolist() == [0, 0, 0]
    assert max_sensitivity(case).tolist() == [0, 0, 0]


def test_draws_that_change_the_prediction_are_left_out():
    # One pixel decides: logit 1 − logit 0 is its value, so the draws that push it below zero change the prediction.
    weights = torch.zeros(2, 1, 4, 4)
    weights[1, 0, 0, 0] = 1.0
    images = torch.rand(2, 1, 4, 4) + 1
    images[0, 0, 0, 0] = 0.02
    case = make_case(grey(PixelSum(weights), std=1.0), images, images[:, 0], torch.ones(2, dtype=torch.long),
                     explainer=first_channel)  # fmt: skip
    kept, ratios = [], []
    for draw in range(12):
        u = noise(images, draw, 0.1, 1.0)[0]
        kept.append(float(images[0, 0, 0, 0] + u[0, 0, 0]) > 0)
        ratios.append(float(u.norm() / images[0].norm()))
    assert 2 < sum(kept) < 11
    chosen = [ratio for ratio, keep in zip(ratios, kept, strict=True) if keep]
    options = {"samples": 12, "radius": 0.1, "same_prediction": True}
    assert avg_sensitivity(case, **options)[0].item() == pytest.approx(np.mean(chosen), rel=1e-5)
    assert max_sensitivity(case, **options)[0].item() == pytest.approx(max(chosen), rel=1e-5)
    assert max_sensitivity(case, samples=12, radius=0.1)[0].item() == pytest.approx(max(ratios), rel=1e-5)
    every = avg_sensitivity(case, samples=12, radius=0.1)
    assert avg_sensitivity(case, **options)[1] == every[1], "the second sample's decision is safe"


def test_multi_label_looks_at_the_decision_about_the_target():
    # The largest logit never changes (class 1), the target's own sign (class 0) does.
    weights = torch.zeros(2, 1, 4, 4)
    weights[0, 0, 0, 0], weights[1] = 1.0, 10.0
    images = torch.rand(1, 1, 4, 4) + 1
    images[0, 0, 0, 0] = 0.0001
    scores = []
    for task in ("multilabel", "multiclass"):
        model = grey(PixelSum(weights), std=1.0, task=task)
        case = make_case(model, images, images[:, 0], explainer=first_channel)
        scores.append(avg_sensitivity(case, samples=12, radius=0.05, same_prediction=True).item())
    up = [noise(images, d, 0.05, 1.0)[0] for d in range(12) if float(noise(images, d, 0.05, 1.0)[0, 0, 0, 0]) > -0.0001]
    assert 0 < len(up) < 12
    assert scores[0] == pytest.approx(np.mean([float(u.norm() / images[0].double().norm()) for u in up]), rel=1e-5)
    assert scores[0] != scores[1]


def test_all_draws_left_out_is_nan():
    weights = torch.zeros(2, 1, 4, 4)
    weights[1, 0, 0, 0] = 1.0
    images = torch.zeros(1, 1, 4, 4) + 1e-12
    images[0, 0, 1:] = 1.0
    model = grey(torch.nn.Sequential(PixelSum(weights), Sharp()), std=1.0)
    case = make_case(model, images, images[:, 0], torch.ones(1, dtype=torch.long), explainer=first_channel)
    for function in (avg_sensitivity, max_sensitivity):
        assert function(case, samples=4, radius=0.1, same_prediction=True).isnan().all()
        assert function(case, samples=4, radius=0.1).isfinite().all()


class Sharp(torch.nn.Module):
    """Class 1 wins only for a value that no draw gives."""

    def forward(self, logits):
        return torch.stack([(logits[:, 1].abs() > 1e-9).float(), torch.full_like(logits[:, 1], 0.5)], 1)


def test_undefined_maps_and_denominators_are_nan(images):
    maps = images[:, 0].clone()
    maps[0] = 0.3
    maps[1, 0, 0] = torch.inf
    case = make_case(grey(Wavy()), images, maps, explainer=first_channel)
    assert avg_sensitivity(case).isnan().tolist() == [True, True, False]
    zero = make_case(grey(Wavy()), torch.zeros(1, 1, 8, 8), torch.rand(1, 8, 8), explainer=first_channel)
    assert max_sensitivity(zero, denominator="input").isnan().all()
    assert max_sensitivity(zero).isfinite().all()


def test_an_explainer_that_fails_on_a_draw_makes_the_score_nan(images):
    def sometimes(x, targets):
        maps = x[:, 0].clone()
        maps[(x[:, 0, 0, 0] > images[:, 0, 0, 0].repeat(len(x) // 3)) & (torch.arange(len(x)) % 3 == 1)] = torch.nan
        return maps

    case = make_case(grey(Wavy()), images, images[:, 0], explainer=sometimes)
    assert avg_sensitivity(case).isnan().tolist() == [False, True, False]
    assert max_sensitivity(case).isnan().tolist() == [False, True, False]


def test_both_metrics_share_the_explanations(images):
    calls = []

    def counted(x, targets):
        calls.append(len(x))
        return x[:, 0]

    case = make_case(grey(Wavy()), images, images[:, 0], explainer=counted)
    avg_sensitivity(case, samples=4)
    assert sum(calls) == 12
    max_sensitivity(case, samples=4)
    max_sensitivity(case, samples=4, denominator="input")
    avg_sensitivity(case, samples=4, same_prediction=True)
    assert sum(calls) == 12
    max_sensitivity(case, samples=4, radius=0.5)
    assert sum(calls) == 24


def test_draws_do_not_depend_on_how_many_there_are(images):
    def shifted(x, targets):
        return x.sum(1)

    case = make_case(grey(Wavy()), images, images[:, 0], explainer=shifted)
    few, many = Draws(case, 3, 0.1, "raw").changes, Draws(case, 11, 0.1, "raw").changes
    assert all(torch.equal(part, whole[:, :3]) for part, whole in zip(few, many, strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 0}, "samples must be a whole number"),
        ({"radius": -0.1}, "radius must be a number, at least 0"),
        ({"radius": float("nan")}, "radius must be a number"),
        ({"units": "pixels"}, "units must be 'raw' or 'normalized', got 'pixels'"),
        ({"denominator": "image"}, "denominator must be 'map' or 'input', got 'image'"),
    ],
)
def test_impossible_options_are_refused(images, options, message):
    case = make_case(grey(Wavy()), images, images[:, 0], explainer=first_channel)
    with pytest.raises(InputError, match=message):
        avg_sensitivity(case, **options)


def test_a_callable_must_give_maps_of_the_images(images):
    case = make_case(grey(Wavy()), images, images[:, 0], explainer=lambda x, t: x)
    with pytest.raises(InputError, match=r"explain= must give maps \[15, 8, 8\].*got \[15, 1, 8, 8\]"):
        avg_sensitivity(case)


@pytest.mark.parametrize(("units", "std"), [("raw", 0.25), ("normalized", 1.0)])
def test_local_lipschitz_agrees_with_the_definition(images, units, std):
    targets = torch.tensor([0, 1, 2])
    case = make_case(grey(Wavy()), images, squares(images, targets), targets, explainer=squares)
    found = local_lipschitz(case, samples=7, radius=0.1, units=units)
    for b in range(3):
        x, ratios = images[b].double(), []
        for draw in range(7):
            u = noise(images, draw, 0.1, std)[b]
            ratios.append(float((((x + u) ** 2 - x**2).sum(0) * (1 + b)).norm() / u.norm()))
        assert found[b].item() == pytest.approx(max(ratios), rel=1e-4)


def test_local_lipschitz_of_a_linear_model(images):
    net = PixelSum(torch.randn(2, 1, 8, 8)).eval()
    weights = net.weights.detach()[0, 0]
    gradient = make_case(grey(net), images, weights.expand(3, -1, -1), explainer=lambda x, t: weights + 0 * x[:, 0])
    assert local_lipschitz(gradient).tolist() == [0, 0, 0], "its gradient is the same everywhere"
    product = make_case(grey(net), images, 3 * images[:, 0], explainer=lambda x, t: 3 * x[:, 0])
    assert local_lipschitz(product).tolist() == pytest.approx([3] * 3, rel=1e-5), "gradient × input, all weights 3"


def test_local_lipschitz_leaves_out_draws_that_change_the_prediction():
    weights = torch.zeros(2, 1, 4, 4)
    weights[1, 0, 0, 0] = 1.0
    images = torch.rand(1, 1, 4, 4) + 1
    images[0, 0, 0, 0] = 0.02
    case = make_case(grey(PixelSum(weights), std=1.0), images, images[:, 0].square(), torch.ones(1, dtype=torch.long),
                     explainer=lambda x, t: x[:, 0].square())  # fmt: skip
    kept, ratios = [], []
    for draw in range(12):
        u = noise(images, draw, 0.1, 1.0)[0, 0]
        kept.append(float(images[0, 0, 0, 0] + u[0, 0]) > 0)
        ratios.append(float((2 * images[0, 0].double() * u + u**2).norm() / u.norm()))
    best = int(np.argmax(ratios))
    options = {"samples": 12, "radius": 0.1}
    assert local_lipschitz(case, **options).item() == pytest.approx(ratios[best], rel=1e-4)
    expected = max(ratio for ratio, keep in zip(ratios, kept, strict=True) if keep)
    assert local_lipschitz(case, **options, same_prediction=True).item() == pytest.approx(expected, rel=1e-4)
    assert 2 < sum(kept) < 11


def test_a_radius_of_zero_has_no_lipschitz_constant(images):
    case = make_case(grey(Wavy()), images, images[:, 0], explainer=first_channel)
    with pytest.raises(InputError, match="radius must be above 0, got 0"):
        local_lipschitz(case, radius=0)
    assert max_sensitivity(case, radius=0).tolist() == [0, 0, 0]


def moved_by_hand(image, shift, value):
    """`image` `[C, H, W]` moved to the right, pixel by pixel."""
    moved = np.full_like(image, value)
    for column in range(image.shape[2]):
        if 0 <= column + shift < image.shape[2]:
            moved[:, :, column + shift] = image[:, :, column]
    return moved


@pytest.mark.parametrize("steps", [4, 5, 28])
def test_continuity_agrees_with_the_definition(images, steps):
    targets = torch.tensor([0, 1, 2])
    case = make_case(grey(Wavy()), images, squares(images, targets), targets, explainer=squares)
    found = continuity(case, steps=steps, baseline=0.4)
    step = max(1, 17 // steps)  # 17 positions of an image 8 pixels wide
    shifts = [s for s in (-8 + step * (i + 1) for i in range(min(steps, 16))) if s]
    assert (len(shifts), shifts[-1]) == {4: (3, 8), 5: (5, 7), 28: (15, 8)}[steps]
    for b in range(3):
        x, ratios = images[b].double().numpy(), []
        for shift in shifts:
            y = moved_by_hand(x, shift, 0.4)
            change = np.abs((y**2).sum(0) - (x**2).sum(0)).sum() * (1 + b)
            ratios.append(change / np.sqrt(((y - x) ** 2).sum()))
        assert found[b].item() == pytest.approx(max(ratios), rel=1e-5)


def test_continuity_moves_to_both_sides_and_leaves_black():
    # One bright pixel at the left edge and a map that looks at the right edge: only a move to the right is seen there.
    images = torch.zeros(1, 1, 4, 4)
    images[0, 0, 1, 0] = 1.0
    model = Classifier(Wavy(size=4).eval(), channels=1, mean=[0.5], std=[0.5])  # black is −1
    seen = []

    def remembered(x, targets):
        seen.append(x.clone())
        return x[:, 0]

    continuity(make_case(model, images, images[:, 0], explainer=remembered), steps=9)
    assert len(seen) == 7  # of −3 … 4 all but 0
    columns = [(x[0, 0, 1] == 1).nonzero().flatten().tolist() for x in seen]
    assert columns == [[], [], [], [1], [2], [3], []]
    assert seen[0][0, 0, 0].tolist() == [0, -1, -1, -1]
    assert seen[-1].eq(-1).all()


def test_an_image_that_looks_like_what_replaces_it_has_no_continuity():
    images = torch.full((2, 1, 6, 6), 0.5)
    images[1] = torch.rand(1, 6, 6)
    case = make_case(grey(Wavy(size=6)), images, torch.rand(2, 6, 6), explainer=first_channel)
    assert continuity(case, baseline=0.5).isnan().tolist() == [True, False]


@pytest.mark.parametrize("function", [local_lipschitz, continuity])
def test_undefined_maps_are_nan_everywhere(images, function):
    maps = images[:, 0].clone()
    maps[0], maps[1, 0, 0] = 0.3, torch.nan
    case = make_case(grey(Wavy()), images, maps, explainer=first_channel)
    assert function(case).isnan().tolist() == [True, True, False]


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        (continuity, {"steps": 0}, "steps must be a whole number, at least 1, got 0"),
        (continuity, {"baseline": "blck"}, "Unknown baseline 'blck'"),
        (local_lipschitz, {"radius": -1.0}, "radius must be a number, at least 0"),
        (local_lipschitz, {"samples": 0}, "samples must be a whole number"),
    ],
)
def test_impossible_options_are_refused_everywhere(images, function, options, message):
    case = make_case(grey(Wavy()), images, images[:, 0], explainer=first_channel)
    with pytest.raises(InputError, match=message):
        function(case, **options)


def peaks(*corners):
    """Maps `[N, 8, 8]` that are high in the named corner of a 2 × 2 grid, with some noise."""
    maps = 0.1 * torch.randn(len(corners), 8, 8)
    for b, corner in enumerate(corners):
        maps[b].view(2, 4, 2, 4)[corner // 2, :, corner % 2] += 1
    return maps


def deciding(*classes):
    """Images `[N, 1, 8, 8]` on which `PixelSum` of ones for class 1 decides so."""
    return torch.rand(len(classes), 1, 8, 8) + torch.tensor([[-1.0], [1.0]])[list(classes)].view(-1, 1, 1, 1)


def test_consistency_by_hand():
    weights = torch.zeros(2, 1, 8, 8)
    weights[1] = 1.0
    images, maps = deciding(0, 0, 1, 1, 0, 1), peaks(0, 0, 0, 1, 1, 3)
    case = make_case(grey(PixelSum(weights)), images, maps)
    expected = [0.5, 0.5, 0, 0, 0]  # of the other two in corner 0, of the other one in corner 1
    found = consistency(case, grid=(2, 2))
    assert found[:5].tolist() == expected
    assert found[5].isnan(), "no other is high in corner 3"
    everywhere = consistency(case, grid=(2, 2), k=4).tolist()
    assert everywhere == pytest.approx([2 / 5] * 6), "all cells of all maps"
    negative = make_case(case.model, images, -maps)
    assert consistency(negative, grid=(2, 2), absolute=True)[:5].tolist() == expected


def test_consistency_of_two_highest_cells_knows_no_order():
    maps = torch.zeros(2, 8, 8)
    maps[0].view(2, 4, 2, 4)[0, :, 0], maps[0].view(2, 4, 2, 4)[1, :, 1] = 2.0, 1.0
    maps[1].view(2, 4, 2, 4)[0, :, 0], maps[1].view(2, 4, 2, 4)[1, :, 1] = 1.0, 2.0
    case = make_case(Wavy(classes=1), torch.rand(2, 1, 8, 8), maps)
    assert consistency(case, grid=(2, 2), k=2).tolist() == [1, 1]
    assert consistency(case, grid=(2, 2), k=1).isnan().all()


def test_consistency_asks_for_the_decision_about_the_target():
    weights = torch.zeros(2, 1, 8, 8)
    weights[1] = 1.0
    images, maps = deciding(0, 1, 1), peaks(2, 2, 2)
    model = Classifier(PixelSum(weights).eval(), task="multilabel", channels=1)
    assert consistency(make_case(model, images, maps, torch.tensor([1, 1, 1])), grid=(2, 2)).tolist() == [0, 0.5, 0.5]
    assert consistency(make_case(model, images, maps, torch.tensor([0, 0, 0])), grid=(2, 2)).tolist() == [1, 1, 1]


def test_maps_without_ranking_are_like_none():
    maps = peaks(0, 0, 0, 0)
    maps[0], maps[1, 0, 0] = 0.5, torch.nan
    found = consistency(make_case(Wavy(classes=1), torch.rand(4, 1, 8, 8), maps), grid=(2, 2))
    assert found.isnan().tolist() == [True, True, False, False]
    assert found[2:].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grid": (2, 9)}, "grid must be a whole number, from 1 to 8, got 9"),
        ({"grid": 4}, r"grid must be \(rows, columns\)"),
        ({"grid": (2, 2), "k": 5}, "k must be a whole number, from 1 to 4, got 5"),
        ({"k": 0}, "k must be a whole number"),
    ],
)
def test_impossible_grids_are_refused(images, options, message):
    with pytest.raises(InputError, match=message):
        consistency(make_case(grey(Wavy()), images, images[:, 0]), **options)
