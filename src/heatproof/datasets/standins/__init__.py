"""Stand-ins of the public data sets, one writer a file."""

from heatproof.datasets.standins import (
    chexpert,
    covid_qu_ex,
    cp_child,
    duke_breast_mri,
    kvasir,
    mura,
    nih_chestxray14,
    rsna_pneumonia,
    siim_acr_pneumothorax,
    vindr_cxr,
)
from heatproof.datasets.standins.registry import STANDINS, write_standin

__all__ = [
    "STANDINS",
    "chexpert",
    "covid_qu_ex",
    "cp_child",
    "duke_breast_mri",
    "kvasir",
    "mura",
    "nih_chestxray14",
    "rsna_pneumonia",
    "siim_acr_pneumothorax",
    "vindr_cxr",
    "write_standin",
]
