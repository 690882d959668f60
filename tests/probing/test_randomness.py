import pytest
import torch

from heatproof.errors import InputError
from heatproof.probing import SampleRandom, content_keys


def draws(random):
    return [random.uniform(3, 4, purpose="x"), random.normal(5, purpose="x"), random.permutation(9, purpose="x")]


def test_a_draw_belongs_to_seed_key_and_purpose_alone():
    base = SampleRandom(0, ["a", "b", "c"])
    for found, alone in zip(draws(base.take([2, 0])), draws(SampleRandom(0, ["c", "a"])), strict=True):
        assert torch.equal(found, alone)
    for found, batched in zip(draws(SampleRandom(0, ["b"])), draws(base), strict=True):
        assert torch.equal(found[0], batched[1])
        assert not torch.equal(batched[0], batched[1])
    for other in (SampleRandom(1, ["a", "b", "c"]).uniform(3, 4, purpose="x"), base.uniform(3, 4, purpose="y")):
        assert not torch.equal(other, base.uniform(3, 4, purpose="x"))
    assert not torch.equal(
        SampleRandom(1, ["1a"]).uniform(3, purpose="x"), SampleRandom(11, ["a"]).uniform(3, purpose="x")
    )


def test_distributions():
    random = SampleRandom(0, [str(i) for i in range(200)])
    uniform, normal = random.uniform(50, purpose="u"), random.normal(50, purpose="n")
    assert abs(uniform.mean() - 0.5) < 5 / (12 * 10_000) ** 0.5
    assert uniform.min() >= 0
    assert uniform.max() < 1
    assert abs(normal.mean()) < 0.05
    assert abs(normal.var() - 1) < 5 * (2 / 10_000) ** 0.5
    assert (random.permutation(7, purpose="p").sort(1).values == torch.arange(7)).all()


def test_the_global_random_state_is_untouched():
    state = torch.get_rng_state()
    draws(SampleRandom(0, ["a"]))
    assert torch.equal(torch.get_rng_state(), state)


def test_content_keys_tell_images_apart_and_not_their_batch():
    images = torch.rand(3, 1, 4, 4)
    images[2] = images[0]
    keys = content_keys(images)
    assert keys[0] == keys[2] != keys[1]
    assert content_keys(images[1:2].double()) == [keys[1]]
    assert content_keys(images.transpose(2, 3).contiguous().transpose(2, 3)) == keys


def test_one_string_is_not_a_list_of_keys():
    with pytest.raises(InputError, match="sequence with one key a sample"):
        SampleRandom(0, "abc")


@pytest.mark.parametrize("size", [1, 4, 5, 6, 20])  # few of them are drawn one by one, many are shuffled
def test_a_subset_holds_different_numbers_and_each_stands_equally_often_at_each_place(size):
    count, samples = 20, 4000
    found = SampleRandom(0, [str(i) for i in range(samples)]).subset(size, count, purpose="s")
    assert found.shape == (samples, size)
    assert all(len(set(row)) == size and set(row) <= set(range(count)) for row in found.tolist())
    deviation = (samples / count * (1 - 1 / count)) ** 0.5
    for place in found.T:
        assert (place.bincount(minlength=count) - samples / count).abs().max() < 6 * deviation
    first_two = {tuple(row) for row in found[:, :2].tolist()}
    assert size == 1 or len(first_two) > 0.99 * count * (count - 1)  # which come in any order


def test_a_subset_belongs_to_its_sample_and_purpose():
    both = SampleRandom(3, ["a", "b"]).subset(5, 1000, purpose="p")
    assert torch.equal(SampleRandom(3, ["b"]).subset(5, 1000, purpose="p")[0], both[1])
    assert not torch.equal(SampleRandom(3, ["b"]).subset(5, 1000, purpose="q")[0], both[1])
    assert not torch.equal(both[0], both[1])
