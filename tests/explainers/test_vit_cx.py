"""ViT-CX against the authors' formula, written out for one image in double precision, and scikit-learn's clusters."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.cluster import AgglomerativeClustering
from torch import Tensor, nn
from torch.nn import functional as F

import heatproof as hp
from heatproof.errors import InputError, UnsupportedModelError
from heatproof.explainers.vit_cx import groups_of_like
from heatproof.probing import SampleRandom
from support.nets import TinyCNN, TinyViT

KEYS = ["a", "b", "c"]


@pytest.fixture
def model() -> TinyViT:
    """Few channels, so that they are told apart, and probabilities that are far from even."""
    model = TinyViT(width=12, depth=2).double().eval()
    with torch.no_grad():
        model.head.weight *= 8
    return model


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 3, 32, 32, dtype=torch.float64)


def features_of(model: TinyViT, image: Tensor) -> Tensor:
    """After the first norm of the last block, `[D, 4, 4]`."""
    x = torch.cat([model.cls_token, model.patch_embed["proj"](image[None]).flatten(2).mT], 1) + model.pos_embed
    return model.blocks[1].norm1(model.blocks[0](x))[0, 1:].mT.unflatten(1, (4, 4)).detach()


def scaled(values: Tensor) -> Tensor:
    return (values - values.min()) / (values.max() - values.min())


def masks_by_hand(features: Tensor, threshold: float) -> list[tuple[int, Tensor]]:
    """Masks `[32, 32]`, each with the number of its first channel."""
    shown = [scaled(F.interpolate(a[None, None], (32, 32), mode="bilinear")[0, 0]) for a in features]
    flat = torch.stack(shown).flatten(1).numpy()
    sizes = np.linalg.norm(flat, axis=1)
    distance = 1 - flat @ flat.T / np.outer(sizes, sizes)
    clusters = AgglomerativeClustering(
        n_clusters=None, distance_threshold=threshold, metric="precomputed", linkage="complete"
    ).fit(distance)
    members = [np.flatnonzero(clusters.labels_ == label) for label in range(clusters.n_clusters_)]
    return [(int(group[0]), scaled(sum(shown[k] for k in group))) for group in sorted(members, key=lambda g: g[0])]


def by_hand(
    model: nn.Module, image: Tensor, row: int, target: int, threshold: float, noise: float, output: str
) -> Tensor:
    """The map `[32, 32]` with the draws of the sample at `row`."""

    def value(x: Tensor) -> float:
        logits = model(x[None])
        return (logits if output == "logit" else logits.softmax(1))[0, target].item()

    random, masks = SampleRandom(0, KEYS), masks_by_hand(features_of(model, image), threshold)
    total, coverage = torch.zeros(32, 32).double(), torch.zeros(32, 32).double()
    for first, mask in masks:
        z = noise * random.draws([row], [first]).normal(3, 32, 32, purpose="mask noise")[0].double()
        effect = value(image + z * (1 - mask)) - value(image * mask + z * (1 - mask))
        total += (value(image) - effect) * mask
        coverage += mask
    assert 1 < len(masks) < 12, "some channels go together, and not all"
    return total / coverage


def explain(model: nn.Module, images: Tensor, targets: Any, **options: Any) -> Tensor:
    return hp.explain(model, images, targets, method="vit_cx", keys=KEYS[: len(images)], **options)


@pytest.mark.parametrize("batch_size", [None, 2])
@pytest.mark.parametrize(
    ("threshold", "noise", "output"), [(0.2, 0.1, "probability"), (0.12, 1.0, "probability"), (0.2, 0.5, "logit")]
)
def test_against_the_formula(
    model: TinyViT, images: Tensor, threshold: float, noise: float, output: str, batch_size: int | None
) -> None:
    targets = [[0, 3], [4, 1], [2, 2]]
    given: dict[str, Any] = {"threshold": threshold, "noise": noise, "output": output}
    found = explain(model, images, targets, batch_size=batch_size, **given)
    with torch.no_grad():
        for n, row in enumerate(targets):
            for t, target in enumerate(row):
                expected = by_hand(model, images[n], n, target, **given)
                spread = float(expected.max() - expected.min())
                torch.testing.assert_close(found[n, t], expected.float(), rtol=0, atol=1e-4 * spread)


def test_a_contrast_and_logits_are_what_the_masks_are_worth_in(model: TinyViT, images: Tensor) -> None:
    both = explain(model, images, [[1, 2]] * 3, output="logit", threshold=0.2)
    contrast = explain(model, images, [1] * 3, against=2, output="logit", threshold=0.2)
    torch.testing.assert_close(contrast, both[:, 0] - both[:, 1], rtol=1e-4, atol=1e-4 * float(both.abs().max()))
    assert (contrast < 0).any()
    probabilities = explain(model, images, [1] * 3, threshold=0.2)
    assert not torch.allclose(probabilities, both[:, 0], rtol=0.1)


@pytest.mark.parametrize("threshold", [0.0, 0.05, 0.3, 0.6, 2.0])
def test_the_groups_are_those_of_scikit_learn(threshold: float) -> None:
    rows = torch.rand(40, 25) ** 3
    distance = (1 - F.cosine_similarity(rows[:, None], rows[None], dim=2)).numpy()
    options = {"metric": "precomputed", "linkage": "complete", "n_clusters": None}
    theirs = AgglomerativeClustering(distance_threshold=threshold, **options).fit(distance).labels_
    group, firsts = groups_of_like(rows, threshold)
    assert len(firsts) == theirs.max() + 1
    together = torch.from_numpy(theirs[:, None] == theirs)
    assert torch.equal(group[:, None] == group, together)
    assert torch.equal(group[firsts], torch.arange(len(firsts)))
    assert (firsts[group] <= torch.arange(40)).all()


def test_of_one_vector_or_none_there_is_nothing_to_group() -> None:
    for count in (0, 1):
        group, firsts = groups_of_like(torch.rand(count, 4), 0.1)
        assert group.tolist() == firsts.tolist() == list(range(count))


def test_features_without_a_pattern_have_no_map_and_a_channel_without_one_no_mask() -> None:
    model, images = TinyViT(depth=1).eval(), torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        model.blocks[0].norm1.weight[3:] = 0
    found = explain(model, images, [0, 1], threshold=0.0)
    assert found.isfinite().all()
    model.blocks[0].norm1.weight.data[:] = 0
    assert explain(model, images, [0, 1]).isnan().all()


def test_what_it_cannot_explain() -> None:
    images = torch.rand(2, 3, 32, 32)
    with pytest.raises(UnsupportedModelError, match="needs self-attention"):
        explain(TinyCNN().eval(), images, [0, 1])
    model = TinyViT(depth=1).eval()
    for option in ("threshold", "noise"):
        for value in (-0.1, "0.1", math.nan, True):
            with pytest.raises(InputError, match=f"{option} must be a number"):
                explain(model, images, [0, 1], **{option: value})


def test_a_pixel_that_no_mask_shows_has_0_and_the_others_the_score_of_the_one_mask(
    model: TinyViT, images: Tensor
) -> None:
    """Of all channels together, which show nothing where their sum is lowest."""
    found = explain(model, images[:1], [1], threshold=2.0)[0]
    features = features_of(model, images[0])
    ((_, mask),) = masks_by_hand(features, 2.0)
    assert torch.equal(found == 0, mask == 0)
    assert (mask == 0).any()
    values = found[mask > 0]
    torch.testing.assert_close(values, values[:1].expand_as(values))
