"""One run folder and its report, built once for all tests that only look at them."""

from pathlib import Path

import pytest

from heatproof.report import build_report
from heatproof.study.store import Run
from support.runs import METRICS, LabelRunFolder, RunFolder, label_of


@pytest.fixture(scope="session")
def run_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return RunFolder(tmp_path_factory.mktemp("study") / "run").write()


@pytest.fixture(scope="session")
def run(run_path: Path) -> Run:
    return Run(run_path)


@pytest.fixture(scope="session")
def report(run_path: Path) -> Path:
    """The folder of the report."""
    return build_report(run_path).parent


@pytest.fixture(scope="session")
def label_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the report of a run with several labels an image."""
    few = [metric for metric in METRICS if label_of(metric) in ("faithfulness_estimate", "pointing_game", "sparseness")]
    folder = LabelRunFolder(tmp_path_factory.mktemp("labels") / "run", metrics=few)
    return build_report(folder.write()).parent
