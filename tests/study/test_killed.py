"""A study that is killed at random moments, also inside a write, ends with the numbers of an undisturbed one."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import support.killing
from heatproof.study.store import Run

KILLS = 20


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("killed")
    script = Path(support.killing.__file__)
    environment = {**os.environ, "PYTHONPATH": str(script.parent.parent), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), str(folder), "0", str(KILLS)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    return folder, json.loads(result.stdout.splitlines()[-1])


def test_the_kills_met_many_moments_and_the_inside_of_writes(killed: tuple[Path, dict[str, Any]]) -> None:
    kills = killed[1]["kills"]
    assert len(kills) == KILLS
    assert sum(kill["in_write"] for kill in kills) >= 3
    assert not kills[0]["begun"]
    assert len({kill["finished"] for kill in kills}) >= 4
    assert any(kill["trained"] for kill in kills)


def test_finished_files_are_never_touched_again(killed: tuple[Path, dict[str, Any]]) -> None:
    assert killed[1]["kept"]


def test_the_tables_and_maps_are_exactly_those_of_an_undisturbed_run(killed: tuple[Path, dict[str, Any]]) -> None:
    folder, found = killed
    expected = Run(folder / "undisturbed")
    assert len(expected.scores) == 5 * 8 * 3  # one of the six pairs of model and method cannot be
    for number in range(found["folders"]):
        run = Run(folder / f"killed{number}")
        assert run.complete
        pd.testing.assert_frame_equal(run.scores, expected.scores, check_exact=True)
        pd.testing.assert_frame_equal(run.predictions, expected.predictions, check_exact=True)
        pd.testing.assert_frame_equal(run.failures, expected.failures)
        for path in (expected.path / "maps").rglob("*.npz"):
            with np.load(path) as theirs, np.load(run.path / path.relative_to(expected.path)) as ours:
                assert all(np.array_equal(theirs[name], ours[name], equal_nan=name == "maps") for name in theirs.files)
