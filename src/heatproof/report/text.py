"""Numbers as a reader wants them: no more digits than the data carry, a real minus sign, a word where undefined."""

import math
from collections.abc import Iterable

UNDEFINED = "undefined"
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def decimals_for(half_widths: Iterable[float]) -> int:
    """Decimals for a column of estimates: the typical half-width of its intervals has one or two digits.

    >>> decimals_for([0.08, 0.11]), decimals_for([0.004]), decimals_for([35.0])
    (2, 3, 0)
    """
    widths = sorted(width for width in half_widths if math.isfinite(width) and width > 0)
    if not widths:
        return 2
    magnitude = math.floor(math.log10(widths[len(widths) // 2]))
    return 0 if magnitude >= 1 else max(2, min(-magnitude, 6))


def enough_decimals(value: float, decimals: int) -> int:
    """`decimals`, or more where they would leave nothing of a value that is not zero.

    >>> enough_decimals(0.31, 2), enough_decimals(0.00021, 2), enough_decimals(0.0, 2)
    (2, 5, 2)
    """
    if value == 0 or not math.isfinite(value) or abs(value) >= 10**-decimals:
        return decimals
    return min(1 - math.floor(math.log10(abs(value))), 9)


def fixed(value: float, decimals: int = 2) -> str:
    """`value` with so many decimals.

    >>> fixed(-0.1234), fixed(float("nan")), fixed(-0.001)
    ('−0.12', 'undefined', '0.00')
    """
    if math.isnan(value):
        return UNDEFINED
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    text = f"{value:.{decimals}f}"
    return text.lstrip("-") if not text.strip("-0.") else text.replace("-", "−")


def significant(value: float, digits: int = 3) -> str:
    """`value` with so many significant digits, powers of ten where it is very small or large.

    >>> significant(0.04567), significant(0.0000123), significant(12345678.0), significant(0.0)
    ('0.0457', '1.23×10⁻⁵', '1.23×10⁷', '0')
    """
    if math.isnan(value) or math.isinf(value) or value == 0:
        return "0" if value == 0 else fixed(value)
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    power = int(exponent)
    if -4 < power < 5:
        return fixed(value, max(0, digits - 1 - power))
    return f"{mantissa.replace('-', '−')}×10{str(power).translate(_SUPERSCRIPT)}"


def interval_text(low: float, high: float, decimals: int = 2) -> str:
    """`low to high`, or why there is none.

    >>> interval_text(-0.1, 0.25)
    '−0.10 to 0.25'
    """
    if math.isnan(low) or math.isnan(high):
        return "no interval"
    return f"{fixed(low, decimals)} to {fixed(high, decimals)}"


def counted(number: int, singular: str, plural: str | None = None) -> str:
    """`number` with the noun that goes with it.

    >>> counted(1, "image"), counted(1200, "class", "classes")
    ('1 image', '1,200 classes')
    """
    return f"{number:,} {singular if number == 1 else plural or singular + 's'}"


def listed(names: Iterable[str]) -> str:
    """Names in a sentence.

    >>> listed(["a", "b", "c"])
    'a, b and c'
    """
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last
