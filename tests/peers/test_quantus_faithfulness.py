"""Agreement with Quantus on one-channel images, of more faithfulness metrics and of focus, and where it differs."""

import numpy as np
import pytest
import quantus
import torch
from quantus.functions.perturb_func import noisy_linear_imputation

import heatproof as hp
from heatproof.metrics import mosaics
from heatproof.metrics.faithfulness import infidelity, irof, sufficiency
from heatproof.metrics.mosaics import focus
from heatproof.probing import SampleRandom
from heatproof.probing.inpainting import inpaint
from heatproof.probing.segments import grid
from support.cases import Wavy, float64_output, make_case
from support.nets import TinyCNN

SIZE, COUNT = 16, 5
PLAIN = {"abs": False, "normalise": False, "disable_warnings": True, "display_progressbar": False}
BUILDS = [lambda: Wavy(size=SIZE), lambda: TinyCNN(channels=1)]
KEYS = [str(row) for row in range(COUNT)]


@pytest.fixture
def case():
    images = torch.randn(COUNT, 1, SIZE, SIZE)
    return images, torch.rand(COUNT, SIZE, SIZE), torch.arange(COUNT) % 3


def evaluate(metric, model, images, maps, targets, **given):
    arrays = {"x_batch": images.numpy().copy(), "y_batch": targets.numpy(), "a_batch": maps[:, None].numpy().copy()}
    given = {"batch_size": len(images), "softmax": True} | given
    scores = metric(model=model, **arrays, channel_first=True, device="cpu", **given)
    return torch.tensor(np.array(scores, dtype=np.float64))


def close(found, expected):
    assert expected.isfinite().all()
    assert (found.double() - expected).abs().max() < 1e-5


@pytest.mark.parametrize("build", BUILDS, ids=["smooth", "cnn"])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("window", [2, 4, 8])
def test_selectivity_and_region_perturbation_along_their_curves(case, build, window, signed):
    images, maps, targets = case
    maps, net = maps - 0.5 * signed, build().eval()
    given = {"patch_size": window, "perturb_baseline": "black", **PLAIN}
    options = {"targets": targets, "window": window, "baseline": "min"}
    _, left = hp.curve(net, images, maps, metric="selectivity", **options)
    close(left[:, 1:], evaluate(quantus.Selectivity(**given), net, images, maps, targets))
    for order in ("morf", "lerf"):
        _, lost = hp.curve(net, images, maps, metric="region_perturbation", order=order, **options)
        close(lost[:, 1:], evaluate(quantus.RegionPerturbation(order=order, **given), net, images, maps, targets))


@pytest.mark.parametrize("build", BUILDS, ids=["smooth", "cnn"])
@pytest.mark.parametrize("step", [4, SIZE])
def test_monotonicity_correlation_under_the_same_draws(case, build, step):
    images, maps, targets = case
    maps, net, samples = maps - 0.5, build().eval(), 3
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    random, calls = SampleRandom(0, KEYS), iter(range(10_000))

    def resampled(arr, indices, **_):
        draw = random.uniform(1, SIZE, SIZE, purpose=f"resampling {next(calls) % samples}")
        changed, new = arr.copy(), (low + (high - low) * draw).flatten(1).numpy()
        np.put_along_axis(changed, indices, np.take_along_axis(new, indices, 1), 1)
        return changed

    metric = quantus.MonotonicityCorrelation(features_in_step=step, nr_samples=samples, perturb_func=resampled,
                                             **(PLAIN | {"abs": True}))  # fmt: skip
    expected = evaluate(metric, net, images, maps, targets)
    found = hp.score(net, images, maps, metric="monotonicity_correlation", targets=targets, keys=KEYS, step=step,
                     samples=samples)  # fmt: skip
    close(found, expected)


def test_monotonicity_differs_on_purpose(case):
    # Quantus puts the baseline in the place of the baseline, so nothing is ever added and its answer is always yes; it asks
    # whether all steps rise where the source counts, and leaves out the first.
    images, maps, targets = case
    metric = quantus.Monotonicity(features_in_step=4, perturb_baseline="black", **(PLAIN | {"abs": True}))
    net = Wavy(size=SIZE).eval()
    theirs = evaluate(metric, net, images, maps - 0.5, targets)
    ours = hp.score(net, images, maps - 0.5, metric="monotonicity_arya", targets=targets, step=4, baseline="min")
    assert theirs.tolist() == [1.0] * COUNT
    assert ((ours > 0.2) & (ours < 0.8)).all()


