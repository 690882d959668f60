"""FullGrad against the authors' formula, with every bias as an image of its own, and against the score itself."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import heatproof as hp
from heatproof.errors import RelevanceGapWarning, UnsupportedModelError
from heatproof.explainers.full_gradient import Parts
from support.nets import TinyCNN

Sums = list[tuple[Tensor, Tensor]]


class Net(nn.Module):
    """Everything that adds a number: convolutions, batch norms, a normalisation of its own, dense layers, a skip."""

    def __init__(self, *, inplace: bool = False, activation: Callable[[Tensor], Tensor] = F.relu) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(2, 5, 3, padding=1), nn.BatchNorm2d(5)
        self.conv2, self.bn2 = nn.Conv2d(5, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5)
        self.hidden, self.head = nn.Linear(5, 7), nn.Linear(7, 3)
        self.inplace, self.activation = inplace, activation
        for norm in (self.bn1, self.bn2):
            nn.init.normal_(norm.running_mean)
            nn.init.uniform_(norm.running_var, 0.5, 1.5)
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = (x - 0.3) / 0.7
        x = self.bn1(self.conv1(x))
        x = F.max_pool2d(F.relu_(x) if self.inplace else self.activation(x), 2)
        y = self.bn2(self.conv2(x))
        x = x + (F.relu(y, inplace=True) if self.inplace else F.leaky_relu(self.activation(y), 0.2))
        return self.head(torch.relu(self.hidden(x.mean((2, 3)))))


def written_out(net: Net, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The logits of one image, and beside it every number that the network adds, one for each place where it is added."""
    added: list[Tensor] = []

    def plus(z: Tensor, number: Tensor) -> Tensor:
        added.append(number.detach().expand(z.shape).clone().requires_grad_())
        return z + added[-1]

    def norm(x: Tensor, bn: nn.BatchNorm2d) -> Tensor:
        slope = (bn.weight / (bn.running_var + bn.eps).sqrt())[:, None, None]
        return plus(slope * x, bn.bias[:, None, None] - slope * bn.running_mean[:, None, None])

    z = plus(x, torch.tensor(-0.3, dtype=x.dtype)) / 0.7
    z = plus(F.conv2d(z, net.conv1.weight, padding=1), net.conv1.bias[:, None, None])
    z = F.max_pool2d(F.relu(norm(z, net.bn1)), 2)
    y = norm(F.conv2d(z, net.conv2.weight, padding=1), net.bn2)
    z = z + (F.relu(y) if net.inplace else F.leaky_relu(F.relu(y), 0.2))
    z = F.relu(plus(z.mean((2, 3)) @ net.hidden.weight.T, net.hidden.bias))
    return plus(z @ net.head.weight.T, net.head.bias), added


def by_hand(net: Net, image: Tensor, target: int) -> tuple[Tensor, Tensor]:
    """The map `[H, W]` of one image `[C, H, W]`, and what its parts sum to."""
    x = image[None].clone().requires_grad_()
    logits, added = written_out(net, x)
    gradients = torch.autograd.grad(logits[0, target], [x, *added])
    parts = [value.detach() * gradient for value, gradient in zip([x, *added], gradients, strict=True)]
    found = torch.zeros(image.shape[1:], dtype=image.dtype)
    for part in parts:
        if part.ndim == 4:
            size = part[0].abs()
            scaled = (size - size.min()) / (size.max() - size.min())
            for channel in scaled:
                found += F.interpolate(channel[None, None], image.shape[1:], mode="bilinear", align_corners=False)[0, 0]
    return found, sum(part.sum() for part in parts)


@pytest.fixture
def sums(monkeypatch: pytest.MonkeyPatch) -> Sums:
    """What the parts of each score sum to, beside the score."""
    seen: Sums = []
    monkeypatch.setattr(Parts, "check", lambda self, score: seen.append((self.total, score)))
    return seen


def explain(net: nn.Module, images: Tensor, targets: Any, **options: Any) -> Tensor:
    return hp.explain(net, images, targets, method="fullgrad", **options)


@pytest.mark.parametrize("inplace", [False, True])
def test_against_the_formula(sums: Sums, *, inplace: bool) -> None:
    net, images = Net(inplace=inplace).double().eval(), torch.randn(3, 2, 6, 8, dtype=torch.float64)
    targets = [[0, 2], [1, 0], [2, 1]]
    found = explain(net, images, targets)
    for n, row in enumerate(targets):
        for t, target in enumerate(row):
            expected, total = by_hand(net, images[n], target)
            torch.testing.assert_close(found[n, t], expected.float(), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(total, net(images)[n, target])
            torch.testing.assert_close(sums[t][0][n], total, rtol=1e-9, atol=1e-9)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.3),
    "prelu": lambda x: F.prelu(x, torch.full((5,), 0.1).double()),
    "silu": F.silu,
    "gelu": F.gelu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softplus": F.softplus,
    "elu": F.elu,
    "relu6": lambda x: F.relu6(3 * x),
    "hardtanh": F.hardtanh,
    "hardswish": F.hardswish,
    "clamp": lambda x: x.clamp(0.2, 0.9),
    "threshold": lambda x: F.threshold(x, 0.1, 0.4),
    "abs": torch.abs,
    "square": torch.square,
    "exp": torch.exp,
    "plus one": lambda x: x + 1,
    "one less": lambda x: 1 - x,
    "less two": lambda x: torch.sub(x, torch.ones(1).double(), alpha=2),
    "moved": lambda x: torch.add(torch.full((5, 1, 1), 0.5).double(), x, alpha=3),
}


