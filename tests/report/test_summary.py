"""Sentences never say more than the intervals."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from heatproof.report import summary, tables
from heatproof.report.cases import on_test_images
from heatproof.statistics import patient_bootstrap
from heatproof.study.store import Run
from support.runs import LabelRunFolder, RunFolder


@pytest.fixture(scope="module")
def comparisons(run: Run) -> pd.DataFrame:
    return tables.comparisons(run)


@pytest.fixture(scope="module")
def found(run: Run, comparisons: pd.DataFrame) -> list[summary.Finding]:
    return summary.findings(run, tables.score_table(run), comparisons, tables.pair_table(run))


def test_a_model_beats_the_constant_answer_only_where_the_interval_says_so(run: Run) -> None:
    said = []
    for model, sentence in zip(run.models, summary.model_sentences(run), strict=True):
        rows = on_test_images(run, model)
        right = (rows["predicted"] == rows["label"]).astype(float)
        gain = patient_bootstrap(right - (rows["label"] == "normal"), rows["patient_id"])
        said.append(gain.low > 0)
        assert ("That is more than always answering" in sentence) == (gain.low > 0)
        assert ("is not shown" in sentence) == (gain.low <= 0 <= gain.high)
        interval = patient_bootstrap(right, rows["patient_id"])
        assert f"classifies {int(right.sum())} of 30 test images (20 patients)" in sentence
        assert f"accuracy {right.mean():.2f}, 95 % interval {interval.low:.2f} to {interval.high:.2f}" in sentence
    assert said == [True, False]  # the fixture's models: one with skill, one almost without


class Wrong(RunFolder):
    """A model that calls nearly everything by a class of which there are no images in the test split."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.labels = [self.classes[i % 2] for i in range(self.cases)]

    def _predictions(self, model: str) -> pd.DataFrame:
        return super()._predictions(model).assign(predicted=["nodule"] * (self.cases - 1) + [self.labels[-1]])


def test_a_model_worse_than_the_constant_answer_is_called_so(tmp_path: Path) -> None:
    [sentence] = summary.model_sentences(Run(Wrong(tmp_path / "run", models=["vit"]).write()))
    assert "classifies 1 of 30" in sentence
    assert "That is less than always answering “normal” (0.50)" in sentence


def test_few_patients_prove_nothing_of_a_model(tmp_path: Path) -> None:
    class Perfect(RunFolder):
        def _predictions(self, model: str) -> pd.DataFrame:
            found = super()._predictions(model)
            return found.assign(predicted=found["label"])

    options = {"models": ["vit"], "methods": ["gradcam"], "metrics": ["sparseness"]}
    [few] = summary.model_sentences(Run(Perfect(tmp_path / "few", cases=12, **options).write()))
    [enough] = summary.model_sentences(Run(Perfect(tmp_path / "enough", cases=15, **options).write()))
    assert "(8 patients)" in few
    assert "is not shown" in few
    assert "(10 patients)" in enough
    assert "That is more than always answering" in enough


class Labels(LabelRunFolder):
    """Several labels an image; the interval of the mean AUROC as given."""

    bounds: tuple[float | None, float | None] = (None, None)
    area: float | None = 0.6

    def _json(self, name: str, content: Any) -> None:
        if name.endswith("performance.json"):
            low, high = self.bounds
            interval = {**content["intervals"]["auroc_macro"], "low": low, "high": high}
            content = {**content, "auroc_macro": self.area, "intervals": {"auroc_macro": interval}}
        super()._json(name, content)


