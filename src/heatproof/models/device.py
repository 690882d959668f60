"""Which device to compute on."""

import re

import torch

from heatproof.errors import InputError


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """The device named `auto` (a GPU where there is one), `cpu` or `cuda:N`.

    Raises:
        InputError: another name, or a GPU that this machine does not have.

    Example:
        >>> resolve_device("cpu")
        device(type='cpu')
    """
    name = str(device)
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise InputError(f"device must be 'auto', 'cpu' or 'cuda:N', got {name!r}.")
    if name == "cpu":
        return torch.device("cpu")
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    index = torch.device(name).index or 0
    if index >= found:
        raise InputError(
            f"There is no {name}: torch sees {found} GPUs here. Use 'auto' or 'cpu', or install a GPU build."
        )
    return torch.device("cuda", index)
