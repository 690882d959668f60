"""Agreement with Quantus on one-channel images, wherever it follows the definition."""

import numpy as np
import pytest
import quantus
import torch

import heatproof as hp
from heatproof.models import Classifier
from heatproof.probing import SampleRandom
from support.cases import Wavy
from support.nets import TinyCNN

SIZE, COUNT = 16, 5
PLAIN = {"abs": False, "normalise": False, "disable_warnings": True, "display_progressbar": False}


@pytest.fixture
def case():
    images = torch.randn(COUNT, 1, SIZE, SIZE)
    return images, torch.rand(COUNT, SIZE, SIZE), torch.arange(COUNT) % 3


def evaluate(metric, model, images, maps, targets, **given):
    """Quantus's scores, `[B]`."""
    arrays = {"x_batch": images.numpy().copy(), "y_batch": targets.numpy(), "a_batch": maps[:, None].numpy().copy()}
    scores = metric(model=model, **arrays, channel_first=True, device="cpu", batch_size=COUNT, **given)
    return torch.tensor(np.array(scores, dtype=np.float64))


def close(found, expected):
    assert expected.isfinite().all()
    assert (found.double() - expected).abs().max() < 1e-5


@pytest.mark.parametrize("build", [lambda: Wavy(size=SIZE), lambda: TinyCNN(channels=1)], ids=["smooth", "cnn"])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("step", [4, SIZE])
def test_faithfulness_estimate(case, build, step, signed):
    # Quantus's "black" is the image's minimum, here `min`.
    images, maps, targets = case
    net = build().eval()
    maps = maps - 0.5 if signed else maps
    metric = quantus.FaithfulnessEstimate(features_in_step=step, perturb_baseline="black", **PLAIN)
    expected = evaluate(metric, net, images, maps, targets, softmax=True)
    found = hp.score(net, images, maps, metric="faithfulness_estimate", targets=targets, step=step, baseline="min")
    close(found, expected)


@pytest.mark.parametrize("name", ["max_sensitivity", "avg_sensitivity"])
def test_sensitivity_under_the_same_noise(case, name):
    images, _, targets = case
    net = Wavy(size=SIZE).eval()
    keys = [str(i) for i in range(COUNT)]
    random = SampleRandom(0, keys)
    draws = iter([0.2 * (2 * random.uniform(1, SIZE, SIZE, purpose=f"perturbation {i}") - 1) for i in range(6)])

    def same_noise(arr, indices, **_):
        return arr + next(draws).flatten(1).numpy()

    def gradient(images, targets):
        images = images.detach().requires_grad_()
        return torch.autograd.grad(net(images).gather(1, targets[:, None]).sum(), images)[0][:, 0]

    def explain_func(model, inputs, targets, **_):
        return gradient(torch.as_tensor(inputs), torch.as_tensor(targets))[:, None].numpy()

    maps = gradient(images, targets)
    kind = {"max_sensitivity": quantus.MaxSensitivity, "avg_sensitivity": quantus.AvgSensitivity}[name]
    metric = kind(nr_samples=6, lower_bound=0.2, perturb_func=same_noise, **PLAIN)
    expected = evaluate(metric, net, images, maps, targets, explain_func=explain_func)
    found = hp.score(net, images, maps, metric=name, targets=targets, explain=gradient, keys=keys, samples=6, radius=0.2,
                     units="normalized")  # fmt: skip
    close(found, expected)


def test_pointing_game_with_regions(case):
    images, maps, targets = case
    roi = torch.rand(COUNT, SIZE, SIZE) > 0.5
    maps[1, 3, 3] = maps[1, 9, 9] = 2.0  # tied maxima, one of them inside
    roi[1, 3, 3], roi[1, 9, 9] = True, False
    metric = quantus.PointingGame(**PLAIN)
    expected = evaluate(metric, Wavy(size=SIZE).eval(), images, maps, targets, s_batch=roi[:, None].numpy())
    close(hp.score(Wavy(size=SIZE).eval(), images, maps, metric="pointing_game", roi=roi, ties="any"), expected)


def test_pointing_game_of_an_empty_region_differs_on_purpose(case):
    # Quantus writes NaN into a boolean array, where it becomes True: a hit.
    images, maps, targets = case
    roi = torch.zeros(COUNT, SIZE, SIZE, dtype=torch.bool)
    roi[1:, 4:9, 4:9] = True
    metric = quantus.PointingGame(**PLAIN)
    theirs = evaluate(metric, Wavy(size=SIZE).eval(), images, maps, targets, s_batch=roi[:, None].numpy())
    assert theirs[0] == 1
    assert hp.score(Wavy(size=SIZE).eval(), images, maps, metric="pointing_game", roi=roi)[0].isnan()


def test_relevance_mass_of_positive_maps(case):
    images, maps, targets = case
    roi = torch.rand(COUNT, SIZE, SIZE) > 0.7
    metric = quantus.RelevanceMassAccuracy(**PLAIN)
    expected = evaluate(metric, Wavy(size=SIZE).eval(), images, maps, targets, s_batch=roi[:, None].numpy())
    close(hp.score(Wavy(size=SIZE).eval(), images, maps, metric="relevance_mass_accuracy", roi=roi), expected)


