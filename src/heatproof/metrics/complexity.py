"""How much of the image does the map need?"""

import math

import torch
from torch import Tensor

from heatproof.checks import check_number
from heatproof.metrics.registry import Case, metric
from heatproof.metrics.similarity import entropy


@metric("sparseness", category="complexity", higher_is_better=True, bounds=(0, 1), paper="chalasani2020concise")
def sparseness(case: Case) -> Tensor:
    """Gini index of |a|: 0 where every pixel has the same share, near 1 where one pixel has it all.

    Formula:
        Σ_i (2i − P − 1) |a|_(i) / (P Σ |a|),  |a|_(1) ≤ |a|_(2) ≤ …

    Returns:
        `[N]`; NaN for an undefined map.

    Quantus:
        Follows `Sparseness`.
    """
    ascending = case.maps.abs().flatten(1).double().sort(dim=1).values
    pixels = ascending.shape[1]
    weights = 2 * torch.arange(1, pixels + 1, device=ascending.device, dtype=torch.float64) - pixels - 1
    found = (ascending * weights).sum(1) / (pixels * ascending.sum(1))
    return found.masked_fill(case.undefined, torch.nan)


@metric("complexity", category="complexity", higher_is_better=False, bounds=(0, None), paper="bhatt2020evaluating")
def complexity(case: Case, *, normalized: bool = False) -> Tensor:
    """Entropy of the shares of |a|: 0 where one pixel has it all, ln P where all P pixels have the same share.

    Formula:
        −Σ p ln p,  p = |a| / Σ |a|

    Args:
        case: N samples.
        normalized: divide by ln P, so that images of any size have values from 0 to 1.

    Returns:
        `[N]`; NaN for an undefined map.

    Quantus:
        Follows `Complexity`.
    """
    sizes = case.maps.abs().flatten(1).double()
    found = entropy(sizes / sizes.sum(1, keepdim=True))
    if normalized:
        found = found / math.log(sizes.shape[1])
    return found.masked_fill(case.undefined, torch.nan)


@metric("effective_complexity", category="complexity", higher_is_better=False, bounds=(0, None),
        paper="nguyen2020quantitative")  # fmt: skip
def effective_complexity(case: Case, *, tolerance: float = 1e-5) -> Tensor:
    """The number of pixels that the map says matter: those with |a| above a small share of the largest.

    Formula:
        #{i : |a_i| > tolerance · max |a|}

    Args:
        case: N samples.
        tolerance: the share of the largest |a| that a pixel must exceed.

    Returns:
        `[N]`; NaN for an undefined map.

    Quantus:
        Follows `EffectiveComplexity` for maps whose largest |a| is 1: its limit is no share.
    """
    sizes = case.maps.abs().flatten(1).double()
    limit = check_number("tolerance", tolerance, high=1) * sizes.amax(1, keepdim=True)
    return (sizes > limit).sum(1).double().masked_fill(case.undefined, torch.nan)
