"""Sets of masks, made a chunk at a time so that memory does not grow with their number.

A mask set has `count` masks for each of B images; `chunk(start, stop)` gives some of them, bool `[B, stop - start, H, W]`,
True where a pixel is replaced. All channels of a pixel change together.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from heatproof.checks import check_count
from heatproof.errors import InputError
from heatproof.probing.randomness import SampleRandom


class Masks(Protocol):
    """What a probe asks of a mask set."""

    @property
    def count(self) -> int:
        """The number of masks of each image."""

    def chunk(self, start: int, stop: int) -> Tensor:
        """The masks `start:stop` of every image, bool `[B, stop - start, H, W]`, True = replaced."""


@dataclass(frozen=True)
class Ranking:
    """The pixels of each map from the highest value (rank 0) to the lowest.

    order: int64 `[B, H·W]`, flat pixel indices by rank; ranks: int32 `[B, H, W]`, the rank of each pixel.
    """

    order: Tensor
    ranks: Tensor

    @property
    def pixels(self) -> int:
        """H·W."""
        return self.order.shape[1]

    def chunk_sums(self, values: Tensor, step: int) -> Tensor:
        """Sums of `values` `[B, H, W]` over successive chunks of `step` pixels, float64 `[B, ceil(H·W / step)]`."""
        ranked = values.flatten(1).double().gather(1, self.order)
        short = -self.pixels % step
        return torch.nn.functional.pad(ranked, (0, short)).view(len(ranked), -1, step).sum(-1)


def rank_pixels(values: Tensor, random: SampleRandom) -> Ranking:
    """Rank the pixels of `values` `[B, H, W]` in descending order, ties by a random draw of each sample."""
    flat = values.flatten(1)
    shuffled = random.permutation(flat.shape[1], purpose="ranking ties").to(flat.device)
    sorting = flat.gather(1, shuffled).argsort(dim=1, descending=True, stable=True)
    order = shuffled.gather(1, sorting)
    return Ranking(order, _places(order).view(values.shape))


def _places(order: Tensor) -> Tensor:
    """The place of each index in the permutations `order` `[B, P]`, int32 `[B, P]`."""
    positions = torch.arange(order.shape[1], device=order.device, dtype=torch.int32).expand_as(order)
    return torch.empty_like(order, dtype=torch.int32).scatter_(1, order, positions)


class RankMasks:
    """Mask k replaces the pixels whose rank lies in `lower[k] <= rank < upper[k]`.

    >>> ranks = torch.tensor([[[0, 1], [2, 3]]])
    >>> RankMasks.successive(ranks, step=3).chunk(0, 2).int().tolist()
    [[[[1, 1], [1, 0]], [[0, 0], [0, 1]]]]
    """

    def __init__(self, ranks: Tensor, lower: Sequence[int], upper: Sequence[int]) -> None:
        if len(lower) != len(upper):
            raise InputError(f"lower and upper must be equally long, got {len(lower)} and {len(upper)}.")
        self._ranks = ranks[:, None]
        self._bounds = torch.tensor([[*lower], [*upper]], dtype=ranks.dtype, device=ranks.device)[:, :, None, None]

    @classmethod
    def successive(cls, ranks: Tensor, step: int) -> "RankMasks":
        """One mask for each successive chunk of `step` pixels; the last holds what is left."""
        pixels = ranks[0].numel()
        starts = range(0, pixels, check_count("step", step, high=pixels))
        return cls(ranks, starts, [min(start + step, pixels) for start in starts])

    @classmethod
    def leading(cls, ranks: Tensor, counts: Sequence[int]) -> "RankMasks":
        """Cumulative masks: mask k replaces the first `counts[k]` pixels."""
        return cls(ranks, [0] * len(counts), counts)

    @classmethod
    def trailing(cls, ranks: Tensor, counts: Sequence[int]) -> "RankMasks":
        """Cumulative masks: mask k leaves the first `counts[k]` pixels and replaces all others."""
        return cls(ranks, counts, [ranks[0].numel()] * len(counts))

    @property
    def count(self) -> int:
        """The number of masks of each image."""
        return self._bounds.shape[1]

    def chunk(self, start: int, stop: int) -> Tensor:
        """The masks `start:stop`, bool `[B, stop - start, H, W]`."""
        lower, upper = self._bounds[:, start:stop]
        return torch.logical_and(self._ranks >= lower, self._ranks < upper)


class SubsetMasks:
    """Mask k replaces the pixels whose flat indices are `index[b, k]`, int64 `[B, K, m]`, of images of `size` (H, W).

    >>> SubsetMasks(torch.tensor([[[0, 3], [1, 2]]]), (2, 2)).chunk(0, 2).int().tolist()
    [[[[1, 0], [0, 1]], [[0, 1], [1, 0]]]]
    """

    def __init__(self, index: Tensor, size: Sequence[int]) -> None:
        self._index = index
        self._size = tuple(size)

    def to(self, device: torch.device) -> "SubsetMasks":
        """The same masks on another device."""
        return SubsetMasks(self._index.to(device), self._size)

    @property
    def count(self) -> int:
        """The number of masks of each image."""
        return self._index.shape[1]

    def chunk(self, start: int, stop: int) -> Tensor:
        """The masks `start:stop`, bool `[B, stop - start, H, W]`."""
        index = self._index[:, start:stop]
        masks = torch.zeros(*index.shape[:2], math.prod(self._size), dtype=torch.bool, device=index.device)
        return masks.scatter_(2, index, True).view(*index.shape[:2], *self._size)

    def sums(self, values: Tensor) -> Tensor:
        """Sums of `values` `[B, H, W]` over the pixels of each mask, float64 `[B, K]`."""
        flat = values.flatten(1).double()[:, None].expand(-1, self.count, -1)
        return flat.gather(2, self._index).sum(-1)


class NestedSubsetMasks:
    """`runs` draws of random pixels, each in all `counts`, the smaller sets within the larger: `runs · len(counts)` masks.

    For each of B images of `size` (H, W). They are drawn anew whenever they are needed, so that memory does not grow with
    their number. A draw does not depend on how many follow it.

    >>> masks = NestedSubsetMasks(SampleRandom(0, ["a"]), (1, 4), [1, 3], 2)
    >>> masks.chunk(0, masks.count).sum((2, 3)).tolist()
    [[1, 3, 1, 3]]
    """

    def __init__(
        self, random: SampleRandom, size: Sequence[int], counts: Sequence[int], runs: int,
        device: torch.device | str = "cpu",
    ) -> None:  # fmt: skip
        self._random, self._size, self._device = random, tuple(size), device
        self._counts = [check_count("counts", count, high=math.prod(size)) for count in counts]
        self._runs = check_count("runs", runs)

    @property
    def count(self) -> int:
        """The number of masks of each image."""
        return self._runs * len(self._counts)

    def chunk(self, start: int, stop: int) -> Tensor:
        """The masks `start:stop`, bool `[B, stop - start, H, W]`."""
        each = len(self._counts)
        masks = []
        for run in range(start // each, -(-stop // each)):
            order = self._order(run)
            none = torch.zeros(len(order), math.prod(self._size), dtype=torch.bool, device=order.device)
            counts = self._counts[max(0, start - run * each) : stop - run * each]
            masks += [none.scatter(1, order[:, :count], True) for count in counts]
        return torch.stack(masks, 1).view(len(self._random), -1, *self._size)

    def sums(self, values: Tensor) -> Tensor:
        """Sums of `values` `[B, H, W]` over the pixels of each mask, float64 `[B, count]`."""
        flat, last = values.flatten(1).double(), torch.tensor(self._counts, device=self._device) - 1
        found = flat.new_empty(len(flat), self._runs, len(self._counts))
        for run in range(self._runs):
            found[:, run] = flat.gather(1, self._order(run)).cumsum(1)[:, last]
        return found.flatten(1)

    def _order(self, run: int) -> Tensor:
        return self._random.subset(max(self._counts), math.prod(self._size), purpose=f"subset {run}").to(self._device)


class SegmentMasks:
    """Mask k replaces the segments that `on[b, k]` leaves out.

    segments: int `[B, H, W]`, from 0; on: bool `[B, K, S]`, S at least the largest number of segments.
    """

    def __init__(self, segments: Tensor, on: Tensor) -> None:
        if int(segments.max()) >= on.shape[2]:
            raise InputError(f"The table knows {on.shape[2]} segments, and there is a segment {int(segments.max())}.")
        self._shape = segments.shape[1:]
        self._index = segments.flatten(1)[:, None].long()
        self._off = ~on

    @property
    def count(self) -> int:
        """The number of masks of each image."""
        return self._off.shape[1]

    def chunk(self, start: int, stop: int) -> Tensor:
        """The masks `start:stop`, bool `[B, stop - start, H, W]`."""
        index = self._index.expand(-1, stop - start, -1)
        return self._off[:, start:stop].gather(2, index).view(len(index), -1, *self._shape)


class WindowMasks:
    """Mask k replaces a window of `window` (height, width) pixels; windows are `stride` apart, the last cut off at the edge.

    For `batch` images of `size` (H, W): the windows row by row, as many as are needed to cover the image.

    >>> masks = WindowMasks(1, (1, 4), (1, 3), (1, 2))
    >>> masks.chunk(0, masks.count).int().tolist()
    [[[[1, 1, 1, 0]], [[0, 0, 1, 1]]]]
    """

    def __init__(
        self,
        batch: int,
        size: Sequence[int],
        window: Sequence[int],
        stride: Sequence[int],
        device: torch.device | str = "cpu",
    ) -> None:
        self._batch = batch
        self._lines = [
            _covering(side, check_count("window", extent, high=side), check_count("stride", step, high=extent)).to(
                device
            )
            for side, extent, step in zip(size, window, stride, strict=True)
        ]

    @property
    def count(self) -> int:
        """The number of masks of each image."""
        rows, columns = self._lines
        return len(rows) * len(columns)

    def chunk(self, start: int, stop: int) -> Tensor:
        """The masks `start:stop`, bool `[B, stop - start, H, W]`."""
        rows, columns = self._lines
        number = torch.arange(start, stop, device=rows.device)
        masks = rows[number // len(columns)][:, :, None] & columns[number % len(columns)][:, None]
        return masks.expand(self._batch, -1, -1, -1)


def _covering(side: int, extent: int, step: int) -> Tensor:
    """The pixels of a line of `side` that each of its windows covers, bool `[windows, side]`."""
    starts = torch.arange(-(-(side - extent) // step) + 1)[:, None] * step
    place = torch.arange(side)
    return (place >= starts) & (place < starts + extent)


class SoftMasks:
    """Random grids of `cells` × `cells`, enlarged bilinearly and shifted at random: the replaced share of each pixel.

    A cell is kept with probability `keep`. The grid is enlarged to one cell more than the image and cut out at a random
    place, as in `petsiuk2018rise`. A mask does not depend on how many follow it.
    """

    def __init__(
        self,
        random: SampleRandom,
        size: Sequence[int],
        cells: int,
        keep: float,
        count: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self._random, self._size, self._keep, self._device = random, tuple(size), keep, device
        self._cells = check_count("cells", cells, high=min(size))
        self._count = check_count("samples", count)

    @property
    def count(self) -> int:
        """The number of masks of each image."""
        return self._count

    def chunk(self, start: int, stop: int) -> Tensor:
        """The masks `start:stop`, float32 `[B, stop - start, H, W]`, 1 = replaced."""
        rows = range(len(self._random))
        return torch.stack([torch.stack([self._mask(row, k) for k in range(start, stop)]) for row in rows]).to(
            self._device
        )

    def _mask(self, row: int, number: int) -> Tensor:
        generator = self._random.generator(row, f"soft mask {number}")
        kept = (torch.rand(self._cells, self._cells, generator=generator) < self._keep).float()
        cell = [-(-side // self._cells) for side in self._size]
        enlarged = torch.nn.functional.interpolate(
            kept[None, None], [(self._cells + 1) * extent for extent in cell], mode="bilinear", align_corners=False
        )[0, 0]
        top, left = (int(torch.randint(extent, (), generator=generator)) for extent in cell)
        return 1 - enlarged[top : top + self._size[0], left : left + self._size[1]]
