"""The battery on small unmodified models of transformers and MONAI: two transformers, two CNNs."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import pytest
import torch
from torch import Tensor, nn

import heatproof as hp
from support import matrix
from support.explainer_battery import CNN, SWIN, VIT, blotches, check_on_model

RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic", "num_labels": 5}
MODELS: dict[str, tuple[Callable[[], nn.Module], Mapping[str, str], int]] = {
    "vit": (partial(matrix.hf_model, "ViT", "sdpa"), VIT, 32),
    "swin": (partial(matrix.hf_swin, "sdpa"), SWIN, 32),
    "resnet": (partial(matrix.hf_model, "ResNet", **RESNET), CNN, 32),
    "densenet121": (matrix.MODELS["monai-densenet"].build, CNN, 64),
}


@pytest.fixture(scope="module")
def table(request: pytest.FixtureRequest) -> Iterator[Counter[str]]:
    """How many cells came to what, printed when all have run."""
    found: Counter[str] = Counter()
    yield found
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print("\nexplainers on models: " + "; ".join(f"{count} {what}" for what, count in found.items()))  # noqa: T201


@pytest.fixture(scope="module", params=MODELS)
def case(request: pytest.FixtureRequest) -> tuple[hp.Classifier, Tensor, Mapping[str, str]]:
    """A model, images, and what the model lacks."""
    build, lacks, size = MODELS[request.param]
    torch.manual_seed(0)
    model = hp.Classifier(matrix.as_if_trained(build()), image_size=size, mean=[0.5] * 3, std=[0.25] * 3)
    return model, blotches(2, size), lacks


@pytest.mark.parametrize("method", list(hp.methods()))
def test_every_method_serves_the_model_or_says_why_not(
    case: tuple[hp.Classifier, Tensor, Mapping[str, str]], method: str, table: Counter[str]
) -> None:
    model, images, lacks = case
    table[check_on_model(method, model, images, lacks)] += 1
