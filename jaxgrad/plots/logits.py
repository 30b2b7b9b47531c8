"""The gradient of the logits for a batch."""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from jaxgrad.plots.theme import LIGHT, Theme, blank, shown, thinned, title

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_ROWS = 64


def logit_gradients(
    dlogits: Float[np.ndarray, "batch vocab"],
    targets: Int[np.ndarray, " batch"],
    vocabulary: tuple[str, ...],
    name: str,
    theme: Theme = LIGHT,
) -> "Figure":
    """A batch's `dlogits`, a row an example, its target framed, and beside it the sum of each row, which is 0.

    A row is (probabilities - one-hot target) / batch: what pushes the target up takes as much from all others. The
    first `MOST_ROWS` rows are drawn; the largest sum that is told is that of all. `name` says which batch it is.
    """
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.patches import Rectangle

    rows = dlogits[:MOST_ROWS]
    figure, panels = blank(theme, (9.5, 7.5), 1, 2, sharey=True, width_ratios=(5, 1))
    cells, sums = panels[0]
    largest = float(np.max(np.abs(rows), initial=np.finfo(np.float64).tiny))
    # The ground stands for 0, so that what is seen is what pushes.
    colours = LinearSegmentedColormap.from_list("push", (theme.cycle[1], theme.face, theme.cycle[0]))
    drawn = cells.imshow(rows, cmap=colours, vmin=-largest, vmax=largest, aspect="auto", interpolation="nearest")
    for row, target in enumerate(targets[:MOST_ROWS]):
        cells.add_patch(Rectangle((target - 0.5, row - 0.5), 1, 1, fill=False, edgecolor=theme.text, linewidth=0.8))
    cells.grid(visible=False)
    at, labels = thinned(shown(vocabulary))
    cells.set_xticks(at, labels, parse_math=False)
    cells.set(xlabel="symbol (framed: the target)", ylabel="row of the batch")
    few = f", first {len(rows)} of {len(dlogits):,} rows" if len(rows) < len(dlogits) else ""
    title(cells, theme, f"dloss/dlogits, {name}{few}")
    sums.plot(rows.sum(1), np.arange(len(rows)), "o", color=theme.cycle[2], markersize=4)
    sums.set(xlim=(-largest, largest), xlabel="sum of the row")
    sums.set_xticks([0.0])
    sums.tick_params(labelleft=False)
    title(sums, theme, f"|sum| ≤ {np.max(np.abs(dlogits.sum(1))):.1e}")
    bar = figure.colorbar(drawn, ax=cells, location="bottom", fraction=0.03, aspect=60)
    bar.ax.tick_params(colors=theme.text, labelcolor=theme.text)
    bar.outline.set_edgecolor(theme.grid)
    return figure
