"""The audit of models with odd habits, its gaps and tables, and what it leaves behind."""

import gc
import math
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from heatproof.errors import InputError, RelevanceGapWarning, UnsupportedOperationError
from heatproof.relevance import Account, Audit, Preset, audit, composite, presets, run
from heatproof.relevance.rules import unchanged
from support.audits import Whole, assert_all_is_accounted_for, lively, ones
from support.nets import TinyCNN

# --- odd habits of models ------------------------------------------------------------------------------------------------


def into_views(x: Tensor) -> Tensor:
    x = x * 2
    part = x[:, 1:4]
    part += 1
    part[:, 0] *= 3
    x[:, 5] = torch.tensor(2.0)
    return x.sum(1, keepdim=True) + part.sum(1, keepdim=True)


def into_a_buffer(x: Tensor) -> Tensor:
    tokens = torch.full((len(x), 8), 0.5, dtype=x.dtype)
    tokens[:, 2:] = x
    tokens.view(len(x), 2, 4)[:, 1] += 1
    return tokens @ torch.arange(8.0, dtype=x.dtype)[:, None]


def into_what_is_a_view_already(x: Tensor) -> Tensor:
    """What einsum returns is a view of a product that nobody sees."""
    y = torch.einsum("bhne,hed->bnd", x.view(-1, 2, 1, 3), torch.arange(24.0, dtype=x.dtype).view(2, 3, 4))
    y[:, :, 0] = 0.5
    y[:, 0, 2:] += 2
    return y.sum((1, 2))[:, None]


def into_part_of_a_buffer(x: Tensor) -> Tensor:
    tokens = torch.full((len(x), 8), 0.5, dtype=x.dtype)
    part = tokens[:, 2:]
    part += x
    return tokens @ torch.arange(8.0, dtype=x.dtype)[:, None]


def into_part_of_a_strided_buffer(x: Tensor) -> Tensor:
    """Its rows lie apart, and it does not begin where its memory does."""
    tokens = torch.full((len(x), 10), 0.5, dtype=x.dtype)[:, 2:].data
    part = tokens[:, 2:]
    part += x
    return tokens @ torch.arange(8.0, dtype=x.dtype)[:, None]


def masked(x: Tensor) -> Tensor:
    scores = x[:, :, None] * torch.ones(2, dtype=x.dtype)
    hidden = torch.tensor([True, False, True, False, False, False])
    return (
        scores.masked_fill(hidden[:, None], -0.5).flatten(1).where(torch.tensor(True), x.new_zeros(())).sum(1)[:, None]
    )


def added_minus_infinity(x: Tensor) -> Tensor:
    mask = torch.tensor([0.0, -math.inf, 0.0, 0.0, -math.inf, 0.0], dtype=x.dtype)
    return (x + mask).softmax(-1).detach().mul(x).sum(1, keepdim=True)


def getters(x: Tensor) -> Tensor:
    return (x.T * 3 + 1).T.sum(1, keepdim=True)


def divided(x: Tensor) -> Tensor:
    return ((x + 2) / (x.square() + 1).sqrt() / (x.abs() + 1) / 3 + 1 / torch.tensor(4.0)).sum(1, keepdim=True)


def the_same_twice(x: Tensor) -> Tensor:
    return torch.stack([x, x + 1, x * x], 1).mean(1).add(x, alpha=-2).sub(1).sum(1, keepdim=True)


@pytest.mark.parametrize("preset", [presets.lrp_z(), presets.lrp_epsilon()], ids=lambda preset: preset.name)
@pytest.mark.parametrize(
    "function",
    [
        into_views,
        into_what_is_a_view_already,
        into_a_buffer,
        into_part_of_a_buffer,
        into_part_of_a_strided_buffer,
        masked,
        added_minus_infinity,
        getters,
        divided,
        the_same_twice,
    ],
)
def test_models_with_odd_habits_conserve_and_every_bit_is_accounted_for(
    function: Callable[[Tensor], Tensor], preset: Preset
) -> None:
    x = torch.randn(3, 6, dtype=torch.float64)
    found = audit(Whole(function), x, 0, preset)
    assert found.leaks(1e-9) == []
    torch.testing.assert_close(found.at_input + found.absorbed, function(x.clone())[:, 0])
    passed = run(Whole(function), x, preset)
    torch.testing.assert_close(found.relevance, passed.relevance(passed.logits[:, 0]))


