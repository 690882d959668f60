"""`bidirectional_transformer` token-wise against the authors' formula, in double precision for one image at a time."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import heatproof as hp
from heatproof.errors import InputError, UnsupportedModelError
from support.attention_replica import Written, written_out
from support.nets import Attention, TinyViT

TARGETS = [4, 0, 2]


@pytest.fixture
def model() -> TinyViT:
    model = TinyViT(depth=3).double().eval()
    with torch.no_grad():
        for block in model.blocks:
            block.attn.qkv.weight *= 3
    return model


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 3, 32, 32).double()


def explained(model: nn.Module, images: Tensor, targets: Any = TARGETS, **options: Any) -> Tensor:
    given = {"method": "bidirectional_transformer", "perception": "tokens", "resolution": "native", **options}
    return hp.explain(model, images, targets, **given).double()


def feedback(passed: Written, target: int, image: Tensor, steps: int) -> Tensor:
    """The class token's row of the last attention's integrated gradient, `[N]`."""
    total = torch.zeros(3, 17, dtype=torch.float64)
    for n in range(steps):
        total += written_out(passed.model, image * n / (steps - 1)).gradients(target)[-1][:, 0]
    return (total / steps).clamp(min=0).mean(0)


def by_hand(model: TinyViT, image: Tensor, target: int, start: int, steps: int) -> Tensor:
    """The map of one image `[1, C, H, W]`, `[4, 4]`."""
    passed = written_out(model, image)
    perceived = torch.eye(17, dtype=torch.float64)
    for block, attention, z in list(zip(model.blocks, passed.attention, passed.tokens, strict=False))[start:]:
        v = block.attn.qkv(block.norm1(z))[0, :, -48:]
        weights = torch.zeros(17, 17, dtype=torch.float64)
        for j in range(17):
            weights[j, j] = (block.attn.proj.weight @ v[j]).norm() / z[0, j].norm()
        mean = sum(attention[0, h] for h in range(3)) / 3
        perceived = perceived + mean @ weights @ perceived
    found = perceived[0] * feedback(passed, target, image, steps)
    return found[1:].detach().view(4, 4)


@pytest.mark.parametrize(("start", "steps"), [(0, 4), (2, 3)])
def test_against_the_authors_formula(model: TinyViT, images: Tensor, start: int, steps: int) -> None:
    found = explained(model, images, start_layer=start, steps=steps)
    expected = torch.stack([by_hand(model, x[None], t, start, steps) for x, t in zip(images, TARGETS, strict=True)])
    assert (expected.flatten(1).amax(1) > 0).all()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-6 * float(expected.max()))
    heads = explained(model, images, start_layer=start, steps=steps, perception="heads")
    assert not torch.allclose(found, heads, rtol=0.01)


def test_each_of_several_targets_is_as_alone(model: TinyViT, images: Tensor) -> None:
    both = explained(model, images, [[4, 1], [0, 3], [2, 2]], steps=3)
    torch.testing.assert_close(both[:, 0], explained(model, images, steps=3))
    torch.testing.assert_close(both[:, 1], explained(model, images, [1, 3, 2], steps=3))


class Written2(Attention):
    """The same attention, written out with einsum, a dropout and other ways to rearrange."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(2)
        attention = (torch.einsum("bihd,bjhd->bhij", q, k) / q.shape[-1] ** 0.5).softmax(-1)
        mixed = torch.einsum("bhij,bjhd->bihd", F.dropout(attention, 0.1, training=False), v)
        return F.dropout(self.proj(mixed.flatten(2)), 0.1, training=False)


class Library(nn.Module):
    """The same attention as `nn.MultiheadAttention` has it, which folds batch and tokens."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        width = attention.proj.out_features
        self.inner = nn.MultiheadAttention(width, attention.heads, batch_first=True, dtype=attention.proj.weight.dtype)
        self.inner.load_state_dict(
            {
                "in_proj_weight": attention.qkv.weight, "in_proj_bias": attention.qkv.bias,
                "out_proj.weight": attention.proj.weight, "out_proj.bias": attention.proj.bias,
            }
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x, x, x, need_weights=False)[0]


def test_the_same_attention_written_otherwise(model: TinyViT, images: Tensor) -> None:
    expected = explained(model, images, steps=3)
    for block in model.blocks:
        other = Written2(48, 3).double()
        other.load_state_dict(block.attn.state_dict())
        block.attn = other
    torch.testing.assert_close(explained(model, images, steps=3), expected)
    for block in model.blocks:
        block.attn = Library(block.attn).eval()
    torch.testing.assert_close(explained(model.eval(), images, steps=3), expected)


def test_as_many_tokens_as_features_of_a_head() -> None:
    """Attention and values then have the same shape."""
    net = TinyViT(image=32, patch=8, width=51, depth=2).double().eval()  # 17 tokens, 17 features a head
    images = torch.randn(2, 3, 32, 32).double()
    passed = written_out(net, images[:1])
    block, z = net.blocks[1], passed.tokens[1]
    v = block.attn.qkv(block.norm1(z))[0, :, -51:]
    weights = (v @ block.attn.proj.weight.T).norm(dim=1) / z[0].norm(dim=1)
    perceived = torch.eye(17).double()[0] + passed.attention[1][0].mean(0)[0] * weights
    expected = (perceived * feedback(passed, 1, images[:1], 3))[1:].detach().view(4, 4)
    found = explained(net, images[:1], [1], steps=3, start_layer=1)[0]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6 * float(expected.max()))


class Gated(Attention):
    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.proj(mixed * torch.sigmoid(x))


def test_values_that_something_is_done_to_before_the_dense_layer_are_refused(images: Tensor) -> None:
    net = TinyViT(depth=2).double().eval()
    net.blocks[1].attn = Gated(48, 3).double().eval()
    with pytest.raises(UnsupportedModelError, match="perception='tokens'.*something else is done.*perception='heads'"):
        explained(net, images)
    assert explained(net, images, perception="heads", steps=2).isfinite().all()


@pytest.mark.parametrize("perception", ["token", None, ["heads"]])
def test_another_perception_is_refused(perception: Any) -> None:
    with pytest.raises(InputError, match="perception must be 'heads' or 'tokens'"):
        explained(TinyViT(depth=1).eval(), torch.rand(1, 3, 32, 32), [0], perception=perception)
