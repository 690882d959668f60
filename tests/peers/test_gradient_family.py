"""Agreement with captum: guided backpropagation and its kin, noise, rules of integration, expected gradients."""

import numpy as np
import pytest
import torch
from captum.attr import (
    Deconvolution,
    DeepLift,
    GradientShap,
    GuidedBackprop,
    GuidedGradCam,
    InputXGradient,
    IntegratedGradients,
    NoiseTunnel,
    Saliency,
)
from torch import nn

import heatproof as hp
from heatproof.probing import SampleRandom
from support.nets import TinyCNN

KEYS, SEED = ["a", "b", "c"], 5


class Modules(nn.Module):
    """What captum can serve: ReLUs that are modules, each used once, not in place."""

    def __init__(self, channels=3):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(channels, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.norm, self.pool1, self.pool2 = nn.BatchNorm2d(6), nn.MaxPool2d(2), nn.MaxPool2d(2)
        self.relu1, self.relu2, self.head = nn.ReLU(), nn.ReLU(), nn.Linear(54, 3)

    def forward(self, x):
        x = self.pool1(self.relu1(self.norm(self.conv1(x))))
        return self.head(self.pool2(x + self.relu2(self.conv2(x))).flatten(1))


@pytest.fixture
def case():
    return Modules().double().eval(), torch.randn(3, 3, 12, 12).double(), [2, 0, 1]


def agree(found, peer):
    peer = peer.detach().sum(1).float()
    torch.testing.assert_close(found, peer, rtol=1e-4, atol=1e-6 * float(peer.abs().max()))
    assert (peer != 0).any((1, 2)).any()


@pytest.mark.filterwarnings("ignore:Setting backward hooks on ReLU activations")
@pytest.mark.parametrize(("method", "theirs"), [("guided_backprop", GuidedBackprop), ("deconvnet", Deconvolution)])
def test_relu_overridden(method, theirs, case):
    model, images, targets = case
    agree(hp.explain(model, images, targets, method=method), theirs(model).attribute(images.clone(), target=targets))


@pytest.mark.filterwarnings("ignore:Setting backward hooks on ReLU activations")
def test_guided_gradcam(case):
    model, images, targets = case
    peer = GuidedGradCam(model, model.conv2).attribute(images.clone(), target=targets, interpolate_mode="bilinear")
    agree(hp.explain(model, images, targets, method="guided_gradcam", layer="conv2"), peer)


@pytest.mark.parametrize("base", ["gradient", "input_x_gradient"])
@pytest.mark.parametrize("kind", ["smoothgrad", "smoothgrad_sq", "vargrad"])
def test_noise(base, kind, monkeypatch):
    """With the noise that ours draws. Captum squares each channel, so there is one."""
    model, images, targets, samples = Modules(1).double().eval(), torch.randn(3, 1, 12, 12).double(), [2, 0, 1], 6
    images[:, 0, 0, :2] = torch.tensor([-5.0, 5.0])  # captum knows one deviation for all images
    drawn = [
        SampleRandom(SEED, KEYS).draws([row], [draw]).normal(1, 12, 12, purpose="smoothing noise")
        for row in range(3) for draw in range(samples)
    ]  # fmt: skip
    monkeypatch.setattr(torch, "normal", lambda mean, std: mean + std * torch.cat(drawn))
    inner = Saliency(model) if base == "gradient" else InputXGradient(model)
    signed = {"abs": False} if base == "gradient" else {}
    peer = NoiseTunnel(inner).attribute(
        images, nt_type=kind, nt_samples=samples, stdevs=0.1 * 10.0, target=torch.tensor(targets), **signed
    )
    monkeypatch.undo()
    method = "smoothgrad_squared" if kind == "smoothgrad_sq" else kind
    found = hp.explain(
        model, images, targets, method=method, base=base, samples=samples, noise=0.1, keys=KEYS, seed=SEED, batch_size=4
    )
    agree(found, peer)


@pytest.mark.parametrize("rule", ["left", "right", "midpoint", "trapezoid", "gauss_legendre"])
def test_rules_of_integration(rule):
    model, images, targets, steps = TinyCNN().double().eval(), torch.randn(2, 3, 16, 16).double(), [2, 0], 6
    theirs = {"midpoint": "riemann_middle", "gauss_legendre": "gausslegendre"}.get(rule, f"riemann_{rule}")
    peer = IntegratedGradients(model).attribute(images, target=targets, n_steps=steps, method=theirs)
    # captum's trapezoid has n points but weights of n steps, so that they sum to (n - 1) / n
    factor = steps / (steps - 1) if rule == "trapezoid" else 1.0
    found = hp.explain(model, images, targets, method="integrated_gradients", baseline=0.0, steps=steps, rule=rule)
    agree(found, peer * factor)


@pytest.mark.parametrize("method", ["expected_gradients", "gradient_shap"])
def test_gradient_shap(method, case, monkeypatch):
    """With the places and noise that ours draws; one reference, since captum draws those for all images at once."""
    model, images, targets = case
    samples, reference = 7, torch.randn(1, 3, 12, 12).double()
    images[:, 0, 0, :2] = torch.tensor([-5.0, 5.0])
    streams = [SampleRandom(SEED, KEYS).draws([row], [draw]) for row in range(3) for draw in range(samples)]
    places = torch.cat([one.uniform(1, 1, 1, purpose="place on the way") for one in streams]).flatten().numpy()
    noise = torch.cat([one.normal(3, 12, 12, purpose="noise") for one in streams])
    monkeypatch.setattr(np.random, "uniform", lambda low, high, size: places)
    monkeypatch.setattr(torch, "normal", lambda mean, std: mean + std * noise)
    stdev, options = (0.05 * 10.0, {"noise": 0.05}) if method == "gradient_shap" else (0.0, {})
    peer = GradientShap(model).attribute(
        images, reference, n_samples=samples, stdevs=stdev, target=torch.tensor(targets)
    )
    monkeypatch.undo()
    found = hp.explain(
        model, images, targets, method=method, baselines=reference, samples=samples, keys=KEYS, seed=SEED, **options
    )
    agree(found, peer)


@pytest.mark.filterwarnings("ignore:Setting forward, backward hooks and attributes on non-linear")
def test_deep_lift(case):
    """No activation beside a max pooling: there captum's maps do not sum to the change of the score."""
    _, images, targets = case
    three = [nn.Conv2d(channels, 6, 3, padding=1) for channels in (3, 6, 6)]
    head = nn.Sequential(nn.Sigmoid(), nn.Flatten(), nn.Linear(216, 3))
    model = nn.Sequential(three[0], nn.BatchNorm2d(6), nn.ReLU(), three[1], nn.MaxPool2d(2), three[2], head)
    model = model.double().eval()
    baseline = torch.randn(1, 3, 12, 12).double()
    peer = DeepLift(model).attribute(images.clone(), baseline.expand_as(images), target=targets)
    change = (model(images) - model(baseline))[range(3), targets]
    torch.testing.assert_close(peer.sum((1, 2, 3)), change)
    agree(hp.explain(model, images, targets, method="deep_lift", baseline=baseline), peer)


def test_deep_lift_is_complete_where_captum_is_not(case):
    model, images, targets = case
    baseline = torch.randn(1, 3, 12, 12).double()
    found = hp.explain(model, images, targets, method="deep_lift", baseline=baseline)
    change = (model(images) - model(baseline))[range(3), targets].detach().float()
    torch.testing.assert_close(found.sum((1, 2)), change, rtol=1e-4, atol=1e-5)
