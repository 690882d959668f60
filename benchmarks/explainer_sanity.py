"""Do heatmaps depend on what a network has learned? `make bench-sanity`.

The two tests of Adebayo and others (2018, `adebayo2018sanity`), for every method, on a small DenseNet and a small vision
transformer that tell an opacity on phantoms. The maps of a trained network are compared with those of

* the same network with all weights drawn at random;
* a network of the same kind that has learned its training images by heart under permuted labels;
* a network of the same kind trained as the first one was, from another seed: how alike maps are that tell of the same.

Compared are the sizes |map| of the maps of test images for their own label, by rank correlation and structural similarity,
with 95 % intervals over patients.

Writes `benchmarks/results/explainer_sanity.md`; about a quarter of an hour with two threads.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import Tensor

import heatproof as hp
from heatproof.datasets.phantom import make_phantom
from heatproof.datasets.table import Dataset
from heatproof.errors import UnsupportedModelError
from heatproof.metrics.randomization import randomized
from heatproof.metrics.similarity import spearman, ssim
from heatproof.models import Classifier
from heatproof.statistics import patient_bootstrap
from heatproof.training.predict import predict

Floats = NDArray[np.float64]

SIZE, PATIENTS, IMAGES, DRAWS = 64, 300, 40, 2
CLASSES = ("normal", "opacity")
LIMIT = 0.5  # of the rank correlation
AGAIN = "another seed"  # the network that is the yardstick
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "DenseNet": ("monai:densenet121", {"init_features": 16, "growth_rate": 8, "block_config": [2, 4, 4]}),
    "ViT": ("hf:vit", {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 128,
                       "patch_size": 8}),
}  # fmt: skip
EPOCHS = {"DenseNet": 20, "ViT": 60}
LONGER = 1.5  # under permuted labels, which have to be learned image by image
OPTIONS: dict[str, dict[str, Any]] = {
    **{method: {"samples": 200} for method in ("lime", "kernel_shap")},
    "rise": {"samples": 400},
    "occlusion": {"window": 8},
    **{method: {"steps": 10} for method in ("integrated_gradients", "blur_integrated_gradients",
                                            "transition_attention", "bidirectional_transformer")},
    **{method: {"samples": 20} for method in ("expected_gradients", "gradient_shap")},
    **{method: {"samples": 10} for method in ("smoothgrad", "smoothgrad_squared", "vargrad")},
}  # fmt: skip
RESULTS = Path(__file__).parent / "results" / "explainer_sanity.md"
HEAD = f"""# Do heatmaps depend on what a network has learned?

{PATIENTS} phantoms of {SIZE} pixels, {IMAGES} of the test images explained for their own label; made by
`benchmarks/explainer_sanity.py`. The tests are those of Adebayo and others (2018).

Each cell is the mean similarity between the maps of a trained network and those of another one, with its 95 % interval over
patients; similarity is the rank correlation of |map|, and beside it the structural similarity (SSIM) of |map|. The other
networks:

* **random weights**: all layers drawn anew, as `model_parameter_randomization` draws them; the mean over {DRAWS} draws;
* **permuted labels**: trained longer and from another seed on labels that tell nothing, so that it knows its training images
  by heart;
* **{AGAIN}**: trained as the first one was. No more can be asked of a method than that its maps of two networks that
  learned the same are alike.

A method **passes** a test if the interval of its rank correlation lies below {LIMIT:g}, and the interval of the difference
from *{AGAIN}*, image by image, lies above 0. It is **too alike** where the first fails: the maps stay though what was
learned is gone. It is **undecided** where only the second fails: maps of two networks that learned the same differ as much,
so that a difference says nothing. Controls know nothing of the model and must be too alike, but for `control_average`, which
is made of Grad-CAMs.

What theory leads one to expect: guided backpropagation and deconvnet mark the image's structures with any weights in the
upper layers (Adebayo and others 2018; Nie and others 2018), and the maps of rules that follow positive contributions
(`lrp_zplus`, `excitation_backprop`, `deep_taylor`, `lrp_alpha_beta`) hardly depend on them (Sixt and others 2020). Here the
lowest layers are random as well. A passed test does not make a method right: that it depends on the weights is the least.

Some rows must be the same: on images of one channel the sizes of `gradient` are `saliency`; under an average and a dense
layer `gradcam`, `xgradcam` and `hirescam` are one; on a network of ReLUs `lrp_z` is `input_x_gradient`, and `lrp_epsilon`
and `lrp` differ from it by an ε of 1e-6. What repeats passes does so less often than by default, as the script says.
"""


@dataclass(frozen=True)
class Trained:
    """Networks of one kind: the `first`, and by name those that it is compared with, each of which may come in several."""

    first: Classifier
    others: Mapping[str, list[Classifier]]


@dataclass(frozen=True)
class Explained:
    """The images to explain, `[N, 1, SIZE, SIZE]`, their labels, ids and patients, and training images with theirs."""

    images: Tensor
    labels: Tensor
    keys: list[str]
    patients: list[str]
    references: Mapping[str, Tensor]

    @classmethod
    def of(cls, clf: Classifier, data: Dataset) -> "Explained":
        samples, learned = data.subset("test").samples.head(IMAGES), data.subset("train").samples.head(IMAGES)
        (images, labels), (references, known) = (
            (clf.read(list(part["image"])), torch.tensor([CLASSES.index(label) for label in part["label"]]))
            for part in (samples, learned)
        )
        given = {"references": references, "labels": known}
        return cls(images, labels, list(samples["sample_id"]), list(samples["patient_id"]), given)

    def sizes(self, clf: Classifier, method: str) -> Tensor:
        """|map| `[N, SIZE, SIZE]` of each image for its label."""
        options = {**OPTIONS.get(method, {}), **(self.references if method == "control_average" else {})}
        return hp.explain(clf, self.images, self.labels, method=method, keys=self.keys, **options).abs()


def trained(kind: str, data: Dataset, seed: int, longer: float = 1.0) -> Classifier:
    source, config = NETWORKS[kind]
    epochs = round(longer * EPOCHS[kind])
    clf = hp.load_classifier(source, classes=CLASSES, image_size=SIZE, channels=1, seed=seed, **config)
    hp.fit(clf, data, epochs=epochs, lr=1e-3, batch_size=16, patience=None, augment=False, seed=seed)
    return clf


def with_permuted_labels(data: Dataset) -> Dataset:
    """The training images under one another's labels; validated on the same, as there is nothing else to be learned."""
    train = data.subset("train").samples
    train = train.assign(label=np.random.default_rng(0).permutation(train["label"]))
    again = {name: train[name] + " again" for name in ("sample_id", "patient_id")}
    return replace(data, samples=pd.concat([train, train.assign(split="val", **again)], ignore_index=True))


