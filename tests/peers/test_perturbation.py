"""Occlusion as captum has it, and Kernel SHAP as the shap package has it."""

import numpy as np
import pytest
import shap
import torch
from captum.attr import KernelShap, Occlusion
from torch import nn

import heatproof as hp
from heatproof.probing.segments import grid
from support.nets import TinyCNN


class Probability(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x).softmax(1)


@pytest.mark.parametrize(("window", "stride"), [(8, 4), (7, 3), (16, 16)])
def test_occlusion_is_that_of_captum(window: int, stride: int) -> None:
    net, images, targets = TinyCNN().eval(), torch.randn(2, 3, 20, 20), torch.tensor([0, 2])
    with torch.no_grad():
        peer = Occlusion(Probability(net)).attribute(
            images, (3, window, window), (3, stride, stride), baselines=0.3, target=targets
        )
    found = hp.explain(net, images, targets, method="occlusion", window=window, stride=stride, baseline=0.3)
    torch.testing.assert_close(found, peer[:, 0].float(), atol=1e-5, rtol=1e-4)  # captum gives each channel the same


def test_kernel_shap_of_all_coalitions_is_that_of_shap() -> None:
    net, images = TinyCNN().eval(), torch.randn(2, 3, 16, 16)
    model, regions = Probability(net), grid(images, 3, 3)

    def coalition_value(image: torch.Tensor, segments: torch.Tensor, target: int):
        def value(on: np.ndarray) -> np.ndarray:
            keep = torch.from_numpy(on).bool()[:, segments]
            with torch.no_grad():
                return model(torch.where(keep[:, None], image[None], torch.tensor(0.3)))[:, target].double().numpy()

        return value

    found = hp.explain(net, images, [1, 2], method="kernel_shap", segments=9, segmentation="grid", baseline=0.3)
    for b, target in enumerate((1, 2)):
        explainer = shap.KernelExplainer(coalition_value(images[b], regions[b], target), np.zeros((1, 9)))
        peer = np.asarray(explainer.shap_values(np.ones((1, 9)), nsamples=2**9, l1_reg=False, silent=True))[0]
        np.testing.assert_allclose(found[b].numpy(), peer[regions[b].numpy()], atol=1e-5)


def test_kernel_shap_of_many_draws_comes_near_that_of_captum() -> None:
    """Two estimates from different draws: they must agree far better than either does with another target."""
    torch.manual_seed(0)
    net, images = TinyCNN().eval(), torch.randn(1, 3, 16, 16)
    regions = grid(images, 4, 4)
    peer = KernelShap(Probability(net)).attribute(
        images, baselines=0.3, target=1, feature_mask=regions[:, None].expand(-1, 3, -1, -1), n_samples=1500
    )[:, 0]
    options = {"method": "kernel_shap", "samples": 1500, "segments": 16, "segmentation": "grid", "baseline": 0.3}
    found, other = (hp.explain(net, images, [target], **options) for target in (1, 2))
    size = float(found.abs().max())
    assert (found - peer).abs().max() < 0.2 * size
    assert (other - peer).abs().max() > 0.5 * size
