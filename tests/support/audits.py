"""What the tests of the audit share."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from heatproof.relevance import Account, Audit


class Whole(nn.Module):
    """A function as a model, with parts whose parameters have names."""

    def __init__(self, function: Callable[[Tensor], Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.function = function
        self.parts = nn.ModuleDict(parts)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def numbers(account: Account) -> tuple[float, ...]:
    """received, passed, absorbed, leak"""
    return tuple(float(v) for v in (account.received, account.passed, account.absorbed_in_all, account.leak))


def assert_all_is_accounted_for(found: Audit, tolerance: float = 1e-9) -> None:
    """What was given arrived, was absorbed, or is among the leaks: nothing went by unseen."""
    expected = found.start - found.absorbed + found.created - found.lost
    sizes = torch.maximum(found.start.abs(), found.relevance.double().abs().flatten(1).sum(1))
    assert ((found.at_input - expected).abs() <= tolerance * sizes).all()


def ones(*shape: int) -> Tensor:
    return torch.ones(shape, dtype=torch.float64)


def lively(model: nn.Module) -> nn.Module:
    """Non-zero biases, shifts and running statistics everywhere."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if name.endswith(("bias", "running_mean")):
            nn.init.uniform_(tensor, -0.2, 0.2)
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.uniform_(part.running_var, 0.5, 2)
    return model.eval()
