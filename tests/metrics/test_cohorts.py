"""Metrics that see all samples at once: sufficiency and focus."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from torch import nn

import heatproof as hp
from heatproof.errors import InputError
from heatproof.metrics.faithfulness import sufficiency
from heatproof.metrics.mosaics import focus
from heatproof.models import Classifier
from support.cases import PixelSum, Wavy, make_case


class FirstPixel(nn.Module):
    """The class is the sign of the first pixel."""

    def forward(self, x):
        return torch.stack([-x[:, 0, 0, 0], x[:, 0, 0, 0]], 1)


def test_sufficiency_by_hand():
    # Maps along three directions; samples 0, 1, 2 share one, 3 and 4 another, 5 stands alone.
    maps = torch.zeros(6, 2, 2)
    maps[:3, 0, 0], maps[3:5, 0, 1], maps[5, 1, 1] = torch.tensor([1.0, 5.0, 0.1]), 1.0, 1.0
    maps[2, 1, 0] = 0.01  # almost
    images = torch.zeros(6, 1, 2, 2)
    images[:, 0, 0, 0] = torch.tensor([1.0, 1.0, -1.0, 1.0, 1.0, 1.0])
    found = sufficiency(make_case(FirstPixel(), images, maps))
    assert found[:5].tolist() == [0.5, 0.5, 0.0, 1.0, 1.0]
    assert found[5].isnan()
    assert sufficiency(make_case(FirstPixel(), images, maps), radius=0.0)[2].isnan()
    assert sufficiency(make_case(FirstPixel(), images, maps), radius=2.0).tolist() == [0.8] * 2 + [0.0] + [0.8] * 3
    # multi-label: the decision about the target, which is yes for the second class where the pixel is positive
    several = Classifier(FirstPixel().eval(), task="multilabel")
    case = make_case(several, images, maps, torch.tensor([0, 1, 1, 1, 1, 1]))
    assert sufficiency(case)[:5].tolist() == [0.5, 0.0, 0.5, 1.0, 1.0]


@pytest.mark.parametrize("distance", ["unit", "standardized"])
@pytest.mark.parametrize("absolute", [False, True])
def test_sufficiency_against_a_slow_replica(distance, absolute):
    images, maps = torch.randn(40, 1, 8, 8), torch.randn(40, 8, 8) + 1.5 * torch.randn(5, 8, 8).repeat(8, 1, 1)
    radius = 1.0 if distance == "unit" else 10.0
    found = sufficiency(make_case(Wavy(), images, maps), radius=radius, distance=distance, absolute=absolute)
    flat = maps.flatten(1).double().numpy()
    flat = np.abs(flat) if absolute else flat
    if distance == "unit":
        between = cdist(flat / np.linalg.norm(flat, axis=1)[:, None], flat / np.linalg.norm(flat, axis=1)[:, None])
    else:
        between = cdist(flat, flat, "seuclidean", V=flat.var(0, ddof=1))
    decided = Wavy()(images).argmax(1).tolist()
    counts = []
    for i in range(40):
        near = [j for j in range(40) if j != i and between[i, j] <= radius]
        counts.append(len(near))
        expected = np.mean([decided[j] == decided[i] for j in near]) if near else np.nan
        assert found[i].item() == pytest.approx(expected, nan_ok=True)
    assert 0 < np.mean(counts) < 39


@pytest.mark.parametrize(("distance", "radius"), [("unit", 0.68), ("standardized", 11.0)])
def test_a_map_that_ranks_nothing_is_similar_to_none(distance, radius):
    images, maps = torch.randn(30, 1, 8, 8), torch.rand(30, 8, 8)
    broken = maps.clone()
    broken[0], broken[1, 2, 2], broken[2, 3, 3] = 0.5, torch.nan, torch.inf
    given = {"radius": radius, "distance": distance}
    found = sufficiency(make_case(Wavy(), images, broken), **given)
    rest = sufficiency(make_case(Wavy(), images[3:], maps[3:]), **given)
    assert found[:3].isnan().all()
    assert torch.equal(found[3:].nan_to_num(-1), rest.nan_to_num(-1))
    assert not torch.equal(rest, sufficiency(make_case(Wavy(), images[3:], maps[3:]), **(given | {"radius": 100.0})))


def test_a_sample_alone_has_no_cohort():
    found = hp.score(Wavy().eval(), torch.randn(1, 1, 8, 8), torch.rand(1, 8, 8), metric="sufficiency")
    assert found.isnan().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"radius": -1.0}, "radius must be a number, at least 0"), ({"distance": "cosine"}, "distance must be 'unit' or")],
)
def test_impossible_similarity_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        sufficiency(make_case(Wavy(), torch.randn(3, 1, 8, 8), torch.rand(3, 8, 8)), **options)


# mosaics

CLASSES = torch.tensor([0, 1, 0, 1, 2, 0, 2, 1])


def coded(size=(8, 8)):
    """Images whose value says which sample it is: 1, 2, 3, ..."""
    return torch.arange(1.0, 9)[:, None, None, None].expand(8, 1, *size).contiguous()


def mosaics_of(images, **options):
    seen = []

    def explain(x, targets):
        seen.append((x.clone(), targets.clone()))
        return torch.rand(len(x), *x.shape[2:])

    focus(make_case(Wavy(), images, torch.rand(len(images), *images.shape[2:]), CLASSES, explainer=explain), **options)
    return seen


def test_a_mosaic_holds_the_sample_one_more_of_its_class_and_two_of_others():
    places = []
    for mosaics, targets in mosaics_of(coded(), samples=20):
        assert torch.equal(targets, CLASSES)
        for row in range(8):
            quadrants = mosaics[row, 0].unfold(0, 4, 4).unfold(1, 4, 4).flatten(0, 1).flatten(1)
            assert (quadrants == quadrants[:, :1]).all()
            members = (quadrants[:, 0] - 1).long()
            assert len(members.unique()) == 4
            assert row in members
            assert (CLASSES[members] == CLASSES[row]).sum() == 2
            places.append(members.tolist().index(row))
    assert {places.count(place) // 10 for place in range(4)} <= {2, 3, 4, 5}  # 160 mosaics, about 40 in each place


def test_images_are_shrunk_to_their_quadrant():
    images = torch.randn(8, 1, 8, 8)
    small = torch.nn.functional.avg_pool2d(images, 2)[:, 0]
    for mosaics, _ in mosaics_of(images, samples=3):
        for row in range(8):
            quadrants = [mosaics[row, 0, i : i + 4, j : j + 4] for i in (0, 4) for j in (0, 4)]
            assert any(torch.allclose(quadrant, small[row]) for quadrant in quadrants)
    odd = mosaics_of(torch.randn(8, 1, 7, 9), samples=1)[0][0]
    assert odd.shape == (8, 1, 7, 9)
    assert odd.isfinite().all()


@pytest.mark.parametrize("size", [(8, 8), (7, 9)])
def test_focus_is_the_share_of_positive_relevance_on_the_class(size):
    # An explanation that gives 3 to the class of each pixel's image and 1 to others, where a negative value is nothing.
    def explain(x, targets):
        classes = CLASSES[x[:, 0].round().long() - 1]
        right = classes == targets[:, None, None]
        return torch.where(right, 3.0, torch.where(classes == (targets[:, None, None] + 1) % 3, 1.0, -5.0))

    found = focus(make_case(Wavy(), coded(size), torch.rand(8, *size), CLASSES, explainer=explain), samples=1)
    seen = []
    focus(make_case(Wavy(), coded(size), torch.rand(8, *size), CLASSES,
                    explainer=lambda x, t: seen.append(x) or torch.rand(8, *size)), samples=1)  # fmt: skip
    values = explain(seen[0], CLASSES)
    right = CLASSES[seen[0][:, 0].long() - 1] == CLASSES[:, None, None]
    expected = (values.clamp(min=0) * right).sum((1, 2)) / values.clamp(min=0).sum((1, 2))
    assert torch.allclose(found, expected.double())
    signless = focus(make_case(Wavy(), coded(size), torch.rand(8, *size), CLASSES, explainer=explain), samples=1,
                     absolute=True)  # fmt: skip
    assert torch.allclose(signless, ((values.abs() * right).sum((1, 2)) / values.abs().sum((1, 2))).double())


def test_an_explanation_that_knows_the_class_is_focused_and_one_that_does_not_is_at_chance():
    torch.manual_seed(1)
    images, maps = coded(), torch.rand(8, 8, 8)

    def oracle(x, targets):
        return (CLASSES[x[:, 0].long() - 1] == targets[:, None, None]).float()

    assert focus(make_case(Wavy(), images, maps, CLASSES, explainer=oracle)).tolist() == [1.0] * 8
    blind = focus(make_case(Wavy(), images, maps, CLASSES, explainer=lambda x, _: torch.rand(len(x), 8, 8)), samples=30)
    assert blind.mean().item() == pytest.approx(0.5, abs=0.03)


def test_a_class_without_partners_and_maps_without_relevance_have_no_focus():
    images, maps = coded(), torch.rand(8, 8, 8)
    lonely = CLASSES.clone()
    lonely[4] = 3
    found = focus(make_case(Wavy(), images, maps, lonely, explainer=lambda x, _: torch.rand(len(x), 8, 8)))
    assert found.isnan().tolist() == [False] * 4 + [True, False, True, False]  # the other of class 2 is alone as well
    two = focus(make_case(Wavy(), images[:3], maps[:3], torch.tensor([0, 0, 1]), explainer=lambda x, _: x[:, 0]))
    assert two.isnan().all()  # one sample of another class is too few
    for relevance in (-torch.rand(8, 8, 8), torch.ones(8, 8, 8)):
        assert focus(make_case(Wavy(), images, maps, CLASSES, explainer=lambda *_, r=relevance: r)).isnan().all()
    maps[2] = 1.0
    rest = focus(make_case(Wavy(), images, maps, CLASSES, explainer=lambda x, _: torch.rand(len(x), 8, 8)))
    assert rest.isnan().tolist() == [row == 2 for row in range(8)]


def test_a_mosaic_without_relevance_is_left_out_of_the_mean():
    answers = [-torch.rand(8, 8, 8), torch.rand(8, 8, 8), torch.rand(8, 8, 8)]
    left = iter(answers)
    found = focus(make_case(Wavy(), coded(), torch.rand(8, 8, 8), CLASSES, explainer=lambda *_: next(left)), samples=3)
    left = iter([torch.zeros(8, 8, 8), *answers[1:]])
    same = focus(make_case(Wavy(), coded(), torch.rand(8, 8, 8), CLASSES, explainer=lambda *_: next(left)), samples=3)
    assert found.isfinite().all()
    assert torch.equal(found, same)


# the front door


def test_every_column_of_targets_is_a_cohort_of_its_own_and_shares_a_call_with_other_metrics():
    images, maps = torch.randn(11, 1, 8, 8), torch.randn(11, 2, 8, 8)
    targets = torch.stack([torch.arange(11) % 3, (torch.arange(11) + 1) % 3], 1)
    wanted = [("sufficiency", {"radius": 1.4}), "sparseness", {"metric": "sufficiency", "radius": 1.5, "as": "wide"}]
    found = hp.score_many(Wavy().eval(), images, maps, metrics=wanted, targets=targets)
    assert list(found) == ["sufficiency", "sparseness", "wide"]
    assert found["wide"].shape == (11, 2)
    for t in range(2):
        case = make_case(Wavy(), images, maps[:, t], targets[:, t])
        assert torch.allclose(found["sufficiency"][:, t].double(), sufficiency(case, radius=1.4), equal_nan=True)
    assert not torch.equal(found["sufficiency"][:, 0], found["sufficiency"][:, 1])


def test_a_sum_of_pixels_has_no_say_in_the_similarity_of_maps():
    images, maps = torch.randn(5, 1, 8, 8), torch.rand(5, 8, 8)
    net = PixelSum(torch.randn(3, 1, 8, 8))
    found = sufficiency(make_case(net, images, maps), radius=2.0)
    decided = net(images).argmax(1)
    assert found.tolist() == pytest.approx([((decided == decided[i]).sum().item() - 1) / 4 for i in range(5)])
