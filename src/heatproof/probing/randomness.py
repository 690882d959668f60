"""Random draws that belong to a sample and not to its batch.

Every draw comes from `(seed, sample key, purpose)`, so a sample's map and score do not depend on which samples share its
batch, on the batch size or on the number of workers.
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from heatproof.errors import InputError


def content_keys(images: Tensor) -> list[str]:
    """A key for each image of `[B, ...]` from its content: the hash of its float32 bytes."""
    arrays = images.detach().to("cpu", torch.float32).contiguous().numpy()
    return [hashlib.blake2b(array.tobytes(), digest_size=16).hexdigest() for array in arrays]


class SampleRandom:
    """One independent stream of random numbers a sample.

    Draws are made on the CPU, so that they are the same on every device.

    >>> alone, batched = SampleRandom(0, ["b"]), SampleRandom(0, ["a", "b"])
    >>> torch.equal(alone.uniform(3, purpose="noise")[0], batched.uniform(3, purpose="noise")[1])
    True
    """

    def __init__(self, seed: int, keys: Sequence[str]) -> None:
        if isinstance(keys, str):
            raise InputError(f"keys must be a sequence with one key a sample, got the string {keys!r}.")
        self.seed = int(seed)
        self.keys = tuple(str(key) for key in keys)

    def __len__(self) -> int:
        return len(self.keys)

    def take(self, rows: Sequence[int]) -> "SampleRandom":
        """The streams of the samples at `rows`."""
        return SampleRandom(self.seed, [self.keys[row] for row in rows])

    def draws(self, rows: Sequence[int], numbers: Sequence[int]) -> "SampleRandom":
        """Streams of their own for several draws of a sample: the n-th draw of the sample at row, for each pair.

        >>> random = SampleRandom(0, ["a", "b"])
        >>> many, one = random.draws([1, 1], [0, 1]), random.draws([1], [1])
        >>> torch.equal(many.uniform(3, purpose="noise")[1], one.uniform(3, purpose="noise")[0])
        True
        """
        pairs = zip(rows, numbers, strict=True)
        return SampleRandom(self.seed, [f"{self.keys[row]}\x1f{number}" for row, number in pairs])

    def generator(self, row: int, purpose: str) -> torch.Generator:
        """A fresh generator for the sample at `row`; the same `purpose` always starts at the same state."""
        text = f"{self.seed}\x1f{self.keys[row]}\x1f{purpose}".encode()
        state = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1
        return torch.Generator().manual_seed(state)

    def uniform(self, *shape: int, purpose: str) -> Tensor:
        """Uniform on [0, 1), `[B, *shape]`, float32."""
        return torch.stack([torch.rand(*shape, generator=self.generator(i, purpose)) for i in range(len(self))])

    def normal(self, *shape: int, purpose: str) -> Tensor:
        """Standard normal, `[B, *shape]`, float32."""
        return torch.stack([torch.randn(*shape, generator=self.generator(i, purpose)) for i in range(len(self))])

    def subset(self, size: int, count: int, purpose: str) -> Tensor:
        """`size` different numbers of `range(count)` in random order for each sample, int64 `[B, size]`."""
        return torch.stack([_different(size, count, self.generator(i, purpose)) for i in range(len(self))])

    def permutation(self, count: int, purpose: str) -> Tensor:
        """A permutation of `range(count)` for each sample, int64 `[B, count]`."""
        return torch.stack([torch.randperm(count, generator=self.generator(i, purpose)) for i in range(len(self))])


def _different(size: int, count: int, generator: torch.Generator) -> Tensor:
    """The first `size` different ones of independent draws, where that is less work than to shuffle all."""
    if 4 * size > count:
        return torch.randperm(count, generator=generator)[:size]
    found = torch.empty(0, dtype=torch.int64)
    while len(found) < size:
        drawn = torch.cat([found, torch.randint(count, (size - len(found) + 8,), generator=generator)])
        ordered, places = drawn.sort(stable=True)
        first = torch.ones_like(ordered, dtype=torch.bool)
        first[1:] = ordered[1:] != ordered[:-1]
        found = drawn[places[first].sort().values]
    return found[:size]
