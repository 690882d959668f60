"""Ablation-CAM against its formula: one changed pass after the other, in double precision, from the features on."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import heatproof as hp
from heatproof.errors import UnsupportedModelError
from heatproof.probing import bf16_supported
from support.attention_replica import attention_of
from support.nets import TinyCNN, TinyViT

Tail = Callable[[Tensor], Tensor]  # features [1, D, h, w] -> logits [1, classes]


def by_hand(tail: Tail, features: Tensor, target: int) -> Tensor:
    """The weighted features of one image, `[D, h, w]`."""
    whole = tail(features)[0, target]
    found = torch.zeros_like(features[0])
    for k in range(features.shape[1]):
        without = features.clone()
        without[0, k] = 0
        found[k] = (whole - tail(without)[0, target]) / abs(whole) * features[0, k]
    return found


def expected_maps(tail: Tail, features: Tensor, targets: list[list[int]]) -> Tensor:
    """`[B, T, h, w]`."""
    maps = [
        torch.stack([by_hand(tail, one[None], target).sum(0).clamp(min=0) for target in row])
        for one, row in zip(features, targets, strict=True)
    ]
    return torch.stack(maps).detach().float()


def explain(net: nn.Module, images: Tensor, targets: Any, **options: Any) -> Tensor:
    return hp.explain(net, images, targets, method="ablationcam", resolution="native", **options)


def assert_same(found: Tensor, expected: Tensor) -> None:
    assert (expected > 0).any(), "maps of zeros would tell nothing"
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.max()))


class Head(nn.Module):
    """Features under two dense layers, so that a channel's worth depends on the others."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.conv, self.act = nn.Conv2d(2, 6, 3, padding=1), nn.ReLU()
        self.hidden, self.head = nn.Linear(6 * 20, 7), nn.Linear(7, classes)

    def tail(self, features: Tensor) -> Tensor:
        return self.head(torch.tanh(self.hidden(features.flatten(1))))

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.act(self.conv(x)))


