import pytest
import torch

from heatproof.errors import InputError
from heatproof.probing import NestedSubsetMasks, RankMasks, SampleRandom, SegmentMasks, SubsetMasks, rank_pixels


def test_ranking_of_distinct_values_is_the_descending_order():
    values = torch.tensor([[[3.0, 1.0], [2.0, 4.0]], [[-1.0, -3.0], [0.0, -2.0]]])
    ranking = rank_pixels(values, SampleRandom(0, ["a", "b"]))
    assert ranking.ranks.tolist() == [[[1, 3], [2, 0]], [[1, 3], [0, 2]]]
    assert ranking.order.tolist() == [[3, 0, 2, 1], [2, 0, 3, 1]]


def test_ties_are_broken_by_each_samples_own_draw():
    values = torch.zeros(3, 8, 8)
    values[:, 0] = 1.0
    ranking = rank_pixels(values, SampleRandom(0, ["a", "b", "a"]))
    assert (ranking.ranks[:, 0].flatten(1).sort(1).values == torch.arange(8)).all()  # the ones lead
    assert torch.equal(ranking.ranks[0], ranking.ranks[2])
    assert not torch.equal(ranking.ranks[0], ranking.ranks[1])
    assert ranking.ranks[0, 0].tolist() != list(range(8))
    again = rank_pixels(values[1:2], SampleRandom(1, ["b"]))
    assert not torch.equal(again.ranks[0], ranking.ranks[1])


def test_ties_fall_anywhere_equally_often():
    ranking = rank_pixels(torch.zeros(600, 2, 2), SampleRandom(0, [str(i) for i in range(600)]))
    counts = torch.stack([(ranking.ranks.flatten(1) == r).sum(0) for r in range(4)])
    assert ((counts - 150).abs() < 5 * (600 * 0.25 * 0.75) ** 0.5).all()


def test_chunk_sums_add_the_ranked_values_and_the_rest():
    values = torch.tensor([[[5.0, 1.0, 2.0], [4.0, 3.0, -1.0], [0.5, 0.25, 8.0]]])
    ranking = rank_pixels(values, SampleRandom(0, ["a"]))
    assert ranking.chunk_sums(values, 4).tolist() == [[8 + 5 + 4 + 3, 2 + 1 + 0.5 + 0.25, -1]]


def test_successive_masks_partition_the_image():
    values = torch.rand(2, 5, 7)
    ranking = rank_pixels(values, SampleRandom(0, ["a", "b"]))
    masks = RankMasks.successive(ranking.ranks, 8)
    assert masks.count == 5
    all_masks = masks.chunk(0, 5)
    assert all_masks.shape == (2, 5, 5, 7)
    assert (all_masks.sum(1) == 1).all()
    assert all_masks.sum((2, 3)).tolist() == [[8, 8, 8, 8, 3]] * 2
    lowest_of_each = values[:, None].where(all_masks, torch.inf).amin((2, 3))
    highest_of_each = values[:, None].where(all_masks, -torch.inf).amax((2, 3))
    assert (lowest_of_each[:, :-1] > highest_of_each[:, 1:]).all()
    assert torch.equal(torch.cat([masks.chunk(0, 2), masks.chunk(2, 5)], 1), all_masks)


def test_leading_masks_hold_the_highest_pixels():
    values = torch.rand(2, 4, 4)
    masks = RankMasks.leading(rank_pixels(values, SampleRandom(0, ["a", "b"])).ranks, [0, 3, 16]).chunk(0, 3)
    third = values.flatten(1).topk(3).values[:, -1]
    assert not masks[:, 0].any()
    assert torch.equal(masks[:, 1], values >= third[:, None, None])
    assert masks[:, 2].all()


def test_trailing_masks_leave_the_highest_pixels():
    ranks = rank_pixels(torch.rand(2, 4, 4), SampleRandom(0, ["a", "b"])).ranks
    counts = [0, 3, 16]
    assert torch.equal(RankMasks.trailing(ranks, counts).chunk(0, 3), ~RankMasks.leading(ranks, counts).chunk(0, 3))


def test_subset_masks_replace_their_pixels_and_sum_over_them():
    index = torch.tensor([[[0, 5], [2, 3]], [[4, 1], [5, 0]]])
    masks, values = SubsetMasks(index, (2, 3)), torch.arange(12.0).view(2, 2, 3)
    assert masks.count == 2
    assert masks.chunk(0, 2).int().tolist() == [
        [[[1, 0, 0], [0, 0, 1]], [[0, 0, 1], [1, 0, 0]]],
        [[[0, 1, 0], [0, 1, 0]], [[1, 0, 0], [0, 0, 1]]],
    ]
    assert torch.equal(masks.chunk(1, 2), masks.chunk(0, 2)[:, 1:])
    assert masks.sums(values).tolist() == [[0 + 5, 2 + 3], [10 + 7, 11 + 6]]


def test_random_subsets_belong_to_the_sample_and_not_to_their_number():
    both = NestedSubsetMasks(SampleRandom(0, ["a", "b"]), (5, 4), [7], 6).chunk(0, 6)
    assert (both.sum((2, 3)) == 7).all()
    assert torch.equal(NestedSubsetMasks(SampleRandom(0, ["b"]), (5, 4), [7], 3).chunk(0, 3)[0], both[1, :3])
    assert not torch.equal(both[0], both[1])
    assert not torch.equal(NestedSubsetMasks(SampleRandom(1, ["a"]), (5, 4), [7], 6).chunk(0, 6)[0], both[0])


def test_segment_masks_replace_what_is_off():
    segments = torch.tensor([[[0, 0], [1, 2]], [[0, 1], [0, 1]]])
    on = torch.tensor([[[True, False, True], [False, True, True]], [[True, False, True], [True, True, True]]])
    masks = SegmentMasks(segments, on)
    assert masks.count == 2
    assert masks.chunk(0, 2).int().tolist() == [
        [[[0, 0], [1, 0]], [[1, 1], [0, 0]]],
        [[[0, 1], [0, 1]], [[0, 0], [0, 0]]],
    ]
    assert torch.equal(masks.chunk(1, 2), masks.chunk(0, 2)[:, 1:])


def test_a_segment_without_a_column_is_refused():
    with pytest.raises(InputError, match="knows 2 segments, and there is a segment 3"):
        SegmentMasks(torch.tensor([[[0, 3]]]), torch.ones(1, 5, 2, dtype=torch.bool))


@pytest.mark.parametrize("step", [0, -1, 17, 2.5, True])
def test_an_impossible_step_is_refused(step):
    with pytest.raises(InputError, match="step must be a whole number, from 1 to 16"):
        RankMasks.successive(torch.arange(16).view(1, 4, 4), step)


def test_bounds_of_different_length_are_refused():
    with pytest.raises(InputError, match="equally long"):
        RankMasks(torch.arange(4).view(1, 2, 2), [0], [1, 2])
