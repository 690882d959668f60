"""The command line, run in this process; help in processes of its own."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from pandas.testing import assert_frame_equal
from PIL import Image

import heatproof
from heatproof import explanation, scoring
from heatproof.cli import main
from heatproof.cli.explaining import named_files
from heatproof.datasets.phantom import Scanners, Shortcut, make_phantom
from heatproof.errors import InputError
from heatproof.explanation import explain
from heatproof.models.checkpoint import load_checkpoint, save_checkpoint
from heatproof.models.sources import load_classifier
from heatproof.scoring import score
from heatproof.study.store import Run
from support import files
from support.studies import VIT, write_data
from support.studies import recipe as tiny

COMMANDS = [
    [], ["data"], ["data", "check"], ["data", "phantom"], ["train"], ["explain"], ["score"], ["study"], ["study", "run"],
    ["report"], ["methods"], ["metrics"], ["doctor"],
]  # fmt: skip

Call = Callable[..., int]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Call:
    """Run the program with arguments; its exit code."""

    def run(*arguments: str | Path) -> int:
        monkeypatch.setattr(sys, "argv", ["heatproof", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        return int(caught.value.code or 0)

    return run


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny data set (samples.csv, images, masks) and a checkpoint (model)."""
    folder = tmp_path_factory.mktemp("cli")
    write_data(folder)
    clf = load_classifier("hf:vit", classes=["left", "right"], image_size=32, channels=1, seed=1, **VIT)
    save_checkpoint(clf, folder / "model")
    return folder


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: "-".join(command) or "root")
def test_help_imports_nothing_heavy(command: list[str]) -> None:
    code = (
        "import sys\nfrom heatproof.cli import main\n"
        "try:\n    main()\nfinally:\n"
        "    heavy = {'torch', 'numpy', 'pandas', 'yaml', 'PIL', 'scipy'} & set(sys.modules)\n"
        "    print('heavy:', sorted(heavy))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, *command, "--help"], capture_output=True, text=True, check=False, timeout=60
    )
    assert result.returncode == 0, result.stderr
    assert "Usage: heatproof" in result.stdout
    assert "Exit codes: 0 done" in result.stdout
    assert "heavy: []" in result.stdout


