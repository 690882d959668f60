"""Presets: each cell of their table by hand, and which rule a layer gets by its kind, depth and module."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from heatproof.errors import InputError, UnsupportedOperationError
from heatproof.relevance import Flat, Gamma, Preset, WSquare, ZBox, Zero, composite, presets, run, z_plus
from heatproof.relevance.layers import Layer
from support.nets import TinyViT

ROOT = Path(__file__).resolve().parents[2]


class Whole(nn.Module):
    """A function as a model: images -> logits."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def relevance_of(function: Callable[[Tensor], Tensor], x: Tensor, preset: Preset, index: int = 0) -> Tensor:
    passed = run(Whole(function).eval(), x, preset)
    return passed.relevance(passed.logits[:, index])


BOX = (torch.tensor(-3.0), torch.tensor(3.0))
ALL: dict[str, Preset] = {
    "lrp_z": presets.lrp_z(),
    "lrp_epsilon": presets.lrp_epsilon(1e-12),
    "lrp_gamma": presets.lrp_gamma(),
    "lrp_alpha_beta": presets.lrp_alpha_beta(start="logit"),
    "lrp_zplus": presets.lrp_zplus(start="logit"),
    "excitation_backprop": presets.excitation_backprop(start="logit"),
    "lrp_composite": presets.lrp_composite(None),
    "attn_lrp": presets.attn_lrp(0, 0),
    "cp_lrp": presets.cp_lrp(0, 0),
    "transformer_attention": presets.transformer_attention(start="logit"),
}


@pytest.mark.parametrize("name", ALL)
def test_the_winner_of_a_max_pool_takes_all(name: str) -> None:
    x = torch.tensor([[[[1.0, 5.0], [2.0, -3.0]]]], dtype=torch.float64)
    found = relevance_of(lambda v: F.max_pool2d(v, 2).flatten(1), x, ALL[name])
    torch.testing.assert_close(found, torch.tensor([[[[0.0, 5.0], [0.0, 0.0]]]], dtype=torch.float64))


@pytest.mark.parametrize("name", [name for name in ALL if name != "transformer_attention"])
def test_a_gate_is_a_constant(name: str) -> None:
    x = torch.randn(2, 1, 3, dtype=torch.float64)
    found = relevance_of(lambda v: v[:, 0] * torch.sigmoid(v[:, 0] * 2), x, ALL[name], 1)
    expected = torch.zeros_like(x)
    expected[:, 0, 1] = (x * torch.sigmoid(2 * x))[:, 0, 1]
    torch.testing.assert_close(found, expected)


# What a sum of two branches, 3 and -1, gives to each: R = 2 here
ADDITION = {
    "lrp_z": (3, -1),
    "lrp_epsilon": (3, -1),
    "lrp_gamma": (3.75 / 2.75 * 2, -1 / 2.75 * 2),
    "lrp_alpha_beta": (4, -2),
    "lrp_zplus": (2, 0),
    "excitation_backprop": (2, 0),
    "lrp_composite": (3, -1),
    "attn_lrp": (3, -1),
    "cp_lrp": (3, -1),
    "transformer_attention": (3 * 2 / 4, 1 * 2 / 4),
}


@pytest.mark.parametrize("name", ADDITION)
def test_a_residual_sum(name: str) -> None:
    x = torch.tensor([[3.0, -1.0]], dtype=torch.float64)
    found = relevance_of(lambda v: v[:, :1] + v[:, 1:], x, ALL[name])
    torch.testing.assert_close(found, torch.tensor([ADDITION[name]], dtype=torch.float64))


