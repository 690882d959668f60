"""Every operation against its formula: number by number, in float64, from the operation's own Jacobian."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from heatproof.errors import UnsupportedOperationError
from heatproof.relevance import presets
from support.operations import SHAPE, Function, build, jacobian, relevance_of, with_head, z_plus


def positions(*shape: int, below: int) -> Tensor:
    return torch.arange(torch.Size(shape).numel()).view(shape) * 7 % below


def grid() -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.rand(1, 3, 5, 2, dtype=torch.float64, generator=generator) * 2 - 1


def volume(v: Tensor) -> Tensor:
    return v.reshape(len(v), 1, 2, 4, 4)


def line(v: Tensor) -> Tensor:
    return v.flatten(2)


# every number is one number of the input, the winner of several, or a constant
MOVES: dict[str, Function] = {
    "reshape": lambda v: v.reshape(len(v), -1, 8),
    "transposed attribute": lambda v: v.mT,
    "permute": lambda v: v.permute(0, 2, 3, 1).contiguous(),
    "einsum that permutes": lambda v: torch.einsum("nchw->nwhc", v),
    "movedim": lambda v: v.movedim(1, 3),
    "swapaxes": lambda v: v.swapaxes(1, 2),
    "flatten": lambda v: v.flatten(1).unflatten(1, (4, 8)),
    "cat": lambda v: torch.cat([v[:, :1], v, torch.ones_like(v)], 1),
    "stack": lambda v: torch.stack([v, v.flip(1)], 1),
    "hstack": lambda v: torch.hstack([v, v]),
    "chunk": lambda v: v.chunk(2, 1)[1],
    "split": lambda v: v.split([1, 3], 2)[1],
    "tensor_split": lambda v: v.tensor_split(3, 2)[0],
    "unbind": lambda v: v.unbind(1)[1],
    "slice": lambda v: v[:, :, 1:3, ::2],
    "index": lambda v: v[:, torch.tensor([1, 0, 1])],
    "index_select": lambda v: v.index_select(2, torch.tensor([3, 3, 0])),
    "gather": lambda v: v.gather(2, positions(1, 2, 3, 4, below=4).expand(len(v), -1, -1, -1)),
    "take_along_dim": lambda v: v.take_along_dim(positions(1, 2, 3, 4, below=4).expand(len(v), -1, -1, -1), 2),
    "roll": lambda v: v.roll((1, 2), (2, 3)),
    "flip": lambda v: v.flip(2),
    "rot90": lambda v: v.rot90(1, (2, 3)),
    "expand": lambda v: v[:, None].expand(-1, 3, -1, -1, -1),
    "repeat": lambda v: v.repeat(1, 2, 1, 3),
    "repeat_interleave": lambda v: v.repeat_interleave(2, 1),
    "tile": lambda v: v.tile(1, 2, 1, 1),
    "diagonal": lambda v: v.diagonal(0, 2, 3),
    "tril": lambda v: v.tril(),
    "constant pad": lambda v: F.pad(v, (1, 0, 2, 1), value=0.7),
    "reflect pad": lambda v: F.pad(v, (1, 2, 2, 1), mode="reflect"),
    "reflect pad 1d": lambda v: F.pad(line(v), (1, 2), mode="reflect"),
    "reflect pad 3d": lambda v: F.pad(volume(v), (1, 2, 2, 1, 1, 1), mode="reflect"),
    "replicate pad": lambda v: F.pad(v, (1, 2, 2, 1), mode="replicate"),
    "replicate pad 3d": lambda v: F.pad(volume(v), (1, 2, 2, 1, 1, 1), mode="replicate"),
    "circular pad": lambda v: F.pad(v, (1, 2, 2, 1), mode="circular"),
    "nearest": lambda v: F.interpolate(v, scale_factor=1.5),
    "nearest exact": lambda v: F.interpolate(v, size=(3, 6), mode="nearest-exact"),
    "nearest 1d": lambda v: F.interpolate(line(v), size=11),
    "nearest 3d": lambda v: F.interpolate(volume(v), scale_factor=2),
    "sampled at nearest places": lambda v: F.grid_sample(
        v, grid().expand(len(v), -1, -1, -1), mode="nearest", align_corners=False
    ),
    "pixel_shuffle": lambda v: F.pixel_shuffle(v.reshape(len(v), 8, 2, 2), 2),
    "pixel_unshuffle": lambda v: F.pixel_unshuffle(v, 2),
    "channel_shuffle": lambda v: F.channel_shuffle(v, 2),
    "unfold": lambda v: F.unfold(v, 2, padding=1),
    "unfold of tensors": lambda v: v.unfold(2, 2, 1),
    "where": lambda v: torch.where(v > 0, v, v.flip(3)),
    "where with a constant": lambda v: torch.where(v > 0, v, 0.3),
    "masked_fill": lambda v: v.masked_fill(v > 0.5, 2.0),
    "masked_scatter": lambda v: torch.stack([t.masked_scatter(positions(2, 4, 4, below=3) == 0, t.flip(2)) for t in v]),
    "index_fill": lambda v: v.index_fill(1, torch.tensor([0]), 2.0),
    "index_copy": lambda v: v.index_copy(2, torch.tensor([0]), v[:, :, 3:]),
    "scatter": lambda v: v.scatter(2, positions(1, 2, 1, 4, below=4).expand(len(v), -1, -1, -1), v[:, :, :1]),
    "select_scatter": lambda v: v.select_scatter(v[:, 1], 1, 0),
    "slice_scatter": lambda v: v.slice_scatter(v[:, 1:], 1, 0, 1),
    "negative": lambda v: -v,
    "scaled": lambda v: v * -0.3 / 2,
    "nan_to_num": lambda v: v.nan_to_num(),
    "dropout": lambda v: F.dropout(v, 0.5, training=False),
    "dropout of channels": lambda v: F.feature_alpha_dropout(F.dropout2d(v, 0.5, False), 0.5, False),
    "relu": F.relu,
    "threshold": lambda v: F.threshold(v, 0.2, -0.4),
    "leaky_relu": lambda v: F.leaky_relu(v, 0.2),
    "prelu": lambda v: F.prelu(v, torch.tensor([0.1, 0.3]).double()),
    "rrelu": lambda v: F.rrelu(v),
    "abs": lambda v: v.abs(),
    "max pool 1d": lambda v: F.max_pool1d(line(v), 3, 2, padding=1),
    "max pool 2d": lambda v: F.max_pool2d(v, 2, 1),
    "max pool with indices": lambda v: F.max_pool2d(v, 3, 2, 1, return_indices=True)[0],
    "max pool 3d": lambda v: F.max_pool3d(volume(v), 2),
    "max unpool": lambda v: F.max_unpool2d(*F.max_pool2d(v, 2, return_indices=True), 2),
    "adaptive max pool 1d": lambda v: F.adaptive_max_pool1d(line(v), 5),
    "adaptive max pool 2d": lambda v: F.adaptive_max_pool2d(v, (3, 2)),
    "adaptive max pool 3d": lambda v: F.adaptive_max_pool3d(volume(v), (1, 3, 2)),
    "maximum": lambda v: torch.maximum(v, v.flip(1)),
    "minimum of two": lambda v: torch.min(v, v.flip(1)),
    "maximum with a constant": lambda v: torch.maximum(v, torch.tensor(0.2).double()),
    "clamp away from 0": lambda v: v.clamp(min=0.2),
    "clamp to a tensor": lambda v: v.clamp(max=torch.linspace(-1, 1, 4).double()),
    "amax": lambda v: v.amax((2, 3)),
    "amin": lambda v: v.amin(1),
    "max along an axis": lambda v: v.max(2)[0],
    "topk": lambda v: v.flatten(1).topk(5)[0],
    "sort": lambda v: v.sort(3)[0],
    "median": lambda v: v.median(2)[0],
    "kthvalue": lambda v: v.kthvalue(2, 3)[0],
}


@pytest.mark.parametrize("name", MOVES)
def test_what_moves_values_moves_their_relevance(name: str) -> None:
    """R goes where the value came from, under every preset, so c is that of the numbers by their Jacobian."""
    function, x = MOVES[name], torch.randn(SHAPE, dtype=torch.float64)
    model, head = with_head(function, x)
    came_from, z = (jacobian(function, x) != 0).double(), function(x).flatten(1)
    assert (came_from.sum(2) <= 1).all()
    by_z = head * z
    positive, negative = (part / part.sum(1, keepdim=True).abs().clamp(min=1e-12) for part in
                          (by_z.clamp(min=0), by_z.clamp(max=0)))  # fmt: skip
    expected = {
        "lrp_z": by_z,
        "lrp_epsilon": by_z,
        "lrp_zplus": positive,
        "lrp_alpha_beta": 2 * positive + negative,
    }
    for preset, of_z in expected.items():
        found = relevance_of(model, x, build(preset))
        torch.testing.assert_close(found.flatten(1), torch.einsum("nji,nj->ni", came_from, of_z), atol=1e-9, rtol=1e-7)


# a sum of numbers with weights that do not depend on the image
SUMS: dict[str, Function] = {
    "sum": lambda v: v.sum((1, 3)),
    "sum of everything": lambda v: torch.stack([sample.sum() for sample in v])[:, None],
    "mean": lambda v: v.mean((2, 3), keepdim=True),
    "sum_to_size": lambda v: v.sum_to_size(len(v), 2, 1, 4),
    "cumsum": lambda v: v.cumsum(2),
    "einsum that sums": lambda v: torch.einsum("nchw->nh", v),
    "average pool 1d": lambda v: F.avg_pool1d(line(v), 3, 2, padding=1),
    "average pool 2d": lambda v: F.avg_pool2d(v, 3, 2, padding=1, ceil_mode=True, count_include_pad=False),
    "average pool 3d": lambda v: F.avg_pool3d(volume(v), 2, 1),
    "adaptive average pool 1d": lambda v: F.adaptive_avg_pool1d(line(v), 5),
    "adaptive average pool 3d": lambda v: F.adaptive_avg_pool3d(volume(v), (1, 3, 2)),
    "linear": lambda v: F.interpolate(line(v), size=11, mode="linear"),
    "bilinear": lambda v: F.interpolate(v, scale_factor=1.7, mode="bilinear"),
    "bilinear with corners": lambda v: F.interpolate(v, size=(7, 3), mode="bilinear", align_corners=True),
    "bilinear, antialiased": lambda v: F.interpolate(v, size=(3, 2), mode="bilinear", antialias=True),
    "trilinear": lambda v: F.interpolate(volume(v), size=(3, 5, 3), mode="trilinear"),
    "area": lambda v: F.interpolate(v, size=(3, 3), mode="area"),
    "sampled between places": lambda v: F.grid_sample(v, grid().expand(len(v), -1, -1, -1), align_corners=False,
                                                      padding_mode="border"),
    "fold": lambda v: F.fold(v.reshape(len(v), 8, 4), (3, 3), 2),
    "added": lambda v: v + v.flip(3) * 0.5,
    "added by name": lambda v: torch.add(input=v, other=v.flip(3), alpha=-2),
    "subtracted from": lambda v: torch.rsub(v, v.flip(3), alpha=0.5),
    "added to itself": lambda v: v + v,
    "a number minus": lambda v: 0.3 - v,
    "difference of neighbours": lambda v: v.diff(dim=3),
    "lerp": lambda v: torch.lerp(v, v.flip(3), 0.3),
    "lerp with weights": lambda v: torch.lerp(v, torch.ones_like(v), torch.linspace(0, 1, 4).double()),
    "addcmul with constants": lambda v: torch.addcmul(v.flip(3), v, torch.linspace(-1, 1, 4).double(), value=-2),
    "addcdiv with constants": lambda v: torch.addcdiv(v.flip(3), v, torch.linspace(1, 2, 4).double(), value=-2),
    "index_add": lambda v: v.index_add(2, torch.tensor([0, 0]), v[:, :, 2:] * 2),
    "index_add, subtracting": lambda v: v.index_add(2, torch.tensor([0]), v[:, :, 3:], alpha=-2),
    "index_add to a constant": lambda v: torch.ones_like(v).index_add(2, torch.tensor([0, 0]), v[:, :, 2:]),
    "scatter_add": lambda v: v.scatter_add(2, positions(1, 2, 3, 4, below=4).expand(len(v), -1, -1, -1), v[:, :, 1:]),
    "index_put that adds": lambda v: v.index_put((torch.arange(len(v)),), v.flip(3), accumulate=True),
}  # fmt: skip


@pytest.mark.parametrize("name", SUMS)
@pytest.mark.parametrize("preset", ["lrp_z", "lrp_epsilon", "lrp_zplus", "attn_lrp"])
def test_a_sum_is_a_linear_layer(name: str, preset: str) -> None:
    function, x = SUMS[name], torch.randn(SHAPE, dtype=torch.float64)
    model, head = with_head(function, x)
    weight, z = jacobian(function, x), function(x).flatten(1)
    bias = z - torch.einsum("nji,ni->nj", weight, x.flatten(1))
    if preset == "lrp_zplus":
        top = z_plus(z, head.expand(2, 1, -1), torch.zeros(2, 1).double(), torch.ones(2, 1).double())
        expected = z_plus(x.flatten(1), weight, bias, top)
    else:
        expected = x.flatten(1) * torch.einsum("nji,j->ni", weight, head[0])
    close = 1e-4 if preset == "attn_lrp" else 1e-9  # its ε is 1e-6
    torch.testing.assert_close(relevance_of(model, x, build(preset)).flatten(1), expected, atol=close, rtol=close)


def test_a_sum_that_accumulates_in_place_is_the_same() -> None:
    x = torch.randn(SHAPE, dtype=torch.float64)
    model, _ = with_head(lambda v: v.flip(3).index_add_(2, torch.tensor([0, 0]), v[:, :, 2:]), x)
    tidy = lambda v: v.flip(3).index_add(2, torch.tensor([0, 0]), v[:, :, 2:])  # noqa: E731
    head = lambda v: F.linear(tidy(v).flatten(1), with_head_of(model))  # noqa: E731
    for preset in ("lrp_z", "lrp_zplus"):
        torch.testing.assert_close(relevance_of(model, x, build(preset)), relevance_of(head, x, build(preset)))


def with_head_of(model: Function) -> Tensor:
    """The weights that `with_head` closed over."""
    return next(cell.cell_contents for cell in model.__closure__ or () if isinstance(cell.cell_contents, Tensor))


LAYERS: dict[str, Callable[[], tuple[Function, Function]]] = {
    # the layer, and what makes its input out of [N, 2, 4, 4]
    "dense": lambda: (nn.Linear(32, 5), lambda v: v.flatten(1)),
    "dense over tokens": lambda: (nn.Linear(8, 5), lambda v: v.flatten(2).reshape(len(v), 4, 8)),
    "dense, weight by name": lambda: (keyword_linear(), lambda v: v.flatten(1)),
    "conv 1d": lambda: (nn.Conv1d(2, 4, 3, stride=2, padding=2, dilation=2, groups=2), line),
    "conv 2d": lambda: (nn.Conv2d(2, 4, (3, 2), stride=(2, 1), padding=(1, 0), groups=2), lambda v: v),
    "conv 3d": lambda: (nn.Conv3d(1, 2, 2, padding=1), volume),
    "same": lambda: (nn.Conv2d(2, 3, 3, padding="same", dilation=2), lambda v: v),
    "circular": lambda: (nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), lambda v: v),
    "transposed 1d": lambda: (nn.ConvTranspose1d(2, 2, 3, stride=2, padding=1, output_padding=1), line),
    "transposed 2d": lambda: (nn.ConvTranspose2d(2, 4, 3, stride=2, groups=2, dilation=2), lambda v: v),
    "transposed 3d": lambda: (nn.ConvTranspose3d(1, 2, 2, stride=2), volume),
    "matmul": lambda: (times(torch.randn(8, 3), torch.matmul), lambda v: v.reshape(len(v), 4, 8)),
    "matmul from the left": lambda: (times(torch.randn(3, 4), lambda v, w: w @ v), lambda v: v.reshape(len(v), 4, 8)),
    "vector": lambda: (times(torch.randn(8), torch.matmul), lambda v: v.reshape(len(v), 4, 8)),
    "mm": lambda: (times(torch.randn(32, 3), torch.mm), lambda v: v.flatten(1)),
    "mv": lambda: (times(torch.randn(32), lambda v, w: v.mv(w)[:, None]), lambda v: v.flatten(1)),
    "addmm": lambda: (times(torch.randn(33, 3), lambda v, w: torch.addmm(w[0], v, w[1:])), lambda v: v.flatten(1)),
    "einsum": lambda: (times(torch.randn(3, 2, 4), lambda v, w: torch.einsum("nchw,och->now", v, w)), lambda v: v),
    "einsum of three": lambda: (times(torch.randn(2, 4, 4), lambda v, w: torch.einsum("nchw,hk,kw->nck", v, *w)),
                                lambda v: v),
    "einsum of contracted weights": lambda: (times(torch.randn(2, 4, 4), lambda v, w:
                                             torch.einsum("nchw,hk,ko->ncow", v, *w)), lambda v: v),
    "tensordot": lambda: (times(torch.randn(4, 4, 3), lambda v, w: torch.tensordot(v, w, 2)), lambda v: v),
    "inner": lambda: (times(torch.randn(3, 4), torch.inner), lambda v: v),
}  # fmt: skip


def times(weight: Tensor, function: Callable[[Tensor, Tensor], Tensor]) -> Function:
    weight = weight.double()
    return lambda v: function(v, weight)


def keyword_linear() -> Function:
    weight, bias = torch.randn(5, 32).double(), torch.randn(5).double()
    return lambda v: F.linear(input=v, weight=weight, bias=bias)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("preset", ["lrp_z", "lrp_epsilon", "lrp_zplus"])
def test_a_weighted_layer_is_its_matrix(name: str, preset: str) -> None:
    layer, shaped = LAYERS[name]()
    layer = layer.double() if isinstance(layer, nn.Module) else layer
    x = torch.randn(SHAPE, dtype=torch.float64)
    function = lambda v: layer(shaped(v))  # noqa: E731
    model, head = with_head(function, x)
    weight, z = jacobian(function, x), function(x).flatten(1).detach()
    bias = z - torch.einsum("nji,ni->nj", weight, x.flatten(1))
    top = head * z
    if preset == "lrp_zplus":
        top = z_plus(z, head.expand(2, 1, -1), torch.zeros(2, 1).double(), torch.ones(2, 1).double())
        expected = z_plus(x.flatten(1), weight, bias, top)
    else:
        epsilon = 0.3 if preset == "lrp_epsilon" else 0.0
        logit = top.sum(1, keepdim=True)
        top = top * logit / (logit + epsilon * logit.sign())
        expected = x.flatten(1) * torch.einsum("nji,nj->ni", weight, top / (z + epsilon * z.sign()))
    rules = presets.lrp_epsilon(0.3) if preset == "lrp_epsilon" else build(preset)
    torch.testing.assert_close(relevance_of(model, x, rules).flatten(1), expected, atol=1e-9, rtol=1e-7)


def hand_gelu(v: Tensor) -> Tensor:
    return v * 0.5 * (1.0 + torch.erf(v / 2**0.5))


def hand_tanh_gelu(v: Tensor) -> Tensor:
    return 0.5 * v * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (v + 0.044715 * torch.pow(v, 3.0))))


ACTIVATIONS: dict[str, Function] = {
    "gelu": F.gelu,
    "tanh gelu": lambda v: F.gelu(v, approximate="tanh"),
    "gelu by hand": hand_gelu,
    "tanh gelu by hand": hand_tanh_gelu,
    "quick gelu by hand": lambda v: v * torch.sigmoid(1.702 * v),
    "silu": F.silu,
    "silu by hand": lambda v: v * v.sigmoid(),
    "silu by hand in place": lambda v: v.mul(v.sigmoid()),
    "silu with a special sigmoid": lambda v: torch.special.expit(v) * v,
    "mish": F.mish,
    "hardswish": F.hardswish,
    "hardsigmoid gate": lambda v: F.hardsigmoid(v) * v,
    "tanh": torch.tanh,
    "hardtanh": lambda v: F.hardtanh(v, -0.5, 0.7),
    "relu6": lambda v: F.relu6(v * 8),
    "clamp": lambda v: v.clamp(-0.3, 0.4),
    "clamp by name": lambda v: torch.clip(input=v, min=-0.3, max=0.4),
    "clamp from below": lambda v: v.clamp_min(-0.2),
    "clamp from above": lambda v: v.clamp_max(max=0.2),
    "elu": F.elu,
    "celu": lambda v: F.celu(v, 0.5),
    "selu": F.selu,
    "softsign": F.softsign,
    "tanhshrink": F.tanhshrink,
    "softshrink": lambda v: F.softshrink(v, 0.2),
    "hardshrink": lambda v: F.hardshrink(v, 0.2),
    "rrelu": F.rrelu,
    "sine": torch.sin,
    "arctangent": torch.arctan,
    "expm1": torch.expm1,
    "square": torch.square,
    "cube": lambda v: v**3,
    "power by name": lambda v: torch.pow(v, exponent=2),
    "power by tensor": lambda v: v.pow(torch.tensor([2.0, 3.0, 1.0, 2.0]).double()),
    "root of a size": lambda v: v.abs().pow(0.5),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("preset", ["lrp_z", "lrp_zplus", "attn_lrp"])
def test_an_activation_keeps_its_relevance(name: str, preset: str) -> None:
    function, x = ACTIVATIONS[name], torch.randn(SHAPE, dtype=torch.float64)
    model, head = with_head(function, x)
    z = function(x).flatten(1)
    expected = head * z
    if preset == "lrp_zplus":
        expected = z_plus(z, head.expand(2, 1, -1), torch.zeros(2, 1).double(), torch.ones(2, 1).double())
    found = relevance_of(model, x, build(preset)).flatten(1)
    torch.testing.assert_close(found, expected, atol=1e-4 if preset == "attn_lrp" else 1e-9, rtol=1e-4)


REFUSED = """
    softplus | logsigmoid | exp | log_softmax | logsumexp | cumprod | cummax | prod | reflected power | power of a number |
    live exponent | mixed exponents | moving grid | fractional | quantile | renorm | native batch norm
