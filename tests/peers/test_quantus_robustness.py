"""Agreement with Quantus on robustness, randomization, complexity and the axioms, wherever it follows the definition."""

import copy
import sys

import numpy as np
import pytest
import quantus
import torch
from captum.metrics import sensitivity_max
from torch import nn

import heatproof as hp
from heatproof.metrics.randomization import randomized
from heatproof.models import Classifier
from heatproof.probing import SampleRandom

SIZE, COUNT, RADIUS = 16, 5, 0.2
KEYS = [str(i) for i in range(COUNT)]
PLAIN = {"abs": False, "normalise": False, "disable_warnings": True, "display_progressbar": False}


class Net(nn.Module):
    """A smooth net whose penultimate features have a name."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.features = nn.Linear(4 * (SIZE - 2) ** 2, 6)
        self.curve = nn.Tanh()
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.curve(self.features(torch.tanh(self.conv(x)).flatten(1))))


@pytest.fixture
def net():
    return Net().eval()


@pytest.fixture
def images():
    return torch.randn(COUNT, 1, SIZE, SIZE)


@pytest.fixture
def targets():
    return torch.arange(COUNT) % 3


def gradient(images, targets, model):
    with torch.enable_grad():
        images = images.detach().requires_grad_()
        return torch.autograd.grad(model(images).gather(1, targets[:, None]).sum(), images)[0][:, 0]


def explain_func(model, inputs, targets, **_):
    """Ours for Quantus."""
    return gradient(torch.as_tensor(inputs).float(), torch.as_tensor(targets), model)[:, None].numpy()


def ours(net, images, targets, maps=None, **given):
    own = Classifier(net, channels=1)
    maps = gradient(images, targets, net) if maps is None else maps
    return hp.score(own, images, maps, targets=targets, keys=KEYS[: len(images)], batch_size=16,
                    explain=lambda x, t, model=own: gradient(x, t, model), **given)  # fmt: skip


def theirs(metric, net, images, targets, maps=None, **given):
    maps = gradient(images, targets, net) if maps is None else maps
    arrays = {"x_batch": images.numpy().copy(), "y_batch": targets.numpy(), "a_batch": maps[:, None].numpy().copy()}
    found = metric(model=net, **arrays, channel_first=True, device="cpu", batch_size=COUNT, **given)
    return torch.tensor(np.array(found, dtype=np.float64))


def close(found, expected, rtol=1e-5):
    assert expected.isfinite().all()
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=rtol)


def same_noise(radius):
    """Our draws, one after another, for Quantus."""
    random, number = SampleRandom(0, KEYS), iter(range(1000))

    def perturb(arr, indices, **_):
        noise = random.uniform(1, SIZE, SIZE, purpose=f"perturbation {next(number)}").flatten(1).numpy()
        return arr + radius * (2 * noise[: len(arr)] - 1)

    return perturb


# robustness


def test_local_lipschitz(net, images, targets):
    metric = quantus.LocalLipschitzEstimate(nr_samples=6, perturb_func=same_noise(RADIUS), **PLAIN)
    expected = theirs(metric, net, images, targets, explain_func=explain_func)
    close(ours(net, images, targets, metric="local_lipschitz", samples=6, radius=RADIUS, units="normalized"), expected)


@pytest.mark.parametrize("steps", [4, 7])
def test_continuity(net, images, targets, steps):
    # Their "black" is the image's minimum, here `min`.
    expected = theirs(quantus.Continuity(nr_steps=steps, **PLAIN), net, images, targets, explain_func=explain_func)
    close(ours(net, images, targets, metric="continuity", steps=steps, baseline="min"), expected, rtol=1e-4)


def test_continuity_of_many_steps_differs_on_purpose(net, images, targets):
    # With more steps than places Quantus's steps are of 0 pixels, so that the image is moved out of sight again and again.
    expected = theirs(quantus.Continuity(nr_steps=40, **PLAIN), net, images, targets, explain_func=explain_func)
    blank = images.amin((1, 2, 3), keepdim=True).expand_as(images)
    change = (gradient(blank, targets, net) - gradient(images, targets, net)).abs().sum((1, 2))
    close((change / (blank - images).flatten(1).norm(dim=1)).double(), expected, rtol=1e-4)
    assert (ours(net, images, targets, metric="continuity", steps=40, baseline="min") > expected).any()


STABILITIES = {
    "relative_input_stability": (quantus.RelativeInputStability, {}),
    "relative_output_stability": (quantus.RelativeOutputStability, {}),
    "relative_representation_stability": (quantus.RelativeRepresentationStability, {"layer_names": ["curve"]}),
}


@pytest.mark.parametrize("name", STABILITIES)
def test_stability(net, images, targets, name):
    kind, options = STABILITIES[name]
    radius = 1e-3  # so small that no prediction changes
    metric = kind(nr_samples=6, perturb_func=same_noise(radius), **options, **PLAIN)
    expected = theirs(metric, net, images, targets, explain_func=explain_func)
    found = ours(net, images, targets, metric=name, samples=6, radius=radius, units="normalized")
    assert found.isfinite().all()
    close(found, expected, rtol=5e-3)  # their differences are of float32


@pytest.mark.parametrize("name", STABILITIES)
def test_stability_where_a_draw_changes_the_prediction_differs_on_purpose(net, images, targets, name):
    # The definition leaves such a draw out; Quantus's maximum over it is NaN.
    kind, options = STABILITIES[name]
    radius = 3.0
    metric = kind(nr_samples=12, perturb_func=same_noise(radius), **options, **PLAIN)
    expected = theirs(metric, net, images, targets, explain_func=explain_func)
    found = ours(net, images, targets, metric=name, samples=12, radius=radius, units="normalized")
    assert (expected.isnan() & found.isfinite()).any()


def test_a_named_layer_is_the_one_that_quantus_takes(net, images, targets):
    metric = quantus.RelativeRepresentationStability(
        nr_samples=3, perturb_func=same_noise(1e-3), layer_names=["features"], **PLAIN
    )
    expected = theirs(metric, net, images, targets, explain_func=explain_func)
    given = {"samples": 3, "radius": 1e-3, "units": "normalized", "layer": "features"}
    found = ours(net, images, targets, metric="relative_representation_stability", **given)
    close(found, expected, rtol=5e-3)


def test_max_sensitivity_of_captum(net, images, targets):
    random, samples = SampleRandom(0, KEYS), 6

    def noisy(inputs, radius):  # captum hands over each image as often as there are samples
        draws = torch.stack([random.uniform(1, SIZE, SIZE, purpose=f"perturbation {i}") for i in range(samples)], 1)
        return inputs + radius * (2 * draws.flatten(0, 1) - 1)

    def explained(images, target):
        images = images[0] if isinstance(images, tuple) else images
        return (gradient(images, target, net),)

    expected = sensitivity_max(explained, images, perturb_func=noisy, perturb_radius=RADIUS, n_perturb_samples=samples,
                               target=targets)  # fmt: skip
    found = ours(net, images, targets, metric="max_sensitivity", samples=samples, radius=RADIUS, units="normalized")
    close(found, expected.double())


def test_consistency(net):
    # With the same labels; a sample that is like no other is 0 there and NaN here.
    images = torch.randn(20, 1, SIZE, SIZE)
    targets = torch.zeros(20, dtype=torch.long)
    maps = torch.randn(20, SIZE, SIZE)
    maps[0] = 0.0
    maps[0, :4, :4], maps[1:, 8:, 8:] = 1.0, maps[1:, 8:, 8:] + torch.tensor([0.0, 0.6]).repeat(10)[1:, None, None]

    def highest_cell(values):
        return int(values.reshape(2, SIZE // 2, 2, SIZE // 2).mean((1, 3)).argmax())

    metric = quantus.Consistency(discretise_func=highest_cell, **PLAIN)
    arrays = {"x_batch": images.numpy(), "y_batch": targets.numpy(), "a_batch": maps[:, None].numpy()}
    expected = torch.tensor(metric(model=net, **arrays, channel_first=True, device="cpu", batch_size=20))
    found = hp.score(net, images, maps, metric="consistency", targets=targets, grid=(2, 2))
    alone = found.isnan()
    close(found[~alone], expected[~alone].double())
    assert expected[alone].eq(0).all()
    assert not alone.all()


def test_consistency_by_default_differs_on_purpose(net):
    # By default Quantus looks at the signs of the first five pixels of the image only.
    images, targets = torch.randn(COUNT, 1, SIZE, SIZE), torch.zeros(COUNT, dtype=torch.long)
    maps = torch.rand(COUNT, SIZE, SIZE)
    expected = theirs(quantus.Consistency(**PLAIN), net, images, targets, maps)
    share = torch.stack([(net(images).argmax(1) == c).sum() - 1 for c in net(images).argmax(1)]) / (COUNT - 1)
    close(share, expected)


def test_the_cohort_of_quantus_is_the_batch(net):
    images, targets = torch.randn(6, 1, SIZE, SIZE), torch.zeros(6, dtype=torch.long)
    maps = torch.rand(6, SIZE, SIZE) + 1
    metric, arrays = quantus.Consistency(**PLAIN), {"x_batch": images.numpy(), "y_batch": targets.numpy()}
    given = {"model": net, "a_batch": maps[:, None].numpy(), "channel_first": True, "device": "cpu", **arrays}
    assert metric(batch_size=1, **given) == [0] * 6
    assert max(metric(batch_size=6, **given)) > 0


# randomization


class OurWeights:
    """Quantus's models with our random weights, in its order of layers."""

    def __init__(self, monkeypatch, order):
        module = quantus.helpers.model.pytorch_model.PyTorchModel

        def generator(model, **_):
            for number, found in enumerate(randomized(Classifier(model.model, channels=1), order, 0)):
                yield f"layer {number}", copy.deepcopy(found.module)

        monkeypatch.setattr(module, "get_random_layer_generator", generator)


