"""Reading a run folder that was written file by file (`support.runs`), without the runner."""

from pathlib import Path

import numpy as np
import pytest

from heatproof.errors import InputError
from heatproof.study.store import Run, load_run
from support.runs import CONSTANT, METHODS, METRICS, MISSING, RunFolder, label_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    run = RunFolder(tmp_path_factory.mktemp("store") / "run", cases=12, chunk=5)
    run.write()
    return run


def test_names_come_in_the_order_of_the_recipe(folder: RunFolder) -> None:
    run = load_run(folder.path)
    assert run.models == ["vit", "densenet"]
    assert run.methods == [label_of(method) for method in METHODS]
    assert run.metrics == [label_of(metric) for metric in METRICS]
    assert run.classes == folder.classes
    assert run.complete


def test_each_case_has_the_arrays_of_its_own_row(folder: RunFolder) -> None:
    run = Run(folder.path)
    assert run.cases("densenet") == folder.ids
    for number, sample in enumerate(folder.ids):
        with np.load(folder.path / f"inputs/vit/{number // 5:05d}.npz") as file:
            image, roi, annotated = (file[name][number % 5] for name in ("image", "roi", "annotated"))
        assert np.array_equal(run.image("vit", sample), image)
        found = run.roi("vit", sample)
        assert (found is not None) == annotated
        assert found is None or np.array_equal(found, roi)
        with np.load(folder.path / f"maps/vit/lrp_z/{number // 5:05d}.npz") as file:
            row = file["sample_id"].tolist().index(sample)
            assert np.array_equal(run.map("vit", "lrp_z", sample), file["maps"][row])
            assert run.target("vit", "lrp_z", sample) == folder.classes[file["target"][row]]


def test_what_is_missing_is_none_and_what_does_not_exist_an_error(folder: RunFolder) -> None:
    run = Run(folder.path)
    assert run.map("vit", "gradcam", MISSING) is None
    assert run.map("densenet", "attention", CONSTANT) is None
    assert run.target("densenet", "attention", CONSTANT) is None
    with pytest.raises(InputError, match="no model 'vitt'. Did you mean 'vit'"):
        run.map("vitt", "lrp_z", CONSTANT)
    with pytest.raises(InputError, match="no method 'gradcm'. Did you mean 'gradcam'"):
        run.map("vit", "gradcm", CONSTANT)
    with pytest.raises(InputError, match="'nobody' is not among the explained images of 'vit'"):
        run.image("vit", "nobody")
    with pytest.raises(InputError, match="not the folder of a study"):
        Run(folder.path / "maps")


def test_tables_join_their_parts(folder: RunFolder) -> None:
    run = Run(folder.path)
    assert list(run.scores.drop_duplicates(["model", "method"])["model"]) == ["vit"] * 8 + ["densenet"] * 5
    assert len(run.predictions) == 24
    assert len(run.samples) == 72
    assert run.performance("vit")["n"] == 12
    assert list(run.history("vit")["epoch"]) == [1, 2, 3, 4, 5, 6]
    assert not run.failures.duplicated().any()
    assert ("lime_200", "samples", "200", "1000") in list(run.reductions().itertuples(index=False, name=None))


def test_a_run_that_has_only_begun_has_empty_tables(tmp_path: Path, folder: RunFolder) -> None:
    (tmp_path / "study.yaml").write_bytes((folder.path / "study.yaml").read_bytes())
    run = Run(tmp_path)
    assert not run.complete
    assert len(run.scores) == len(run.failures) == len(run.predictions) == 0
    assert "value" in run.scores
    assert "message" in run.failures
    assert run.cases("vit") == []
    with pytest.raises(InputError, match=r"no models/vit/performance\.json yet"):
        run.performance("vit")


def test_pickled_arrays_are_not_read(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run", cases=2, models=["vit"])
    run.write()
    path = run.path / "maps/vit/lrp_z/00000.npz"
    np.savez(path, maps=np.array([{}], dtype=object), sample_id=np.array([run.ids[0]]), target=np.array([0]))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        Run(run.path).map("vit", "lrp_z", run.ids[0])
