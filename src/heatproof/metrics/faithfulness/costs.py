"""How many forward passes the metrics take, from their options and the pixels of an image."""

from collections.abc import Mapping
from typing import Any

from heatproof.metrics.faithfulness.cells import drops_tokens

_PATCH = 16  # the side of a token, as long as no model tells


def cells_of_image(options: Mapping[str, Any], pixels: int) -> int:
    """Pixels, or under `drop` about how many tokens."""
    return max(1, pixels // _PATCH**2) if drops_tokens(options["baseline"]) else pixels


def steps(options: Mapping[str, Any], pixels: int) -> int:
    """Steps of `step` cells, by default a row, of a square image."""
    cells = cells_of_image(options, pixels)
    return -(-cells // int(options["step"] or round(cells**0.5)))


def windows(options: Mapping[str, Any], pixels: int, default: int) -> int:
    """Windows that cover a square image."""
    side = round(cells_of_image(options, pixels) ** 0.5)
    window = int(options["window"] or (1 if drops_tokens(options["baseline"]) else min(default, side)))
    along: int = -(-side // window)
    return along * along
