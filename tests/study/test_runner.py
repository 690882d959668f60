"""A study from recipe to tables, and what happens to it when something is wrong."""

import errno
import getpass
import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from heatproof.errors import InputError, StorageError
from heatproof.explanation import explain
from heatproof.models import Classifier
from heatproof.models.checkpoint import load_checkpoint, save_checkpoint
from heatproof.probing import bf16_supported
from heatproof.scoring import score
from heatproof.study import explaining, preparation
from heatproof.study.loading import parse_recipe
from heatproof.study.runner import plan_study, run_study
from heatproof.study.store import Run
from support.nets import TinyCNN
from support.studies import SEED, write_data
from support.studies import recipe as tiny


def study(folder: Path, out: str = "run", **changes: Any) -> Run:
    plain = tiny(folder, **changes)
    return run_study(parse_recipe(plain, folder=folder), folder / out, progress=False)


def quick(folder: Path, **changes: Any) -> dict[str, Any]:
    """Changes that leave one untrained model and two cheap methods and metrics."""
    model = tiny(folder)["models"][0] | {"training": None}
    parts = {"methods": ["attention", "control_random"], "metrics": ["sparseness", "pointing_game"]}
    return {"models": [model], **parts, **changes}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("finished")
    write_data(folder)
    return study(folder)


def files_of(run: Run) -> dict[str, tuple[int, int]]:
    """Every file of the lasting folders, with its inode and time."""
    kinds = ("inputs", "maps", "scores", "models", "predictions")
    found = [path for kind in kinds for path in (run.path / kind).rglob("*") if path.is_file()]
    return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns) for path in found}


def clf_of(run: Run, model: str) -> Classifier:
    return load_checkpoint(run.path / "models" / model)


def images_of(run: Run, clf: Classifier, samples: list[str]) -> torch.Tensor:
    return clf.read([run.path.parent / "images" / f"{sample}.png" for sample in samples])


def test_predictions_are_those_of_the_saved_model(finished: Run) -> None:
    clf = clf_of(finished, "vit")
    table = finished.predictions.query("model == 'vit'").set_index("sample_id")
    assert table["split"].value_counts().to_dict() == {"test": 10, "val": 8}
    with torch.no_grad():
        logits = clf(images_of(finished, clf, list(table.index)))
    np.testing.assert_allclose(table[["logit_left", "logit_right"]], logits, atol=1e-6)
    np.testing.assert_allclose(table[["p_left", "p_right"]], logits.softmax(1), atol=1e-6)
    assert list(table["predicted"]) == [("left", "right")[k] for k in logits.argmax(1)]
    correct = (table["predicted"] == table["label"])[table["split"] == "test"]
    assert finished.performance("vit")["accuracy"] == pytest.approx(correct.mean())


def test_each_map_is_what_explain_gives_for_the_image_alone(finished: Run) -> None:
    for model, method, options in (("vit", "attention", {}), ("densenet", "lrp_epsilon", {}),
                                   ("vit", "lime", {"samples": 12, "segmentation": "grid", "segments": 16})):  # fmt: skip
        clf = clf_of(finished, model)
        for sample in ("test000", "test007"):
            image = images_of(finished, clf, [sample])
            target = clf(image).argmax(1)
            alone = explain(clf, image, target, method=method, keys=[sample], seed=SEED, **options)[0]
            found = finished.map(model, method, sample)
            assert found is not None
            rounding = 1e-7 if method == "lime" else 0  # of probabilities in float32, whatever the map's size
            np.testing.assert_allclose(found, alone.detach(), atol=1e-5 * float(alone.abs().max()) + rounding)
            assert finished.target(model, method, sample) == ("left", "right")[int(target)]


