"""The audit of relevance: numbers worked out by hand, autograd replicas in float64, and rules that are wrong on purpose."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from heatproof.relevance import Account, Audit, Flat, Gamma, Preset, WSquare, ZBox, audit, composite, presets
from heatproof.relevance.linear import FirstRule
from support.audits import Whole, assert_all_is_accounted_for, lively, numbers, ones
from support.nets import TinyCNN, TinyViT


def by_hand() -> nn.Module:
    """(2, 1) -> (3, -0.5) -> (3, 0) -> 6.5."""
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)).double()
    numbers = ([[1.0, 2.0], [-1.0, 1.0]], [-1.0, 0.5], [[2.0, 5.0]], [0.5])
    for parameter, number in zip(net.parameters(), numbers, strict=True):
        parameter.data = torch.tensor(number, dtype=torch.float64)
    return net


def of_hand_net(preset: Preset) -> Audit:
    return audit(by_hand(), torch.tensor([[2.0, 1.0]], dtype=torch.float64), 0, preset)


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        # first layer, ReLU, second layer: received, passed, absorbed by the bias, leak
        (presets.lrp_z(), [(6, 8, -2, 0), (6, 6, 0, 0), (6.5, 6, 0.5, 0)]),
        # z⁺: of 6.5 the bias has 0.5; in neuron 1 the contributions 2 and 2 count, the bias -1 does not
        (presets.lrp_zplus(), [(12 / 13, 12 / 13, 0, 0), (12 / 13, 12 / 13, 0, 0), (1, 12 / 13, 1 / 13, 0)]),
        # α = 2, β = 1: neuron 0 has no negative contribution, so the second layer passes 2 R; bias -1 is all of N
        (presets.lrp_alpha_beta(), [(24 / 13, 48 / 13, -24 / 13, 0), (24 / 13, 24 / 13, 0, 0), (1, 24 / 13, 2 / 13, 1)]),
        # biases take no part
        (presets.excitation_backprop(), [(1, 1, 0, 0), (1, 1, 0, 0), (1, 1, 0, 0)]),
        # γ = 1: of neuron 1 (z = 3) the positive contributions 4 count twice: 8 - 1 = 7
        (composite(dense=Gamma(1.0)), [(6, 6 * 8 / 7, -6 / 7, 0), (6, 6, 0, 0), (6.5, 6, 0.5, 0)]),
    ],
    ids=lambda value: value.name if isinstance(value, Preset) else "",
)  # fmt: skip
def test_three_operations_by_hand(preset: Preset, expected: list[tuple[float, ...]]) -> None:
    found = of_hand_net(preset)
    assert [account.operation for account in found.operations] == ["linear", "relu", "linear"]
    assert [account.module for account in found.operations] == ["0", "1", "2"]
    for account, row in zip(found.operations, expected, strict=True):
        assert numbers(account) == pytest.approx(row, abs=1e-12)
    assert float(found.start) == (6.5 if preset.start == "logit" else 1)
    assert float(found.at_input) == pytest.approx(expected[0][1])
    assert float(found.created) == pytest.approx(sum(row[3] for row in expected))
    assert float(found.lost) == pytest.approx(0)


def test_the_stabilizer_takes_its_share_by_hand() -> None:
    """ε = 0.5: 6.5 · 0.5/7 above; below, neuron 1 has 3 and what came is shared over 3.5."""
    found = of_hand_net(presets.lrp_epsilon(0.5))
    lower, _, upper = found.operations
    assert {name: float(v) for name, v in upper.absorbed.items()} == pytest.approx(
        {"2.bias": 0.5 * 6.5 / 7, "stabilizer ε": 6.5 * 0.5 / 7}
    )
    came = 6 * 6.5 / 7
    assert {name: float(v) for name, v in lower.absorbed.items()} == pytest.approx(
        {"0.bias": -came / 3.5, "stabilizer ε": came * 0.5 / 3.5}
    )
    assert float(found.at_input) == pytest.approx(came * 4 / 3.5)
    assert found.leaks(1e-12) == []


def test_vanished_denominators_are_counted_with_what_they_create_by_hand() -> None:
    """α = 2, β = 1: the second layer's one neuron has N = 0 and passes twice what it got."""
    lower, _, upper = of_hand_net(presets.lrp_alpha_beta()).operations
    assert (float(upper.vanished), float(upper.created_there)) == (1, pytest.approx(1))
    assert (float(lower.vanished), float(lower.created_there)) == (0, 0)
    assert float(of_hand_net(presets.lrp_zplus()).vanished) == 0  # N has no share in z⁺


