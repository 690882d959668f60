"""Metrics that compare all samples, metrics that change the model, and scores that know nothing of chunks."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from heatproof.errors import InputError, UnsupportedModelError
from heatproof.models import Classifier
from heatproof.models.checkpoint import load_checkpoint, save_checkpoint
from heatproof.models.sources import load_classifier
from heatproof.scoring import metrics, score
from heatproof.study import explaining
from heatproof.study.display import Bar, Display
from heatproof.study.loading import parse_recipe
from heatproof.study.runner import plan_study, run_study
from heatproof.study.store import Run
from support.studies import SEED, SIZE, VIT, write_data
from support.studies import recipe as tiny

CLASSES = ["left", "right"]
COMPARING = [
    {"metric": "sufficiency", "radius": 0.707},  # about what maps of noise differ by
    {"metric": "consistency", "grid": [2, 2]},
    {"metric": "focus", "samples": 2},
]
CHANGING = [{"metric": "efficient_mprt", "bins": 20}, "random_logit"]
LAYER_BY_LAYER = [
    {"metric": "model_parameter_randomization", "similarity": "ssim", "as": "mprt"},
    {"metric": "smooth_mprt", "samples": 2, "noise": 0.5, "order": "bottom_up"},
]
ALONE = ["sparseness", "pointing_game", {"metric": "faithfulness_estimate", "step": 128},
         {"metric": "max_sensitivity", "samples": 2}]  # fmt: skip
METHODS = [
    "saliency",
    "control_random",
    {"method": "integrated_gradients", "steps": 1},
    {"method": "lime", "samples": 8, "segmentation": "grid", "segments": 16},
]
IDS = [f"test{i:03d}" for i in range(10)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of two classes, and a network that calls half of the test images left."""
    folder = tmp_path_factory.mktemp("cohorts")
    write_data(folder)
    clf = load_classifier("hf:vit", classes=CLASSES, image_size=SIZE, channels=1, **VIT | {"num_hidden_layers": 1})
    with torch.no_grad():
        lead = clf(images_of(folder, clf)).diff(dim=1)
        clf.module.classifier.bias[0] += lead.sort(dim=0).values[4:6].mean()
    save_checkpoint(clf, folder / "given")
    return folder


@pytest.fixture(scope="module")
def run(folder: Path) -> Run:
    return study(folder)


def images_of(folder: Path, clf: Classifier, samples: list[str] = IDS) -> torch.Tensor:
    return clf.read([folder / "images" / f"{sample}.png" for sample in samples])


def study(folder: Path, out: str = "run", table: str = "samples.csv", progress: bool = False, **changes: Any) -> Run:
    plain = tiny(folder, methods=METHODS[:3], metrics=[*COMPARING, *CHANGING, "sparseness"], target="label")
    plain["models"] = [{"name": "vit", "source": str(folder / "given"), "batch_size": 16}]
    plain["data"]["samples"] = str(folder / table)
    return run_study(parse_recipe({**plain, **changes}), folder / out, progress=progress)


def values_of(run: Run) -> "pd.Series[float]":
    """The values by sample, target, method and metric, in a fixed order."""
    return run.scores.set_index(["sample_id", "target", "method", "metric"])["value"].sort_index()


def scored(run: Run, request: Any, method: Any, targets: torch.Tensor, samples: list[str] = IDS) -> torch.Tensor:
    """What the front door makes of the stored maps of all samples together."""
    clf = load_checkpoint(run.path / "models" / "vit")
    name, options = (method, {}) if isinstance(method, str) else (method["method"], dict(method))
    options.pop("method", None)
    given = {"metric": request} if isinstance(request, str) else dict(request)
    given.pop("as", None)
    maps = [run.map("vit", name, sample, CLASSES[int(t)]) for sample, t in zip(samples, targets, strict=True)]
    return score(clf, images_of(run.path.parent, clf, samples), torch.from_numpy(np.stack(maps)), targets=targets,
                 keys=samples, seed=SEED, explain=(name, options), **given)  # fmt: skip


def label_of(part: Any, kind: str) -> str:
    return part if isinstance(part, str) else str(part.get("as", part[kind]))


def found(run: Run, request: Any, method: Any, **where: str) -> "pd.Series[float]":
    wanted = {"metric": label_of(request, "metric"), "method": label_of(method, "method"), **where}
    rows = run.scores[(run.scores[list(wanted)] == pd.Series(wanted)).all(axis=1)]
    return rows.set_index("sample_id")["value"]