@pytest.mark.parametrize("order", ["top_down", "bottom_up"])
def test_similarity_after_each_layer_and_the_mean_of_quantus(net, images, targets, order, monkeypatch):
    OurWeights(monkeypatch, order)
    arrays = {"x_batch": images.numpy(), "y_batch": targets.numpy(), "a_batch": None, "explain_func": explain_func}
    options = {"layer_order": order, **PLAIN}
    each = quantus.MPRT(**options)(model=net, **arrays, channel_first=True, device="cpu", batch_size=COUNT)
    rows = torch.tensor([each[name] for name in each if name.startswith("layer")], dtype=torch.float64)
    found = ours(net, images, targets, metric="model_parameter_randomization", order=order)
    close(found, rows.mean(0))
    # Its own mean has the similarity of the map with itself among them, which is 1.
    mean = quantus.MPRT(return_average_correlation=True, **options)(
        model=net, **arrays, channel_first=True, device="cpu", batch_size=COUNT
    )
    close(torch.tensor(mean).double(), (rows.sum(0) + 1) / (len(rows) + 1))
    assert (torch.tensor(mean) > found + 0.05).all()


def test_quantus_leaves_parameters_of_their_own_as_they_are(images, targets):
    # Class and position tokens belong to no layer with `reset_parameters`, and stay.
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens = nn.Parameter(torch.randn(SIZE, SIZE))
            self.head = nn.Linear(SIZE**2, 3)

        def forward(self, x):
            return self.head((x * self.tokens).tanh().flatten(1))

    net = Tokens().eval()
    wrapped = quantus.helpers.utils.get_wrapped_model(net, channel_first=True, softmax=False)
    *_, (_, model) = wrapped.get_random_layer_generator(order="top_down", seed=0)
    assert torch.equal(model.tokens, net.tokens)
    *_, copied = randomized(Classifier(net, channels=1), "top_down", 0)
    assert not torch.isclose(copied.module.tokens, net.tokens).all()


