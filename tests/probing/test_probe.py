import itertools

import pytest
import torch
from torch import nn

from heatproof.errors import InputError
from heatproof.models import Classifier, Targets
from heatproof.probing import (
    MicroBatch,
    RankMasks,
    SampleRandom,
    SegmentMasks,
    bind,
    microbatch,
    precision,
    rank_pixels,
)
from support.cases import PixelSum, Wavy
from support.nets import TinyCNN


def ranked(images, step):
    return RankMasks.successive(
        rank_pixels(images[:, 0], SampleRandom(0, [str(i) for i in range(len(images))])).ranks, step
    )


def bound(model, images, score=lambda outputs: outputs, **options):
    return bind(model, images, score, random=SampleRandom(0, [str(i) for i in range(len(images))]), **options)


def one_by_one(model, images, masks, baseline):
    """Every masked image on its own, `[B, K, classes]`."""
    chunk = masks.chunk(0, masks.count)
    with torch.no_grad():
        rows = [
            torch.cat([model(x.where(~m, baseline)[None]) for m in row]) for x, row in zip(images, chunk, strict=True)
        ]
    return torch.stack(rows)


@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 100, None])
def test_every_masked_image_is_evaluated_once_whatever_the_micro_batch(batch, size):
    model = Classifier(Wavy(channels=2).eval(), channels=3)
    images = torch.randn(batch, 2, 8, 8)
    masks = ranked(images, 6)
    found = bound(model, images, batch_size=size)(masks, baseline=0.25, output="logit")
    expected = one_by_one(model, images, masks, torch.tensor(0.25))
    assert found.shape == (batch, 11, 3)
    assert torch.allclose(found, expected, atol=1e-6)


def test_probabilities_of_the_task():
    images = torch.randn(2, 1, 8, 8)
    masks = ranked(images, 20)
    logits = one_by_one(Wavy(), images, masks, torch.tensor(0.0))
    for task, expected in (("multiclass", logits.softmax(-1)), ("multilabel", logits.sigmoid())):
        model = Classifier(Wavy().eval(), task=task)
        assert torch.allclose(bound(model, images)(masks, baseline=0), expected, atol=1e-6)


def test_targets_see_rows_of_their_own_image():
    model = Classifier(PixelSum(torch.randn(4, 1, 6, 6)).eval())
    images = torch.randn(3, 1, 6, 6)
    masks = ranked(images, 5)
    every = bound(model, images)(masks, baseline=0.0, output="logit")
    targets = Targets(torch.tensor([[0, 1], [2, 3], [1, 0]]), torch.tensor([[3, 3], [0, 0], [2, 2]]))
    found = bound(model, images, targets.score, batch_size=4)(masks, baseline=0.0, output="logit")
    assert found.shape == (3, 8, 2)
    for b in range(3):
        for t in range(2):
            expected = every[b, :, targets.index[b, t]] - every[b, :, targets.against[b, t]]
            assert torch.allclose(found[b, :, t], expected, atol=1e-5)


def test_a_single_score_has_no_target_dimension():
    images = torch.randn(3, 1, 8, 8)
    assert bound(Classifier(Wavy().eval()), images, lambda out: out[:, 1])(ranked(images, 16), baseline=0).shape == (
        3,
        4,
    )


def test_unmasked_outputs_run_once():
    calls = []
    net = Wavy().eval()
    net.register_forward_hook(lambda module, inputs, output: calls.append(len(inputs[0])))
    images = torch.randn(4, 1, 8, 8)
    probe = bound(Classifier(net), images, lambda out: out[:, 2], batch_size=4)
    assert torch.allclose(probe.unmasked(output="logit"), net(images)[:, 2])
    calls.clear()
    assert torch.allclose(probe.unmasked(), Classifier(net).probabilities(probe.logits(images))[:, 2])
    assert calls == [4]  # the comparison's own