def labels_of(run: Run) -> torch.Tensor:
    labels = run.samples.set_index("sample_id").loc[IDS, "label"]
    return torch.tensor([CLASSES.index(label) for label in labels])


def assert_same(values: "pd.Series[float]", expected: torch.Tensor, samples: list[str] = IDS) -> None:
    np.testing.assert_allclose(values.loc[samples], expected, atol=1e-4)


@pytest.mark.parametrize("method", METHODS[:3], ids=lambda part: label_of(part, "method"))
@pytest.mark.parametrize("request_", [*COMPARING, *CHANGING], ids=lambda part: label_of(part, "metric"))
def test_a_score_of_the_study_is_that_of_the_front_door(run: Run, request_: Any, method: Any) -> None:
    values = found(run, request_, method)
    assert len(values) == len(IDS)
    assert_same(values, scored(run, request_, method, labels_of(run)))


def test_those_scores_say_something(run: Run) -> None:
    assert run.failures.empty
    for request in (*COMPARING, *CHANGING):
        values = pd.concat([found(run, request, method) for method in METHODS[:3]]).dropna()
        assert len(values) >= 10
        assert values.nunique() > 1


def test_layers_are_randomised_in_a_study_as_by_the_front_door(folder: Path) -> None:
    data = {**tiny(folder)["data"], "test_limit": 3}
    run = study(folder, "layers", data=data, chunk_size=2, methods=[METHODS[2]], metrics=LAYER_BY_LAYER)
    samples = run.cases("vit")
    targets = labels_of(run)[[IDS.index(sample) for sample in samples]]
    for request in LAYER_BY_LAYER:
        expected = scored(run, request, METHODS[2], targets, samples)
        assert expected.isfinite().all()
        assert len(expected.unique()) == 3
        assert_same(found(run, request, METHODS[2]), expected, samples)


def test_chunks_and_their_order_make_no_difference(folder: Path) -> None:
    changes = {"methods": [METHODS[0], METHODS[1], METHODS[3]], "metrics": [*COMPARING, "random_logit", *ALONE]}
    first = study(folder, "chunks10", chunk_size=10, **changes)
    expected = values_of(first)
    assert len(expected) == 10 * 3 * 8
    for size in (3, 4):
        assert_equal(values_of(study(folder, f"chunks{size}", chunk_size=size, **changes)), expected)
    table = pd.read_csv(folder / "samples.csv")
    table.sample(frac=1, random_state=1).to_csv(folder / "shuffled.csv", index=False)
    shuffled = study(folder, "shuffled", "shuffled.csv", **changes)
    assert shuffled.cases("vit") != first.cases("vit")
    assert_equal(values_of(shuffled), expected)


def assert_equal(values: "pd.Series[float]", expected: "pd.Series[float]") -> None:
    pd.testing.assert_series_equal(values, expected, rtol=1e-3, atol=1e-4)


