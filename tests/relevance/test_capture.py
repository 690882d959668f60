"""Attention as the engine sees it, whatever the model's implementation: probabilities, gradient, relevance, tokens."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

import heatproof as hp
from heatproof.errors import UnsupportedModelError
from heatproof.relevance import presets, run
from heatproof.relevance.backward import ForwardPass
from heatproof.relevance.tokens import attention_matrices, per_head, token_grid, token_layout
from support import odd_models as odd
from support.nets import TinyViT

HEADS = odd.HEADS


def heads_of(projected: Tensor) -> Tensor:
    """`[B, N, D]` -> `[B, heads, N, D / heads]`."""
    return projected.unflatten(-1, (HEADS, -1)).transpose(1, 2)


def merge(heads: Tensor) -> Tensor:
    return heads.transpose(1, 2).flatten(2)


def scores(q: Tensor, k: Tensor) -> Tensor:
    return q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5


Written = tuple[Tensor, Callable[[Tensor], Tensor]]  # the scores, and what becomes of the probabilities


def einsum_by_hand(layer: odd.EinsumAttention, x: Tensor) -> Written:
    width = odd.WIDTH
    q, k, v = (heads_of(x @ weight.reshape(width, width)) for weight in layer.qkv)
    return scores(q, k), lambda a: merge(a @ v) @ layer.out.reshape(width, width)


def folded_by_hand(layer: odd.FoldedAttention, x: Tensor) -> Written:
    q, k, v = (heads_of(part(x)) for part in (layer.q, layer.k, layer.v))
    return scores(q, k) + layer.position, lambda a: layer.out(merge(a @ v))


def stable_by_hand(layer: odd.StableAttention, x: Tensor) -> Written:
    q, k, v = (heads_of(part) for part in layer.qkv(x).chunk(3, -1))
    return scores(q, k), lambda a: layer.out(merge(a @ v))


def torch_by_hand(layer: odd.TorchAttention, x: Tensor) -> Written:
    inner = layer.inner
    q, k, v = (
        heads_of(part) for part in nn.functional.linear(x, inner.in_proj_weight, inner.in_proj_bias).chunk(3, -1)
    )
    return scores(q, k), lambda a: inner.out_proj(merge(a @ v))


def talking_by_hand(layer: odd.TalkingAttention, x: Tensor) -> Written:
    q, k, v = (heads_of(part) for part in layer.qkv(x).chunk(3, -1))
    before = torch.einsum("gh,bhnm->bgnm", layer.before.weight, scores(q, k)) + layer.before.bias[:, None, None]

    def after(a: Tensor) -> Tensor:
        mixed = torch.einsum("gh,bhnm->bgnm", layer.after.weight, a) + layer.after.bias[:, None, None]
        return layer.out(merge(mixed @ v))

    return before, after


ATTENTIONS: dict[str, tuple[Callable[[], nn.Module], Callable[..., Written]]] = {
    "einsum": (odd.EinsumAttention, einsum_by_hand),
    "folded": (odd.FoldedAttention, folded_by_hand),
    "stable": (odd.StableAttention, stable_by_hand),
    "talking heads": (odd.TalkingAttention, talking_by_hand),
    **{
        f"torch weights={weights} batch_first={first}": (
            partial(odd.TorchAttention, weights=weights, batch_first=first), torch_by_hand,
        )
        for weights in (True, False) for first in (True, False)
    },
}  # fmt: skip


def build(name: str, depth: int = 2) -> odd.OddViT:
    return odd.OddViT(*(ATTENTIONS[name][0]() for _ in range(depth))).double().eval()


def by_hand(model: odd.OddViT, images: Tensor, name: str) -> tuple[list[Tensor], Tensor]:
    """The probabilities `[B, heads, N, N]` of each block, and the logits, which depend on them."""
    patches = nn.functional.unfold(images, 8, stride=8).transpose(1, 2)
    x = torch.cat((model.cls.expand(len(images), 1, -1), model.embed(patches)), 1) + model.position
    kept = []
    for layer in model.attentions:
        values, after = ATTENTIONS[name][1](layer, model.norm(x))
        kept.append(values.softmax(-1))
        x = x + after(kept[-1])
        x = x + model.fc2(nn.functional.gelu(model.fc1(model.norm(x))))
    return kept, model.head(model.norm(x)[:, 0])


@pytest.mark.parametrize("name", ATTENTIONS)
def test_probabilities_and_their_gradient_are_those_written_out_by_hand(name: str) -> None:
    model, images = build(name), torch.randn(2, 3, 32, 32).double()
    expected, logits = by_hand(model, images, name)
    gradients = torch.autograd.grad(logits[:, 1].sum(), expected)
    passed = run(model, images, presets.NOTHING)
    torch.testing.assert_close(passed.logits, logits)
    found = attention_matrices(passed)
    assert len(found) == 2
    slopes = passed.per_unit(passed.logits[:, 1], found, phase="gradient")
    for block in range(2):
        torch.testing.assert_close(per_head(found[block], 2), expected[block])
        torch.testing.assert_close(per_head(slopes[block], 2), gradients[block])


@pytest.mark.parametrize("name", ATTENTIONS)
def test_relevance_of_probabilities_is_half_of_their_gradient_times_value_in_the_last_block(name: str) -> None:
    """Above the last attention of a model whose MLP and norm are taken out, everything is linear: the closed form."""
    model, images = build(name, depth=1), torch.randn(2, 3, 32, 32).double()
    model.fc2.weight.data.zero_()
    model.norm = nn.Identity()
    model.norm.weight = model.norm.bias = None
    (expected,), logits = by_hand(model, images, name)
    (gradient,) = torch.autograd.grad(logits[:, 1].sum(), [expected])
    passed = run(model, images, presets.lrp_z())
    (found,) = attention_matrices(passed)
    (c,) = passed.per_unit(passed.logits[:, 1], [found])
    torch.testing.assert_close(per_head(c * found, 2), expected * gradient / 2)


@pytest.mark.parametrize("name", ATTENTIONS)
@pytest.mark.parametrize("method", ["attention", "attention_rollout", "generic_attention"])
def test_maps_do_not_depend_on_how_attention_is_written(name: str, method: str) -> None:
    """The methods' formulas on the matrices written out by hand, for two images at once."""
    model, images = build(name), torch.randn(2, 3, 32, 32).double()
    matrices, logits = by_hand(model, images, name)
    gradients = torch.autograd.grad(logits[:, 3].sum(), matrices)
    identity = torch.eye(odd.TOKENS, dtype=torch.float64)
    if method == "attention":
        joint = matrices[-1].mean(1)
    elif method == "attention_rollout":
        first, last = ((a.mean(1) + identity) / 2 for a in matrices)
        joint = last @ first
    else:
        first, last = ((a * g).clamp(min=0).mean(1) + identity for a, g in zip(matrices, gradients, strict=True))
        joint = last @ first
    found = hp.explain(model, images, [3, 3], method=method, resolution="native")
    torch.testing.assert_close(found, joint[:, 0, 1:].unflatten(1, (4, 4)).detach().float(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", ["ViT", "Dinov2", "Dinov2WithRegisters"])
def test_probabilities_are_those_that_a_transformers_model_returns(kind: str) -> None:
    import transformers

    options = {
        "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 48, "mlp_ratio": 2,
        "image_size": 32, "patch_size": 8, "num_labels": 5,
    }  # fmt: skip
    config = getattr(transformers, f"{kind}Config")(**options, attn_implementation="eager")
    model = getattr(transformers, f"{kind}ForImageClassification")(config).eval()
    images = torch.randn(2, 3, 32, 32)
    expected = model(images, output_attentions=True).attentions
    for implementation in ("eager", "sdpa"):
        model.set_attn_implementation(implementation)
        passed = run(hp.Classifier(model), images, presets.NOTHING)
        for ours, theirs in zip(attention_matrices(passed), expected, strict=True):
            torch.testing.assert_close(ours, theirs)


def test_windowed_attention_is_captured_and_refused_where_the_whole_image_is_needed() -> None:
    import transformers

    config = transformers.SwinConfig(
        image_size=32, patch_size=4, embed_dim=12, depths=[2, 2], num_heads=[2, 4], window_size=4, num_labels=5,
        attn_implementation="eager",
    )  # fmt: skip
    model = transformers.SwinForImageClassification(config).eval()
    images = torch.randn(2, 3, 32, 32)
    expected = model(images, output_attentions=True).attentions
    passed = run(hp.Classifier(model), images, presets.NOTHING)
    found = passed.capture.attention
    assert [tuple(a.shape) for a in found] == [(8, 2, 16, 16), (8, 2, 16, 16), (2, 4, 16, 16), (2, 4, 16, 16)]
    for stage, theirs in enumerate(expected):
        torch.testing.assert_close(found[2 * stage + 1], theirs)  # the library returns each stage's last
    for method in ("attention", "attention_rollout", "generic_attention", "transformer_lrp"):
        with pytest.raises(UnsupportedModelError, match=r"windows.*lrp_epsilon"):
            hp.explain(model, images, method=method)


def test_class_attention_is_captured_and_refused_where_blocks_must_share_their_tokens() -> None:
    model, images = odd.ClassAttentionViT().eval(), torch.randn(2, 3, 32, 32)
    passed = run(model, images, presets.NOTHING)
    assert [tuple(a.shape) for a in passed.capture.attention] == [(2, 3, 16, 16)]
    assert [tuple(a.shape) for a in passed.capture.pooling] == [(2, 3, 1, 17)]
    torch.testing.assert_close(passed.capture.pooling[0].sum(-1), torch.ones(2, 3, 1))
    for method in ("attention", "attention_rollout", "generic_attention", "transformer_lrp"):
        with pytest.raises(UnsupportedModelError, match=r"16 tokens.*17 tokens.*class attention.*lrp_epsilon"):
            hp.explain(model, images, method=method)
    maps = hp.explain(model, images, method="gradcam", resolution="native")
    assert maps.shape == (2, 4, 4)
    assert maps.isfinite().all()


def test_the_fast_path_of_torchs_encoder_is_seen_through() -> None:
    """The second image runs without gradients, where torch would take one fused operation for a whole layer."""
    model, images = odd.EncoderLayers().eval(), torch.randn(2, 3, 32, 32)
    both = hp.explain(model, images, method="attention", resolution="native")
    torch.testing.assert_close(both[1:], hp.explain(model, images[1:], method="attention", resolution="native"))
    layer = model.encoder.layers[-1]
    tokens = model.encoder.layers[0](model.embed(images).flatten(2).mT)
    expected = layer.self_attn(tokens, tokens, tokens)[1].mean(1).unflatten(1, (4, 4))
    torch.testing.assert_close(both, expected.detach())


class Planted(nn.Module):
    """One block in which every token attends to one patch of the image, at `spot` (row, column) of the 4 x 4 grid."""

    def __init__(self, prefix: int, spot: tuple[int, int], *, pooled: bool, unfolded: bool) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 8, 8)
        self.extra = nn.Parameter(torch.randn(prefix, 8))
        self.head = nn.Linear(8, 5)
        tokens = prefix + 16
        self.scores = torch.zeros(tokens, tokens)
        self.scores[:, prefix + 4 * spot[0] + spot[1]] = 9.0
        self.pooled, self.unfolded = pooled, unfolded

    def forward(self, x: Tensor) -> Tensor:
        if self.unfolded:  # the same patches without a convolution
            patches = nn.functional.unfold(x, 8, stride=8).mT @ self.embed.weight.flatten(1).t() + self.embed.bias
        else:
            patches = self.embed(x).flatten(2).mT
        x = torch.cat([self.extra.expand(len(x), -1, -1), patches], 1)
        attention = (self.scores + 0 * (x @ x.mT))[:, None].softmax(-1)
        x = x + (attention @ x[:, None])[:, 0]
        return self.head(x.mean(1) if self.pooled else x[:, :2].mean(1) if len(self.extra) == 2 else x[:, 0])


LAYOUTS = {
    "class token": (1, False), "distillation token": (2, False), "registers": (5, False), "mean pooling": (0, True),
    "mean pooling over registers too": (4, True),
}  # fmt: skip


@pytest.mark.parametrize("unfolded", [False, True])
@pytest.mark.parametrize("spot", [(0, 3), (2, 1)])
@pytest.mark.parametrize("method", ["attention", "attention_rollout", "generic_attention", "transformer_lrp"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_attention_planted_at_one_patch_is_found_there(
    layout: str, method: str, spot: tuple[int, int], unfolded: bool
) -> None:
    prefix, pooled = LAYOUTS[layout]
    model = Planted(prefix, spot, pooled=pooled, unfolded=unfolded).eval()
    images = torch.rand(2, 3, 32, 32) + 0.5
    with torch.no_grad():  # a target that the planted patch speaks for
        embedded = nn.functional.conv2d(images, model.embed.weight)[:, :, spot[0], spot[1]]
        model.head.weight[0] = embedded.mean(0)
        model.head.weight[1:] = -embedded.mean(0)
        model.embed.bias.zero_()
    maps = hp.explain(model, images, [0, 0], method=method, resolution="native")
    assert maps.shape == (2, 4, 4)
    if pooled and method != "attention":  # each patch keeps its own share by the residual
        maps = maps - maps.median()
    rest = maps.clone()
    rest[:, spot[0], spot[1]] = 0
    assert (maps[:, spot[0], spot[1]] > 3 * rest.abs().amax((1, 2))).all()


@pytest.mark.parametrize(
    ("kind", "prefix", "pooled"),
    [(TinyViT, 1, [0]), (odd.Pooled, 0, list(range(16))), (odd.Registers, 4, [0]), (odd.Distilled, 2, [0, 1])],
)
def test_the_layout_of_tokens(kind: type[TinyViT], prefix: int, pooled: list[int]) -> None:
    passed = run(kind(depth=2).eval(), torch.randn(1, 3, 32, 32), presets.NOTHING)
    last = attention_matrices(passed)[-1]
    layout = token_layout(passed, passed.per_unit(passed.logits[:, 2], [last], phase="gradient")[0])
    assert (layout.grid, layout.prefix, layout.pooled.tolist()) == ((4, 4), prefix, pooled)


def test_a_stem_of_several_convolutions_gives_the_grid_of_its_last() -> None:
    stem = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, (2, 1), 1))
    passed = run(nn.Sequential(stem, nn.Flatten(), nn.Linear(4 * 8 * 16, 2)), torch.rand(1, 3, 32, 32), presets.NOTHING)
    assert passed.capture.grids == [(16, 16), (8, 16)]
    assert token_grid(passed.capture, 8 * 16 + 1) == ((8, 16), 1)
    with pytest.raises(UnsupportedModelError, match=r"100 tokens.*\(8, 16\)"):
        token_grid(passed.capture, 100)


def test_norms_of_queries_and_keys_are_not_those_before_the_attention() -> None:
    class Normed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            tokens = nn.functional.layer_norm(x.flatten(2), (81,))  # [B, 3, 81]
            heads = nn.functional.layer_norm(tokens.unflatten(2, (9, 9)).transpose(1, 2), (9,))  # [B, 9, 3, 9]
            folded = nn.functional.layer_norm(heads.flatten(0, 1), (9,))  # [B * 9, 3, 9]
            return ((folded @ folded.mT).softmax(-1) @ folded).flatten(1)[:2, :5]

    passed = run(Normed(), torch.rand(2, 3, 9, 9), presets.NOTHING)
    (norm,) = passed.capture.norms
    torch.testing.assert_close(norm, nn.functional.layer_norm(passed.images.flatten(2), (81,)))


def softmaxes(model: Callable[[Tensor], Tensor]) -> ForwardPass:
    class Inline(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return model(x.mean(1)).flatten(1)[:, :5]

    return run(Inline(), torch.rand(2, 3, 9, 9), presets.NOTHING)


@pytest.mark.parametrize(
    "model",
    [
        lambda x: x.softmax(-2) @ x,  # over the queries
        lambda x: x.softmax(-1) * x,  # a gate
        lambda x: x.softmax(-1).sum(-1, keepdim=True) @ x[:, :1],  # no longer of the same size
        lambda x: x.softmax(-1) @ torch.ones(9, 2),  # a mixing by a constant matrix
        lambda x: (x.softmax(-1).sum(), x @ x)[1],  # another product
    ],
)
def test_what_is_no_attention_is_not_captured(model: Callable[[Tensor], Tensor]) -> None:
    passed = softmaxes(model)
    assert passed.capture.attention == passed.capture.pooling == []


@pytest.mark.parametrize(
    "model",
    [
        lambda x: torch.matmul(torch.softmax(x, dim=2), x),
        lambda x: torch.einsum("bmd,bnm->bnd", x, torch.special.softmax(x, -1)),
        lambda x: torch.baddbmm(x, nn.functional.dropout(x.softmax(-1), 0.5, training=False), x),
        lambda x: (x.softmax(-1) + 1e-9).masked_fill(x > 2, 0) @ x,
        lambda x: (x.mT @ x.softmax(-1).mT).mT,
    ],
)
def test_spellings_of_attention_are_captured(model: Callable[[Tensor], Tensor]) -> None:
    passed = softmaxes(model)
    (found,) = passed.capture.attention
    torch.testing.assert_close(found, passed.images.mean(1).softmax(-1))


@pytest.mark.parametrize("flagged", [True, False])
def test_the_ordinary_gradient_is_right_where_the_model_writes_into_what_it_still_needs(flagged: bool) -> None:
    """The slope of tanh needs its value, which SiLU overwrites: torch itself refuses such a gradient."""

    class Overwriting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x = torch.tanh(2 * x)
            x = nn.functional.silu(x, inplace=True) if flagged else x.mul_(torch.sigmoid(x))
            return x.flatten(1)[:, :5]

    images = torch.randn(2, 3, 4, 4).double()
    passed = run(Overwriting(), images, presets.NOTHING)
    (found,) = passed.per_unit(passed.logits.sum(1), [passed.images], phase="gradient")
    leaf = images.requires_grad_()
    (expected,) = torch.autograd.grad(nn.functional.silu(torch.tanh(2 * leaf)).flatten(1)[:, :5].sum(), leaf)
    torch.testing.assert_close(found, expected)


class Counted(nn.Module):
    """Counts the images of each of its forward passes."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.batches = inner, list[int]()

    def forward(self, x: Tensor) -> Tensor:
        self.batches.append(len(x))
        return self.inner(x)


EXTRA = {  # forward passes of each image beside the first, images looked at
    "transition_attention": (2, 0), "bidirectional_transformer": (2, 0), "legrad": (0, 1),
}  # fmt: skip
OPTIONS = {name: {"steps": 2} for name in ("transition_attention", "bidirectional_transformer")}
METHODS = [
    name for name, entry in hp.methods().items()
    if entry.family in ("relevance", "attention") and name not in ("lrp",)  # needs a preset of the user's
]  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_several_targets_share_one_forward_pass(method: str) -> None:
    """The same maps as one call a target; passes are for all targets at once, besides the look at the number of classes."""
    model, images = Counted(TinyViT(depth=2).eval()).eval(), torch.randn(3, 3, 32, 32)
    classifier = hp.Classifier(model, image_size=32, mean=[0.5] * 3, std=[0.5] * 3)
    targets = torch.tensor([[0, 1, 4], [2, 2, 3], [4, 0, 1]])
    options = OPTIONS.get(method, {})
    maps = hp.explain(classifier, images, targets, method=method, **options)
    look, *passes = model.batches
    more, looks = EXTRA.get(method, (0, 0))
    assert look == 1
    assert sum(passes) == 3 * (1 + more) + looks
    assert maps.shape == (3, 3, 32, 32)
    for t in range(3):
        alone = hp.explain(classifier, images, targets[:, t], method=method, **options)
        torch.testing.assert_close(maps[:, t], alone, rtol=1e-5, atol=1e-6 * float(alone.abs().max()))
    if method not in ("attention", "attention_rollout"):
        assert not torch.allclose(maps[:, 0], maps[:, 1])
