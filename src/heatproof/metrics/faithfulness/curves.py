"""The output as the image is taken apart, or put together, in the order of the map."""

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from torch import Tensor

from heatproof.metrics.faithfulness.cells import RESOLUTION, Cells
from heatproof.metrics.faithfulness.costs import steps
from heatproof.metrics.registry import METRICS, Case, Curve, Passes, metric
from heatproof.probing import Baseline

_PERCENTAGES = range(10, 100, 10)


def _passes(*orders: str) -> Passes:
    """The forward passes of curves in these orders, each over images that other metrics share."""

    def passes(options: Mapping[str, Any], pixels: int) -> dict[Hashable, int]:
        count = steps(options, pixels)
        known = (options["step"], str(options["baseline"]), options.get("absolute", True))
        return {(order, *known): count for order in orders}

    return passes


@metric("deletion", category="faithfulness", higher_is_better=False, needs={"model"}, paper="petsiuk2018rise",
        curve="area", passes=_passes("highest"))  # fmt: skip
def deletion(
    case: Case,
    *,
    step: int | None = None,
    baseline: Baseline = "black",
    output: str = "probability",
    absolute: bool = False,
) -> Curve:
    """Area under the output as pixels are replaced, those of the highest values first.

    The curve goes from q = 0, the image, to 1, the baseline, see `heatproof.curve`. `pixel_flipping` of `bach2015pixelwise`
    is the same.

    Formula:
        ∫₀¹ f(x∖top-q) dq

    Args:
        case: N samples.
        step: pixels replaced between two points of the curve; by default one image row of pixels. The last may be fewer.
            Under `drop` it counts tokens.
        baseline: what replaces a pixel, see `make_filling`, or `drop`: tokens are taken out of a vision transformer.
        output: `probability` or `logit`.
        absolute: rank by |a| instead of a.

    Returns:
        The curve, whose area is the metric; NaN for an undefined map.

    Quantus:
        Follows `PixelFlipping` along the curve after its first point. Differs in the area, where Quantus leaves out the
        unchanged image and takes every step as 1, so that it grows with the number of steps.
    """
    cells = Cells.of(case, baseline, absolute)
    counts = cells.counts(step)
    return _curve(cells, counts, _without_highest(cells, counts, output))


METRICS.add_alias("pixel_flipping", "deletion")


@metric("insertion", category="faithfulness", higher_is_better=True, needs={"model"}, paper="petsiuk2018rise",
        curve="area", passes=_passes("lowest"))  # fmt: skip
def insertion(
    case: Case,
    *,
    step: int | None = None,
    baseline: Baseline = "blur",
    output: str = "probability",
    absolute: bool = False,
) -> Curve:
    """Area under the output as pixels are put back into the baseline, those of the highest values first.

    The curve is the output for the share q of pixels put back, from 0 (the baseline) to 1 (the image), see
    `heatproof.curve`.

    Formula:
        ∫₀¹ f(baseline with top-q of x) dq

    Args:
        case: N samples.
        step: pixels put back between two points of the curve; by default one image row of pixels. The last may be fewer.
            Under `drop` it counts tokens.
        baseline: what stands in the place of the other pixels, see `make_filling`, or `drop`: the other tokens are left out.
        output: `probability` or `logit`.
        absolute: rank by |a| instead of a.

    Returns:
        The curve, whose area is the metric; NaN for an undefined map.

    Quantus:
        Not in Quantus.
    """
    cells = Cells.of(case, baseline, absolute)
    counts = cells.counts(step)
    masked = cells.with_highest(counts[:-1], output)
    return _curve(cells, counts, torch.cat([masked, cells.plain(output)], 1))


@metric("lerf", category="faithfulness", higher_is_better=True, needs={"model"}, paper="blucher2024decoupling",
        curve="area", passes=_passes("lowest"))  # fmt: skip
def lerf(
    case: Case,
    *,
    step: int | None = None,
    baseline: Baseline = "black",
    output: str = "probability",
    absolute: bool = False,
) -> Curve:
    """Area under the output as pixels are replaced, those of the lowest values first: `deletion` in ascending order.

    Arguments and undefined cases are those of `deletion`.

    Formula:
        ∫₀¹ f(x∖bottom-q) dq

    Returns:
        The curve, whose area is the metric.

    Quantus:
        Not in Quantus.
    """
    cells = Cells.of(case, baseline, absolute)
    counts = cells.counts(step)
    return _curve(cells, counts, _without_lowest(cells, counts, output))


@metric("srg", category="faithfulness", higher_is_better=True, needs={"model"}, paper="blucher2024decoupling",
        curve="area", passes=_passes("highest", "lowest"))  # fmt: skip
