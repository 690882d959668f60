import pytest
import torch
from torch import nn

import heatproof as hp
from heatproof.errors import InputError, UnsupportedModelError
from heatproof.metrics.axiomatic import completeness, input_invariance, non_sensitivity, shifted
from heatproof.models import Classifier
from support.cases import PixelSum, Wavy, make_case
from support.nets import TinyCNN, TinyViT

SIZE = 8


def grey(net):
    return Classifier(net.eval(), channels=1, mean=[0.4], std=[0.2])  # black is −2


@pytest.fixture
def images():
    return torch.randn(3, 1, SIZE, SIZE)


# completeness


def test_completeness_of_a_linear_model(images):
    net = PixelSum(torch.randn(2, 1, SIZE, SIZE)).eval()
    weights, targets = net.weights.detach()[:, 0], torch.tensor([0, 1, 1])
    exact = (images[:, 0] + 2) * weights[targets]  # what each pixel adds to black
    assert completeness(make_case(grey(net), images, exact, targets)).tolist() == pytest.approx([0] * 3, abs=1e-4)
    for factor in (3.0, -1.0, 0.25):
        found = completeness(make_case(grey(net), images, factor * exact, targets))
        assert found.tolist() == pytest.approx([abs(factor - 1)] * 3, rel=1e-3)
    product = images[:, 0] * weights[targets]
    assert completeness(make_case(grey(net), images, product, targets), baseline=0.0).tolist() == pytest.approx(
        [0] * 3, abs=1e-4
    )
    assert (completeness(make_case(grey(net), images, product, targets)) > 0.01).all()


@pytest.mark.parametrize("output", ["logit", "probability"])
def test_completeness_agrees_with_the_definition(images, output):
    net, targets = Wavy(size=SIZE).eval(), torch.tensor([0, 1, 2])
    maps, view = torch.randn(3, SIZE, SIZE), (lambda v: v) if output == "logit" else (lambda v: v.softmax(1))
    found = completeness(make_case(grey(net), images, maps, targets), baseline="mean", output=output)
    for b in range(3):
        with torch.no_grad():
            x, base = images[b : b + 1], images[b : b + 1].mean().expand(1, 1, SIZE, SIZE)
            gain = float((view(net(x)) - view(net(base)))[0, targets[b]])
        assert found[b].item() == pytest.approx(abs(float(maps[b].sum()) - gain) / abs(gain), rel=1e-3)


def test_integrated_gradients_are_complete_and_gradients_are_not():
    net, images = TinyCNN(channels=1).eval(), torch.randn(4, 1, 16, 16)
    targets = torch.tensor([0, 1, 2, 0])
    scores = {}
    for method, options in (("integrated_gradients", {"steps": 300, "baseline": 0.0}), ("input_x_gradient", {})):
        maps = hp.explain(net, images, targets, method=method, **options)
        scores[method] = hp.score(net, images, maps, metric="completeness", targets=targets, baseline=0.0)
    assert (scores["integrated_gradients"] < 0.05).all()
    assert (scores["input_x_gradient"] > scores["integrated_gradients"]).all()


def test_an_output_like_that_of_the_baseline_has_no_completeness(images):
    images[1] = 0.3
    found = completeness(make_case(grey(Wavy(size=SIZE)), images, torch.randn(3, SIZE, SIZE)), baseline=0.3)
    assert found.isnan().tolist() == [False, True, False]


# non-sensitivity


def half(net_sees, map_sees):
    """A model that sees some pixels of 16 and a map that does."""
    weights = torch.zeros(2, 1, 4, 4)
    weights[1].view(-1)[net_sees] = 0.1
    maps = torch.zeros(1, 4, 4)
    maps.view(-1)[map_sees] = torch.linspace(-1, -0.5, len(map_sees))  # negative values matter as much
    images = torch.rand(1, 1, 4, 4) + 1
    return make_case(grey(PixelSum(weights)), images, maps, torch.ones(1, dtype=torch.long))


