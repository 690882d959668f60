"""What this installation can do, and what is wrong with it."""

import importlib.util
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from heatproof.study.environment import PACKAGES, device_model, usable_cores, versions

_OPTIONAL = ("timm", "zennit", "quantus", "captum", "highdicom")
_IMPORT_SECONDS = 120


@dataclass(frozen=True)
class Diagnosis:
    """`facts`: (what, value) lines, grouped by heading; `problems`: what is wrong, what it breaks and the remedy."""

    facts: dict[str, list[tuple[str, str]]]
    problems: list[str] = field(default_factory=list)


def diagnose() -> Diagnosis:
    """Look at versions, devices, DICOM decoders and optional packages."""
    problems = [text for text in (torchvision_problem(),) if text]
    facts = {
        "Versions": [("python", sys.version.split()[0]), ("heatproof", _heatproof()), *_versions(PACKAGES)],
        "Devices": _devices(),
        "DICOM pixel data": _decoders(),
        "Optional packages": _versions(("torchvision", *_OPTIONAL)),
    }
    return Diagnosis(facts, problems)


def torchvision_problem(package: str = "torchvision") -> str | None:
    """What is wrong with an installed torchvision, found by importing it in a process of its own; None if nothing is."""
    if importlib.util.find_spec(package) is None:
        return None
    command = [sys.executable, "-c", f"import {package}"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=_IMPORT_SECONDS, check=False)  # noqa: S603
    except subprocess.TimeoutExpired:
        reason = f"its import takes longer than {_IMPORT_SECONDS} s"
    else:
        if result.returncode == 0:
            return None
        reason = (result.stderr.strip().splitlines() or [f"exit code {result.returncode}"])[-1]
    return (
        f"{package} is installed and does not load ({reason}). Lightning, torchmetrics and transformers import it where "
        f"they find it, so training and ViTs fail. Remove it (pip uninstall {package}: Heatproof does not need it), or "
        "install the build that belongs to this torch."
    )


def render(diagnosis: Diagnosis) -> None:
    """Print a diagnosis."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    for heading, lines in diagnosis.facts.items():
        table = Table(title=heading, title_justify="left", show_header=False)
        for line in lines:
            table.add_row(*(Text(cell) for cell in line))
        console.print(table)
    for problem in diagnosis.problems:
        console.print(Text(f"Problem: {problem}", style="bold red"))
    if not diagnosis.problems:
        console.print("No problems found.")


def _heatproof() -> str:
    import heatproof

    return heatproof.__version__


def _versions(packages: Sequence[str]) -> list[tuple[str, str]]:
    return [(package, version or "not installed") for package, version in versions(packages).items()]


def _devices() -> list[tuple[str, str]]:
    import torch

    from heatproof.models.device import resolve_device
    from heatproof.probing.precision import bf16_supported

    names = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0))]
    lines = []
    for name in names:
        bf16 = "bf16" if bf16_supported(name) else "bf16 only emulated"
        lines.append((name, f"{device_model(name)}, {bf16}"))
    lines += [
        ("--device auto", str(resolve_device("auto"))),
        ("CPU instructions", torch.backends.cpu.get_cpu_capability()),
        ("usable cores", str(usable_cores())),
        ("torch threads", str(torch.get_num_threads())),
    ]
    return lines


def _decoders() -> list[tuple[str, str]]:
    """Transfer syntaxes and the plug-ins that can decode them here."""
    from pydicom.pixels import get_decoder
    from pydicom.uid import JPEG2000, JPEG2000Lossless, JPEGBaseline8Bit, JPEGLossless, JPEGLSLossless, RLELossless

    syntaxes: tuple[Any, ...] = (
        JPEGBaseline8Bit,
        JPEGLossless,
        JPEGLSLossless,
        JPEG2000,
        JPEG2000Lossless,
        RLELossless,
    )
    return [(uid.name, ", ".join(get_decoder(uid).available_plugins) or "no decoder installed") for uid in syntaxes]