@pytest.mark.parametrize("function", [into_part_of_a_buffer, into_part_of_a_strided_buffer])
def test_a_buffer_that_is_written_into_by_a_view_absorbs_what_it_held(function: Callable[[Tensor], Tensor]) -> None:
    found = audit(Whole(function), torch.randn(3, 6, dtype=torch.float64), 0, presets.lrp_z())
    torch.testing.assert_close(found.absorbed, 0.5 * sum(range(8)) * ones(3))


@pytest.mark.parametrize("preset", [presets.lrp_z(), presets.lrp_zplus()], ids=lambda preset: preset.name)
def test_constants_written_around_the_image_absorb_their_share(preset: Preset) -> None:
    """[0.5, 0.5, x + (0, 0, 1, 1, 1, 1)] · (0 ... 7), all positive: z⁺ is z."""
    x = torch.rand(3, 6, dtype=torch.float64) + 0.1
    found = audit(Whole(into_a_buffer), x, 0, preset)
    constants = 0.5 * (0 + 1) + 1 * (4 + 5 + 6 + 7)
    whole = into_a_buffer(x)[:, 0]
    share = constants / whole if preset.start == "one" else torch.full_like(whole, constants)
    torch.testing.assert_close(found.absorbed, share)


def test_a_sample_is_accounted_for_alone_whatever_the_layout_of_the_tensors() -> None:
    """nn.MultiheadAttention with the batch second, and heads folded into the batch."""
    attention = nn.MultiheadAttention(8, 2).eval()
    head = nn.Linear(8, 3)

    def function(x: Tensor) -> Tensor:
        tokens = x.flatten(2).permute(2, 0, 1)  # [N, B, D], N a multiple of B
        return head(tokens + attention(tokens, tokens, tokens)[0]).mean(0)

    model = lively(Whole(function, attention=attention, head=head)).double()
    x = torch.randn(2, 8, 2, 3, dtype=torch.float64)
    together = audit(model, x, [0, 2], presets.lrp_z())
    for sample, target in enumerate((0, 2)):
        alone = audit(model, x[sample : sample + 1], target, presets.lrp_z())
        assert [a.operation for a in alone.operations] == [a.operation for a in together.operations]
        for one, both in zip(alone.operations, together.operations, strict=True):
            torch.testing.assert_close(one.received[0], both.received[sample])
            torch.testing.assert_close(one.passed[0], both.passed[sample])
            torch.testing.assert_close(one.absorbed_in_all[0], both.absorbed_in_all[sample])
    assert {a.operation for a in together.leaks(1e-6)} == {"softmax"}


def test_constants_computed_from_parameters_keep_their_names() -> None:
    """A relative-position bias is looked up in a table before it is added."""
    part = nn.Module()
    part.table = nn.Parameter(torch.randn(9, dtype=torch.float64))
    index = torch.randint(0, 9, (6,))
    x = torch.randn(2, 6, dtype=torch.float64)
    found = audit(Whole(lambda v: (v + part.table[index].view(1, 6) * 2).sum(1, keepdim=True), bias=part), x, 0,
                  presets.lrp_z())  # fmt: skip
    absorbed = found.absorbed_by()
    assert list(absorbed) == ["parts.bias.table"]
    torch.testing.assert_close(absorbed["parts.bias.table"], (2 * part.table[index].sum()).detach().expand(2))


def test_a_name_does_not_pass_to_what_is_later_stored_in_the_same_place() -> None:
    part = nn.Module()
    part.table = nn.Parameter(torch.randn(6, dtype=torch.float64))

    def function(x: Tensor) -> Tensor:
        _ = part.table * 2  # thrown away, so that its memory is free for what comes next
        del _
        return (x + torch.full((6,), 3.0, dtype=x.dtype)).sum(1, keepdim=True)

    found = audit(Whole(function, part=part), torch.randn(1, 6, dtype=torch.float64), 0, presets.lrp_z())
    assert {name: float(share) for name, share in found.absorbed_by().items()} == pytest.approx({"constant": 18})


