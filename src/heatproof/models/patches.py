"""The grid of a vision transformer's patches, and segments of an image or of its tokens."""

from torch import Tensor

from heatproof.checks import check_choice
from heatproof.errors import InputError, UnsupportedModelError
from heatproof.models.classifier import Classifier
from heatproof.probing import Baseline
from heatproof.probing.segments import grid, make_segments
from heatproof.relevance import presets, run
from heatproof.relevance.tokens import attention_matrices, token_grid


def patch_grid(model: Classifier, images: Tensor) -> tuple[int, int]:
    """(rows, columns) of the patches into which a vision transformer cuts `images` `[B, C, H, W]`; runs the first image.

    Raises:
        UnsupportedModelError: the model has no attention over patches of the whole image.
    """
    passed = run(model, images[:1], presets.NOTHING, gradients=False)
    try:
        return token_grid(passed.capture, attention_matrices(passed)[-1].shape[-1])[0]
    except UnsupportedModelError:
        raise UnsupportedModelError(
            "This needs the patches of a vision transformer, and the model has no attention over patches of the whole "
            "image. Use another baseline or segmentation, or a method that works for any model."
        ) from None


def segments_of(model: Classifier, images: Tensor, segmentation: str, count: int, baseline: Baseline) -> Tensor:
    """Segments of pixels `[B, H, W]`, or of tokens `[B, h, w]` where `baseline` drops them, int64 from 0.

    Args:
        model: gives the patches, where they are asked for.
        images: `[B, C, H, W]`.
        segmentation: `slic`, a square `grid`, or the `patches` of a vision transformer, each a segment.
        count: about how many segments.
        baseline: under `drop` segments are made of whole tokens, by `grid` or `patches`.

    Raises:
        InputError: an unknown segmentation, more segments than pixels, or `slic` under `drop`.
        UnsupportedModelError: the model has no patches.
    """
    check_choice("segmentation", segmentation, ("slic", "grid", "patches"))
    drops = isinstance(baseline, str) and baseline == "drop"
    if not drops and segmentation != "patches":
        return make_segments(segmentation, images, count)
    if segmentation == "slic":
        raise InputError("baseline='drop' needs segments made of whole tokens: segmentation='patches' or 'grid'.")
    rows, columns = patch_grid(model, images)
    tokens = images.new_zeros(len(images), 1, rows, columns)
    if segmentation == "patches":
        return grid(tokens if drops else images, rows, columns)
    return make_segments("grid", tokens, count)
