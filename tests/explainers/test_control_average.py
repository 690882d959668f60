"""The control of mean maps: those of training images, made one by one."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import heatproof as hp
from heatproof.errors import InputError, UnsupportedModelError
from support.nets import TinyCNN, TinyViT

LABELS = [0, 1, 2, 0, 1, 0]


@pytest.fixture
def references() -> Tensor:
    return torch.randn(6, 3, 16, 16)


def explain(model: nn.Module, images: Tensor, targets: Any, **options: Any) -> Tensor:
    return hp.explain(model, images, targets, method="control_average", resolution="native", **options)


def mean_map(model: nn.Module, references: Tensor, rows: list[int], target: int, **given: Any) -> Tensor:
    maps = [hp.explain(model, references[n : n + 1], [target], resolution="native", **given)[0] for n in rows]
    return sum(maps) / len(maps)


@pytest.mark.parametrize("batch_size", [None, 1, 2])
@pytest.mark.parametrize(("base", "options"), [("gradcam", {}), ("lrp_gamma", {"gamma": 0.5})])
def test_it_is_the_mean_of_the_maps_of_the_class(
    base: str, options: dict[str, Any], batch_size: int | None, references: Tensor
) -> None:
    model, images = TinyCNN().eval(), torch.randn(2, 3, 16, 16)
    given: dict[str, Any] = {"base": base, "options": options} if options else {}
    found = explain(
        model, images, [[0, 1], [1, 2]], references=references, labels=LABELS, batch_size=batch_size, **given
    )
    members = [0, 3, 5], [1, 4], [2]
    means = [mean_map(model, references, rows, t, method=base, **options) for t, rows in enumerate(members)]
    expected = torch.stack([torch.stack(means[:2]), torch.stack(means[1:])])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(found[0, 1], found[1, 0])


def test_of_a_contrast_it_is_the_contrast_of_the_targets_images(references: Tensor) -> None:
    model, images = TinyCNN().eval(), torch.randn(2, 3, 16, 16)
    found = explain(
        model, images, [0, 1], against=torch.tensor([2, 0]), references=references, labels=LABELS, base="lrp_z"
    )
    for n, (target, against, rows) in enumerate([(0, 2, [0, 3, 5]), (1, 0, [1, 4])]):
        expected = mean_map(model, references, rows, target, against=against, method="lrp_z")
        torch.testing.assert_close(found[n], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("samples", "rows"), [(1, [0]), (2, [0, 3]), (9, [0, 3, 5])])
def test_so_many_references_count(samples: int, rows: list[int], references: Tensor) -> None:
    model, images = TinyCNN().eval(), torch.randn(1, 3, 16, 16)
    labels = torch.tensor(LABELS, dtype=torch.int32)
    found = explain(model, images, [0], references=references, labels=labels, base="saliency", samples=samples)
    expected = mean_map(model, references, rows, 0, method="saliency")
    torch.testing.assert_close(found[0], expected, rtol=1e-5, atol=1e-6)


def test_a_base_that_draws_draws_for_each_reference_by_the_seed(references: Tensor) -> None:
    model, images = TinyCNN().eval(), torch.randn(1, 3, 16, 16)
    given: dict[str, Any] = {
        "base": "smoothgrad",
        "options": {"samples": 2},
        "references": references,
        "labels": LABELS,
    }
    for seed in (0, 1):
        expected = mean_map(model, references, [1, 4], 1, method="smoothgrad", samples=2, seed=seed)
        torch.testing.assert_close(explain(model, images, [1], seed=seed, **given)[0], expected, rtol=1e-5, atol=1e-6)


def test_it_is_enlarged_to_the_image(references: Tensor) -> None:
    model = TinyViT(image=16, patch=4, depth=1).eval()
    given: dict[str, Any] = {"method": "control_average", "references": references, "labels": LABELS}
    assert hp.explain(model, references[:2], [0, 1], **given).shape == (2, 16, 16)
    assert hp.explain(model, references[:2], [0, 1], resolution="native", **given).shape == (2, 4, 4)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "made of training images.*references=.*labels="),
        ({"references": torch.rand(6, 3, 16, 16)}, "made of training images.*labels="),
        ({"labels": LABELS}, "made of training images.*references="),
        ({"references": torch.rand(6, 3, 8, 16), "labels": LABELS}, r"references .*\[N, 3, 16, 16\].*6, 3, 8, 16"),
        ({"references": torch.rand(0, 3, 16, 16), "labels": []}, r"references must be images .*\[0, 3, 16, 16\]"),
        ({"references": "train", "labels": LABELS}, "references must be images .*got str"),
        ({"references": torch.rand(6, 3, 16, 16), "labels": LABELS[:5]}, "the class of each of the 6 references"),
        ({"references": torch.rand(6, 3, 16, 16), "labels": [0.0] * 6}, "the class of each of the 6 references"),
        ({"references": torch.rand(6, 3, 16, 16), "labels": ["a"] * 6}, "the class of each of the 6 references"),
        (
            {"references": torch.rand(6, 3, 16, 16), "labels": [2, 2, 2, 0, 0, 0]},
            "none of the 6 references is of class 1",
        ),
        ({"references": torch.rand(6, 3, 16, 16), "labels": LABELS, "base": "gradcma"}, "Did you mean 'gradcam'"),
        ({"references": torch.rand(6, 3, 16, 16), "labels": LABELS, "options": {"layre": 1}}, "no option 'layre'"),
        ({"references": torch.rand(6, 3, 16, 16), "labels": LABELS, "samples": 0}, "samples must be a whole number"),
    ],
)
def test_references_that_cannot_be_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        explain(TinyCNN().eval(), torch.rand(2, 3, 16, 16), [0, 1], **given)


def test_a_model_that_the_base_cannot_serve_is_refused(references: Tensor) -> None:
    with pytest.raises(UnsupportedModelError, match="attention"):
        explain(TinyCNN().eval(), references[:1], [0], references=references, labels=LABELS, base="attention")
