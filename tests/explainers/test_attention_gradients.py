"""Methods on the gradients of attention against the authors' formulas, written out in float64 for one image at a time."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import heatproof as hp
from heatproof.errors import UnsupportedModelError
from support.attention_replica import Written, written_out
from support.nets import Block, TinyViT

TARGETS = [4, 0, 2]


@pytest.fixture
def model() -> TinyViT:
    """Weights large enough for heads and blocks that differ."""
    model = TinyViT(depth=3).double().eval()
    with torch.no_grad():
        for block in model.blocks:
            block.attn.qkv.weight *= 3
    return model


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 3, 32, 32).double()


def explained(model: nn.Module, images: Tensor, method: str, **options: object) -> Tensor:
    return hp.explain(model, images, TARGETS, method=method, resolution="native", **options).double()


def by_hand(model: TinyViT, images: Tensor, formula: Callable[[Written, int], Tensor]) -> Tensor:
    """The formula of one image and target gives a value for each of the 16 image tokens."""
    maps = [formula(written_out(model, image[None]), t).view(4, 4) for image, t in zip(images, TARGETS, strict=True)]
    return torch.stack(maps).detach()


def assert_same(found: Tensor, expected: Tensor) -> None:
    assert (expected.abs().flatten(1).amax(1) > 0).all(), "a map of zeros would tell nothing"
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-6 * float(expected.abs().max()))


def test_attention_gradcam_is_the_authors_formula(model: TinyViT, images: Tensor) -> None:
    def formula(passed: Written, target: int) -> Tensor:
        attention, gradient = passed.attention[-1][0], passed.gradients(target)[-1]
        cam = torch.zeros(16, dtype=torch.float64)
        for head in range(3):
            cam += gradient[head, 0, 1:].mean() * attention[head, 0, 1:] / 3
        return cam.clamp(min=0)

    expected = by_hand(model, images, formula)
    torch.testing.assert_close(
        explained(model, images, "attention_gradcam"), expected, rtol=1e-5, atol=1e-6 * float(expected.max())
    )
    assert expected.max() > 0
    assert not torch.equal(expected[0], expected[1])


def test_attcat_is_the_authors_formula(model: TinyViT, images: Tensor) -> None:
    def formula(passed: Written, target: int) -> Tensor:
        before = passed.tokens[:-1]
        gradients = torch.autograd.grad(passed.score(target), before)
        total = torch.zeros(17, dtype=torch.float64)
        for attention, tokens, gradient in zip(passed.attention, before, gradients, strict=True):
            for i in range(17):
                received = sum(attention[0, h, j, i] for h in range(3) for j in range(17)) / (3 * 17)
                total[i] += received * (gradient[0, i] * tokens[0, i]).sum()
        return total[1:]

    assert_same(explained(model, images, "attcat"), by_hand(model, images, formula))


def test_attcat_of_the_last_block_is_for_what_the_head_reads(images: Tensor) -> None:
    """Behind one block only a head that pools them hears of the image's tokens; else what is left is rounding, not a map."""
    assert explained(TinyViT(depth=1).eval(), images.float(), "attcat").count_nonzero() == 0
    assert explained(Pooled(depth=1).eval(), images.float(), "attcat").abs().max() > 1e-4


def feedback(passed: Written, target: int, image: Tensor, steps: int) -> Tensor:
    """The class token's row of the last attention's integrated gradient, `[N]`."""
    total = torch.zeros(3, 17, dtype=torch.float64)
    for n in range(steps):
        point = written_out(passed.model, image * n / (steps - 1))
        total += point.gradients(target)[-1][:, 0]
    return (total / steps).clamp(min=0).mean(0)