def test_version(call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--version") == 0
    assert capsys.readouterr().out == f"heatproof {heatproof.__version__}\n"


def test_wrong_usage_and_bad_input_end_with_2(call: Call, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert call("explian") == 2
    assert call("explain") == 2
    capsys.readouterr()
    assert call("study", "run", tmp_path / "none.yaml") == 2
    shown = capsys.readouterr().err
    assert shown == f"heatproof: {tmp_path / 'none.yaml'}: no such recipe file.\n"


def test_a_gpu_that_is_not_there_is_a_clear_error(
    call: Call, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    arguments = [place / "images" / "test000.png", "--model", place / "model", "--out", tmp_path]
    assert call("explain", *arguments, "--device", f"cuda:{count}") == 2
    assert f"There is no cuda:{count}" in capsys.readouterr().err
    assert call("explain", *arguments, "--device", "gpu") == 2
    assert "device must be 'auto', 'cpu' or 'cuda:N', got 'gpu'" in capsys.readouterr().err


def test_registries_as_tables_and_json(call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("methods", "--json") == 0
    methods = json.loads(capsys.readouterr().out)
    assert methods["gradcam"]["options"] == {"layer": None, "eigen_smooth": False, "aug_smooth": False}
    assert methods["gradcam"]["family"] == "cam"
    assert methods["lrp_z"]["signed"] is True
    assert list(methods) == list(explanation.methods())
    assert call("metrics", "--json") == 0
    metrics = json.loads(capsys.readouterr().out)
    assert metrics["iou"]["needs"] == ["roi"]
    assert metrics["max_sensitivity"]["higher_is_better"] is False
    assert metrics["faithfulness_estimate"]["bounds"] == [-1, 1]
    assert list(metrics) == list(scoring.metrics())
    for command, names in (("methods", methods), ("metrics", metrics)):
        assert call(command) == 0
        shown = capsys.readouterr().out
        assert all(name in shown for name in names)


def test_data_check_counts_and_names_bad_rows(call: Call, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_data(tmp_path)
    assert call("data", "check", tmp_path / "samples.csv") == 0
    shown = capsys.readouterr()
    assert "42 images, nothing wrong." in shown.err
    (tmp_path / "images" / "val000.png").write_text("nothing")
    file = tmp_path / "r.yaml"
    file.write_text(yaml.safe_dump(tiny(tmp_path)))
    assert call("data", "check", file) == 3
    shown = capsys.readouterr()
    assert "val000 (image): " in shown.err
    assert "bright" in shown.out


def test_data_check_finds_a_patient_on_two_sides(
    call: Call, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = write_data(tmp_path)
    table.assign(patient_id="same").rename(columns={"label": "finding"}).to_csv(tmp_path / "samples.csv")
    assert call("data", "check", tmp_path / "samples.csv", "--column", "label=finding") == 3
    assert "Patients in more than one split: same" in capsys.readouterr().err
    assert call("data", "check", tmp_path / "samples.csv", "--column", "finding") == 2


def test_train_saves_a_model_that_knows_the_answer(
    call: Call, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = [part for key, value in VIT.items() for part in ("--config", f"{key}={value}")]
    code = call(
        "train", place / "samples.csv", "--out", tmp_path / "m", "--source", "hf:vit", "--image-size", "32", "--channels",
        "1", *config, "--epochs", "8", "--lr", "5e-3", "--device", "cpu",
    )  # fmt: skip
    assert code == 0
    found = json.loads((tmp_path / "m" / "performance.json").read_text())
    assert found["auroc_macro"] > 0.95  # the brighter half: easy
    assert found["support"] == {"left": 5, "right": 5}
    assert load_checkpoint(tmp_path / "m").classes == ("left", "right")
    assert len(pd.read_csv(tmp_path / "m" / "history.csv")) == 8
    printed = capsys.readouterr().out
    assert re.search(r"10 test images: accuracy \d\.\d{3} \(\d\.\d\d to \d\.\d\d\)", printed)


def test_train_takes_every_option_of_the_training_and_no_other(
    call: Call, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = [part for key, value in VIT.items() for part in ("--config", f"{key}={value}")]
    common = ["train", place / "samples.csv", "--out", tmp_path / "m", "--source", "hf:vit", "--image-size", "32",
              "--channels", "1", *config, "--epochs", "2", "--device", "cpu"]  # fmt: skip
    further = ["-o", "optimizer=sgd", "-o", "schedule=cosine", "-o", "augment={shift: 0.0}", "--task", "multilabel"]
    assert call(*common, *further) == 0
    options = json.loads((tmp_path / "m" / "model.json").read_text())["extra"]["training"]["options"]
    assert (options["optimizer"], options["schedule"], options["momentum"]) == ("sgd", "cosine", 0.9)
    assert load_checkpoint(tmp_path / "m").task == "multilabel"
    again = ["train", place / "samples.csv", "--out", tmp_path / "n", "--source", tmp_path / "m", "--epochs", "1"]
    assert call(*again, "--device", "cpu") == 0  # a checkpoint brings its task along
    assert load_checkpoint(tmp_path / "n").task == "multilabel"
    for bad, message in (
        (["-o", "optimiser=sgd"], "no option 'optimiser'. Did you mean 'optimizer'"),
        (["-o", "lr=0.1"], "--option lr: give it as --lr."),
        (["--task", "both"], "--task"),
    ):
        capsys.readouterr()
        assert call(*common, *bad) == 2
        assert message in capsys.readouterr().err


def test_a_table_with_a_column_for_each_label_is_checked(
    call: Call, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = pd.read_csv(place / "samples.csv").assign(image=lambda rows: str(place) + "/" + rows["image"])
    left = (table["label"] == "left").astype(int)
    table.drop(columns="label").assign(left=left, right=1 - left).to_csv(tmp_path / "several.csv", index=False)
    labels = ["--label-column", "left", "--label-column", "right"]
    assert call("data", "check", tmp_path / "several.csv", *labels) == 0
    assert "nothing wrong" in capsys.readouterr().err
    assert call("data", "check", tmp_path / "several.csv") == 2
    assert call("data", "check", tmp_path, *labels) == 2
    assert "--label-column belongs to a sample table" in capsys.readouterr().err


def test_init_writes_a_recipe_that_can_be_planned(call: Call, place: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "first.yaml"
    assert call("study", "init", place / "samples.csv", "--out", recipe, "--scratch") == 0
    assert call("data", "check", recipe) == 0
    assert call("study", "init", place / "samples.csv", "--out", recipe) == 2  # it is there already


def test_explain_writes_overlay_and_map_and_names_what_it_cannot_read(
    call: Call, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = place / "images" / "test001.png"
    (tmp_path / "bad.png").write_text("no image")
    pixels = np.arange(40 * 30, dtype=np.uint16).reshape(40, 30)
    files.dataset(pixels, PhotometricInterpretation="MONOCHROME2").save_as(
        tmp_path / "scan.dcm", enforce_file_format=True
    )
    arguments = [
        image,
        tmp_path / "bad.png",
        tmp_path / "scan.dcm",
        "--model",
        place / "model",
        "--out",
        tmp_path / "out",
    ]
    assert (
        call("explain", *arguments, "--method", "lime", "-o", "samples=9", "--target", "right", "--device", "cpu") == 1
    )
    shown = capsys.readouterr()
    assert f"{tmp_path / 'bad.png'}: " in shown.err
    assert "2 of 3 done" in shown.err
    assert files.PATIENT not in shown.err + shown.out
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "scan.npz",
        "scan.png",
        "test001.npz",
        "test001.png",
    ]
    with np.load(tmp_path / "out" / "test001.npz") as stored:
        clf = load_checkpoint(place / "model")
        expected = explain(clf, clf.read([image]), [1], method="lime", keys=["test001"], samples=9)[0]
        np.testing.assert_allclose(stored["map"], expected, atol=1e-6)
        assert (str(stored["target_class"]), str(stored["image"])) == ("right", "test001.png")
        assert json.loads(str(stored["options"])) == {"samples": 9}
    assert Image.open(tmp_path / "out" / "scan.png").size == (30, 40)


def test_explain_refuses_what_it_does_not_know(
    call: Call, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [place / "images", "--model", place / "model", "--out", tmp_path]
    assert call("explain", *arguments, "--method", "gradcm") == 2
    assert "Did you mean 'gradcam'" in capsys.readouterr().err
    assert call("explain", *arguments, "--method", "lime", "-o", "sample=3") == 2
    assert "lime has no option 'sample'" in capsys.readouterr().err
    assert call("explain", *arguments, "--target", "rigth") == 2
    assert "no class 'rigth'. Did you mean 'right'" in capsys.readouterr().err
    assert call("explain", *arguments, "-o", "layer") == 2
    assert "--option layer: write it as key=value" in capsys.readouterr().err


def test_score_gives_the_scores_of_the_stored_maps(
    call: Call, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [place / "images" / f"test00{i}.png" for i in (0, 3)]
    common = ["--model", place / "model", "--device", "cpu"]
    assert call("explain", *images, *common, "--out", tmp_path, "--method", "gradcam") == 0
    np.savez(tmp_path / "other.npz", a=1)
    wanted = ["-m", "sparseness", "-m", "iou:top=50,shape=rectangle", "-m", "max_sensitivity:samples=2"]
    given = ["--images", place / "images", "--masks", place / "masks", "--out", tmp_path / "s.csv"]
    assert call("score", tmp_path, *common, *wanted, *given) == 1
    assert "other.npz: holds no image, map, method" in capsys.readouterr().err
    table = pd.read_csv(tmp_path / "s.csv").set_index(["sample_id", "metric"])["value"]
    assert len(table) == 6
    clf = load_checkpoint(place / "model")
    image = clf.read([images[1]])
    with np.load(tmp_path / "test003.npz") as stored:
        maps, targets = torch.from_numpy(stored["map"])[None], [int(stored["target"])]
    roi = torch.from_numpy(np.asarray(Image.open(place / "masks" / "test003.png")) > 0)[None]
    given_ = {"targets": targets, "keys": ["test003"], "roi": roi, "explain": ("gradcam", {})}
    for label, metric, options in (
        ("sparseness", "sparseness", {}), ("iou:top=50,shape=rectangle", "iou", {"top": 50, "shape": "rectangle"}),
        ("max_sensitivity:samples=2", "max_sensitivity", {"samples": 2}),
    ):  # fmt: skip
        expected = score(clf, image, maps, metric=metric, **given_, **options).item()
        assert table["test003", label] == pytest.approx(expected, abs=1e-5, nan_ok=True)
    assert call("score", tmp_path / "test003.npz", *common, "-m", "iou:tpo=5", *given) == 2
    assert "iou has no option 'tpo'" in capsys.readouterr().err


def test_a_map_without_mask_has_an_empty_localization_score(call: Call, place: Path, tmp_path: Path) -> None:
    common = ["--model", place / "model", "--device", "cpu"]
    image = place / "images" / "test001.png"
    assert call("explain", image, *common, "--out", tmp_path, "--method", "control_random") == 0
    arguments = ["-m", "pointing_game", "-m", "sparseness", "--images", place / "images", "--out", tmp_path / "s.csv"]
    assert call("score", tmp_path / "test001.npz", *common, *arguments) == 0
    found = pd.read_csv(tmp_path / "s.csv").set_index("metric")["value"]
    assert np.isnan(found["pointing_game"])
    assert found["sparseness"] > 0


def test_study_run_goes_to_the_report_and_on_after_an_interruption(
    call: Call, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_data(tmp_path)
    plain = tiny(tmp_path, methods=["attention", "control_random"], metrics=["sparseness"])
    plain["models"] = [plain["models"][1]]
    file = tmp_path / "r.yaml"
    file.write_text(yaml.safe_dump(plain))
    command = ["study", "run", file, "--out", tmp_path / "run", "--set", "data.test_limit=3"]
    assert call(*command, "--dry-run") == 0
    assert not (tmp_path / "run").exists()
    assert "forward passes" in capsys.readouterr().err

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("heatproof.study.runner.predictions_of", interrupted)
        assert call(*command) == 130
    assert "goes on where it stopped" in capsys.readouterr().err
    assert call(*command) == 0
    shown = capsys.readouterr()
    assert "Going on with" in shown.err
    assert "1 failures, named in" in shown.err
    report = Path(shown.out.strip().removeprefix("Report: ").replace("\n", ""))
    assert report.name == "index.html"
    assert report.is_file()
    assert len(Run(tmp_path / "run").scores) == 3
    report.unlink()
    assert call("report", tmp_path / "run") == 0
    assert report.is_file()


def test_files_of_one_name_stay_apart(tmp_path: Path) -> None:
    paths = [tmp_path / "a" / "1.dcm", tmp_path / "b" / "1.dcm", tmp_path / "c.png"]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.touch()
    found = named_files([tmp_path])
    assert len(found) == 3
    assert set(found.values()) == set(paths)
    assert found["c"] == paths[2]
    (tmp_path / "c.dcm").touch()
    with pytest.raises(InputError, match="differ in their suffix only"):
        named_files([tmp_path])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no files in there"):
        named_files([tmp_path / "empty"])


def test_a_phantom_with_everything(call: Call, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = "--patients 6 --images-per-patient 2 --size 48 --task multilabel --class nodule --class effusion"
    options += " --prevalence nodule=0.5 --prevalence effusion=0.4 --uncertain 0.2 --conspicuity 0.5 --format dicom"
    options += " --bits 16 --shortcut nodule=1 --scanners 2 --scanner-bias effusion=0.5 --seed 3"
    assert call("data", "phantom", tmp_path / "all", *options.split()) == 0
    assert f"12 images of 6 patients: {tmp_path / 'all' / 'samples.csv'}" in capsys.readouterr().out
    made = pd.read_csv(tmp_path / "all" / "samples.csv")
    expected = make_phantom(
        tmp_path / "same", patients=6, images_per_patient=2, size=48, task="multilabel", classes=["nodule", "effusion"],
        prevalence={"nodule": 0.5, "effusion": 0.4}, uncertain=0.2, conspicuity=0.5, format="dicom", bits=16,
        shortcut=Shortcut("nodule", 1), scanners=Scanners(2, "effusion", 0.5), seed=3,
    )  # fmt: skip
    assert_frame_equal(made, pd.read_csv(tmp_path / "same" / "samples.csv"))
    for ours, theirs in zip(made["image"], expected.samples["image"], strict=True):
        assert (tmp_path / "all" / ours).read_bytes() == Path(theirs).read_bytes()
    assert call("data", "phantom", tmp_path / "varied", "--patients", 9, "--images-per-patient", 3, "--varied") == 0
    assert pd.read_csv(tmp_path / "varied" / "samples.csv")["patient_id"].value_counts().nunique() > 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shortcut", "opacity"], "--shortcut opacity: write it as key=value."),
        (["--shortcut", "opacty=1"], "shortcut: 'opacty' is not one of the classes. Did you mean 'opacity'"),
        (["--shortcut", "opacity=high"], "shortcut: strength must be a number, from 0 to 1, got 'high'"),
        (["--scanner-bias", "opacity=1"], "--scanner-bias needs several devices: give --scanners 2 or more."),
        (["--prevalence", "nodule=0.1"], "prevalence and uncertain belong to task 'multilabel'"),
        (["--task", "multi"], "task must be 'multiclass' or 'multilabel', got 'multi'"),
    ],
)
def test_a_phantom_that_cannot_be_drawn(
    call: Call, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert call("data", "phantom", tmp_path / "x", "--size", 64, *arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_the_check_shows_labels_and_regions_of_a_recipe(
    call: Call, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    phantom = {"patients": 30, "size": 64, "task": "multilabel"}
    text = {"name": "x", "data": {"phantom": phantom}, "models": [{"name": "m", "source": "hf:vit"}]}
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(text | {"methods": ["control_center"], "metrics": ["sparseness"]}))
    assert call("data", "check", tmp_path / "x.yaml") == 0
    printed = capsys.readouterr().out
    cells = [[cell.strip() for cell in re.split("[│┃]", line)[1:-1]] for line in printed.splitlines()]
    ill = make_phantom(tmp_path / "same", patients=30, size=64, task="multilabel").samples["label_effusion"] == 1
    assert ["class", *(f"{split}: yes / no / ?" for split in ("train", "val", "test"))] in cells
    (counts,) = ([cell.split(" / ") for cell in row[1:]] for row in cells if row[:1] == ["effusion"])
    assert [sum(map(int, column)) for column in zip(*counts, strict=True)] == [ill.sum(), (~ill).sum(), 0]
    assert ["lesion", "effusion", "box, mask", "1", "30", str((~ill).sum())] in cells
    assert ["lung", "", "mask", "1", "30", "0"] in cells
