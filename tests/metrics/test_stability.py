from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from heatproof.errors import InputError, UnsupportedModelError
from heatproof.metrics.robustness import avg_sensitivity, local_lipschitz, max_sensitivity
from heatproof.metrics.stability import (
    relative_input_stability,
    relative_output_stability,
    relative_representation_stability,
    representation,
)
from heatproof.models import Classifier
from heatproof.probing import SampleRandom, bf16_supported
from support.cases import PixelSum, make_case
from support.nets import TinyCNN, TinyViT

STABILITIES = [relative_input_stability, relative_output_stability, relative_representation_stability]
RADIUS = {"radius": 0.3, "units": "normalized"}


class Dense(nn.Module):
    """A smooth net with penultimate features that can be written down."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(36, 5), nn.Linear(5, 3)

    def forward(self, images):
        return self.last(torch.tanh(self.first(images.flatten(1))))


def classifier(net):
    return Classifier(net.eval(), channels=1)


def squares(images, targets):
    return images.square().sum(1) * (1 + targets)[:, None, None]


@pytest.fixture
def images():
    return torch.randn(3, 1, 6, 6)


def drawn(images, number, radius):
    streams = [SampleRandom(0, [str(b)]) for b in range(len(images))]
    rows = [s.uniform(*x.shape, purpose=f"perturbation {number}")[0] for s, x in zip(streams, images, strict=True)]
    return images + radius * (2 * torch.stack(rows) - 1)


def slow(change, image, changed, net, b):
    """The three denominators of Agarwal et al. in float64."""
    net = net.double()
    with torch.no_grad():
        before, after = ((torch.tanh(net.first(x.double().flatten(1))), net(x.double())) for x in (image, changed))
    return {
        "relative_input_stability": change / ((image - changed).double() / image.double()).norm(),
        "relative_output_stability": change / (before[1] - after[1]).norm(),
        "relative_representation_stability": change / ((before[0] - after[0]) / before[0]).norm(),
    }


@pytest.mark.parametrize("function", STABILITIES)
def test_agreement_with_the_definition(images, function):
    net = Dense()
    targets = torch.tensor([0, 1, 2])
    with torch.no_grad():
        plain = net(images).argmax(1)
    case = make_case(classifier(net), images, squares(images, targets), targets, explainer=squares)
    found = function(case, samples=9, **RADIUS)
    kept = 0
    for b in range(3):
        values = []
        for number in range(9):
            x, y = images[b : b + 1], drawn(images, number, 0.3)[b : b + 1]
            with torch.no_grad():
                if net.float()(y).argmax(1) != plain[b]:
                    continue
            kept += 1
            maps, changed = (squares(v.double(), targets[b : b + 1]) for v in (x, y))
            values.append(float(slow(((maps - changed) / maps).norm(), x, y, net, b)[function.__name__]))
        net.float()
        assert found[b].item() == pytest.approx(max(values), rel=1e-3)
    assert kept > 9


def test_an_explanation_that_is_the_image_is_as_stable_as_it(images):
    case = make_case(classifier(Dense()), images, images[:, 0], explainer=lambda x, t: x[:, 0])
    assert relative_input_stability(case, **RADIUS).tolist() == pytest.approx([1] * 3, rel=1e-4)


@pytest.mark.parametrize("function", STABILITIES)
def test_a_constant_explainer_is_perfectly_stable(images, function):
    maps = torch.rand(3, 6, 6)
    case = make_case(classifier(Dense()), images, maps, explainer=lambda x, t: maps.repeat(len(x) // 3, 1, 1))
    assert function(case, **RADIUS).tolist() == [0, 0, 0]


def test_changes_of_what_is_explained_count_at_least_a_millionth():
    weights = torch.zeros(2, 1, 4, 4)  # the logits never change
    images = torch.rand(2, 1, 4, 4) + 1
    maps = torch.ones(2, 4, 4)
    maps[:, 0, 0] = 2.0
    case = make_case(
        classifier(PixelSum(weights)), images, maps, explainer=lambda x, t: maps.repeat(len(x) // 2, 1, 1) * 3
    )
    assert relative_output_stability(case, **RADIUS).tolist() == pytest.approx([2 * 4 / 1e-6] * 2)


def test_values_of_zero_are_taken_for_a_millionth():
    images = torch.rand(1, 1, 4, 4) + 1
    images[0, 0, 0, 0] = 0.0
    maps = torch.ones(1, 4, 4)
    maps[0, 1, 1] = 0.0
    case = make_case(
        classifier(PixelSum(torch.zeros(2, 1, 4, 4))),
        images,
        maps,
        explainer=lambda x, t: maps.repeat(len(x), 1, 1) + 1,
    )
    expected = []
    for number in range(10):
        y = drawn(images, number, 0.3).double()
        guarded = images.double().where(images != 0, 1e-6)
        expected.append(float((15 + 1e12) ** 0.5 / ((images - y) / guarded).norm()))
    assert relative_input_stability(case, **RADIUS).item() == pytest.approx(max(expected), rel=1e-4)


@pytest.mark.parametrize("function", STABILITIES)
def test_only_draws_that_keep_the_prediction_count(function):
    # One pixel decides, and the explanation jumps where it does.
    weights = torch.zeros(2, 1, 4, 4)
    weights[1, 0, 0, 0] = 1.0
    images = torch.rand(2, 1, 4, 4) + 1
    images[:, 0, 0, 0] = torch.tensor([0.02, 0.5])

    def jumps(x, targets):
        return x[:, 0] * torch.where(x[:, 0, 0, 0] > 0, 1.0, 1000.0)[:, None, None]

    case = make_case(
        classifier(PixelSum(weights)), images, images[:, 0], torch.ones(2, dtype=torch.long), explainer=jumps
    )
    found = function(case, samples=12, radius=0.1, units="normalized")
    assert found.isfinite().all()
    signs = [bool(drawn(images, number, 0.1)[0, 0, 0, 0] > 0) for number in range(12)]
    assert 2 < sum(signs) < 11
    smooth = make_case(case.model, images, images[:, 0], case.targets, explainer=lambda x, t: x[:, 0])
    assert torch.equal(found, function(smooth, samples=12, radius=0.1, units="normalized"))


@pytest.mark.parametrize("function", STABILITIES)
def test_no_draw_keeps_the_prediction(function):
    class Sharp(nn.Module):
        """Class 1 wins only for the image as it is."""

        def forward(self, x):
            same = (F.linear(x.flatten(1), torch.ones(1, 16))[:, 0] - 16).abs() < 1e-6
            return torch.stack([same.float(), torch.full_like(x[:, 0, 0, 0], 0.5)], 1)

    images = torch.ones(1, 1, 4, 4)
    case = make_case(classifier(Sharp()), images, torch.rand(1, 4, 4), explainer=lambda x, t: x[:, 0])
    assert function(case, samples=4, **RADIUS).isnan().all()


@pytest.mark.parametrize("function", STABILITIES)
def test_small_differences_are_computed_in_float32(images, function):
    if not bf16_supported():
        pytest.skip("this CPU has no bfloat16 arithmetic")
    net = TinyCNN(channels=1)
    case = make_case(classifier(net), images, images[:, 0], explainer=lambda x, t: x[:, 0].square())
    rounded = replace(case, probe=replace(case.probe, precision="bf16"), _shared={})
    assert not torch.equal(case.probe.logits(images), rounded.probe.logits(images))
    given = {"samples": 5, "radius": 1e-3, "units": "normalized"}  # of which none changes a prediction
    assert torch.equal(function(rounded, **given), function(case, **given))


@pytest.mark.parametrize("function", STABILITIES)
def test_undefined_maps_are_nan_and_negative_ones_are_not(images, function):
    maps = torch.rand(3, 6, 6)
    maps[0], maps[1, 0, 0], maps[2] = 0.3, torch.nan, -maps[2]
    case = make_case(classifier(Dense()), images, maps, explainer=lambda x, t: x[:, 0])
    assert function(case, **RADIUS).isnan().tolist() == [True, True, False]


@pytest.mark.parametrize("function", STABILITIES)
@pytest.mark.parametrize(
    ("options", "message"),
    [({"samples": 0}, "samples must be a whole number"), ({"radius": 0}, "radius must be above 0"),
     ({"radius": -1}, "radius must be a number"), ({"units": "pixels"}, "units must be")],
)  # fmt: skip
def test_impossible_options_are_refused(images, function, options, message):
    case = make_case(classifier(Dense()), images, images[:, 0], explainer=lambda x, t: x[:, 0])
    with pytest.raises(InputError, match=message):
        function(case, **{**RADIUS, **options})


def test_the_metrics_of_small_changes_share_their_explanations(images):
    explained = []

    def counted(x, targets):
        explained.append(len(x))
        return x[:, 0]

    case = make_case(classifier(Dense()), images, images[:, 0], explainer=counted)
    for function in (avg_sensitivity, max_sensitivity, local_lipschitz, *STABILITIES):
        function(case, samples=4, **RADIUS)
    assert sum(explained) == 4 * 3
    local_lipschitz(case, samples=5, **RADIUS)
    assert sum(explained) == 4 * 3 + 5 * 3


@pytest.mark.parametrize("build", [TinyCNN, TinyViT])
def test_penultimate_features_are_what_the_head_is_given(build):
    net, images = build().eval(), torch.randn(4, 3, 32, 32)
    seen = []
    handle = net.head.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        net(images)
    handle.remove()
    torch.testing.assert_close(representation(Classifier(net), images), seen[0])  # fused attention rounds otherwise
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in net.modules())


class Odd(nn.Module):
    """The last weighted operation of several kinds, also with as many rows of weights as images."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.weight = kind, nn.Parameter(torch.randn(4, 4))

    def forward(self, images):
        x = images.flatten(1)[:, :4].sin()
        if self.kind == "addmm":
            return torch.addmm(torch.zeros(4), x, self.weight)
        if self.kind == "einsum":
            return torch.einsum("bi,ij->bj", x, self.weight)
        if self.kind == "transposed":
            return (self.weight @ x.T).T
        return x @ self.weight if self.kind == "matmul" else F.linear(x, self.weight).cos()


