"""Agreement with captum: gradients as they are and integrated, LRP, and its sensitivity under the same draws."""

import pytest
import torch
from captum.attr import LRP, InputXGradient, IntegratedGradients, Saliency
from captum.attr._utils.lrp_rules import Alpha1_Beta0_Rule, EpsilonRule, GammaRule
from captum.metrics import sensitivity_max
from torch import nn

import heatproof as hp
from heatproof.probing import SampleRandom
from heatproof.relevance import Epsilon, Gamma, composite, z_plus
from support.cases import Wavy
from support.nets import TinyCNN, TinyViT

SIZE, COUNT, SAMPLES, RADIUS = 12, 4, 7, 0.3


def test_max_sensitivity():
    net, images = Wavy(channels=3, size=SIZE).eval(), torch.randn(COUNT, 3, SIZE, SIZE)
    targets, keys = torch.tensor([0, 1, 2, 0]), [str(i) for i in range(COUNT)]
    random = SampleRandom(0, keys)

    def product(images, target):
        with torch.enable_grad():
            images = images.detach().requires_grad_()
            gradients = torch.autograd.grad(net(images).gather(1, target[:, None]).sum(), images)[0]
        return (images * gradients).sum(1).detach()

    def same_noise(inputs, radius):
        # captum hands over each image SAMPLES times in a row
        draws = torch.stack([random.uniform(3, SIZE, SIZE, purpose=f"perturbation {i}") for i in range(SAMPLES)], 1)
        return inputs + radius * (2 * draws.flatten(0, 1) - 1)

    def in_tuples(images, target):  # captum hands over a tuple first and a tensor afterwards
        return (product(images[0], target),) if isinstance(images, tuple) else product(images, target)

    expected = sensitivity_max(in_tuples, images, perturb_func=same_noise, perturb_radius=RADIUS, n_perturb_samples=SAMPLES,
                               target=targets)  # fmt: skip
    found = hp.score(net, images, product(images, targets), metric="max_sensitivity", targets=targets, explain=product,
                     keys=keys, samples=SAMPLES, radius=RADIUS, units="normalized")  # fmt: skip
    assert torch.allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("build", [TinyCNN, TinyViT])
@pytest.mark.parametrize("steps", [7, 50])
def test_integrated_gradients(build, steps):
    model, images, targets = build().double().eval(), torch.randn(2, 3, 32, 32).double(), [2, 0]
    baseline = torch.randn(1, 3, 32, 32).double()
    # captum's trapezoid takes the ends; the middle of each step is its "riemann_middle"
    peer = IntegratedGradients(model).attribute(
        images, baseline.expand_as(images), target=targets, n_steps=steps, method="riemann_middle"
    )
    found = hp.explain(model, images, targets, method="integrated_gradients", baseline=baseline, steps=steps)
    torch.testing.assert_close(found, peer.sum(1).float(), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("build", [TinyCNN, TinyViT])
def test_gradients(build):
    model, images, targets = build().eval(), torch.randn(2, 3, 32, 32), [2, 0]
    saliency = Saliency(model).attribute(images.clone(), target=targets).amax(1)
    torch.testing.assert_close(hp.explain(model, images, targets, method="saliency"), saliency, atol=1e-6, rtol=1e-4)
    product = InputXGradient(model).attribute(images.clone(), target=targets).sum(1).detach()
    found = hp.explain(model, images, targets, method="input_x_gradient")
    torch.testing.assert_close(found, product, atol=1e-6, rtol=1e-4)


class Plain(nn.Module):
    """What captum's LRP can serve: modules that are used once."""

    def __init__(self, bias):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 3, padding=1, bias=bias), nn.Conv2d(6, 4, 3, stride=2, bias=bias)
        self.relu1, self.relu2, self.relu3, self.pool = nn.ReLU(), nn.ReLU(), nn.ReLU(), nn.MaxPool2d(2)
        self.dense, self.head = nn.Linear(36, 8, bias=bias), nn.Linear(8, 3)

    def forward(self, x):
        x = self.relu2(self.conv2(self.pool(self.relu1(self.conv1(x)))))
        return self.head(self.relu3(self.dense(x.flatten(1))))


# Theirs, ours, whether the layers may have biases. Captum clamps weights alone, which is right where activations are not
# negative; its γ rule leaves the bias as it is, and its α1β0 rule takes a bias of either sign into the denominator.
LRP_RULES = {
    "epsilon": (lambda: EpsilonRule(0.1), Epsilon(0.1), True),
    "gamma": (lambda: GammaRule(0.5), Gamma(0.5), False),
    "z plus": (lambda: Alpha1_Beta0_Rule(), z_plus(), False),
    "z plus without biases": (lambda: Alpha1_Beta0_Rule(set_bias_to_zero=True), z_plus(bias=False), True),
}


@pytest.mark.parametrize("name", LRP_RULES)
def test_lrp(name):
    theirs, rule, bias = LRP_RULES[name]
    model, images, targets = Plain(bias).double().eval(), torch.rand(3, 3, 16, 16).double(), [2, 0, 1]
    for part in (model.conv1, model.conv2, model.dense):
        part.rule = theirs()
    model.pool.rule, model.head.rule = EpsilonRule(1e-25), EpsilonRule(0.2)
    peer = LRP(model).attribute(images.clone(), target=targets).detach()
    preset = composite(conv=rule, dense=rule, last=Epsilon(0.2))
    found = hp.explain(model, images, targets, method="lrp", preset=preset)
    torch.testing.assert_close(found, peer.sum(1).float(), atol=1e-6 * float(peer.abs().max()), rtol=1e-4)
    assert (peer != 0).any((1, 2, 3)).all()