@pytest.mark.parametrize(("start", "steps"), [(0, 4), (1, 3), (2, 2)])
def test_transition_attention_is_the_authors_formula(model: TinyViT, images: Tensor, start: int, steps: int) -> None:
    rows = iter(images)

    def formula(passed: Written, target: int) -> Tensor:
        state = passed.attention[-1][0].mean(0)[0]
        for attention in passed.attention[:-1][start:][::-1]:
            state = state + state @ attention[0].mean(0)
        return (state * feedback(passed, target, next(rows)[None], steps))[1:]

    found = explained(model, images, "transition_attention", start_layer=start, steps=steps)
    assert_same(found, by_hand(model, images, formula))


@pytest.mark.parametrize(("start", "steps"), [(0, 4), (2, 3)])
def test_bidirectional_transformer_is_the_authors_formula(
    model: TinyViT, images: Tensor, start: int, steps: int
) -> None:
    rows = iter(images)

    def formula(passed: Written, target: int) -> Tensor:
        perceived = torch.eye(17, dtype=torch.float64)
        for attention, gradient in list(zip(passed.attention, passed.gradients(target), strict=True))[start:]:
            worth = [(attention[0, h].T @ gradient[h]).abs().mean() for h in range(3)]
            mixed = sum(worth[h] / sum(worth) * attention[0, h] for h in range(3))
            perceived = perceived + mixed @ perceived
        return (perceived[0] * feedback(passed, target, next(rows)[None], steps))[1:]

    found = explained(model, images, "bidirectional_transformer", start_layer=start, steps=steps)
    assert_same(found, by_hand(model, images, formula))


def legrad_by_hand(passed: Written, target: int) -> Tensor:
    total = torch.zeros(17, dtype=torch.float64)
    for layer, attention in enumerate(passed.attention):
        (gradient,) = torch.autograd.grad(passed.score(target, after=layer), attention, retain_graph=True)
        for head in range(3):
            total += gradient[0, head].clamp(min=0).sum(0) / (3 * 17)
    return total[1:]


@pytest.mark.parametrize("depth", [1, 3])
def test_legrad_is_the_authors_formula(images: Tensor, depth: int) -> None:
    model = TinyViT(depth=depth).double().eval()
    assert_same(explained(model, images, "legrad"), by_hand(model, images, legrad_by_hand))


class Tuples(nn.Module):
    """A block that takes its input by name and returns a tuple, as in transformers."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.block = block

    def forward(self, *, hidden: Tensor) -> tuple[Tensor, str]:
        return self.block(hidden), "more"


class InTuples(TinyViT):
    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed["proj"](x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        for block in self.blocks:
            x, more = block(hidden=x)
            assert more == "more"
        return self.head(self.norm(x)[:, 0])


def test_legrad_of_blocks_that_return_more_and_take_names(images: Tensor) -> None:
    model = InTuples(depth=3).double().eval()
    plain = TinyViT(depth=3).double().eval()
    plain.load_state_dict(model.state_dict())
    model.blocks = nn.ModuleList([Tuples(block) for block in model.blocks])
    assert_same(explained(model, images, "legrad"), by_hand(plain, images, legrad_by_hand))


class Scaled(TinyViT):
    """Something happens between the blocks."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed["proj"](x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x) * 0.9
        return self.head(self.norm(x)[:, 0])


class Once(TinyViT):
    """One block, used twice."""

    def forward(self, x: Tensor) -> Tensor:
        self.blocks = nn.ModuleList([self.blocks[0], self.blocks[0]])
        return super().forward(x)