@pytest.mark.parametrize("name", list(ACTIVATIONS))
@pytest.mark.parametrize("against", [None, 0])
def test_all_parts_sum_to_the_score(name: str, against: int | None, sums: Sums) -> None:
    """Also with activations that do not pass through 0, or saturate."""
    net = Net(activation=ACTIVATIONS[name]).double().eval()
    images = torch.randn(4, 2, 6, 8, dtype=torch.float64)
    explain(net, images, [1, 2, 1, 2], against=against)
    logits = net(images)
    expected = logits[range(4), [1, 2, 1, 2]] - (0 if against is None else logits[:, 0])
    ((total, score),) = sums
    torch.testing.assert_close(score, expected.detach())
    torch.testing.assert_close(total, expected.detach(), rtol=1e-9, atol=1e-9)


def test_all_parts_sum_to_the_score_of_a_network_with_other_layers(sums: Sums) -> None:
    """Padding, pooling, upsampling, a transposed convolution, a product with constants, a bias of several axes."""

    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.head = nn.ConvTranspose2d(2, 3, 2, 2), nn.Linear(3, 2)
            self.place = nn.Parameter(torch.randn(3, 6, 8))
            self.bn = nn.BatchNorm1d(3)
            nn.init.normal_(self.bn.running_mean)

        def forward(self, x: Tensor) -> Tensor:
            x = F.avg_pool2d(F.pad(self.up(x), (1, 1, 1, 1)), 3, 1) + self.place
            x = F.interpolate(torch.cat([x[:, :1].relu(), x[:, 1:] * 2], 1), scale_factor=2, mode="bilinear")
            x = self.bn(F.adaptive_max_pool2d(x, 1).flatten(1))
            return torch.addmm(self.head.bias, x, self.head.weight.T)

    net, images = Other().double().eval(), torch.randn(3, 2, 3, 4, dtype=torch.float64)
    found = explain(net, images, [0, 1, 0])
    assert found.isfinite().all()
    ((total, score),) = sums
    torch.testing.assert_close(score, net(images)[range(3), [0, 1, 0]].detach())
    torch.testing.assert_close(total, score, rtol=1e-9, atol=1e-9)


def test_a_network_whose_biases_are_gone_is_the_gradient_times_the_image() -> None:
    net = nn.Sequential(nn.Conv2d(1, 3, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2, bias=False)).eval()
    images = torch.rand(3, 1, 4, 4)
    found = explain(net, images, [0, 1, 0])
    size = hp.explain(net, images, [0, 1, 0], method="input_x_gradient").abs()
    low, high = size.amin((1, 2), keepdim=True), size.amax((1, 2), keepdim=True)
    torch.testing.assert_close(found, (size - low) / (high - low))


class Behind(TinyCNN):
    """A convolution behind the average."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(F.relu(self.bn1(self.conv1(x))), 1)
        return self.head(self.last(x).flatten(1))


def test_a_part_without_a_place_is_not_in_the_map() -> None:
    """Biases behind the average change the score, and where they come from cannot be said."""
    net, images = Behind().eval(), torch.rand(2, 3, 8, 8)
    before = explain(net, images, [0, 1])
    net.head.bias.data += 5
    net.last.bias.data += torch.arange(8.0)
    torch.testing.assert_close(explain(net, images, [0, 1]), before)


class Gated(TinyCNN):
    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x))
        return self.head((x * torch.sigmoid(x)).mean((2, 3)))


class Normed(TinyCNN):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.group_norm(self.conv1(x), 2).relu().mean((2, 3)))


class OfTheBatch(TinyCNN):
    def __init__(self) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(8, track_running_stats=False)


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (Gated, "'mul'.*multiplies two things that depend on the image.*'fullgrad'"),
        (Normed, "'group_norm'.*not linear in the image.*'fullgrad'"),
        (OfTheBatch, "'batch_norm'.*takes its statistics from the batch.*'fullgrad'"),
    ],
)
def test_where_it_is_not_defined_it_is_refused(kind: type[TinyCNN], why: str) -> None:
    net, images = kind().eval(), torch.rand(2, 3, 8, 8)
    with pytest.raises(UnsupportedModelError, match=why):
        explain(net, images, [0, 1])
    with pytest.warns(RelevanceGapWarning):
        assert explain(net, images, [0, 1], strict=False).isfinite().all()


class AtLeast(TinyCNN):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.maximum(self.conv1(x), torch.tensor(0.5)).mean((2, 3)))


class Padded(TinyCNN):
    """With a little of something."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.pad(self.conv1(x), (1, 1, 1, 1), value=0.02).mean((2, 3)))


@pytest.mark.parametrize("kind", [AtLeast, Padded])
def test_numbers_that_come_in_unseen_are_an_error(kind: type[TinyCNN]) -> None:
    net, images = kind().eval(), torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        net.head.weight.abs_()
    with pytest.raises(
        UnsupportedModelError, match="do not make up the score: it is .*, the parts sum to .*input_x_grad"
    ):
        explain(net, images, [0, 1])
    assert explain(net, images, [0, 1], strict=False).isfinite().all()


class Overwritten(TinyCNN):
    """Nothing of the first convolution is left."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(x)
        y.copy_(F.conv2d(x, self.conv1.weight, padding=1))
        return self.head(torch.relu(y).mean((2, 3)))


def test_what_is_written_over_has_no_part(sums: Sums) -> None:
    net, images = Overwritten().double().eval(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    explain(net, images, [0, 1])
    ((total, score),) = sums
    torch.testing.assert_close(score, net(images)[[0, 1], [0, 1]].detach())
    torch.testing.assert_close(total, score, rtol=1e-9, atol=1e-9)
