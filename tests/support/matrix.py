"""Small unmodified models of the libraries that people use, with random weights: no file and no network is needed."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from support import odd_models as odd

CLASSES = 5


@dataclass(frozen=True)
class Entry:
    """How to build a model that takes `[B, 3, size, size]`, and which attention the methods of that family find in it."""

    build: Callable[[], nn.Module]
    size: int = 32
    attention: str = (
        "none"  # none | whole (every block attends over the whole image) | windowed | class (its own blocks)
    )
    needs: tuple[str, ...] = ()  # packages that the library itself needs for this model


def installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def as_if_trained(model: nn.Module) -> nn.Module:
    """The model in evaluation mode with biases, running statistics, scales and shifts that are not those of a new one."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim <= 1 and ("bias" in name or "beta" in name):
                nn.init.normal_(parameter, std=0.1)
            elif parameter.ndim == 1:  # scales of norms and layer scales
                nn.init.uniform_(parameter, 0.5, 1.5)
            elif name in ("cls_token", "dist_token", "reg_token", "pos_embed", "position_embeddings"):
                nn.init.normal_(parameter, std=0.1)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval()


def timm_model(name: str, **options: object) -> nn.Module:
    import timm

    return timm.create_model(name, num_classes=CLASSES, **options)


def timm_vit(**options: object) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    small = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": CLASSES}
    return VisionTransformer(**{**small, **options})


def timm_swiglu() -> nn.Module:
    from timm.layers import SwiGLUPacked

    return timm_vit(mlp_ratio=2.66667 * 2, mlp_layer=SwiGLUPacked, act_layer=nn.SiLU, init_values=1e-5, reg_tokens=4,
                    no_embed_class=True)  # fmt: skip


def timm_unfused(**options: object) -> nn.Module:
    model = timm_vit(**options)
    for block in model.blocks:
        block.attn.fused_attn = False
    return model


def timm_deit() -> nn.Module:
    from timm.models.deit import VisionTransformerDistilled

    return VisionTransformerDistilled(
        img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3, num_classes=CLASSES
    )


def timm_swin() -> nn.Module:
    from timm.models.swin_transformer import SwinTransformer

    return SwinTransformer(
        img_size=32, patch_size=4, embed_dim=12, depths=(2, 2), num_heads=(2, 4), window_size=4, num_classes=CLASSES
    )


def timm_convnext(**options: object) -> nn.Module:
    from timm.models.convnext import ConvNeXt

    return ConvNeXt(depths=(1, 1, 1, 1), dims=(8, 12, 16, 24), num_classes=CLASSES, **options)


def timm_maxvit() -> nn.Module:
    from timm.models.maxxvit import MaxxVit, MaxxVitCfg, MaxxVitTransformerCfg

    transformer = MaxxVitTransformerCfg(dim_head=8, window_size=(2, 2), grid_size=(2, 2))
    config = MaxxVitCfg(
        embed_dim=(8, 16), depths=(1, 1), block_type=("M", "M"), stem_width=8, transformer_cfg=transformer
    )
    return MaxxVit(config, img_size=32, num_classes=CLASSES)


def timm_cait() -> nn.Module:
    from timm.models.cait import Cait

    return Cait(img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3, depth_token_only=1, num_classes=CLASSES)


def hf_model(kind: str, implementation: str | None = None, **options: object) -> nn.Module:
    import transformers

    small = {
        "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 48, "image_size": 32,
        "patch_size": 8, "num_labels": CLASSES,
    }  # fmt: skip
    if implementation is not None:
        options["attn_implementation"] = implementation
    config = getattr(transformers, f"{kind}Config")(**{**({} if "depths" in options else small), **options})
    return getattr(transformers, f"{kind}ForImageClassification")(config)


def hf_swin(implementation: str) -> nn.Module:
    return hf_model("Swin", implementation, image_size=32, patch_size=4, embed_dim=12, depths=[2, 2], num_heads=[2, 4],
                    window_size=4, num_labels=CLASSES)  # fmt: skip