def test_efficient_mprt(net, images, targets, monkeypatch):
    OurWeights(monkeypatch, "top_down")
    metric = quantus.EfficientMPRT(complexity_func_kwargs={"n_bins": 100}, layer_order="top_down", **PLAIN)
    expected = theirs(metric, net, images, targets, explain_func=explain_func)
    close(ours(net, images, targets, metric="efficient_mprt"), expected)


def test_smooth_mprt(net, images, targets, monkeypatch):
    # Quantus's last of the noisy images has no noise; ours all have, as in the definition.
    OurWeights(monkeypatch, "top_down")
    random, samples, calls = SampleRandom(0, KEYS), 4, iter(range(1000))

    def draws(*_):
        return random.normal(1, SIZE, SIZE, purpose=f"smoothing {next(calls) % samples}").numpy()

    monkeypatch.setattr(np.random, "randn", draws)
    metric = quantus.SmoothMPRT(nr_samples=samples + 1, noise_magnitude=0.1, layer_order="top_down", **PLAIN)
    arrays = {"x_batch": images.numpy(), "y_batch": targets.numpy(), "a_batch": None, "explain_func": explain_func}
    each = metric(model=net, **arrays, channel_first=True, device="cpu", batch_size=COUNT)
    rows = torch.tensor([each[name] for name in each if name.startswith("layer")], dtype=torch.float64)
    span = images.amax((1, 2, 3), keepdim=True) - images.amin((1, 2, 3), keepdim=True)

    def averaged(model, clean):
        noise = [random.normal(1, SIZE, SIZE, purpose=f"smoothing {i}") for i in range(samples)]
        maps = [gradient(images + 0.1 * span * draw, targets, model) for draw in noise]
        return torch.stack([*maps, *([gradient(images, targets, model)] if clean else [])]).mean(0)

    for clean in (True, False):
        original = averaged(net, clean)
        scores = torch.stack([
            hp.metrics.similarity.spearman(original, averaged(model, clean))
            for model in randomized(Classifier(net, channels=1), "top_down", 0)
        ])  # fmt: skip
        if clean:
            close(scores, rows)
    found = ours(net, images, targets, metric="smooth_mprt", samples=samples)
    close(found, scores.mean(0))


