"""Checkpoints: the same logits come back, and nothing half-written is ever taken for whole."""

import errno
import json

import pytest
import torch
from torch import nn

from heatproof.errors import InputError
from heatproof.models import Classifier
from heatproof.models import checkpoint as module
from heatproof.models.checkpoint import (
    load_checkpoint,
    read_description,
    remove_temporaries,
    replace_file,
    save_checkpoint,
)
from heatproof.models.sources import load_classifier
from support.hf import CONFIG, save_vit
from support.nets import TinyCNN


def _sources(tmp_path):
    save_vit(tmp_path / "hub")
    vit = load_classifier(
        "hf:vit", classes=["a", "b"], image_size=(16, 24), channels=1, attn_implementation="eager", **CONFIG
    )
    hub = load_classifier(f"hf:{tmp_path / 'hub'}", classes=["x", "y"], image_size=48)
    net = load_classifier(
        "monai:densenet121", classes=["ü", "b"], image_size=64, channels=1, mean=0.3, std=0.1, fit="crop", short_side=80,
        task="multilabel", init_features=8, growth_rate=4, block_config=(2, 2),
    )  # fmt: skip
    return {"vit": vit, "hub": hub, "net": net}


@pytest.mark.parametrize("name", ["vit", "hub", "net"])
def test_round_trip_is_bit_equal(tmp_path, name):
    clf = _sources(tmp_path)[name]
    with torch.no_grad():
        for parameter in clf.module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    state = torch.get_rng_state()
    save_checkpoint(clf, tmp_path / "out", extra={"epochs": 3})
    back = load_checkpoint(tmp_path / "out")
    assert torch.equal(torch.get_rng_state(), state)
    images = torch.randn(3, clf.preprocessing.channels, *clf.preprocessing.image_size)
    with torch.no_grad():
        assert torch.equal(back(images), clf(images))
    assert back.preprocessing == clf.preprocessing
    assert (back.classes, back.task) == (clf.classes, clf.task)
    assert json.loads(json.dumps(clf.source)) == back.source
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["model.json", "model.safetensors"]
    assert read_description(tmp_path / "out")["extra"] == {"epochs": 3}
    if name == "vit":
        assert back.module.config._attn_implementation == "eager"


def test_load_classifier_reads_a_checkpoint_and_refuses_what_contradicts_it(tmp_path):
    clf = _sources(tmp_path)["vit"]
    folder = save_checkpoint(clf, tmp_path / "out")
    back = load_classifier(folder, classes=["a", "b"], image_size=(16, 24), channels=1, mean=[0.5], std=[0.5])
    assert torch.equal(back(torch.ones(1, 1, 16, 24)), clf(torch.ones(1, 1, 16, 24)))
    for options, message in [
        ({"classes": ["b", "a"]}, "classes"),
        ({"image_size": 24}, r"image_size=\(16, 24\), got \(24, 24\)"),
        ({"task": "multilabel"}, "task"),
        ({"mean": 0.1, "std": 0.5}, "mean"),
        ({"hidden_size": 3}, "no configuration keywords"),
    ]:
        with pytest.raises(InputError, match=message):
            load_classifier(folder, **options)