@pytest.mark.parametrize("kind", ["addmm", "einsum", "matmul", "linear"])
def test_penultimate_features_before_any_weighted_operation(kind):
    images = torch.randn(4, 1, 3, 3)
    assert torch.equal(representation(Classifier(Odd(kind).eval()), images), images.flatten(1)[:, :4].sin())


def test_a_layer_by_name():
    net, images = TinyCNN().eval(), torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        expected = net.bn1(net.conv1(images))
    assert torch.equal(representation(Classifier(net), images, "bn1"), expected)
    vit, images = TinyViT().eval(), torch.randn(2, 3, 32, 32)
    seen = []
    handle = vit.blocks[1].register_forward_hook(lambda *given: seen.append(given[2]))
    with torch.no_grad():
        vit(images)
    handle.remove()
    torch.testing.assert_close(representation(Classifier(vit), images, "blocks.1"), seen[0])


def test_layers_that_cannot_be_looked_at():
    net = nn.Sequential(nn.Identity(), nn.Flatten(), nn.Linear(36, 2))
    with pytest.raises(InputError, match="no module named 'haed'"):
        representation(classifier(net), torch.randn(2, 1, 6, 6), "haed")
    with pytest.raises(InputError, match="The module '0' computes nothing"):
        representation(classifier(net), torch.randn(2, 1, 6, 6), "0")
    for net in (nn.Flatten(), Odd("transposed")):  # the latter's features do not stand in a row for each image
        with pytest.raises(UnsupportedModelError, match="no penultimate features"):
            representation(classifier(net), torch.randn(2, 1, 6, 6))