def test_masks_are_asked_for_in_chunks_of_the_micro_batch():
    class Counted(SegmentMasks):
        largest = 0

        def chunk(self, start, stop):
            self.largest = max(self.largest, stop - start)
            return super().chunk(start, stop)

    images = torch.randn(2, 1, 8, 8)
    masks = Counted(torch.arange(64).view(1, 8, 8).expand(2, -1, -1) // 16, torch.rand(2, 500, 4) > 0.5)
    bound(Classifier(Wavy().eval()), images, batch_size=12)(masks, baseline=0)
    assert masks.largest == 6


def test_the_search_for_the_micro_batch_goes_on_within_one_probe(monkeypatch):
    now = itertools.count()
    # every pass takes as long as any other: the larger the better
    monkeypatch.setattr(microbatch.time, "perf_counter", lambda: next(now))
    sizes, net, images = [], Wavy().eval(), torch.randn(2, 1, 8, 8)
    net.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    masks = ranked(images, 1)
    found = bound(Classifier(net), images)(masks, baseline=0)
    assert max(sizes) == 32
    assert sum(sizes) == 2 * masks.count
    assert torch.allclose(found, bound(Classifier(net), images, batch_size=1)(masks, baseline=0))


def test_progress_reports_the_share_that_is_done():
    seen = []
    images = torch.randn(2, 1, 8, 8)
    bound(Classifier(Wavy().eval()), images, batch_size=4, progress=seen.append)(ranked(images, 16), baseline=0)
    assert seen == [0.5, 1.0]


def test_nothing_leaks():
    net = Wavy().eval()
    images = torch.randn(2, 1, 8, 8)
    before, state = images.clone(), torch.get_rng_state()
    found = bound(Classifier(net), images)(ranked(images, 16), baseline="noise")
    assert torch.equal(images, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert not found.requires_grad
    assert torch.is_grad_enabled()
    assert net.weights.grad is None
    assert net.weights.requires_grad


def test_a_shared_micro_batch_keeps_what_it_learned():
    micro = MicroBatch()
    images = torch.randn(2, 1, 8, 8)
    bound(Classifier(Wavy().eval()), images, batch_size=micro)(ranked(images, 1), baseline=0)
    assert micro.size > 1 or micro.settled


def test_bf16_is_close_to_fp32_and_not_the_same():
    if not precision.bf16_supported():
        pytest.skip("this CPU has no bfloat16 arithmetic")
    images = torch.randn(2, 3, 16, 16)
    model, masks = Classifier(TinyCNN().eval()), ranked(images, 64)
    exact = bound(model, images)(masks, baseline=0, output="logit")
    rounded = bound(model, images, precision="bf16")(masks, baseline=0, output="logit")
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).abs().max() < 0.02 * exact.abs().max()


def test_bf16_does_not_round_the_logits_themselves():
    """A logit near 3 would be a multiple of 1/64, and the effect of a small mask would vanish in that."""
    if not precision.bf16_supported():
        pytest.skip("this CPU has no bfloat16 arithmetic")
    images = torch.randn(64, 3, 16, 16)
    head = nn.Linear(8, 3)
    nn.init.constant_(head.bias, 3.0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
    logits = precision.forward_pass(net, images, "bf16")
    assert (logits != logits.bfloat16().float()).float().mean() > 0.5
    with torch.autocast("cpu", torch.bfloat16):
        features = net[:3](images.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(logits, head(features.float()))


@pytest.mark.parametrize("flatten", ["view", "reshape"])
def test_bf16_serves_models_that_insist_on_the_layout_of_their_images(flatten):
    if not precision.bf16_supported():
        pytest.skip("this CPU has no bfloat16 arithmetic")
    layouts = []

    class Particular(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4 * 36, 2)

        def forward(self, x):
            layouts.append(x.is_contiguous(memory_format=torch.channels_last))
            return self.head(getattr(self.conv(x), flatten)(len(x), -1))

    net, images = Particular().eval(), torch.randn(2, 3, 8, 8)
    exact = net(images)
    layouts.clear()
    torch.testing.assert_close(precision.forward_pass(net, images, "bf16"), exact, atol=0.02, rtol=0.02)
    assert layouts == ([True, False] if flatten == "view" else [True])
    assert torch.equal(precision.forward_pass(net, images, "fp32"), exact)


def test_an_error_of_the_model_itself_is_not_taken_for_one_of_layout():
    def broken(_):
        raise RuntimeError("no such thing")

    if precision.bf16_supported():
        with pytest.raises(RuntimeError, match="no such thing"):
            precision.forward_pass(broken, torch.randn(1, 3, 4, 4), "bf16")


def test_bf16_without_the_hardware_is_an_error(monkeypatch):
    monkeypatch.setattr(precision, "bf16_supported", lambda device: False)
    with pytest.raises(InputError, match=r"bf16.*this cpu does not have"):
        bound(Classifier(Wavy().eval()), torch.randn(1, 1, 8, 8), precision="bf16")
    with pytest.raises(InputError, match="precision must be 'fp32' or 'bf16', got 'fp16'"):
        bound(Classifier(Wavy().eval()), torch.randn(1, 1, 8, 8), precision="fp16")


def test_what_does_not_fit_is_refused():
    images = torch.randn(2, 1, 8, 8)
    probe = bound(Classifier(Wavy().eval()), images)
    with pytest.raises(InputError, match="no masks to probe"):
        probe(RankMasks(torch.arange(64).view(1, 8, 8).expand(2, -1, -1), [], []))
    with pytest.raises(InputError, match=r"Masks \[2, 1, 4, 4\] do not fit images \[2, 1, 8, 8\]"):
        probe(ranked(images[..., :4, :4], 16), baseline=0)
    with pytest.raises(InputError, match="output must be"):
        probe(ranked(images, 16), baseline=0, output="loss")
