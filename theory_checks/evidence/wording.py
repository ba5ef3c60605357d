"""Numbers in sentences: bounds are never rounded in their own favour."""

import math
from fractions import Fraction


def percent_up(rate: float, digits: int = 2) -> str:
    """An upper bound as a percentage with so many significant digits, rounded up: 0.01231 is "1.3 %"."""
    percent = Fraction(rate) * 100
    if percent <= 0:
        return "0 %"
    # At most 100 %, and never below the number itself: by fractions, since 0.1 steps are not exact in floats.
    place = math.floor(math.log10(percent)) - digits + 1
    step = Fraction(10) ** place
    value = math.ceil(percent / step) * step
    return f"{float(min(value, Fraction(100))):.{max(-place, 0)}f} %"
