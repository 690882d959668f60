"""The reference maps from an unmodified timm model, and Grad-CAM as pytorch-grad-cam has it."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn
from torch.nn import functional as F

import heatproof as hp
from support import matrix
from support.nets import TinyCNN
from support.reference import reference, weights, worst_share


@pytest.fixture
def vit(shared: Path) -> tuple[nn.Module, dict[str, Tensor]]:
    stored = reference(shared)
    model = timm.models.vision_transformer.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=48, depth=4, num_heads=3, mlp_ratio=2, num_classes=5,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
    )  # fmt: skip
    model.load_state_dict(weights(stored))
    return model.eval(), stored


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("start", [0, 1])
def test_transformer_lrp_of_a_timm_model(vit: tuple[nn.Module, dict[str, Tensor]], start: int, fused: bool) -> None:
    model, stored = vit
    for block in model.blocks:
        block.attn.fused_attn = fused
    maps = hp.explain(model, stored["x"], stored["t"], method="transformer_lrp", start_layer=start, resolution="native")
    assert worst_share(maps, stored[f"transformer_lrp_start{start}"]) < 1e-5


@pytest.mark.parametrize("fused", [True, False])
def test_chefers_full_propagation_of_a_timm_model(vit: tuple[nn.Module, dict[str, Tensor]], fused: bool) -> None:
    model, stored = vit
    for block in model.blocks:
        block.attn.fused_attn = fused
    maps = hp.explain(model, stored["x"], stored["t"], method="chefer")
    assert worst_share(maps, stored["full"]) < 1e-4


@pytest.mark.parametrize(
    "method",
    ["lrp_gamma", "lrp_alpha_beta", "lrp_zplus", "excitation_backprop", "deep_taylor", "lrp_composite", "attn_lrp", "cp_lrp",
     "integrated_gradients", "generic_attention"],
)  # fmt: skip
def test_fused_and_written_out_attention_of_a_timm_model_agree(
    vit: tuple[nn.Module, dict[str, Tensor]], method: str
) -> None:
    """Written out, timm scales the queries; fused, the scores are scaled."""
    model, stored = vit
    classifier = hp.Classifier(model.double(), image_size=32, mean=[0.5] * 3, std=[0.5] * 3)
    maps = []
    for fused in (True, False):
        for block in model.blocks:
            block.attn.fused_attn = fused
        maps.append(hp.explain(classifier, stored["x"].double().clamp(-1, 1), stored["t"], method=method))
    torch.testing.assert_close(*maps, rtol=1e-4, atol=1e-5 * float(maps[0].abs().max()))
    assert maps[0].isfinite().all()


def peer_gradcam(model: nn.Module, layer: nn.Module, images: Tensor, targets: list[int], **options: object) -> Tensor:
    with GradCAM(model=model, target_layers=[layer], **options) as cam:
        return torch.from_numpy(np.asarray(cam(images, [ClassifierOutputTarget(t) for t in targets])))


def test_gradcam_of_a_timm_model(vit: tuple[nn.Module, dict[str, Tensor]]) -> None:
    model, stored = vit
    targets = stored["t"].tolist()
    peer = peer_gradcam(
        model, model.blocks[-1].norm1, stored["x"], targets,
        reshape_transform=lambda tokens: tokens[:, 1:].transpose(1, 2).unflatten(2, (4, 4)),
    )  # fmt: skip
    assert_same_up_to_display_scaling(
        hp.explain(model, stored["x"], targets, method="gradcam", resolution="native"), peer
    )


def test_gradcam_of_a_cnn() -> None:
    model, images = TinyCNN().eval(), torch.rand(2, 3, 32, 32)
    peer = peer_gradcam(model, model.conv2, images, [1, 2])
    maps = hp.explain(model, images, [1, 2], method="gradcam", layer="conv2", resolution="native")
    assert_same_up_to_display_scaling(maps, peer)


LAYERS: list[tuple[Callable[[], nn.Module], str, int, bool]] = [  # the model, the layer, its side, channels last
    (matrix.torchvision_swin, "features.0", 16, True),
    (matrix.torchvision_swin, "features.3.1.norm1", 8, True),
    (matrix.torchvision_swin, "norm", 8, True),
    (matrix.torchvision_swin, "permute", 8, False),
    (matrix.timm_swin, "layers.0", 8, True),
    (matrix.timm_swin, "layers.1.blocks.0", 4, True),
    (matrix.timm_convnext, "stages.0.blocks.0.norm", 16, True),
    (matrix.timm_convnext, "stages.1.blocks.0", 8, False),
]


@pytest.mark.parametrize(("build", "layer", "side", "channels_last"), LAYERS)
def test_gradcam_where_channels_come_last(
    build: Callable[[], nn.Module], layer: str, side: int, channels_last: bool
) -> None:
    size = 32 if build is matrix.timm_swin else 64  # which knows one size
    model, images = matrix.as_if_trained(build()), torch.rand(2, 3, size, size)
    turn = (lambda features: features.permute(0, 3, 1, 2)) if channels_last else None
    peer = peer_gradcam(model, model.get_submodule(layer), images, [1, 2], reshape_transform=turn)
    maps = hp.explain(model, images, [1, 2], method="gradcam", layer=layer, resolution="native")
    assert maps.shape == (2, side, side)
    assert maps.count_nonzero() > 0
    assert_same_up_to_display_scaling(maps, peer)


def assert_same_up_to_display_scaling(maps: Tensor, peer: Tensor) -> None:
    """The peer scales each map to 0..1, resizes it bilinearly, and scales it once more."""
    resized = F.interpolate(to_unit_range(maps)[:, None], peer.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    torch.testing.assert_close(to_unit_range(resized), peer, atol=1e-3, rtol=0)


def to_unit_range(maps: Tensor) -> Tensor:
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return (maps - low) / (high - low + 1e-7)  # as the peer has it: a map of zeros stays one