def test_a_neuron_without_relevance_does_not_count_as_vanished_by_hand() -> None:
    """(2, 1) -> (3, -3) -> 3: the second neuron has P = 0, and nothing to share."""
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False)).double()
    net[0].weight.data, net[1].weight.data = (
        torch.tensor(w).double() for w in ([[1.0, 1.0], [-1.0, -1.0]], [[1.0, 0.0]])
    )
    found = audit(net, torch.tensor([[2.0, 1.0]], dtype=torch.float64), 0, presets.lrp_zplus())
    assert (float(found.vanished), float(found.at_input)) == (0, 1)


@pytest.mark.parametrize(("preset", "bias"), [(presets.lrp_zplus(), 0.0), (presets.excitation_backprop(), 5.0)])
def test_a_neuron_without_positive_contributions_loses_its_relevance_by_hand(preset: Preset, bias: float) -> None:
    """z⁺ of z = -2 - 1: nothing is positive, so the 1 that came goes nowhere; nor where a bias of 5 takes no part."""
    net = nn.Linear(2, 1).double()
    net.weight.data, net.bias.data = -ones(1, 2), bias * ones(1)
    found = audit(net, torch.tensor([[2.0, 1.0]], dtype=torch.float64), 0, preset)
    assert numbers(found.operations[0]) == (1, 0, 0, -1)
    assert (float(found.vanished), float(found.lost), float(found.created)) == (1, 1, 0)
    assert found.leaks() == [found.operations[0]]
    assert float(found.operations[0].created_there) == -1


def in_first_layer(rule: FirstRule, layer: nn.Module, x: Tensor) -> Account:
    model = Whole(lambda v: layer(v).flatten(1).sum(1, keepdim=True), layer=layer)
    return audit(model, x, 0, composite(first=rule)).operations[0]


def test_first_layers_lose_what_their_denominators_have_no_place_for_by_hand() -> None:
    conv = nn.Conv2d(1, 1, 1, padding=1).double()  # of 9 windows, 8 see no pixel: bias 2 there, 3 + 2 in the middle
    conv.weight.data, conv.bias.data = 3 * ones(1, 1, 1, 1), 2 * ones(1)
    for rule in (WSquare(), Flat()):
        account = in_first_layer(rule, conv, ones(1, 1, 1, 1))
        assert numbers(account) == pytest.approx((21, 5, 0, -16))
        assert (float(account.vanished), float(account.created_there)) == (8, pytest.approx(-16))
    dense = nn.Linear(2, 1).double()
    dense.weight.data, dense.bias.data = torch.tensor([[1.0, -1.0]]).double(), 2 * ones(1)
    account = in_first_layer(ZBox(-ones(1), ones(1)), dense, ones(1, 2))  # 1 + 1 - 1 + 1, shared by 2 : 0
    assert numbers(account) == pytest.approx((2, 2, 0, 0))
    account = in_first_layer(ZBox(ones(1), ones(1)), dense, ones(1, 2))  # the box is the image: no contribution
    assert numbers(account) == pytest.approx((2, 0, 0, -2))
    assert (float(account.vanished), float(account.created_there)) == (1, pytest.approx(-2))


# --- what constants absorb, against autograd ---------------------------------------------------------------------------


