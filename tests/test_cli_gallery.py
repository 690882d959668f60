"""`heatproof gallery` as a user runs it, in this process."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import heatproof as hp
from heatproof.cli import main
from heatproof.models.checkpoint import save_checkpoint
from heatproof.models.sources import load_classifier
from support.studies import VIT, write_data

Call = Callable[..., int]
COMMON = ["--device", "cpu", "--methods", "gradcam,control_random"]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Call:
    """Run `heatproof gallery` with arguments; its exit code."""

    def run(*arguments: str | Path) -> int:
        monkeypatch.setattr(sys, "argv", ["heatproof", "gallery", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        return int(caught.value.code or 0)

    return run


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny images, a region table and two checkpoints of the same name."""
    folder = tmp_path_factory.mktemp("cli")
    table = write_data(folder, (2, 2, 3))
    masks = table[table["mask"].notna()]
    regions = pd.DataFrame({"sample_id": masks["sample_id"], "region": "bright", "kind": "mask", "data": masks["mask"]})
    regions.to_csv(folder / "regions.csv", index=False)
    for where, seed in (("a", 1), ("b", 2)):
        clf = load_classifier("hf:vit", classes=["left", "right"], image_size=32, channels=1, seed=seed, **VIT)
        save_checkpoint(clf, folder / where / "vit")
    return folder


def stored(out: Path) -> dict:
    return json.loads((out / "gallery.json").read_text())


def test_help_names_the_options_and_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom heatproof.cli import main\n"
        "try:\n    main()\nfinally:\n    print('heavy:', sorted({'torch', 'numpy', 'pandas', 'PIL'} & set(sys.modules)))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, "gallery", "--help"], capture_output=True, text=True, check=False, timeout=60
    )
    assert result.returncode == 0, result.stderr
    assert "Usage: heatproof gallery" in result.stdout
    assert "Exit codes: 0 done" in result.stdout
    assert "heavy: []" in result.stdout