@pytest.mark.parametrize(
    ("area", "bounds", "said"),
    [
        (0.6, (0.51, 0.7), "mean AUROC of 3 labels 0.60, 95 % interval 0.51 to 0.70. That is more than chance (0.50)."),
        (0.6, (0.5, 0.7), "That it is more than chance (0.50) is not shown."),
        (0.6, (None, None), "no interval. That it is more than chance (0.50) is not shown."),
        (0.4, (0.3, 0.49), "That is less than chance (0.50)."),
        (None, (None, None), "its mean AUROC is undefined."),
    ],
)
def test_a_model_of_several_labels_is_compared_with_chance_by_its_interval(
    area: float | None, bounds: tuple[float | None, float | None], said: str, tmp_path: Path
) -> None:
    folder = Labels(tmp_path / "run", models=["vit"], cases=15, methods=["gradcam"], metrics=["sparseness"])
    folder.bounds, folder.area = bounds, area
    [sentence] = summary.model_sentences(Run(folder.write()))
    assert sentence.startswith("vit names labels of 15 test images (10 patients)")
    assert sentence.endswith(said)


def test_findings_follow_the_verdicts(found: list[summary.Finding], comparisons: pd.DataFrame) -> None:
    assert len(found) == 2 * 4
    for finding in found:
        rows = comparisons[(comparisons["model"] == finding.model) & (comparisons["metric"] == finding.metric)]
        by_method = rows.groupby("method")["verdict"].apply(set)
        assert set(finding.parts["better"]) == {m for m, v in by_method.items() if v == {"better"}}
        assert set(finding.parts["worse"]) == {m for m, v in by_method.items() if "worse" in v}
        named = [name for names in finding.parts.values() for name in names]
        assert sorted(named) == sorted(by_method.index)
    assert any(finding.parts["better"] for finding in found)


def test_what_is_no_clear_gain_over_every_control_is_not_called_better() -> None:
    verdicts = {"a": ("better", "open"), "b": ("better", "few"), "c": ("better", "worse"), "d": ("none", "none")}
    found = {method: summary._part(set(said)) for method, said in verdicts.items()}
    assert found == {"a": "open", "b": "open", "c": "worse", "d": "none"}


@dataclass
class Crafted(RunFolder):
    """Scores around a level given for each method, in every metric; no other method has a score."""

    levels: dict[str, float] = field(default_factory=dict)

    def _values(self, method: str, metric: str, n: int) -> np.ndarray:
        return self.levels.get(method, np.nan) + self.random.normal(0, 0.05, n)


def sentence(path: Path, levels: dict[str, float], **options: Any) -> tuple[str, dict[str, tuple[str, ...]]]:
    """What is said of a run of 30 cases in 20 patients on the faithfulness estimate."""
    methods = ["gradcam", "lrp_z", "attention", "control_random", "control_center"]
    folder = Crafted(
        path / "run", models=["vit"], methods=methods, metrics=["faithfulness_estimate"], levels=levels, **options
    )
    crafted = Run(folder.write())
    parts = tables.score_table(crafted), tables.comparisons(crafted), tables.pair_table(crafted)
    [finding] = summary.findings(crafted, *parts)
    return finding.sentence, {part: names for part, names in finding.parts.items() if names}


def test_a_clear_winner_is_called_one(tmp_path: Path) -> None:
    levels = {"gradcam": 0.9, "lrp_z": 0.5, "attention": 0.3, "control_random": 0.2, "control_center": 0.25}
    text, parts = sentence(tmp_path, levels)
    assert text.startswith("Of the explainers gradcam has the best mean (0.")
    assert ", better than every other. It is better than control_random and control_center." in text
    assert parts["better"][:2] == ("gradcam", "lrp_z")


def test_a_tie_is_not_called_a_victory(tmp_path: Path) -> None:
    levels = {"gradcam": 0.9, "lrp_z": 0.9, "attention": 0.3, "control_random": 0.2, "control_center": 0.25}
    text, _ = sentence(tmp_path, levels)
    other = "lrp_z" if "explainers gradcam" in text else "gradcam"
    assert f"; that it is better than {other} is not shown. It is better than" in text


def test_a_control_that_wins_is_named(tmp_path: Path) -> None:
    levels = {"gradcam": 0.4, "lrp_z": 0.3, "attention": 0.3, "control_random": 0.2, "control_center": 0.9}
    text, parts = sentence(tmp_path, levels)
    assert text.endswith(", better than every other. Every explainer is worse than control_center.")
    assert parts == {"worse": ("gradcam", "lrp_z", "attention")}


