"""Depth groups and freezing on a ViT, a DenseNet and networks written by hand."""

import pytest
import torch
from torch import nn

from heatproof.errors import InputError
from heatproof.models.sources import load_classifier
from heatproof.study.recipe import TrainingSpec
from heatproof.training.layers import depths, frozen, frozen_batch_norms, head_of, is_frozen, parameter_groups
from heatproof.training.options import Options
from support.nets import TinyCNN, TinyViT

HF = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48, "patch_size": 8}
SMALL = {"init_features": 8, "growth_rate": 4, "block_config": (2, 2)}


def _options(**changes):
    return Options.of(**{**TrainingSpec().model_dump(), "seed": 0, "device": "cpu", **changes})


def _hf():
    return load_classifier("hf:vit", classes=["a", "b"], image_size=16, channels=1, **HF).module


def _densenet():
    return load_classifier("monai:densenet121", classes=["a", "b"], image_size=32, channels=1, **SMALL).module


def _by_depth(module, *parts):
    """The depth of the parameters whose names hold each of `parts`."""
    found = depths(module)
    assert list(found) == [name for name, _ in module.named_parameters()]
    return [sorted({depth for name, depth in found.items() if part in name}) for part in parts]


def test_depths_of_vits():
    """As in BEiT: embeddings 0, block i has i + 1, the last norm and the head one more."""
    tokens = ("cls_token", "pos_embed", "patch_embed", "blocks.0.", "blocks.3.", "head.")
    assert _by_depth(TinyViT(), *tokens) == [[0], [0], [0], [1], [4], [5]]
    assert [depths(TinyViT())[name] for name in ("norm.weight", "norm.bias")] == [5, 5]
    assert _by_depth(_hf(), "embeddings", ".0.", ".1.", ".2.", "vit.layernorm", "classifier") == [
        [0], [1], [2], [3], [4], [4],
    ]  # fmt: skip


def test_depths_of_a_densenet():
    got = _by_depth(_densenet(), "conv0", "norm0", "denseblock1", "transition1", "denseblock2", "norm5", "class_layers")
    assert got == [[0], [0], [1], [2], [3], [4], [4]]


def test_depths_of_other_networks():
    assert _by_depth(TinyCNN(), "conv1", "bn1", "conv2", "bn2", "head") == [[0], [1], [2], [3], [4]]

    class Staged(nn.Module):
        """Stages with a scale of their own, and a layer between them."""

        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(1, 4, 3)
            self.stage1 = nn.Sequential(nn.Conv2d(4, 4, 3))
            self.stage1.register_parameter("gamma", nn.Parameter(torch.ones(4)))
            self.between = nn.BatchNorm2d(4)
            self.stage2 = nn.Sequential(nn.Conv2d(4, 4, 3))
            self.fc = nn.Linear(4, 2)

    assert _by_depth(Staged(), "stem", "stage1", "between", "stage2", "fc") == [[0], [1], [1], [2], [3]]


def test_rates_and_decay_of_the_groups():
    vit = TinyViT(depth=2)
    names = {id(p): name for name, p in vit.named_parameters()}
    groups = parameter_groups(vit, _options(lr=0.1, layer_decay=0.5, weight_decay=0.03))
    rates = {names[id(p)]: (g["lr"], g["top_lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert len(rates) == len(names)
    assert rates["head.weight"] == pytest.approx((0.1, 0.1, 0.03))
    assert rates["head.bias"] == pytest.approx((0.1, 0.1, 0))
    assert rates["norm.weight"] == pytest.approx((0.1, 0.1, 0))
    assert rates["blocks.1.attn.qkv.weight"] == pytest.approx((0.05, 0.05, 0.03))
    assert rates["blocks.0.norm1.bias"] == pytest.approx((0.025, 0.025, 0))
    assert rates["pos_embed"] == pytest.approx((0.0125, 0.0125, 0))


def test_without_layer_decay_there_is_one_rate():
    groups = parameter_groups(TinyViT(), _options())
    assert sorted((g["lr"], g["weight_decay"]) for g in groups) == [(1e-4, 0.0), (1e-4, 0.01)]


def test_a_layer_decay_without_effect_is_refused():
    vit = TinyViT()
    with frozen(vit, "backbone", 5), pytest.raises(InputError, match="layer_decay=0.5 has no effect"):
        parameter_groups(vit, _options(layer_decay=0.5))


@pytest.mark.parametrize(
    ("net", "head", "trained"),
    [
        (TinyViT, "head", {"head.weight", "head.bias"}),
        (TinyCNN, "head", {"head.weight", "head.bias"}),
        (_hf, "classifier", {"classifier.weight", "classifier.bias"}),
        (_densenet, "class_layers.out", {"class_layers.out.weight", "class_layers.out.bias"}),
    ],
)
def test_the_backbone_is_all_but_the_head(net, head, trained):
    module = net()
    outputs = len(module.get_submodule(head).bias)
    assert head_of(module, outputs) == head
    with frozen(module, "backbone", outputs):
        assert {name for name, p in module.named_parameters() if p.requires_grad} == trained
        assert frozen_batch_norms(module, "backbone", outputs) == [
            m for m in module.modules() if isinstance(m, nn.BatchNorm2d)
        ]
    assert all(p.requires_grad for p in module.parameters())


def test_a_head_that_is_not_the_last_layer_is_refused():
    class HeadFirst(nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.body = nn.Linear(7, 2), nn.Linear(4, 7)

    with pytest.raises(InputError, match="'body.weight', has 7 outputs for 2 classes. Name what is frozen"):
        head_of(HeadFirst(), 2)


def test_patterns_cover_names_and_what_lies_below_them():
    vit = TinyViT()
    cases = [
        (["blocks.0"], {"blocks.0."}),
        (["blocks.*.attn"], {".attn."}),
        (["*.bias"], {".bias"}),
        (["cls_token", "head"], {"cls_token", "head."}),
    ]
    for patterns, parts in cases:
        for name, _ in vit.named_parameters():
            assert is_frozen(name, vit, patterns, 5) == any(part in name for part in parts), (patterns, name)
    assert not is_frozen("blocks.01.norm1.weight", vit, ["blocks.0"], 5)


def test_freezing_is_undone_also_after_an_error():
    net = TinyCNN()
    net.conv1.weight.requires_grad_(False)

    def inside():
        with frozen(net, ["conv*", "bn1"], 3):
            trained = {name for name, p in net.named_parameters() if p.requires_grad}
            assert trained == {"bn2.weight", "bn2.bias", "head.weight", "head.bias"}
            assert frozen_batch_norms(net, ["conv*", "bn1"], 3) == [net.bn1]
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        inside()
    assert {name for name, p in net.named_parameters() if not p.requires_grad} == {"conv1.weight"}


def test_a_batch_norm_without_parameters_goes_by_its_name():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2, affine=False), nn.Flatten(), nn.Linear(2, 2))
    assert frozen_batch_norms(net, ["0"], 2) == []
    assert frozen_batch_norms(net, "backbone", 2) == [net[1]]


def test_what_cannot_be_frozen():
    net = TinyCNN()
    for freeze, message in [
        (["conv3"], "'conv3' covers no parameter. Did you mean 'conv"),
        (["*"], "No parameter of the model may be trained"),
    ]:
        with pytest.raises(InputError, match=message), frozen(net, freeze, 3):
            pass
        assert all(p.requires_grad for p in net.parameters())
