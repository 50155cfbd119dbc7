"""The little SVG the charts are built from: escaped elements, ticks, linear and logarithmic scales.

Colours are CSS classes, never values, so that one picture serves light, dark and print.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

Attribute = str | float | None


def tag(name: str, content: str | Markup | Sequence[Markup] = "", /, **attributes: Attribute) -> Markup:
    """One element. Text and attribute values are escaped; `cls` stands for class, `_` in a name for `-`."""
    inner = escape(content) if isinstance(content, str) else "".join(content)
    written = "".join(
        f' {_attribute(key)}="{escape(_coordinate(value))}"' for key, value in attributes.items() if value is not None
    )
    return Markup(f"<{name}{written}>{inner}</{name}>")  # noqa: S704 (all that is not a literal is escaped above)


def picture(width: float, height: float, label: str, content: Sequence[Markup], cls: str) -> Markup:
    """A scalable <svg> that a screen reader announces as `label`."""
    return tag(
        "svg", content, cls=cls, viewBox=f"0 0 {width:g} {height:g}", width=width, height=height, role="img",
        aria_label=label,
    )  # fmt: skip


def _attribute(key: str) -> str:
    # viewBox and its like are camel case in SVG; everything else uses dashes.
    return "class" if key == "cls" else key.rstrip("_").replace("_", "-")


def _coordinate(value: str | float) -> str:
    return value if isinstance(value, str) else f"{round(value, 2):g}" if abs(value) < 1e6 else f"{value:.0f}"


@dataclass(frozen=True)
class Scale:
    """Maps values `low..high` to pixels `start..end`, linearly or by the logarithm."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        a, b, v = (math.log(x) if self.log else x for x in (self.low, self.high, value))
        return self.start + (self.end - self.start) * ((v - a) / (b - a) if b > a else 0.5)

    def ticks(self, count: int = 5) -> list[float]:
        """Round values inside the range: 1, 2, 5 times a power of ten; over two decades of a logarithm, its powers."""
        if not self.log:
            return nice_ticks(self.low, self.high, count)
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        found = [m * 10.0**p for p in powers for m in ((1,) if self.high > 100 * self.low else (1, 2, 5))]
        return [t for t in found if self.low * 0.999 <= t <= self.high * 1.001]


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round values within [low, high] (Heckbert, 1990)."""
    if not high > low:
        return [low]
    raw = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if raw <= m * power * 1.0001)
    first = math.ceil(low / step - 1e-9)
    return [n * step for n in range(first, math.floor(high / step + 1e-9) + 1)]


def padded(values: Sequence[float], share: float = 0.06) -> tuple[float, float]:
    """The range of `values` with a margin of `share` of its length; never empty."""
    low, high = min(values), max(values)
    margin = (high - low) * share or abs(low) * share or 1.0
    return low - margin, high + margin