def test_a_control_that_beats_the_best_only_in_part_is_named_too(tmp_path: Path) -> None:
    levels = {"gradcam": 0.4, "control_random": 0.2, "control_center": 0.9, "lrp_z": 0.9, "attention": 0.3}
    text, parts = sentence(tmp_path, levels)
    assert "lrp_z has the best mean" in text
    assert text.endswith("That it is better than control_center is not shown.")
    assert parts["worse"] == ("gradcam", "attention")


def test_without_defined_scores_nothing_is_claimed(tmp_path: Path) -> None:
    text, parts = sentence(tmp_path, {})
    assert text == "No explainer has a defined score."
    assert parts == {"none": ("gradcam", "lrp_z", "attention")}


def test_few_patients_prove_nothing(tmp_path: Path) -> None:
    levels = {"gradcam": 0.9, "lrp_z": 0.1, "attention": 0.1, "control_random": 0.1, "control_center": 0.1}
    text, parts = sentence(tmp_path, levels, cases=12)  # of 8 patients
    assert "that it is better than lrp_z and attention is not shown" in text
    assert text.endswith("That it is better than control_random and control_center is not shown.")
    assert parts == {"open": ("gradcam", "lrp_z", "attention")}


MANY = ["gradcam", "lrp_z", "attention", "saliency", "lime", "control_random", "control_center", "control_edges",
        "control_input"]  # fmt: skip


def test_many_with_one_verdict_are_counted_and_not_listed(tmp_path: Path) -> None:
    levels = dict.fromkeys(MANY, 0.5)
    folder = Crafted(tmp_path / "run", models=["vit"], methods=MANY, metrics=["faithfulness_estimate"], levels=levels,
                     cases=12)  # fmt: skip
    crafted = Run(folder.write())
    parts = tables.score_table(crafted), tables.comparisons(crafted), tables.pair_table(crafted)
    [finding] = summary.findings(crafted, *parts)
    assert (
        "; that it is better than any of the other 4 is not shown. That it is better than any control"
        in finding.sentence
    )
    assert finding.listed_parts == {"open": "all 5 explainers"}


def test_many_of_which_some_are_shown_to_be_worse() -> None:
    rest = ["lrp_z", "attention", "saliency", "lime", "occlusion"]
    assert summary._against_others(rest, rest[1:]) == ("; it is better than lrp_z, which is not shown of the other 4")
    assert summary._against_others(rest, rest[2:]) == (
        "; that it is better than saliency, lime and occlusion is not shown"
    )
    found = summary.Finding("vit", "iou", {"better": ("a", "b", "c", "d"), "worse": (), "open": ("e",)}, "")
    assert found.listed_parts == {"better": "a, b, c, d", "open": "e"}


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({}, True),
        ({"p_holm": 0.05}, False),
        ({"p_holm": np.nan}, False),
        ({"low": -0.01}, False),
        ({"low": np.nan, "high": np.nan}, False),
        ({"patients": 9}, False),
        ({"difference": -0.2, "low": -0.3, "high": -0.1}, False),
    ],
)
def test_better_needs_the_test_and_the_interval_and_ten_patients(changes: dict[str, float], shown: bool) -> None:
    pair = {
        "method_a": "a",
        "method_b": "b",
        "difference": 0.2,
        "low": 0.1,
        "high": 0.3,
        "p_holm": 0.049,
        "patients": 10,
    }
    rows = pd.DataFrame([{**pair, **changes}])
    assert summary.is_better(rows, "a", "b", higher=True) is shown
    assert summary.is_better(rows, "b", "a", higher=False) is shown  # a minus b is positive, and less is better
    assert summary.is_better(rows, "b", "a", higher=True) is ("difference" in changes)  # there b is larger
    assert not summary.is_better(rows.iloc[:0], "a", "b", higher=True)