def test_relevance_mass_of_signed_maps_differs_on_purpose(case):
    # Quantus divides signed sums, which is no share: it can leave [0, 1].
    images, maps, targets = case
    maps = maps - 0.49
    roi = torch.rand(COUNT, SIZE, SIZE) > 0.7
    metric = quantus.RelevanceMassAccuracy(**PLAIN)
    theirs = evaluate(metric, Wavy(size=SIZE).eval(), images, maps, targets, s_batch=roi[:, None].numpy())
    ours = hp.score(Wavy(size=SIZE).eval(), images, maps, metric="relevance_mass_accuracy", roi=roi)
    assert ((theirs < 0) | (theirs > 1)).any()
    assert ((ours > 0) & (ours < 1)).all()


def test_sparseness(case):
    images, maps, targets = case
    metric = quantus.Sparseness(**(PLAIN | {"abs": True}))
    for tried in (maps, maps - 0.5, maps.exp() ** 3):
        expected = evaluate(metric, Wavy(size=SIZE).eval(), images, tried, targets)
        close(hp.score(Classifier(Wavy(size=SIZE).eval()), images, tried, metric="sparseness"), expected)


@pytest.mark.parametrize("build", [lambda: Wavy(size=SIZE), lambda: TinyCNN(channels=1)], ids=["smooth", "cnn"])
@pytest.mark.parametrize("softmax", [True, False])
def test_faithfulness_correlation_over_the_same_sets(case, build, softmax, monkeypatch):
    images, maps, targets = case
    net, keys = build().eval(), [str(i) for i in range(COUNT)]
    random = SampleRandom(0, keys)
    sets = iter([row.numpy() for k in range(12) for row in random.subset(20, SIZE**2, purpose=f"subset {k}")])
    monkeypatch.setattr(np.random, "choice", lambda *_, **__: next(sets))
    metric = quantus.FaithfulnessCorrelation(
        subset_size=20, nr_runs=12, perturb_baseline="black", return_aggregate=False, **PLAIN
    )
    expected = evaluate(metric, net, images, maps - 0.5, targets, softmax=softmax)
    output = "probability" if softmax else "logit"
    found = hp.score(net, images, maps - 0.5, metric="faithfulness_correlation", targets=targets, keys=keys, subset_size=20,
                     runs=12, baseline="min", output=output)  # fmt: skip
    close(found, expected)


@pytest.mark.parametrize("build", [lambda: Wavy(size=SIZE), lambda: TinyCNN(channels=1)], ids=["smooth", "cnn"])
@pytest.mark.parametrize("step", [4, SIZE, 64])
def test_pixel_flipping_after_the_first_point(case, build, step):
    images, maps, targets = case
    net = build().eval()
    metric = quantus.PixelFlipping(features_in_step=step, perturb_baseline="black", **PLAIN)
    expected = evaluate(metric, net, images, maps, targets, softmax=True)
    x, y = hp.curve(net, images, maps, metric="pixel_flipping", targets=targets, step=step, baseline="min")
    assert x[0] == 0
    close(y[:, 1:], expected)


def test_the_area_of_pixel_flipping_differs_on_purpose(case, monkeypatch):
    # Quantus leaves out the unchanged image and takes every step as 1, so its area grows with the number of steps. It asks
    # for a name that numpy has given up.
    monkeypatch.setattr(np, "trapz", np.trapezoid, raising=False)
    images, maps, targets = case
    net, step = Wavy(size=SIZE).eval(), 16
    options = {"features_in_step": step, "perturb_baseline": "black", **PLAIN}
    theirs = evaluate(
        quantus.PixelFlipping(return_auc_per_sample=True, **options), net, images, maps, targets, softmax=True
    )
    given = {"metric": "pixel_flipping", "targets": targets, "step": step, "baseline": "min"}
    ours, (_, y) = hp.score(net, images, maps, **given), hp.curve(net, images, maps, **given)
    steps = SIZE**2 // step
    close(ours, (theirs + (y[:, 0] + y[:, 1]) / 2) / steps)
    assert (theirs > 1).all()


@pytest.mark.parametrize(
    ("peer", "name", "options"),
    [
        (quantus.RelevanceRankAccuracy, "relevance_rank_accuracy", {}),
        (quantus.TopKIntersection, "top_k_intersection", {"k": 50}),
        (quantus.AUC, "roi_auc", {}),
        (quantus.AttributionLocalisation, "attribution_localization", {}),
    ],
)
def test_localization_of_positive_maps(case, peer, name, options):
    images, maps, targets = case
    roi = torch.rand(COUNT, SIZE, SIZE) > 0.7
    given = {"weighted": False} if peer is quantus.AttributionLocalisation else {}
    expected = evaluate(peer(**options, **given, **PLAIN), Wavy(size=SIZE).eval(), images, maps, targets,
                        s_batch=roi[:, None].numpy())  # fmt: skip
    close(hp.score(Wavy(size=SIZE).eval(), images, maps, metric=name, roi=roi, **options), expected)


def test_weighted_attribution_localization_differs_on_purpose(case):
    # Quantus multiplies by the region's share of the image where the source divides by it, and takes that share of all
    # images after the second rather than of one.
    images, maps, targets = case
    roi = torch.rand(COUNT, SIZE, SIZE) > 0.7
    options = {"weighted": True, **PLAIN}
    theirs = evaluate(quantus.AttributionLocalisation(**options), Wavy(size=SIZE).eval(), images, maps, targets,
                      s_batch=roi[:, None].numpy())  # fmt: skip
    given = {"metric": "attribution_localization", "roi": roi}
    net, size = Wavy(size=SIZE).eval(), roi.double().sum((1, 2))
    mass = hp.score(net, images, maps, **given)
    close(mass.double() * size / ((COUNT - 2) * SIZE**2), theirs)
    close(hp.score(net, images, maps, weighted=True, **given), mass.double() * SIZE**2 / size)
