"""What a study ran on: versions, platform, device and threads; nothing that names the machine or its user."""

import importlib.metadata
import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import heatproof

PACKAGES = (
    "torch", "numpy", "scipy", "scikit-image", "scikit-learn", "pandas", "pyarrow", "pillow", "pydicom", "pylibjpeg",
    "transformers", "monai", "lightning", "safetensors", "pydantic",
)  # fmt: skip


def environment(device: str) -> dict[str, Any]:
    """The environment of a study on `device`, as JSON values."""
    import torch

    from heatproof.probing.precision import bf16_supported

    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "heatproof": heatproof.__version__,
        "python": platform.python_version(),
        "platform": {"system": platform.system(), "release": platform.release(), "machine": platform.machine()},
        "packages": versions(PACKAGES),
        "device": {"name": device, "model": device_model(device), "bf16": bf16_supported(torch.device(device))},
        "threads": torch.get_num_threads(),
        "torch": {
            "version": torch.__version__,
            "cuda": torch.version.cuda,
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "mkldnn": torch.backends.mkldnn.is_available(),
            "deterministic": torch.are_deterministic_algorithms_enabled(),
            "matmul_precision": torch.get_float32_matmul_precision(),
        },
    }


def usable_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def device_model(device: str) -> str:
    """The product name of a GPU, or the processor family of the CPU."""
    import torch

    if device.startswith("cuda"):
        return str(torch.cuda.get_device_name(torch.device(device)))
    return platform.machine()


def versions(packages: Sequence[str]) -> dict[str, str | None]:
    """The installed version of each package, None where it is absent."""
    return {package: _version(package) for package in packages}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def changed_versions(before: Mapping[str, Any]) -> list[str]:
    """The packages that have another version than in an earlier environment, a line each."""
    now = versions(PACKAGES)
    then = before.get("packages", {})
    return [f"{name} was {then[name]}, is {now[name]}" for name in PACKAGES if name in then and then[name] != now[name]]
