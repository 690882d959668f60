"""A training that is killed at any moment and run again ends with the weights of an undisturbed one, to the bit."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

import support.bright_side
from heatproof.errors import InputError
from heatproof.models.checkpoint import read_description
from heatproof.training import state as state_module
from heatproof.training.fit import fit
from heatproof.training.state import FILE, Progress, StateFile, tensors_of
from support.bright_side import write_bright_side
from training.interrupted import EPOCHS, OPTIONS, classifier

SCRIPT = Path(__file__).with_name("interrupted.py")


@pytest.fixture(autouse=True)
def _one_thread():
    """As in the processes that are killed: sums are added in another order with another number."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("interrupted")
    tests = Path(support.bright_side.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(tests), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), str(folder)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    return folder, json.loads(result.stdout.splitlines()[-1])


def test_the_kills_met_the_moments_they_were_meant_for(killed):
    """SIGTERM ends the process at once (-15), in a batch and in a write; the last whole state stays."""
    met = killed[1]
    assert [kill["code"] for kill in met] == [-15, -9, -9, -15, -15, -15]
    assert [kill["in_write"] for kill in met] == [False, False, True, False, True, False]
    assert [len(kill["epochs"]) for kill in met] == [0, 1, 1, 2, 2, 3]
    assert EPOCHS > 3


def test_an_epoch_that_was_finished_is_never_trained_again(killed):
    folder, met = killed
    history = pd.read_csv(folder / "killed" / "history.csv")
    for kill in met:
        assert history["seconds"].tolist()[: len(kill["epochs"])] == pytest.approx(kill["epochs"], rel=1e-12)


def test_weights_and_history_are_those_of_an_undisturbed_training(killed):
    folder = killed[0]
    want, got = (load_file(folder / name / "model.safetensors") for name in ("undisturbed", "killed"))
    assert want.keys() == got.keys()
    assert all(torch.equal(value, got[name]) for name, value in want.items())
    want, got = (
        pd.read_csv(folder / name / "history.csv").drop(columns="seconds") for name in ("undisturbed", "killed")
    )
    pd.testing.assert_frame_equal(got, want, check_exact=True)
    assert len(got) == EPOCHS
    for name in ("undisturbed", "killed"):
        assert sorted(path.name for path in (folder / name).iterdir()) == [
            "history.csv", "model.json", "model.safetensors",
        ]  # fmt: skip


def test_a_training_with_and_without_resume_is_the_same(killed, tmp_path):
    folder = killed[0]
    clf = classifier()
    dataset = write_bright_side(tmp_path / "data", counts=(16, 8, 2))
    fit(clf, dataset, **OPTIONS)
    for name, value in load_file(folder / "undisturbed" / "model.safetensors").items():
        assert torch.equal(clf.module.state_dict()[name], value), name


class StopHereError(Exception):
    pass


@pytest.fixture
def stopped(tmp_path, monkeypatch):
    """A data set and a folder with the state after two of three epochs."""
    dataset = write_bright_side(tmp_path / "data", counts=(16, 8, 2))
    write = StateFile.write

    def stops(self, progress):
        write(self, progress)
        if progress.epochs == 2:
            raise StopHereError

    with monkeypatch.context() as patch:
        patch.setattr(StateFile, "write", stops)
        with pytest.raises(StopHereError):
            fit(classifier(), dataset, **{**OPTIONS, "epochs": 3}, folder=tmp_path / "out", resume=True)
    return dataset, tmp_path / "out"


def test_the_state_of_another_training_is_refused_with_what_differs(stopped):
    dataset, out = stopped
    options = {**OPTIONS, "epochs": 3}
    samples = dataset.samples.copy()
    samples.loc[0, "label"] = "right"
    before = (out / FILE).read_bytes()
    for data, changes, message in [
        (dataset, {"lr": 0.01}, r"lr: there 0\.003, here 0\.01"),
        (dataset, {"epochs": 4}, "epochs: there 3, here 4"),
        (dataset, {"optimizer": "adam"}, "optimizer: there 'adamw', here 'adam'"),
        (dataset, {"augment": {"flip": 0.1}}, "augment: there .*'flip': 0.5.*, here .*'flip': 0.1"),
        (replace(dataset, samples=samples), {}, "data: there '"),
    ]:
        with pytest.raises(InputError, match=f"(?s){message}.*resume=False"):
            fit(classifier(), data, **{**options, **changes}, folder=out, resume=True)
    clf = classifier()
    clf.preprocessing = replace(clf.preprocessing, mean=(0.4,))
    with pytest.raises(InputError, match="(?s)preprocessing: there .*Preprocessing.*0.5.*, here .*0.4"):
        fit(clf, dataset, **options, folder=out, resume=True)
    assert (out / FILE).read_bytes() == before


def test_what_does_not_change_the_weights_may_change(stopped):
    dataset, out = stopped
    result = fit(classifier(), dataset, **{**OPTIONS, "epochs": 3}, workers=2, memory_gib=0, folder=out, resume=True)
    assert len(result.history) == 3
    assert not (out / FILE).exists()


def test_without_resume_training_starts_over(stopped):
    dataset, out = stopped
    result = fit(classifier(), dataset, **{**OPTIONS, "epochs": 2}, folder=out)
    assert len(result.history) == 2
    assert sorted(path.name for path in out.iterdir()) == ["history.csv", "model.json", "model.safetensors"]