def torchvision_vit() -> nn.Module:
    from torchvision.models import VisionTransformer

    model = VisionTransformer(32, 8, num_layers=2, num_heads=3, hidden_dim=24, mlp_dim=48, num_classes=CLASSES)
    nn.init.normal_(model.heads.head.weight, std=0.2)  # a new one answers 0 to everything
    return model


def torchvision_swin(version: int = 1) -> nn.Module:
    from torchvision.models import swin_transformer as swin

    parts = {} if version == 1 else {"block": swin.SwinTransformerBlockV2, "downsample_layer": swin.PatchMergingV2}
    return swin.SwinTransformer([4, 4], 12, [2, 2], [2, 4], [4, 4], num_classes=CLASSES, **parts)


def torchvision_densenet() -> nn.Module:
    from torchvision.models import DenseNet

    return DenseNet(8, (2, 2, 2, 2), 16, num_classes=CLASSES)


def torchvision_resnet() -> nn.Module:
    from torchvision.models.resnet import BasicBlock, ResNet

    return ResNet(BasicBlock, [1, 1, 1, 1], num_classes=CLASSES)


def torchvision_vgg() -> nn.Module:
    """The library's head has 100 million weights; this one is as deep and narrower."""
    from torchvision.models.vgg import VGG, make_layers

    model = VGG(make_layers([8, "M", 16, 16, "M", 24, "M"], batch_norm=True), init_weights=False)
    layers = [nn.Linear(24 * 49, 32), nn.ReLU(True), nn.Dropout(), nn.Linear(32, 32), nn.ReLU(True), nn.Dropout()]
    model.classifier = nn.Sequential(*layers, nn.Linear(32, CLASSES))
    return model


def torchvision_efficientnet() -> nn.Module:
    from torchvision.models.efficientnet import EfficientNet, MBConvConfig

    stages = [MBConvConfig(1, 3, 1, 8, 8, 1), MBConvConfig(4, 3, 2, 8, 16, 2), MBConvConfig(4, 5, 2, 16, 24, 1)]
    return EfficientNet(stages, dropout=0.2, last_channel=48, num_classes=CLASSES)


def monai_model(name: str, **options: object) -> nn.Module:
    from monai.networks import nets

    return getattr(nets, name)(spatial_dims=2, in_channels=3, **options)


