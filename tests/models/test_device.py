"""Device names."""

import pytest
import torch

from heatproof.errors import InputError
from heatproof.models.device import resolve_device


def test_names(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    want = {"auto": "cuda:0", "cpu": "cpu", "cuda": "cuda:0", "cuda:1": "cuda:1"}
    assert {name: str(resolve_device(name)) for name in want} == want
    with pytest.raises(InputError, match="no cuda:2: torch sees 2"):
        resolve_device("cuda:2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert str(resolve_device("auto")) == "cpu"
    with pytest.raises(InputError, match="no cuda:0: torch sees 0"):
        resolve_device("cuda:0")
    with pytest.raises(InputError, match="'auto', 'cpu' or 'cuda:N', got 'gpu'"):
        resolve_device("gpu")
