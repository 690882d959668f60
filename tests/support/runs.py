"""A small finished run folder, written file by file: two models, eight methods, seven metrics, 30 explained cases.

It holds what a report must survive: undefined scores, a missing, a constant and a partly undefined map, cases without
annotation, a method that one model cannot serve, names that are HTML.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from scipy.ndimage import gaussian_filter

HOSTILE = "<script>alert(1)</script>"
METHODS = [
    "attention",
    "attention_rollout",
    "transformer_lrp",
    "gradcam",
    "lrp_z",
    {"method": "lime", "samples": 200, "as": "lime_200"},
    "control_random",
    "control_center",
]
METRICS = [
    {"metric": "faithfulness_estimate", "step": 256},
    "max_sensitivity",
    {"metric": "avg_sensitivity", "samples": 3},
    "pointing_game",
    {"metric": "iou", "top": 20, "shape": "rectangle", "as": "iou_rectangle_20"},
    "relevance_mass_accuracy",
    "sparseness",
]
SIGNED = {"lrp_z", "lime_200"}
CHANCE = {"pointing_game": 0.06, "iou_rectangle_20": 0.21, "relevance_mass_accuracy": 0.11}
LOCALIZATION = {"pointing_game", "iou_rectangle_20", "relevance_mass_accuracy"}
SKILL = {"transformer_lrp": 0.25, "gradcam": 0.2, "lrp_z": 0.05, "lime_200": 0.12, "control_center": 0.1}
CONSTANT, PARTLY_NAN, MISSING, FAILED_METRIC = "case_003", "case_004", "case_005", "case_006"


@dataclass
class RunFolder:
    """Sizes and names of the run to write, and the random numbers that fill it."""

    path: Path
    size: int = 64
    chunk: int = 8
    cases: int = 30
    classes: list[str] = field(default_factory=lambda: ["normal", HOSTILE, "nodule"])
    models: list[str] = field(default_factory=lambda: ["vit", "densenet"])
    methods: list[Any] = field(default_factory=lambda: METHODS)
    metrics: list[Any] = field(default_factory=lambda: METRICS)
    seed: int = 0
    chance: bool = True

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.seed)
        self.labels = [self.classes[i % 3] for i in range(self.cases)]
        self.ids = [HOSTILE if i == 1 else f"case_{i:03d}" for i in range(self.cases)]
        self.patients = [f"p{i * 2 // 3:02d}" for i in range(self.cases)]

    def write(self) -> Path:
        """Write every file of the layout; returns the folder."""
        self.path.mkdir(parents=True)
        self._yaml("study.yaml", self.recipe())
        self._json("environment.json", ENVIRONMENT)
        data = {
            "name": "phantom",
            "classes": self.classes,
            "notes": ["Every image <counts> alone."],
            "baseline_auroc": 0.7132,
        }
        self._json("data.json", data)
        self._samples().to_parquet(self.path / "samples.parquet")
        for model in self.models:
            self._model(model)
        self._failures().to_parquet(self._file("failures", "study.parquet"))
        self._failures().to_parquet(self.path / "failures.parquet")
        return self.path

    def recipe(self) -> dict[str, Any]:
        """The recipe, as `study.yaml` holds it."""
        return {
            "schema": 1,
            "name": "phantom_small",
            "seed": 3,
            "data": {"phantom": {"patients": 40, "size": self.size}, "region": "lesion", "test_limit": self.cases},
            "models": [
                {
                    "name": name,
                    "source": "hf:vit" if name == "vit" else "monai:densenet121",
                    "channels": 1,
                    "image_size": self.size,
                    "training": {"epochs": 6},
                }
                for name in self.models
            ],
            "methods": self.methods,
            "metrics": self.metrics,
        }

    def _samples(self) -> pd.DataFrame:
        test = {"sample_id": self.ids, "patient_id": self.patients, "label": self.labels, "split": "test"}
        rest = [
            {
                "sample_id": f"{split}_{i}",
                "patient_id": f"{split}{i // 2}",
                "label": self.classes[i % 3],
                "split": split,
            }
            for split, count in (("train", 48), ("val", 12))
            for i in range(count)
        ]
        frame = pd.concat([pd.DataFrame(rest), pd.DataFrame(test)], ignore_index=True)
        return frame.assign(explained=frame["split"] == "test")

    def _model(self, model: str) -> None:
        predictions = self._predictions(model)
        predictions.to_parquet(self._file("predictions", f"{model}.parquet"))
        self._json(f"models/{model}/performance.json", performance_of(predictions, self.classes))
        epochs = np.arange(1, 7)
        history = {"epoch": epochs, "train_loss": 1.1 * 0.7**epochs, "val_loss": 1.1 * 0.8**epochs + 0.06 * epochs}
        history |= {"val_auroc": 1 - 0.45 * 0.8**epochs, "seconds": 1.0}
        pd.DataFrame(history).to_csv(self._file("models", model, "history.csv"), index=False)
        for start in range(0, self.cases, self.chunk):
            self._chunk(model, start, slice(start, start + self.chunk), predictions)

    def _predictions(self, model: str) -> pd.DataFrame:
        skill = 2.2 if model == "vit" else 0.4
        truth = np.array([self.classes.index(label) for label in self.labels])
        logits = self.random.normal(size=(self.cases, 3)) + skill * np.eye(3)[truth]
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        frame = pd.DataFrame({"sample_id": self.ids, "patient_id": self.patients, "model": model, "split": "test"})
        frame["label"], frame["predicted"] = self.labels, [self.classes[i] for i in p.argmax(1)]
        for k, name in enumerate(self.classes):
            frame[f"logit_{name}"], frame[f"p_{name}"] = logits[:, k], p[:, k]
        return frame

    def _chunk(self, model: str, start: int, rows: slice, predictions: pd.DataFrame) -> None:
        name, ids = f"{start // self.chunk:05d}", self.ids[rows]
        rois = np.stack([self._roi(start + i) for i in range(len(ids))])
        image = np.stack([self._image(roi) for roi in rois])
        annotated = np.array([self.labels[start + i] != "normal" for i in range(len(ids))])
        self._inputs(model, name, ids, image, rois, annotated)
        for method in map(label_of, self.methods):
            if unsupported(model, method):
                continue
            cases = [
                (i, target)
                for i, sample in enumerate(ids)
                for target in self._targets(start + i, predictions)
                if not (sample == MISSING and method == "gradcam")
            ]
            maps = np.stack([self._map(method, ids[i], rois[i]) for i, _ in cases]).astype(np.float32)
            target = np.array([self.classes.index(name) for _, name in cases])
            kept = [ids[i] for i, _ in cases]
            path = self._file("maps", model, method, f"{name}.npz")
            np.savez(path, maps=maps, target=target, sample_id=kept)
            named = np.array([target for _, target in cases])
            scores = self._scores(model, method, kept, annotated[[i for i, _ in cases]], named)
            scores.to_parquet(self._file("scores", model, method, f"{name}.parquet"))

    def _targets(self, i: int, predictions: pd.DataFrame) -> list[str]:
        """The classes that the maps of image i explain."""
        return [predictions["predicted"][i]]

    def _inputs(
        self, model: str, name: str, ids: list[str], image: np.ndarray, rois: np.ndarray, annotated: np.ndarray
    ) -> None:
        np.savez(self._file("inputs", model, f"{name}.npz"), image=image, roi=rois, annotated=annotated, sample_id=ids)

    def _roi(self, i: int) -> np.ndarray:
        y, x = np.mgrid[: self.size, : self.size] / self.size
        cy, cx = 0.35 + 0.3 * (i % 5) / 5, 0.3 + 0.4 * (i % 7) / 7
        return ((y - cy) / 0.14) ** 2 + ((x - cx) / 0.1) ** 2 < 1

    def _image(self, roi: np.ndarray) -> np.ndarray:
        y, x = np.mgrid[: self.size, : self.size] / self.size
        lungs = sum(np.exp(-(((y - 0.5) / 0.3) ** 4) - ((x - c) / 0.15) ** 4) for c in (0.3, 0.7))
        noise = gaussian_filter(self.random.normal(size=roi.shape), 1.5) * 0.12
        image = 0.75 - 0.55 * lungs + 0.25 * gaussian_filter(roi.astype(float), 2) + noise
        return (image.clip(0, 1) * 255).astype(np.uint8)

    def _map(self, method: str, sample: str, roi: np.ndarray) -> np.ndarray:
        if sample == CONSTANT and method == "gradcam":
            return np.zeros(roi.shape)
        noise = self.random.normal(size=roi.shape)
        blob = gaussian_filter(roi.astype(float), 4) * 4 * SKILL.get(method, 0.02)
        values = gaussian_filter(noise, 1 if method == "lrp_z" else 4) + blob
        values = values if method in SIGNED else np.abs(values)
        if sample == PARTLY_NAN and method == "attention":
            values[:8] = np.nan
        return values

    def _scores(
        self, model: str, method: str, ids: list[str], annotated: np.ndarray, target: np.ndarray
    ) -> pd.DataFrame:
        parts = []
        for metric in map(label_of, self.metrics):
            value = self._values(method, metric, len(ids))
            if metric in LOCALIZATION:
                value[~annotated] = np.nan
            drop = [s == FAILED_METRIC and metric == "max_sensitivity" and method == "lrp_z" for s in ids]
            frame = pd.DataFrame({"sample_id": ids, "model": model, "method": method, "metric": metric})
            frame["patient_id"] = [self.patients[self.ids.index(s)] for s in ids]
            frame = frame.assign(target=target, value=value)
            if self.chance:
                frame["chance"] = np.where(np.isnan(value), np.nan, CHANCE.get(metric, np.nan))
            parts.append(frame[~np.array(drop)])
        return pd.concat(parts, ignore_index=True)

    def _values(self, method: str, metric: str, n: int) -> np.ndarray:
        skill = SKILL.get(method, 0.0)
        if metric == "pointing_game":
            return (self.random.random(n) < 0.05 + 3 * skill).astype(float)
        value = self.random.normal(0.2 + skill, 0.12, n)
        if metric.endswith("sensitivity"):
            value = np.exp(-2 * value)
        if metric == "avg_sensitivity" and method == "control_center":
            value *= 1e-4  # far below the others of its column
        if metric == "faithfulness_estimate" and method == "gradcam":
            value[:1] = np.nan
        return value if metric == "faithfulness_estimate" else value.clip(0)

    def _failures(self) -> pd.DataFrame:
        columns = ["sample_id", "model", "method", "metric", "stage", "error", "message"]
        rows = [["train_7", "", "", "", "data", "ImageError", "train_7: cannot be read as an image: truncated file"]]
        for model in self.models:
            for method in filter(lambda m: unsupported(model, m), map(label_of, self.methods)):
                message = f"{method}: the model has no attention"
                rows.append(["", model, method, "", "explain", "UnsupportedModelError", message])
            rows.append([MISSING, model, "gradcam", "", "explain", "ValueError", f"no map: {HOSTILE}"])
            rows.append([FAILED_METRIC, model, "lrp_z", "max_sensitivity", "score", "ValueError", "overflow"])
        return pd.DataFrame(rows, columns=columns)

    def _file(self, *parts: str) -> Path:
        path = self.path.joinpath(*parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _json(self, name: str, content: Any) -> None:
        self._file(*name.split("/")).write_text(json.dumps(content), encoding="utf-8")

    def _yaml(self, name: str, content: Any) -> None:
        self._file(name).write_text(yaml.safe_dump(content), encoding="utf-8")


ENVIRONMENT = {
    "created": "2025-11-02T09:30:00+00:00",
    "heatproof": "0.1.0",
    "python": "3.11.9",
    "platform": {"system": "Linux", "release": "6.1", "machine": "x86_64"},
    "packages": {"torch": "2.13.0", "numpy": "2.4.6"},
    "device": {"name": "cpu", "model": "x86_64", "bf16": False},
    "threads": 2,
    "torch": {"version": "2.13.0+cpu", "cuda": None},
}


def label_of(part: str | dict[str, Any]) -> str:
    """The column of a method or metric of the recipe."""
    return part if isinstance(part, str) else part.get("as") or part.get("method") or part["metric"]


def unsupported(model: str, method: str) -> bool:
    """Whether the fixture's model cannot serve the method."""
    return model == "densenet" and method in {"attention", "attention_rollout", "transformer_lrp"}