@pytest.mark.parametrize(
    ("net_sees", "map_sees", "expected"),
    [
        (range(8), range(8), 0),
        (range(8), range(4), 4 / 16),
        (range(4), range(8), 4 / 16),
        (range(8), range(8, 16), 1),
        ([3, 7], [7, 9, 11], 3 / 16),
    ],
)
def test_non_sensitivity_counts_the_pixels_of_which_map_and_model_disagree(net_sees, map_sees, expected):
    for output in ("probability", "logit"):
        case = half(list(net_sees), list(map_sees))
        assert non_sensitivity(case, baseline=0.5, output=output).item() == expected


def test_non_sensitivity_agrees_with_the_definition(images):
    net, targets = Wavy(size=SIZE).eval(), torch.tensor([0, 1, 2])
    maps = torch.randn(3, SIZE, SIZE)
    found = non_sensitivity(make_case(grey(net), images, maps, targets), tolerance=3e-3, baseline="mean")
    for b in range(3):
        count, largest = 0, float(maps[b].abs().max())
        with torch.no_grad():
            plain = net(images[b : b + 1]).softmax(1)[0, targets[b]]
            for row in range(SIZE):
                for column in range(SIZE):
                    changed = images[b : b + 1].clone()
                    changed[0, 0, row, column] = images[b].mean()
                    effect = abs(float(net(changed).softmax(1)[0, targets[b]] - plain))
                    count += (effect > 3e-3) != (abs(float(maps[b, row, column])) > 3e-3 * largest)
        assert 0.05 < found[b] < 0.95
        assert found[b].item() == pytest.approx(count / SIZE**2)


def test_pixels_tested_together_are_alike_to_the_map():
    # In steps of 4, the 8 pixels without a value fill two sets of their own, whose joint effect is none.
    assert non_sensitivity(half(list(range(8)), list(range(8))), step=4, baseline=0.5).item() == 0
    # Of 3, one set of two without a value and one with: it has an effect, which counts for all three.
    assert non_sensitivity(half(list(range(8)), list(range(8))), step=3, baseline=0.5).item() == 2 / 16
    assert non_sensitivity(half([15], list(range(8))), step=16, baseline=0.5).item() == 8 / 16


def test_the_passes_of_non_sensitivity_are_as_many_as_it_says(images):
    seen = []

    class Counting(Wavy):
        def forward(self, x):
            seen.append(len(x))
            return super().forward(x)

    case = make_case(grey(Counting(size=SIZE)), images[:1], torch.rand(1, SIZE, SIZE))
    non_sensitivity(case, step=5)
    entry = hp.metrics()["non_sensitivity"]
    assert sum(seen) == 13 + 1
    assert sum(entry.passes({**entry.options, "step": 5}, SIZE**2).values()) == 13


# input invariance


def gradient(x, targets, model):
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        return torch.autograd.grad(model(x).gather(1, targets[:, None]).sum(), x)[0].sum(1)


class Padded(nn.Module):
    """A first convolution with the given padding, somewhere inside."""

    def __init__(self, channels=3, bias=True, **options):
        super().__init__()
        self.body = nn.ModuleDict({"conv": nn.Conv2d(channels, 6, 3, bias=bias, **options)})
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.body["conv"](x)).mean((2, 3)))


KINDS = {
    "valid": lambda: Padded(),
    "zeros": lambda: Padded(padding=1),
    "uneven": lambda: Padded(padding=(2, 0), stride=2),
    "same": lambda: Padded(padding="same", dilation=2),
    "reflect": lambda: Padded(padding=1, padding_mode="reflect"),
    "grouped": lambda: Padded(groups=3, padding=1),
    "dense": lambda: nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE**2, 5), nn.Tanh(), nn.Linear(5, 3)),
    "without a bias": lambda: Padded(bias=False, padding=1),
    "dense without a bias": lambda: nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE**2, 5, bias=False), nn.Tanh()),
    "itself": lambda: nn.Sequential(nn.Conv2d(3, 3, SIZE + 2, padding=1), nn.Flatten()),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shift", [-1.0, 2.5])
def test_the_shifted_copy_is_the_same_function(kind, shift):
    net, images = KINDS[kind]().eval(), torch.randn(4, 3, SIZE, SIZE)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    copy = shifted(Classifier(net, channels=3), images, shift)
    with torch.no_grad():
        torch.testing.assert_close(copy(images + shift), net(images), atol=1e-4, rtol=1e-4)
        assert not torch.allclose(copy(images), net(images), atol=1e-3)
    assert net.state_dict().keys() == before.keys()
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in before.items())
    assert not any(part._forward_pre_hooks for part in (*net.modules(), *copy.module.modules()))