def test_bf16_is_for_changed_images_and_leaves_gradients_alone(finished: Run, tmp_path: Path) -> None:
    if not bf16_supported():
        pytest.skip("this CPU has no bfloat16 arithmetic")
    folder = finished.path.parent
    checkpoint = [{"name": "vit", "source": str(finished.path / "models" / "vit"), "batch_size": 16}]
    plain = tiny(folder, models=checkpoint)
    exact, rounded = (
        run_study(parse_recipe({**plain, "precision": name}, folder=folder), tmp_path / name, progress=False)
        for name in ("fp32", "bf16")
    )
    assert rounded.recipe.precision == "bf16"
    for method, same in (("lrp_epsilon", True), ("attention", True), ("lime", False)):
        pair = [torch.from_numpy(run.map("vit", method, "test006")) for run in (exact, rounded)]
        assert torch.equal(*pair) == same
        torch.testing.assert_close(*pair, atol=0.1 * float(pair[0].abs().max()), rtol=0)
    both = exact.scores.merge(rounded.scores, on=["sample_id", "model", "method", "metric"], suffixes=("", "_rounded"))
    gradients = both[(both["method"] == "lrp_epsilon")].set_index("metric")
    assert (gradients.loc["max_sensitivity", "value"] == gradients.loc["max_sensitivity", "value_rounded"]).all()
    estimates = both[both["metric"] == "faithfulness_estimate"].dropna(subset="value")
    assert (estimates["value"] != estimates["value_rounded"]).any()