"""


@pytest.mark.parametrize("name", [name.strip() for name in REFUSED.split("|")])
@pytest.mark.parametrize("preset", ["lrp_z", "lrp_epsilon", "lrp_zplus", "attn_lrp"])
def test_what_is_not_linear_is_refused_by_name(name: str, preset: str) -> None:
    places = lambda v: v[:, :, :, :2].permute(0, 2, 1, 3)  # noqa: E731
    operations: dict[str, tuple[Function, str]] = {
        "softplus": (F.softplus, "softplus"),
        "logsigmoid": (F.logsigmoid, "log_sigmoid"),
        "exp": (torch.exp, "exp"),
        "log_softmax": (lambda v: F.log_softmax(v, 1), "log_softmax"),
        "logsumexp": (lambda v: v.logsumexp(1), "logsumexp"),
        "cumprod": (lambda v: v.cumprod(2), "cumprod"),
        "cummax": (lambda v: v.cummax(2)[0], "cummax"),
        "reflected power": (lambda v: 2**v, "pow"),
        "moving grid": (lambda v: F.grid_sample(v, places(v), align_corners=False), "grid_sample"),
        "prod": (lambda v: v.prod(1), "prod"),
        "fractional": (lambda v: F.fractional_max_pool2d(v, 2, 3), "fractional_max_pool2d"),
        "power of a number": (lambda v: torch.pow(2.0, v), "pow"),
        "live exponent": (lambda v: v.abs() ** v, "pow"),
        "mixed exponents": (lambda v: v.abs().pow(torch.tensor([1.0, -1, 2, 3]).double()), "pow"),
        "quantile": (lambda v: v.quantile(0.3, 1), "quantile"),
        "renorm": (lambda v: v.renorm(2, 0, 1.0), "renorm"),
        "native batch norm": (
            lambda v: torch.native_batch_norm(v, None, None, None, None, True, 0.1, 1e-5)[0],
            "native_batch_norm",
        ),
    }
    function, operation = operations[name]
    with pytest.raises(UnsupportedOperationError, match=f"'{operation}' in module"):
        relevance_of(lambda v: function(v).flatten(1), torch.randn(SHAPE, dtype=torch.float64), build(preset))


def test_a_sum_inside_another_operation_is_refused_where_sums_have_a_rule() -> None:
    x = torch.randn(SHAPE, dtype=torch.float64)
    hidden = lambda v: torch.ops.aten.upsample_bilinear2d(v, [6, 6], False).flatten(1)  # noqa: E731
    open_ = lambda v: F.interpolate(v, size=6, mode="bilinear").flatten(1)  # noqa: E731
    torch.testing.assert_close(relevance_of(hidden, x, presets.lrp_z()), relevance_of(open_, x, presets.lrp_z()))
    for preset in (presets.lrp_zplus(), presets.lrp_gamma()):
        with pytest.raises(UnsupportedOperationError, match="'upsample_bilinear2d' .* more than move"):
            relevance_of(hidden, x, preset)


def test_bicubic_interpolation_is_its_own_gradient_where_sums_are() -> None:
    x = torch.randn(SHAPE, dtype=torch.float64)
    function = lambda v: F.interpolate(v, size=(6, 5), mode="bicubic", antialias=True)  # noqa: E731
    model, head = with_head(function, x)
    expected = x.flatten(1) * torch.einsum("nji,j->ni", jacobian(function, x), head[0])
    torch.testing.assert_close(relevance_of(model, x, presets.lrp_z()).flatten(1), expected)
    with pytest.raises(UnsupportedOperationError, match="'interpolate' .* weights of both signs"):
        relevance_of(model, x, presets.lrp_zplus())


PRODUCTS: dict[str, tuple[int, Callable[..., Tensor]]] = {
    "mul": (2, lambda a, b: a * b),
    "mul by name": (2, lambda a, b: torch.mul(input=a, other=b)),
    "three factors": (3, lambda a, b, c: torch.einsum("nij,nij,nij->nij", a, b, c)),
    "matmul": (2, lambda a, b: a @ b),
    "matmul by name": (2, lambda a, b: torch.matmul(a, other=b)),
    "bmm": (2, torch.bmm),
    "vectors": (2, lambda a, b: torch.stack([torch.dot(a[0, 0], b[0, 0]), torch.inner(a[0, 1], b[0, 1])])[None]),
    "matrix and vector": (2, lambda a, b: a[0].mv(b[0, 0])[None]),
    "outer": (2, lambda a, b: torch.outer(a[0, 0], b[0, 0])[None]),
    "einsum": (2, lambda a, b: torch.einsum("nij,nkj->nik", a, b)),
    "einsum of a list": (2, lambda a, b: torch.einsum("nij,njk->nik", [a, b])),
    "einsum of four operands, two fixed": (
        2, lambda a, b: torch.einsum("nij,i,njk,k->nik", a, torch.arange(4.0).double(), b, torch.arange(4.0).double())
    ),
    "tensordot": (2, lambda a, b: torch.tensordot(a[0], b[0], 1)[None]),
    "vecdot": (2, lambda a, b: torch.linalg.vecdot(a, b)),
    "bilinear": (2, lambda a, b: F.bilinear(a, b, torch.arange(48.0).double().view(3, 4, 4))),
    "weight by name": (2, lambda a, b: F.linear(a[0], weight=b[0])[None]),
    "cosine": (2, lambda a, b: F.cosine_similarity(a.detach(), a.detach()) * torch.einsum("nij,nij->nj", a, b)),
}  # fmt: skip


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("preset", ["lrp_z", "lrp_epsilon", "attn_lrp"])
def test_a_product_of_n_activations_gives_each_its_share(name: str, preset: str) -> None:
    """Each takes the n-th part of x · gradient: by plain autograd, with the others held."""
    count, function = PRODUCTS[name]
    x = torch.randn(1, count, 4, 4, dtype=torch.float64)
    model, head = with_head(lambda v: function(*v.unbind(1)), x)
    expected = torch.zeros_like(x)
    for i in range(count):
        held = [part if j != i else part.clone().requires_grad_() for j, part in enumerate(x.unbind(1))]
        (slope,) = torch.autograd.grad((function(*held).flatten(1) * head).sum(), held[i])
        expected[:, i] = held[i].detach() * slope / count
    close = {"atol": 1e-4, "rtol": 1e-4} if preset == "attn_lrp" else {"atol": 1e-9, "rtol": 1e-7}
    torch.testing.assert_close(relevance_of(model, x, build(preset)), expected, **close)


FUSED: dict[str, tuple[Function, Function]] = {
    "addcmul": (lambda v: torch.addcmul(v[:, 0], v[:, 0], v[:, 1], value=2), lambda v: v[:, 0] + v[:, 0] * v[:, 1] * 2),
    "addcdiv": (lambda v: v[:, 0].addcdiv(v[:, 0], v[:, 1], value=2), lambda v: v[:, 0] + v[:, 0] / v[:, 1] * 2),
    "addmm": (lambda v: torch.addmm(v[0, 0], v[0, 0], v[0, 1], beta=2, alpha=3)[None],
              lambda v: (v[0, 0] * 2 + v[0, 0] @ v[0, 1] * 3)[None]),
    "baddbmm": (lambda v: torch.baddbmm(v[:, 0], v[:, 0], v[:, 1], beta=0.5), lambda v: v[:, 0] * 0.5 + v[:, 0] @ v[:, 1]),
    "baddbmm without its sum": (lambda v: torch.baddbmm(v[:, 0] * torch.nan, v[:, 0], v[:, 1], beta=0),
                                lambda v: v[:, 0] @ v[:, 1]),
    "addbmm": (lambda v: v[0, 0].addbmm(v[:, 0], v[:, 1])[None], lambda v: (v[0, 0] + (v[:, 0] @ v[:, 1]).sum(0))[None]),
    "addmv": (lambda v: torch.addmv(v[0, 0, 0], v[0, 0], v[0, 1, 0])[None],
              lambda v: (v[0, 0, 0] + v[0, 0] @ v[0, 1, 0])[None]),
    "addr": (lambda v: torch.addr(v[0, 0], v[0, 0, 0], v[0, 1, 0], alpha=2)[None],
             lambda v: (v[0, 0] + v[0, 0, 0][:, None] * v[0, 1, 0] * 2)[None]),
    "multi_dot": (lambda v: torch.linalg.multi_dot([v[0, 0], v[0, 1], v[0, 0]])[None],
                  lambda v: (v[0, 0] @ v[0, 1] @ v[0, 0])[None]),
    "lerp by a gate": (lambda v: torch.lerp(v[:, 0], v[:, 1], v[:, 0].sigmoid()),
                       lambda v: v[:, 0] * (1 - v[:, 0].sigmoid()) + v[:, 1] * v[:, 0].sigmoid()),
    "cosine": (lambda v: F.cosine_similarity(v[:, 0], v[:, 1], dim=2),
               lambda v: (v[:, 0] * v[:, 1]).sum(2) / (v[:, 0].norm(dim=2) * v[:, 1].norm(dim=2))),
    "normalize": (lambda v: F.normalize(v, p=3, dim=2), lambda v: v / v.norm(3, 2, keepdim=True).detach()),
    "softmin": (lambda v: F.softmin(v, 2), lambda v: (-v).softmax(2)),
    "special softmax": (lambda v: torch.special.softmax(v, 2), lambda v: v.softmax(2)),
    "softmax module": (nn.Softmax2d(), lambda v: v.softmax(1)),
    "glu": (lambda v: F.glu(v, 1), lambda v: v[:, :1] * v[:, 1:].sigmoid()),
    "local response": (lambda v: F.local_response_norm(v, 2, 0.3),
                       lambda v: v / (v / F.local_response_norm(v, 2, 0.3)).detach()),
    "lp pool": (lambda v: F.lp_pool2d(v.abs(), 3, 2), lambda v: (F.avg_pool2d(v.abs() ** 3, 2) * 4).pow(1 / 3)),
    "var_mean": (lambda v: v - torch.var_mean(v, (2, 3), keepdim=True)[1], lambda v: v - v.mean((2, 3), keepdim=True)),
    "std_mean": (lambda v: v / torch.std_mean(v, 2, True, True)[0], lambda v: v / v.std(2, keepdim=True).detach()),
    "prelu": (lambda v: F.prelu(v, torch.tensor([0.2]).double()), lambda v: F.leaky_relu(v, 0.2)),
    "root of a mean": (lambda v: v * v.pow(2).mean(2, keepdim=True).pow(-0.5), lambda v: F.rms_norm(v.mT, (4,), eps=0.0).mT),
}  # fmt: skip


@pytest.mark.parametrize("name", FUSED)
@pytest.mark.parametrize("preset", ["lrp_z", "lrp_zplus", "attn_lrp"])
def test_a_fused_operation_is_its_parts(name: str, preset: str) -> None:
    fused, parts = FUSED[name]
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64) + 0.1
    torch.testing.assert_close(fused(x), parts(x))
    model, head = with_head(fused, x)
    expected = relevance_of(lambda v: F.linear(parts(v).flatten(1), head), x, build(preset))
    assert expected.abs().max() > 0
    torch.testing.assert_close(relevance_of(model, x, build(preset)), expected)
