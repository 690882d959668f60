"""Stand-ins: small synthetic data sets in exactly the layout of the public ones, by their names.

A writer is a function `(folder, *, patients, size, seed)`. It knows the layout from the data set's documentation and shares
nothing with the adapter that reads it, so that each is a test of the other.
"""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

from heatproof.errors import InputError, near_names


class Write(Protocol):
    """Fill an empty folder with a stand-in: about so many patients, images of about `size` pixels a side."""

    def __call__(self, folder: Path, *, patients: int, size: int, seed: int) -> None:
        """Write it."""
        ...


STANDINS: dict[str, Write] = {}


def standin(name: str) -> Callable[[Write], Write]:
    """Register the decorated function as the writer of the data set `name`."""

    def register(write: Write) -> Write:
        if name in STANDINS:
            raise InputError(f"There is a stand-in of {name!r} already.")
        STANDINS[name] = write
        return write

    return register


def write_standin(name: str, folder: str | Path, *, patients: int = 40, size: int = 64, seed: int = 0) -> None:
    """Write the stand-in of a public data set into a new folder.

    Raises:
        InputError: an unknown data set, or the folder is there.
    """
    if name not in STANDINS:
        raise InputError(f"There is no stand-in of {name!r}. {near_names(name, STANDINS)}")
    place = Path(folder)
    if place.exists():
        raise InputError(f"{place} is there already, and a stand-in has a folder of its own. Choose another name.")
    place.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".unfinished-", dir=place.parent) as folder_of_its_own:
        unfinished = Path(folder_of_its_own) / place.name
        unfinished.mkdir()
        STANDINS[name](unfinished, patients=patients, size=size, seed=seed)
        unfinished.rename(place)