def accuracy(clf: Classifier, data: Dataset) -> float:
    """On the training images."""
    table = predict(clf, data.subset("train")).table
    return float((table["label"] == table["predicted"]).mean())


def auroc(clf: Classifier, data: Dataset) -> float:
    """On the test images."""
    table = predict(clf, data.subset("test")).table
    return float(roc_auc_score(table["label"] == "opacity", table["p_opacity"]))


def train_all(kind: str, data: Dataset) -> tuple[Trained, list[str]]:
    """The networks of one kind, and the rows that say how well they do."""
    permuted = with_permuted_labels(data)
    first, again, by_heart = trained(kind, data, 0), trained(kind, data, 1), trained(kind, permuted, 2, LONGER)
    rows = [
        f"| {kind} | {name} | {accuracy(clf, learned):.2f} | {auroc(clf, data):.2f} |"
        for name, clf, learned in (
            ("first", first, data), (AGAIN, again, data), ("permuted labels", by_heart, permuted)
        )
    ]  # fmt: skip
    at_random = [random_weights(first, seed) for seed in range(DRAWS)]
    return Trained(first, {"random weights": at_random, "permuted labels": [by_heart], AGAIN: [again]}), rows


def random_weights(clf: Classifier, seed: int) -> Classifier:
    """The classifier with all its layers drawn anew."""
    *_, model = randomized(clf, "top_down", seed)
    return model


def similarities(
    first: Tensor, others: Mapping[str, list[Tensor]], measure: Callable[[Tensor, Tensor], Tensor]
) -> dict[str, Floats]:
    """By network the similarity `[N]` of its maps with the `first`, the mean over those of several draws that have one."""
    return {
        name: torch.stack([measure(first, maps) for maps in several]).nanmean(0).numpy()
        for name, several in others.items()
    }


def verdict(found: Floats, yardstick: Floats, patients: list[str]) -> str:
    """Whether maps surely changed: the rank correlation `found` `[N]` should be low, `yardstick` is the one to expect."""
    alike = patient_bootstrap(found, patients, share=False)
    if np.isnan(alike.high):
        return "undefined"
    if alike.high >= LIMIT:
        return "too alike"
    return "passes" if patient_bootstrap(yardstick - found, patients, share=False).low > 0 else "undecided"


def cell(values: Floats, patients: list[str]) -> str:
    found = patient_bootstrap(values, patients, share=False)
    of_fewer = f", {found.n} images" if found.nan else ""
    return f"{found.estimate:.2f} ({found.low:.2f} to {found.high:.2f}{of_fewer})"


def lines(kind: str, networks: Trained, data: Dataset) -> Iterator[str]:
    """The table of one kind of network, and below it what was refused."""
    explained = Explained.of(networks.first, data)
    names = list(networks.others)
    columns = [f"{name} | SSIM" for name in names]
    yield f"\n## {kind}\n\n| method | {' | '.join(columns)} | weights | labels |\n|{'---|' * (2 * len(names) + 3)}"
    refused = []
    for method in hp.methods():
        try:
            first = explained.sizes(networks.first, method)
        except UnsupportedModelError:
            refused.append(f"`{method}`")
            continue
        maps = {name: [explained.sizes(clf, method) for clf in several] for name, several in networks.others.items()}
        ranks, structures = similarities(first, maps, spearman), similarities(first, maps, ssim)
        cells = [f"{cell(ranks[name], explained.patients)} | {np.nanmean(structures[name]):.2f}" for name in names]
        verdicts = [verdict(ranks[name], ranks[AGAIN], explained.patients) for name in names if name != AGAIN]
        yield f"| `{method}` | {' | '.join([*cells, *verdicts])} |"
    if refused:
        yield f"\nRefused by this network: {', '.join(refused)}."


def main() -> None:
    parts = [HEAD]
    with tempfile.TemporaryDirectory() as folder:
        data = make_phantom(Path(folder) / "phantom", patients=PATIENTS, size=SIZE, classes=list(CLASSES))
        networks = {kind: train_all(kind, data) for kind in NETWORKS}
        parts.append(
            "| network | training | accuracy on its own training images | AUROC on test images |\n|---|---|---|---|"
        )
        parts += [row for _, rows in networks.values() for row in rows]
        for kind, (models, _) in networks.items():
            parts += lines(kind, models, data)
    text = "\n".join(parts) + "\n"
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
