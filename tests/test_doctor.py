"""`heatproof doctor`."""

import importlib.metadata
import sys
from pathlib import Path

import pytest
import torch

import heatproof
from heatproof.doctor import Diagnosis, diagnose, render, torchvision_problem


def test_it_tells_versions_devices_and_decoders() -> None:
    found = diagnose().facts
    versions = dict(found["Versions"])
    assert versions["heatproof"] == heatproof.__version__
    assert versions["torch"] == torch.__version__
    assert versions["pydicom"] == importlib.metadata.version("pydicom")
    devices = dict(found["Devices"])
    expected = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    assert ("bf16 only emulated" in devices["cpu"]) is not expected
    assert devices["torch threads"] == str(torch.get_num_threads())
    assert "pylibjpeg" in dict(found["DICOM pixel data"])["JPEG 2000 Image Compression"]
    assert dict(found["Optional packages"])["zennit"] in ("not installed", *_installed("zennit"))


def _installed(package: str) -> list[str]:
    return [d.version for d in importlib.metadata.distributions() if d.metadata["Name"] == package]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("x = 1", None),
        ("raise RuntimeError('operator torchvision::nms does not exist')", "RuntimeError: operator torchvision::nms"),
        ("import os\nos._exit(7)", "exit code 7"),
    ],
)
def test_a_package_that_is_installed_and_does_not_load_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, expected: str | None
) -> None:
    (tmp_path / "stand_in.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = torchvision_problem("stand_in")
    assert (found is None) == (expected is None)
    if found is not None and expected is not None:
        assert expected in found
        assert "pip uninstall stand_in" in found
        assert "Lightning" in found
    assert "stand_in" not in sys.modules
    assert torchvision_problem("nobody_has_this") is None


def test_problems_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    render(Diagnosis({"Versions": [("python", "3.11")]}, ["torchvision is broken"]))
    shown = capsys.readouterr().out
    assert "python" in shown
    assert "Problem: torchvision is broken" in shown
    render(Diagnosis({}))
    assert "No problems found." in capsys.readouterr().out
