"""ViT-CX: what the features of a vision transformer show of the image, each group of them by its effect on the output."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from heatproof.checks import check_number
from heatproof.explainers.feature_maps import precise, run_to_features, to_unit_range, visible
from heatproof.explainers.gradient import of_rows
from heatproof.explainers.registry import explainer
from heatproof.models import Classifier, Targets
from heatproof.probing import BoundProbe, SampleRandom
from heatproof.probing.precision import forward_pass
from heatproof.relevance.tokens import self_attention


@explainer("vit_cx", family="perturbation", signed=False, needs={"attention"}, paper="xie2023vitcx", linear=True)
def vit_cx(
    model: Classifier,
    images: Tensor,
    targets: Targets,
    *,
    random: SampleRandom,
    probe: BoundProbe,
    layer: str | None = None,
    threshold: float = 0.1,
    noise: float = 0.1,
    output: str = "probability",
) -> Tensor:
    """ViT-CX: the mean of masks made of the tokens' features, each weighted by the output on the image seen through it.

    It asks the model itself what each mask is worth, and since a mask leaves in what it shows, evidence that is there more
    than once does not hide itself. But it can only tell apart what the features tell apart, and a mask that shows a little
    of everything gives its score to every pixel.

    Formula:
        Σ_i s_i M_i / Σ_i M_i, 0 where no mask shows a pixel
        s_i = p(x) − p(x + z_i ⊙ (1 − M_i)) + p(x ⊙ M_i + z_i ⊙ (1 − M_i)), p the output, z_i normal noise, so that what the
        noise itself does to the output is taken out
        the K masks M_i: the tokens' features, enlarged bilinearly to the image and each scaled to 0..1, of which those
        with a cosine distance below the threshold (complete linkage) are summed, and each sum scaled to 0..1

    Cost:
        2 + 2 · K forward passes, no ways back.

    Models:
        ViT, Swin. There must be features on a grid of the image.

    Args:
        model: a vision transformer.
        images: `[B, C, H, W]`.
        targets: `[B, T]`; with a contrast class, p is the difference of the outputs, and maps can be negative.
        random: the samples' random streams.
        probe: how passes are made.
        layer: whose features, as in `gradcam`; by default those after the last block's first layer norm, as in the authors'
            code.
        threshold: cosine distance up to which channels go together; 0 keeps all apart that are not the same.
        noise: deviation of z_i, in model-input units.
        output: `probability` or `logit`.

    Returns:
        Maps `[B, T, H, W]`. NaN where all features are constant over the image.

    Checked:
        the authors' formula in float64, given the same noise, to 1e-4: tests/explainers/test_vit_cx.py. The authors' code
            divides once more by K, which leaves each map's pattern as it is.
        scikit-learn `AgglomerativeClustering`, the same groups: tests/explainers/test_vit_cx.py.

    Raises:
        UnsupportedModelError: the model has no self-attention, or its features do not lie on a grid of the image.
    """
    check_number("threshold", threshold)
    check_number("noise", noise)
    channels = _token_features(model, images, layer)
    unmasked, view = probe.unmasked(output=output), model.output(output)

    def worth(row: int, masks: Tensor, draws: list[int]) -> Tensor:
        """s_i of each mask `[K, H, W]` of the image at `row`, `[K, T]`; z_i is the image's draw of that number."""

        def outputs(numbers: Tensor) -> Tensor:
            mask, image = numbers % len(masks), torch.full_like(numbers, row)
            kept = torch.where((numbers < len(masks))[:, None, None], masks[mask], 1.0)[:, None]
            streams = random.draws(image.tolist(), [draws[i] for i in mask.tolist()])
            drawn = noise * streams.normal(*images.shape[1:], purpose="mask noise").to(images)
            noisy = kept * images[row] + (1 - masks[mask, None]) * drawn
            return of_rows(targets, image).score(view(forward_pass(model, noisy, probe.precision)))

        with torch.no_grad():
            numbers = torch.arange(2 * len(masks), device=images.device)
            seen_through, whole = probe.micro.run(outputs, numbers).chunk(2)
        return unmasked[row] - whole + seen_through

    maps = []
    for row in range(len(images)):
        masks, draws = _masks(channels[row], images.shape[2:], threshold)
        if len(masks):
            total = torch.einsum("kt,khw->thw", worth(row, masks, draws).to(masks), masks)
            shown = masks.sum(0)
            maps.append(torch.where(shown > 0, total / shown, 0.0))
        else:
            maps.append(images.new_full((targets.count, *images.shape[2:]), torch.nan))
    return torch.stack(maps)


def _token_features(model: Classifier, images: Tensor, layer: str | None) -> Tensor:
    """The features `[B, D, h, w]` of a vision transformer."""
    seen = run_to_features(model, images, layer)
    self_attention(seen.passed)
    return precise(seen.features).movedim(-1, 1)


def _masks(channels: Tensor, size: Sequence[int], threshold: float) -> tuple[Tensor, list[int]]:
    """What groups of like channels `[D, h, w]` show of an image of `size`, `[K, H, W]`, and the first channel of each."""
    shown = visible(channels[None], size)[0].flatten(1)
    telling = shown.any(1).nonzero()[:, 0]
    shown = shown[telling]
    group, firsts = groups_of_like(shown, threshold)
    sums = shown.new_zeros(len(firsts), shown.shape[1]).index_add_(0, group, shown)
    return to_unit_range(sums, (1,)).view(-1, *size), telling[firsts].tolist()


def groups_of_like(rows: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """The group of each of the vectors `rows` `[D, P]`, numbered by their first members, and these; int64 `[D]`, `[K]`.

    Agglomerative clustering by complete linkage: no two members of a group have a larger cosine distance than `threshold`.

    >>> groups_of_like(torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.1, 1.0], [1.0, 0.1]]), 0.1)
    (tensor([0, 1, 0, 1]), tensor([0, 1]))
    """
    from scipy.cluster.hierarchy import fcluster, linkage

    count = len(rows)
    if count < 2:
        return (torch.arange(count, device=rows.device),) * 2
    unit = F.normalize(rows, dim=1)
    above = torch.triu_indices(count, count, 1)
    distances = (1 - unit @ unit.T).clamp(min=0).cpu()[above[0], above[1]]
    found = torch.from_numpy(fcluster(linkage(distances.numpy(), "complete"), threshold, "distance")).long() - 1
    firsts = torch.full((int(found.max()) + 1,), count).scatter_reduce(0, found, torch.arange(count), "amin")
    firsts, order = firsts.sort()
    return order.argsort()[found].to(rows.device), firsts.to(rows.device)
