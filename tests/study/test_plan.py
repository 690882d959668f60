"""The predicted number of forward passes, against passes that were counted."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from heatproof.explanation import explain, methods
from heatproof.models import Classifier
from heatproof.scoring import score_many
from heatproof.study.loading import parse_recipe
from heatproof.study.plan import ModelPlan, in_words, map_passes, score_passes, total
from heatproof.study.trial import try_methods
from support.studies import recipe as tiny


class Tally(list[int]):
    """One for a model and its copies."""

    def __deepcopy__(self, memo: Any) -> "Tally":
        return self


class Counting(nn.Module):
    """A linear model that counts the images it and its copies have seen."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.layer = nn.Linear(size * size, 2)
        self.tally = Tally()

    @property
    def seen(self) -> int:
        return sum(self.tally)

    def forward(self, images: Tensor) -> Tensor:
        self.tally.append(len(images))
        return self.layer(images.flatten(1))


@pytest.mark.parametrize(
    "metrics",
    [
        [],
        [{"metric": "faithfulness_estimate", "step": 20}],
        ["faithfulness_estimate"],
        [{"metric": "max_sensitivity", "samples": 3}],
        [{"metric": "max_sensitivity", "samples": 3}, {"metric": "avg_sensitivity", "samples": 3}],
        [{"metric": "max_sensitivity", "samples": 3}, {"metric": "avg_sensitivity", "samples": 4}],
        ["sparseness", "pointing_game"],
        ["deletion"],
        [{"metric": "insertion", "step": 10}, {"metric": "deletion", "step": 40}],
        [{"metric": "faithfulness_correlation", "runs": 30, "subset_size": 20}],
        [
            {"metric": "max_sensitivity", "samples": 9, "same_prediction": True},
            {"metric": "local_lipschitz", "samples": 9},
        ],
        [
            {"metric": "relative_input_stability", "samples": 9},
            {"metric": "relative_output_stability", "samples": 9},
            {"metric": "relative_representation_stability", "samples": 9},
            {"metric": "avg_sensitivity", "samples": 9},
        ],
        [{"metric": "continuity", "steps": 3}, "random_logit"],
        [
            "model_parameter_randomization",
            {"metric": "model_parameter_randomization", "similarity": "ssim", "as": "ssim"},
        ],
        [{"metric": "smooth_mprt", "samples": 2}],
        ["efficient_mprt", "input_invariance"],
        [{"metric": "non_sensitivity", "step": 3}, "completeness"],
        ["complexity", "effective_complexity"],
    ],
)
def test_passes_of_perturbation_methods_are_exact(metrics: list[Any], tmp_path: Path) -> None:
    recipe = parse_recipe(
        tiny(tmp_path, methods=[{"method": "lime", "samples": 12}], metrics=metrics or ["sparseness"])
    )
    net = Counting(16).eval()
    clf = Classifier(net, ["a", "b"], image_size=16, channels=1, mean=[0.5], std=[0.5])
    image = torch.rand(1, 1, 16, 16)
    maps = explain(clf, image, [0], method="lime", samples=12)
    once = net.seen
    net.tally.clear()
    if metrics:
        score_many(clf, image, maps, metrics=metrics, explain=("lime", {"samples": 12}), targets=[0], roi=maps > 0)
    counted = once + net.seen
    one_map = map_passes(methods()["lime"], recipe.methods[0].options)
    predicted = one_map + score_passes(recipe.metrics, one_map, 256, layers=1)
    assert counted - 6 <= predicted <= counted  # the front doors' own checks are not predicted


def test_passes_of_gradient_methods_count_the_way_back_and_those_of_smoothed_ones_their_base() -> None:
    found = methods()
    assert map_passes(found["saliency"], {}) == 3
    assert map_passes(found["expected_gradients"], {"samples": 7}) == 21
    assert map_passes(found["smoothgrad"], {"samples": 4}) == 12
    assert map_passes(found["vargrad"], {"samples": 4, "base": "integrated_gradients", "options": {"steps": 5}}) == 60


def test_a_model_is_trained_predicted_and_explained() -> None:
    plan = ModelPlan(
        training=600, prediction=50, explaining={"a": 10, "b": 7}, comparing={"a": 2, "b": 0}, cases=4, seconds=0.5
    )
    assert plan.passes == 600 + 50 + 4 * 19
    assert plan.time == plan.passes * 0.5
    assert total([plan, plan]) == (2 * plan.passes, 2 * plan.time)
    assert in_words(89) == "89 s"


def test_a_method_is_tried_with_few_draws_also_where_their_number_is_the_default(tmp_path: Path) -> None:
    net = Counting(16).eval()
    clf = Classifier(net, ["a", "b"], image_size=16, channels=1, mean=[0.5], std=[0.5])
    many = ["lime", "integrated_gradients", {"method": "lime", "samples": 500, "as": "lime_500"}]
    assert try_methods(parse_recipe(tiny(tmp_path, methods=many)), clf) == set()
    assert net.seen < 40
