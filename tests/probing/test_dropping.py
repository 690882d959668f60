"""Tokens taken out of a vision transformer: against a forward pass written by hand over the tokens that stay."""

import pytest
import torch
from torch import nn

from heatproof.errors import InputError, UnsupportedModelError
from heatproof.models import Classifier
from heatproof.probing import SampleRandom, bind
from heatproof.probing.dropping import logits_without_tokens
from heatproof.probing.masks import RankMasks
from support.nets import TinyCNN, TinyViT


def by_hand(net, image, dropped):
    """The logits of one image `[C, H, W]` from the tokens that `dropped` `[h, w]` leaves."""
    tokens = net.patch_embed["proj"](image[None]).flatten(2).transpose(1, 2)
    tokens = torch.cat([net.cls_token, tokens], 1) + net.pos_embed
    kept = [0, *((~dropped.flatten()).nonzero()[:, 0] + 1).tolist()]
    tokens = tokens[:, kept]
    for block in net.blocks:
        tokens = block(tokens)
    return net.head(net.norm(tokens)[:, 0])[0]


class MeanPooled(TinyViT):
    """No class token; the position embedding is written in place."""

    def __init__(self):
        super().__init__(depth=2)
        self.pos_embed = nn.Parameter(torch.randn(16, 48) * 0.02)

    def forward(self, x):
        x = self.patch_embed["proj"](x).flatten(2).transpose(1, 2).contiguous()
        x += self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


class Windowed(TinyViT):
    """Attends within windows, so that it cannot do with fewer tokens."""

    def forward(self, x):
        x = self.patch_embed["proj"](x).flatten(2).transpose(1, 2) + self.pos_embed[:, 1:]
        x = x.view(-1, 4, 48)
        return self.head(self.norm(self.blocks[0](x)).view(-1, 16, 48).mean(1))


def random_drops(count, share):
    ranks = torch.rand(count, 16).argsort(1).argsort(1).view(count, 4, 4)
    return ranks < share


@pytest.mark.parametrize("share", [0, 1, 7, 15, 16])
def test_the_tokens_that_stay_keep_their_positions(share):
    net, images, dropped = TinyViT(depth=2).eval(), torch.randn(3, 3, 32, 32), random_drops(3, share)
    found = logits_without_tokens(net, images, dropped)
    torch.testing.assert_close(found, torch.stack([by_hand(net, *pair) for pair in zip(images, dropped, strict=True)]))
    if not share:
        torch.testing.assert_close(found, net(images))


def test_masks_that_drop_different_numbers_come_back_in_order():
    net, images = TinyViT(depth=1).eval(), torch.randn(2, 3, 32, 32)
    ranks = torch.rand(2, 16).argsort(1).argsort(1).view(2, 4, 4)
    masks = RankMasks(ranks, [0, 3, 0, 5], [9, 4, 16, 5])
    probe = bind(Classifier(net), images, lambda outputs: outputs, random=SampleRandom(0, ["a", "b"]), batch_size=3)
    found = probe(masks, baseline="drop", output="logit")
    for b in range(2):
        for k in range(4):
            torch.testing.assert_close(found[b, k], by_hand(net, images[b], masks.chunk(0, 4)[b, k]))


def test_a_model_without_class_token_and_with_positions_added_in_place():
    net, images, dropped = MeanPooled().eval(), torch.randn(2, 3, 32, 32), random_drops(2, 6)
    found = logits_without_tokens(net, images, dropped)
    for b in range(2):
        tokens = net.patch_embed["proj"](images[b : b + 1]).flatten(2).transpose(1, 2) + net.pos_embed
        tokens = tokens[:, ~dropped[b].flatten()]
        for block in net.blocks:
            tokens = block(tokens)
        torch.testing.assert_close(found[b], net.head(net.norm(tokens).mean(1))[0])
    with pytest.raises(InputError, match="without a single token"):
        logits_without_tokens(net, images, torch.ones(2, 4, 4, dtype=torch.bool))


def test_a_vision_transformer_of_transformers():
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    config = ViTConfig(**sizes, image_size=32, patch_size=8, num_labels=3, initializer_range=0.4)
    net = ViTForImageClassification(config).eval()
    classifier, images = Classifier(net), torch.randn(2, 3, 32, 32)
    nn.init.normal_(net.vit.embeddings.position_embeddings)
    with torch.no_grad():
        whole = logits_without_tokens(classifier, images, torch.zeros(2, 4, 4, dtype=torch.bool))
        torch.testing.assert_close(whole, classifier(images))
        dropped = random_drops(2, 5)
        found = logits_without_tokens(classifier, images, dropped)
        blank = images.clone()  # what a dropped patch holds makes no difference
        blank[dropped.repeat_interleave(8, 1).repeat_interleave(8, 2)[:, None].expand_as(images)] = 7.0
        torch.testing.assert_close(logits_without_tokens(classifier, blank, dropped), found)
    assert not torch.allclose(found, whole, atol=1e-3)


@pytest.mark.parametrize(("build", "size"), [(TinyCNN, 4), (TinyViT, 5)])
def test_a_model_without_such_tokens_is_an_error(build, size):
    with pytest.raises(UnsupportedModelError, match=f"adds none to {size * size} patches"):
        logits_without_tokens(build().eval(), torch.randn(1, 3, 32, 32), torch.zeros(1, size, size, dtype=torch.bool))


def test_a_model_that_needs_all_of_them_is_an_error_with_its_reason():
    with pytest.raises(UnsupportedModelError, match=r"cannot do with fewer.*invalid for input of size"):
        logits_without_tokens(Windowed().eval(), torch.randn(2, 3, 32, 32), random_drops(2, 5))


def test_errors_of_the_model_itself_stay_what_they_are():
    def broken(_):
        raise RuntimeError("no such thing")

    with pytest.raises(RuntimeError, match="no such thing"):
        logits_without_tokens(broken, torch.randn(1, 3, 32, 32), random_drops(1, 1))


def test_bad_masks():
    net, images = TinyViT(depth=1).eval(), torch.randn(2, 3, 32, 32)
    with pytest.raises(InputError, match=r"as many tokens each, got \[1, 2\]"):
        logits_without_tokens(net, images, torch.arange(16).view(1, 4, 4) < torch.tensor([1, 2]).view(2, 1, 1))
    probe = bind(Classifier(net), images, lambda outputs: outputs, random=SampleRandom(0, ["a", "b"]))

    class Shares:
        count = 1

        def chunk(self, start, stop):
            return torch.rand(2, 1, 4, 4)

    with pytest.raises(InputError, match="needs bool masks over the tokens"):
        probe(Shares(), baseline="drop")
