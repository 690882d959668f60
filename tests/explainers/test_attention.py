"""The attention family against the authors' own maps and against hand-made transformers."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import heatproof as hp
from heatproof.errors import InputError, UnsupportedModelError
from support.attention_replica import attention_of, written_out
from support.nets import TinyCNN, TinyViT
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


@pytest.mark.parametrize("start", [0, 2])
def test_generic_attention_is_the_authors_formula(start: int) -> None:
    """`R ← R + Ā R` with `Ā = mean over heads of (∇A ⊙ A)⁺`, from R = I; the class token's row. One image at a time."""
    model, images, targets = TinyViT().double().eval(), torch.randn(3, 3, 32, 32).double(), [4, 0, 2]
    expected = []
    for n, target in enumerate(targets):
        relevance = torch.eye(17, dtype=torch.float64)
        passed = written_out(model, images[n : n + 1])
        for attention, gradient in list(zip(passed.attention, passed.gradients(target), strict=True))[start:]:
            mean = sum((gradient[h] * attention[0, h].detach()).clamp(min=0) for h in range(3)) / 3
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


def heads_by_hand(model: TinyViT, images: Tensor) -> list[Tensor]:
    """Attention of every block, `[B, heads, N, N]` in float64."""
    passes = [written_out(model, image[None]).attention for image in images]
    return [torch.cat(block).detach() for block in zip(*passes, strict=True)]


FUSED = {
    "mean": lambda a: sum(a[:, h] for h in range(3)) / 3,
    "max": lambda a: torch.stack([a[:, h] for h in range(3)]).max(0)[0],
    "min": lambda a: torch.stack([a[:, h] for h in range(3)]).min(0)[0],
}


@pytest.mark.parametrize("fusion", FUSED)
def test_heads_are_fused_as_asked_in_the_block_asked_for(fusion: str) -> None:
    model, images = TinyViT(depth=3).double().eval(), torch.randn(2, 3, 32, 32).double()
    for layer in (0, 1, -1, -3):
        found = hp.explain(model, images, method="attention", layer=layer, head_fusion=fusion, resolution="native")
        expected = FUSED[fusion](heads_by_hand(model, images)[layer])[:, 0, 1:].view(2, 4, 4)
        torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("head", [0, 2, -2])
def test_one_head_is_taken_as_asked(head: int) -> None:
    model, images = TinyViT(depth=2).double().eval(), torch.randn(2, 3, 32, 32).double()
    found = hp.explain(model, images, method="attention", layer=0, head=head, resolution="native")
    expected = heads_by_hand(model, images)[0][:, head][:, 0, 1:].view(2, 4, 4)
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=0)


def test_a_head_that_cannot_be_taken_is_an_error() -> None:
    model, images = TinyViT(depth=2).eval(), torch.rand(1, 3, 32, 32)
    for head in (3, -4, 1.0, True):
        with pytest.raises(InputError, match=r"head must lie in -3\.\.2 for this model, got"):
            hp.explain(model, images, method="attention", head=head)
    with pytest.raises(InputError, match="head=1 takes one head, and head_fusion='max' joins all"):
        hp.explain(model, images, method="attention", head=1, head_fusion="max")


@pytest.mark.parametrize(
    ("fusion", "ratio", "start"), [("mean", 0.3, 0), ("max", 0.9, 1), ("min", 0.9, 0), ("mean", 1.0, 0)]
)
def test_rollout_discards_the_lowest_attention_of_each_image(fusion: str, ratio: float, start: int) -> None:
    """Entry by entry: sorted, the first are set to 0, the class token's to itself is not."""
    model, images = TinyViT(depth=3).double().eval(), torch.randn(3, 3, 32, 32).double()
    with torch.no_grad():
        for block in model.blocks:
            block.attn.qkv.weight *= 3
    expected = torch.eye(17).double().repeat(3, 1, 1)
    for attention in heads_by_hand(model, images)[start:]:
        for n, fused in enumerate(FUSED[fusion](attention)):
            values = fused.flatten().tolist()
            for place in sorted(range(289), key=values.__getitem__)[: int(289 * ratio)]:
                if place:
                    fused[place // 17, place % 17] = 0
            rows = fused + torch.eye(17).double()
            expected[n] = rows / rows.sum(1, keepdim=True) @ expected[n]
    options = {"discard_ratio": ratio, "head_fusion": fusion, "start_layer": start, "resolution": "native"}
    found = hp.explain(model, images, method="attention_rollout", **options)
    torch.testing.assert_close(found.double(), expected[:, 0, 1:].view(3, 4, 4), rtol=1e-5, atol=1e-9)
    assert (found.count_nonzero() == 0) == (ratio == 1.0)


@pytest.mark.parametrize("kind", [TinyViT, Pooled])
def test_with_everything_discarded_each_token_stays_where_it_is(kind: type[TinyViT]) -> None:
    images = torch.randn(1, 3, 32, 32)
    found = hp.explain(kind(depth=1).eval(), images, method="attention_rollout", discard_ratio=1.0, resolution="native")
    expected = torch.full_like(found, 1 / 16 if kind is Pooled else 0.0)
    torch.testing.assert_close(found, expected)


def test_without_a_class_token_no_attention_is_kept() -> None:
    model, images = Pooled(depth=1).eval(), torch.randn(1, 3, 32, 32)
    tokens = model.patch_embed["proj"](images).flatten(2).transpose(1, 2) + model.pos_embed[:, 1:]
    left = last_attention(model, tokens)[0].mean(0).detach()
    left[left < left.flatten().sort().values[int(256 * 0.9)]] = 0
    rows = left + torch.eye(16)
    expected = (rows / rows.sum(1, keepdim=True)).mean(0).view(1, 4, 4)
    found = hp.explain(model, images, method="attention_rollout", discard_ratio=0.9, resolution="native")
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("ratio", [-0.1, 1.1, "0.9", True, float("nan")])
def test_a_share_that_cannot_be_discarded_is_an_error(ratio: object) -> None:
    with pytest.raises(InputError, match="discard_ratio must be a number, from 0 to 1"):
        hp.explain(TinyViT(depth=1).eval(), torch.rand(1, 3, 32, 32), method="attention_rollout", discard_ratio=ratio)


def test_rows_are_normalised_on_request() -> None:
    model, images = TinyViT(depth=1).eval(), torch.rand(1, 3, 32, 32)
    plain = hp.explain(model, images, method="transformer_lrp", resolution="native")
    normalised = hp.explain(model, images, method="transformer_lrp", resolution="native", normalize_rows=True)
    total = plain.sum() / normalised.sum()  # with one block the row is divided by one number, its sum
    torch.testing.assert_close(normalised * total, plain)
    assert total > 1
