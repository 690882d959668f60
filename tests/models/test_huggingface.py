"""`hf:` sources against transformers itself."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from heatproof.errors import InputError
from heatproof.models.sources import load_classifier
from support.hf import CONFIG, PROCESSOR, save_vit


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "vit"


def test_local_checkpoint_gives_its_own_logits_classes_and_preprocessing(folder):
    model = save_vit(folder)
    clf = load_classifier(f"hf:{folder}")
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(clf(images), model(images).logits)
    assert (clf.classes, clf.task) == (("a", "b", "c"), "multiclass")
    assert clf.preprocessing.mean == (0.4, 0.5, 0.6)
    assert clf.preprocessing.std == (0.2, 0.25, 0.4)
    assert (clf.preprocessing.image_size, clf.preprocessing.fit) == ((32, 32), "resize")
    assert str(folder) not in json.dumps(clf.source)


@pytest.mark.parametrize("size", [48, (16, 40)])
def test_another_image_size_interpolates_the_positions_as_transformers_does(folder, size):
    model = save_vit(folder)
    clf = load_classifier(f"hf:{folder}", image_size=size)
    images = torch.randn(2, 3, *(size if isinstance(size, tuple) else (size, size)))
    with torch.no_grad():
        want = model(images, interpolate_pos_encoding=True).logits
        torch.testing.assert_close(clf(images), want)


def test_classes_of_another_number_get_a_new_head_and_nothing_else(folder):
    model = save_vit(folder)
    clf = load_classifier(f"hf:{folder}", classes=["x", "y"], seed=1)
    other = load_classifier(f"hf:{folder}", classes=["x", "y"], seed=2)
    assert clf.source["new_weights"] == ["classifier.bias", "classifier.weight"]
    old, new = model.state_dict(), clf.module.state_dict()
    assert all(torch.equal(old[key], new[key]) for key in old if not key.startswith("classifier"))
    assert new["classifier.weight"].shape == (2, 24)
    assert not torch.equal(new["classifier.weight"], other.module.state_dict()["classifier.weight"])


def test_headless_checkpoint_needs_classes_and_leaves_its_pooler(folder):
    model = save_vit(folder, headless=True)
    with pytest.raises(InputError, match="no classification head"):
        load_classifier(f"hf:{folder}")
    clf = load_classifier(f"hf:{folder}", classes=["a", "b", "c"])
    assert clf.source["unused_weights"] == ["pooler.dense.bias", "pooler.dense.weight"]
    assert clf.source["new_weights"] == ["classifier.bias", "classifier.weight"]
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        token = model(images).last_hidden_state[:, 0]
        torch.testing.assert_close(clf(images), clf.module.classifier(token))


def test_the_same_number_of_classes_keeps_the_head_under_new_names(folder):
    model = save_vit(folder)
    clf = load_classifier(f"hf:{folder}", classes=["x", "y", "z"])
    assert torch.equal(clf.module.classifier.weight, model.classifier.weight)
    assert clf.source["new_weights"] == []
    with pytest.raises(InputError, match="order"):
        load_classifier(f"hf:{folder}", classes=["b", "a", "c"])


def test_repeated_labels_get_their_index(folder):
    save_vit(folder, labels=("crane", "maillot", "crane"))
    assert load_classifier(f"hf:{folder}").classes == ("crane (0)", "maillot", "crane (2)")


def test_a_body_weight_that_is_missing_or_unexpected_is_named(folder):
    from safetensors.torch import load_file, save_file

    save_vit(folder)
    state = load_file(folder / "model.safetensors")
    lost = state.pop("vit.layernorm.weight")
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"missing vit\.layernorm\.weight"):
        load_classifier(f"hf:{folder}", classes=["x", "y"])
    save_file(
        {**state, "vit.layernorm.weight": lost, "vit.gate": lost.clone()},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    with pytest.raises(InputError, match=r"unexpected vit\.gate"):
        load_classifier(f"hf:{folder}")


@pytest.mark.parametrize("user", [{}, {"mean": [0.3], "std": [0.2]}, {"mean": 0.3, "std": 0.2}])
def test_one_channel_equals_the_repeated_grey_image(folder, tmp_path, user):
    """Also where mean and std differ over the channels: the constants fold into the first bias."""
    save_vit(folder)
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "grey.png")
    three, one = (
        load_classifier(f"hf:{folder}", channels=3, **({} if "mean" not in user else {"mean": 0.3, "std": 0.2})),
        (load_classifier(f"hf:{folder}", channels=1, **user)),
    )
    assert three.read([tmp_path / "grey.png"]).shape == (1, 3, 32, 32)
    assert one.read([tmp_path / "grey.png"]).shape == (1, 1, 32, 32)
    with torch.no_grad():
        want, got = three(three.read([tmp_path / "grey.png"])), one(one.read([tmp_path / "grey.png"]))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    assert one.preprocessing.mean == pytest.approx((0.3 if user else 0.5,))
    assert one.preprocessing.std == pytest.approx((0.2 if user else 0.85 / 3,))


@pytest.mark.parametrize(
    ("changes", "raw_to_input"),
    [
        ({}, lambda byte: (byte / 255 - 0.5) / 0.25),
        ({"rescale_factor": 1 / 128}, lambda byte: (byte / 128 - 0.5) / 0.25),
        ({"do_rescale": False, "image_mean": [90] * 3, "image_std": [60] * 3}, lambda byte: (byte - 90) / 60),
        ({"do_normalize": False}, lambda byte: byte / 255),
    ],
)
def test_preprocessing_is_that_of_the_processor(folder, changes, raw_to_input):
    base = {**PROCESSOR, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    save_vit(folder, processor={**base, **changes})
    clf = load_classifier(f"hf:{folder}")
    byte = torch.arange(0, 256, 15.0).view(1, 1, -1).expand(3, 1, -1)
    torch.testing.assert_close(clf.preprocessing.normalize(byte / 255), raw_to_input(byte))


def test_crop_of_the_processor_scales_with_the_image_size(folder):
    crop = {"size": {"shortest_edge": 36}, "do_center_crop": True, "crop_size": {"height": 32, "width": 32}}
    save_vit(folder, processor={**PROCESSOR, **crop})
    own = load_classifier(f"hf:{folder}").preprocessing
    assert (own.fit, own.short_side, own.image_size) == ("crop", 36, (32, 32))
    double = load_classifier(f"hf:{folder}", image_size=64).preprocessing
    assert (double.fit, double.short_side) == ("crop", 72)
    given = load_classifier(f"hf:{folder}", image_size=64, short_side=64).preprocessing
    assert given.short_side == 64
    assert load_classifier(f"hf:{folder}", fit="resize").preprocessing.short_side is None


def test_without_a_processor_mean_and_std_must_be_given(folder):
    save_vit(folder, processor=None)
    with pytest.raises(InputError, match=r"preprocessor_config\.json"):
        load_classifier(f"hf:{folder}")
    assert load_classifier(f"hf:{folder}", mean=0.5, std=0.5).preprocessing.mean == (0.5, 0.5, 0.5)


def test_half_precision_weights_become_float32(folder):
    model = save_vit(folder, dtype=torch.float16)
    clf = load_classifier(f"hf:{folder}", classes=["x", "y"])
    assert {p.dtype for p in clf.module.parameters()} == {torch.float32}
    assert torch.equal(clf.module.vit.layernorm.weight, model.vit.layernorm.weight.float())


def test_multilabel_checkpoint(folder):
    save_vit(folder, problem_type="multi_label_classification")
    assert load_classifier(f"hf:{folder}").task == "multilabel"
    assert load_classifier(f"hf:{folder}", task="multiclass").task == "multiclass"


def test_random_weights_belong_to_their_seed_and_leave_the_global_one_alone():
    build = {"classes": ["a", "b"], "image_size": (16, 24), "channels": 1, **CONFIG}
    torch.manual_seed(5)
    want = torch.rand(3)
    torch.manual_seed(5)
    one, same, other = (load_classifier("hf:vit", seed=seed, **build) for seed in (3, 3, 4))
    assert torch.equal(torch.rand(3), want)
    assert all(torch.equal(a, b) for a, b in zip(one.module.parameters(), same.module.parameters(), strict=True))
    assert not torch.equal(one.module.classifier.weight, other.module.classifier.weight)
    assert one.module.vit.embeddings.position_embeddings.shape == (1, 1 + 2 * 3, 24)
    assert one(torch.zeros(1, 1, 16, 24)).shape == (1, 2)


def test_random_weights_equal_transformers_own_initialisation():
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(3)
    want = ViTForImageClassification(ViTConfig(**CONFIG, image_size=32, num_labels=2))
    got = load_classifier("hf:vit", classes=["a", "b"], image_size=32, seed=3, **CONFIG).module
    assert all(torch.equal(a, b) for a, b in zip(got.parameters(), want.parameters(), strict=True))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention_implementation_and_dropout_reach_the_model(folder, attention):
    save_vit(folder)
    options = {"attn_implementation": attention, "hidden_dropout_prob": 0.3}
    for clf in (
        load_classifier(f"hf:{folder}", **options),
        load_classifier("hf:vit", classes=["a", "b"], image_size=32, **CONFIG, **options),
    ):
        assert clf.module.config._attn_implementation == attention
        assert clf.module.vit.embeddings.dropout.p == 0.3


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("hf:vit", {"hidden_sise": 24}, "Did you mean 'hidden_size'"),
        ("hf:vit", {"hidden_size": 25}, "multiple of num_attention_heads"),
        ("hf:vit", {"hidden_size": "wide"}, "hidden_size must be like 768"),
        ("hf:vit", {"num_hidden_layers": 0}, "at least 1"),
        ("hf:vit", {"qkv_bias": 1}, "like True"),
        ("hf:vit", {"hidden_act": "gelo"}, "gelo"),
        ("hf:{folder}", {"hidden_dropout_prob": "much"}, "hidden_dropout_prob must be like 0"),
        ("hf:vit", {"image_size": 36}, r"such as \(32, 32\)"),
        ("hf:vit", {"classes": None}, "name them"),
        ("hf:vit", {"channels": 4}, "channels must be 1 or 3"),
        ("hf:vit", {"attn_implementation": "someone/kernels"}, "sdpa, eager"),
        ("hf:./nowhere", {}, "no such folder"),
        ("hf:a/b/c", {}, "neither a folder nor a hub id"),
        ("hf:{folder}", {"hidden_size": 24}, "no configuration keyword"),
        ("hf:{folder}", {"image_size": 36}, "do not tile"),
        ("hf:{folder}", {"mean": 0.5}, "belong together"),
        ("hf:{folder}", {"classes": []}, "empty"),
    ],
)
def test_bad_requests(folder, source, options, message):
    save_vit(folder)
    base = {"classes": ["a", "b"], "image_size": 32, **CONFIG} if source == "hf:vit" else {}
    with pytest.raises(InputError, match=message):
        load_classifier(source.format(folder=folder), **{**base, **options})


def test_one_channel_checkpoint_refuses_three(folder):
    save_vit(folder, num_channels=1, processor={**PROCESSOR, "image_mean": [0.5], "image_std": [0.5]})
    assert load_classifier(f"hf:{folder}").preprocessing.channels == 1
    with pytest.raises(InputError, match="takes 1 channels"):
        load_classifier(f"hf:{folder}", channels=3)


def test_pickled_weights_are_read_only_on_request(folder):
    model = save_vit(folder)
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="trust_pickle=True"):
        load_classifier(f"hf:{folder}")
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(load_classifier(f"hf:{folder}", trust_pickle=True)(images), model(images).logits)


def test_damaged_weights_and_other_architectures(folder, tmp_path):
    from transformers import ConvNextConfig

    save_vit(folder)
    (folder / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(InputError, match="cannot be loaded"):
        load_classifier(f"hf:{folder}")
    ConvNextConfig(num_labels=2).save_pretrained(tmp_path / "convnext")
    with pytest.raises(InputError, match="'convnext'"):
        load_classifier(f"hf:{tmp_path / 'convnext'}")


def test_unreachable_hub_id_says_what_to_do(monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="hf:nobody/nothing cannot be loaded: .*Check the id and the network"):
        load_classifier("hf:nobody/nothing")
