"""The attention family against the authors' own maps and against hand-made transformers."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import heatproof as hp
from heatproof.errors import InputError, UnsupportedModelError
from support.nets import Block, TinyCNN, TinyViT
from support.reference import reference, tiny_vit, weights, worst_share


@pytest.mark.parametrize("start", [0, 1])
@pytest.mark.parametrize("batched", [True, False])
def test_transformer_lrp_reproduces_the_authors_maps(shared: Path, start: int, batched: bool) -> None:
    stored = reference(shared)
    model, x, t = tiny_vit(stored), stored["x"], stored["t"]
    options = {"method": "transformer_lrp", "start_layer": start, "resolution": "native"}
    if batched:
        maps = hp.explain(model, x, t, **options)
    else:
        maps = torch.cat([hp.explain(model, x[i : i + 1], t[i : i + 1], **options) for i in range(len(x))])
    assert worst_share(maps, stored[f"transformer_lrp_start{start}"]) < 1e-5


def test_attention_and_rollout_reproduce_the_authors_maps(shared: Path) -> None:
    stored = reference(shared)
    model, x = tiny_vit(stored), stored["x"]
    attention = hp.explain(model, x, method="attention", resolution="native")
    assert worst_share(attention, stored["last_layer_attention"]) < 1e-5
    rollout = hp.explain(model, x, method="attention_rollout", resolution="native")
    assert worst_share(rollout, stored["rollout"]) < 1e-5


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_a_transformers_model_with_the_same_weights_gives_the_same_maps(shared: Path, implementation: str) -> None:
    from transformers import ViTConfig, ViTForImageClassification

    stored = reference(shared)
    config = ViTConfig(
        hidden_size=48, num_hidden_layers=4, num_attention_heads=3, intermediate_size=96, image_size=32, patch_size=8,
        num_labels=5, layer_norm_eps=1e-6, attn_implementation=implementation,
    )  # fmt: skip
    model = ViTForImageClassification(config).eval()
    ours = list(model.state_dict())
    assert model.load_state_dict(dict(zip(ours, in_their_order(weights(stored), ours), strict=True)))
    torch.testing.assert_close(model(stored["x"]).logits, stored["logits"], atol=1e-4, rtol=1e-4)
    maps = hp.explain(model, stored["x"], stored["t"], method="transformer_lrp", resolution="native")
    assert worst_share(maps, stored["transformer_lrp_start0"]) < 1e-4


def in_their_order(stored: dict[str, Tensor], names: list[str]) -> list[Tensor]:
    """timm's weights, in the order of the transformers library's state dict."""
    parts = {"cls_token": "cls_token", "position_embeddings": "pos_embed"}
    values = []
    for name in names:
        kind = name.rsplit(".", 1)[-1]
        block = next((part for part in name.split(".") if part.isdigit()), None)
        if kind in parts:
            values.append(stored[parts[kind]])
        elif "patch_embeddings" in name:
            values.append(stored[f"patch_embed.proj.{kind}"])
        elif block is None:
            values.append(stored[f"{'head' if 'classifier' in name else 'norm'}.{kind}"])
        else:
            values.append(block_weight(stored, f"blocks.{block}", name, kind))
    return values


def block_weight(stored: dict[str, Tensor], block: str, name: str, kind: str) -> Tensor:
    for position, part in enumerate(("q", "k", "v")):
        if f".{part}_proj." in name or {"q": ".query.", "k": ".key.", "v": ".value."}[part] in name:
            return stored[f"{block}.attn.qkv.{kind}"].chunk(3)[position]
    if "layernorm_before" in name or "layernorm_after" in name:
        return stored[f"{block}.norm{1 if 'before' in name else 2}.{kind}"]
    if "o_proj" in name or "attention.output" in name:
        return stored[f"{block}.attn.proj.{kind}"]
    first = "intermediate" in name or "fc1" in name
    return stored[f"{block}.mlp.{'fc1' if first else 'fc2'}.{kind}"]


class Pooled(TinyViT):
    """Reads other tokens than the class token: the mean of the image tokens."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed["proj"](x).flatten(2).transpose(1, 2) + self.pos_embed[:, 1:]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


