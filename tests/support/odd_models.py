"""Classifiers written by hand with the habits that real code has. They take `[B, 3, 32, 32]` and return `[B, 5]`."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from support.nets import TinyViT

WIDTH, HEADS, TOKENS = 24, 3, 17


class EinsumAttention(nn.Module):
    """Two einsums with a softmax between them, and the projection as a third."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Parameter(torch.randn(3, WIDTH, HEADS, WIDTH // HEADS) / WIDTH**0.5)
        self.out = nn.Parameter(torch.randn(HEADS, WIDTH // HEADS, WIDTH) / WIDTH**0.5)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (torch.einsum("bnd,dhe->bhne", x, weight) for weight in self.qkv)
        attention = torch.softmax(torch.einsum("bhne,bhme->bhnm", q, k) / math.sqrt(WIDTH // HEADS), dim=-1)
        return torch.einsum("bhne,hed->bnd", torch.einsum("bhnm,bhme->bhne", attention, v), self.out)


class FoldedAttention(nn.Module):
    """Heads folded into the batch; scores by `baddbmm` with a position bias, values by `bmm`."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.position = nn.Parameter(torch.randn(1, TOKENS, TOKENS) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        q, k, v = (
            part(x).view(b, n, HEADS, -1).transpose(1, 2).reshape(b * HEADS, n, -1) for part in (self.q, self.k, self.v)
        )
        scores = torch.baddbmm(self.position, q, k.transpose(1, 2), alpha=(d / HEADS) ** -0.5)
        attended = torch.bmm(F.softmax(scores, dim=2), v)
        return self.out(attended.view(b, HEADS, n, -1).transpose(1, 2).reshape(b, n, d))


class StableAttention(nn.Module):
    """Scaled queries, keys transposed by `.mT`, the largest score taken off, softmax as a method, dropout between."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.drop = nn.Dropout(0.5)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(2, (HEADS, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        scores = (q * (WIDTH / HEADS) ** -0.5) @ k.mT
        scores = scores - scores.detach().amax(-1, keepdim=True)
        return self.out((self.drop(scores.softmax(-1)) @ v).transpose(1, 2).flatten(2))


class TorchAttention(nn.Module):
    """`nn.MultiheadAttention`, with or without its weights asked for, batch first or second."""

    def __init__(self, *, weights: bool, batch_first: bool) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(WIDTH, HEADS, batch_first=batch_first)
        nn.init.normal_(self.inner.in_proj_bias, std=0.1)
        self.weights, self.batch_first = weights, batch_first

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.batch_first else x.transpose(0, 1)
        x = self.inner(x, x, x, need_weights=self.weights)[0]
        return x if self.batch_first else x.transpose(0, 1)


class TalkingAttention(nn.Module):
    """Heads are mixed before and after the softmax, as in CaiT."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.before, self.after = nn.Linear(HEADS, HEADS), nn.Linear(HEADS, HEADS)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(2, (HEADS, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        scores = self.before((q @ k.mT / math.sqrt(q.shape[-1])).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        mixed = self.after(scores.softmax(-1).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.out((mixed @ v).transpose(1, 2).flatten(2))


class OddViT(nn.Module):
    """A vision transformer around any attention; residuals and pooling are functional."""

    def __init__(self, *attentions: nn.Module) -> None:
        super().__init__()
        self.embed = nn.Linear(3 * 8 * 8, WIDTH)
        self.cls = nn.Parameter(torch.randn(WIDTH) * 0.1)
        self.position = nn.Parameter(torch.randn(TOKENS, WIDTH) * 0.1)
        self.attentions = nn.ModuleList(attentions)
        self.norm = nn.LayerNorm(WIDTH)  # one norm, used everywhere
        self.fc1, self.fc2 = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)  # one MLP for all blocks
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        patches = F.unfold(x, 8, stride=8).transpose(1, 2)
        x = torch.cat((self.cls.expand(len(x), 1, -1), self.embed(patches)), 1)
        x += self.position
        for attention in self.attentions:
            branch = attention(self.norm(x))
            branch += x
            x = torch.add(branch, self.fc2(F.gelu(self.fc1(F.layer_norm(branch, (WIDTH,), *self.norm.parameters())))))
        return self.head(self.norm(x)[:, 0, :])


class ClassAttentionViT(nn.Module):
    """A block over the patches alone, then one in which only a class token asks, as in CaiT."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, WIDTH, 8, 8)
        self.cls = nn.Parameter(torch.randn(1, 1, WIDTH) * 0.1)
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.patches = TorchAttention(weights=False, batch_first=True)
        self.classes = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).mT
        x = x + self.patches(self.norm1(x))
        cls = self.cls.expand(len(x), -1, -1)
        tokens = self.norm2(torch.cat([cls, x], 1))
        return self.head((cls + self.classes(tokens[:, :1], tokens, tokens, need_weights=False)[0])[:, 0])


class EncoderLayers(nn.Module):
    """`nn.TransformerEncoder`, which has a fast path for evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, WIDTH, 8, 8)
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 2 * WIDTH, activation="gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(x).flatten(2).mT).mean(1))


class ReusedConvolutions(nn.Module):
    """One convolution, norm and ReLU used three times; a list of features is concatenated; in-place everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv, self.norm = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.act(self.stem(x))]
        for _ in range(3):
            features.append(self.act(self.norm(self.conv(F.max_pool2d(features[-1], 2)))))
        pooled = [feature.mean((2, 3)) for feature in features]
        return self.head(torch.cat(pooled, dim=1))


class InPlaceResNet(nn.Module):
    """Pre-activation blocks; a sum in place; halves of the channels written into a buffer; averages by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8))
        self.norm1, self.norm2 = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.conv1, self.conv2 = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.left, self.right = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        branch = self.conv1(F.relu(self.norm1(x)))
        branch = self.conv2(F.relu_(self.norm2(branch)))
        branch += x
        x = branch.mul_(2)
        halves = torch.empty_like(x)
        halves[:, :4] = self.left(x[:, :4])
        halves[:, 4:] = self.right(x[:, 4:])
        return self.head(F.relu(halves).sum((-2, -1)) / (x.shape[-1] * x.shape[-2]))


class TiedWeights(nn.Module):
    """An encoder and a decoder with one weight, and a head that is the embedding of its classes."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(16, 192) / 192**0.5)
        self.bias = nn.Parameter(torch.randn(16) * 0.1)
        self.classes = nn.Embedding(5, 16)

    def forward(self, x: Tensor) -> Tensor:
        patches = F.unfold(x, 8, stride=8).mT
        code = F.relu(F.linear(patches, self.weight, self.bias))
        again = F.relu(torch.addmm(self.bias, torch.matmul(code, self.weight).flatten(0, 1), self.weight.t()))
        return again.unflatten(0, code.shape[:2]).amax(1) @ self.classes.weight.t()


class GatedNorms(nn.Module):
    """SiLU, squeeze-and-excitation and an RMS norm, all written out by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, WIDTH, 8, 8)
        self.squeeze, self.excite = nn.Linear(WIDTH, 6), nn.Linear(6, WIDTH)
        self.scale = nn.Parameter(torch.rand(WIDTH) + 0.5)
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x * torch.sigmoid(x)
        gates = self.excite(self.squeeze(x.mean((2, 3))).relu()).sigmoid()
        x = (x * gates[:, :, None, None]).flatten(2).mT
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.scale
        return self.head(x.mean(1))


class Pooled(TinyViT):
    """No class token: the mean of the image tokens is read."""

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


class Distilled(TinyViT):
    """A class token and a distillation token, each with a head; the mean of both is the answer."""

    def __init__(self, **options: int) -> None:
        super().__init__(**options)
        self.head_dist = nn.Linear(self.head.in_features, self.head.out_features)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed["proj"](x).flatten(2).transpose(1, 2) + self.pos_embed[:, 1:]
        x = torch.cat([self.cls_token.expand(len(x), 2, -1), x], 1)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return (self.head(x[:, 0]) + self.head_dist(x[:, 1])) / 2