# --- gaps, tables, errors, leaks ------------------------------------------------------------------------------------------


def test_an_operation_without_a_rule_is_an_error_or_a_named_gap() -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.Softplus(), nn.Linear(3, 2)).double()
    x = torch.randn(2, 4, dtype=torch.float64)
    with pytest.raises(UnsupportedOperationError, match="softplus"):
        audit(net, x, 0, presets.lrp_z())
    with pytest.warns(RelevanceGapWarning):
        found = audit(net, x, 0, presets.lrp_z(), strict=False)
    (gap,) = found.gaps()
    assert (gap.operation, gap.module) == ("softplus", "1")
    hidden = net[0](x).detach()
    received = (F.softplus(hidden) * net[2].weight[0]).sum(1).detach()
    passed = (hidden * hidden.sigmoid() * net[2].weight[0]).sum(1).detach()
    torch.testing.assert_close(gap.leak, passed - received)
    assert found.leaks(1e-6) == [gap]
    assert "softplus (no rule)" in str(found)


def test_a_function_out_of_sight_is_a_gap_by_its_name() -> None:
    class Cubed(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        def backward(ctx, c):
            return 3 * ctx.saved_tensors[0] ** 2 * c

    x = torch.randn(2, 4, dtype=torch.float64)
    with pytest.warns(RelevanceGapWarning):
        found = audit(Whole(lambda v: Cubed.apply(v * 2).sum(1, keepdim=True)), x, 0, presets.lrp_z(), strict=False)
    (gap,) = found.gaps()
    assert gap.operation == "Cubed"
    torch.testing.assert_close(gap.leak, 2 * (2 * x).pow(3).sum(1))  # three times what came
    assert_all_is_accounted_for(found)


def test_tables() -> None:
    found = audit(TinyCNN().eval(), torch.randn(2, 3, 16, 16), [0, 1], presets.lrp_alpha_beta())
    rows, kinds = found.rows(), found.kinds()
    assert len(rows) == 2 * len(found.operations)
    assert [row["step"] for row in rows[:4]] == [0, 0, 1, 1]
    assert [row["sample"] for row in rows[:4]] == [0, 1, 0, 1]
    assert sum(row["count"] for row in kinds) == len(found.operations)
    for name in ("received", "passed", "absorbed", "leak", "vanished", "created_there"):
        assert sum(kind[name] for kind in kinds) == pytest.approx(sum(row[name] for row in rows))
    assert sum(row["leak"] for row in rows) == pytest.approx(float((found.created - found.lost).sum()))
    leaks, absorbed = found.leaks(), list(found.absorbed_by().values())
    assert [float(a.leak.abs().max()) for a in leaks] == sorted(
        (float(a.leak.abs().max()) for a in leaks), reverse=True
    )
    assert [float(v.abs().max()) for v in absorbed] == sorted((float(v.abs().max()) for v in absorbed), reverse=True)
    worst = leaks[0]
    lines = str(found).splitlines()
    assert "2 of" in lines[2]
    assert lines[4].split()[0] == worst.operation
    assert len(found.table(rows=1).splitlines()) == len(lines) - 1


def one_account(received: float, passed: float, size: float, gap: bool = False) -> Audit:
    account = Account.empty("sum", "", "", samples=1)
    account.received += received
    account.passed += passed
    account.size += size
    account.gap = gap
    return Audit("", ones(1, 1, 1, 1), ones(1), [account])


@pytest.mark.parametrize(
    ("leak", "size", "found"),
    [(1.2e-3, 50, True), (0.8e-3, 50, False), (1.2e-3, 200, False), (2.2e-3, 200, True), (-2.2e-3, 200, True)],
)
def test_a_leak_is_a_share_of_what_was_given_or_of_a_hundredth_of_what_passes(
    leak: float, size: float, found: bool
) -> None:
    assert bool(one_account(1, 1 + leak, size).leaks(1e-3)) == found


@pytest.mark.parametrize(("size", "gap", "found"), [(1, True, True), (0, True, False), (1, False, False)])
def test_a_gap_is_one_that_relevance_went_through(size: float, gap: bool, found: bool) -> None:
    assert bool(one_account(size, size, size, gap).gaps()) == found


def test_a_logit_of_zero_is_undefined_where_relevance_starts_at_one() -> None:
    net = nn.Linear(3, 2, bias=False)
    x = torch.stack([torch.zeros(3), torch.ones(3)])
    found = audit(net, x, 0, presets.lrp_zplus())
    assert found.start.isnan().tolist() == [True, False]
    assert found.at_input.isnan().tolist() == [True, False]
    assert found.operations[0].leak.isnan().tolist() == [True, False]
    assert "1 undefined" in str(found)


@pytest.mark.parametrize("targets", [3, -1, [0], [0, 1, 2], [0.0, 1.0], torch.tensor([[0], [1]]), [0, 5]])
def test_targets_that_do_not_fit_are_named(targets: object) -> None:
    with pytest.raises(InputError, match="from 0 to 2"):
        audit(nn.Linear(4, 3), torch.rand(2, 4), targets, presets.lrp_z())


def test_without_targets_the_prediction_is_audited() -> None:
    net, x = nn.Linear(4, 3), torch.randn(5, 4)
    found = audit(net, x, None, presets.lrp_z())
    torch.testing.assert_close(found.start, net(x).amax(1).detach().double())


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_leaks(fails: bool) -> None:
    """Hooks, gradients, flags and random numbers of the model are as before; the graph is freed."""

    def stop(c: Tensor) -> None:
        raise KeyboardInterrupt

    net = TinyCNN().eval()
    kept: list[weakref.ref] = []

    def forward(x: Tensor) -> Tensor:
        result = net(x)
        kept.append(weakref.ref(result))
        if fails:
            result.register_hook(stop)
        return result

    model = Whole(forward, net=net)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    flags = [p.requires_grad for p in model.parameters()]
    state = torch.get_rng_state()
    images = torch.linspace(-1, 1, 3 * 256).view(1, 3, 16, 16)
    if fails:
        with pytest.raises(KeyboardInterrupt):
            audit(model, images, 0, presets.lrp_zplus())
    else:
        audit(model, images, 0, presets.lrp_zplus())
    gc.collect()
    assert kept[0]() is None
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert flags == [p.requires_grad for p in model.parameters()]
    assert all(p.grad is None for p in model.parameters())
    assert not images.requires_grad
    assert not any(part._forward_hooks or part._forward_pre_hooks or part._backward_hooks for part in model.modules())
    assert torch.overrides._get_current_function_mode_stack() == []


def test_random_numbers_of_the_model_are_drawn_as_often_as_without_the_audit() -> None:
    """Operations run again to find what their constants contribute; those that draw numbers do not."""

    def function(x: Tensor) -> Tensor:
        noisy = torch.nn.functional.dropout(x + 1, 0.5, training=False) * torch.rand(6)
        return noisy.sum(1, keepdim=True)

    torch.manual_seed(3)
    plain = function(torch.ones(2, 6))
    after = torch.get_rng_state()
    torch.manual_seed(3)
    found = audit(Whole(function), torch.ones(2, 6), 0, presets.lrp_z())
    assert torch.equal(after, torch.get_rng_state())
    torch.testing.assert_close(found.start, plain[:, 0].double())


def test_a_rule_of_ones_own_that_is_unchanged_has_no_absorption() -> None:
    norm = nn.LayerNorm(6).double()
    nn.init.normal_(norm.bias)
    net, x = nn.Sequential(norm, nn.Linear(6, 2).double()), torch.randn(3, 6, dtype=torch.float64)
    found = audit(net, x, 0, composite(operations={"layer_norm": unchanged}))
    assert found.operations[0].absorbed == {}
    assert found.leaks(1e-9) == []
