"""Does the map foretell by how much the output changes?"""

from collections.abc import Callable, Hashable, Mapping
from typing import Any

import torch
from torch import Tensor

from heatproof.checks import check_count, check_number
from heatproof.errors import InputError
from heatproof.metrics.faithfulness.cells import Cells, drops_tokens
from heatproof.metrics.registry import Case, metric
from heatproof.probing import Baseline, SubsetMasks, make_baseline

_SQUARES_A_SIDE = 7


def _passes(options: Mapping[str, Any], pixels: int) -> dict[Hashable, int]:  # noqa: ARG001
    key = [str(options[name]) for name in ("samples", "window", "noise", "baseline")]
    return {("infidelity", *key): int(options["samples"])}


@metric("infidelity", category="faithfulness", higher_is_better=False, bounds=(0, None), needs={"model"},
        paper="yeh2019fidelity", passes=_passes)  # fmt: skip
def infidelity(
    case: Case,
    *,
    samples: int = 100,
    window: int | None = None,
    noise: float | None = None,
    baseline: Baseline = "black",
    contributions: bool = False,
    scale: bool = True,
    output: str = "probability",
    absolute: bool = False,
) -> Tensor:
    """Squared error of the map as a linear model of how the output changes with the image.

    The perturbations I are random: squares of the image that are replaced (I is then the image less the baseline within the
    square), or Gaussian noise. The map Φ has one value a pixel; what it gives to a
    perturbation is the sum over pixels of Φ and the mean of I over the channels.

    Formula:
        E_I[(β IᵀΦ − (f(x) − f(x−I)))²]

    Args:
        case: N samples.
        samples: number of perturbations.
        window: side of the squares, by default a seventh of the shorter side; under `drop` in tokens.
        noise: perturb by Gaussian noise of this standard deviation, in model-input units, instead of squares.
        baseline: what replaces a square, see `make_filling`, or `drop`: tokens are taken out of a vision transformer.
        contributions: the map holds what each pixel contributes to the output, such as input × gradient or relevance, rather
            than slopes: what it gives to a square is then its sum over the square. Needed where the baseline depends on the
            square (`inpaint`, `drop`).
        scale: fit β for each sample by least squares, so that the unit of the map makes no difference; else β = 1, as in
            the source.
        output: `probability` or `logit`.
        absolute: use |a| instead of a.

    Returns:
        `[N]`; NaN for an undefined map.

    Quantus:
        Follows `Infidelity` for one square. Differs for several, of which Quantus never puts one back before the next,
        so that all but the first are not what they are said to be.
    """
    check_count("samples", samples)
    cells = Cells.of(case, baseline, absolute)
    if noise is None:
        given, drops = _by_squares(cells, samples, window, contributions, output)
    else:
        for name, value, default in (("window", window, None), ("contributions", contributions, False),
                                     ("baseline", baseline, "black")):  # fmt: skip
            if value is not default and not (isinstance(value, str) and value == default):
                raise InputError(f"{name}={value!r} is that of squares: leave it out beside noise={noise!r}.")
        given, drops = _by_noise(cells, samples, check_number("noise", noise), output)
    if scale:
        square = given.square().sum(1, keepdim=True)
        given = given * ((given * drops).sum(1, keepdim=True) / square.where(square > 0, 1.0))
    return (given - drops).square().mean(1).masked_fill(cells.undefined, torch.nan)


def _by_squares(
    cells: Cells, samples: int, window: int | None, contributions: bool, output: str
) -> tuple[Tensor, Tensor]:
    """What the map gives to each of `samples` squares, and what the output loses without it, float64 `[N, samples]`."""
    case, shortest = cells.case, min(cells.size)
    side = max(1, shortest // _SQUARES_A_SIDE) if window is None else check_count("window", window, high=shortest)
    squares = _squares(case, cells.size, side, samples)
    values = cells.values if contributions else cells.values * _change(cells)
    masked = cells.masked(("squares", side, samples), lambda: squares, output)
    return squares.sums(values), (cells.plain(output) - masked).double()


def _squares(case: Case, size: tuple[int, int], side: int, samples: int) -> SubsetMasks:
    """Squares of `side` cells anywhere inside, `samples` for each sample; a draw does not depend on how many follow it."""
    places = torch.stack([case.random.uniform(2, purpose=f"square {k}") for k in range(samples)], 1)  # [N, K, 2]
    corners = (places * (torch.tensor(size) - side + 1)).long()
    line = torch.arange(side)
    rows, columns = (corners[:, :, axis, None] + line for axis in (0, 1))
    index = (rows[:, :, :, None] * size[1] + columns[:, :, None, :]).flatten(2)
    return SubsetMasks(index, size).to(case.images.device)


def _change(cells: Cells) -> Tensor:
    """What replacing a pixel takes from it, mean over channels, `[N, H, W]`."""
    baseline, case = cells.baseline, cells.case
    if drops_tokens(baseline) or (isinstance(baseline, str) and baseline == "inpaint"):
        raise InputError(
            f"Under baseline={baseline!r} the new values depend on the square, so a map of slopes foretells nothing: give "
            "contributions=True for maps of contributions, or another baseline."
        )
    black: Callable[[], Tensor] = lambda: case.model.intensity_range[0]  # noqa: E731
    return (case.images - make_baseline(baseline, case.images, black=black, random=case.random)).mean(1)


def _by_noise(cells: Cells, samples: int, deviation: float, output: str) -> tuple[Tensor, Tensor]:
    """What the map gives to each of `samples` draws of noise, and what the output loses by it, float64 `[N, samples]`."""
    case, view = cells.case, cells.case.model.output(output)
    given, outputs = [], []
    for draws in case.groups(samples):
        noise = [case.random.normal(*case.images.shape[1:], purpose=f"infidelity noise {k}") for k in draws]
        change = deviation * torch.stack(noise, 1).to(case.images)  # [N, k, C, H, W]
        logits = case.probe.logits((case.images[:, None] - change).flatten(0, 1)).unflatten(0, change.shape[:2])
        outputs.append(case.of_target(view(logits)))
        given.append((change.mean(2).double() * cells.values[:, None]).sum((2, 3)))
    return torch.cat(given, 1), (cells.plain(output) - torch.cat(outputs, 1)).double()