def srg(
    case: Case,
    *,
    step: int | None = None,
    baseline: Baseline = "black",
    output: str = "probability",
    absolute: bool = False,
) -> Curve:
    """Symmetric relevance gain: the area of `lerf` less that of `deletion`, whose curves it shares.

    Arguments and undefined cases are those of `deletion`.

    Formula:
        ∫₀¹ f(x∖bottom-q) − f(x∖top-q) dq

    Returns:
        The curve of the differences, whose area is the metric.

    Quantus:
        Not in Quantus.
    """
    cells = Cells.of(case, baseline, absolute)
    counts = cells.counts(step)
    gain = _without_lowest(cells, counts, output) - _without_highest(cells, counts, output)
    return _curve(cells, counts, gain)


def _road_passes(options: Mapping[str, Any], pixels: int) -> dict[Hashable, int]:  # noqa: ARG001
    return {("road", str(options["baseline"]), options["absolute"]): len(_PERCENTAGES)}


@metric("road", category="faithfulness", higher_is_better=False, needs={"model"}, paper="rong2022consistent",
        curve="mean", passes=_road_passes)  # fmt: skip
def road(case: Case, *, baseline: Baseline = "inpaint", output: str = "probability", absolute: bool = False) -> Curve:
    """Remove and debias: the mean output without the highest 10, 20, ... 90 % of the pixels.

    What is left tells nothing about where pixels are missing: by default they are imputed from their neighbours, with a
    little noise.

    Formula:
        1/9 Σ_{q = 10, 20, … 90 %} f(x∖top-q)

    Args:
        case: N samples.
        baseline: what replaces a pixel, see `make_filling`, or `drop`: tokens are taken out of a vision transformer.
        output: `probability`, `logit`, or `prediction`: 1 where the decision is that about the whole image (multi-label: the
            decision about the target), else 0.
        absolute: rank by |a| instead of a.

    Returns:
        The curve, whose mean is the metric; NaN for an undefined map.

    Quantus:
        Follows `ROAD` under `output="prediction"`, but for the noise. Differs in that Quantus averages over the samples
        of its first batch, so that a sample has no score.
    """
    cells = Cells.of(case, baseline, absolute)
    counts = [cells.count * percentage // 100 for percentage in _PERCENTAGES]
    if output == "prediction":
        logits = case.masked_logits(*cells.highest(counts), baseline)
        kept = case.decisions(logits) == case.decisions(case.probe.unmasked_logits[:, None])
        return _curve(cells, counts, kept.float())
    return _curve(cells, counts, cells.without_highest(counts, output))


@metric("monotonicity_arya", category="faithfulness", higher_is_better=True, bounds=(0, 1), needs={"model"},
        paper="arya2019one", passes=_passes("highest"))  # fmt: skip
def monotonicity_arya(
    case: Case, *, step: int | None = None, baseline: Baseline = "black", output: str = "probability"
) -> Tensor:
    """Share of steps in which the output does not fall as pixels are added to the baseline, in ascending order of |a|.

    Formula:
        #{k ≥ 1 : f(x_k) ≥ f(x_{k−1})} / K,  x_k = baseline with the bottom k/K of x

    Args:
        case: N samples.
        step: pixels added in a step; by default one image row of pixels. The first may be fewer. Under `drop` it counts
            tokens.
        baseline: what stands in the place of the pixels that are not yet added, see `make_filling`, or `drop`.
        output: `probability` or `logit`.

    Returns:
        `[N]`; changes within rounding do not count as falls. NaN where |a| is undefined.

    Quantus:
        Differs: `Monotonicity` puts the baseline in the place of the baseline, so that nothing is ever added and its
        answer is always yes. It also asks whether all steps rise, where the source counts, and leaves out the first.
    """
    cells = Cells.of(case, baseline, absolute=True)
    falling = _without_highest(cells, cells.counts(step), output)  # the same images, from the whole one to the baseline
    rounding = RESOLUTION * falling.abs().amax(1, keepdim=True)
    return (falling.diff(dim=1) <= rounding).double().mean(1).masked_fill(cells.undefined, torch.nan)


def _without_highest(cells: Cells, counts: list[int], output: str) -> Tensor:
    """The output at each point of a curve, `[N, P]`."""
    return torch.cat([cells.plain(output), cells.without_highest(counts[1:], output)], 1)


def _without_lowest(cells: Cells, counts: list[int], output: str) -> Tensor:
    """The output at each point of a curve, `[N, P]`, by the masks of `insertion`."""
    kept = [cells.count - count for count in reversed(counts[1:])]
    return torch.cat([cells.plain(output), cells.with_highest(kept, output).flip(1)], 1)


def _curve(cells: Cells, counts: list[int], outputs: Tensor) -> Curve:
    shares = torch.tensor(counts, dtype=torch.float64, device=outputs.device) / cells.count
    return Curve(shares, outputs.masked_fill(cells.undefined[:, None], torch.nan))