def test_a_precision_that_the_machine_lacks_is_told_before_anything_long(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    write_data(tmp_path)
    monkeypatch.setattr("heatproof.probing.precision.bf16_supported", lambda device: False)
    with pytest.raises(InputError, match=r"precision='bf16' needs bfloat16.* Use 'fp32'"):
        study(tmp_path, **quick(tmp_path, precision="bf16"))
    assert not (tmp_path / "run" / "study.yaml").exists()
    with pytest.raises(InputError, match="precision"):
        study(tmp_path, **quick(tmp_path, precision="fp16"))


def test_each_score_is_that_of_the_stored_map(finished: Run) -> None:
    clf, sample = clf_of(finished, "vit"), "test006"
    image = images_of(finished, clf, [sample])
    stored = torch.from_numpy(finished.map("vit", "lime", sample))[None]
    mask = np.asarray(Image.open(finished.path.parent / "masks" / f"{sample}.png")) > 0
    given = {"targets": clf(image).argmax(1), "keys": [sample], "seed": SEED, "roi": torch.from_numpy(mask)[None],
             "explain": ("lime", {"samples": 12, "segmentation": "grid", "segments": 16})}  # fmt: skip
    rows = finished.scores.query("model == 'vit' and method == 'lime' and sample_id == @sample").set_index("metric")
    assert len(rows) == 5
    for label, metric, options in (
        ("faithfulness_estimate", "faithfulness_estimate", {"step": 128}),
        ("max_sensitivity", "max_sensitivity", {"samples": 2}),
        ("pointing_game", "pointing_game", {}),
        ("iou_50", "iou", {"top": 50}),
        ("sparseness", "sparseness", {}),
    ):
        alone = score(clf, image, stored, metric=metric, **given, **options).item()
        assert rows.loc[label, "value"] == pytest.approx(alone, abs=1e-5)
    assert set(rows["patient_id"]) == {"test-p3"}
    assert set(rows["target"]) == {finished.target("vit", "lime", sample)}


def test_localization_is_undefined_where_nobody_annotated(finished: Run) -> None:
    local = finished.scores["metric"].isin(["pointing_game", "iou_50"])
    bare = finished.scores["sample_id"] == "test000"
    assert finished.scores[local & bare]["value"].isna().all()
    assert finished.scores[~(local & bare)]["value"].notna().all()
    assert finished.roi("vit", "test000") is None


def test_a_method_that_a_model_cannot_serve_is_one_named_row(finished: Run) -> None:
    rows = finished.failures
    assert list(rows[["model", "method", "stage", "error", "sample_id"]].itertuples(index=False, name=None)) == [
        ("densenet", "attention", "explain", "UnsupportedModelError", "")
    ]
    counts = finished.scores.groupby(["model", "method"]).size()
    assert "attention" not in counts["densenet"]
    assert set(counts) == {50}
    assert finished.map("densenet", "attention", "test001") is None


def test_the_display_image_and_region_are_those_of_the_files(finished: Run) -> None:
    pixels = np.asarray(Image.open(finished.path.parent / "images" / "test003.png"))
    assert np.array_equal(finished.image("densenet", "test003"), pixels)
    mask = np.asarray(Image.open(finished.path.parent / "masks" / "test003.png")) > 0
    assert np.array_equal(finished.roi("densenet", "test003"), mask)


def test_nothing_names_the_machine_or_its_user(finished: Run) -> None:
    texts = [path.read_text() for path in finished.path.rglob("*.json")]
    texts += [finished.samples.to_csv(), finished.failures.to_csv(), finished.predictions.to_csv()]
    for text in texts:
        assert str(finished.path.parent) not in text
        assert socket.gethostname() not in text
        assert getpass.getuser() not in text.replace("root/", "")
    assert finished.environment["threads"] == 1
    assert finished.environment["packages"]["torch"] == torch.__version__


def test_a_second_call_computes_nothing(finished: Run) -> None:
    before, scores = files_of(finished), finished.scores
    again = study(finished.path.parent)
    assert files_of(again) == before
    pd.testing.assert_frame_equal(again.scores, scores)


def test_only_what_is_missing_is_computed_again_and_is_the_same(finished: Run, tmp_path: Path) -> None:
    shutil.copytree(finished.path.parent, tmp_path / "s")
    copy = Run(tmp_path / "s" / "run")
    settled = json.loads(json.dumps(copy.recipe.to_dict()))
    settled["data"]["samples"] = str(finished.path.parent / "samples.csv")
    gone = ["maps/vit/lime/00001.npz", "scores/vit/lime/00001.parquet", "scores/densenet/lrp_epsilon/00000.parquet",
            "failures.parquet"]  # fmt: skip
    for name in gone:
        (copy.path / name).unlink()
    before = files_of(copy)
    again = run_study(parse_recipe(settled), copy.path, progress=False)
    after = files_of(again)
    assert {path: after[path] for path in before} == before
    assert {str(Path(path).relative_to(copy.path)) for path in set(after) - set(before)} == set(gone[:3])
    pd.testing.assert_frame_equal(again.scores, finished.scores)
    assert np.array_equal(again.map("vit", "lime", "test005"), finished.map("vit", "lime", "test005"))


def test_what_the_machine_decided_is_kept_and_another_recipe_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_data(tmp_path)
    monkeypatch.setattr(preparation, "usable_cores", lambda: 1)
    open_ = quick(tmp_path, threads=None, device="auto")
    open_["models"] = [open_["models"][0] | {"batch_size": None}]
    run = study(tmp_path, **open_)
    assert run.recipe.threads == 1
    assert run.recipe.models[0].batch_size
    assert run.recipe.device in ("cpu", "cuda:0")
    monkeypatch.setattr(preparation, "usable_cores", lambda: 2)
    monkeypatch.setattr(preparation, "measure_batch_size", lambda *_, **__: 3)
    assert study(tmp_path, **open_).recipe.to_dict() == run.recipe.to_dict()
    with pytest.raises(InputError, match=r"another recipe:\n  seed: there 3, here 4\nChoose another folder"):
        study(tmp_path, **(open_ | {"seed": 4}))
    other = open_ | {"methods": ["attention", {"method": "control_random", "as": "noise"}]}
    with pytest.raises(InputError, match=r"methods\[1\]\.as: there 'control_random', here 'noise'"):
        study(tmp_path, **other)
    with pytest.raises(InputError, match=r"threads: there \d+, here 77"):
        study(tmp_path, **(open_ | {"threads": 77}))


def test_data_that_changed_meanwhile_are_refused(tmp_path: Path) -> None:
    table = write_data(tmp_path)
    study(tmp_path, **quick(tmp_path))
    table.assign(label=table["label"].map({"left": "right", "right": "left"})).to_csv(tmp_path / "samples.csv")
    with pytest.raises(InputError, match="was made from other data"):
        study(tmp_path, **quick(tmp_path))


def test_bad_files_among_good_ones_are_named_and_nothing_else_is_lost(tmp_path: Path) -> None:
    write_data(tmp_path)
    truncated = (tmp_path / "images" / "test004.png").read_bytes()
    (tmp_path / "images" / "test004.png").write_bytes(truncated[: len(truncated) // 2])
    (tmp_path / "images" / "train002.png").unlink()
    (tmp_path / "images" / "val001.png").write_text("no image")
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(tmp_path / "masks" / "test002.png")
    (tmp_path / "masks" / "test003.png").unlink()
    changes = quick(tmp_path, models=[tiny(tmp_path)["models"][0] | {"training": {"epochs": 1}}])
    run = study(tmp_path, **changes)
    rows = run.failures.set_index("sample_id")["stage"].to_dict()
    images, masks = ("test004", "train002", "val001"), ("test002", "test003")
    assert rows == dict.fromkeys(images, "image") | dict.fromkeys(masks, "mask")
    assert not run.failures["message"].str.contains(str(tmp_path)).any()
    assert len(run.samples) == 42 - 3
    assert run.cases("vit") == [f"test{i:03d}" for i in range(10) if i != 4]
    sparseness = run.scores.query("metric == 'sparseness'")
    assert len(sparseness) == 2 * 9
    assert sparseness["value"].notna().all()
    hits = run.scores.query("metric == 'pointing_game'").set_index("sample_id")["value"]
    assert set(hits.index[hits.isna()]) == {"test000", "test002", "test003"}
    pd.testing.assert_frame_equal(study(tmp_path, **changes).scores, run.scores)


def test_an_image_that_goes_bad_during_the_study_is_named(tmp_path: Path) -> None:
    write_data(tmp_path)
    run = study(tmp_path, **quick(tmp_path))
    shutil.rmtree(run.path / "scores")
    shutil.rmtree(run.path / "maps")
    shutil.rmtree(run.path / "inputs")
    (tmp_path / "images" / "test001.png").unlink()
    run = study(tmp_path, **quick(tmp_path))
    assert list(run.failures["sample_id"]) == ["test001"]
    assert list(run.failures["stage"]) == ["inputs"]
    assert len(run.scores.query("metric == 'sparseness'")) == 2 * 9


def test_what_was_noticed_in_the_data_is_kept_with_the_run(tmp_path: Path) -> None:
    write_data(tmp_path)
    Image.fromarray(np.zeros((32, 32), np.uint8)).save(tmp_path / "masks" / "test001.png")
    table = pd.read_csv(tmp_path / "samples.csv").drop(columns="patient_id")
    table.to_csv(tmp_path / "samples.csv", index=False)
    notes = " ".join(study(tmp_path, **quick(tmp_path)).data["notes"])
    assert "No patient_id: every image counts as a patient of its own." in notes
    assert "test001" in notes  # its mask is empty


def failing(real: Callable[..., Any], sample: str, error: Exception, **only: Any) -> Callable[..., Any]:
    """`real`, which raises where the keys hold `sample` and the call has the keywords `only`."""

    def stand_in(*args: Any, **keywords: Any) -> Any:
        named = [m["metric"] for m in keywords["metrics"]] if "metrics" in keywords else keywords.get("method")
        if sample in keywords["keys"] and all(value == named or value in named for value in only.values()):
            raise error
        return real(*args, **keywords)

    return stand_in


def test_an_image_that_a_method_cannot_explain_costs_its_map_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_data(tmp_path)
    broken = failing(explaining.explain_native, "test005", InputError("no good"), method="attention")
    monkeypatch.setattr(explaining, "explain_native", broken)
    run = study(tmp_path, **quick(tmp_path))
    assert run.failures.to_dict("records") == [{
        "sample_id": "test005", "model": "vit", "method": "attention", "metric": "", "stage": "explain",
        "error": "InputError", "message": "no good",
    }]  # fmt: skip
    scores = run.scores.query("metric == 'sparseness'").set_index(["method", "sample_id"])["value"]
    assert list(scores.index[scores.isna()]) == [("attention", "test005")]
    assert len(scores) == 20
    assert run.map("vit", "attention", "test005") is None
    assert run.map("vit", "attention", "test004") is not None


def test_a_score_that_fails_costs_itself_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_data(tmp_path)
    broken = failing(explaining.score_many, "test005", InputError("no good"), metric="sparseness")
    monkeypatch.setattr(explaining, "score_many", broken)
    run = study(tmp_path, **quick(tmp_path, metrics=["sparseness", {"metric": "faithfulness_estimate", "step": 256}]))
    found = run.failures.drop(columns=["error", "message", "model"]).to_dict("records")
    assert found == [
        {"sample_id": "test005", "method": method, "metric": "sparseness", "stage": "score"}
        for method in ("attention", "control_random")
    ]
    undefined = run.scores[run.scores["value"].isna()]
    assert set(undefined["sample_id"]) == {"test005"}
    assert set(undefined["metric"]) == {"sparseness"}
    assert len(run.scores) == 40


def test_a_mistake_in_the_program_is_not_swallowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_data(tmp_path)
    monkeypatch.setattr(
        explaining, "explain_native", failing(explaining.explain_native, "test005", ZeroDivisionError())
    )
    with pytest.raises(ZeroDivisionError):
        study(tmp_path, **quick(tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": [{"method": "lime", "segments": "patches"}]}, r"methods\[0\]: lime: segments must be a whole"),
        ({"methods": [{"method": "gradcam", "layer": "nowhere"}]}, r"methods\[0\]: gradcam: .*nowhere"),
        ({"metrics": ["sparseness", {"metric": "iou", "shape": "disc"}]}, r"metrics\[1\]: iou: shape must be"),
        ({"metrics": [{"metric": "faithfulness_estimate", "baseline": "grey"}]}, r"metrics\[0\]: .*'?grey"),
    ],
)
def test_a_wrong_value_of_an_option_is_found_before_the_work(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    write_data(tmp_path)
    with pytest.raises(InputError, match=message):
        study(tmp_path, **quick(tmp_path, **changes))
    assert not (tmp_path / "run" / "study.yaml").exists()


def test_outputs_that_differ_from_the_classes_stop_the_study_before_it_starts(tmp_path: Path) -> None:
    write_data(tmp_path)
    wrong = tiny(tmp_path)["models"][0] | {"training": None, "config": {}, "image_size": 32}
    clf = Classifier(
        TinyCNN(3, 1).eval(), ["left", "right", "middle"], image_size=32, channels=1, mean=[0.5], std=[0.5]
    )
    save_checkpoint(clf, tmp_path / "three")
    with pytest.raises(InputError, match="models: vit: "):
        study(tmp_path, **quick(tmp_path, models=[wrong | {"source": "./three"}]))
    assert not (tmp_path / "run" / "study.yaml").exists()


def test_a_checkpoint_is_used_as_it_comes(tmp_path: Path, finished: Run) -> None:
    write_data(tmp_path)
    shutil.copytree(finished.path / "models" / "vit", tmp_path / "given")
    (tmp_path / "given" / "performance.json").unlink()
    model = {"name": "again", "source": "./given", "batch_size": 16}
    run = study(tmp_path, **quick(tmp_path, models=[model]))
    drop = ["model", "sample_id"]
    theirs = finished.predictions.query("model == 'vit'").drop(columns=drop)
    pd.testing.assert_frame_equal(run.predictions.drop(columns=drop), theirs)
    assert run.history("again").empty


@pytest.mark.parametrize(("target", "expected"), [("right", "right"), ("label", None)])
def test_the_target_of_the_recipe_is_what_is_explained(tmp_path: Path, target: str, expected: str | None) -> None:
    write_data(tmp_path)
    run = study(tmp_path, **quick(tmp_path, target=target))
    labels = run.samples.set_index("sample_id")["label"]
    for row in run.scores.itertuples():
        assert row.target == (expected or labels[row.sample_id])
    assert run.target("vit", "attention", "test002") == (expected or labels["test002"])


@pytest.mark.parametrize("writes", [1, 4, 9, 15])
def test_a_full_disk_is_named_and_nothing_finished_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    write_data(tmp_path)
    expected = study(tmp_path, "undisturbed", **quick(tmp_path))
    left, replace = iter(range(writes)), os.replace

    def until_full(old: Path, new: Path) -> None:
        if next(left, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device", str(old))
        replace(old, new)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", until_full)
        with pytest.raises(
            StorageError, match=r"full: cannot be written \(No space .* make room, then the same command"
        ):
            study(tmp_path, "full", **quick(tmp_path))
    before = files_of(Run(tmp_path / "full")) if (tmp_path / "full" / "study.yaml").is_file() else {}
    run = study(tmp_path, "full", **quick(tmp_path))
    pd.testing.assert_frame_equal(run.scores, expected.scores)
    assert {path: state for path, state in files_of(run).items() if path in before} == before


def test_a_dry_run_counts_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_data(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    plans = plan_study(parse_recipe(tiny(tmp_path)), progress=True)
    assert sorted(tmp_path.rglob("*")) == before
    assert list(plans) == ["vit", "densenet"]
    assert plans["vit"].explaining["attention"] > plans["densenet"].explaining["attention"] == 0
    shown = capsys.readouterr().err
    assert f"vit: about {plans['vit'].passes:,} forward passes" in shown
    assert "2 models × 4 methods × 5 metrics" in shown


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    write_data(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("precious")
    with pytest.raises(InputError, match=r"no run folder and not empty \(thesis.tex"):
        study(tmp_path, **quick(tmp_path))


def test_the_thread_count_is_restored(tmp_path: Path) -> None:
    write_data(tmp_path)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    study(tmp_path, **quick(tmp_path))
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)
