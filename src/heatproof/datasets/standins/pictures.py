"""Pictures for stand-ins that are no chest: a view into the bowel, a bone, slices through a breast, all made of formulas.

Each comes with the exact outline of what was drawn into it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from heatproof.datasets.phantom.randomness import generator

Size = tuple[int, int]


@dataclass(frozen=True)
class Picture:
    """`pixels` uint8 `[H, W]` or `[H, W, 3]`, and the outline of the lesion, bool `[H, W]`."""

    pixels: NDArray[np.uint8]
    lesion: NDArray[np.bool_]


@dataclass(frozen=True)
class Volume:
    """`slices` uint16 `[D, H, W]` of 12 bits; the first and one past the last index of the lesion on each axis."""

    slices: NDArray[np.uint16]
    lesion: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]


def draw_bowel(size: Size, random: np.random.Generator, *, polyp: bool) -> Picture:
    """A pink wall with folds and a dark lumen, seen through a round window; a polyp is a paler, shaded dome."""
    y, x = _grid(size)
    lumen_y, lumen_x = random.uniform(-0.3, 0.3, 2)
    depth = np.hypot(x - lumen_x, y - lumen_y)
    folds = 0.08 * np.sin(random.uniform(9, 14) * depth + 0.6 * _grain(size, 0.2, random))
    light = np.clip(0.25 + 0.75 * np.tanh(1.8 * depth) + folds + 0.03 * _grain(size, 0.02, random), 0, 1)
    lesion = np.zeros(size, dtype=bool)
    if polyp:
        centre_y, centre_x = random.uniform(-0.35, 0.35, 2)
        radius_y, radius_x = random.uniform(0.25, 0.45, 2)
        height = 1 - ((x - centre_x) / radius_x) ** 2 - ((y - centre_y) / radius_y) ** 2
        lesion = height > 0
        light = np.where(lesion, 0.55 + 0.4 * np.sqrt(np.clip(height, 0, 1)), light)
    colour = np.where(lesion[..., None], (1.0, 0.72, 0.62), (0.95, 0.45, 0.38)) * light[..., None]
    window = np.hypot(x, y)[..., None] < 1.25
    return Picture(_bytes(colour * window), lesion)


def draw_bone(size: Size, random: np.random.Generator, *, abnormal: bool) -> Picture:
    """Two long bones side by side in soft tissue; the abnormal one has a gap across one of them."""
    y, x = _grid(size)
    tilt = random.uniform(-0.25, 0.25)
    across = x - tilt * y
    tissue = 0.25 * (np.abs(across) < random.uniform(0.55, 0.75))
    film = 0.05 + tissue + 0.02 * _grain(size, 0.03, random)
    centres, half = random.uniform(0.15, 0.25) * np.array([-1, 1]), random.uniform(0.09, 0.13)
    for centre in centres:
        edge = np.clip(1 - np.abs(across - centre) / half, 0, 1)
        film = film + 0.6 * np.sqrt(edge) * (1 - 0.4 * edge)
    lesion = np.zeros(size, dtype=bool)
    if abnormal:
        at, place = random.choice(centres), random.uniform(-0.5, 0.5)
        lesion = (np.abs(across - at) < 1.3 * half) & (np.abs(y - place) < random.uniform(0.08, 0.14))
        film = np.where(lesion, 0.3 + 0.1 * _grain(size, 0.02, random), film)
    return Picture(_bytes(film), lesion)


def draw_breasts(depth: int, size: int, random: np.random.Generator) -> Volume:
    """Two domes over a chest wall through `depth` slices, with one bright box-shaped lesion in one of them."""
    y, x = _grid((size, size))
    slices = np.empty((depth, size, size))
    tissue = _grain((size, size), 0.08, random)
    for index in range(depth):
        width = 0.42 * np.sqrt(1 - ((index + 0.5) / depth * 2 - 1) ** 2) + 0.05
        dome = np.maximum(*(1 - ((x - side) / width) ** 2 - ((y - 0.2) / 0.9) ** 2 for side in (-0.48, 0.48))) > 0
        slices[index] = 0.05 + 0.35 * dome + 0.3 * (y > 0.45) + 0.04 * tissue * dome
    slices += 0.01 * random.standard_normal(slices.shape)
    extent = max(2, size // 8)
    row = int(random.integers(size // 4, size // 2 - extent // 2))
    column = int(random.integers(size // 6, size // 4)) + (size // 2 if random.random() < 0.5 else 0)
    thickness = max(1, depth // 5)
    first = int(random.integers(depth // 3, depth - depth // 3 - thickness + 1))
    lesion = ((first, first + thickness), (row, row + extent), (column, column + extent))
    slices[tuple(slice(*span) for span in lesion)] += 0.35
    return Volume(np.asarray(np.rint(np.clip(slices, 0, 1) * 4095), dtype=np.uint16), lesion)


def save_picture(path: Path, pixels: NDArray[Any]) -> None:
    """Write an uint8 or bool picture as PNG or JPEG, by its suffix, and the folders it needs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = pixels.astype(np.uint8) * 255 if pixels.dtype == np.bool_ else pixels
    if path.suffix == ".png":
        Image.fromarray(values).save(path, compress_level=1)
    else:
        Image.fromarray(values).save(path, quality=95)


def save_mr_slice(path: Path, pixels: NDArray[np.uint16], patient: str, study: str, series: str, number: int) -> None:
    """Write one slice as an MR image of 12 bits; `study` and `series` are unique ids, `number` counts from 1."""
    import pydicom
    from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID = MRImageStorage
    data.SOPInstanceUID = generate_uid(entropy_srcs=["heatproof stand-in", series, str(number)])
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    data.StudyInstanceUID, data.SeriesInstanceUID = study, series
    data.PatientID = data.PatientName = patient
    data.Modality, data.Manufacturer, data.ImageType = "MR", "Heatproof stand-in", ["ORIGINAL", "PRIMARY"]
    data.BodyPartExamined, data.InstanceNumber = "BREAST", number
    data.Rows, data.Columns = pixels.shape
    data.SamplesPerPixel, data.PixelRepresentation = 1, 0
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 12, 11
    data.PhotometricInterpretation = "MONOCHROME2"
    data.WindowCenter, data.WindowWidth = 2048, 4096
    data.PixelData = pixels.astype("<u2").tobytes()
    data["PixelData"].VR = "OW"
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)


def random_name(purpose: str, seed: int, *key: int) -> str:
    """A name in the form of a UUID, always the same for the same arguments."""
    digits = generator(purpose, seed, *key).bytes(16).hex()
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def _grid(size: Size) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The y and x of every pixel's centre, from -1 to 1."""
    height, width = size
    y, x = (np.arange(height) + 0.5) / height * 2 - 1, (np.arange(width) + 0.5) / width * 2 - 1
    return np.broadcast_to(y[:, None], size), np.broadcast_to(x[None, :], size)


def _grain(size: Size, scale: float, random: np.random.Generator) -> NDArray[np.float64]:
    """Noise of unit variance with grains of `scale` image halves, but at least a pixel."""
    noise = ndimage.gaussian_filter(random.standard_normal(size), max(0.6, scale * min(size) / 2), mode="wrap")
    return np.asarray(noise / noise.std())


def _bytes(values: NDArray[np.float64]) -> NDArray[np.uint8]:
    return np.asarray(np.rint(np.clip(values, 0, 1) * 255), dtype=np.uint8)
