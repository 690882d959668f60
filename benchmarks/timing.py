"""What the benchmarks of time and memory share: one round after another, peaks of memory, the machine, a page's tables."""

import os
import platform
import resource
import time
import weakref
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

HOME = Path(__file__).parents[1]
RESULTS, PAGE = HOME / "benchmarks" / "results", HOME / "docs" / "benchmarks.md"

Work = Callable[[], object]
Key = TypeVar("Key")

_TORCHVISION = torch.library.Library("torchvision", "FRAGMENT")  # what it defines goes when it does


def declare_torchvision() -> None:
    """Make torchvision importable beside a CPU build of torch, where its binary may not load."""
    for operator in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, operator):
            _TORCHVISION.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def seconds(device: str, work: Work) -> float:
    """How long `work` takes, by the clock or, on a GPU, by its events."""
    if device == "cpu":
        start = time.perf_counter()
        work()
        return time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    work()
    end.record()
    torch.cuda.synchronize()
    return float(begin.elapsed_time(end)) / 1000


def interleaved(device: str, works: Mapping[Key, Work], rounds: int) -> dict[Key, list[float]]:
    """Seconds of each work in each round; every round runs all works, one after another."""
    found: dict[Key, list[float]] = {key: [] for key in works}
    for _ in range(rounds):
        for key, work in works.items():
            found[key].append(seconds(device, work))
    return found


class LiveBytes(TorchDispatchMode):
    """The most bytes of tensors alive at once that torch operations made while it is entered."""

    def __init__(self, known: Collection[Tensor]) -> None:
        super().__init__()
        self.alive = {tensor.untyped_storage()._cdata: 0 for tensor in known}
        self.now = self.peak = 0

    def __torch_dispatch__(self, function: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._see, result)
        return result

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.alive:
            self.alive[storage._cdata] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._drop, storage._cdata)

    def _drop(self, key: int) -> None:
        self.now -= self.alive.pop(key)


def peak_memory(device: str, work: Work, known: Collection[Tensor]) -> dict[str, int]:
    """Bytes that `work` takes beside the tensors `known` before: of `tensors`, and of this process's `resident` memory."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return {"tensors": torch.cuda.max_memory_allocated() - before}
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    work()
    (peak,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    with LiveBytes(known) as live:
        work()
    return {"tensors": live.peak, "resident": int(peak.split()[1]) * 1024 - before}


def machine_in_words(device: str) -> str:
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if "model name" in line
    ]
    where = f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    if device == "cuda":
        where = f"{torch.cuda.get_device_name()}; {where}"
    busy = ", ".join(f"{load:.1f}" for load in os.getloadavg())
    return f"{where}, torch {torch.__version__}, {datetime.now(UTC):%Y-%m-%d}; load average at the start {busy}"


def write_between(marks: tuple[str, str], text: str) -> None:
    """Put `text` between the marks of the page of benchmarks."""
    before, _, rest = PAGE.read_text().partition(marks[0])
    PAGE.write_text(before + marks[0] + text + marks[1] + rest.partition(marks[1])[2])