def absorbed_by_autograd(model: nn.Module, x: Tensor, target: int) -> dict[str, Tensor]:
    """constant · ∂f/∂constant of each additive constant, sample by sample: what it absorbs under LRP-z in a ReLU network.

    A batch norm's running mean m enters as -m w/σ beside the shift.
    """
    parameters = {n: p for n, p in model.named_parameters() if n.endswith(("bias", "cls_token", "pos_embed"))}
    found: dict[str, list[Tensor]] = {}
    for image in x.split(1):
        gradients = torch.autograd.grad(model(image)[0, target], list(parameters.values()))
        for (name, value), gradient in zip(parameters.items(), gradients, strict=True):
            found.setdefault(name, []).append((value * gradient).sum().detach())
            owner = model.get_submodule(name.rpartition(".")[0])
            if isinstance(owner, nn.BatchNorm2d):
                of_mean = -owner.running_mean * owner.weight / (owner.running_var + owner.eps).sqrt() * gradient
                found.setdefault(name.removesuffix("bias") + "running_mean", []).append(of_mean.sum().detach())
    return {name: torch.stack(values) for name, values in found.items()}


class Bottleneck(nn.Module):
    """ResNet-50's block, with in-place ReLU and a strided shortcut."""

    def __init__(self, inside: int, width: int, stride: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            [nn.Conv2d(inside, width, 1, bias=False), nn.Conv2d(width, width, 3, stride, 1, bias=False),
             nn.Conv2d(width, 4 * width, 1, bias=False)]
        )  # fmt: skip
        self.norms = nn.ModuleList(nn.BatchNorm2d(n) for n in (width, width, 4 * width))
        self.shortcut = nn.Sequential(nn.Conv2d(inside, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width))

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for conv, norm in zip(self.convs, self.norms, strict=True):
            y = norm(conv(y))
            y = y if norm is self.norms[-1] else F.relu(y, inplace=True)
        y += self.shortcut(x)
        return y.relu_()


def resnet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 7, 2, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1),
        Bottleneck(16, 8, 1), Bottleneck(32, 16, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 3),
    )  # fmt: skip