class Registers(TinyViT):
    """A class token and three registers before the image tokens."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed["proj"](x).flatten(2).transpose(1, 2) + self.pos_embed[:, 1:]
        x = torch.cat([self.cls_token.expand(len(x), 4, -1), x], 1)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


def last_attention(model: TinyViT, x: Tensor) -> Tensor:
    """Softmax of q kᵀ of the last block, by hand; `x` are its input tokens."""
    return attention_of(model.blocks[-1], x)


def attention_of(block: Block, x: Tensor) -> Tensor:
    q, k, _ = block.attn.qkv(block.norm1(x)).unflatten(-1, (3, block.attn.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    return (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(-1)


@pytest.mark.parametrize(("kind", "rows", "prefix"), [(Pooled, slice(None), 0), (Registers, slice(0, 1), 4)])
def test_the_tokens_that_the_head_reads_are_found(kind: type[TinyViT], rows: slice, prefix: int) -> None:
    model = kind(depth=2).eval()
    images = torch.rand(2, 3, 32, 32)
    tokens: list[Tensor] = []
    handle = model.blocks[-1].register_forward_pre_hook(lambda _, args: tokens.append(args[0]))
    model(images)
    handle.remove()
    expected = last_attention(model, tokens[0]).mean(1)[:, rows].mean(1)[:, prefix:].unflatten(1, (4, 4))
    found = hp.explain(model, images, method="attention", resolution="native")
    torch.testing.assert_close(found, expected.detach())


def test_attention_is_upsampled_by_repetition_and_relevance_bilinearly() -> None:
    model, images = TinyViT(depth=2).eval(), torch.rand(1, 3, 32, 32)
    native = hp.explain(model, images, method="attention", resolution="native")
    full = hp.explain(model, images, method="attention")
    torch.testing.assert_close(full, native.repeat_interleave(8, 1).repeat_interleave(8, 2))
    native = hp.explain(model, images, method="transformer_lrp", resolution="native")
    full = hp.explain(model, images, method="transformer_lrp")
    expected = nn.functional.interpolate(native[:, None], (32, 32), mode="bilinear", align_corners=False)[:, 0]
    torch.testing.assert_close(full, expected)


def attention_with_gradient(model: TinyViT, image: Tensor, target: int) -> list[tuple[Tensor, Tensor]]:
    """Attention `[heads, N, N]` of every block and its gradient for the target, with attention written out by hand."""
    x = model.patch_embed["proj"](image).flatten(2).transpose(1, 2)
    x = torch.cat([model.cls_token, x], 1) + model.pos_embed
    kept = []
    for block in model.blocks:
        attention = attention_of(block, x)
        kept.append(attention)
        value = block.attn.qkv(block.norm1(x)).unflatten(-1, (3, block.attn.heads, -1)).permute(2, 0, 3, 1, 4)[2]
        x = x + block.attn.proj((attention @ value).transpose(1, 2).flatten(2))
        x = x + block.mlp["fc2"](nn.functional.gelu(block.mlp["fc1"](block.norm2(x))))
    logit = model.head(model.norm(x)[:, 0])[0, target]
    return [(a[0].detach(), g[0]) for a, g in zip(kept, torch.autograd.grad(logit, kept), strict=True)]


@pytest.mark.parametrize("start", [0, 2])
def test_generic_attention_is_the_authors_formula(start: int) -> None:
    """`R ← R + Ā R` with `Ā = mean over heads of (∇A ⊙ A)⁺`, from R = I; the class token's row. One image at a time."""
    model, images, targets = TinyViT().double().eval(), torch.randn(3, 3, 32, 32).double(), [4, 0, 2]
    expected = []
    for n, target in enumerate(targets):
        relevance = torch.eye(17, dtype=torch.float64)
        for attention, gradient in attention_with_gradient(model, images[n : n + 1], target)[start:]:
            mean = sum((gradient[h] * attention[h]).clamp(min=0) for h in range(3)) / 3
            relevance = relevance + mean @ relevance
        expected.append(relevance[0, 1:].view(4, 4))
    options = {"method": "generic_attention", "start_layer": start, "resolution": "native"}
    found = hp.explain(model, images, targets, **options)
    assert worst_share(found.double(), torch.stack(expected)) < 1e-6
    assert not torch.allclose(found[0], hp.explain(model, images, [1, 1, 1], **options)[0])


@pytest.mark.parametrize("method", ["attention", "attention_rollout", "generic_attention", "transformer_lrp"])
def test_a_network_without_attention_is_an_error_that_says_what_to_use(method: str) -> None:
    with pytest.raises(UnsupportedModelError, match="self-attention.*gradcam"):
        hp.explain(TinyCNN().eval(), torch.rand(1, 3, 32, 32), method=method)


@pytest.mark.parametrize(("method", "option"), [("attention", "layer"), ("attention_rollout", "start_layer"),
                                                ("generic_attention", "start_layer"),
                                                ("transformer_lrp", "start_layer")])  # fmt: skip
def test_a_layer_that_does_not_exist_is_an_error(method: str, option: str) -> None:
    with pytest.raises(InputError, match=rf"{option} must lie in .*got 9"):
        hp.explain(TinyViT(depth=2).eval(), torch.rand(1, 3, 32, 32), method=method, **{option: 9})


def test_rows_are_normalised_on_request() -> None:
    model, images = TinyViT(depth=1).eval(), torch.rand(1, 3, 32, 32)
    plain = hp.explain(model, images, method="transformer_lrp", resolution="native")
    normalised = hp.explain(model, images, method="transformer_lrp", resolution="native", normalize_rows=True)
    total = plain.sum() / normalised.sum()  # with one block the row is divided by one number, its sum
    torch.testing.assert_close(normalised * total, plain)
    assert total > 1