def test_caveats_count_what_is_not_there(run: Run, run_path: Path) -> None:
    text = " ".join(summary.caveats(run, tables.score_table(run), run.reductions()))
    assert "Every image <counts> alone." in text
    values = pd.concat([pd.read_parquet(path) for path in (run_path / "scores").rglob("*.parquet")])["value"]
    expected = (8 + 5) * 30 * 7  # without the three methods that densenet cannot serve
    undefined = int(values.isna().sum())
    assert f"Of {expected:,} scores besides, {undefined} are undefined" in text
    assert f"and {expected - len(values)} missing" in text
    assert "densenet has no scores of attention, attention_rollout and transformer_lrp" in text
    assert "30 explained images of 20 patients" in text
    assert f"{len(run.reductions())} options are not at the default" in text
    assert "not finished" not in text


def test_scores_that_depend_on_each_other_are_said_to(run: Run, tmp_path: Path) -> None:
    def caveats(run: Run) -> str:
        return " ".join(summary.caveats(run, tables.score_table(run), run.reductions()))

    metrics = ["sufficiency", "sparseness", {"metric": "consistency", "as": "same_labels"}]
    of_cohorts = Run(RunFolder(tmp_path / "run", models=["vit"], metrics=metrics).write())
    assert "sufficiency and same_labels compare the samples with each other, so that intervals" in caveats(of_cohorts)
    assert "approximate" not in caveats(run)


def test_an_unfinished_run_says_so(tmp_path: Path) -> None:
    path = RunFolder(tmp_path / "run", models=["vit"]).write()
    (path / "failures.parquet").unlink()
    unfinished = Run(path)
    assert "not finished" in summary.caveats(unfinished, tables.score_table(unfinished), unfinished.reductions())[0]


def test_a_run_without_controls_claims_nothing(run: Run, comparisons: pd.DataFrame, tmp_path: Path) -> None:
    assert "nothing here says" not in summary.comparison_note(run, comparisons)
    bare = Run(RunFolder(tmp_path / "run", methods=["gradcam"], chance=False).write())
    nothing = tables.comparisons(bare)
    assert len(nothing) == 0
    for finding in summary.findings(bare, tables.score_table(bare), nothing, tables.pair_table(bare)):
        assert not any(finding.parts.values())
        assert finding.sentence.endswith(").")  # the best mean, and nothing of controls
    assert "nothing here says whether a method does better than chance" in summary.comparison_note(bare, nothing)


def test_the_paragraph_names_what_was_run(run: Run) -> None:
    text = summary.run_paragraph(run)
    for part in ("phantom", "90 images of 50 patients", "3 classes", "All 30 test images", "vit (hf:vit)",
                 "densenet (monai:densenet121)", "8 explainers", "7 metrics", "the predicted class", "Seed 3"):  # fmt: skip
        assert part in text


def test_the_paragraph_says_when_only_some_test_images_are_explained(tmp_path: Path) -> None:
    class Limited(RunFolder):
        def _samples(self) -> pd.DataFrame:
            more = pd.DataFrame(
                {"sample_id": ["x1", "x2"], "patient_id": ["q1", "q2"], "label": "normal", "split": "test"}
            )
            return pd.concat([super()._samples(), more.assign(explained=False)], ignore_index=True)

    text = summary.run_paragraph(Run(Limited(tmp_path / "run", models=["vit"]).write()))
    assert "30 of 32 test images are explained, chosen by seed" in text


def test_every_number_of_a_sentence_is_readable(
    run: Run, comparisons: pd.DataFrame, found: list[summary.Finding]
) -> None:
    texts = [*summary.model_sentences(run), *summary.caveats(run, tables.score_table(run), run.reductions()),
             summary.comparison_note(run, comparisons), summary.run_paragraph(run)]  # fmt: skip
    texts += [finding.sentence for finding in found]
    for text in texts:
        assert not re.search(r"nan|None|\d\.\d{4,}|-\d", text), text
    assert np.isfinite(comparisons["difference"]).all()