def vgg() -> nn.Module:
    parts: list[nn.Module] = []
    for inside, outside in ((3, 8), (8, 16), (16, 16)):
        parts += [nn.Conv2d(inside, outside, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
    head = [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Dropout(), nn.Linear(32, 3)]
    return nn.Sequential(*parts, *head)


def densenet() -> nn.Module:
    from monai.networks.nets import DenseNet121

    return DenseNet121(spatial_dims=2, in_channels=3, out_channels=3)


@pytest.mark.parametrize("build", [TinyCNN, resnet, vgg, densenet])
def test_lrp_z_conserves_at_every_operation_of_a_relu_network(build: Callable[[], nn.Module]) -> None:
    model, x = lively(build()), torch.randn(2, 3, 64, 64)
    found = audit(model, x, [1, 2], presets.lrp_z())
    assert found.leaks(1e-3) == []
    torch.testing.assert_close(found.start, model(x)[[0, 1], [1, 2]].detach().double(), rtol=1e-5, atol=1e-6)
    size = found.relevance.double().abs().flatten(1).sum(1)
    allowed = 1e-3 * torch.maximum(found.start.abs(), 0.01 * size)
    assert ((found.at_input + found.absorbed - found.start).abs() < allowed).all()
    assert_all_is_accounted_for(found, 1e-5)


@pytest.mark.parametrize("build", [TinyCNN, resnet, vgg])
def test_what_each_constant_absorbs_is_its_value_times_its_gradient(build: Callable[[], nn.Module]) -> None:
    model, x = lively(build()).double(), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    found = audit(model, x, 2, presets.lrp_z())
    absorbed = found.absorbed_by()
    for name, expected in absorbed_by_autograd(model, x, 2).items():
        torch.testing.assert_close(absorbed.pop(name), expected, msg=name)
    assert not absorbed
    assert found.leaks(1e-9) == []


def half(x: Tensor) -> Tensor:
    """x, with half of its gradient."""
    return x / 2 + (x / 2).detach()


def vit_as_lrp_z_sees_it(model: TinyViT, x: Tensor, softmax: Callable[[Tensor], Tensor]) -> Tensor:
    """TinyViT in torch operations whose ordinary gradient is c = R/x under LRP-z."""

    def norm(part: nn.LayerNorm, v: Tensor) -> Tensor:
        deviation = (v.var(-1, correction=0, keepdim=True) + part.eps).sqrt().detach()
        return (v - v.mean(-1, keepdim=True)) / deviation * part.weight.detach() + part.bias

    x = model.patch_embed["proj"](x).flatten(2).transpose(1, 2)
    x = torch.cat([model.cls_token.expand(len(x), -1, -1), x], 1) + model.pos_embed
    for block in model.blocks:
        b, n, d = x.shape
        qkv = block.attn.qkv(norm(block.norm1, x)).reshape(b, n, 3, block.attn.heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        weights = softmax(half(q) @ half(k).transpose(-2, -1) / math.sqrt(q.shape[-1]))
        mixed = half(weights) @ half(v) if weights.requires_grad else weights @ v
        x = x + block.attn.proj(mixed.transpose(1, 2).reshape(b, n, d))
        hidden = block.mlp["fc1"](norm(block.norm2, x))
        x = x + block.mlp["fc2"](hidden * (F.gelu(hidden) / hidden).detach())
    return model.head(norm(model.norm, x)[:, 0])


def plain_cp_lrp() -> Preset:
    return presets.cp_lrp(gamma_conv=0, gamma_linear=0)


@pytest.mark.parametrize(
    ("preset", "softmax"),
    [(presets.lrp_z(), lambda s: s.softmax(-1)), (plain_cp_lrp(), lambda s: s.softmax(-1).detach())],
    ids=["lrp_z", "cp_lrp"],
)
def test_what_the_constants_of_a_transformer_absorb(preset: Preset, softmax: Callable[[Tensor], Tensor]) -> None:
    """Biases, shifts, position embedding and class token, against a replica in float64 that autograd differentiates."""
    model = lively(TinyViT(depth=2)).double()
    with torch.no_grad():
        model.cls_token.normal_()
        model.pos_embed.normal_()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    replica = Whole(lambda images: vit_as_lrp_z_sees_it(model, images, softmax), model=model)
    found = audit(model, x, 3, preset)
    absorbed = found.absorbed_by()
    rounding = {"rtol": 1e-4, "atol": 1e-5}  # cp_lrp's plain rule has a stabilizer of 1e-6
    for name, value in absorbed_by_autograd(replica, x, 3).items():
        torch.testing.assert_close(absorbed.pop(name.removeprefix("parts.model.")), value, msg=name, **rounding)
    assert set(absorbed) <= {"stabilizer ε"}
    assert_all_is_accounted_for(found)


# --- transformers: softmax is where relevance leaks --------------------------------------------------------------------


def only_softmax_leaks(found: Audit, layers: int) -> bool:
    leaks = found.leaks(1e-4)
    return {a.operation for a in leaks} == {"softmax"} and len(leaks) == layers


@pytest.mark.parametrize(
    "preset", [presets.lrp_z(), presets.lrp_epsilon(), presets.attn_lrp(), presets.lrp_composite(None)],
    ids=lambda preset: preset.name,
)  # fmt: skip
def test_softmax_is_the_only_leak_of_a_transformer(preset: Preset) -> None:
    model = lively(TinyViT()).double()
    with torch.no_grad():
        for block in model.blocks:  # attention that looks somewhere
            block.attn.qkv.weight.mul_(4)
    found = audit(model, torch.randn(2, 3, 32, 32, dtype=torch.float64), [0, 4], preset)
    assert only_softmax_leaks(found, layers=4)
    assert {a.module for a in found.leaks(1e-4)} == {f"blocks.{i}.attn" for i in range(4)}
    assert_all_is_accounted_for(found)


def test_what_softmax_leaks_is_what_its_gradient_does_not_keep() -> None:
    """A(s) passes on Σ_i s_i A_i (g_i - Σ_j A_j g_j) of Σ_i A_i g_i."""
    head, s = torch.randn(2, 5, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)
    found = audit(Whole(lambda v: F.linear(v.softmax(-1), head)), s, 1, presets.lrp_z())
    attention = s.softmax(-1)
    received = (attention * head[1]).sum(1)
    passed = (s * attention * (head[1] - received[:, None])).sum(1)
    torch.testing.assert_close(found.operations[0].leak, passed - received)
    torch.testing.assert_close(found.operations[0].received, received)


def test_masked_scores_have_no_relevance() -> None:
    """-∞ · 0 is nothing, not NaN: what the mask hides neither arrives nor absorbs."""
    mask, head = torch.tensor([0.0, -math.inf, 1.0, -math.inf]).double(), torch.randn(2, 4, dtype=torch.float64)
    x = torch.randn(3, 4, dtype=torch.float64)
    found = audit(Whole(lambda v: F.linear((v + mask).softmax(-1), head)), x, 1, presets.lrp_z())
    added, softmax, _ = found.operations
    assert found.leaks(1e-9) == [softmax]
    attention = (x + mask).softmax(-1)
    c = attention * (head[1] - (attention * head[1]).sum(1, keepdim=True))
    torch.testing.assert_close(added.absorbed_in_all, c[:, 2])
    torch.testing.assert_close(added.passed, (x * c).sum(1))


def test_a_bias_that_hides_a_class_keeps_its_name_to_itself() -> None:
    layer, head = nn.Linear(4, 3).double(), torch.randn(2, 3, dtype=torch.float64)
    layer.bias.data[1] = -math.inf
    found = audit(Whole(lambda v: F.linear(layer(v).softmax(-1), head), layer=layer),
                  torch.randn(2, 4, dtype=torch.float64), 0, presets.lrp_z())  # fmt: skip
    assert list(found.absorbed_by()) == ["parts.layer.bias"]
    assert found.absorbed.isfinite().all()


def test_constant_attention_leaks_nowhere() -> None:
    found = audit(lively(TinyViT()), torch.randn(2, 3, 32, 32), None, presets.cp_lrp())
    assert found.leaks(1e-3) == []
    assert "softmax" not in {account.operation for account in found.operations}


def test_leaks_of_zplus_in_a_transformer_are_those_of_softmax_and_of_vanished_denominators() -> None:
    found = audit(lively(TinyViT()).double(), torch.randn(2, 3, 32, 32, dtype=torch.float64), 1, presets.lrp_zplus())
    for account in found.operations:
        if account.operation != "softmax":
            torch.testing.assert_close(account.leak, account.created_there, atol=1e-9, rtol=1e-6)
    assert (found.vanished > 0).all()


def test_chefers_rules_conserve_outside_vanished_denominators_with_a_share_for_the_position_embedding() -> None:
    """R passes unchanged through norms and softmax, though they have shifts, and sums share it out by ratio."""
    model = lively(TinyViT()).double()
    low, high = torch.tensor(-4.0).double(), torch.tensor(4.0).double()
    found = audit(model, torch.randn(2, 3, 32, 32, dtype=torch.float64), 1, presets.chefer(low, high))
    for account in found.operations:
        torch.testing.assert_close(account.leak, account.created_there, atol=1e-9, rtol=1e-6)
    (sum_with_positions,) = [a for a in found.operations if "pos_embed" in a.absorbed]
    assert sum_with_positions.operation == "add"
    assert (sum_with_positions.absorbed["pos_embed"] > 0).all()


@pytest.mark.parametrize(
    ("x", "passed"),
    [((3.0, 2.0), 5 / 7), ((3.0, 1.0), 3 / 4)],  # sums (2, 1), c = 1/3, A = 5/3, B = -2/3; (2, 0), A = 3/2, B = -1/2
)
def test_a_constant_that_speaks_against_the_sum_has_its_share_of_chefers_ratio_by_hand(
    x: tuple[float, ...], passed: float
) -> None:
    """x + (-1, -1): A and B share 1 by |A| : |B|, over what is not 0."""
    against = torch.tensor([-1.0, -1.0], dtype=torch.float64)
    model = Whole(lambda v: (v + against).sum(1, keepdim=True))
    found = audit(model, torch.tensor([x], dtype=torch.float64), 0, presets.transformer_attention())
    assert numbers(found.operations[0]) == pytest.approx((1, passed, 1 - passed, 0))


# --- α-β creates relevance where one sign is missing ---------------------------------------------------------------------


def test_the_audit_points_at_the_batch_norms_of_a_densenet_under_alpha_beta() -> None:
    """A norm by itself has one contribution a neuron: where that and the shift are positive, N = 0 and βR is created."""
    model = lively(densenet()).double()
    found = audit(model, torch.randn(1, 3, 64, 64, dtype=torch.float64), 0, presets.lrp_alpha_beta())
    assert float(found.at_input) > 100  # of 1 at the start
    leaks = found.leaks(1e-3)
    assert {a.operation for a in leaks} == {"batch_norm", "avg_pool2d", "adaptive_avg_pool2d"}
    assert all(a.rule == "AlphaBeta(alpha=2.0, beta=1.0, bias=True)" for a in leaks)
    norms = sum(float(a.leak) for a in leaks if a.operation == "batch_norm")
    assert norms > 0.6 * float(found.created)
    for account in found.operations:
        torch.testing.assert_close(account.leak, account.created_there, atol=1e-6, rtol=1e-3)
    assert_all_is_accounted_for(found)


def test_merged_batch_norms_are_told_from_those_alone() -> None:
    found = audit(TinyCNN().eval(), torch.randn(1, 3, 16, 16), 0, presets.lrp_zplus())
    norms = [a for a in found.operations if a.operation == "batch_norm"]
    assert [a.rule for a in norms] == ["AlphaBeta(alpha=1.0, beta=0.0, bias=True) with the layer before"] * 2
    assert [list(a.absorbed) for a in norms] == [
        ["conv1.bias + bn1.running_mean + bn1.bias"], ["conv2.bias + bn2.running_mean + bn2.bias"]
    ]  # fmt: skip
    convolutions = [a for a in found.operations if a.operation == "conv"]
    assert all(float(a.received) == 0 for a in convolutions)  # all goes through the norm to their inputs


def test_a_batch_norm_whose_layer_is_read_elsewhere_absorbs_by_itself() -> None:
    conv, norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def function(x: Tensor) -> Tensor:
        y = conv(x)
        return (norm(y) + y).flatten(1).sum(1, keepdim=True)

    model = lively(Whole(function, conv=conv, norm=norm)).double()
    found = audit(model, torch.randn(1, 3, 4, 4, dtype=torch.float64), 0, presets.lrp_zplus())
    absorbed = {a.operation: list(a.absorbed) for a in found.operations if a.absorbed}
    assert absorbed == {"conv": ["parts.conv.bias"], "batch_norm": ["parts.norm.running_mean + parts.norm.bias"]}


# --- rules that are wrong are found out ---------------------------------------------------------------------------------


class BiasOutsideP(Gamma):
    """z⁺ whose P forgets the bias in what goes to the inputs."""

    def __call__(self, layer, c, z):
        from heatproof.relevance import AlphaBeta

        return AlphaBeta(1.0, 0.0, bias=layer.bias is None)(layer, c, z)


class TwiceAsMuch(Gamma):
    def __call__(self, layer, c, z):
        return [2 * t for t in layer.transposed(c)]


@pytest.mark.parametrize(
    ("rule", "wrong"), [(BiasOutsideP(), {"2"}), (TwiceAsMuch(), {"0", "2"})]  # layer 0's bias is negative: not in P
)  # fmt: skip
def test_a_wrong_rule_of_layers_leaks(rule: Gamma, wrong: set[str]) -> None:
    net, x = by_hand(), torch.tensor([[2.0, 1.0]], dtype=torch.float64)
    found = audit(net, x, 0, composite(dense=rule))
    assert {a.module for a in found.leaks(1e-3)} == wrong


def test_a_layer_norm_whose_mean_is_forgotten_leaks() -> None:
    def forgetful(call):
        x = call.args[0]
        scale = norm.weight.detach() / (x.detach().var(-1, correction=0, keepdim=True) + norm.eps).sqrt()
        return call.route([x], lambda c, value: [c * scale])

    norm, x = nn.LayerNorm(6).double(), torch.randn(3, 6, dtype=torch.float64) + 1
    nn.init.normal_(norm.bias)
    net = nn.Sequential(norm, nn.Linear(6, 2).double())
    (leaking,) = audit(net, x, 0, composite(operations={"layer_norm": forgetful})).leaks(1e-3)
    assert (leaking.operation, leaking.module, leaking.rule) == (
        "layer_norm", "0", "test_a_layer_norm_whose_mean_is_forgotten_leaks",
    )  # fmt: skip
    assert audit(net, x, 0, presets.lrp_z()).leaks(1e-9) == []