def test_a_constant_has_its_share_of_chefers_sum() -> None:
    """Two tokens of each sample, and an embedding for each: shares of the whole sample, by the sizes of the two sums."""
    x = torch.tensor([[[2.0], [1.0]], [[-1.0], [4.0]]], dtype=torch.float64)
    embedding = torch.tensor([[[1.0], [-3.0]]], dtype=torch.float64)
    weight = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    found = relevance_of(lambda v: F.linear((v + embedding).flatten(1), weight), x, presets.transformer_attention())
    # z⁺ on the sums (3, -2) and (0, 1) gives all to the positive one: 2 of 3 are x's, and 4 of 4 + |-3|
    torch.testing.assert_close(found[..., 0], torch.tensor([[2 / 3, 0], [0, 4 / 7]], dtype=torch.float64))


def test_a_mask_of_minus_infinity_does_not_spoil_chefers_sum() -> None:
    mask = torch.tensor([0.0, -torch.inf, 0.0], dtype=torch.float64)
    x = torch.randn(2, 3, dtype=torch.float64)

    def model(v: Tensor) -> Tensor:
        return (v + mask).softmax(-1)[:, [0, 2]] @ torch.eye(2).double()

    found = relevance_of(model, x, presets.transformer_attention())
    assert found.isfinite().all()
    assert (found[:, 0] != 0).all()


def test_softmax() -> None:
    x, value = torch.randn(2, 4, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    p = x.softmax(-1)
    taylor = x * p * (value - (p * value).sum(-1, keepdim=True))
    model = lambda v: (v.softmax(-1) * value).sum(-1, keepdim=True)  # noqa: E731
    for name in ("lrp_z", "lrp_epsilon", "lrp_composite", "attn_lrp"):
        torch.testing.assert_close(relevance_of(model, x, ALL[name]), taylor)
    torch.testing.assert_close(relevance_of(model, x, ALL["transformer_attention"]), p * value)
    with_skip = relevance_of(lambda v: model(v) + v[:, :1], x, ALL["cp_lrp"])
    torch.testing.assert_close(with_skip, x * torch.tensor([1, 0, 0, 0]))


ATTENTION = {"lrp_z": "quarters", "lrp_zplus": "quarters", "attn_lrp": "quarters", "cp_lrp": "values"}


@pytest.mark.parametrize("name", ATTENTION)
@pytest.mark.parametrize("how", ["fused", "matmul", "einsum"])
def test_queries_and_keys_end_with_a_quarter_or_with_nothing(name: str, how: str) -> None:
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64)  # q, k, v: four tokens, width five

    def attention(v: Tensor) -> Tensor:
        q, k, values = v.unbind(1)
        if how == "fused":
            return F.scaled_dot_product_attention(q, k, values, scale=0.7)
        if how == "matmul":
            return (q @ k.transpose(1, 2) * 0.7).softmax(-1) @ values
        scores = torch.einsum("bid,bjd->bij", q, k) * 0.7
        return torch.einsum("bij,bjd->bid", scores.softmax(-1), values)

    found = relevance_of(lambda v: attention(v).flatten(1), x, ALL[name], 7)  # token 1, feature 2
    leaf = x.clone().requires_grad_()
    (plain,) = torch.autograd.grad(attention(leaf)[:, 1, 2].sum(), leaf)
    share = {"quarters": [0.25, 0.25, 0.5], "values": [0.0, 0.0, 1.0]}[ATTENTION[name]]
    torch.testing.assert_close(found, x * plain * torch.tensor(share).double().view(3, 1, 1))


@pytest.mark.parametrize("name", ALL)
def test_layer_norm(name: str) -> None:
    """The deviation is constant, or R passes as it is."""
    norm, x = nn.LayerNorm(5).double().requires_grad_(False), torch.randn(2, 5, dtype=torch.float64)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    found = relevance_of(norm, x, ALL[name], 3)
    expected = torch.zeros_like(x)
    if name == "transformer_attention":
        expected[:, 3] = norm(x)[:, 3]
    else:
        unit = torch.eye(5, dtype=torch.float64)[3] - 0.2
        expected = x * unit * norm.weight[3] / (x.var(-1, correction=0, keepdim=True) + norm.eps).sqrt()
    torch.testing.assert_close(found, expected)


