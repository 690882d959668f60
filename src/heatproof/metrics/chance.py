"""What a map that knows nothing scores against a region."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from heatproof.checks import check_choice, check_count
from heatproof.errors import InputError
from heatproof.metrics.registry import METRICS, Case, Metric
from heatproof.metrics.tokens import Tokens, check_grid
from heatproof.models import Classifier
from heatproof.probing import SampleRandom, bind, content_keys

Upsampling = Literal["bilinear", "nearest"]

_MAPS_AT_ONCE = 20  # 4 MB at 224 pixels: on a CPU twice as fast as all at once


def chance(
    roi: Tensor,
    *,
    metric: str,
    grid: Sequence[int],
    keys: Sequence[str] | None = None,
    samples: int = 100,
    seed: int = 0,
    upsampling: Upsampling | None = "bilinear",
    **options: Any,
) -> Tensor:
    """The chance level of a localization metric: its mean over random maps made like those of the method that is judged.

    The maps are uniform noise on the method's own grid, taken to the size of the region as the method's maps are. The level
    belongs to the region: it is not its area in general (a bounding rectangle around scattered pixels covers most of the
    image). The gain over chance, `lift`, is the score less this level, see the example.

    Args:
        roi: the regions, `[B, H, W]` or `[B, T, H, W]`; counted where > 0.
        metric: a metric of `metrics()` that needs a region and no model, such as `iou`.
        grid: (rows, columns) of the method's own maps, as `explain(..., resolution="native")` gives them: (14, 14) for the
            tokens of ViT-B/16.
        keys: the samples' ids, from which the noise is drawn; by default a hash of each region.
        samples: random maps for each region.
        seed: of the random draws.
        upsampling: how the method's maps come to the input's resolution, `bilinear` or `nearest`; None for maps that are
            scored on their own grid, under `tokens=True`.
        **options: of the metric, the same as for the score; `tokens` is a grid, or True under `upsampling=None`.

    Returns:
        float32 `[B]` (`[B, T]`) on the region's device. NaN where the metric is undefined, for instance for an empty region.

    Raises:
        InputError: an argument is not what it must be.

    Example:
        >>> from heatproof import score
        >>> roi = torch.zeros(1, 32, 32, dtype=torch.bool)
        >>> roi[:, :16] = True
        >>> maps = torch.linspace(1, 0, 32).view(1, 32, 1).expand(1, 32, 32)
        >>> found = score(nn.Identity().eval(), torch.zeros(1, 1, 32, 32), maps, metric="relevance_mass_accuracy", roi=roi)
        >>> lift = found - chance(roi, metric="relevance_mass_accuracy", grid=(32, 32))
        >>> print(f"{found.item():.2f} is {lift.item():.2f} more than chance")
        0.76 is 0.26 more than chance
    """
    entry, size = _checked(roi, metric, options), roi.shape[-2:]
    rows, columns = check_grid("grid", grid, size)
    _check_upsampling(upsampling, options.get("tokens", False))
    random = SampleRandom(seed, _checked_keys(keys, roi))
    shape = (check_count("samples", samples), rows, columns)
    levels = []
    for row, regions in enumerate((roi > 0).view(len(roi), -1, *size)):
        noise = random.take([row]).uniform(*shape, purpose="chance")[0].to(roi.device)
        parts = [
            maps if upsampling is None else _upsampled(maps, size, upsampling) for maps in noise.split(_MAPS_AT_ONCE)
        ]
        for region in regions:
            levels.append(torch.cat([entry.function(_case(maps, region), **options) for maps in parts]).mean())
    return torch.stack(levels).float().view(roi.shape[:-2])


def _check_upsampling(upsampling: Upsampling | None, tokens: Tokens) -> None:
    if upsampling is None:
        if tokens is False:
            raise InputError("upsampling=None leaves the random maps on their own grid: give tokens=True with it.")
        return
    check_choice("upsampling", upsampling, ("bilinear", "nearest"))
    if tokens is True:
        raise InputError(
            "tokens=True stands for the patches of a model, which is not known here: give their grid, tokens=(rows, "
            "columns), or upsampling=None where the maps are scored on their own grid."
        )


def _upsampled(maps: Tensor, size: torch.Size, upsampling: Upsampling) -> Tensor:
    corners = {"align_corners": False} if upsampling == "bilinear" else {}
    return F.interpolate(maps[:, None], tuple(size), mode=upsampling, **corners)[:, 0]


def _checked(roi: Tensor, metric: str, options: dict[str, Any]) -> Metric:
    if not isinstance(roi, Tensor) or roi.ndim not in (3, 4) or 0 in roi.shape:
        got = list(roi.shape) if isinstance(roi, Tensor) else type(roi).__name__
        raise InputError(f"roi must be a tensor [B, H, W] or [B, T, H, W], got {got}.")
    entry = METRICS[metric]
    entry.check_options(options)
    if entry.needs != {"roi"}:
        known = ", ".join(sorted(name for name, entry in METRICS.items() if entry.needs == {"roi"}))
        raise InputError(
            f"{metric} has no chance level: it does not compare a map with a region alone. Those do: {known}."
        )
    return entry


def _checked_keys(keys: Sequence[str] | None, roi: Tensor) -> Sequence[str]:
    if keys is None:
        return content_keys(roi > 0)
    if isinstance(keys, str) or len(keys) != len(roi):
        raise InputError(f"keys must hold one id for each of the {len(roi)} regions, got {keys!r}.")
    return keys


def _case(maps: Tensor, region: Tensor) -> Case:
    """Many maps of one region `[H, W]`, without image and model, which a metric that has a chance level does not look at."""
    random = SampleRandom(0, [""] * len(maps))
    images = maps.new_zeros(()).expand(len(maps), 1, *region.shape)
    nothing = Classifier(nn.Identity().eval())
    probe = bind(nothing, images, lambda outputs: outputs, random=random)
    targets = torch.zeros(len(maps), dtype=torch.long, device=maps.device)
    return Case(nothing, images, targets, maps, random, probe, region.expand(len(maps), -1, -1))
