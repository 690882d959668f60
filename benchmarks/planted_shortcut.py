"""How strong must a shortcut be for heatmaps to show it? `python benchmarks/planted_shortcut.py`.

A small DenseNet learns to tell an opacity on phantoms in which letters go along with it with a given strength (the
difference between how often they stand in films with and without it). Shown is how well it does at home, how well where the
letters tell nothing, and which part of each method's positive relevance for `opacity` falls on the letters and on the
opacity, in test films that show both; with 95 % intervals over patients, beside the random control.

Writes `benchmarks/results/planted_shortcut.md`; some minutes.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from sklearn.metrics import roc_auc_score

import heatproof as hp
from heatproof.datasets.phantom import Shortcut, make_phantom
from heatproof.datasets.table import Dataset
from heatproof.models import Classifier
from heatproof.statistics import patient_bootstrap
from heatproof.training.predict import predict

STRENGTHS = (0.0, 0.5, 0.8, 0.9, 1.0)
METHODS = ("gradcam", "input_x_gradient", "integrated_gradients", "lrp_epsilon", "lrp_zplus", "lime", "control_random")
OPTIONS = {"lime": {"samples": 300}}
SIZE, PATIENTS = 64, 500
NETWORK = {"init_features": 16, "growth_rate": 8, "block_config": [2, 4, 4]}
RESULTS = Path(__file__).parent / "results" / "planted_shortcut.md"


def phantom(folder: Path, strength: float) -> Dataset:
    return make_phantom(
        folder / f"strength-{strength}", patients=PATIENTS, size=SIZE, classes=["normal", "opacity"], conspicuity=0.5,
        shortcut=Shortcut("opacity", strength=strength),
    )  # fmt: skip


def trained(data: Dataset) -> Classifier:
    clf = hp.load_classifier("monai:densenet121", classes=data.classes, image_size=SIZE, channels=1, **NETWORK)
    hp.fit(clf, data, epochs=10, lr=1e-3, batch_size=16, patience=None)
    return clf


def auroc(clf: Classifier, data: Dataset) -> float:
    table = predict(clf, data.subset("test")).table
    return float(roc_auc_score(table["label"] == "opacity", table["p_opacity"]))


def shares(clf: Classifier, data: Dataset) -> Iterator[tuple[str, str, str]]:
    """(method, share on the letters, share on the opacity) with intervals."""
    test = data.subset("test").samples
    chosen = test[(test["label"] == "opacity") & (test["marker"] == 1)]
    images, keys = clf.read(list(chosen["image"])), list(chosen["sample_id"])
    rois = {
        name: torch.stack([torch.from_numpy(data.region(key, name, (SIZE, SIZE))) for key in keys])
        for name in ("marker", "lesion")
    }
    for method in METHODS:
        maps = hp.explain(clf, images, [1] * len(keys), method=method, keys=keys, **OPTIONS.get(method, {}))
        cells = []
        for roi in rois.values():
            values = hp.score(
                clf, images, maps, metric="relevance_mass_accuracy", targets=[1] * len(keys), roi=roi, keys=keys
            )
            found = patient_bootstrap(values.numpy(), chosen["patient_id"])
            cells.append(f"{found.estimate:.2f} ({found.low:.2f} to {found.high:.2f})")
        yield method, *cells


def lines(folder: Path) -> Iterator[str]:
    data = {strength: phantom(folder, strength) for strength in STRENGTHS}
    models = {strength: trained(part) for strength, part in data.items()}
    yield "# A planted shortcut, and what heatmaps show of it\n"
    yield f"{PATIENTS} phantoms of {SIZE} pixels a data set; made by `benchmarks/planted_shortcut.py`.\n"
    yield "| strength | AUROC at home | AUROC where the letters tell nothing |\n|---|---|---|"
    for strength, clf in models.items():
        yield f"| {strength:g} | {auroc(clf, data[strength]):.2f} | {auroc(clf, data[0.0]):.2f} |"
    for strength, clf in models.items():
        yield f"\n## Strength {strength:g}\n\n| method | relevance on the letters | on the opacity |\n|---|---|---|"
        for method, marker, lesion in shares(clf, data[strength]):
            yield f"| `{method}` | {marker} | {lesion} |"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        text = "\n".join(lines(Path(folder))) + "\n"
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
