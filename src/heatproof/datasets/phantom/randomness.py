"""Where every random number of the phantom comes from."""

import zlib

import numpy as np


def generator(purpose: str, seed: int, *key: int) -> np.random.Generator:
    """Random numbers of one thing, `purpose`, about the patient or image `key`: no other draw can shift them."""
    return np.random.default_rng(
        np.random.SeedSequence([seed, *key], spawn_key=(len(key), zlib.crc32(purpose.encode())))
    )
