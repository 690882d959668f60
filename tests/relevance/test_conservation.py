"""Where relevance goes: what arrives and what biases absorb is what was given."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from heatproof.relevance import Preset, presets, run
from support.nets import TinyCNN


class Residual(nn.Module):
    """A stage of a ResNet: two branches, batch norm everywhere, no other biases."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.stem, self.left = nn.Conv2d(3, width, 3, bias=False), nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.shortcut, self.head = nn.Conv2d(width, width, 1, bias=False), nn.Linear(width, 3, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norms[0](self.stem(x)).relu()
        x = (self.norms[1](self.left(x)) + self.norms[2](self.shortcut(x))).relu()
        return self.head(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))


def densenet() -> nn.Module:
    from monai.networks.nets import DenseNet121

    return DenseNet121(spatial_dims=2, in_channels=3, out_channels=3)


def shifted_down(model: nn.Module) -> nn.Module:
    """Batch norms of trained sizes whose shifts are not positive, and no other bias: nothing absorbs under z⁺."""
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.running_mean, 0, 0.3)
            nn.init.uniform_(part.running_var, 0.5, 2)
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.uniform_(part.bias, -0.2, 0)
        elif isinstance(part, nn.Linear) and part.bias is not None:
            nn.init.zeros_(part.bias)
    return model.double().eval()


@pytest.mark.parametrize("build", [Residual, densenet])
@pytest.mark.parametrize("preset", [presets.lrp_zplus(), presets.deep_taylor(torch.tensor(-2.0), torch.tensor(2.0))])
def test_zplus_conserves_relevance_through_batch_norms(build: Callable[[], nn.Module], preset: Preset) -> None:
    """With batch norms left to ε, the same sum on DenseNet-121 is far from 1."""
    model, x = shifted_down(build()), torch.rand(2, 3, 32, 32, dtype=torch.float64) * 4 - 2
    passed = run(model, x, preset)
    found = passed.relevance(passed.logits[:, 1])
    torch.testing.assert_close(found.flatten(1).sum(1), torch.ones(2).double())
    assert (found >= 0).all()


def test_what_does_not_arrive_under_zplus_is_what_biases_absorb() -> None:
    """Two layers by hand: the bias's share of each neuron is its positive part over the positive sum."""
    first, second, x = nn.Linear(6, 5).double(), nn.Linear(5, 3).double(), torch.randn(4, 6, dtype=torch.float64)
    passed = run(nn.Sequential(first, nn.ReLU(), second), x, presets.lrp_zplus())
    arrived = passed.relevance(passed.logits[:, 1]).sum(1)
    hidden = first(x).relu().detach()
    upper = hidden * second.weight[1].detach().clamp(min=0)
    share_upper = upper / (upper.sum(1, keepdim=True) + second.bias[1].clamp(min=0)).detach()
    parts = (x[:, None] * first.weight.detach()).clamp(min=0).sum(2)
    kept = parts / (parts + first.bias.detach().clamp(min=0))
    torch.testing.assert_close(arrived, (share_upper * kept).sum(1).detach())


def test_alpha_beta_conserves_where_both_signs_meet() -> None:
    """With contributions of both signs at every neuron and no biases, nothing is created and nothing lost."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4, bias=False))
    net, x = net.double().eval(), torch.randn(3, 3, 8, 8, dtype=torch.float64)
    passed = run(net, x, presets.lrp_alpha_beta())
    found = passed.relevance(passed.logits[:, 0])
    torch.testing.assert_close(found.flatten(1).sum(1), torch.ones(3).double())


def test_a_network_with_biases_of_both_signs_neither_creates_nor_turns_relevance_under_zplus() -> None:
    passed = run(TinyCNN().eval(), torch.randn(4, 3, 32, 32), presets.lrp_zplus())
    for target in range(3):
        found = passed.relevance(passed.logits[:, target])
        assert (found >= -1e-7).all()
        assert (found.flatten(1).sum(1) < 1.0001).all()


def test_a_vanishing_part_passes_nothing_in_single_precision() -> None:
    """Neurons that see negative contributions only have P = 0, and rounding noise in practice."""
    first, second = nn.Linear(333, 50, bias=False), nn.Linear(50, 1, bias=False)
    x = torch.rand(4, 333) + 0.5
    with torch.no_grad():
        first.weight[:25] = -torch.rand(25, 333)
        second.weight.uniform_(-1, 1)
    net, maps = nn.Sequential(first, second), []
    for dtype in (torch.float32, torch.float64):
        passed = run(net.to(dtype), x.to(dtype), presets.lrp_alpha_beta())
        maps.append(passed.relevance(passed.logits[:, 0]).double())
    torch.testing.assert_close(*maps, atol=1e-5 * float(maps[1].abs().max()), rtol=1e-4)
