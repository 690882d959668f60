"""Ranks of methods over data sets, and how far apart two average ranks must be (`demsar2006statistical`)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from heatproof.errors import InputError


@dataclass(frozen=True)
class Ranks:
    """Average ranks of methods, 1 the best, in the order of the table's columns.

    `blocks` rows stand behind them; `dropped` rows were left out because a method has no value there. `statistic` and
    `p` are Friedman's, corrected for ties; two methods differ where their average ranks lie more than
    `critical_difference` apart (Nemenyi). These are NaN where there is no test.
    """

    average: Mapping[str, float]
    blocks: int
    dropped: int
    statistic: float = math.nan
    p: float = math.nan
    critical_difference: float = math.nan


def ranks(
    scores: pd.DataFrame,
    *,
    higher_is_better: bool | Mapping[str, bool] = True,
    independent: bool = True,
    level: float = 0.95,
) -> Ranks:
    """Rank the methods (columns) within every block (row), and average over blocks.

    Equal scores share the average of their ranks. With data sets as blocks, Friedman's test asks whether any method
    differs, and Nemenyi's critical difference `q sqrt(k (k + 1) / (6 N))`, for k methods and N blocks, which pairs do
    (`demsar2006statistical`). Metrics of the same maps are no independent blocks: `independent=False` gives their ranks
    as a description, without a test.

    Args:
        scores: one value a block and method; NaN where it is undefined.
        higher_is_better: of all blocks, or of each by its name in the index.
        independent: the blocks are independent of each other.
        level: 1 less the error shared by all pairs.

    Raises:
        InputError: fewer than two methods, a method or block named twice, or a block without a direction.

    Example:
        >>> table = pd.DataFrame({"lrp": [0.9, 0.8, 0.7], "lime": [0.5, 0.8, 0.6]}, index=["chest", "knee", "hand"])
        >>> ranks(table).average
        {'lrp': 1.1666666666666667, 'lime': 1.8333333333333333}
    """
    if not 0 < level < 1:
        raise InputError(f"level must lie between 0 and 1 (0.95 is usual), got {level}.")
    if scores.shape[1] < 2 or not scores.columns.is_unique or not scores.index.is_unique:
        raise InputError(
            "ranks needs a column for each of two or more methods and a row for each block, none of them twice; got "
            f"columns {list(scores.columns)} and rows {list(scores.index)}."
        )
    better = _directions(scores.index, higher_is_better)
    complete = scores[scores.notna().all(axis=1)]
    within = complete.mul(-better[complete.index], axis=0).rank(axis=1)
    average = {str(name): float(value) for name, value in within.mean().items()}
    found = Ranks(average, len(complete), len(scores) - len(complete))
    if not independent or len(complete) < 2:
        return found
    statistic, p = _friedman(within.to_numpy())
    return Ranks(average, found.blocks, found.dropped, statistic, p, _critical_difference(*within.shape, level))


def _directions(blocks: "pd.Index[str]", higher_is_better: bool | Mapping[str, bool]) -> "pd.Series[float]":
    """1 where more is better, -1 where less is."""
    known = dict.fromkeys(blocks, higher_is_better) if isinstance(higher_is_better, bool) else dict(higher_is_better)
    missing = [name for name in blocks if name not in known]
    if missing:
        raise InputError(f"higher_is_better does not name {missing}; it has {sorted(known)}.")
    return pd.Series({name: 1.0 if known[name] else -1.0 for name in blocks}, dtype=float)


def _friedman(within: "np.ndarray[tuple[int, int], np.dtype[np.float64]]") -> tuple[float, float]:
    """Chi-square over k - 1 degrees of freedom of the ranks `[N, k]`; 0 and 1 where all methods are equal everywhere."""
    from scipy.special import chdtrc

    blocks, methods = within.shape
    between = blocks * ((within.mean(axis=0) - (methods + 1) / 2) ** 2).sum()
    spread = within.var(axis=1, ddof=1).mean()  # methods (methods + 1) / 12 without ties
    if spread == 0:
        return 0.0, 1.0
    return float(between / spread), float(chdtrc(methods - 1, between / spread))


def _critical_difference(blocks: int, methods: int, level: float) -> float:
    from scipy.stats import studentized_range

    quantile = studentized_range.ppf(level, methods, math.inf) / math.sqrt(2)
    return float(quantile * math.sqrt(methods * (methods + 1) / (6 * blocks)))