class Logits(nn.Module):
    """MONAI's ViT returns its hidden states beside the logits."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)[0]


def monai_vit() -> nn.Module:
    return Logits(monai_model("ViT", img_size=32, patch_size=8, hidden_size=24, mlp_dim=48, num_layers=2, num_heads=3,
                              classification=True, num_classes=CLASSES, post_activation=None))  # fmt: skip


def monai_seresnet() -> nn.Module:
    return monai_model("SENet", block="se_resnet_bottleneck", layers=(1, 1, 1, 1), groups=1, reduction=16, inplanes=64,
                       dropout_prob=None, input_3x3=False, downsample_kernel_size=1, num_classes=CLASSES)  # fmt: skip


def odd_vit(*attentions: Callable[[], nn.Module]) -> nn.Module:
    return odd.OddViT(*(build() for build in attentions))


_WHOLE = {"attention": "whole"}
_WINDOWED = {"attention": "windowed"}

MODELS: dict[str, Entry] = {
    "timm-vit": Entry(timm_vit, **_WHOLE),
    "timm-vit-unfused": Entry(timm_unfused, **_WHOLE),
    "timm-vit-mean-pool": Entry(partial(timm_vit, global_pool="avg", class_token=False), **_WHOLE),
    "timm-vit-registers": Entry(partial(timm_vit, reg_tokens=4), **_WHOLE),
    "timm-vit-qk-norm-layer-scale": Entry(partial(timm_vit, qk_norm=True, init_values=0.1), **_WHOLE),
    "timm-vit-attention-pool": Entry(partial(timm_vit, global_pool="map", class_token=False), **_WHOLE),
    "timm-deit-distilled": Entry(timm_deit, **_WHOLE),
    "timm-dinov2-reg4": Entry(partial(timm_model, "vit_small_patch14_reg4_dinov2", img_size=56, embed_dim=24, depth=2,
                                      num_heads=3), size=56, **_WHOLE),
    "timm-dinov2-swiglu": Entry(timm_swiglu, **_WHOLE),
    "timm-swin": Entry(timm_swin, **_WINDOWED),
    "timm-convnext": Entry(timm_convnext),
    "timm-convnextv2": Entry(partial(timm_convnext, use_grn=True, ls_init_value=None)),
    "timm-efficientnet": Entry(partial(timm_model, "test_efficientnet")),
    "timm-maxvit": Entry(timm_maxvit, **_WINDOWED),
    "timm-cait": Entry(timm_cait, attention="class"),
    "hf-vit-sdpa": Entry(partial(hf_model, "ViT", "sdpa"), **_WHOLE),
    "hf-vit-eager": Entry(partial(hf_model, "ViT", "eager"), **_WHOLE),
    "hf-dinov2-sdpa": Entry(partial(hf_model, "Dinov2", "sdpa", mlp_ratio=2), **_WHOLE),
    "hf-dinov2-eager": Entry(partial(hf_model, "Dinov2", "eager", mlp_ratio=2), **_WHOLE),
    "hf-dinov2-swiglu": Entry(partial(hf_model, "Dinov2", "sdpa", mlp_ratio=2, use_swiglu_ffn=True), **_WHOLE),
    "hf-dinov2-registers-sdpa": Entry(partial(hf_model, "Dinov2WithRegisters", "sdpa", mlp_ratio=2), **_WHOLE),
    "hf-dinov2-registers-eager": Entry(partial(hf_model, "Dinov2WithRegisters", "eager", mlp_ratio=2), **_WHOLE),
    "hf-swin-sdpa": Entry(partial(hf_swin, "sdpa"), **_WINDOWED),
    "hf-swin-eager": Entry(partial(hf_swin, "eager"), **_WINDOWED),
    "hf-convnext": Entry(partial(hf_model, "ConvNext", image_size=32, depths=[1, 1, 1, 1], hidden_sizes=[8, 12, 16, 24],
                                 num_labels=CLASSES)),
    "torchvision-vit": Entry(torchvision_vit, **_WHOLE),
    "torchvision-swin": Entry(torchvision_swin, **_WINDOWED),
    "torchvision-swin-v2": Entry(partial(torchvision_swin, 2), **_WINDOWED),
    "torchvision-densenet": Entry(torchvision_densenet),
    "torchvision-resnet": Entry(torchvision_resnet),
    "torchvision-vgg": Entry(torchvision_vgg),
    "torchvision-efficientnet": Entry(torchvision_efficientnet),
    "monai-densenet": Entry(partial(monai_model, "DenseNet", out_channels=CLASSES, init_features=16, growth_rate=8,
                                    block_config=(2, 2, 2, 2))),
    "monai-vit": Entry(monai_vit, **_WHOLE, needs=("einops",)),
    "monai-seresnet": Entry(monai_seresnet),
    "odd-einsum-attention": Entry(partial(odd_vit, odd.EinsumAttention, odd.EinsumAttention), **_WHOLE),
    "odd-folded-attention": Entry(partial(odd_vit, odd.FoldedAttention, odd.FoldedAttention), **_WHOLE),
    "odd-stable-attention": Entry(partial(odd_vit, odd.StableAttention, odd.StableAttention), **_WHOLE),
    "odd-talking-heads": Entry(partial(odd_vit, odd.TalkingAttention, odd.TalkingAttention), **_WHOLE),
    "odd-torch-attention": Entry(partial(odd_vit, partial(odd.TorchAttention, weights=True, batch_first=True),
                                         partial(odd.TorchAttention, weights=False, batch_first=False)), **_WHOLE),
    "odd-class-attention": Entry(odd.ClassAttentionViT, attention="class"),
    "odd-encoder-layers": Entry(odd.EncoderLayers, **_WHOLE),
    "odd-reused-convolutions": Entry(odd.ReusedConvolutions),
    "odd-in-place-resnet": Entry(odd.InPlaceResNet),
    "odd-tied-weights": Entry(odd.TiedWeights),
    "odd-gates-and-norms": Entry(odd.GatedNorms),
}  # fmt: skip


def build(name: str) -> nn.Module:
    """The model of that name, as if trained."""
    return as_if_trained(MODELS[name].build())
