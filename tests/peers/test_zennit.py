"""LRP as zennit has it, on networks that zennit can serve: VGG-like and ResNet-like, batch norms merged by its canonizer."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from zennit.canonizers import NamedMergeBatchNorm, SequentialMergeBatchNorm
from zennit.composites import (
    EpsilonAlpha2Beta1,
    EpsilonAlpha2Beta1Flat,
    EpsilonGammaBox,
    EpsilonPlus,
    EpsilonPlusFlat,
    ExcitationBackprop,
    LayerMapComposite,
    NameMapComposite,
    SpecialFirstLayerMapComposite,
)
from zennit.core import BasicHook, Hook
from zennit.layer import Sum
from zennit.rules import AlphaBeta, Epsilon, Flat, Gamma, Pass, WSquare, ZBox, ZPlus
from zennit.types import Activation, AvgPool, Convolution, Linear

import heatproof as hp
from heatproof import relevance as ours
from heatproof.relevance import Preset, composite, linear, presets, run

TINY = 1e-25  # zennit adds it to every denominator
LOW, HIGH = -2.0, 2.0
BOX = torch.tensor(LOW), torch.tensor(HIGH)

# zennit's rule, ours. Its w² rule counts the bias as a weight of its own unless told otherwise.
RULES: dict[str, tuple[BasicHook, ours.linear.AnyRule]] = {
    "epsilon": (Epsilon(0.2), ours.Epsilon(0.2)),
    "gamma": (Gamma(0.25, TINY), ours.Gamma(0.25)),
    "gamma 3": (Gamma(3.0, TINY), ours.Gamma(3.0)),
    "z plus": (ZPlus(TINY), ours.z_plus()),
    "z plus without bias": (ZPlus(TINY, zero_params="bias"), ours.z_plus(bias=False)),
    "alpha 2 beta 1": (AlphaBeta(2, 1, TINY), ours.AlphaBeta(2, 1)),
    "alpha 3 beta 2 without bias": (AlphaBeta(3, 2, TINY, zero_params="bias"), ours.AlphaBeta(3, 2, bias=False)),
    "z-box": (ZBox(LOW, HIGH, TINY), ours.ZBox(*BOX)),
    "w square": (WSquare(TINY, zero_params="bias"), ours.WSquare()),
    "flat": (Flat(TINY), ours.Flat()),
}
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(108, 9)),
    "conv": lambda: nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Flatten()),
    "grouped conv": lambda: nn.Sequential(nn.Conv2d(3, 6, (2, 3), groups=3, dilation=2, bias=False), nn.Flatten()),
    "transposed conv": lambda: nn.Sequential(nn.ConvTranspose2d(3, 2, 3, stride=2, padding=1), nn.Flatten()),
}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("name", RULES)
def test_each_rule(name: str, layer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64 to rounding, in float32 to 1e-4; inputs, outputs and the relevance that comes have both signs."""
    theirs, rule = RULES[name]
    bottom, images = LAYERS[layer](), torch.empty(3, 3, 6, 6).uniform_(LOW, HIGH)
    weighted = next(i for i, part in enumerate(bottom) if not isinstance(part, nn.Flatten))
    model = nn.Sequential(*bottom, nn.Linear(bottom(images).shape[1], 5, bias=False)).eval()
    hooks = NameMapComposite([((str(weighted),), theirs), (("2",), Epsilon(TINY))])
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.float64, 1e-9)):
        if dtype == torch.float64:  # a denominator that nearly vanishes counts as 0 here; zennit divides
            monkeypatch.setattr(linear, "VANISHING", 1e-12)
        model, images = model.to(dtype), images.to(dtype)
        leaf = images.clone().requires_grad_()
        with hooks.context(model) as changed:
            logits = changed(leaf)
            (peer,) = torch.autograd.grad(logits, leaf, logits.detach() * torch.eye(5, dtype=dtype)[[1, 4, 0]])
        found = our_maps(model, images, [1, 4, 0], composite(first=rule, last=ours.Zero()))
        torch.testing.assert_close(found, peer, atol=tolerance * float(peer.abs().max()), rtol=tolerance)


@pytest.mark.parametrize("epsilon", [1e-6, 0.1, 1.0])
def test_lrp_epsilon(epsilon: float) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 49, 5)
    ).eval()  # fmt: skip
    images = torch.randn(2, 3, 16, 16)
    their_rules = [(Activation, Pass()), (Convolution, Epsilon(epsilon)), (Linear, Epsilon(epsilon))]
    leaf = images.clone().requires_grad_()
    with LayerMapComposite(their_rules).context(model) as changed:
        logits = changed(leaf)
        (peer,) = torch.autograd.grad(logits, leaf, logits.detach() * torch.eye(5)[[1, 4]])
    maps = hp.explain(model, images, [1, 4], method="lrp_epsilon", epsilon=epsilon)
    torch.testing.assert_close(maps, peer.sum(1), atol=1e-4 * float(peer.abs().max()), rtol=1e-4)


