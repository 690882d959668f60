"""Layer-wise relevance propagation to the pixels, for any model."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal, get_args

from torch import Tensor

from heatproof.checks import check_choice
from heatproof.errors import InputError
from heatproof.explainers.composites import composite_of, default_epsilon, rule_of, takes_bias
from heatproof.explainers.pixels import to_pixels
from heatproof.explainers.registry import explainer
from heatproof.models import Classifier, Targets
from heatproof.relevance import Preset, presets
from heatproof.relevance.mode import Start

Bias = Literal["absorb", "ignore"]
First = Literal["z_box", "w_square", "flat", "none"]
Limit = float | Sequence[float] | None


@explainer("lrp_z", family="relevance", signed=True, paper="bach2015pixelwise", linear=True, complete="f(x)")
def lrp_z(model: Classifier, images: Tensor, targets: Targets, *, strict: bool, start: Start = "logit") -> Tensor:
    """LRP with the plain z rule; on a ReLU network this is input times gradient.

    The reference among the LRP rules: every operation conserves relevance, but for the softmax of attention. It is as noisy
    as the gradient in deep networks, and what biases absorb does not arrive at the image.

    Formula:
        R_i = Σ_j x_i w_ji / z_j · R_j

    Cost:
        1 forward pass, T ways back.

    Models:
        CNN, ConvNeXt, ViT, Swin.

    Args:
        model: any model.
        images: `[B, C, H, W]`.
        targets: `[B, T]`.
        strict: an operation without a rule is an error.
        start: relevance at the target, its `logit` or `one`.

    Returns:
        Maps `[B, T, H, W]`, summed over channels.

    Checked:
        input times gradient by autograd on six ReLU networks, to 1e-12: tests/peers/test_model_matrix.py.
        the formula, one contribution at a time, to 1e-9: tests/relevance/test_linear_rules.py.
        a float64 `replica` on the models of four libraries, to 1e-6: tests/peers/test_model_matrix.py.
    """
    return to_pixels(model, images, targets, presets.lrp_z(start), strict)


@explainer("lrp_epsilon", family="relevance", signed=True, paper="bach2015pixelwise", linear=True, complete="f(x)")
def lrp_epsilon(
    model: Classifier,
    images: Tensor,
    targets: Targets,
    *,
    strict: bool,
    epsilon: float | None = None,
    relative: bool = False,
    start: Start = "logit",
) -> Tensor:
    """LRP with the ε rule: neurons near zero pass less on.

    The default ε is there against division by zero only and gives the map of `lrp_z`. A larger one takes away noise,
    and with it part of the relevance: the sum of a map is then no longer that of the score.

    Formula:
        R_i = Σ_j x_i w_ji / (z_j + ε sign z_j) · R_j

    Cost:
        1 forward pass, T ways back.

    Models:
        CNN, ConvNeXt, ViT, Swin.

    Args:
        model: any model.
        images: `[B, C, H, W]`.
        targets: `[B, T]`.
        strict: an operation without a rule is an error.
        epsilon: ε, by default 1e-6, or with `relative` 0.25.
        relative: ε is a share of each sample's mean |z| in the layer.
        start: relevance at the target, its `logit` or `one`.

    Returns:
        Maps `[B, T, H, W]`, summed over channels.

    Checked:
        zennit `Epsilon`, to 1e-4: tests/peers/test_zennit.py.
        captum `EpsilonRule`, to 1e-4: tests/peers/test_captum.py.
        the formula, one contribution at a time, to 1e-9: tests/relevance/test_linear_rules.py.
        a float64 `replica` on the models of four libraries, to 1e-6: tests/peers/test_model_matrix.py.

    Example:
        >>> import torch
        >>> import heatproof as hp
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(2, 1, bias=False)).eval()
        >>> _ = torch.nn.init.ones_(net[1].weight)
        >>> image = torch.tensor([3.0, -1.0]).view(1, 1, 1, 2)  # z = 2, of which 2 / (2 + 2) is passed on
        >>> hp.explain(net, image, [0], method="lrp_epsilon", epsilon=2.0)
        tensor([[[ 1.5000, -0.5000]]])
    """
    if epsilon is None:
        epsilon = default_epsilon(relative=relative)
    return to_pixels(model, images, targets, presets.lrp_epsilon(epsilon, relative, start), strict)


@explainer("lrp_gamma", family="relevance", signed=True, paper="montavon2019overview", linear=True, complete="f(x)")
def lrp_gamma(
    model: Classifier, images: Tensor, targets: Targets, *, strict: bool, gamma: float = 0.25, start: Start = "logit"
) -> Tensor:
    """LRP with the γ rule: contributions of a neuron's own sign weigh 1 + γ, in everything that is linear.

    γ = 0 is the z rule; the larger γ, the more the map follows what speaks for each neuron, and the smoother it gets. What
    speaks against is played down, so that evidence against the target is weaker in the map than in the model.

    Formula:
        R_i = Σ_j (v_ij + γ v_ij^σ) / (z_j + γ Σ_i v_ij^σ) · R_j, v_ij = x_i w_ji, v^σ its part that has the sign of z_j

    Cost:
        1 forward pass, T ways back.

    Models:
        CNN, ConvNeXt, ViT, Swin.

    Args:
        model: any model.
        images: `[B, C, H, W]`.
        targets: `[B, T]`.
        strict: an operation without a rule is an error.
        gamma: γ, 0 or more.
        start: relevance at the target, its `logit` or `one`.

    Returns:
        Maps `[B, T, H, W]`, summed over channels.

    Checked:
        zennit `Gamma` of one layer, to 1e-9: tests/peers/test_zennit.py. In float64, with the guard for vanishing
            denominators set to 1e-12; zennit has none. In float32 to 1e-4.
        captum `GammaRule`, to 1e-4: tests/peers/test_captum.py. Without biases, which captum's rule leaves as they are.
        the formula, one contribution at a time, to 1e-9: tests/relevance/test_linear_rules.py.
        a float64 `replica` on the models of four libraries, to 1e-6: tests/peers/test_model_matrix.py.
    """
    return to_pixels(model, images, targets, presets.lrp_gamma(gamma, start), strict)


@explainer("lrp_alpha_beta", family="relevance", signed=True, paper="bach2015pixelwise")
def lrp_alpha_beta(
    model: Classifier,
    images: Tensor,
    targets: Targets,
    *,
    strict: bool,
    alpha: float = 2.0,
    beta: float = 1.0,
    bias: Bias = "absorb",
    start: Start = "one",
) -> Tensor:
    """LRP with the αβ rule: what speaks for a neuron shares α of its relevance, what speaks against it −β.

    It keeps evidence for and against apart at every layer, at the price that relevance grows where one of the two is
    missing. The weights of upper layers matter little to the map [sixt2020when].

    Formula:
        R_i = Σ_j [α (x_i w_ji)⁺ / P_j − β (x_i w_ji)⁻ / N_j] R_j, α − β = 1
        P_j, N_j: the sums of the positive and of the negative contributions, biases among them

    Cost:
        1 forward pass, T ways back.

    Models:
        CNN, ConvNeXt, ViT, Swin.

    Args:
        model: any model.
        images: `[B, C, H, W]`.
        targets: `[B, T]`.
        strict: an operation without a rule is an error.
        alpha: α, 1 or more.
        beta: β = α − 1.
        bias: `absorb`, biases take their share, or `ignore`.
        start: relevance at the target, `one` (from a negative logit every sign would be turned) or its `logit`.

    Returns:
        Maps `[B, T, H, W]`, summed over channels; NaN where a start of 1 belongs to a logit of exactly 0.

    Checked:
        zennit `AlphaBeta`, to 1e-11: tests/peers/test_zennit.py. In float64, with the guard for vanishing denominators
            set to 1e-12; zennit has none. Sums and average pools there have a rule of the test's own, zennit has none
            for them.
        the formula, one contribution at a time, to 1e-9: tests/relevance/test_linear_rules.py.
        a float64 `replica` on the models of four libraries, to 1e-6: tests/peers/test_model_matrix.py.
    """
    return to_pixels(model, images, targets, presets.lrp_alpha_beta(alpha, beta, start, bias=takes_bias(bias)), strict)


@explainer("lrp_zplus", family="relevance", signed=True, paper="montavon2017explaining", complete="1")
def lrp_zplus(
    model: Classifier,
    images: Tensor,
    targets: Targets,
    *,
    strict: bool,
    bias: Bias = "absorb",
    start: Start = "one",
) -> Tensor:
    """LRP with the z⁺ rule: relevance follows the positive contributions only (αβ with α = 1, β = 0).

    Smooth maps of what supports the target. On a CNN nothing speaks against it, and the weights of upper layers matter so
    little that the maps of two classes can look alike [sixt2020when]; the norms and attention of a transformer make
    relevance of both signs.

    Formula:
        R_i = Σ_j (x_i w_ji)⁺ / P_j · R_j, P_j the sum of the positive contributions, a positive bias among them

    Cost:
        1 forward pass, T ways back.

    Models:
        CNN, ConvNeXt, ViT, Swin.

    Args:
        model: any model.
        images: `[B, C, H, W]`.
        targets: `[B, T]`.
        strict: an operation without a rule is an error.
        bias: `absorb`, positive biases take their share, or `ignore`.
        start: relevance at the target, `one` or its `logit`.

    Returns:
        Maps `[B, T, H, W]`, summed over channels; NaN where a start of 1 belongs to a logit of exactly 0.

    Checked:
        zennit `ZPlus`, to 1e-11: tests/peers/test_zennit.py. In float64, with the guard for vanishing denominators set to
            1e-12; zennit has none. Sums and average pools there have a rule of the test's own, zennit has none for them.
        captum `Alpha1_Beta0_Rule`, to 1e-4: tests/peers/test_captum.py. Without biases, of which captum takes those of
            either sign into the denominator.
        the formula, one contribution at a time, to 1e-9: tests/relevance/test_linear_rules.py.
        a float64 `replica` on the models of four libraries, to 1e-6: tests/peers/test_model_matrix.py.
    """
    return to_pixels(model, images, targets, presets.lrp_zplus(start, bias=takes_bias(bias)), strict)


@explainer("excitation_backprop", family="relevance", signed=True, paper="zhang2018topdown", complete="1")
def excitation_backprop(
    model: Classifier, images: Tensor, targets: Targets, *, strict: bool, start: Start = "one"
) -> Tensor:
    """Excitation backprop: relevance follows the positive contributions, and biases take no part.

    On a ReLU network, the probability that a walk from the target ends at a pixel. It has the weaknesses of `lrp_zplus`,
    whose `bias="ignore"` this is.

    Formula:
        R_i = Σ_j (x_i w_ji)⁺ / Σ_i (x_i w_ji)⁺ · R_j

    Cost:
        1 forward pass, T ways back.

    Models:
        CNN, ConvNeXt, ViT, Swin.

    Args:
        model: any model.
        images: `[B, C, H, W]`.
        targets: `[B, T]`.
        strict: an operation without a rule is an error.
        start: relevance at the target, `one` or its `logit`.

    Returns:
        Maps `[B, T, H, W]`, summed over channels; NaN where a start of 1 belongs to a logit of exactly 0.

    Checked:
        zennit `ExcitationBackprop`, to 1e-9: tests/peers/test_zennit.py. In float64, with the guard for vanishing
            denominators set to 1e-12. Told to ignore biases and to follow positive contributions in sums, which zennit
            does not by default.
        the formula, one contribution at a time, to 1e-9: tests/relevance/test_linear_rules.py.
        a float64 `replica` on the models of four libraries, to 1e-6: tests/peers/test_model_matrix.py.
    """
    return to_pixels(model, images, targets, presets.excitation_backprop(start), strict)


@explainer("deep_taylor", family="relevance", signed=True, paper="montavon2017explaining", complete="1")
def deep_taylor(
    model: Classifier,
    images: Tensor,
    targets: Targets,
    *,
    strict: bool,
    low: Limit = None,
    high: Limit = None,
    start: Start = "one",
) -> Tensor:
    """Deep Taylor decomposition: z⁺, and in the first layers the z-box rule, for images between `low` and `high`.

    Unlike under z⁺, a black pixel may get relevance: what counts in a first layer (its input is the image, moved or rescaled
    channel by channel at most) is how far a pixel is from the value that would silence the neuron. Above it is z⁺, with the
    weaknesses of that.

    Formula:
        in first layers R_i = Σ_j (x_i w_ji − l_i w_ji⁺ − h_i w_ji⁻) / Σ_i (the same) · R_j, else that of lrp_zplus
        l_i, h_i: the least and the largest value that pixel i can have

    Cost:
        1 forward pass, T ways back.

    Models:
        CNN, ConvNeXt, ViT, Swin.

    Args:
        model: any model; on a CNN the maps are not negative.
        images: `[B, C, H, W]`.
        targets: `[B, T]`.
        strict: an operation without a rule is an error.
        low: the least value that a pixel can have, in model-input units, one number or one a channel; black by default.
        high: the largest one; white by default.
        start: relevance at the target, `one` or its `logit`.

    Returns:
        Maps `[B, T, H, W]`, summed over channels; NaN where a start of 1 belongs to a logit of exactly 0.

    Checked:
        zennit `ZBox` below `ZPlus`, to 1e-11: tests/peers/test_zennit.py. In float64, with the guard for vanishing
            denominators set to 1e-12; zennit has none.
        the formula, one contribution at a time, to 1e-9: tests/relevance/test_linear_rules.py.
        a float64 `replica` on the models of four libraries, to 1e-6: tests/peers/test_model_matrix.py.
    """
    return to_pixels(model, images, targets, presets.deep_taylor(*_box(model, images, low, high), start), strict)


@explainer("lrp_composite", family="relevance", signed=True, paper="montavon2019overview", linear=True, complete="f(x)")
def lrp_composite(
    model: Classifier,
    images: Tensor,
    targets: Targets,
    *,
    strict: bool,
    gamma: float = 0.25,
    epsilon: float = 1e-6,
    first: First = "z_box",
    low: Limit = None,
    high: Limit = None,
    start: Start = "logit",
) -> Tensor:
    """LRP with a rule for each depth: ε in dense layers, γ in convolutions, z-box where the image comes in.

    What is recommended for CNNs: little noise below, and above maps that tell classes apart. A transformer has its one
    convolution where the image comes in, so that it is nearly all ε there.

    Formula:
        that of lrp_epsilon in dense layers, of lrp_gamma in convolutions, of deep_taylor's first layers in first layers

    Cost:
        1 forward pass, T ways back.

    Models:
        CNN, ConvNeXt, ViT, Swin.

    Args:
        model: any model.
        images: `[B, C, H, W]`.
        targets: `[B, T]`.
        strict: an operation without a rule is an error.
        gamma: of the γ rule in convolutions.
        epsilon: of the ε rule in dense layers.
        first: the rule of the first layers: `z_box`, `w_square`, `flat`, or `none` for that of other layers.
        low: with `z_box` the least value of a pixel, as in `deep_taylor`.
        high: the largest one.
        start: relevance at the target, its `logit` or `one`.

    Returns:
        Maps `[B, T, H, W]`, summed over channels.

    Checked:
        zennit `EpsilonGammaBox`, to 1e-9: tests/peers/test_zennit.py. In float64, with the guard for vanishing denominators
            set to 1e-12; zennit has none. In float32 to 1e-4.
        a float64 `replica` on the models of four libraries, to 1e-6: tests/peers/test_model_matrix.py.
    """
    check_choice("first", first, get_args(First))
    if first != "z_box" and (low is not None or high is not None):
        raise InputError(f"low and high are the limits of first='z_box', got first={first!r}: leave them out.")
    box: dict[str, Any] = {"low": low, "high": high} if first == "z_box" else {}
    at_image = None if first == "none" else rule_of("first", {"rule": first, **box}, partial(_box, model, images))
    return to_pixels(model, images, targets, presets.lrp_composite(at_image, gamma, epsilon, start), strict)


@explainer("lrp", family="relevance", signed=True, paper="montavon2019overview", linear=True, complete="f(x)")
def lrp(
    model: Classifier,
    images: Tensor,
    targets: Targets,
    *,
    strict: bool,
    rules: Mapping[str, Any] | None = None,
    preset: Preset | None = None,
    start: Start | None = None,
) -> Tensor:
    """LRP with rules of your own, by kind of layer, by depth and by module; ε in all layers that `rules` leaves out.

    It tells what its rules tell: a map of relevance is one of the model and of the rules together, and rules that were
    chosen because the map looks right prove nothing.

    Formula:
        that of the rule which each layer has

    Cost:
        1 forward pass, T ways back.

    Models:
        CNN, ConvNeXt, ViT, Swin.

    Args:
        model: any model.
        images: `[B, C, H, W]`.
        targets: `[B, T]`.
        strict: an operation without a rule is an error.
        rules: a place -> its rule. Places are the kinds `dense`, `conv`, `sums` (also means and average pooling) and `norm`
            (batch norm that follows no layer), the depths `first` (layers that see the image) and `last`, and patterns of
            module paths such as `blocks.*.mlp.*`, of which the first match wins, over the depths too. A rule is a name
            (`z`, `epsilon`, `gamma`, `alpha_beta`, `z_plus`, and for layers that see the image `z_box`, `w_square`, `flat`)
            or a mapping of that name under `rule` and its options, `{"rule": "gamma", "gamma": 0.1}`.
        preset: in place of `rules`, a preset made with `heatproof.relevance.composite`.
        start: relevance at the target, its `logit` or `one`; by default the logit, or what the preset says.

    Returns:
        Maps `[B, T, H, W]`, summed over channels.

    Checked:
        captum `LRP` with a rule for each layer, to 1e-4: tests/peers/test_captum.py. Captum clamps weights alone, which is
            right where activations are not negative.
        zennit's composites, to 1e-9: tests/peers/test_zennit.py. In float64, with the guard for vanishing denominators
            set to 1e-12; zennit has none. In float32 to 1e-4.
        each rule's formula, one contribution at a time, to 1e-9: tests/relevance/test_linear_rules.py.

    Raises:
        InputError: a rule or option is unknown, or a pattern matches no module with a dense layer or convolution.
        UnsupportedOperationError: a rule of first layers stands at a layer that does not see the image.

    Example:
        >>> import torch
        >>> import heatproof as hp
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(16, 2))
        >>> rules = {"conv": {"rule": "gamma", "gamma": 0.1}, "first": "flat", "last": "z"}
        >>> hp.explain(net.eval(), torch.rand(1, 3, 4, 4), method="lrp", rules=rules).shape
        torch.Size([1, 4, 4])
    """
    if preset is None:
        preset = composite_of({} if rules is None else rules, start or "logit", partial(_box, model, images))
    elif not isinstance(preset, Preset):
        raise InputError(
            f"preset must be a heatproof.relevance.Preset, got {preset!r}: write names of rules into rules=."
        )
    elif rules is not None:
        raise InputError("lrp takes rules or a preset, got both: leave one out.")
    return to_pixels(model, images, targets, preset if start is None else replace(preset, start=start), strict)


def _box(model: Classifier, images: Tensor, low: Limit, high: Limit) -> tuple[Tensor, Tensor]:
    """The least and the largest values of a pixel, `[C, 1, 1]` each; those of the raw intensities by default."""
    least, most = _limit("low", low, model, images), _limit("high", high, model, images)
    if (least >= most).any():
        raise InputError(f"low must lie below high in every channel, got {_listed(least)} and {_listed(most)}.")
    return least, most


def _limit(name: str, value: Limit, model: Classifier, images: Tensor) -> Tensor:
    channels = images.shape[1]
    if value is None:
        if model.preprocessing.mean is None:
            raise InputError(
                f"The z-box rule needs the least and the largest value of a pixel, and this model's normalisation is "
                f"unknown: give low= and high= in model-input units ({name} is missing), or Classifier(module, mean=..., "
                "std=...)."
            )
        return model.intensity_range[0 if name == "low" else 1].to(images)
    values = images.new_tensor(value).flatten()
    if len(values) not in (1, channels):
        raise InputError(f"{name} must be one number or one for each of the {channels} channels, got {value!r}.")
    return values.expand(channels).view(-1, 1, 1)


def _listed(limit: Tensor) -> list[float]:
    return [round(value, 4) for value in limit.flatten().tolist()]
