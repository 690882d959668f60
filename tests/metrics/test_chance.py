"""The level of a map that knows nothing, against closed forms and against published regions."""

import numpy as np
import pytest
import torch
from scipy.stats import hypergeom
from torch.nn import functional as F

import heatproof as hp
from heatproof.errors import InputError
from heatproof.images.read import read_mask
from heatproof.metrics.chance import chance
from heatproof.metrics.tokens import area_average

SIDE, DRAWS = 24, 400
PIXELS = SIDE**2


@pytest.fixture
def roi():
    """Regions of several sizes on an image that is its own grid: the noise is then independent from pixel to pixel."""
    found = torch.zeros(3, SIDE, SIDE, dtype=torch.bool)
    found[0, 3:9, 5:20] = True
    found[1, :, :17] = True
    found[2, 20, 20] = True
    return found


def level(roi, metric, **options):
    return chance(roi, metric=metric, grid=roi.shape[-2:], samples=DRAWS, **options).double()


def share(roi):
    return roi.double().mean((1, 2))


def within(found, expected, deviation):
    """Five standard errors of the mean over the draws."""
    return bool(((found - expected).abs() <= 5 * deviation / DRAWS**0.5 + 1e-6).all())


def test_pointing_is_the_share_of_the_region(roi):
    rho = share(roi)
    assert within(level(roi, "pointing_game"), rho, (rho * (1 - rho)).sqrt())


def test_mass_is_the_share_of_the_region(roi):
    rho = share(roi)
    deviation = (rho * (1 - rho) / (3 * PIXELS)).sqrt()  # a third: the squared variation of uniform values
    assert within(level(roi, "relevance_mass_accuracy"), rho, 1.1 * deviation)
    assert within(level(roi, "attribution_localization", weighted=True), 1, 1.1 * deviation / rho)


def test_ranks_are_the_share_of_the_region(roi):
    rho = share(roi)
    for name, options, kept in (("relevance_rank_accuracy", {}, rho * PIXELS), ("top_k_intersection", {"k": 100}, 100)):
        deviation = (rho * (1 - rho) * (PIXELS - kept) / (PIXELS - 1) / kept).sqrt()
        assert within(level(roi, name, **options), rho, deviation)


def test_auc_is_one_half(roi):
    inside = share(roi) * PIXELS
    assert within(level(roi, "roi_auc"), 0.5, ((PIXELS + 1) / (12 * inside * (PIXELS - inside))).sqrt())


@pytest.mark.parametrize("top", [5, 20, 40])
def test_iou_is_that_of_a_random_set(roi, top):
    kept = 1 + int((PIXELS - 1) * top / 100 + 1e-9)
    found, overlap = level(roi, "iou", top=top), level(roi, "dice", top=top)
    for b, size in enumerate(roi.sum((1, 2)).tolist()):
        both = np.arange(min(kept, size) + 1)
        weight = hypergeom(PIXELS, size, kept).pmf(both)
        for value, each in ((found[b], both / (kept + size - both)), (overlap[b], 2 * both / (kept + size))):
            mean = (weight * each).sum()
            assert within(value, mean, float((weight * (each - mean) ** 2).sum() ** 0.5))
        k, rho = kept / PIXELS, size / PIXELS
        assert (weight * both / (kept + size - both)).sum() == pytest.approx(k * rho / (k + rho - k * rho), rel=0.05)


@pytest.mark.parametrize("upsampling", ["bilinear", "nearest", None])
def test_tokens_have_the_share_of_the_region_too(roi, upsampling):
    given = {"metric": "pointing_game", "grid": (6, 8), "samples": DRAWS, "upsampling": upsampling}
    given["tokens"] = True if upsampling is None else (6, 8)
    cover = area_average(roi, (6, 8)).flatten(1)
    if (
        upsampling == "bilinear"
    ):  # the noise is smoothed, least so at the border, where the highest token then is more often
        maps = F.interpolate(torch.rand(5_000, 1, 6, 8), (SIDE, SIDE), mode="bilinear")
        first = F.adaptive_avg_pool2d(maps, (6, 8)).flatten(1).argmax(1).bincount(minlength=48) / 5_000
    else:
        first = torch.full((48,), 1 / 48)
    mean = cover @ first.double()
    deviation = ((cover.square() @ first.double()) - mean.square()).sqrt()
    assert within(chance(roi, **given).double(), mean, 1.1 * deviation)


