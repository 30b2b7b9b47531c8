"""Where the embedding puts each symbol, before and after training."""

import unicodedata
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from jaxgrad.corpus import BOUNDARY
from jaxgrad.plots.theme import LIGHT, Theme, blank, legend, shown, title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The size of a letter and its halo, as a share of a panel's width, and how often letters are moved apart at most.
LETTER, ROUNDS = 0.045, 100
VOWELS = "aeiouæœøı"
KINDS = ("vowel", "consonant", "boundary", "other")


def letters(
    before: Float[np.ndarray, "vocab emb_size"],
    after: Float[np.ndarray, "vocab emb_size"],
    vocabulary: tuple[str, ...],
    theme: Theme = LIGHT,
) -> "Figure":
    """The rows of C on their first two principal components, each panel on its own, at the start and at the end.

    A letter stands where its row is, or a little beside it where it would cover another.
    """
    figure, panels = blank(theme, (11, 5.6), 1, 2)
    kinds = [kind(symbol) for symbol in vocabulary]
    for axes, (C, named) in zip(panels[0], ((before, "before training"), (after, "after training")), strict=True):
        _panel(axes, C, kinds, shown(vocabulary), theme)
        title(axes, theme, named)
    handles = _handles([name for name in KINDS if name in kinds], theme)
    legend(figure, theme, handles=handles, loc="outside lower center", ncols=len(handles))
    return figure


def components(C: Float[np.ndarray, "vocab emb_size"]) -> tuple[Float[np.ndarray, "vocab 2"], tuple[float, float]]:
    """Coordinates on the first two principal components, by SVD of the centred rows, and their shares of the variance.

    The sign of a component is the one that makes its largest entry positive. One of width 1 has 0 for its second.
    """
    U, lengths, _ = np.linalg.svd(C - C.mean(0), full_matrices=False)
    # Of symbols that lie on a line, or all in one place, what is missing is 0.
    scores = np.pad(U * lengths, ((0, 0), (0, 2)))[:, :2]
    shares = np.pad(lengths**2 / max(float(np.sum(lengths**2)), np.finfo(np.float64).tiny), (0, 2))[:2]
    largest = scores[np.argmax(np.abs(scores), axis=0), (0, 1)]
    return scores * np.where(largest < 0, -1.0, 1.0), (float(shares[0]), float(shares[1]))


def apart(points: Float[np.ndarray, "n 2"], least: float) -> Float[np.ndarray, "n 2"]:
    """The points, those moved that are nearer to each other than `least` of the width or height of all of them."""
    extent = np.where(np.ptp(points, axis=0) > 0, np.ptp(points, axis=0), 1.0)
    at = points / extent
    # Points in one place part in directions of their own.
    angles = np.arange(len(at)) * np.pi * (3 - 5**0.5)
    own = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    for _ in range(ROUNDS):
        gaps = at[:, None] - at[None]
        far = np.linalg.norm(gaps, axis=2)
        near = (far < least) & ~np.eye(len(at), dtype=bool)
        if not near.any():
            break
        ways = np.where(far[..., None] > 0, gaps / np.maximum(far, np.finfo(np.float64).tiny)[..., None], own[:, None])
        at = at + 0.5 * np.sum(np.where(near, least - far, 0.0)[..., None] * ways, axis=1)
    moved = (at != points / extent).any(1, keepdims=True)
    return np.where(moved, at * extent, points)


def kind(symbol: str) -> str:
    """One of `KINDS`: a Latin letter is a vowel or a consonant, whatever its accents, and all else is "other"."""
    base = unicodedata.normalize("NFD", symbol)[0].lower()
    if symbol == BOUNDARY:
        return "boundary"
    if not unicodedata.name(base, "").startswith("LATIN"):
        return "other"
    return "vowel" if base in VOWELS else "consonant"


def _panel(
    axes: "Axes", C: Float[np.ndarray, "vocab emb_size"], kinds: list[str], labels: list[str], theme: Theme
) -> None:
    scores, shares = components(C)
    places = apart(scores, LETTER)
    colours = [theme.cycle[KINDS.index(name)] for name in kinds]
    axes.scatter(places[:, 0], places[:, 1], s=190, c=colours, alpha=0.22, linewidths=0)
    for (x, y), label, colour in zip(places, labels, colours, strict=True):
        # A code point is six characters in the place of one.
        size = 11 if len(label) == 1 else 5
        axes.text(
            x, y, label, color=colour, ha="center", va="center", fontsize=size, fontweight="bold", parse_math=False
        )
    axes.margins(0.08)
    axes.set(xlabel=f"component 1 ({shares[0]:.0%} of the variance)", ylabel=f"component 2 ({shares[1]:.0%})")


def _handles(names: list[str], theme: Theme) -> list:
    from matplotlib.lines import Line2D

    colours = [theme.cycle[KINDS.index(name)] for name in names]
    return [
        Line2D([], [], linestyle="", marker="o", color=colour, label=name)
        for name, colour in zip(names, colours, strict=True)
    ]