class Tied(nn.Module):
    """Two layers that share one weight."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(self.first(x.flatten(1)))


def test_a_module_of_the_callers_with_shared_weights(tmp_path):
    clf = Classifier(Tied().eval(), classes=list("abcd"), image_size=2, channels=1, mean=[0.5], std=[0.5])
    folder = save_checkpoint(clf, tmp_path)
    with pytest.raises(InputError, match="module="):
        load_checkpoint(folder)
    back = load_checkpoint(folder, module=Tied())
    images = torch.randn(2, 1, 2, 2)
    assert torch.equal(back(images), clf(images))
    assert back.module.first.weight is back.module.second.weight
    with pytest.raises(InputError, match="does not fit Linear"):
        load_checkpoint(folder, module=nn.Linear(4, 4))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_floating_types_come_back(tmp_path, dtype):
    torch.manual_seed(3)
    clf = Classifier(TinyCNN().to(dtype).eval(), image_size=8)
    save_checkpoint(clf, tmp_path)
    back = load_checkpoint(tmp_path, module=TinyCNN())
    images = torch.randn(2, 3, 8, 8, dtype=dtype)
    with torch.no_grad():
        assert torch.equal(back(images), clf(images))
    assert back.classes is None


def test_saving_leaves_the_module_alone(tmp_path):
    net = TinyCNN().train()
    before = {name: (value, value.clone()) for name, value in net.state_dict(keep_vars=True).items()}
    save_checkpoint(Classifier(net, image_size=8), tmp_path)
    assert net.training
    for name, value in net.state_dict(keep_vars=True).items():
        assert value is before[name][0]
        assert torch.equal(value, before[name][1])


@pytest.mark.parametrize("stop_at", ["model.safetensors", "model.json"])
def test_an_interrupted_save_keeps_the_old_checkpoint_or_is_recognised(tmp_path, monkeypatch, stop_at):
    old, new = (Classifier(TinyCNN().eval(), image_size=8) for _ in range(2))
    with torch.no_grad():
        new.module.head.bias.add_(1)
    save_checkpoint(old, tmp_path)

    def dies(path, write):
        if path.name == stop_at:
            path.with_name("half-written.tmp").write_bytes(b"...")
            raise KeyboardInterrupt
        return replace_file(path, write)

    monkeypatch.setattr(module, "replace_file", dies)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(new, tmp_path)
    if stop_at == "model.safetensors":
        assert torch.equal(load_checkpoint(tmp_path, module=TinyCNN()).module.head.bias, old.module.head.bias)
    else:
        with pytest.raises(InputError, match="interrupted"):
            load_checkpoint(tmp_path, module=TinyCNN())


def test_a_failed_write_leaves_the_file_and_no_rubbish(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fails(temporary):
        temporary.write_text("ne")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        replace_file(path, fails)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("a.txt", "old")]


def _damage(folder, **changes):
    path = folder / "model.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "model.json").unlink(), "has no model.json"),
        (lambda f: (f / "model.safetensors").unlink(), "has no model.safetensors"),
        (lambda f: (f / "model.json").write_text("{"), "damaged"),
        (lambda f: (f / "model.json").write_text("[]"), "schema None"),
        (lambda f: _damage(f, schema=2), "schema 2; .* reads schema 1"),
        (lambda f: (f / "model.json").write_text('{"schema": 1, "task": "multiclass"}'), "lacks classes"),
        (lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-1]), "not the file"),
        (lambda f: _damage(f, source={"library": "keras"}), "unknown library 'keras'"),
        (lambda f: _damage(f, source={"library": "monai"}), "cannot be built"),
        (lambda f: _damage(f, dtype="load"), "unknown floating type 'load'"),
        (lambda f: _damage(f, weights="model.safetensors"), "not the file"),
        (lambda f: (f / "model.json").write_bytes(b"\xff\xfe{"), "damaged"),
        (lambda f: _damage(f, preprocessing={"size": 3}), "damaged"),
    ],
)
def test_damaged_checkpoints_are_refused(tmp_path, damage, message):
    save_checkpoint(_sources(tmp_path)["net"], tmp_path / "out")
    damage(tmp_path / "out")
    with pytest.raises(InputError, match=message):
        load_checkpoint(tmp_path / "out")


def test_pickles_are_refused(tmp_path):
    (tmp_path / "weights.pt").write_bytes(b"")
    for path in (tmp_path, tmp_path / "weights.pt"):
        with pytest.raises(InputError, match=r"weights\.pt is a pickle"):
            load_classifier(path)


@pytest.mark.parametrize("archive", [True, False])
def test_a_pickle_is_known_by_its_content(tmp_path, archive):
    """`torch.save` in both of its formats, under names that say nothing, in the place of the weights too."""
    folder = save_checkpoint(_sources(tmp_path)["net"], tmp_path / "out")
    for path in (tmp_path / "epoch10", tmp_path / "models" / "best", folder / "model.safetensors"):
        path.parent.mkdir(exist_ok=True)
        torch.save({"w": torch.ones(1)}, path, _use_new_zipfile_serialization=archive)
    for source in (tmp_path / "epoch10", tmp_path / "models", folder):
        with pytest.raises(InputError, match=r"is a pickle.*Convert it(?s:.*)weights_only=True(?s:.*)save_checkpoint"):
            load_classifier(source)


def test_the_advice_for_a_pickle_works(tmp_path):
    """The two lines of the message, run as they stand."""
    torch.manual_seed(4)
    old = TinyCNN()
    torch.save(old.state_dict(), tmp_path / "weights.pt")
    module_ = TinyCNN()
    module_.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    save_checkpoint(Classifier(module_, classes=["a", "b", "c"], image_size=8), tmp_path / "folder")
    back = load_checkpoint(tmp_path / "folder", module=TinyCNN())
    assert torch.equal(back.module.head.weight, old.head.weight)


def test_a_single_file_is_no_checkpoint(tmp_path):
    folder = save_checkpoint(_sources(tmp_path)["net"], tmp_path / "out")
    with pytest.raises(InputError, match=r"model\.safetensors is no Heatproof checkpoint"):
        load_classifier(folder / "model.safetensors")


def test_weights_of_other_classes_are_refused(tmp_path):
    folder = save_checkpoint(_sources(tmp_path)["vit"], tmp_path / "out")
    with pytest.raises(InputError, match=r"was saved with classes=\('a', 'b'\), got \('a', 'c'\)"):
        load_classifier(folder, classes=["a", "c"])


def test_only_what_a_killed_write_left_is_removed(tmp_path):
    names = [".model.json.123.tmp", ".history.csv.7.tmp", "model.json", ".notes.tmp", "x.1.tmp"]
    for name in names:
        (tmp_path / name).write_text("")
    remove_temporaries(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names[2:])


def test_what_cannot_be_saved(tmp_path):
    clf = Classifier(TinyCNN(), image_size=8)
    with pytest.raises(InputError, match="JSON"):
        save_checkpoint(clf, tmp_path / "new", extra={"loss": float("nan")})
    clf.module.head.half()
    with pytest.raises(InputError, match="float16, float32"):
        save_checkpoint(clf, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("source", "message"),
    [("tv:resnet18", "Known: hf:, monai:"), ("runs/nowhere", "neither a checkpoint folder"), ("mona:x", "'monai:'")],
)
def test_unknown_sources(source, message):
    with pytest.raises(InputError, match=message):
        load_classifier(source)


def test_a_disk_that_takes_no_more_is_an_os_error_and_leaves_nothing(tmp_path):
    """A limit on the size of files stands for a full disk: the writer meets a real error of the system."""
    resource = pytest.importorskip("resource")
    clf = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(4096, 4)).eval(), list("abcd"), image_size=64, channels=1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            save_checkpoint(clf, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno == errno.EFBIG
    assert not list(tmp_path.iterdir())