def test_random_logit_in_the_plane_and_over_flattened_maps(net, images, targets):
    # Quantus takes the structural similarity of rows of pixels, which knows nothing of up and down, and of the first class
    # of 1000 by default; with as many classes as there are and its own function in the plane it agrees.
    from skimage.metrics import structural_similarity

    random = SampleRandom(0, KEYS)
    others = (random.uniform(1, purpose="other class")[:, 0] * 2).long()
    others = others + (others >= targets)
    maps = [
        m / m.abs().amax((1, 2), keepdim=True) for m in (gradient(images, t, net).double() for t in (targets, others))
    ]

    def similarity(a, b):
        return structural_similarity(a, b, data_range=max(a.max(), b.max()) - min(a.min(), b.min()))

    pairs = list(zip(maps[0].numpy(), maps[1].numpy(), strict=True))
    found = ours(net, images, targets, metric="random_logit")
    close(found, torch.tensor([similarity(a, b) for a, b in pairs]).double())
    flat = torch.tensor([similarity(a.ravel(), b.ravel()) for a, b in pairs]).double()
    assert (found - flat).abs().max() > 1e-3
    metric = quantus.RandomLogit(num_classes=2, seed=1, **PLAIN)
    two = Net().eval()
    two.head = nn.Linear(6, 2)
    labels = torch.zeros(COUNT, dtype=torch.long)  # the other class is the second
    expected = theirs(metric, two, images, labels, explain_func=explain_func)
    one, other = (gradient(images, labels + c, two).double().flatten(1).numpy() for c in (0, 1))
    close(torch.tensor([similarity(a, b) for a, b in zip(one, other, strict=True)]).double(), expected)
    with pytest.raises(Exception):  # noqa: B017, PT011
        theirs(quantus.RandomLogit(**PLAIN), net, images, targets, explain_func=explain_func)


# complexity


def test_complexity(net, images, targets):
    for maps in (torch.rand(COUNT, SIZE, SIZE), torch.randn(COUNT, SIZE, SIZE).abs() ** 3):
        metric = quantus.Complexity(**(PLAIN | {"abs": True}))
        close(ours(net, images, targets, maps, metric="complexity"), theirs(metric, net, images, targets, maps))


def test_effective_complexity_of_maps_up_to_one(net, images, targets):
    maps = torch.randn(COUNT, SIZE, SIZE) ** 7
    maps /= maps.abs().amax((1, 2), keepdim=True)
    metric = quantus.EffectiveComplexity(**(PLAIN | {"abs": True}))
    expected = theirs(metric, net, images, targets, maps)
    assert (expected < SIZE**2).any()
    close(ours(net, images, targets, maps, metric="effective_complexity"), expected)


