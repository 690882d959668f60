"""Sentences never say more than the intervals."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from heatproof.report import summary, tables
from heatproof.statistics import patient_bootstrap
from heatproof.study.store import Run
from support.runs import RunFolder


@pytest.fixture(scope="module")
def comparisons(run: Run) -> pd.DataFrame:
    return tables.comparisons(run)


def test_a_model_beats_the_constant_answer_only_where_the_interval_says_so(run: Run) -> None:
    said = []
    for model, sentence in zip(run.models, summary.model_sentences(run), strict=True):
        rows = tables.on_test_images(run, model)
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


def test_findings_follow_the_verdicts(run: Run, comparisons: pd.DataFrame) -> None:
    found = summary.findings(run, comparisons)
    assert len(found) == 2 * 4
    for finding in found:
        rows = comparisons[(comparisons["model"] == finding.model) & (comparisons["metric"] == finding.metric)]
        by_method = rows.groupby("method")["verdict"].apply(set)
        assert set(finding.parts["better"]) == {m for m, v in by_method.items() if v == {"better"}}
        assert set(finding.parts["worse"]) == {m for m, v in by_method.items() if "worse" in v}
        named = [name for names in finding.parts.values() for name in names]
        assert sorted(named) == sorted(by_method.index)
    assert any(finding.parts["better"] for finding in found)


def test_what_is_no_clear_gain_over_every_control_is_not_called_better(run: Run) -> None:
    verdicts = [("a", "better"), ("a", "open"), ("b", "better"), ("b", "few"), ("c", "better"), ("c", "worse")]
    rows = pd.DataFrame(verdicts, columns=["method", "verdict"]).assign(model="vit", metric="pointing_game")
    [finding] = summary.findings(run, rows)
    assert finding.parts == {"better": (), "worse": ("c",), "open": ("a", "b")}


def test_caveats_count_what_is_not_there(run: Run, run_path: Path) -> None:
    text = " ".join(summary.caveats(run, tables.score_table(run), run.reductions()))
    values = pd.concat([pd.read_parquet(path) for path in (run_path / "scores").rglob("*.parquet")])["value"]
    expected = (8 + 5) * 30 * 7  # without the three methods that densenet cannot serve
    undefined = int(values.isna().sum())
    assert f"Of {expected:,} scores besides, {undefined} are undefined" in text
    assert f"and {expected - len(values)} missing" in text
    assert "densenet has no scores of attention, attention_rollout and transformer_lrp" in text
    assert "30 explained images of 20 patients" in text
    assert f"{len(run.reductions())} options are not at the default" in text
    assert "not finished" not in text


def test_an_unfinished_run_says_so(tmp_path: Path) -> None:
    path = RunFolder(tmp_path / "run", models=["vit"]).write()
    (path / "failures.parquet").unlink()
    unfinished = Run(path)
    assert "not finished" in summary.caveats(unfinished, tables.score_table(unfinished), unfinished.reductions())[0]


def test_a_run_without_controls_claims_nothing(run: Run, comparisons: pd.DataFrame, tmp_path: Path) -> None:
    assert "nothing here says" not in summary.comparison_note(run, comparisons)
    bare = Run(RunFolder(tmp_path / "run", methods=["gradcam"]).write())
    nothing = tables.comparisons(bare)
    assert len(nothing) == 0
    assert summary.findings(bare, nothing) == []
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


def test_every_number_of_a_sentence_is_readable(run: Run, comparisons: pd.DataFrame) -> None:
    texts = [*summary.model_sentences(run), *summary.caveats(run, tables.score_table(run), run.reductions()),
             summary.comparison_note(run, comparisons), summary.run_paragraph(run)]  # fmt: skip
    for text in texts:
        assert not re.search(r"nan|None|\d\.\d{4,}|-\d", text), text
    assert np.isfinite(comparisons["difference"]).all()
