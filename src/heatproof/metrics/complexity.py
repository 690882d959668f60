"""How much of the image does the map need?"""

import torch
from torch import Tensor

from heatproof.metrics.registry import Case, metric


@metric("sparseness", category="complexity", higher_is_better=True, bounds=(0, 1), paper="chalasani2020concise")
def sparseness(case: Case) -> Tensor:
    """Gini index of |a|: 0 where every pixel has the same share, near 1 where one pixel has it all.

    `Σ_i (2i − P − 1) |a|_(i) / (P Σ |a|)` over the P values in ascending order.

    Returns:
        `[N]`; NaN for an undefined map.
    """
    ascending = case.maps.abs().flatten(1).double().sort(dim=1).values
    pixels = ascending.shape[1]
    weights = 2 * torch.arange(1, pixels + 1, device=ascending.device, dtype=torch.float64) - pixels - 1
    found = (ascending * weights).sum(1) / (pixels * ascending.sum(1))
    return found.masked_fill(case.undefined, torch.nan)
