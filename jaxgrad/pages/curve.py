"""Lines over steps, drawn without a script."""

import math
from collections.abc import Sequence

from jaxgrad.pages.document import text

_WIDE, _HIGH = 640, 200
_MOST_POINTS = 400


def drawn(xs: Sequence[float], ys: Sequence[float], label: str) -> str:
    """A line through the points that are finite, with its least and largest values written at the sides."""
    points = [(x, y) for x, y in _thinned(list(zip(xs, ys, strict=True))) if math.isfinite(y)]
    if not points:
        return f'<p class="soft">{text(label)}: no number to draw.</p>'
    (left, right), (low, high) = ((min(v), max(v)) for v in zip(*points, strict=True))
    across, up = right - left or 1.0, high - low or 1.0
    line = " ".join(f"{_WIDE * (x - left) / across:.1f},{_HIGH * (high - y) / up:.1f}" for x, y in points)
    return (
        f'<figure class="curve"><figcaption class="soft">{text(label)}, from {low:.4g} to {high:.4g}</figcaption>'
        f'<svg viewBox="-4 -4 {_WIDE + 8} {_HIGH + 8}" preserveAspectRatio="none" role="img"'
        f' aria-label="{text(label)}"><polyline points="{line}"/></svg>'
        f'<p class="soft ends"><span>{left:,.0f}</span><span>{right:,.0f}</span></p></figure>'
    )


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most so many points, evenly chosen, the last among them."""
    every = -(-len(points) // _MOST_POINTS)
    return [*points[:-1:every], *points[-1:]] if every > 1 else points
