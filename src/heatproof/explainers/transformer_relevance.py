"""Layer-wise relevance propagation to the pixels, by the rules that were made for transformers."""

from torch import Tensor

from heatproof.explainers.pixels import run_checked, summed, to_pixels
from heatproof.explainers.registry import explainer
from heatproof.models import Classifier, Targets
from heatproof.relevance import presets
from heatproof.relevance.mode import Start
from heatproof.relevance.tokens import self_attention


@explainer("attn_lrp", family="relevance", signed=True, paper="achtibat2024attnlrp", linear=True, complete="f(x)")
def attn_lrp(
    model: Classifier,
    images: Tensor,
    targets: Targets,
    *,
    strict: bool,
    gamma_conv: float = 0.25,
    gamma_linear: float = 0.05,
    start: Start = "logit",
) -> Tensor:
    """AttnLRP: LRP for transformers, with softmax by its Taylor expansion and halved products of activations.

    Queries and keys get their part, so it tells why attention went where it went. The softmax does not conserve relevance:
    the sum of a map is not the score.

    Formula:
        softmax s = softmax(x):  R_i = x_i (R_s,i − s_i Σ_j R_s,j)
        product of activations:  half of R to each factor
        layer norm:  its deviation is a constant
        else that of lrp_gamma, γ of convolutions and of dense layers apart

    Cost:
        1 forward pass, T ways back.

    Models:
        CNN, ConvNeXt, ViT, Swin.

    Args:
        model: any model; made for transformers.
        images: `[B, C, H, W]`.
        targets: `[B, T]`.
        strict: an operation without a rule is an error.
        gamma_conv: γ in convolutions; 0 is the plain rule.
        gamma_linear: γ in dense layers; 0 is the plain rule.
        start: relevance at the target, its `logit` or `one`.

    Returns:
        Maps `[B, T, H, W]`, summed over channels.

    Checked:
        the authors' package `lxt` on transformers' ViT, to 1e-5: tests/peers/test_lxt.py. With the plain rule in the
            place of an ε of 1e-6, which LXT has not.
        a float64 `replica` on the models of four libraries, to 1e-6: tests/peers/test_model_matrix.py.
    """
    return to_pixels(model, images, targets, presets.attn_lrp(gamma_conv, gamma_linear, start), strict)


@explainer("cp_lrp", family="relevance", signed=True, paper="ali2022xai", linear=True, complete="f(x)")
def cp_lrp(
    model: Classifier,
    images: Tensor,
    targets: Targets,
    *,
    strict: bool,
    gamma_conv: float = 0.25,
    gamma_linear: float = 0.05,
    start: Start = "logit",
) -> Tensor:
    """CP-LRP: LRP for transformers in which attention is a constant, so that the values take all relevance.

    It conserves relevance, which `attn_lrp` does not. It tells what was brought together, and nothing of why attention went
    there.

    Formula:
        softmax:  a constant, which gets nothing; the values take all of the product
        else that of attn_lrp

    Cost:
        1 forward pass, T ways back.

    Models:
        CNN, ConvNeXt, ViT, Swin.

    Args:
        model: any model; made for transformers.
        images: `[B, C, H, W]`.
        targets: `[B, T]`.
        strict: an operation without a rule is an error.
        gamma_conv: γ in convolutions; 0 is the plain rule.
        gamma_linear: γ in dense layers; 0 is the plain rule.
        start: relevance at the target, its `logit` or `one`.

    Returns:
        Maps `[B, T, H, W]`, summed over channels.

    Checked:
        the authors' package `lxt` on torchvision's ViT, to 1e-5: tests/peers/test_lxt.py. With the plain rule in attention's
            own projections, to which LXT gives no γ, and in the place of an ε of 1e-6, which LXT has not.
        a float64 `replica` on the models of four libraries, to 1e-6: tests/peers/test_model_matrix.py.
    """
    return to_pixels(model, images, targets, presets.cp_lrp(gamma_conv, gamma_linear, start), strict)


@explainer("chefer", family="relevance", signed=True, needs={"attention"}, paper="chefer2021transformer")
def chefer(model: Classifier, images: Tensor, targets: Targets, *, strict: bool, start: Start = "one") -> Tensor:
    """Chefer, Gur and Wolf's relevance carried on to the pixels, without the attention maps of `transformer_lrp`.

    It is finer than the token grid, but loses what `transformer_lrp` gets from gradients: like every z⁺ it hardly tells
    classes apart.

    Formula:
        that of excitation_backprop, but products of activations halved, GELU, norms and softmax passing R unchanged, sums
        z = a + b giving R_a = |Σa c| / (|Σa c| + |Σb c|) · ΣR in all, and in the patch convolution deep_taylor's first layer
        between each image's own least and largest value

    Cost:
        1 forward pass, T ways back.

    Models:
        ViT, Swin.

    Args:
        model: a vision transformer.
        images: `[B, C, H, W]`.
        targets: `[B, T]`.
        strict: an operation without a rule is an error.
        start: relevance at the target, `one` or its `logit`.

    Returns:
        Maps `[B, T, H, W]`, summed over channels; NaN where a start of 1 belongs to a logit of exactly 0.

    Checked:
        the authors' maps of a stored model, to 1e-4: tests/explainers/test_relevance.py.
        the authors' maps on timm's model, to 1e-4: tests/peers/test_timm.py.

    Raises:
        UnsupportedModelError: the model has no self-attention: z⁺ of a CNN is `lrp_zplus`.
    """
    low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
    passed = run_checked(model, images, presets.chefer(low, high, start), strict)
    self_attention(passed)
    return summed(passed, targets)
