"""Rules of linear layers `z = L x + b`, in the form `c = R / x`.

Each is a small object: called with a layer, c at its output and z, it returns `c_x` for each of the layer's inputs. Rules
of first layers return the relevance of the input itself, as theirs is no multiple of x.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from heatproof.checks import check_number
from heatproof.errors import InputError
from heatproof.relevance.layers import Layer

VANISHING = 1e-5  # a denominator below this share of its terms' sizes is rounding noise
_TINY = torch.finfo(torch.float32).tiny


class LinearRule(Protocol):
    """`(layer, c, z) -> c_x`, one for each input of the layer; None where nothing goes back.

    A rule that has an attribute `pointwise` which is true does not mind what z is where c is 0; that saves memory.
    """

    def __call__(self, layer: Layer, c: Tensor, z: Tensor) -> Sequence[Tensor | None]: ...


class FirstRule:
    """A rule of first layers that is no multiple of x: `relevance(layer, c, z)` is R at the layer's one input.

    `limits` are the least and largest values of the image, broadcast to `[B, C, H, W]`, where the rule looks at them.
    """

    limits: tuple[Tensor, ...] = ()
    pointwise = False

    def relevance(self, layer: Layer, c: Tensor, z: Tensor) -> Tensor:
        """R at the input."""
        raise NotImplementedError


AnyRule = LinearRule | FirstRule


@dataclass(frozen=True)
class Zero:
    """LRP-z [bach2015pixelwise]: `R_i = x_i Σ_j w_ji R_j / z_j`, so a linear layer is its own gradient."""

    pointwise = True

    def __call__(self, layer: Layer, c: Tensor, z: Tensor) -> list[Tensor]:  # noqa: ARG002 z belongs to the protocol
        return layer.transposed(c)


@dataclass(frozen=True)
class Epsilon:
    """LRP-ε [bach2015pixelwise]: `R_i = x_i Σ_j w_ji R_j / (z_j + ε sign z_j)`, with sign 0 = +1.

    With `relative`, ε is a multiple of each sample's mean |z| in this layer.
    """

    epsilon: float = 1e-6
    relative: bool = False

    def __post_init__(self) -> None:
        check_number("epsilon", self.epsilon)

    @property
    def pointwise(self) -> bool:
        """Not where the mean over z is looked at."""
        return not self.relative

    def __call__(self, layer: Layer, c: Tensor, z: Tensor) -> list[Tensor]:
        size = z.abs()
        if self.epsilon and not self.relative:  # c |z| / (|z| + ε) in fewer passes over the numbers
            return layer.transposed(torch.addcdiv(c, c, size.add_(self.epsilon), value=-self.epsilon, out=size))
        mean = size.flatten(1).mean(1).view(-1, *[1] * (z.ndim - 1))
        denominator = size + self.epsilon * mean
        denominator.clamp_(min=torch.finfo(z.dtype).tiny)  # a sample's z can all be 0
        return layer.transposed(size.div_(denominator).mul_(c))


@dataclass(frozen=True)
class AlphaBeta:
    """LRP-αβ [bach2015pixelwise]: positive contributions share α R_j, negative ones −β R_j; z⁺ is α = 1, β = 0.

    `R_i = Σ_j [α (x_i w_ji)⁺ / P_j − β (x_i w_ji)⁻ / N_j] R_j`, where P and N are the sums of the positive and of the
    negative contributions; with `bias`, its positive part belongs to P and its negative part to N. A part that vanishes
    passes nothing on.

    The parts need no clamped copies of x and W: since `(x w)^± = (x w ± |x||w|) / 2`, P and N are
    `(z ± (|x||W|ᵀ + |b|)) / 2`. Where no x is negative, W⁺ gives P, and N is the rest of z.
    """

    alpha: float = 2.0
    beta: float = 1.0
    bias: bool = True
    pointwise = True

    def __post_init__(self) -> None:
        check_number("alpha", self.alpha, low=1.0)
        check_number("beta", self.beta)
        if not math.isclose(self.alpha - self.beta, 1, abs_tol=1e-6):
            raise InputError(
                f"alpha - beta must be 1, got alpha={self.alpha}, beta={self.beta}: choose alpha=2, beta=1, or alpha=1, "
                "beta=0. Where a text writes alpha + beta = 1, its beta is negative: drop the sign."
            )

    def __call__(self, layer: Layer, c: Tensor, z: Tensor) -> list[Tensor]:
        if self.bias or layer.bias is None:
            if layer.factors is not None:
                return self._number_by_number(layer, layer.factors, c, z)
            if layer.whole and all(_no_negative(x) for x in layer.values):
                return self._of_one_sign(layer, c, z)
        taken, left_out = (layer.bias, None) if self.bias else (None, layer.bias)
        terms, pull = layer.weighing(torch.abs, [x.abs() for x in layer.values])  # P + |N|
        if taken is not None:
            terms += taken.abs()
        total = z if left_out is None else z - left_out
        noise = total.abs() if left_out is None else total.abs() + left_out.abs()
        noise *= 4 * VANISHING
        negative = terms - total if self.beta else None
        s_positive = _quotient(z * c, terms.add_(total), noise)
        if self.alpha != 1:
            s_positive *= self.alpha
        s_negative = None if negative is None else _quotient(z * c, negative, noise).mul_(self.beta)
        difference = s_positive if s_negative is None else s_positive - s_negative
        direct = layer.transposed(s_positive if s_negative is None else s_positive + s_negative)
        both = zip(layer.values, direct, pull(difference), strict=True)
        return [x.sign().mul_(p).add_(d) for x, d, p in both]

    def _of_one_sign(self, layer: Layer, c: Tensor, z: Tensor) -> list[Tensor]:
        """Where no input is negative, W⁺ gives P, and N is the rest of z."""
        positive, pull = layer.weighing(torch.relu, layer.values)
        of_positive, of_negative = self._quotients(positive, layer.bias, z)
        if of_negative is None:
            return pull(of_positive.mul_(c))
        pulled = pull(of_positive.mul_(self.alpha).sub_(of_negative, alpha=self.beta).mul_(c))
        direct = layer.transposed(of_negative.mul_(c))
        return [torch.add(p, d, alpha=self.beta) for p, d in zip(pulled, direct, strict=True)]

    def _number_by_number(self, layer: Layer, factors: Sequence[Tensor | float], c: Tensor, z: Tensor) -> list[Tensor]:
        """Where L only scales and adds, the contributions are `factor · x` as they stand."""
        terms = [x if _is_one(factor) else x * factor for x, factor in zip(layer.values, factors, strict=True)]
        positive = functools.reduce(torch.add, [term.relu() for term in terms])
        if positive.shape != z.shape:  # a constant is larger
            positive = positive.expand_as(z).clone()
        of_positive, of_negative = self._quotients(positive, layer.bias, z)
        s_positive = of_positive.mul_(c)
        if of_negative is None:
            shares = [torch.ops.aten.threshold_backward(s_positive, term.expand_as(z), 0) for term in terms]
        else:
            s_positive, s_negative = s_positive.mul_(self.alpha), of_negative.mul_(c).mul_(self.beta)
            shares = [torch.where(term > 0, s_positive, s_negative) for term in terms]
        scaled = [
            share if _is_one(factor) else share.mul_(factor) for share, factor in zip(shares, factors, strict=True)
        ]
        return [share.sum_to_size(x.shape) for share, x in zip(scaled, layer.values, strict=True)]

    def _quotients(self, positive: Tensor, bias: Tensor | None, z: Tensor) -> tuple[Tensor, Tensor | None]:
        """`z / P` and `z / |N|`, 0 where the denominator vanishes; P is `positive`, which is written into, and bias⁺.

        In few passes over the numbers, as memory is what they cost: `z / P` is at most 1, and far below 0 where P vanishes
        beside N; `−z / |N|` likewise.
        """
        positive += _TINY if bias is None else torch.relu(bias) + _TINY
        negative = (z - positive).clamp_(max=-_TINY) if self.beta else None  # a difference: perhaps only rounding
        of_positive = _far_below_is_0(torch.div(z, positive, out=positive))
        if negative is None:
            return of_positive, None
        return of_positive, _far_below_is_0(torch.div(z, negative, out=negative)).neg_()


def z_plus(*, bias: bool = True) -> AlphaBeta:
    """LRP-z⁺ [montavon2017explaining]: relevance follows the positive contributions."""
    return AlphaBeta(1.0, 0.0, bias)


@dataclass(frozen=True)
class Gamma:
    """LRP-γ [montavon2019overview]: the contributions of z_j's own sign weigh 1 + γ.

    `R_i = Σ_j (x_i w_ji + γ (x_i w_ji)^±) / (z_j + γ z_j^±) R_j`, where ± is the sign of z_j and z_j^± the sum of the
    contributions of that sign, the bias among them.
    """

    gamma: float = 0.25
    pointwise = True

    def __post_init__(self) -> None:
        check_number("gamma", self.gamma)

    def __call__(self, layer: Layer, c: Tensor, z: Tensor) -> list[Tensor]:
        terms, pull = layer.weighing(torch.abs, [x.abs() for x in layer.values])
        if layer.bias is not None:
            terms += layer.bias.abs()
        half, size = self.gamma / 2, z.abs()
        denominator = terms.mul_(half).add_(size, alpha=1 + half).clamp_(min=torch.finfo(z.dtype).tiny)
        s = size.div_(denominator).mul_(c)
        both = zip(layer.values, layer.transposed(s), pull(z.sign().mul_(s)), strict=True)
        return [x.sign().mul_(p).mul_(half).add_(d, alpha=1 + half) for x, d, p in both]


@dataclass(frozen=True, eq=False)
class ZBox(FirstRule):
    """The z-box rule of first layers [montavon2017explaining]: `x_i w_ji − l_i w_ji⁺ − h_i w_ji⁻` over its sum.

    The image lies between `low` and `high`, both broadcast to `[B, C, H, W]`; they are followed through what happens to the
    image on its way to the layer. With the middle m and the half width d of the box, a contribution is
    `(x_i − m_i) w_ji + d_i |w_ji|`. The bias has none.
    """

    low: Tensor
    high: Tensor
    pointwise = True

    @property
    def limits(self) -> tuple[Tensor, ...]:  # type: ignore[override]
        """The box."""
        return self.low, self.high

    def relevance(self, layer: Layer, c: Tensor, z: Tensor) -> Tensor:
        """R at the input."""
        assert layer.view is not None  # noqa: S101 the mode hands first rules to first layers only
        (x,), (low, high) = layer.values, layer.view.limits
        centred, half = x - (low + high) / 2, (high - low) / 2
        size, pull = layer.weighing(torch.abs, [half])
        from_middle = layer.product([centred], _as_they_are)
        total = from_middle + size
        s = torch.where(total.abs() > VANISHING * (from_middle.abs() + size), z * c / total, 0.0)
        return centred * layer.transposed(s)[0] + half * pull(s)[0]


@dataclass(frozen=True)
class WSquare(FirstRule):
    """The w² rule of first layers [montavon2017explaining]: pixel i shares in neuron j by `w_ji²`, whatever its value."""

    pointwise = True

    def relevance(self, layer: Layer, c: Tensor, z: Tensor) -> Tensor:
        """R at the input."""
        return _by_weights(layer, torch.square, z * c)


@dataclass(frozen=True)
class Flat(FirstRule):
    """The flat rule of first layers [lapuschkin2019unmasking]: every pixel that neuron j sees has an equal share."""

    pointwise = True

    def relevance(self, layer: Layer, c: Tensor, z: Tensor) -> Tensor:
        """R at the input."""
        return _by_weights(layer, torch.ones_like, z * c)


def is_pointwise(rule: AnyRule) -> bool:
    """Whether the rule says that it does not mind what z is where c is 0."""
    return getattr(rule, "pointwise", False)


def _by_weights(layer: Layer, of_weights: Callable[[Tensor], Tensor], relevance: Tensor) -> Tensor:
    total, pull = layer.weighing(of_weights, [torch.ones_like(x) for x in layer.values])
    return pull(safe_divide(relevance, total))[0]


def _as_they_are(weights: Tensor) -> Tensor:
    return weights


def _far_below_is_0(quotient: Tensor) -> Tensor:
    return functional.threshold(quotient, -1 / (2 * VANISHING), 0.0, inplace=True)


def _is_one(factor: Tensor | float) -> bool:
    return isinstance(factor, float) and factor == 1


def _no_negative(x: Tensor) -> bool:
    return x.numel() > 0 and bool(x.amin() >= 0)


def _quotient(numerator: Tensor, size: Tensor, noise: Tensor) -> Tensor:
    """The quotient, 0 where the denominator's `size` is no larger than `noise`; written into `size`."""
    return torch.div(numerator, size.masked_fill_(size <= noise, torch.inf), out=size)


def safe_divide(numerator: Tensor, denominator: Tensor) -> Tensor:
    """The quotient, 0 where the denominator is 0."""
    return torch.div(numerator, denominator).masked_fill_(denominator == 0, 0.0)