class VGG(nn.Sequential):  # eps=0, because the canonizer merges eps and divides by its root once more
    """Convolution, batch norm, ReLU, max pool, twice; a dense head of two layers."""

    merging = SequentialMergeBatchNorm

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8, eps=0), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(8, 12, 3, stride=2, groups=2), nn.BatchNorm2d(12, eps=0), nn.ReLU(),
            nn.Flatten(), nn.Linear(12 * 9, 20), nn.ReLU(), nn.Linear(20, 5),
        )  # fmt: skip


class ResNet(nn.Module):
    """A stem, a block with a projected shortcut, an average pool; sums as zennit wants them, in a module."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8, eps=0)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8, eps=0)
        self.conv3, self.bn3 = nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8, eps=0)
        self.relu1, self.relu2, self.sum = nn.ReLU(), nn.ReLU(), Sum()
        self.pool, self.flat, self.head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)

    @staticmethod
    def merging() -> NamedMergeBatchNorm:
        return NamedMergeBatchNorm([([f"conv{n}"], f"bn{n}") for n in (1, 2, 3)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu1(self.bn1(self.conv1(x)))
        branches = torch.stack([self.bn2(self.conv2(x)), self.bn3(self.conv3(x))], -1)
        return self.head(self.flat(self.pool(self.relu2(self.sum(branches)))))


def trained(model: nn.Module) -> nn.Module:
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            for tensor, low, high in (
                (part.running_mean, -0.3, 0.3),
                (part.running_var, 0.5, 2),
                (part.weight, -1.5, 1.5),
                (part.bias, -0.3, 0.3),
            ):
                nn.init.uniform_(tensor, low, high)  # fmt: skip
    return model.eval()


class SumOfBranches(Hook):
    """αβ for zennit's `Sum`: the two branches are the contributions."""

    def __init__(self, alpha: float, beta: float) -> None:
        super().__init__()
        self.alpha, self.beta = alpha, beta

    def forward(self, module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        self.stored_tensors["input"] = inputs

    def backward(self, module: nn.Module, grad_input: tuple[Tensor], grad_output: tuple[Tensor]) -> tuple[Tensor]:
        (branches,) = self.stored_tensors["input"]
        shared = torch.zeros_like(branches)
        for part, share in ((branches.clamp(min=0), self.alpha), (branches.clamp(max=0), -self.beta)):
            total = part.sum(-1, keepdim=True)
            shared += torch.where(total == 0, 0.0, share * part / total) * grad_output[0][..., None]
        return (shared,)

    def copy(self) -> "SumOfBranches":
        return SumOfBranches(self.alpha, self.beta)


class PoolOfPositives(SumOfBranches):
    """αβ for an average pool whose inputs are not negative: N is 0, so that it passes αR, by the inputs' shares."""

    def backward(self, module: nn.Module, grad_input: tuple[Tensor], grad_output: tuple[Tensor]) -> tuple[Tensor]:
        (x,) = self.stored_tensors["input"]
        total = x.sum((2, 3), keepdim=True)
        return (torch.where(total == 0, 0.0, self.alpha * x / total) * grad_output[0],)

    def copy(self) -> "PoolOfPositives":
        return PoolOfPositives(self.alpha, self.beta)


def peer_maps(
    model: nn.Module, images: Tensor, targets: list[int], rule: BasicHook, alpha: float, first: list
) -> Tensor:
    branches, pool = SumOfBranches(alpha, alpha - 1), PoolOfPositives(alpha, alpha - 1)
    their_rules = [(Activation, Pass()), (Sum, branches), (AvgPool, pool), (Convolution, rule), (Linear, rule)]
    composite = SpecialFirstLayerMapComposite(their_rules, first, canonizers=[model.merging()])
    leaf = images.clone().requires_grad_()
    with composite.context(model) as changed:
        logits = changed(leaf)
        (peer,) = torch.autograd.grad(logits, leaf, torch.eye(5, dtype=images.dtype)[targets])
    return peer


def our_maps(model: nn.Module, images: Tensor, targets: list[int], preset: Preset) -> Tensor:
    passed = run(model, images, preset)
    return passed.relevance(passed.logits.gather(1, torch.tensor(targets)[:, None])[:, 0])


CASES = {
    "zplus": (1.0, lambda *_: presets.lrp_zplus()),
    "alpha 2 beta 1": (2.0, lambda *_: presets.lrp_alpha_beta(2, 1)),
    "alpha 3 beta 2": (3.0, lambda *_: presets.lrp_alpha_beta(3, 2)),
    "z-box": (1.0, presets.deep_taylor),
}


@pytest.mark.parametrize("build", [VGG, ResNet])
@pytest.mark.parametrize("name", CASES)
def test_signed_rules(build: Callable[[], nn.Module], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """To rounding in double precision; in single precision all but what stands on a nearly vanishing denominator.

    There such a denominator counts as 0 here; in double precision the comparison can do without.
    """
    model, images, targets = trained(build()), torch.rand(3, 3, 16, 16) * 4 - 2, [1, 4, 0]
    alpha, preset = CASES[name]
    for dtype in (torch.float32, torch.float64):
        model, images = model.to(dtype), images.to(dtype)
        low, high = torch.full_like(images, -2), torch.full_like(images, 2)
        rule = AlphaBeta(alpha, alpha - 1, TINY) if "alpha" in name else ZPlus(TINY)
        first = [(Convolution, ZBox(low, high, TINY))] if name == "z-box" else []
        if dtype == torch.float64:
            monkeypatch.setattr(linear, "VANISHING", 1e-12)
        found = our_maps(model, images, targets, preset(low, high))
        peer = peer_maps(model, images, targets, rule, alpha, first)
        errors = (found - peer).abs().flatten() / peer.abs().max()
        if dtype == torch.float64:
            assert errors.max() < 1e-11
        else:
            assert errors.quantile(0.97) < 1e-5


EPSILON = 0.1
Z_PLUS, ALPHA_2_BETA_1, DENSE = ours.z_plus(), ours.AlphaBeta(2, 1), ours.Epsilon(EPSILON)
# zennit's composite and ours. Both leave sums of branches and average pools to the ε rule, but for excitation backprop:
# ours is z⁺ in sums, too, and ignores biases, which zennit's lets absorb unless told otherwise.
COMPOSITES: dict[str, tuple[Callable[..., LayerMapComposite], Preset]] = {
    "epsilon gamma box": (
        lambda **options: EpsilonGammaBox(LOW, HIGH, EPSILON, 0.4, TINY, **options),
        presets.lrp_composite(ours.ZBox(*BOX), gamma=0.4, epsilon=EPSILON),
    ),
    "epsilon plus": (lambda **o: EpsilonPlus(EPSILON, TINY, **o), composite(conv=Z_PLUS, dense=DENSE)),
    "epsilon plus flat": (
        lambda **options: EpsilonPlusFlat(EPSILON, TINY, **options),
        composite(conv=Z_PLUS, dense=DENSE, first=ours.Flat()),
    ),
    "epsilon alpha 2 beta 1": (
        lambda **options: EpsilonAlpha2Beta1(EPSILON, TINY, **options),
        composite(conv=ALPHA_2_BETA_1, dense=DENSE),
    ),
    "epsilon alpha 2 beta 1 flat": (
        lambda **options: EpsilonAlpha2Beta1Flat(EPSILON, TINY, **options),
        composite(conv=ALPHA_2_BETA_1, dense=DENSE, first=ours.Flat()),
    ),
    "excitation backprop": (
        lambda **options: ExcitationBackprop(TINY, [(Sum, SumOfBranches(1, 0))], zero_params="bias", **options),
        presets.excitation_backprop(),
    ),
}


@pytest.mark.parametrize("build", [VGG, ResNet])
@pytest.mark.parametrize("name", COMPOSITES)
def test_composites(build: Callable[[], nn.Module], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """To rounding in double precision, and to 1e-4 in single precision, but for nearly vanishing denominators."""
    model, images = trained(build()), torch.empty(3, 3, 16, 16).uniform_(LOW, HIGH)
    theirs, preset = COMPOSITES[name]
    for dtype in (torch.float32, torch.float64):
        if dtype == torch.float64:
            monkeypatch.setattr(linear, "VANISHING", 1e-12)
        model, images = model.to(dtype), images.to(dtype)
        leaf = images.clone().requires_grad_()
        with theirs(canonizers=[model.merging()]).context(model) as changed:
            logits = changed(leaf)
            start = torch.ones_like(logits) if preset.start == "one" else logits.detach()
            (peer,) = torch.autograd.grad(logits, leaf, start * torch.eye(5, dtype=dtype)[[1, 4, 0]])
        errors = (our_maps(model, images, [1, 4, 0], preset) - peer).abs().flatten() / peer.abs().max()
        if dtype == torch.float64:
            assert errors.max() < 1e-9
        else:
            assert errors.quantile(0.97) < 1e-4