@pytest.mark.parametrize(
    "build",
    [
        lambda: TinyCNN(channels=1),
        lambda: TinyViT(channels=1, image=16, patch=4, depth=2),
        lambda: Padded(channels=1, bias=False, padding=1),
    ],
)
def test_gradients_are_invariant_and_gradient_times_input_is_not(build):
    net, images, targets = build().eval(), torch.randn(3, 1, 16, 16), torch.tensor([0, 1, 2])
    own = Classifier(net, channels=1)
    maps = gradient(images, targets, own)
    case = make_case(own, images, maps, targets, explainer=gradient)
    assert (input_invariance(case) < 1e-4).all()
    product = make_case(own, images, maps * images[:, 0], targets,
                        explainer=lambda x, t, model: gradient(x, t, model) * x[:, 0])  # fmt: skip
    # Φ′ − Φ = m · gradient
    for shift in (-1.0, 0.5):
        expected = abs(shift) * maps.flatten(1).norm(dim=1) / product.maps.flatten(1).norm(dim=1)
        assert input_invariance(product, shift=shift).tolist() == pytest.approx(expected.tolist(), rel=1e-3)


def test_input_invariance_by_the_front_door():
    net, images = TinyCNN(channels=1).eval(), torch.randn(3, 1, 16, 16)
    maps = hp.explain(net, images, [0, 1, 2], method="saliency")
    given = {"metric": "input_invariance", "targets": [0, 1, 2]}
    assert (hp.score(net, images, maps, explain="saliency", **given) < 1e-4).all()
    maps = hp.explain(net, images, [0, 1, 2], method="input_x_gradient")
    assert (hp.score(net, images, maps, explain="input_x_gradient", **given) > 0.05).all()


class Normalising(nn.Module):
    """Takes each image's own mean out before the first layer, so that a shift never arrives there."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(SIZE**2, 3)

    def forward(self, x):
        return self.layer((x - x.mean((1, 2, 3), keepdim=True)).flatten(1))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Wavy(size=SIZE), "runs no nn.Conv2d or nn.Linear"),
        (Normalising, "cannot take a shift of the image out again"),
        (lambda: nn.Sequential(nn.Flatten(), nn.BatchNorm1d(SIZE**2), nn.Linear(SIZE**2, 3), nn.Tanh()), None),
    ],
)
def test_models_that_cannot_be_shifted(images, build, message):
    net = build().eval()
    if message is None:  # a batch norm that scales by 2
        net[1].running_var.fill_(0.25)
        message = "cannot take a shift"
    case = make_case(net, images, images[:, 0], explainer=gradient)
    with pytest.raises(UnsupportedModelError, match=message):
        input_invariance(case)


@pytest.mark.parametrize("function", [completeness, non_sensitivity, input_invariance])
def test_undefined_maps_are_nan_and_negative_ones_are_not(images, function):
    maps = torch.rand(3, SIZE, SIZE)
    maps[0], maps[1, 0, 0], maps[2] = 0.3, torch.nan, -maps[2]
    net = nn.Sequential(nn.Flatten(), nn.Linear(SIZE**2, 3))
    case = make_case(grey(net), images, maps, explainer=gradient)
    assert function(case).isnan().tolist() == [True, True, False]


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        (non_sensitivity, {"step": 0}, "step must be a whole number, from 1 to 64, got 0"),
        (non_sensitivity, {"step": 65}, "step must be a whole number, from 1 to 64, got 65"),
        (non_sensitivity, {"tolerance": -1}, "tolerance must be a number, at least 0"),
        (completeness, {"baseline": "blck"}, "Unknown baseline"),
        (completeness, {"output": "odds"}, "output must be"),
        (input_invariance, {"shift": 0}, "shift must be another number than 0"),
        (input_invariance, {"shift": "black"}, "shift must be a number"),
    ],
)
def test_impossible_options_are_refused(images, function, options, message):
    case = make_case(grey(Wavy(size=SIZE)), images, images[:, 0], explainer=gradient)
    with pytest.raises(InputError, match=message):
        function(case, **options)
