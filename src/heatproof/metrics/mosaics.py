"""Does the explanation of a mosaic point at the images of the explained class?"""

import torch
from torch import Tensor
from torch.nn import functional as F

from heatproof.checks import check_count
from heatproof.metrics.registry import Case, is_undefined, metric


@metric("focus", category="localization", higher_is_better=True, bounds=(0, 1), needs={"model", "explain", "cohort"},
        paper="ariasduart2022focus")  # fmt: skip
def focus(case: Case, *, samples: int = 4, absolute: bool = False) -> Tensor:
    """Share of the positive relevance of a mosaic that lies on its images of the explained class.

    A mosaic of 2 × 2 images holds the sample, another one of its class and two of other classes, in random places; its
    explanation for the class is a⁺, and ½ is chance. Each image is shrunk to half its side, so that the mosaic has the size
    that the model takes (the source enlarges the input instead).

    Formula:
        mean over mosaics of Σ_{own class} a⁺ / Σ a⁺

    Args:
        case: the cohort: all samples that are scored together, whose targets are their classes: give the labels.
        samples: mosaics for each sample.
        absolute: use |a| instead of a⁺.

    Returns:
        `[N]`, the mean over those mosaics whose map has positive values and is not constant. NaN if there are none, for a
        class with one sample, with fewer than two samples of other classes, and for an undefined map of the sample itself.

    Quantus:
        Follows `Focus` for the same mosaics, which Quantus wants to be given.
    """
    shares = torch.stack([_share(case, number, absolute) for number in range(check_count("samples", samples))])
    return shares.nanmean(0).masked_fill(case.undefined, torch.nan)


def _share(case: Case, number: int, absolute: bool) -> Tensor:
    """The share in mosaic `number` of each sample, float64 `[N]`."""
    members, places = _drawn(case, number)
    incomplete = (members[:, 0] < 0).to(case.images.device)
    mosaics = _mosaics(case.images, members.clamp(min=0), places)
    maps = case.explain(mosaics)
    positive = (maps.abs() if absolute else maps.clamp(min=0)).double()
    of_class = torch.zeros_like(positive)
    for row, (first, second, *_) in enumerate(places.tolist()):
        for place in (first, second):
            of_class[row][_quadrant(place, maps.shape[1:])] = 1
    found = (positive * of_class).sum((1, 2)) / positive.sum((1, 2))  # 0 / 0 is NaN
    return found.masked_fill(incomplete | is_undefined(maps), torch.nan)


def _drawn(case: Case, number: int) -> tuple[Tensor, Tensor]:
    """The four members of each mosaic, two of the sample's class first, and their places from 0 to 3, int64 `[N, 4]`.

    Members are drawn among the other samples in the order of their keys, so that the order in which the samples were given
    makes no difference. A sample that lacks partners has −1.
    """
    keys, targets = case.random.keys, case.targets.tolist()
    by_key = sorted(range(len(keys)), key=keys.__getitem__)
    members, places = torch.full((len(keys), 4), -1), torch.empty(len(keys), 4, dtype=torch.long)
    for row, target in enumerate(targets):
        generator = case.random.generator(row, f"mosaic {number}")
        same = [other for other in by_key if targets[other] == target and other != row]
        others = [other for other in by_key if targets[other] != target]
        places[row] = torch.randperm(4, generator=generator)
        if same and len(others) > 1:
            partner = same[int(torch.randint(len(same), (), generator=generator))]
            apart = torch.randperm(len(others), generator=generator)[:2].tolist()
            members[row] = torch.tensor([row, partner, *(others[index] for index in apart)])
    return members, places


def _mosaics(images: Tensor, members: Tensor, places: Tensor) -> Tensor:
    """`[N, C, H, W]`: in mosaic n the image `members[n, i]`, shrunk, stands at `places[n, i]`."""
    mosaics = torch.empty_like(images)
    for row in range(len(images)):
        for member, place in zip(members[row].tolist(), places[row].tolist(), strict=True):
            part = mosaics[row][:, *_quadrant(place, images.shape[2:])]
            part.copy_(F.adaptive_avg_pool2d(images[member], (part.shape[1], part.shape[2])))
    return mosaics


def _quadrant(place: int, size: torch.Size) -> tuple[slice, slice]:
    """Rows and columns of quadrant 0 to 3, row by row; the later one is larger by a pixel where the side is odd."""
    rows, columns = ((slice(0, side // 2), slice(side // 2, side)) for side in size)
    return rows[place // 2], columns[place % 2]
