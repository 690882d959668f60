"""How alike are two maps?"""

import torch
from torch import Tensor
from torch.nn import functional as F

from heatproof.metrics.registry import is_undefined

_WINDOW = 7  # pixels a side
_C1, _C2 = 0.01**2, 0.03**2


def spearman(left: Tensor, right: Tensor) -> Tensor:
    """Spearman's rank correlation of maps `[N, H, W]`, float64 `[N]`; ties have their mean rank.

    NaN where either is constant or not finite.

    >>> spearman(torch.tensor([[[1.0, 2.0, 3.0]]]), torch.tensor([[[1.0, 4.0, 9.0]]])).tolist()
    [1.0]
    """
    x, y = (values - values.mean(1, keepdim=True) for values in (_mean_ranks(left), _mean_ranks(right)))
    found = (x * y).sum(1) / (x.square().sum(1) * y.square().sum(1)).sqrt()
    return found.clamp(-1, 1).masked_fill(is_undefined(left) | is_undefined(right), torch.nan)


def ssim(left: Tensor, right: Tensor) -> Tensor:
    """Mean structural similarity of maps `[N, H, W]` in the plane (`wang2004image`), float64 `[N]`.

    Each map is divided by its largest |a| first, so that, as under a rank correlation, its unit makes no difference. A
    uniform window of 7 × 7 pixels (the largest odd one that fits in smaller maps), sample covariances, K₁ = 0.01,
    K₂ = 0.03, and the range of both maps together, as in scikit-image.

    NaN where either is not finite, and for maps under 3 pixels wide.

    >>> maps = torch.rand(2, 9, 9)
    >>> torch.allclose(ssim(maps, 5 * maps), torch.ones(2, dtype=torch.float64))
    True
    """
    x, y = _unit(left), _unit(right)
    both = torch.stack([x, y], 1).flatten(1)
    span = (both.amax(1) - both.amin(1))[:, None, None]
    window = min(_WINDOW, *(side - 1 + side % 2 for side in x.shape[1:]))

    def mean(values: Tensor) -> Tensor:
        return F.avg_pool2d(values[:, None], window, stride=1)[:, 0]

    mean_x, mean_y, count = mean(x), mean(y), torch.tensor(float(window**2))
    sample = count / (count - 1)
    var_x, var_y = sample * (mean(x * x) - mean_x**2), sample * (mean(y * y) - mean_y**2)
    covariance = sample * (mean(x * y) - mean_x * mean_y)
    c1, c2 = _C1 * span**2, _C2 * span**2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (var_x + var_y + c2)
    return (luminance * structure).mean((1, 2)).clamp(-1, 1)


def histogram_entropy(maps: Tensor, bins: int) -> Tensor:
    """Entropy (natural logarithm) of the histogram of each map `[N, H, W]` between its extremes, float64 `[N]`.

    >>> histogram_entropy(torch.tensor([[[0.0, 0.0, 1.0, 1.0]]]), 10).exp().tolist()
    [2.0]
    """
    flat = maps.double().flatten(1)
    low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
    places = ((flat - low) / (high - low) * bins).nan_to_num().long().clamp(0, bins - 1)
    counts = flat.new_zeros(len(flat), bins).scatter_add_(1, places, torch.ones_like(flat))
    found = entropy(counts / flat.shape[1])
    return found.masked_fill(~torch.isfinite(flat).all(1), torch.nan)


def entropy(shares: Tensor) -> Tensor:
    """`−Σ p ln p` over the last dimension, 0 ln 0 being 0.

    >>> entropy(torch.tensor([0.0, 1.0])).item()
    0.0
    """
    terms: Tensor = torch.special.entr(shares)
    return terms.sum(-1)


def _mean_ranks(maps: Tensor) -> Tensor:
    """The rank of each pixel, float64 `[N, H·W]`, where tied ones share their mean."""
    flat = maps.flatten(1).contiguous()
    ascending = flat.sort(1).values
    first, last = (torch.searchsorted(ascending, flat, right=right) for right in (False, True))
    return (first + last).double() / 2


def _unit(maps: Tensor) -> Tensor:
    values = maps.double()
    largest = values.abs().amax((1, 2), keepdim=True)
    return values / largest.where(largest != 0, 1.0)
