"""Front door `explain`: images in, maps out."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from heatproof.checks import check_choice
from heatproof.errors import EmptyMapWarning, InputError
from heatproof.explainers import EXPLAINERS, Explainer
from heatproof.models import Classifier, Targets, as_classifier
from heatproof.probing import MicroBatch, Precision, bind, options_of_rows
from heatproof.probing.precision import check_precision
from heatproof.probing.progress import bar
from heatproof.probing.randomness import SampleRandom, content_keys
from heatproof.relevance.gaps import levels_to_caller, one_warning
from heatproof.tracing import apart, first_not_finite

Resolution = Literal["input", "native"]

_IMAGES_AT_ONCE = 8  # as fast as large batches on a CPU, and flat in memory


def methods() -> Mapping[str, Explainer]:
    """Every explainer by name, with its metadata: family, sign, needs, options and source.

    >>> methods()["gradcam"].options
    {'layer': None, 'eigen_smooth': False, 'aug_smooth': False}
    """
    return EXPLAINERS


def explain(
    model: Classifier | nn.Module,
    images: Tensor,
    targets: Tensor | Sequence[int] | None = None,
    *,
    method: str = "transformer_lrp",
    against: Tensor | int | None = None,
    keys: Sequence[str] | None = None,
    batch_size: int | None = None,
    precision: Precision = "fp32",
    progress: bool = False,
    strict: bool = True,
    seed: int = 0,
    resolution: Resolution = "input",
    **options: Any,
) -> Tensor:
    """Where a classifier's decision comes from, by one method.

    Args:
        model: a `Classifier`, or any module that maps images to logits `[B, K]`; in evaluation mode.
        images: preprocessed, float `[B, C, H, W]`.
        targets: class indices `[B]`, or `[B, T]` for several of each image; by default the model's own prediction.
        method: a name of `methods()`.
        against: contrast class (one, or shaped like `targets`): the difference of the two logits is explained.
        keys: the samples' ids, from which random draws come; by default a hash of each image.
        batch_size: images at a time; 8 by default, fewer where memory does not suffice. It changes no map.
        precision: `bf16` runs the forward passes in bfloat16, for methods outside the relevance family.
        progress: show a progress bar on standard error.
        strict: a relevance method raises where it meets an operation without a rule, else it goes on with the ordinary
            gradient and lists the operations in one `RelevanceGapWarning`.
        seed: of the random draws.
        resolution: `input` for maps of the images' size, `native` for the method's own grid.
        **options: of the method, see `methods()[method].options`.

    Returns:
        Raw maps, float32 `[B, H, W]` (`[B, T, H, W]` where targets are `[B, T]`) on the images' device; signed where the
        method is, never rescaled. NaN where a map is undefined; zeros for a class whose logit no pixel can change, and for
        class activation maps (with an `EmptyMapWarning`) where no feature speaks for the target.

    Raises:
        InputError: an argument is not what it must be, or the model's values are not finite.
        UnsupportedModelError: the method cannot serve this model, or no logit depends on the image.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
        >>> explain(net.eval(), torch.rand(2, 1, 8, 8), [0, 1], method="lrp_epsilon").shape
        torch.Size([2, 8, 8])
    """
    check_choice("resolution", resolution, ("input", "native"))
    found = explain_native(
        model,
        images,
        targets,
        method=method,
        against=against,
        keys=keys,
        batch_size=batch_size,
        precision=precision,
        progress=progress,
        strict=strict,
        seed=seed,
        **options,
    )
    if resolution == "input":
        found = to_input_resolution(found, images.shape[-2:], EXPLAINERS[method])
    several = targets is not None and torch.as_tensor(targets).ndim == 2
    return found if several else found[:, 0]


def explain_native(
    model: Classifier | nn.Module,
    images: Tensor,
    targets: Tensor | Sequence[int] | None = None,
    *,
    method: str,
    against: Tensor | int | None = None,
    keys: Sequence[str] | None = None,
    batch_size: int | None = None,
    precision: Precision = "fp32",
    progress: bool = False,
    strict: bool = True,
    seed: int = 0,
    **options: Any,
) -> Tensor:
    """Maps on the method's own grid, for those who need that as well as the maps of the images' size.

    Arguments and errors are those of `explain`; `to_input_resolution` makes its maps of these.

    Returns:
        Raw maps, float32 `[B, T, h, w]`, with T = 1 where targets are `[B]`.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
        >>> images = torch.rand(2, 1, 8, 8)
        >>> native = explain_native(net.eval(), images, [0, 1], method="gradcam")
        >>> native.shape
        torch.Size([2, 1, 6, 6])
        >>> maps = to_input_resolution(native, (8, 8), methods()["gradcam"])
        >>> torch.equal(maps[:, 0], explain(net, images, [0, 1], method="gradcam"))
        True
    """
    classifier = as_classifier(model)
    check_images(images)
    check_precision(precision, images.device)
    entry = _checked_entry(method, options, precision)
    random = SampleRandom(seed, check_keys(keys, images))
    size = check_batch_size(batch_size) or _IMAGES_AT_ONCE
    micro = MicroBatch(check_batch_size(batch_size))  # what it learns of the model serves all images
    with (
        one_warning(), apart(), torch.inference_mode(False), torch.enable_grad(),  # the caller's mode is no obstacle
        agreement(classifier, images), bar(f"explaining by {method}", len(images), progress) as done,
    ):  # fmt: skip
        images = outside_inference(images)
        wanted = resolve_targets(classifier, images, targets, against)

        def maps_by(
            entry: Explainer, part: Tensor, chosen: Targets, options: Mapping[str, Any], streams: SampleRandom
        ) -> Tensor:
            def by_another(
                images: Tensor,
                targets: Targets,
                method: str,
                options: Mapping[str, Any],
                random: SampleRandom = streams,
            ) -> Tensor:
                return maps_by(_checked_entry(method, options, precision), images, targets, options, random)

            injected: dict[str, Any] = {"strict": strict, "batch_size": size, "random": streams, "explain": by_another}
            if "probe" in entry.injected:
                injected["probe"] = bind(
                    classifier,
                    part,
                    chosen.score,
                    random=streams,
                    batch_size=micro,
                    precision=precision,
                )
            given = {name: injected[name] for name in entry.injected}
            maps: Tensor = entry.function(classifier, part.detach(), chosen, **given, **options)
            return maps.detach()

        def maps_of(rows: Tensor) -> Tensor:
            start, stop = int(rows[0]), int(rows[-1]) + 1
            part = images[start:stop]
            with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16"):
                given = options_of_rows(options, len(images), slice(start, stop))
                maps = maps_by(entry, part, wanted.rows(start, stop), given, random.take(range(start, stop)))
                check_finite(classifier, part, maps)
            done(stop)
            return maps.float()

        found = MicroBatch(size).run(maps_of, torch.arange(len(images)))
    if entry.family == "cam" or (entry.family == "attention" and not entry.signed):
        _warn_of_empty(method, found)
    return found


def _warn_of_empty(method: str, maps: Tensor) -> None:
    """One `EmptyMapWarning` where some of `maps` `[B, T, h, w]`, made of positive parts, are zero everywhere."""
    empty = (maps == 0).flatten(2).all(2)
    if empty.any():
        warnings.warn(
            f"{int(empty.sum())} of {empty.numel()} maps by {method} are zero everywhere: nothing among the features speaks "
            "for the target, and what speaks against it is cut off. Such a map says nothing of where. Explain another "
            "target, name another layer=..., or use a signed method: lrp_epsilon.",
            EmptyMapWarning,
            stacklevel=levels_to_caller(),
        )


def _checked_entry(method: str, options: Mapping[str, Any], precision: Precision) -> Explainer:
    """The explainer `method`, which knows these options and can work at this precision."""
    entry = EXPLAINERS[method]
    entry.check_options(options)
    if precision == "bf16" and entry.family == "relevance":
        raise InputError(f"{method} needs precision='fp32': relevance is a sum of differences that bf16 rounds away.")
    return entry


def to_input_resolution(maps: Tensor, size: Sequence[int], entry: Explainer) -> Tensor:
    """Maps of `entry` on its own grid, `[B, T, h, w]`, to `size` (height, width), upsampled as the method is.

    >>> to_input_resolution(torch.tensor([[[[1.0, 2.0]]]]), (1, 4), methods()["attention"])
    tensor([[[[1., 1., 2., 2.]]]])
    """
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    corners = {"align_corners": False} if entry.upsampling == "bilinear" else {}
    return F.interpolate(maps, tuple(size), mode=entry.upsampling, **corners)


def probing_precision(method: str, precision: Precision) -> Precision:
    """`precision` for a method that looks at changed images, fp32 for one that needs gradients.

    For work that runs many methods at one precision: bfloat16 would round away much of what gradients tell.

    >>> probing_precision("lime", "bf16"), probing_precision("gradcam", "bf16")
    ('bf16', 'fp32')
    """
    return precision if "probe" in EXPLAINERS[method].injected else "fp32"


def outside_inference(tensor: Tensor) -> Tensor:
    """The tensor itself, or a copy that gradients may pass by where it was made in inference mode."""
    return tensor.clone() if tensor.is_inference() else tensor


def check_images(images: Tensor) -> None:
    """Raise `InputError` unless images are finite floats `[B, C, H, W]`, B > 0."""
    if not isinstance(images, Tensor) or images.ndim != 4 or images.numel() == 0 or not images.is_floating_point():
        got = f"{images.dtype} {list(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise InputError(
            f"images must be a float tensor [B, C, H, W], got {got}. Classifier.read makes one from files."
        )
    try:
        images.data_ptr()  # transforms and fakes have none
        finite = bool(torch.isfinite(images).all())
    except (RuntimeError, NotImplementedError) as error:
        raise InputError(
            "images must hold numbers that can be read, and these cannot: they are meta or fake tensors, or this runs "
            "within a transform (torch.func.vmap, grad, jvp). Call it outside, with ordinary tensors."
        ) from error
    if not finite:
        raise InputError("images hold NaN or infinite values: check the preprocessing.")


def check_finite(classifier: Classifier, images: Tensor, found: Tensor) -> None:
    """Raise `InputError` where `found` (maps or logits of `images`) is not finite because the model's own values are not."""
    if torch.isfinite(found).all():
        return
    origin = first_not_finite(classifier.module, images, classifier)
    if origin is not None:
        raise InputError(
            f"The model's values are NaN or infinite, first in {origin}. Check the weights (a training that diverged, half "
            "precision that overflowed) and how the images were normalised."
        )


