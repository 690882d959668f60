"""Synthetic chest radiographs whose findings are known to the pixel: data for demonstrations and tests."""

from heatproof.datasets.phantom.dataset import load_phantom, make_phantom, write_phantom
from heatproof.datasets.phantom.labels import Scanners, Shortcut
from heatproof.datasets.phantom.options import Phantom

__all__ = ["Phantom", "Scanners", "Shortcut", "load_phantom", "make_phantom", "write_phantom"]
