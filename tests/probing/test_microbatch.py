import pytest
import torch

from heatproof.errors import InputError
from heatproof.probing import MicroBatch, measure_batch_size, microbatch


class Clock:
    """A clock that moves by a made-up cost of each forward pass."""

    def __init__(self, cost):
        self.now, self.cost, self.sizes = 0.0, cost, []

    def forward(self, images):
        self.sizes.append(len(images))
        self.now += self.cost(len(images))
        return images.flatten(1).sum(1, keepdim=True)


@pytest.fixture
def clock(monkeypatch):
    def start(cost):
        made = Clock(cost)
        monkeypatch.setattr(microbatch.time, "perf_counter", lambda: made.now)
        return made

    return start


@pytest.mark.parametrize(("cliff", "best"), [(1, 1), (4, 4), (16, 16), (64, 64)])
def test_the_cheapest_size_an_image_is_found(clock, cliff, best):
    made = clock(lambda n: 1.0 + 0.1 * n if n <= cliff else 100.0 * n)
    images = torch.rand(1000, 1, 2, 2)
    micro = MicroBatch()
    found = micro.run(made.forward, images)
    assert micro.size == best
    assert micro.settled
    assert torch.equal(found[:, 0], images.flatten(1).sum(1)), "the search runs on the work itself"
    assert sum(made.sizes) == 1000


def test_a_gain_that_is_not_worth_its_memory_is_left(clock):
    made = clock(lambda n: 1.0 * n + 0.001)
    assert measure_batch_size(made.forward, torch.rand(1, 1, 2, 2)) == 1


def test_one_size_that_is_no_gain_does_not_end_the_search(clock):
    made = clock(lambda n: 3.0 if n == 2 else 1.0 if n <= 32 else 50.0 * n)
    assert measure_batch_size(made.forward, torch.rand(3, 1, 2, 2)) == 32


def test_memory_bounds_the_size(clock):
    made = clock(lambda n: 1.0)  # the larger the better

    def forward(images):
        made.forward(images)
        return images.repeat(1, 1, 10, 10).sum((1, 2, 3))[:, None]  # the largest tensor: 100 images' worth

    images = torch.rand(2, 1, 4, 4)
    largest = 100 * 16 * 4
    assert measure_batch_size(forward, images, budget=microbatch._PEAK * largest * 20) == 16
    assert measure_batch_size(forward, images, budget=1) == 1


def test_views_cost_no_memory(clock):
    made = clock(lambda n: 1.0)

    def forward(images):
        images.expand(-1, 1000, -1, -1)
        return made.forward(images)

    assert measure_batch_size(forward, torch.rand(1, 1, 4, 4), budget=microbatch._PEAK * 64 * 8) == 8


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory")])
def test_out_of_memory_halves_and_goes_on(error):
    sizes = []

    def forward(images):
        sizes.append(len(images))
        if len(images) > 3:
            raise error
        return images.flatten(1)

    images = torch.rand(20, 1, 2, 2)
    micro = MicroBatch(16)
    assert torch.equal(micro.run(forward, images), images.flatten(1))
    assert sizes[:4] == [16, 8, 4, 2]
    assert micro.size == 2


def test_other_errors_and_an_image_that_does_not_fit_are_raised():
    def broken(images):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    def full(images):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(RuntimeError, match="mat1"):
        MicroBatch(4).run(broken, torch.rand(4, 1, 2, 2))
    with pytest.raises(torch.OutOfMemoryError):
        MicroBatch(4).run(full, torch.rand(4, 1, 2, 2))


def test_a_given_size_is_kept():
    sizes = []
    micro = MicroBatch(3)
    micro.run(lambda images: sizes.append(len(images)) or images.flatten(1), torch.rand(8, 1, 2, 2))
    assert sizes == [3, 3, 2]
    assert micro.size == 3


@pytest.mark.parametrize("size", [0, -2, 1.5])
def test_an_impossible_size_is_refused(size):
    with pytest.raises(InputError, match="batch_size must be a whole number, at least 1"):
        MicroBatch(size)