def test_only_the_comparison_is_left_where_all_chunks_are_done(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes: dict[str, Any] = {"methods": METHODS[:2], "metrics": [*COMPARING[:2], "sparseness"]}
    first = study(folder, "resumed", **changes)
    gone = [first.path / "scores" / "vit" / "saliency" / "whole.parquet", first.path / "failures.parquet"]
    before = {path: path.stat().st_mtime_ns for path in first.path.rglob("*.*") if path.name != ".lock"}
    for path in gone:
        path.unlink()
    again = study(folder, "resumed", progress=True, **changes)
    assert (
        "88% of maps and scores" in capsys.readouterr().err
    )  # all but one of three chunks and a whole, of two methods
    assert_equal(values_of(again), values_of(first))
    touched = {path for path, time in before.items() if path.stat().st_mtime_ns != time}
    assert touched == {*gone, first.path / "predictions.parquet"}


def test_the_maps_of_a_class_are_a_cohort(folder: Path) -> None:
    run = study(folder, "classes", target=CLASSES, methods=METHODS[:1], metrics=[*COMPARING, "sparseness"])
    for place, name in enumerate(CLASSES):
        for request in COMPARING:
            values = found(run, request, METHODS[0], target=name)
            assert_same(values, scored(run, request, METHODS[0], torch.full((10,), place)))
            assert values.isna().all() == (request["metric"] == "focus")  # which lacks images of another class
    left, right = (found(run, COMPARING[1], METHODS[0], target=name) for name in CLASSES)
    assert not np.allclose(left, right, equal_nan=True)


def test_the_predicted_class_of_each_image_is_one_cohort(folder: Path) -> None:
    run = study(folder, "predicted", target="predicted", methods=METHODS[:1], metrics=COMPARING)
    predicted = run.predictions.set_index("sample_id").loc[IDS, "predicted"]
    targets = torch.tensor([CLASSES.index(name) for name in predicted])
    assert targets.sum() == 5
    for request in COMPARING:
        assert_same(found(run, request, METHODS[0]), scored(run, request, METHODS[0], targets))


def test_an_image_without_a_map_is_in_no_cohort(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail(monkeypatch, "explain_native", lambda given: "test005" in given["keys"], InputError("no good"))
    run = study(folder, "without", methods=METHODS[:1], metrics=COMPARING[:2])
    assert list(run.failures["sample_id"]) == ["test005"]
    rest = [sample for sample in IDS if sample != "test005"]
    targets = labels_of(run)[[IDS.index(sample) for sample in rest]]
    for request in COMPARING[:2]:
        values = found(run, request, METHODS[0])
        assert np.isnan(values["test005"])
        assert_same(values, scored(run, request, METHODS[0], targets, rest), rest)


def test_a_comparison_that_fails_is_one_named_row(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = lambda given: [m["metric"] for m in given["metrics"]] == ["consistency"]  # noqa: E731
    fail(monkeypatch, "score_many", named, InputError("no good"))
    run = study(folder, "failing", methods=METHODS[:1], metrics=COMPARING[:2])
    assert run.failures.to_dict("records") == [{
        "sample_id": "", "model": "vit", "method": "saliency", "metric": "consistency", "stage": "score",
        "error": "InputError", "message": "no good",
    }]  # fmt: skip
    assert found(run, "consistency", METHODS[0]).isna().all()
    assert found(run, "sufficiency", METHODS[0]).notna().any()


def test_a_method_that_the_model_cannot_serve_is_compared_with_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail(monkeypatch, "explain_native", lambda given: given["method"] == "saliency", UnsupportedModelError("no way"))
    run = study(folder, "unsupported", methods=METHODS[:2], metrics=COMPARING[:2])
    assert set(run.scores["method"]) == {"control_random"}
    assert len(run.scores) == 2 * 10
    assert run.complete
    assert list(run.failures["method"]) == ["saliency"]


def fail(monkeypatch: pytest.MonkeyPatch, name: str, where: Callable[[Any], bool], error: Exception) -> None:
    real = getattr(explaining, name)

    def stand_in(*args: Any, **given: Any) -> Any:
        if where(given):
            raise error
        return real(*args, **given)

    monkeypatch.setattr(explaining, name, stand_in)


def test_a_test_set_too_small_to_compare_has_no_scores(folder: Path) -> None:
    data = {**tiny(folder)["data"], "test_limit": 2}
    run = study(folder, "small", data=data, methods=METHODS[:1], metrics=[COMPARING[2], "sparseness"])
    assert len(run.cases("vit")) == 2
    assert found(run, COMPARING[2], METHODS[0]).isna().all()
    assert found(run, "sparseness", METHODS[0]).notna().all()


def test_the_bar_ends_at_what_was_planned(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left, advanced = [], []

    class Recorded(Bar):
        def advance(self, passes: int) -> None:
            advanced.append(passes)

    @contextmanager
    def bar(self: Display, text: str, total: int, done: int) -> Iterator[Bar]:
        left.append(total - done)
        yield Recorded()

    monkeypatch.setattr(Display, "bar", bar)
    study(folder, "bar", methods=METHODS[:1], metrics=[COMPARING[2], "sparseness"])
    assert left == [sum(advanced)] == [10 * (3 + 2 * 3)]  # a map and two mosaics of each image, forward and backward


def test_every_metric_is_allowed_in_a_study(folder: Path) -> None:
    """Each is tried on a stand-in before a study begins, which must not refuse what the study could do."""
    plain = tiny(folder, methods=["saliency"], metrics=list(metrics()))
    plain["models"] = [{"name": "vit", "source": str(folder / "given"), "batch_size": 16}]
    plain["metrics"] = [{"metric": "top_k_intersection", "k": 100} if name == "top_k_intersection" else name
                        for name in plain["metrics"]]  # fmt: skip
    plan = plan_study(parse_recipe(plain), progress=False)["vit"]
    focus = plan.comparing["saliency"]
    assert focus == 4 * 3 + 1  # four mosaics, explained by a forward and a backward pass, and the image itself
    assert plan.passes == 18 + 10 * (focus + plan.explaining["saliency"])