def replica_vit(model: TinyViT, x: Tensor, constant_attention: bool) -> Tensor:
    """The forward pass of `model` with what must be constant cut off, so that input times gradient is its LRP."""

    def split(t: Tensor, share: float) -> Tensor:
        return share * t + (1 - share) * t.detach()

    def norm(layer: nn.LayerNorm, t: Tensor) -> Tensor:
        deviation = (t.var(-1, correction=0, keepdim=True) + layer.eps).sqrt().detach()
        return (t - t.mean(-1, keepdim=True)) / deviation * layer.weight + layer.bias

    x = model.patch_embed["proj"](x).flatten(2).transpose(1, 2)
    x = torch.cat([model.cls_token.expand(len(x), -1, -1), x], 1) + model.pos_embed
    for block in model.blocks:
        q, k, v = block.attn.qkv(norm(block.norm1, x)).unflatten(-1, (3, block.attn.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k, v = (q.detach(), k.detach(), v) if constant_attention else (split(q, 0.5), split(k, 0.5), v)
        weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
        if not constant_attention:
            weights, v = split(weights, 0.5), split(v, 0.5)
        x = x + block.attn.proj((weights @ v).transpose(1, 2).flatten(2))
        hidden = block.mlp["fc1"](norm(block.norm2, x))
        x = x + block.mlp["fc2"](hidden * (F.gelu(hidden) / hidden).detach())
    return model.head(norm(model.norm, x)[:, 0])


@pytest.mark.parametrize("name", ["attn_lrp", "cp_lrp"])
def test_plain_lrp_of_a_transformer_is_input_times_the_gradient_of_a_replica(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presets, "_PLAIN", Zero())  # the plain rule has an ε of 1e-6
    model, x = TinyViT(depth=3).double().eval(), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    leaf = x.clone().requires_grad_()
    logits = replica_vit(model, leaf, constant_attention=name == "cp_lrp")
    torch.testing.assert_close(logits, model(x))
    (gradient,) = torch.autograd.grad(logits[:, 2].sum(), leaf)
    found = relevance_of(model, x, getattr(presets, name)(0, 0), 2)
    torch.testing.assert_close(found, x * gradient, atol=1e-9 * float(found.abs().max()), rtol=1e-7)


@dataclass(frozen=True, eq=False)
class Noted:
    """The z rule, which notes where it was used."""

    name: str
    log: list[tuple[str, str]] = field(default_factory=list)

    def __call__(self, layer: Layer, c: Tensor, z: Tensor) -> list[Tensor]:
        self.log.append((self.name, layer.kind))
        return layer.transposed(c)


def places(model: nn.Module, x: Tensor, *names: str, modules: tuple[str, ...] = ()) -> list[tuple[str, str]]:
    """Which of the rules at places `names` and at patterns `modules` each layer got, from the logits down."""
    log: list[tuple[str, str]] = []
    rules: dict[str, Any] = {name: Noted(name, log) for name in names}
    patterns = {pattern: Noted(pattern, log) for pattern in modules}
    passed = run(model.double().eval(), x.double(), composite(**rules, modules=patterns))
    passed.relevance(passed.logits[:, 0])
    return log


def test_rules_by_kind() -> None:
    weight = torch.randn(6, 4).double()
    net = nn.Sequential(
        nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.ReLU(), nn.ConvTranspose2d(3, 2, 2), nn.ReLU(), nn.BatchNorm2d(2),
        nn.AdaptiveAvgPool2d((1, 3)), nn.Flatten(), Whole(lambda v: v @ weight), nn.ReLU(),
        Whole(lambda v: torch.einsum("ni,ij->nj", v, weight[:4, :3])), Whole(lambda v: v + v.flip(1)), nn.Linear(3, 2),
    )  # fmt: skip
    found = places(net, torch.rand(1, 2, 4, 4), "dense", "conv", "sums", "norm")
    assert found == [("dense", "linear"), ("sums", "add"), ("dense", "einsum"), ("dense", "matmul"),
                     ("sums", "adaptive_avg_pool2d"), ("norm", "batch_norm"), ("conv", "conv_transpose"),
                     ("conv", "conv")]  # fmt: skip
    alone = nn.Sequential(nn.ReLU(), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(32, 2))
    assert places(alone, torch.rand(1, 2, 4, 4), "dense", "conv") == [("dense", "linear"), ("conv", "batch_norm")]


class Distilled(nn.Module):
    """Two heads that are averaged, as in DeiT, over a trunk that one convolution makes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head, self.head_dist = nn.Conv2d(2, 4, 2), nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu().flatten(2)
        return (self.head(x[..., 0]) + self.head_dist(x[..., 1])) / 2


def test_both_of_two_averaged_heads_are_last() -> None:
    found = places(Distilled(), torch.rand(1, 2, 3, 3), "dense", "conv", "last")
    assert found == [("last", "linear"), ("last", "linear"), ("conv", "conv")]


def test_a_batch_norm_belongs_to_the_last_layer() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3), nn.BatchNorm1d(3))
    assert places(net, torch.rand(1, 2, 2, 2), "dense", "last") == [("last", "linear"), ("dense", "linear")]
    conv = nn.Sequential(nn.Conv2d(2, 3, 1), nn.ReLU(), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.AdaptiveAvgPool2d(1),
                         nn.Flatten())  # fmt: skip
    assert places(conv, torch.rand(1, 2, 2, 2), "conv", "last") == [("last", "conv"), ("conv", "conv")]


def test_a_batch_norm_has_the_rule_of_the_dense_layer_before_it() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))
    assert places(net, torch.rand(1, 2, 2, 2), "dense", "conv") == [("dense", "linear"), ("dense", "linear")]


def test_an_only_layer_is_first_rather_than_last() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(8, 3))
    assert places(net, torch.rand(1, 2, 2, 2), "first", "last") == [("first", "linear")]


def test_only_the_last_use_of_a_layer_is_last() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(self.layer(x.flatten(1)).relu())

    found = places(Twice(), torch.rand(1, 1, 2, 2), "dense", "last", "first")
    assert found == [("last", "linear"), ("first", "linear")]


def test_first_are_all_layers_that_see_the_image() -> None:
    class TwoStems(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.head = (*(nn.Conv2d(2, 2, 1) for _ in range(3)), nn.Linear(8, 2))

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.c(self.a(x * 2 - 1).relu() + self.b(x.flip(3)).relu()).flatten(1))

    found = places(TwoStems(), torch.rand(1, 2, 2, 2), "dense", "conv", "first", modules=("c",))
    assert found == [("dense", "linear"), ("c", "conv"), ("first", "conv"), ("first", "conv")]


def test_patterns_win_over_depth_and_the_first_match_over_later_ones() -> None:
    net = nn.Sequential(
        nn.Sequential(nn.Conv2d(2, 3, 1), nn.ReLU(), nn.Conv2d(3, 3, 1)),
        nn.Flatten(),
        nn.Linear(12, 4),
        nn.Linear(4, 2),
    )
    x = torch.rand(1, 2, 2, 2)
    kinds = ("dense", "conv", "first", "last")
    assert places(net, x, *kinds) == [("last", "linear"), ("dense", "linear"), ("conv", "conv"), ("first", "conv")]
    by_name = places(net, x, *kinds, modules=("3", "0.*", "0.2"))
    assert by_name == [("3", "linear"), ("dense", "linear"), ("0.*", "conv"), ("0.*", "conv")]
    assert places(net, x, *kinds, modules=("0.2", "*"))[2:] == [("0.2", "conv"), ("*", "conv")]
    assert places(net, x, *kinds, modules=("[2-3]",))[:2] == [("[2-3]", "linear"), ("[2-3]", "linear")]


def test_a_pattern_reaches_a_layer_with_its_batch_norm() -> None:
    net = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2))
    assert places(net, torch.rand(1, 2, 2, 2), "conv", "dense", modules=("0",)) == [("dense", "linear"), ("0", "conv")]


def test_a_rule_of_first_layers_by_pattern_beside_others() -> None:
    """One branch by the flat rule, the other by z⁺; what each hands to the image adds up."""

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 1, bias=False), nn.Linear(4, 1, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x.flatten(1)) + self.b(x.flatten(1))

    net, x = Branches().double().eval(), torch.rand(1, 1, 2, 2).double()
    nn.init.uniform_(net.a.weight, 1, 2)
    nn.init.uniform_(net.b.weight, 1, 2)
    a, b = (layer(x.flatten(1)).detach() for layer in (net.a, net.b))
    passed = run(net, x, composite(modules={"a": Flat(), "b": z_plus()}))
    expected = a / 4 + x.flatten(1) * net.b.weight / (x.flatten(1) * net.b.weight).sum() * b
    torch.testing.assert_close(passed.relevance(passed.logits[:, 0]).flatten(1), expected.detach())


@pytest.mark.parametrize("rule", [Flat(), WSquare(), ZBox(*BOX)])
def test_a_rule_of_first_layers_elsewhere_is_an_error(rule: Any) -> None:
    net = nn.Sequential(nn.Conv2d(2, 3, 1), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2)).eval()
    passed = run(net, torch.rand(1, 2, 2, 2), composite("mine", modules={"3": rule}))
    name = type(rule).__name__
    with pytest.raises(UnsupportedOperationError, match=rf"'mine' gives {name} to the module '3', which does not see"):
        passed.relevance(passed.logits[:, 0])
    for place in ("dense", "conv", "sums", "norm", "last"):
        with pytest.raises(InputError, match=rf"{name} is a rule of first layers.* '{place}': give it as first="):
            composite(**{place: rule})


def test_a_pattern_without_a_layer_is_an_error_that_names_near_ones() -> None:
    net = nn.Sequential(nn.Conv2d(2, 3, 1), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2)).eval()
    for pattern in ("1", "features.*", "Flatten"):
        with pytest.raises(
            InputError, match=rf"'composite' has a rule for {re.escape(repr(pattern))}.*Known: 0, 3, conv"
        ):
            run(net, torch.rand(1, 2, 2, 2), composite(modules={"0": Zero(), pattern: Gamma()}))
    blocks = nn.Sequential()
    blocks.add_module("patch_embed", nn.Conv2d(2, 3, 1))
    with pytest.raises(InputError, match="Did you mean 'patch_embed'"):
        run(blocks.eval(), torch.rand(1, 2, 1, 1), composite(modules={"patchembed": Gamma()}))


def test_two_boxes_are_one_too_many() -> None:
    net = nn.Sequential(nn.Conv2d(2, 3, 1), nn.Flatten()).eval()
    with pytest.raises(InputError, match="2 rules with a box"):
        run(net, torch.rand(1, 2, 1, 1), composite(first=ZBox(*BOX), modules={"0": ZBox(*BOX)}))


def test_every_source_that_the_engine_names_stands_in_the_bibliography() -> None:
    entries = set(
        re.findall(r"^@\w+\{([^,\s]+),", (ROOT / "docs" / "references.bib").read_text(encoding="utf-8"), re.M)
    )
    named = set()
    for path in (ROOT / "src" / "heatproof" / "relevance").glob("*.py"):
        for group in re.findall(r"\[((?:[a-z]+\d{4}[a-z]+(?:, )?)+)\]", path.read_text(encoding="utf-8")):
            named |= set(group.split(", "))
    assert {"ali2022xai", "achtibat2024attnlrp", "kohlbrenner2020towards"} <= named
    assert named <= entries
