"""Metrics that ask the same question ask the model once; and a study knows beforehand how often that is."""

import pytest
import torch
from torch import nn

from heatproof.models import Classifier
from heatproof.scoring import metrics, score_many
from heatproof.study.loading import parse_recipe
from heatproof.study.plan import score_passes
from support.studies import recipe as tiny


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(256, 3)
        self.seen = 0

    def forward(self, images):
        self.seen += len(images)
        return self.layer(images.flatten(1)).tanh()


def passes(*wanted):
    """Images seen for one map of 16 × 16 pixels, beside the image itself."""
    net = Counting().eval()
    clf = Classifier(net, channels=1, image_size=16, mean=[0.5], std=[0.5])
    images, maps = torch.rand(1, 1, 16, 16), torch.rand(1, 16, 16)
    scores = score_many(clf, images, maps, metrics=list(wanted), targets=[0], batch_size=32)
    assert all(value.isfinite().all() for value in scores.values())
    return net.seen - 2  # one tells the number of classes


def named(metric, label, **options):
    return {"metric": metric, "as": label, **options}


def test_each_alone():
    assert passes("deletion") == passes("insertion") == passes("lerf") == passes("faithfulness_estimate") == 16
    assert passes("srg") == 32
    assert passes("road") == 9 - 1  # it alone does not look at the image itself


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (["deletion", "lerf", "srg"], 32),
        (["pixel_flipping", named("deletion", "of the logit", output="logit")], 16),
        ([named("insertion", "i", baseline="black"), "lerf"], 16),  # what the one adds last the other takes first
        ([named("insertion", "i", baseline="black", step=10), named("lerf", "l", step=10)], 52),  # 256 is no multiple
        ([named("deletion", "d", absolute=True), "monotonicity_arya"], 16),
        (["deletion", "monotonicity_arya"], 32),  # one is in the order of a, one of |a|
        (["deletion", named("deletion", "d", baseline="mean")], 32),
        (["deletion", named("deletion", "d", step=32)], 24),
        (["road", named("road", "r", output="prediction"), named("road", "l", output="logit")], 9),
        (["faithfulness_estimate", named("faithfulness_estimate", "e", output="logit")], 16),
        ([named("region_perturbation", "r", window=4), named("selectivity", "s", window=4)], 16),
        ([named("region_perturbation", "r", window=4, regions=5), named("selectivity", "s", window=4)], 21),
        (
            [
                named("faithfulness_correlation", "c", subset_size=20, runs=7),
                named("faithfulness_correlation", "d", subset_size=20, runs=7, absolute=True),
            ],
            7,
        ),
        ([named("infidelity", "i", samples=9), named("infidelity", "j", samples=9, contributions=True)], 9),
        (["deletion", "insertion", "faithfulness_estimate", "sparseness"], 48),
    ],
)
def test_together(wanted, expected):
    assert passes(*wanted) == expected


MANY = [
    ["srg"],
    ["deletion", "lerf", "srg", "monotonicity_arya"],
    ["road", "deletion"],
    [{"metric": "irof", "segments": 16, "segmentation": "grid"}],
    [{"metric": "irof", "segments": 16, "segmentation": "grid"}, {"metric": "irof", "segments": 4, "segmentation": "grid",
                                                                    "as": "coarse"}],
    [{"metric": "region_perturbation", "window": 3}],
    ["region_perturbation", "selectivity"],
    [{"metric": "region_perturbation", "window": 1}],
    [{"metric": "selectivity", "window": 5}, {"metric": "region_perturbation", "window": 5}],
    [{"metric": "sensitivity_n", "runs": 4}],
    [{"metric": "monotonicity_correlation", "samples": 3, "step": 20}],
    [{"metric": "infidelity", "samples": 11}],
    [{"metric": "infidelity", "samples": 11, "noise": 0.1}],
    [{"metric": "faithfulness_correlation", "runs": 6, "subset_size": 9}, {"metric": "infidelity", "samples": 11}],
]  # fmt: skip


@pytest.mark.parametrize("wanted", MANY)
def test_a_study_predicts_the_passes(wanted, tmp_path):
    recipe = parse_recipe(tiny(tmp_path, methods=["control_random"], metrics=wanted))
    assert score_passes(recipe.metrics, 0, 256, layers=1) == passes(*wanted) + 1  # and the image itself


def test_every_metric_that_masks_predicts_its_passes():
    lacking = [n for n, e in metrics().items() if e.category == "faithfulness" and e.passes is None]
    assert not lacking


def test_together_everything_is_what_it_is_alone():
    # Whatever is shared under too short a name would answer for something else.
    images, maps = torch.randn(3, 1, 16, 16), torch.randn(3, 16, 16)
    clf = Classifier(Counting().eval(), channels=1, image_size=16, mean=[0.5], std=[0.5])
    fitting = {"runs": [4, 5], "samples": [4, 5], "subset_size": [20, 30], "window": [3, 4], "segments": [9, 16]}
    varied = {"absolute": [True], "baseline": ["mean"], "output": ["logit"], "step": [20], "regions": [5],
              "order": ["lerf"], "contributions": [True], "segmentation": ["grid"], "noise": [0.2]}  # fmt: skip
    wanted = []
    for name, entry in metrics().items():
        if entry.category != "faithfulness":
            continue
        first = {option: values[0] for option, values in fitting.items() if option in entry.options}
        others = [{**first, o: v} for o, vs in (varied | fitting).items() if o in entry.options for v in vs[-1:]]
        for options in (first, *others):
            if "noise" in options:
                options.pop("window")
            wanted.append({"metric": name, "as": f"{name} {options}", **options})
    given = {"targets": [0, 1, 2], "batch_size": 32}
    together = score_many(clf, images, maps, metrics=wanted, **given)
    for request in wanted:
        alone = score_many(clf, images, maps, metrics=[request], **given)
        assert torch.allclose(together[request["as"]], alone[request["as"]], atol=1e-5, equal_nan=True), request["as"]
    assert len(wanted) > 60