def performance_of(predictions: pd.DataFrame, classes: list[str]) -> dict[str, Any]:
    """The content of `performance.json`: areas by scikit-learn, the rest counted here, made-up intervals."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    multilabel = "labels" in predictions
    p = predictions[[f"p_{c}" for c in classes]].to_numpy()
    truth = np.stack(
        [predictions[f"label_{c}"] if multilabel else predictions["label"] == c for c in classes], 1
    ).astype(float)
    both = {c: {0.0, 1.0} <= set(truth[:, k]) for k, c in enumerate(classes)}
    known = ~np.isnan(truth)
    found: dict[str, Any] = {"n": len(p), "support": {c: int(np.nansum(truth[:, k])) for k, c in enumerate(classes)}}
    for area, function in (("auroc", roc_auc_score), ("auprc", average_precision_score)):
        pairs = [(c, truth[known[:, k], k], p[known[:, k], k]) for k, c in enumerate(classes)]
        found[area] = {c: float(function(t, q)) if both[c] else None for c, t, q in pairs}
        defined = {c: value for c, value in found[area].items() if value is not None}
        weights = [found["support"][c] for c in defined]
        found[f"{area}_macro"] = float(np.mean([*defined.values()])) if defined else None
        found[f"{area}_weighted"] = float(np.average([*defined.values()], weights=weights)) if defined else None
    right = (p >= 0.5) == (truth == 1) if multilabel else p.argmax(1) == truth.argmax(1)
    found |= {"accuracy": float(right[known if multilabel else ...].mean()), "balanced_accuracy": 0.625, "ece": 0.0875}
    found |= {"undefined": [c for c in classes if not both[c]], "task": "multilabel" if multilabel else "multiclass"}
    found["reliability"] = [
        {"low": 0.0, "high": 0.5, "n": 0, "confidence": None, "accuracy": None},
        {"low": 0.5, "high": 0.75, "n": 12, "confidence": 0.625, "accuracy": 0.5},
        {"low": 0.75, "high": 1.0, "n": 18, "confidence": 0.9, "accuracy": 0.95},
    ]
    found["confusion"] = confusion_of(p, truth, classes, multilabel)
    values = {name: found[name] for name in OVERALL}
    values |= {f"{area}.{c}": found[area][c] for area in ("auroc", "auprc") for c in classes}
    found["intervals"] = {name: interval_around(value, len(p)) for name, value in values.items()}
    return found


OVERALL = "accuracy balanced_accuracy ece auroc_macro auroc_weighted auprc_macro auprc_weighted".split()


def interval_around(value: float | None, n: int) -> dict[str, Any]:
    """An interval as `performance.json` holds it."""
    low, high = (None, None) if value is None else (value - 0.07, value + 0.05)
    return {"estimate": value, "low": low, "high": high, "n": n, "patients": 20, "nan": 0, "method": "bca"}


def confusion_of(p: np.ndarray, truth: np.ndarray, classes: list[str], multilabel: bool) -> Any:
    """K × K rows of the truth; for labels by class [[TN, FP], [FN, TP]]."""
    if not multilabel:
        table = np.zeros((len(classes), len(classes)), int)
        np.add.at(table, (truth.argmax(1), p.argmax(1)), 1)
        return table.tolist()
    return {
        c: [[int(((truth[:, k] == t) & ((p[:, k] >= 0.5) == said)).sum()) for said in (False, True)] for t in (0, 1)]
        for k, c in enumerate(classes)
    }


@dataclass
class LabelRunFolder(RunFolder):
    """The same with several labels an image, of which some are unknown, two explained classes, and a region a class."""

    classes: list[str] = field(default_factory=lambda: ["edema", HOSTILE, "nodule"])

    def __post_init__(self) -> None:
        super().__post_init__()
        truth = np.random.default_rng(self.seed).random((self.cases, 3)) < [0.5, 0.3, 0.2]
        self.truth = truth.astype(float)
        self.truth[::7, 0] = np.nan

    def recipe(self) -> dict[str, Any]:
        return {**super().recipe(), "target": self.explained}

    @property
    def explained(self) -> list[str]:
        """The classes that the maps explain."""
        return [self.classes[0], self.classes[2]]

    def _targets(self, i: int, predictions: pd.DataFrame) -> list[str]:
        return self.explained

    def _columns(self) -> dict[str, Any]:
        labels = ["|".join(c for c, t in zip(self.classes, row, strict=True) if t == 1) for row in self.truth]
        return {"labels": labels, **{f"label_{c}": self.truth[:, k] for k, c in enumerate(self.classes)}}

    def _samples(self) -> pd.DataFrame:
        frame = pd.DataFrame({"sample_id": self.ids, "patient_id": self.patients, "split": "test", **self._columns()})
        return frame.assign(explained=True)

    def _predictions(self, model: str) -> pd.DataFrame:
        logits = self.random.normal(size=(self.cases, 3)) + 2 * np.nan_to_num(self.truth) - 1
        frame = pd.DataFrame({"sample_id": self.ids, "patient_id": self.patients, "model": model, "split": "test"})
        p = 1 / (1 + np.exp(-logits))
        frame = frame.assign(**self._columns())
        frame["predicted"] = ["|".join(c for c, q in zip(self.classes, row, strict=True) if q >= 0.5) for row in p]
        for k, name in enumerate(self.classes):
            frame[f"logit_{name}"], frame[f"p_{name}"] = logits[:, k], p[:, k]
        return frame

    def _inputs(
        self, model: str, name: str, ids: list[str], image: np.ndarray, rois: np.ndarray, annotated: np.ndarray
    ) -> None:
        several = np.stack([rois, rois & False, rois[:, ::-1]], axis=1)
        known = np.stack([annotated, annotated, annotated & False], axis=1)
        super()._inputs(model, name, ids, image, several, known)