def check_batch_size(batch_size: int | None) -> int | None:
    """`batch_size` itself, a positive integer or None."""
    if batch_size is not None and (not isinstance(batch_size, int) or batch_size < 1):
        raise InputError(f"batch_size must be a positive integer or None, got {batch_size!r}.")
    return batch_size


def check_keys(keys: Sequence[str] | None, images: Tensor) -> list[str]:
    """One key a sample: the given ones, or the hashes of the images."""
    if keys is None:
        return content_keys(images)
    if isinstance(keys, str) or len(keys) != len(images):
        raise InputError(f"keys must hold one id for each of the {len(images)} images, got {keys!r}.")
    return [str(key) for key in keys]


def resolve_targets(
    classifier: Classifier, images: Tensor, targets: Tensor | Sequence[int] | None, against: Tensor | int | None = None
) -> Targets:
    """Checked targets; the model's own prediction for None.

    The model runs only where its answer is needed: for a prediction, or to learn how many classes there are.
    """
    if targets is None or classifier.classes is None:
        with torch.no_grad(), agreement(classifier, images):
            asked = images if targets is None else images[:1]
            logits = MicroBatch(_IMAGES_AT_ONCE).run(classifier, asked)
        targets = logits.argmax(1) if targets is None else targets
        if logits.isnan().any():
            check_finite(classifier, images[logits.isnan().any(1).nonzero()[:1, 0]], logits)
        classes = logits.shape[1]
    else:
        classes = len(classifier.classes)
    index = outside_inference(torch.as_tensor(targets, device=images.device))
    if isinstance(against, Tensor):
        against = outside_inference(against)
    if index.ndim in (1, 2) and len(index) != len(images):
        raise InputError(f"targets must hold one row for each of the {len(images)} images, got {len(index)}.")
    return Targets.of(index, against, classes)


@contextmanager
def agreement(classifier: Classifier, images: Tensor) -> Iterator[None]:
    """Inside, a failure of a model that has another number format or device than the images is an `InputError`."""
    try:
        yield
    except (RuntimeError, NotImplementedError) as error:
        weights = next((p for p in classifier.module.parameters() if p.is_floating_point()), images)
        same = (weights.dtype, weights.device) == (images.dtype, images.device)
        if same or isinstance(error, torch.OutOfMemoryError):
            raise
        raise InputError(
            f"The model's weights are {weights.dtype} on {weights.device}, the images {images.dtype} on {images.device}, "
            f"and it cannot take them ({str(error).splitlines()[0]}). Bring both together: "
            f"images.to({str(weights.device)!r}, {weights.dtype})."
        ) from error
