"""What a metric ranks and masks: the pixels of the map, or under `drop` the tokens of a vision transformer."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from torch import Tensor

from heatproof.checks import check_count
from heatproof.metrics.registry import Case, is_undefined
from heatproof.metrics.tokens import area_average
from heatproof.models.patches import patch_grid
from heatproof.probing import Baseline, Masks, Ranking, RankMasks, rank_pixels

# Changes of the output below this share of it are rounding in float32: their order and their correlation are chance.
RESOLUTION = 5e-7


@dataclass(frozen=True)
class Cells:
    """The cells of the maps of a case and what replaces them.

    values: the map on its cells, `[N, h, w]`; undefined: where it ranks nothing, bool `[N]`.
    """

    case: Case
    baseline: Baseline
    absolute: bool
    values: Tensor
    undefined: Tensor

    @classmethod
    def of(cls, case: Case, baseline: Baseline, absolute: bool) -> "Cells":
        """The pixels of the maps; under `drop` the tokens, each with the mean of the map over its patch."""
        if not drops_tokens(baseline):
            return cls(case, baseline, absolute, *case.values(absolute))
        values = area_average(case.maps, token_grid_of(case)).float()
        values = values.abs() if absolute else values
        return cls(case, baseline, absolute, values, is_undefined(values))

    @property
    def size(self) -> tuple[int, int]:
        """(h, w)."""
        return self.values.shape[1], self.values.shape[2]

    @property
    def count(self) -> int:
        """h·w."""
        return self.values[0].numel()

    @property
    def ranking(self) -> Ranking:
        """The cells from the highest value to the lowest, shared by every metric that masks in this order."""
        return self.case.shared(
            ("ranking", self.size, self.absolute), lambda: rank_pixels(self.values, self.case.random)
        )

    def step(self, step: int | None) -> int:
        """`step`, by default one row of cells."""
        return self.size[1] if step is None else check_count("step", step, high=self.count)

    def counts(self, step: int | None) -> list[int]:
        """How many cells have changed at each point of a curve, from none to all."""
        return [*range(0, self.count, self.step(step)), self.count]

    def plain(self, output: str) -> Tensor:
        """The output on the images as they are, `[N, 1]`."""
        return self.case.probe.unmasked(output=output)[:, None]

    def masked(self, key: Hashable, masks: Callable[[], Masks], output: str) -> Tensor:
        """The output on masked images `[N, K]`, see `Case.masked`."""
        return self.case.masked(key, masks, self.baseline, output)

    def without_highest(self, counts: Sequence[int], output: str) -> Tensor:
        """The output without the highest cells, `counts[k]` of them, `[N, K]`."""
        return self.masked(*self.highest(counts), output)

    def with_highest(self, counts: Sequence[int], output: str) -> Tensor:
        """The output with no cells but the highest ones, `counts[k]` of them, `[N, K]`."""
        key = ("all but highest", self.absolute, *counts)
        return self.masked(key, lambda: RankMasks.trailing(self.ranking.ranks, counts), output)

    def highest(self, counts: Sequence[int]) -> tuple[Hashable, Callable[[], Masks]]:
        """Masks of the highest cells, `counts[k]` of them, behind the key under which they are shared."""
        return ("highest", self.absolute, *counts), lambda: RankMasks.leading(self.ranking.ranks, counts)


def drops_tokens(baseline: Baseline) -> bool:
    """Whether `baseline` takes tokens out, so that masks are over tokens."""
    return isinstance(baseline, str) and baseline == "drop"


def token_grid_of(case: Case) -> tuple[int, int]:
    """(rows, columns) of the tokens that `drop` can take out; `UnsupportedModelError` where there are none."""
    return case.shared("token grid", lambda: patch_grid(case.model, case.images))
