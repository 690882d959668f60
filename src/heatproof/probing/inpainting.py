"""Noisy linear imputation: a replaced pixel becomes the weighted mean of its eight neighbours, and a little noise.

The neighbours may be replaced themselves, so the values solve a sparse linear system, one for each mask.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.linalg import splu
from torch import Tensor

NOISE = 0.01  # standard deviation, in model-input units, as in the authors' code
_NEIGHBOURS = {
    (i, j): 1 / 6 if i == 0 or j == 0 else 1 / 12 for i in (-1, 0, 1) for j in (-1, 0, 1) if (i, j) != (0, 0)
}


def inpaint(images: Tensor, masks: Tensor, noise: Tensor) -> Tensor:
    """Images whose masked pixels are imputed from the others [rong2022consistent].

    Each masked pixel is the mean of its neighbours in the image, direct ones with weight 1/6, diagonal ones with 1/12.

    Args:
        images: `[B, C, H, W]`.
        masks: bool `[B, k, H, W]`, True = replaced. A mask that leaves no pixel leaves the noise alone.
        noise: added to the imputed values, `[B, C, H, W]`.

    Returns:
        `[B, k, C, H, W]`.

    Example:
        >>> image = torch.tensor([[[[1.0, 0.0, 4.0]]]])
        >>> inpaint(image, torch.tensor([[[[False, True, False]]]]), torch.zeros(1, 1, 1, 3)).flatten().tolist()
        [1.0, 2.5, 4.0]
    """
    arrays, where = images.detach().double().cpu().numpy(), masks.cpu().numpy()
    filled = [
        [torch.from_numpy(_impute(image, mask)) for mask in of_image]
        for image, of_image in zip(arrays, where, strict=True)
    ]
    imputed = torch.stack([torch.stack(versions) for versions in filled]).to(images)
    return torch.where(masks[:, :, None], imputed + noise[:, None], images[:, None])


def _impute(image: NDArray[np.float64], mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """`image` `[C, H, W]` with the pixels of `mask` `[H, W]` solved from the rest; 0 where there is no rest."""
    result = image.copy()
    count = int(mask.sum())
    if count == mask.size:
        return np.zeros_like(image)
    if not count:
        return result
    number = np.full(mask.shape, -1)
    number[mask] = np.arange(count)
    rows, columns = np.nonzero(mask)
    diagonal, known = np.zeros(count), np.zeros((count, len(image)))
    entries: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]] = []
    for (down, right), weight in _NEIGHBOURS.items():
        i, j = rows + down, columns + right
        inside = (i >= 0) & (i < mask.shape[0]) & (j >= 0) & (j < mask.shape[1])
        here, i, j = np.nonzero(inside)[0], i[inside], j[inside]
        diagonal[here] += weight
        replaced = mask[i, j]
        ones = np.full(int(replaced.sum()), -weight)
        entries.append((here[replaced], number[i[replaced], j[replaced]], ones))
        known[here[~replaced]] += weight * image[:, i[~replaced], j[~replaced]].T
    entries.append((np.arange(count), np.arange(count), diagonal))
    row, column, value = (np.concatenate(parts) for parts in zip(*entries, strict=True))
    system = coo_array((value, (row, column)), shape=(count, count)).tocsc()
    # the system is symmetric and diagonally dominant: no pivoting needed, and an ordering for such makes it fast
    factors = splu(system, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
    result[:, mask] = factors.solve(known).T
    return result
