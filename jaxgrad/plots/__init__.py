"""Pictures: each a function of plain arrays that returns a matplotlib Figure, on a light or a dark ground.

`save` writes one. No display is needed, pyplot is never imported, and matplotlib's settings stay as they are.
"""

from jaxgrad.plots.embedding import letters
from jaxgrad.plots.errors import node_errors
from jaxgrad.plots.graph import model_graph
from jaxgrad.plots.hidden import Watched, hidden_layer
from jaxgrad.plots.logits import logit_gradients
from jaxgrad.plots.loss import loss_curve, sweep_curves
from jaxgrad.plots.message import message_text
from jaxgrad.plots.noise import Judged, noise_and_limits
from jaxgrad.plots.parting import Side, side_by_side
from jaxgrad.plots.theme import DARK, LIGHT, Theme, save

__all__ = [
    "DARK",
    "LIGHT",
    "Judged",
    "Side",
    "Theme",
    "Watched",
    "hidden_layer",
    "letters",
    "logit_gradients",
    "loss_curve",
    "message_text",
    "model_graph",
    "node_errors",
    "noise_and_limits",
    "save",
    "side_by_side",
    "sweep_curves",
]
