"""What a study says of where it ran."""

import platform

import numpy as np
import torch

from heatproof.study.environment import PACKAGES, changed_versions, environment, usable_cores, versions


def test_it_names_versions_device_and_threads() -> None:
    found = environment("cpu")
    assert found["packages"]["numpy"] == np.__version__
    assert found["python"] == platform.python_version()
    assert found["threads"] == torch.get_num_threads()
    assert found["device"]["name"] == "cpu"
    assert 1 <= usable_cores() <= 4096
    assert versions(["nobody-has-this"]) == {"nobody-has-this": None}


def test_only_what_changed_is_told() -> None:
    now = environment("cpu")
    assert changed_versions(now) == []
    assert changed_versions({"packages": {**versions(PACKAGES), "torch": "1.0"}}) == [
        f"torch was 1.0, is {torch.__version__}"
    ]
    assert changed_versions({}) == []
