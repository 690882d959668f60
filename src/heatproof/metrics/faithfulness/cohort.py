"""Do samples with the same explanation have the same prediction?"""

from typing import Literal

import torch
from torch import Tensor

from heatproof.checks import check_choice, check_number
from heatproof.metrics.registry import Case, metric, one_pass

_ROWS_AT_ONCE = 16


@metric("sufficiency", category="faithfulness", higher_is_better=True, bounds=(0, 1), needs={"model", "cohort"},
        paper="dasgupta2022framework", passes=one_pass)  # fmt: skip
def sufficiency(
    case: Case,
    *,
    radius: float = 0.6,
    distance: Literal["unit", "standardized"] = "unit",
    absolute: bool = False,
) -> Tensor:
    """Share of the other samples with a similar map that share the prediction.

    Formula:
        #{j ∈ S_i : y_j = y_i} / #S_i,  S_i = {j ≠ i : ‖a_j − a_i‖ ≤ radius}, y the prediction

    Args:
        case: the cohort: all samples that are scored together.
        radius: the largest distance of similar maps.
        distance: `unit`: of maps divided by their Euclidean norm, from 0 (equal but for the unit) over √2 (nothing in
            common) to 2; `standardized`: of maps divided, pixel by pixel, by the standard deviation in the cohort. Pixels
            that do not vary count for nothing.
        absolute: compare |a| instead of a.

    Returns:
        `[N]`; NaN where no other sample has a similar map, and for an undefined map, which is similar to none.

    Quantus:
        Follows `Sufficiency` under `distance="standardized"`. Differs in that its cohort is the batch, by whose largest
        distance it divides before it looks at the threshold, and in that a sample without a like has 0 there.
    """
    check_choice("distance", distance, ("unit", "standardized"))
    values, undefined = case.values(absolute)
    comparable = _scaled(values.flatten(1).double(), ~undefined, distance)
    similar = _distances(comparable) <= check_number("radius", radius)
    similar &= ~undefined & ~undefined[:, None]
    similar.fill_diagonal_(False)
    decided = case.decisions(case.probe.unmasked_logits[:, None])
    return (similar & (decided == decided.T)).sum(1).double() / similar.sum(1)  # 0 / 0 is NaN


def _scaled(flat: Tensor, defined: Tensor, distance: str) -> Tensor:
    """The maps `[N, P]` in units in which they are compared; those that are not `defined` become NaN or anything."""
    if distance == "unit":
        return flat / flat.square().sum(1, keepdim=True).sqrt()
    deviation = flat[defined].std(0)
    return torch.where(deviation > 0, flat / deviation, 0.0)


def _distances(points: Tensor) -> Tensor:
    """Euclidean distances of all pairs `[N, N]`, a few rows at a time."""
    rows = [
        torch.cdist(part, points, compute_mode="donot_use_mm_for_euclid_dist") for part in points.split(_ROWS_AT_ONCE)
    ]
    return torch.cat(rows)
