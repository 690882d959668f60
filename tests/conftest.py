"""Fixtures that every floor shares."""

import itertools
import os
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real radiographs and reference maps; tests that need it are skipped where it is absent."""
    default = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("HEATPROOF_SHARED", default)) / "data"
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder}: set HEATPROOF_SHARED to the folder that holds data/")
    return folder


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


class _Ticks(threading.local):
    """A clock of each thread on which every pass takes equally long."""

    def __init__(self) -> None:
        self.count = itertools.count()

    def perf_counter(self) -> float:
        return float(next(self.count))


@pytest.fixture(autouse=True)
def _even_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The search for a micro-batch ends alike whatever else the machine does, so that equal calls give equal bits."""
    clock = SimpleNamespace(perf_counter=_Ticks().perf_counter)
    monkeypatch.setattr("heatproof.probing.microbatch.time", clock)
