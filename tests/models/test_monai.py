"""`monai:densenet121`; the download is replaced by a file as torchvision writes it."""

import re
from urllib.error import URLError

import pytest
import torch

from heatproof.errors import InputError
from heatproof.models.sources import load_classifier

SMALL = {"init_features": 8, "growth_rate": 4, "block_config": (2, 2)}


@pytest.fixture
def imagenet(monkeypatch):
    """Pretrained weights of the full network under torchvision's names."""
    import monai.networks.nets.densenet as module

    torch.manual_seed(7)
    network = module.DenseNet121(spatial_dims=2, in_channels=3, out_channels=1000).eval()
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if value.is_floating_point():
                value.copy_(torch.rand_like(value) + 0.5 if "running_var" in name else torch.randn_like(value) * 0.05)
    state = {
        re.sub(r"layers\.(norm|conv)(\d)", r"\1.\2", name): value.clone()
        for name, value in network.state_dict().items()
    }
    monkeypatch.setattr(module, "load_state_dict_from_url", lambda *_, **__: state)
    return network


def test_random_weights_are_monais_own_from_the_seed():
    from monai.networks.nets import DenseNet121

    torch.manual_seed(4)
    want = DenseNet121(spatial_dims=2, in_channels=1, out_channels=2, **SMALL)
    after = torch.rand(1)
    torch.manual_seed(4)
    DenseNet121(spatial_dims=2, in_channels=1, out_channels=2, **SMALL)
    clf = load_classifier("monai:densenet121", classes=["a", "b"], image_size=64, channels=1, seed=4, **SMALL)
    assert torch.equal(torch.rand(1), after)  # loading drew nothing from the global stream
    assert all(torch.equal(a, b) for a, b in zip(clf.module.parameters(), want.parameters(), strict=True))
    images = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        assert torch.equal(clf(images), want.eval()(images))
    assert (clf.preprocessing.mean, clf.preprocessing.image_size) == ((0.5,), (64, 64))


def test_pretrained_weights_are_all_loaded_and_one_channel_sums_them(imagenet):
    options = {"classes": ["a", "b"], "image_size": 64, "pretrained": True, "trust_pickle": True}
    three = load_classifier("monai:densenet121", **options)
    body = {k: v for k, v in three.module.state_dict().items() if not k.startswith("class_layers")}
    assert all(torch.equal(value, imagenet.state_dict()[key]) for key, value in body.items())
    assert three.preprocessing.mean == (0.485, 0.456, 0.406)
    one = load_classifier("monai:densenet121", channels=1, **options)
    averaged = three.with_preprocessing(mean=one.preprocessing.mean * 3)
    assert one.preprocessing.mean == pytest.approx(((0.485 + 0.456 + 0.406) / 3,))
    grey = torch.rand(2, 1, 64, 64)
    with torch.no_grad():
        want = three(averaged.preprocessing.normalize(grey.repeat(1, 3, 1, 1)))
        got = one(one.preprocessing.normalize(grey))
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4 * float(want.abs().max()))


def test_one_channel_with_a_mean_and_std_of_the_caller(imagenet):
    options = {"classes": ["a", "b"], "image_size": 64, "pretrained": True, "trust_pickle": True}
    one = load_classifier("monai:densenet121", channels=1, mean=0.3, std=0.2, **options)
    three = load_classifier("monai:densenet121", mean=0.3, std=0.2, **options)
    grey = torch.rand(2, 1, 64, 64)
    with torch.no_grad():
        want = three(three.preprocessing.normalize(grey.repeat(1, 3, 1, 1)))
        got = one(one.preprocessing.normalize(grey))
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4 * float(want.abs().max()))


def test_pretrained_weights_that_monai_drops_are_noticed(imagenet):
    with pytest.raises(InputError, match="did not come from the pretrained file"):
        load_classifier("monai:densenet121", classes=["a"], pretrained=True, trust_pickle=True, init_features=32)


def test_pretrained_needs_trust_and_a_network(monkeypatch):
    import monai.networks.nets.densenet as module

    def unreachable(*_, **__):
        raise URLError("no route")

    monkeypatch.setattr(module, "load_state_dict_from_url", unreachable)
    with pytest.raises(InputError, match="trust_pickle=True"):
        load_classifier("monai:densenet121", classes=["a"], pretrained=True)
    with pytest.raises(InputError, match=r"no route.*pretrained=False"):
        load_classifier("monai:densenet121", classes=["a"], pretrained=True, trust_pickle=True)


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("monai:densenet12", {}, "Did you mean 'densenet121'"),
        ("monai:densenet121", {"growth": 3}, "Did you mean 'growth_rate'"),
        ("monai:densenet121", {"classes": None}, "name them"),
        ("monai:densenet121", {"init_features": "many"}, "cannot be configured"),
        ("monai:densenet121", {"short_side": 40}, "short_side"),
    ],
)
def test_bad_requests(source, options, message):
    with pytest.raises(InputError, match=message):
        load_classifier(source, **{"classes": ["a", "b"], **options})