class InPlace(Head):
    """What makes the features writes over what was there before, and something else reads that before and after."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        before = x.mean()
        F.relu_(x)
        return self.tail(x) + before


class Skip(Head):
    """The features are a view, and what they are a view of is read once more."""

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(x))
        return self.tail(x.view(len(x), 6, 4, 5)) + x.amax((2, 3))[:, :4]


EVERY = [[0, 1, 2, 3], [3, 2, 1, 0], [1, 1, 2, 0]]


@pytest.mark.parametrize("layer", ["act", None])
@pytest.mark.parametrize("batch_size", [None, 1, 4])
def test_against_the_formula(layer: str | None, batch_size: int | None) -> None:
    net, images = Head().double().eval(), torch.randn(3, 2, 4, 5, dtype=torch.float64)
    net.head.bias.data[:2] = torch.tensor([3.0, -3.0])  # a negative score must not turn the sign of the map
    found = explain(net, images, EVERY, layer=layer, batch_size=batch_size)
    assert_same(found, expected_maps(net.tail, net.act(net.conv(images)), EVERY))


def test_a_contrast_is_the_difference_of_two_logits() -> None:
    net, images = Head().double().eval(), torch.randn(3, 2, 4, 5, dtype=torch.float64)
    found = explain(net, images, [[0], [1], [2]], against=3)

    def tail(features: Tensor) -> Tensor:
        return net.tail(features) - net.tail(features)[:, 3:]

    features = net.act(net.conv(images))
    torch.testing.assert_close(found, expected_maps(tail, features, [[0], [1], [2]]), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", [InPlace, Skip])
def test_nothing_but_the_features_is_changed(kind: type[Head]) -> None:
    """Neither what was there before they were written over it, nor what they are a view of."""
    net, images = kind().double().eval(), torch.randn(3, 2, 4, 5, dtype=torch.float64)
    for image in images.split(1):
        before = net.conv(image)
        features = torch.relu(before)
        beside = before.mean() if kind is InPlace else features.amax((2, 3))[:, :4]

        def tail(changed: Tensor, beside: Tensor = beside) -> Tensor:
            return net.tail(changed) + beside

        assert_same(explain(net, image, [[0, 1, 2, 3]]), expected_maps(tail, features, [[0, 1, 2, 3]]))


def test_features_that_no_module_returns() -> None:
    """The sum at the end of `TinyCNN`, with a dead channel."""
    net, images = TinyCNN().double().eval(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    net.head.weight.data[0].abs_()  # so that something speaks for class 0
    x = F.max_pool2d(F.relu(net.bn1(net.conv1(images))), 2)
    features = x + F.relu(net.bn2(net.conv2(x)))
    targets = [[0, 1, 2]] * 2
    assert_same(explain(net, images, targets), expected_maps(lambda x: net.head(x.mean((2, 3))), features, targets))


def test_of_a_transformer_channels_are_0_on_the_image_tokens_alone() -> None:
    net, images = TinyViT(depth=2).double().eval(), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        for block in net.blocks:
            block.attn.qkv.weight *= 4
    x = torch.cat([net.cls_token.expand(2, -1, -1), net.patch_embed["proj"](images).flatten(2).mT], 1) + net.pos_embed
    x = net.blocks[0](x)
    last, normed = net.blocks[1], net.blocks[1].norm1(x)
    targets, maps = [[0, 3], [4, 1]], []
    for n in range(2):

        def tail(cells: Tensor, n: int = n) -> Tensor:
            tokens = torch.cat([normed[n : n + 1, :1], cells.flatten(2).mT], 1)
            q, k, v = last.attn.qkv(tokens).unflatten(-1, (3, 3, -1)).permute(2, 0, 3, 1, 4)
            mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            y = x[n : n + 1] + last.attn.proj(mixed)
            y = y + last.mlp["fc2"](F.gelu(last.mlp["fc1"](last.norm2(y))))
            return net.head(net.norm(y)[:, 0])

        cells = normed[n : n + 1, 1:].mT.unflatten(2, (4, 4))
        torch.testing.assert_close(tail(cells), net(images[n : n + 1]))
        maps.append(expected_maps(tail, cells, targets[n : n + 1]))
    assert attention_of(last, x).shape[-1] == 17
    assert_same(explain(net, images, targets), torch.cat(maps))


class ChannelsLast(Head):
    """A module that returns a tuple, with the channels last."""

    class Stage(nn.Module):
        def __init__(self, conv: nn.Module) -> None:
            super().__init__()
            self.conv = conv

        def forward(self, x: Tensor) -> tuple[Tensor, str]:
            return torch.relu(self.conv(x)).permute(0, 2, 3, 1), "more"

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.hidden = nn.Conv2d(2, 16, 3, padding=1), nn.Linear(16 * 20, 7)
        self.stage = self.Stage(self.conv)

    def forward(self, x: Tensor) -> Tensor:
        x, more = self.stage(x)
        assert more == "more"
        return self.tail(x.permute(0, 3, 1, 2))


def test_features_with_channels_last_in_a_tuple() -> None:
    net, images = ChannelsLast().double().eval(), torch.randn(2, 2, 4, 5, dtype=torch.float64)
    targets = [[0, 1, 2, 3]] * 2
    expected = expected_maps(net.tail, torch.relu(net.conv(images)), targets)
    assert_same(explain(net, images, targets, layer="stage"), expected)


def test_a_score_of_0_has_no_map_and_leaves_the_others_alone() -> None:
    net, images = Head().double().eval(), torch.randn(2, 2, 4, 5, dtype=torch.float64)
    with torch.no_grad():
        net.head.weight[2], net.head.bias[2] = 0, 0
    found = explain(net, images, [[2, 0]] * 2)
    assert found[:, 0].isnan().all()
    features = net.act(net.conv(images))
    torch.testing.assert_close(found[:, 1:], expected_maps(net.tail, features, [[0]] * 2), rtol=1e-4, atol=1e-6)


def test_a_score_of_0_has_no_map_whatever_is_lost() -> None:
    """Of one channel, the whole score: its share would be infinite."""
    net = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2)).eval()
    with torch.no_grad():
        net[0].weight.fill_(1)
        net[3].weight.fill_(1)
        net[3].bias.copy_(torch.tensor([-6.0, 1.0]))
    image = torch.tensor([[[[1.0, 2.0], [3.0, 0.0]]]])
    found = explain(net, image, [[0, 1]], layer="1")
    assert found[0, 0].isnan().all()
    torch.testing.assert_close(found[0, 1], image[0, 0] * 6 / 7)


def test_smoothing() -> None:
    net, images = Head().double().eval(), torch.randn(2, 2, 4, 5, dtype=torch.float64)
    found = explain(net, images, [1, 1], eigen_smooth=True)
    for n, features in enumerate(net.act(net.conv(images))):
        weighted = by_hand(net.tail, features[None], 1)
        cells = weighted.flatten(1).mT
        centred = cells - cells.mean(0)
        projected = (centred @ torch.linalg.eigh(centred.mT @ centred)[1][:, -1]).view(4, 5)
        projected = projected * torch.sign((projected * weighted.sum(0)).sum())
        torch.testing.assert_close(found[n], projected.clamp(min=0).float(), rtol=1e-4, atol=1e-5)
    versions = [(f * images, 1) for f in (0.9, 1.0, 1.1)] + [(f * images.flip(3), -1) for f in (0.9, 1.0, 1.1)]
    maps = [explain(net, version, [1, 1]) for version, _ in versions]
    turned = [m if way == 1 else m.flip(2) for m, (_, way) in zip(maps, versions, strict=True)]
    torch.testing.assert_close(explain(net, images, [1, 1], aug_smooth=True), sum(turned) / 6)


@pytest.mark.skipif(not bf16_supported(), reason="no bfloat16 on this machine")
@pytest.mark.parametrize("layer", ["act", None])
def test_in_bfloat16(layer: str | None) -> None:
    net, images = Head().eval(), torch.randn(3, 2, 4, 5)
    exact, rough = (explain(net, images, EVERY, layer=layer, precision=p) for p in ("fp32", "bf16"))
    torch.testing.assert_close(rough, exact, rtol=0.2, atol=0.1 * float(exact.max()))


class Moody(Head):
    """Runs something else every time, before its features or behind them."""

    def __init__(self, *, before: bool) -> None:
        super().__init__()
        self.calls, self.before = 0, before

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        rounds = range(self.calls)
        for _ in rounds if self.before else ():
            x = x * 1.0
        x = self.act(self.conv(x))
        for _ in () if self.before else rounds:
            x = x * 1.0
        return self.tail(x)


class OutOfSight(Head):
    """Its features are an attribute of others."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(6 * 16, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.act(self.conv(x)).mT)