def test_normalisation_by_the_batch_differs_on_purpose(net, images, targets):
    # Quantus divides by the largest value of the whole batch, so that a map's score depends on the others.
    maps = torch.rand(COUNT, SIZE, SIZE)
    maps[0] *= 1e-6
    metric = quantus.EffectiveComplexity(**(PLAIN | {"normalise": True, "abs": True}))
    assert theirs(metric, net, images, targets, maps)[0] == 0
    assert ours(net, images, targets, maps, metric="effective_complexity")[0] > 250


# axioms


def test_completeness_differs_on_purpose(net, images, targets):
    # Quantus compares floats for equality, so that a map which misses a ten-thousandth is not complete.
    gain = (net(images) - net(torch.zeros_like(images))).detach().gather(1, targets[:, None])[:, 0]
    maps = 1 + 2 * torch.randn(COUNT, SIZE, SIZE)
    maps *= (1.0001 * gain / maps.sum((1, 2)))[:, None, None]
    metric = quantus.Completeness(perturb_baseline=0.0, **PLAIN)
    assert not theirs(metric, net, images, targets, maps).any()
    assert (ours(net, images, targets, maps, metric="completeness", baseline=0.0) < 1e-2).all()
    double = ours(net, images, targets, 2 * maps, metric="completeness", baseline=0.0)
    close(double, torch.ones(COUNT).double(), rtol=1e-2)


def test_non_sensitivity(net, images, targets):
    maps = torch.randn(COUNT, SIZE, SIZE)
    maps /= maps.abs().amax((1, 2), keepdim=True)
    for limit in (1e-4, 1e-3, 1e-2):
        metric = quantus.NonSensitivity(eps=limit, perturb_baseline="black", **(PLAIN | {"abs": True}))
        expected = theirs(metric, net, images, targets, maps.abs(), softmax=True) / SIZE**2
        found = ours(net, images, targets, maps, metric="non_sensitivity", tolerance=limit, baseline="min")
        assert (found.double() - expected).abs().max() <= 1.01 / SIZE**2  # a pixel just at the limit
        assert (expected > 0).all() or limit < 1e-2


def test_non_sensitivity_of_signed_maps_differs_on_purpose(net, images, targets):
    # Without abs=True Quantus counts negative values as none.
    maps = -torch.rand(COUNT, SIZE, SIZE) - 0.1
    maps[:, 0, 0] = 0.1
    metric = quantus.NonSensitivity(eps=1e-9, perturb_baseline="black", **PLAIN)
    assert (theirs(metric, net, images, targets, maps, softmax=True) > 0.9 * SIZE**2).all()
    found = ours(net, images, targets, maps, metric="non_sensitivity", tolerance=1e-9, baseline="min")
    assert (found < 0.1).all()


def input_invariance(net, images, targets, product):
    """Quantus's answers and our scores of gradients, or of gradients × input."""

    def explained(model, inputs, targets, **_):
        x = torch.as_tensor(inputs).float()
        found = 10 * gradient(x, torch.as_tensor(targets), model)
        return (found * x[:, 0] if product else found)[:, None].numpy()

    maps = torch.from_numpy(explained(net, images, targets))[:, 0]
    answers = theirs(quantus.InputInvariance(**PLAIN), net, images, targets, maps, explain_func=explained)
    found = hp.score(net, images, maps, metric="input_invariance", targets=targets,
                     explain=lambda x, t, model: torch.from_numpy(explained(model, x, t))[:, 0])  # fmt: skip
    return answers.bool().tolist(), found


def test_input_invariance_where_the_whole_image_is_shifted(net, images, targets, monkeypatch):
    module = sys.modules["quantus.metrics.axiomatic.input_invariance"]
    monkeypatch.setattr(module, "perturb_batch", lambda perturb_func, indices, indexed_axes, arr: arr - 1)
    answers, found = input_invariance(net, images, targets, product=False)
    assert answers == [True] * COUNT
    assert (found < 1e-4).all()
    answers, found = input_invariance(net, images, targets, product=True)
    assert answers == [False] * COUNT
    assert (found > 0.1).all()


def test_input_invariance_differs_on_purpose(net, images, targets):
    # Quantus leaves the first pixel where it is, so that even a gradient is not invariant.
    answers, found = input_invariance(net, images, targets, product=False)
    assert not all(answers)
    assert (found < 1e-4).all()