def test_without_resume_no_state_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(StateFile, "write", lambda *_: pytest.fail("a state was written"))
    dataset = write_bright_side(tmp_path / "data", counts=(8, 4, 2))
    fit(classifier(), dataset, **{**OPTIONS, "epochs": 2}, folder=tmp_path / "out")


def test_a_finished_training_is_read_and_not_trained_again(stopped, monkeypatch):
    dataset, out = stopped
    options = {**OPTIONS, "epochs": 3}
    first = classifier()
    whole = fit(first, dataset, **options, folder=out, resume=True)
    monkeypatch.setattr("heatproof.training.loop.run", lambda *_: pytest.fail("it was trained again"))
    again = classifier()
    found = fit(again, dataset, **options, folder=out, resume=True)
    pd.testing.assert_frame_equal(found.history, whole.history)
    assert (found.best_epoch, dict(found.record)) == (whole.best_epoch, dict(whole.record))
    state = again.module.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in first.module.state_dict().items())
    assert not again.module.training
    with pytest.raises(InputError, match=r"(?s)model\.json is of another training.*lr: there 0\.003, here 0\.1"):
        fit(classifier(), dataset, **{**options, "lr": 0.1}, folder=out, resume=True)


def test_a_training_killed_while_its_model_was_saved_ends_well(stopped, monkeypatch):
    """The state goes last: what is saved by halves is saved again."""
    dataset, out = stopped
    options = {**OPTIONS, "epochs": 3}

    def dies(clf, folder, extra):
        (folder / "model.safetensors").write_bytes(b"half")
        (folder / ".model.json.4711.tmp").write_bytes(b"half")
        raise StopHereError

    with monkeypatch.context() as patch:
        patch.setattr("heatproof.training.fit.save_checkpoint", dies)
        with pytest.raises(StopHereError):
            fit(classifier(), dataset, **options, folder=out, resume=True)
    fit(classifier(), dataset, **options, folder=out, resume=True)
    assert read_description(out)["extra"]["training"]["best_epoch"] > 0
    assert sorted(path.name for path in out.iterdir()) == ["history.csv", "model.json", "model.safetensors"]


def test_patience_outlives_an_interruption(tmp_path):
    progress = Progress()
    for epoch, loss in enumerate([3.0, 2.0, 2.5, 2.0], start=1):
        assert not progress.over(10, 2)
        progress.add({"epoch": epoch, "val_loss": loss}, {"w": torch.tensor(float(epoch))})
    assert (progress.best_epoch, progress.best["w"].item()) == (2, 2.0)
    file = StateFile(tmp_path, {"a": 1})
    file.write(progress)
    back = file.read()
    assert back.over(10, 2)
    assert not back.over(10, 3)
    assert not back.over(10, None)
    assert back.over(4, None)
    assert (back.best_epoch, back.best["w"].item(), back.weights["w"].item()) == (2, 2.0, 4.0)


def test_a_state_comes_back_to_the_bit(tmp_path):
    weight = torch.randn(3, 2).to(memory_format=torch.preserve_format).T
    progress = Progress()
    row = {"epoch": 1, "val_loss": 0.1 + 0.2, "val_auroc": float("nan")}
    progress.add(row, tensors_of({"w": weight, "same": weight, "count": torch.tensor(7)}))
    progress.optimizer = {0: tensors_of({"step": torch.tensor(3.0), "exp_avg": weight, "momentum_buffer": None})}
    progress.scaler = torch.amp.GradScaler("cpu").state_dict()
    file = StateFile(tmp_path / "new", {"lr": 1e-3})
    assert file.read() is None
    file.write(progress)
    back = StateFile(tmp_path / "new", {"lr": 1e-3}).read()
    assert back.rows[0]["val_loss"] == 0.1 + 0.2
    assert back.rows[0]["val_auroc"] != back.rows[0]["val_auroc"]
    assert torch.equal(back.weights["w"], weight)
    assert torch.equal(back.best["same"], weight)
    assert back.weights["count"].dtype == torch.int64
    assert set(back.optimizer[0]) == {"step", "exp_avg"}
    assert torch.equal(back.optimizer[0]["exp_avg"], weight)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    scaler.load_state_dict(back.scaler)
    assert scaler.state_dict() == progress.scaler


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "is damaged"),
        (lambda path: path.write_bytes(b"PK\x03\x04"), "is damaged"),
        (lambda path: save_file({"w": torch.ones(1)}, path), "is damaged"),
        (lambda path: save_file({"w": torch.ones(1)}, path, metadata={"state": "{"}), "is damaged"),
        (
            lambda path: save_file({"w": torch.ones(1)}, path, metadata={"state": '{"schema": 2}'}),
            "schema 2, .* reads 1",
        ),
    ],
)
def test_a_damaged_state_is_refused(tmp_path, damage, message):
    file = StateFile(tmp_path, {})
    file.write(Progress(rows=[{"epoch": 1, "val_loss": 1.0}], best_epoch=1, weights={"w": torch.ones(2)}))
    damage(file.path)
    with pytest.raises(InputError, match=message):
        file.read()


def test_a_state_holds_no_pickle(stopped):
    content = (stopped[1] / FILE).read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    assert set(header.pop("__metadata__")) == {"state"}
    assert {entry["dtype"] for entry in header.values()} <= {"F32", "I64"}
    assert state_module.SCHEMA == 1


def test_resume_needs_a_folder(tmp_path):
    dataset = write_bright_side(tmp_path / "data", counts=(8, 4, 2))
    with pytest.raises(InputError, match="resume=True needs the folder"):
        fit(classifier(), dataset, **OPTIONS, resume=True)