class Failing(Head):
    """Fails as soon as a channel is gone."""

    def tail(self, features: Tensor) -> Tensor:
        if (features == 0).all((2, 3)).any():
            raise RuntimeError("a channel is gone")
        return super().tail(features)


@pytest.mark.parametrize("model", [lambda: Moody(before=True), lambda: Moody(before=False), OutOfSight])
def test_a_model_whose_features_are_not_found_again_is_refused(model: Callable[[], Head]) -> None:
    with pytest.raises(UnsupportedModelError, match="cannot be found again.*gradcam"):
        explain(model().eval(), torch.randn(2, 2, 4, 4 if model is OutOfSight else 5), [0, 1])


@pytest.mark.parametrize("layer", ["act", None])
def test_nothing_is_left_behind_when_the_model_fails(layer: str | None) -> None:
    net = Failing().eval()
    net.conv.bias.data += 5  # so that no channel is 0 by itself
    images = torch.randn(2, 2, 4, 5)
    logits = net(images)
    with pytest.raises(RuntimeError, match="a channel is gone"):
        explain(net, images, [0, 1], layer=layer)
    assert not any(part._forward_hooks for part in net.modules())
    assert torch.equal(net(images), logits)


class Counting(Head):
    """Counts the images that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(len(x))
        return super().forward(x)


class OneByOne(Counting):
    """Knows behind its features how many images came."""

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(len(x))
        features = self.act(self.conv(x))
        return self.tail(features.view(len(x), 6, 4, 5))


class AllInOne(Counting):
    """As above, and does not fail on others."""

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(len(x))
        features = self.act(self.conv(x)).flatten(1)
        logits = self.head(torch.tanh(self.hidden(features)))
        return logits[: len(x)]


class Ignored(Counting):
    """What the operation that writes the features returns is not what it goes on with."""

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(len(x))
        x = self.conv(x)
        F.relu_(x)
        return self.tail(x)


@pytest.mark.parametrize(
    ("kind", "layer", "passes"),
    [
        (Counting, "act", 3),
        (Counting, None, 3),
        (OneByOne, "act", 9),
        (AllInOne, "act", 9),
        (Ignored, None, 9),
    ],
)
def test_the_model_runs_to_its_features_once_where_it_can(kind: type[Counting], layer: str | None, passes: int) -> None:
    """Six channels: one pass in which the batch grows, or that in vain and six whole; one for features, one for scores."""
    net, image = kind().double().eval(), torch.randn(1, 2, 4, 5, dtype=torch.float64)
    model = hp.Classifier(net, list("abcd"))
    found = explain(model, image, [[0, 1, 2, 3]], layer=layer, batch_size=6)
    assert sum(net.seen) == passes
    expected = expected_maps(net.tail, torch.relu(net.conv(image)), [[0, 1, 2, 3]])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.max()))


class Both(Head):
    """What the features are written over is read once more, by its old name."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        features = F.relu_(x)
        return self.tail(features) + torch.stack([x, x]).amax((0, 3, 4))[:, :4]


def test_features_that_are_read_by_two_names_are_changed_under_both() -> None:
    net, images = Both().double().eval(), torch.randn(2, 2, 4, 5, dtype=torch.float64)

    def tail(features: Tensor) -> Tensor:
        return net.tail(features) + features.amax((2, 3))[:, :4]

    expected = expected_maps(tail, torch.relu(net.conv(images)), [[0, 1, 2, 3]] * 2)
    assert_same(explain(net, images, [[0, 1, 2, 3]] * 2), expected)


class Bypass(Head):
    """What a module returns is what it was given, and that is read beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.same = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.conv(x))
        return self.tail(self.same(x)) + x.amax((2, 3))[:, :4]


def test_of_a_named_module_what_it_returns_is_changed_and_nothing_before() -> None:
    net, images = Bypass().double().eval(), torch.randn(2, 2, 4, 5, dtype=torch.float64)
    for image in images.split(1):
        features = net.act(net.conv(image))
        beside = features.amax((2, 3))[:, :4]
        expected = expected_maps(lambda x, beside=beside: net.tail(x) + beside, features, [[0, 1, 2, 3]])
        assert_same(explain(net, image, [[0, 1, 2, 3]], layer="same"), expected)
