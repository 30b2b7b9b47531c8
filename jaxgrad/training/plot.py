"""The picture that a run leaves in its folder."""

from pathlib import Path

import numpy as np

from jaxgrad.plots import loss_curve, save
from jaxgrad.training.folder import read_metrics


def save_loss_curve(folder: Path) -> None:
    """Draw a run folder's metrics.jsonl as loss.png."""
    steps, losses, rates = map(np.array, zip(*read_metrics(folder), strict=True))
    save(loss_curve(steps, losses, rates), folder / "loss.png")
