"""Areas under the ROC and the precision-recall curve of one class, for many weightings of the patients at once."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

Floats = NDArray[np.float64]


class Ranking:
    """The images of one class and of its rest, in the order of their scores.

    The curves turn only where a positive stands, so the images are counted by patient between one distinct score of a
    positive and the next: a weighting of the patients is then a sparse product and a cumulative sum.

    Args:
        positive: whether the class applies, bool `[N]`.
        scores: any that order the images, `[N]`.
        codes: the patient of each image, 0..P-1, `[N]`.
        patients: P.
    """

    def __init__(
        self, positive: NDArray[np.bool_], scores: Floats, codes: NDArray[np.integer[Any]], patients: int
    ) -> None:
        turns = np.unique(scores[positive])[::-1]  # the distinct scores of positives, the highest first
        # how many of the turns lie above a score: the one in whose stretch an image stands
        stretch = len(turns) - np.searchsorted(turns[::-1], scores, side="right")
        at_turn = np.isin(scores, turns)
        size = (len(turns), patients)
        ahead = ~positive & (stretch < len(turns))  # negatives below every positive never matter

        def count(chosen: NDArray[np.bool_]) -> csr_matrix:
            return csr_matrix((np.ones(int(chosen.sum())), (stretch[chosen], codes[chosen])), shape=size)

        self._positives, self._negatives, self._ties = count(positive), count(ahead), count(ahead & at_turn)
        self.positives_of = np.bincount(codes[positive], minlength=patients).astype(np.float64)
        self.negatives_of = np.bincount(codes[~positive], minlength=patients).astype(np.float64)

    def areas(self, counts: Floats) -> tuple[Floats, Floats]:
        """AUROC and AUPRC, `[D]` each, where the patients weigh `counts` `[D, P]`; NaN without positives or negatives.

        AUROC is the share of pairs of a positive and a negative that are in the right order, ties counting half
        (`hanley1982meaning`). AUPRC is the average precision, without interpolation (`davis2006relationship`).
        """
        weights = np.ascontiguousarray(counts.T)
        hits, passed, tied = (part @ weights for part in (self._positives, self._negatives, self._ties))
        positives, negatives = counts @ self.positives_of, counts @ self.negatives_of
        found, false = hits.cumsum(axis=0), passed.cumsum(axis=0)
        with np.errstate(invalid="ignore", divide="ignore"):
            auroc = 1 - (hits * (false - tied / 2)).sum(axis=0) / (positives * negatives)
            precision = found / (found + false)
            auprc = np.where(hits > 0, hits * precision, 0).sum(axis=0) / positives
        undefined = (positives == 0) | (negatives == 0)
        return np.where(undefined, np.nan, auroc), np.where(undefined, np.nan, auprc)