class OneImage(TinyViT):
    """A tail that knows how many images came."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[: len(x)]


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (Scaled, "does not take what the one before returns"),
        (Once, "more than one attention"),
        (OneImage, "rows of logits"),
    ],
)
def test_legrad_refuses_models_whose_blocks_it_cannot_read(kind: type[TinyViT], why: str) -> None:
    model = kind(depth=2).eval()
    with pytest.raises(UnsupportedModelError, match=rf"LeGrad.*{why}.*generic_attention"):
        hp.explain(model, torch.rand(2, 3, 32, 32), method="legrad")
    assert not any(part._forward_hooks for part in model.modules())


class WritingBlock(Block):
    def forward(self, x: Tensor) -> Tensor:
        x += self.attn(self.norm1(x))
        x += self.mlp["fc2"](nn.functional.gelu(self.mlp["fc1"](self.norm2(x))))
        return x


def writing(depth: int) -> TinyViT:
    model = TinyViT(depth=depth)
    model.blocks = nn.ModuleList([WritingBlock(48, 3, 2.0) for _ in range(depth)])
    return model.double().eval()


def test_legrad_of_blocks_that_write_over_their_input(images: Tensor) -> None:
    model = writing(3)
    plain = TinyViT(depth=3).double().eval()
    plain.load_state_dict(model.state_dict())
    assert_same(explained(model, images, "legrad"), by_hand(plain, images, legrad_by_hand))


def test_attcat_refuses_models_whose_block_inputs_are_gone(images: Tensor) -> None:
    with pytest.raises(UnsupportedModelError, match="writes in place over the tokens"):
        explained(writing(2), images, "attcat")


class WithoutNorms(TinyViT):
    def __init__(self) -> None:
        super().__init__(depth=2)
        self.blocks[0].norm1 = nn.Identity()


class OneNorm(TinyViT):
    """The second attention has no norm of its own."""

    def __init__(self) -> None:
        super().__init__(depth=2)
        self.blocks[0].norm2 = self.blocks[1].norm1 = nn.Identity()


@pytest.mark.parametrize("kind", [WithoutNorms, OneNorm])
def test_attcat_refuses_attention_without_a_norm_before_it(kind: type[TinyViT]) -> None:
    with pytest.raises(UnsupportedModelError, match="the layer norm that begins each block"):
        hp.explain(kind().eval(), torch.rand(1, 3, 32, 32), method="attcat")


class Pooled(TinyViT):
    """Reads the mean of all its tokens, which are those of the image."""

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


METHODS = ["attention_gradcam", "attcat", "transition_attention", "bidirectional_transformer", "legrad"]


@pytest.mark.parametrize("kind", [Pooled, Registers])
@pytest.mark.parametrize("method", METHODS)
def test_a_shift_of_the_image_shifts_the_map(kind: type[TinyViT], method: str) -> None:
    """Without positions a transformer sees a set of patches: what is rolled by a patch gives the map rolled by a cell."""
    model = kind(depth=2).eval()
    nn.init.zeros_(model.pos_embed)
    images = torch.randn(2, 3, 32, 32)
    options = {"method": method, "against": torch.tensor([[3, 1], [1, 3]]), "resolution": "native"}
    targets = torch.tensor([[1, 3], [3, 1]])  # both ways, so that not all is negative
    maps = hp.explain(model, images, targets, **options).sum(1)
    rolled = hp.explain(model, images.roll((8, 16), (2, 3)), targets, **options).sum(1)
    assert maps.shape == (2, 4, 4)
    if method == "attcat":  # which turns with the score
        assert maps.abs().max() < 1e-5
        maps, rolled = (
            hp.explain(model, x, [1, 3], method=method, resolution="native")
            for x in (images, images.roll((8, 16), (2, 3)))
        )
    torch.testing.assert_close(rolled, maps.roll((1, 2), (1, 2)), rtol=1e-4, atol=1e-5 * float(maps.abs().max()))
    assert (maps.flatten(1).std(1) > 0.01 * maps.abs().flatten(1).mean(1)).all()


@pytest.mark.parametrize("method", ["transition_attention", "bidirectional_transformer"])
def test_a_layer_that_does_not_exist_is_an_error(method: str) -> None:
    for layer in (2, -1, 1.0):
        with pytest.raises(hp.errors.InputError, match=r"start_layer must lie in 0\.\.1 .*got"):
            hp.explain(TinyViT(depth=2).eval(), torch.rand(1, 3, 32, 32), method=method, start_layer=layer)
