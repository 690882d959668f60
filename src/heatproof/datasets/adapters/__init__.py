"""The public data sets, one file each."""

from heatproof.datasets.adapters import (
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
from heatproof.datasets.adapters.registry import ADAPTERS, Adapter, Found, Problem, adapter, load_public

__all__ = [
    "ADAPTERS",
    "Adapter",
    "Found",
    "Problem",
    "adapter",
    "chexpert",
    "covid_qu_ex",
    "cp_child",
    "duke_breast_mri",
    "kvasir",
    "load_public",
    "mura",
    "nih_chestxray14",
    "rsna_pneumonia",
    "siim_acr_pneumothorax",
    "vindr_cxr",
]
