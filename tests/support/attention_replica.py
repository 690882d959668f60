"""`TinyViT` written out once more, one image at a time, with its attention and tokens at hand."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from support.nets import Block, TinyViT


def attention_of(block: Block, x: Tensor) -> Tensor:
    """Softmax of q kᵀ, `[1, heads, N, N]`, for the block's input tokens `[1, N, D]`."""
    q, k, _ = block.attn.qkv(block.norm1(x)).unflatten(-1, (3, block.attn.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    return (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(-1)


@dataclass(frozen=True)
class Written:
    """One image's `attention` `[1, heads, N, N]` in each block, and `tokens` `[1, N, D]` before the first and after each."""

    model: TinyViT
    attention: list[Tensor]
    tokens: list[Tensor]

    def score(self, target: int, after: int = -1) -> Tensor:
        """The target's logit, read from the tokens after a block (the last by default)."""
        return self.model.head(self.model.norm(self.tokens[1:][after])[:, 0])[0, target]

    def gradients(self, target: int) -> list[Tensor]:
        """Of the target's logit by the attention of every block, `[heads, N, N]` each."""
        found = torch.autograd.grad(self.score(target), self.attention, retain_graph=True)
        return [gradient[0] for gradient in found]


def written_out(model: TinyViT, image: Tensor) -> Written:
    """The pass of one image `[1, C, H, W]`."""
    x = model.patch_embed["proj"](image).flatten(2).transpose(1, 2)
    x = torch.cat([model.cls_token, x], 1) + model.pos_embed
    attentions, tokens = [], [x]
    for block in model.blocks:
        attention = attention_of(block, x)
        attentions.append(attention)
        value = block.attn.qkv(block.norm1(x)).unflatten(-1, (3, block.attn.heads, -1)).permute(2, 0, 3, 1, 4)[2]
        x = x + block.attn.proj((attention @ value).transpose(1, 2).flatten(2))
        x = x + block.mlp["fc2"](nn.functional.gelu(block.mlp["fc1"](block.norm2(x))))
        tokens.append(x)
    return Written(model, attentions, tokens)