def test_one_call_draws_what_the_library_draws(
    call: Call, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, images = tmp_path / "out", sorted((place / "images").glob("test*.png"))
    arguments = ["--model", place / "a" / "vit", "--regions", place / "regions.csv", "--out", out, "--seed", "4"]
    assert call(*images, *arguments, *COMMON) == 0
    clf = load_classifier(place / "a" / "vit")
    sheet = hp.gallery(
        {"vit": clf},
        images,
        tmp_path / "same",
        methods=["gradcam", "control_random"],
        regions=place / "regions.csv",
        seed=4,
    )
    for kind in ("png", "html", "json"):
        assert (out / f"gallery.{kind}").read_bytes() == (tmp_path / "same" / f"gallery.{kind}").read_bytes()
    assert [film.image for film in sheet.films] == ["test000", "test001", "test002"]
    assert [film.region is None for film in sheet.films] == [True, False, False]
    assert capsys.readouterr().err == f"6 maps by 2 methods: {out / 'gallery.html'}\n"


def test_two_models_of_one_name_are_told_apart_and_a_folder_is_read(call: Call, place: Path, tmp_path: Path) -> None:
    models = [place / "a" / "vit", place / "b" / "vit"]
    few = place / "images"
    assert call(few, "--model", models[0], "--model", models[1], "--out", tmp_path / "out", *COMMON) == 0
    content = stored(tmp_path / "out")
    assert [model["name"] for model in content["models"]] == list(map(str, models))
    assert len(content["columns"]) == 14
    assert call(few, "--model", models[0], "--model", models[0], "--out", tmp_path / "twice", *COMMON) == 2


def test_methods_with_options_and_families(call: Call, place: Path, tmp_path: Path) -> None:
    image, model = place / "images" / "test000.png", ["--model", place / "a" / "vit", "--device", "cpu"]
    methods = ["--method", "lime:samples=11,segments=3,gradcam", "-m", "attention", "--family", "control"]
    assert call(image, *model, "--out", tmp_path / "out", *methods, "--target", "right", "--against", "left") == 0
    content = stored(tmp_path / "out")
    controls = [name for name, entry in hp.methods().items() if entry.family == "control"]
    assert {row["method"] for row in content["rows"]} == {"lime", "gradcam", "attention", *controls}
    options = {row["method"]: row["options"] for row in content["rows"]}
    assert (options["lime"]["samples"], options["lime"]["segments"]) == (11, 3)
    assert [(column["target"], column["against"]) for column in content["columns"]] == [("right", "left")]


def test_quick_native_side_and_anonymous_reach_the_sheet(call: Call, place: Path, tmp_path: Path) -> None:
    more = [
        "-m",
        "attention,rise",
        "--quick",
        "--resolution",
        "native",
        "--side",
        "16",
        "--anonymous",
        "--batch-size",
        "1",
    ]
    image = place / "images" / "test001.png"
    assert call(image, "--model", place / "a" / "vit", "--out", tmp_path / "out", "--device", "cpu", *more) == 0
    content = stored(tmp_path / "out")
    assert [content[key] for key in ("resolution", "side", "batch_size")] == ["native", 16, 1]
    assert content["columns"][0]["image"] == "image 1"
    assert {row["method"]: row["options"].get("samples") for row in content["rows"]} == {"attention": None, "rise": 100}


def test_what_cannot_be_read_is_named_and_the_rest_is_drawn(
    call: Call, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.png").write_bytes(b"nothing")
    image, model = place / "images" / "test000.png", ["--model", place / "a" / "vit"]
    assert call(image, tmp_path / "bad.png", *model, "--out", tmp_path / "out", *COMMON) == 1
    shown = capsys.readouterr().err
    assert shown.startswith(f"bad: {tmp_path / 'bad.png'}: unknown format")
    assert "2 maps by 2 methods" in shown
    assert len(stored(tmp_path / "out")["columns"]) == 1


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["--methods", "gradcm"], "Unknown explainer 'gradcm'. Did you mean 'gradcam'"),
        (["--methods", "samples=3,lime"], "--method samples=3: an option stands after its method"),
        (["--methods", "lime:sampels=3"], "lime has no option 'sampels'. Did you mean 'samples'"),
        (["--family", "cams"], "--family: unknown 'cams'. Did you mean 'cam'"),
        (["--target", "up"], "target: the model has no class 'up'"),
        (["--resolution", "full"], "resolution must be 'input' or 'native'"),
        (["--model", "nowhere"], "Unknown model source 'nowhere'"),
        (["--regions", "nowhere.csv"], "nowhere.csv: no such table"),
        (["--out", "{place}/images"], "holds other things (test000.png, test001.png, test002.png ...)"),
    ],
)
def test_bad_input_ends_with_2_and_says_what_to_do(
    call: Call, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changed: list[str], message: str
) -> None:
    arguments = {"--model": str(place / "a" / "vit"), "--out": str(tmp_path / "out"), "--methods": "gradcam"}
    arguments |= {changed[0]: changed[1].format(place=place)}
    flat = [part for pair in arguments.items() for part in pair]
    assert call(place / "images" / "test000.png", *flat, "--device", "cpu") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_no_images_is_bad_input(call: Call, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert call(tmp_path / "empty", "--model", place / "a" / "vit", "--out", tmp_path / "out", *COMMON) == 2
    assert "no files in there" in capsys.readouterr().err
    assert call("--model", place / "a" / "vit", "--out", tmp_path / "out") == 2


def test_the_maps_on_the_sheet_are_those_of_the_command_explain(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, model = place / "images" / "test002.png", place / "a" / "vit"
    arguments = [str(image), "--model", str(model), "--out", str(tmp_path / "maps"), "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["heatproof", "explain", *arguments, "--method", "control_random"])
    with pytest.raises(SystemExit):
        main()
    with np.load(tmp_path / "maps" / "test002.npz") as file:
        expected = file["map"]
    sheet = hp.gallery(load_classifier(model), [image], tmp_path / "out", methods=["control_random"])
    np.testing.assert_array_equal(sheet.cells[0][0].map, expected)


def test_a_method_is_checked_before_a_model_is_loaded_and_a_region_before_the_maps(
    call: Call, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image, out = place / "images" / "test001.png", ["--out", tmp_path / "out", "--device", "cpu"]
    assert call(image, "--model", "nowhere", "--method", "lime:sampels=3", *out) == 2
    assert "lime has no option 'sampels'" in capsys.readouterr().err
    regions = ["--regions", place / "regions.csv", "--region", "brigth"]
    assert call(image, "--model", place / "a" / "vit", "-m", "gradcam", *regions, *out) == 2
    assert "has no region 'brigth'. Did you mean 'bright'" in capsys.readouterr().err
