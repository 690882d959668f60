import numpy as np
import pytest
import torch

from heatproof.errors import InputError
from heatproof.metrics.robustness import Draws, avg_sensitivity, max_sensitivity
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
    per_channel = next(iter(Draws(make_case(model, colour, colour[:, 0]), 1, 0.02, "raw")._groups()))[0] - colour
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
    few, many = Draws(case, 3, 0.1, "raw").map_changes(), Draws(case, 11, 0.1, "raw").map_changes()
    assert torch.equal(few, many[:, :3])


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
