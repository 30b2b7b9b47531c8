"""The picture that a run leaves in its folder."""

from pathlib import Path

import numpy as np

from jaxgrad import files
from jaxgrad.plots import loss_curve
from jaxgrad.plots.theme import image
from jaxgrad.training.folder import Line, read_metrics


def save_loss_curve(folder: Path) -> None:
    """Draw a run folder's metrics.jsonl as loss.png."""
    files.write_bytes(folder / "loss.png", drawn(tuple(read_metrics(folder))))


def drawn(lines: tuple[Line, ...]) -> bytes:
    """The loss curve of metrics lines as a PNG; the same lines give the same bytes."""
    steps, losses, rates = map(np.array, zip(*lines, strict=True))
    return image(loss_curve(steps, losses, rates), "png")