def test_irof_differs_on_purpose(case, monkeypatch):
    # Quantus takes the area with steps of 1 and without the first, so its number grows with that of the segments, and half
    # of the first and last segments are left out of it. It asks for a name that numpy has given up.
    monkeypatch.setattr(np, "trapz", np.trapezoid, raising=False)
    images, maps, targets = case
    net, segments = Wavy(size=SIZE).eval(), grid(images, 4, 4)
    monkeypatch.setattr(quantus.metrics.faithfulness.irof.utils, "get_superpixel_segments",
                        lambda **_: segments[0].numpy())  # fmt: skip
    metric = quantus.IROF(perturb_baseline=0.3, return_aggregate=False, **PLAIN)
    theirs = evaluate(metric, net, images, maps, targets)
    ours = irof(make_case(net, images, maps, targets), segments=16, segmentation="grid", baseline=0.3)
    sums = maps.unfold(1, 4, 4).unfold(2, 4, 4).sum((3, 4)).flatten(1)
    ends = []
    for row in range(COUNT):
        f, best = float64_output(net, int(targets[row]), "probability"), int(sums[row].argmax())
        first = images[row].double().numpy().copy()
        first[:, segments[row].numpy() == best] = 0.3
        ends.append((f(first) + f(np.full_like(first, 0.3))) / f(images[row].double().numpy()))
    close(ours, (theirs - torch.tensor(ends) / 2) / 16)
    assert (theirs.abs() > 1).any()


def test_road_of_decisions_without_noise(case, monkeypatch):
    # Quantus averages the decisions over the samples of its first batch; one batch holds them all here.
    monkeypatch.setattr("heatproof.probing.baselines.NOISE", 0.0)
    images, maps, _ = case
    images = 0.3 * images
    percentages = list(range(10, 100, 10))
    for build in BUILDS:
        net = build().eval()
        targets = net(images).argmax(1)
        metric = quantus.ROAD(percentages=percentages, perturb_func_kwargs={"noise": 0.0}, **PLAIN)
        arrays = {"x_batch": images.numpy().copy(), "y_batch": targets.numpy(), "a_batch": maps[:, None].numpy().copy()}
        theirs = metric(model=net, **arrays, channel_first=True, device="cpu", softmax=True, batch_size=COUNT)
        x, y = hp.curve(net, images, maps, metric="road", targets=targets, output="prediction")
        assert x.tolist() == pytest.approx([int(256 * p / 100) / 256 for p in percentages])
        close(y.double().mean(0), torch.tensor([theirs[p] for p in percentages], dtype=torch.float64))


def test_noisy_imputation_under_the_same_draws(case, monkeypatch):
    images, maps, _ = case
    noise = torch.randn(images.shape, dtype=torch.float64)
    masks = maps > maps.flatten(1).median(1).values[:, None, None]
    found = inpaint(images.double(), masks[:, None], 0.01 * noise)[:, 0]
    for row in range(COUNT):
        replaced = np.flatnonzero(masks[row].numpy())
        drawn = noise[row].flatten(1)[:, replaced].numpy()
        monkeypatch.setattr(np.random, "randn", lambda *shape, drawn=drawn: drawn.reshape(shape))
        close(found[row], torch.from_numpy(noisy_linear_imputation(images[row].double().numpy(), replaced)))


def test_sensitivity_n_differs_on_purpose(case):
    # Quantus takes out the highest pixels one chunk after another, and correlates over the samples of its first batch: one
    # number for each chunk, none for a sample. The source draws random sets of n pixels of one image.
    images, maps, targets = case
    metric = quantus.SensitivityN(features_in_step=SIZE, n_max_percentage=0.8, perturb_baseline="black",
                                  return_aggregate=False, **PLAIN)  # fmt: skip
    theirs = evaluate(metric, Wavy(size=SIZE).eval(), images, maps, targets)
    assert theirs.shape == (int(0.8 * SIZE),)
    ours = hp.score(
        Wavy(size=SIZE).eval(), images, maps, metric="sensitivity_n", targets=targets, runs=10, baseline="min"
    )
    assert ours.shape == (COUNT,)


