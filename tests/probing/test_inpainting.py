"""Noisy linear imputation against a dense replica in float64, and closed forms."""

import numpy as np
import pytest
import torch

from heatproof.errors import InputError
from heatproof.models import Classifier
from heatproof.probing import NestedSubsetMasks, SampleRandom, bind, inpainting
from heatproof.probing.baselines import make_filling
from heatproof.probing.inpainting import NOISE, inpaint
from support.cases import Wavy


def dense(image, mask):
    """Each masked pixel is the weighted mean of its neighbours in the image: one dense system, pixel by pixel."""
    channels, height, width = image.shape
    places = [tuple(place) for place in np.argwhere(mask)]
    matrix, right = np.zeros((len(places), len(places))), np.zeros((len(places), channels))
    for row, (i, j) in enumerate(places):
        for down in (-1, 0, 1):
            for side in (-1, 0, 1):
                y, x = i + down, j + side
                if (down, side) == (0, 0) or not (0 <= y < height and 0 <= x < width):
                    continue
                weight = 1 / 6 if down == 0 or side == 0 else 1 / 12
                matrix[row, row] += weight
                if mask[y, x]:
                    matrix[row, places.index((y, x))] -= weight
                else:
                    right[row] += weight * image[:, y, x]
    result = image.copy()
    if places:
        result[:, mask] = np.linalg.solve(matrix, right).T
    return result


def test_agreement_with_a_dense_system():
    images, masks = torch.randn(2, 3, 9, 7), torch.rand(2, 4, 9, 7) < torch.tensor([0.1, 0.5, 0.9, 0.97]).view(4, 1, 1)
    masks[:, :, 4, 3] = False
    found = inpaint(images, masks, torch.zeros_like(images))
    for b in range(2):
        for k in range(4):
            expected = dense(images[b].double().numpy(), masks[b, k].numpy())
            np.testing.assert_allclose(found[b, k].numpy(), expected, atol=1e-5)


def test_large_holes_agree_with_a_dense_system_beside_small_ones_none_and_all():
    images, masks = torch.randn(1, 2, 21, 26), torch.zeros(1, 5, 21, 26, dtype=torch.bool)
    masks[0, 0, 2:19, 3:] = True  # up to the edge
    masks[0, 1, 5, 7] = True
    masks[0, 3] = True
    masks[0, 4] = True
    masks[0, 4, 20, 25] = False
    found = inpaint(images, masks, torch.zeros_like(images))
    for k in (0, 1, 4):
        expected = dense(images[0].double().numpy(), masks[0, k].numpy())
        np.testing.assert_allclose(found[0, k].numpy(), expected, atol=1e-5)
    assert torch.equal(found[0, 2], images[0])
    assert (found[0, 3] == 0).all()


def test_a_mask_is_solved_alone_as_among_others():
    images, masks = torch.randn(3, 1, 32, 32), torch.rand(3, 3, 32, 32) < torch.tensor([0.2, 0.9, 1.0]).view(3, 1, 1)
    masks[:, 2, :, 0] = False
    together = inpaint(images, masks, torch.zeros_like(images))
    for b in range(3):
        for k in range(3):
            alone = inpaint(images[b, None], masks[b, k][None, None], torch.zeros(1, 1, 32, 32))
            torch.testing.assert_close(alone[0, 0], together[b, k], atol=1e-6, rtol=0)


def test_steps_do_not_grow_with_the_hole(monkeypatch):
    products, dot = [], inpainting._dot

    def counted(left, right):
        products.append(1)
        return dot(left, right)

    def cost(side):
        mask = torch.zeros(1, 1, side, side, dtype=torch.bool)
        mask[..., 2:-2, 2:-2] = True
        products.clear()
        inpaint(torch.randn(1, 1, side, side), mask, torch.zeros(1, 1, side, side))
        return len(products)

    monkeypatch.setattr(inpainting, "_dot", counted)
    assert cost(192) < 2 * cost(32)  # without coarser grids about 6 times


def test_a_plane_inside_is_restored_exactly():
    plane = (3 * torch.arange(12.0).view(12, 1) - 2 * torch.arange(10.0)).expand(1, 1, 12, 10)
    mask = torch.zeros(1, 1, 12, 10, dtype=torch.bool)
    mask[..., 2:9, 1:9] = True
    torch.testing.assert_close(inpaint(plane, mask, torch.zeros_like(plane))[:, 0], plane, atol=1e-4, rtol=0)


def test_what_is_not_masked_stays_and_what_is_gets_its_samples_noise():
    images, mask = torch.randn(2, 1, 8, 8), torch.rand(2, 1, 8, 8) > 0.5
    random = SampleRandom(0, ["a", "b"])
    fill = make_filling("inpaint", images, black=lambda: images, random=random)
    quiet, noisy = inpaint(images, mask, torch.zeros_like(images)), fill(mask)
    assert torch.equal(noisy.where(~mask[:, :, None], 0.0), images[:, None].where(~mask[:, :, None], 0.0))
    noise = NOISE * random.normal(1, 8, 8, purpose="inpaint noise")
    torch.testing.assert_close(noisy - quiet, (noise[:, None]).where(mask[:, :, None], 0.0), atol=1e-6, rtol=0)
    alone = make_filling("inpaint", images[1:], black=lambda: images, random=random.take([1]))
    assert torch.equal(alone(mask[1:]), noisy[1:])


def test_nothing_left_is_noise_around_zero_and_nothing_masked_is_the_image():
    images = torch.randn(1, 2, 5, 5)
    every = torch.tensor([True, False]).view(1, 2, 1, 1).expand(1, 2, 5, 5)
    found = inpaint(images, every, torch.full_like(images, 0.25))
    assert torch.equal(found[:, 0], torch.full_like(images, 0.25))
    assert torch.equal(found[:, 1], images)


def test_a_probe_fills_each_mask_by_itself():
    images, random = torch.randn(2, 1, 8, 8), SampleRandom(0, ["a", "b"])
    model = Classifier(Wavy().eval())
    masks = NestedSubsetMasks(random, (8, 8), [20], 5)
    noise = NOISE * random.normal(1, 8, 8, purpose="inpaint noise")
    probe = bind(model, images, lambda outputs: outputs[:, 1], random=random, batch_size=3)
    found = probe(masks, baseline="inpaint", output="logit")
    expected = model(inpaint(images, masks.chunk(0, 5), noise).flatten(0, 1)).view(2, 5, 3)[..., 1]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("baseline", [0.5, "mean"])
def test_a_share_of_a_pixel_is_replaced(baseline):
    images, shares = torch.randn(2, 3, 4, 4), torch.rand(2, 5, 4, 4)
    fill = make_filling(baseline, images, black=lambda: images, random=SampleRandom(0, ["a", "b"]))
    put = images.mean((2, 3), keepdim=True) if baseline == "mean" else torch.tensor(0.5)
    expected = (1 - shares[:, :, None]) * images[:, None] + shares[:, :, None] * put.expand_as(images)[:, None]
    torch.testing.assert_close(fill(shares), expected)
    torch.testing.assert_close(fill((shares > 0.5).float()), fill(shares > 0.5))


def test_a_share_of_a_pixel_cannot_be_imputed():
    images = torch.randn(1, 1, 4, 4)
    fill = make_filling("inpaint", images, black=lambda: images, random=SampleRandom(0, ["a"]))
    with pytest.raises(InputError, match="replaces whole pixels"):
        fill(torch.rand(1, 1, 4, 4))