def test_a_coarse_grid_is_upsampled_like_the_maps(roi):
    found = chance(roi, metric="iou", grid=(4, 4), samples=30, keys=list("abc"), shape="rectangle", top=5)
    assert (found > chance(roi, metric="iou", grid=(24, 24), samples=30, top=5)).all()
    nearest = chance(roi, metric="iou", grid=(4, 4), samples=30, keys=list("abc"), shape="rectangle", top=5,
                     upsampling="nearest")  # fmt: skip
    assert not torch.allclose(found, nearest)
    coarser = chance(roi, metric="pointing_game", grid=(24, 24), samples=30, tokens=(2, 2), keys=list("abc"))
    cover = area_average(roi, (2, 2)).flatten(1)
    assert (coarser >= cover.amin(1)).all()
    assert (coarser[0] * 30).frac() != 0  # shares of cells, not hits
    native = chance(
        roi, metric="iou", grid=(4, 4), samples=30, keys=list("abc"), threshold=0.5, tokens=True, upsampling=None
    )
    pixels = chance(roi, metric="iou", grid=(4, 4), samples=30, keys=list("abc"), threshold=0.5, upsampling="nearest")
    assert torch.allclose(native, pixels)


def test_empty_regions_have_no_chance_and_several_targets_have_their_own(roi):
    roi[1] = False
    keys = list("abc")
    alone = chance(roi, metric="iou", grid=(4, 4), keys=keys, samples=20)
    assert alone.isnan().tolist() == [False, True, False]
    assert chance(roi, metric="iou", grid=(4, 4), keys=keys, samples=20, empty="zero")[1] == 0
    both = chance(torch.stack([roi, roi.flip(1)], 1), metric="iou", grid=(4, 4), keys=keys, samples=20)
    assert both.shape == (3, 2)
    assert torch.equal(both[:, 0].nan_to_num(), alone.nan_to_num())
    other = chance(roi.flip(1), metric="iou", grid=(4, 4), keys=keys, samples=20)
    assert torch.equal(both[:, 1].nan_to_num(), other.nan_to_num())


def test_regions_count_above_zero_and_their_content_is_the_key(roi):
    found = chance(roi, metric="iou", grid=(4, 4), samples=20)
    assert torch.equal(chance(roi.float() * 0.2, metric="iou", grid=(4, 4), samples=20), found)
    assert torch.equal(hp.chance(roi.flip(0), metric="iou", grid=(4, 4), samples=20).flip(0), found)


def test_a_hundred_bilinear_maps_by_default(roi):
    given = {"metric": "iou", "grid": (4, 4)}
    assert torch.equal(chance(roi, **given), chance(roi, samples=100, seed=0, upsampling="bilinear", **given))


def test_the_global_random_state_is_untouched(roi):
    state = torch.get_rng_state()
    chance(roi, metric="iou", grid=(4, 4), samples=3)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metric": "sparseness"}, "sparseness has no chance level.*Those do: attribution_localization, dice, iou"),
        ({"metric": "deletion"}, "deletion has no chance level"),
        ({"metric": "iuo"}, "Unknown metric 'iuo'. Did you mean 'iou'"),
        ({"tpo": 5}, "iou has no option 'tpo'. Did you mean 'top'"),
        ({"grid": 14}, r"grid must be \(rows, columns\), got 14"),
        ({"grid": (14, 25)}, "grid must be a whole number, from 1 to 24, got 25"),
        ({"samples": 0}, "samples must be a whole number"),
        ({"upsampling": "cubic"}, "upsampling must be 'bilinear' or 'nearest', got 'cubic'"),
        ({"upsampling": None}, "upsampling=None leaves the random maps on their own grid: give tokens=True"),
        ({"tokens": True}, r"tokens=True stands for the patches of a model.*give their grid"),
        ({"keys": ["a"]}, "keys must hold one id for each of the 3 regions"),
        ({"keys": "abc"}, "keys must hold one id"),
        ({"roi": torch.ones(24, 24)}, r"roi must be a tensor \[B, H, W\] or \[B, T, H, W\], got \[24, 24\]"),
        ({"roi": [[1.0]]}, "roi must be a tensor .*, got list"),
    ],
)
def test_what_is_wrong_is_said(roi, changes, message):
    given = {"roi": roi, "metric": "iou", "grid": (4, 4)} | changes
    with pytest.raises(InputError, match=message):
        chance(given.pop("roi"), **given)


@pytest.mark.parametrize(
    ("name", "rectangle", "pointing"),
    [("cpchild", 0.43, 0.37), ("duke", 0.02, 0.01), ("kvasir", 0.59, 0.50), ("mura", 0.13, 0.11)],
)
def test_the_levels_of_published_regions(shared, name, rectangle, pointing):
    """What was measured on these masks with random maps of 14 × 14, at every cut-off, to two decimals."""
    paths = sorted((shared / "attention_maps_rois" / name).glob("*.png"))
    roi = torch.stack([torch.from_numpy(read_mask(path, (224, 224))) for path in paths]) > 0
    keys = [path.stem for path in paths]

    def mean(metric, samples, **options):
        return float(chance(roi, metric=metric, grid=(14, 14), keys=keys, samples=samples, **options).nanmean())

    for top in (5, 40):
        assert mean("iou", 4, shape="rectangle", top=top) == pytest.approx(rectangle, abs=0.015)
    deviation = (pointing * (1 - pointing) / (40 * len(roi))) ** 0.5
    assert mean("pointing_game", 40) == pytest.approx(pointing, abs=0.005 + 4 * deviation)