@pytest.mark.parametrize("softmax", [True, False])
def test_infidelity_of_one_square_that_is_the_image(case, softmax):
    images, maps, targets = case
    maps, net = 0.01 * (maps - 0.5), Wavy(size=SIZE).eval()
    metric = quantus.Infidelity(perturb_patch_sizes=[SIZE], n_perturb_samples=1, perturb_baseline="black", **PLAIN)
    theirs = evaluate(metric, net, images, maps, targets, softmax=softmax)
    found = infidelity(make_case(net, images, maps, targets), samples=1, window=SIZE, baseline="min", scale=False,
                       output="probability" if softmax else "logit")  # fmt: skip
    close(found, theirs)


def test_infidelity_of_several_squares_differs_on_purpose(case):
    # Quantus never puts a square back before the next, so all but the first are not what they are said to be.
    images, maps, targets = case
    maps, net = 0.01 * (maps - 0.5), Wavy(size=SIZE).eval()
    metric = quantus.Infidelity(perturb_patch_sizes=[8], n_perturb_samples=1, perturb_baseline="black", **PLAIN)
    theirs = evaluate(metric, net, images, maps, targets, softmax=False)
    squares = [(i, j) for i in (0, 8) for j in (0, 8)]
    kept, reset = [], []
    for row in range(COUNT):
        f, image = float64_output(net, int(targets[row]), "logit"), images[row].double().numpy()
        low, after = image.min(), image.copy()
        for errors, restore in ((kept, False), (reset, True)):
            after, found = image.copy(), []
            for i, j in squares:
                after = image.copy() if restore else after
                after[:, i : i + 8, j : j + 8] = low
                given = ((image - after)[0] * maps[row].double().numpy()).sum()
                found.append((given - (f(image) - f(after))) ** 2)
            errors.append(np.mean(found))
    close(theirs, torch.tensor(kept))
    assert (theirs - torch.tensor(reset)).abs().min() > 1e-3


def test_sufficiency_of_standardized_maps_but_for_samples_without_a_like():
    images, maps = (
        torch.randn(30, 1, SIZE, SIZE),
        torch.rand(30, SIZE, SIZE) + torch.rand(3, SIZE, SIZE).repeat(10, 1, 1),
    )
    maps[0] = 5 * torch.rand(SIZE, SIZE)
    net = Wavy(size=SIZE).eval()
    decided = net(images).argmax(1)
    # Quantus divides the distances by the largest of its batch before it looks at the threshold
    flat, radius = maps.flatten(1).double(), 20.0
    largest = torch.cdist(flat / flat.std(0), flat / flat.std(0)).max().item()
    theirs = evaluate(quantus.Sufficiency(threshold=radius / largest, **PLAIN), net, images, maps, decided)
    found = sufficiency(make_case(net, images, maps), radius=radius, distance="standardized")
    alone = found.isnan()
    assert alone[0]
    assert not alone.all()
    close(found[~alone], theirs[~alone])
    assert (theirs[alone] == 0).all()  # which says that none agrees, where there is none


def test_focus_of_the_same_mosaics():
    images, targets = torch.randn(8, 1, SIZE, SIZE), torch.tensor([0, 1, 0, 1, 2, 0, 2, 1])
    maps = torch.randn(8, SIZE, SIZE)
    given = make_case(Wavy(size=SIZE), images, torch.rand(8, SIZE, SIZE), targets, explainer=lambda *_: maps)
    found = focus(given, samples=1)
    _, places = mosaics._drawn(given, 0)
    positions = [tuple(int(place in places[row, :2]) for place in range(4)) for row in range(8)]
    theirs = evaluate(quantus.Focus(**PLAIN), Wavy(size=SIZE).eval(), images, maps, targets, custom_batch=positions)
    close(found, theirs)
