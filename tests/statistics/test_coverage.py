"""A reduced run of the simulation in `benchmarks/`: it always sees the same data sets."""

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "statistics_coverage.py"


@pytest.fixture(scope="module")
def simulation():
    spec = importlib.util.spec_from_file_location("statistics_coverage", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("score", "patients"), [("normal", 30), ("log-normal, skewness 1.75", 30), ("binary, p = 0.1", 100)]
)
def test_intervals_hold_the_mean_as_often_as_they_say(simulation, score, patients):
    """Images as units do not; and thirty patients need the widening."""
    found = simulation.coverage(simulation.SCORES[score], patients, 400)
    assert 91 < found["shipped"] < 98.5  # 95, less and more than three standard errors of 400 data sets
    assert found["shipped"] + found["below"] + found["above"] == pytest.approx(100)
    assert found["by image"] < 88
    assert found["not widened"] < found["shipped"]


def test_sign_flips_find_nothing_where_there_is_nothing(simulation):
    found = simulation.false_positives(simulation.NO_DIFFERENCE["normal"], 10, 300)
    assert 1.5 < found["shipped"] < 9
    assert found["by image"] > 15


@pytest.mark.parametrize("better", [0.0, 2.0])
def test_holm_keeps_the_family_in_bounds(simulation, better):
    found = simulation.family_errors(10, 100, better)
    assert found["Holm"] < 11
    assert found["uncorrected"] > 20
