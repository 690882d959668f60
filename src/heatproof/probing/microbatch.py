"""How many images go through the model at a time."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from heatproof.checks import check_count
from heatproof.probing.precision import Precision, forward_pass

Forward = Callable[[Tensor], Tensor]

_CPU_BUDGET = 1 << 30
_LARGEST = 1024
_WORTH = 0.97  # a larger micro-batch must save this factor of the time to be worth its memory
_PEAK = 6  # peak memory over the largest tensor: 3 to 7 was measured (a small CNN, ViT, DenseNet)
_PATIENCE = 2  # sizes tried after the best one, since one timing may be unlucky


class MicroBatch:
    """The number of images in one forward pass: `size` as given, or found by measurement on the work itself.

    While it searches, sizes double for as long as they make an image cheaper and their memory stays within the budget
    (1 GiB on a CPU, half of what is free on a GPU). Out of memory halves the size and goes on.
    """

    def __init__(self, size: int | None = None, *, budget: int | None = None) -> None:
        self.size = 1 if size is None else check_count("batch_size", size)
        self.settled = size is not None
        self._budget = budget
        self._limit: int | None = None
        self._costs: list[float] = []
        self._best = (float("inf"), 1)
        self._misses = 0

    def run(self, forward: Forward, images: Tensor) -> Tensor:
        """`forward` of `images` `[n, C, H, W]`, a micro-batch at a time, concatenated."""
        outputs: list[Tensor] = []
        start = 0
        while start < len(images):
            part = images[start : start + self.size]
            try:
                outputs.append(forward(part) if self.settled else self._measured(forward, part))
            except RuntimeError as error:
                if len(part) == 1 or not _out_of_memory(error):
                    raise
                self.size, self.settled = len(part) // 2, True
                continue
            start += len(part)
        return torch.cat(outputs)

    def _measured(self, forward: Forward, part: Tensor) -> Tensor:
        if self._limit is None:  # the first image also pays for what the model sets up once, so it is not timed
            with _LargestTensor(part) as seen:
                output = forward(part)
            self._limit = self._affordable(seen.bytes / len(part), part.device)
            return output
        started = time.perf_counter()
        output = forward(part)
        if part.device.type == "cuda":
            torch.cuda.synchronize(part.device)
        self._note(len(part), time.perf_counter() - started)
        return output

    def _affordable(self, bytes_an_image: float, device: torch.device) -> int:
        budget = self._budget
        if budget is None:
            budget = torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else _CPU_BUDGET
        return max(1, min(_LARGEST, int(budget // (_PEAK * bytes_an_image))))

    def _note(self, images: int, seconds: float) -> None:
        """Learn from one timed pass; two of each size count."""
        if 2 * images <= self.size:
            return
        self._costs.append(seconds / images)
        if len(self._costs) < 2:
            return
        cost = min(self._costs)
        self._costs.clear()
        if cost < _WORTH * self._best[0]:
            self._best, self._misses = (cost, self.size), 0
        else:
            self._misses += 1
        if self._misses == _PATIENCE or 2 * self.size > (self._limit or 1):
            self.size, self.settled = self._best[1], True
        else:
            self.size *= 2


def measure_batch_size(
    forward: Forward, images: Tensor, *, precision: Precision = "fp32", budget: int | None = None
) -> int:
    """The micro-batch that a search on `images` `[n, C, H, W]`, repeated as often as needed, settles on.

    For work that is spread over processes or interrupted: found once, given to every `explain` and `score` afterwards.
    """
    micro = MicroBatch(budget=budget)
    at_precision = partial(forward_pass, forward, precision=precision)
    with torch.no_grad():
        while not micro.settled:
            rows = torch.arange(micro.size, device=images.device) % len(images)
            micro.run(at_precision, images[rows])
    return micro.size


def _out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


class _LargestTensor(TorchDispatchMode):
    """Sees the size of the largest tensor, given or made by an operation (a view makes none)."""

    def __init__(self, given: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = given.numel() * given.element_size()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.is_view:
            return result
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, Tensor):
                self.bytes = max(self.bytes, value.numel() * value.element_size())
        return result
