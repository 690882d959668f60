"""Stand-in of COVID-QU-Ex: https://www.kaggle.com/datasets/anasmohammedtahir/covidqu, as unpacked.

The lung set has every image with its lung mask, the infection set every second fifteen of them, in splits of its own,
with lung and infection masks; the infection mask of an image without COVID-19 is black. Images are square PNGs.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from heatproof.datasets.phantom.anatomy import draw_anatomy
from heatproof.datasets.phantom.radiograph import Radiograph, draw_radiograph
from heatproof.datasets.phantom.randomness import generator
from heatproof.datasets.standins.pictures import save_picture
from heatproof.datasets.standins.registry import standin

_KINDS: tuple[tuple[str, str, str | None], ...] = (
    ("COVID-19", "covid_{}", "opacity"),
    ("Non-COVID", "non_COVID ({})", "effusion"),
    ("Normal", "Normal ({})", None),
)
_ORDER = ("Train", "Test", "Train", "Val", "Train")


@standin("covid_qu_ex")
def write(folder: Path, *, patients: int, size: int, seed: int) -> None:
    """One image a patient, at least fifteen, so that each class stands in each split of both sets."""
    for patient in range(max(patients, 15)):
        kind, turn = patient % 3, patient // 3
        label, name, _ = _KINDS[kind]
        file = name.format(turn + 1) + ".png"
        drawn = draw(patient, size, seed)
        pixels = np.asarray(np.rint(drawn.pixels * 255), dtype=np.uint8)
        lung = folder / "Lung Segmentation Data" / "Lung Segmentation Data" / _ORDER[turn % 5] / label
        save_picture(lung / "images" / file, pixels)
        save_picture(lung / "lung masks" / file, drawn.lungs)
        if patient // 15 % 2 == 0:
            split = _ORDER[(turn + 1) % 5]
            infection = folder / "Infection Segmentation Data" / "Infection Segmentation Data" / split / label
            save_picture(infection / "images" / file, pixels)
            save_picture(infection / "lung masks" / file, drawn.lungs)
            save_picture(infection / "infection masks" / file, infected(drawn))


def draw(patient: int, size: int, seed: int) -> Radiograph:
    """The radiograph of one patient: COVID-19 is a patch, another infection fluid, by the patient's number."""
    finding = _KINDS[patient % 3][2]
    findings = {} if finding is None else {finding: generator("covid_qu_ex finding", seed, patient)}
    anatomy = draw_anatomy(generator("covid_qu_ex anatomy", seed, patient))
    return draw_radiograph(anatomy, findings, size, generator("covid_qu_ex film", seed, patient))


def infected(drawn: Radiograph) -> NDArray[np.bool_]:
    """Where COVID-19 was drawn, bool `[size, size]`."""
    return drawn.lesions.get("opacity", np.zeros(drawn.lungs.shape, dtype=bool))
