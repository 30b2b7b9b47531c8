"""Pictures of a run."""

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jaxgrad import files
from jaxgrad.training.folder import read_metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def loss_curve(steps: np.ndarray, losses: np.ndarray, learning_rates: np.ndarray) -> "Figure":
    """Loss, in nats, over steps: every metrics line faintly, a running mean of 1 % of them, and the learning rate."""
    # The object interface draws without a display and without pyplot's list of open figures.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(steps, losses, color="tab:blue", alpha=0.3, linewidth=0.8, label="loss")
    width = max(len(losses) // 100, 1)
    smooth = np.convolve(losses, np.ones(width) / width, mode="valid")
    axes.plot(steps[width - 1 :], smooth, color="tab:blue", label=f"mean of {width} lines")
    axes.set(xlabel="step", ylabel="loss (nats per symbol)")
    axes.grid(alpha=0.3)
    rates = axes.twinx()
    rates.plot(steps, learning_rates, color="tab:orange", linestyle="--", label="learning rate")
    rates.set_ylabel("learning rate")
    rates.set_yscale("log")
    figure.legend(loc="upper right", bbox_to_anchor=(1, 1), bbox_transform=axes.transAxes)
    return figure


def sweep_curves(steps: np.ndarray, curves: list[np.ndarray], labels: list[str]) -> "Figure":
    """Smoothed loss, in nats, over steps: a faint line for every run, and a bold, named one for the first, the best."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    width = max(len(steps) // 100, 1)
    smooth = [np.convolve(curve, np.ones(width) / width, mode="valid") for curve in curves]
    ends = steps[width - 1 :]
    for at, curve in enumerate(smooth[1:]):
        others = f"{len(curves) - 1} others" if at == 0 else None
        axes.plot(ends, curve, color="tab:blue", alpha=0.35, linewidth=0.8, label=others)
    axes.plot(ends, smooth[0], color="tab:red", linewidth=1.8, label=f"best on dev: {labels[0]}")
    # A run that diverges is off the picture, where it would leave the others no room.
    low, high = float(np.min(smooth[0])), float(np.max(smooth[0]))
    axes.set_ylim(low - 0.1 * (high - low) - 0.01, high + 0.5 * (high - low) + 0.01)
    smoothing = f", mean of {width} lines" if width > 1 else ""
    axes.set(xlabel="step", ylabel=f"loss (nats per symbol{smoothing})")
    axes.grid(alpha=0.3)
    axes.legend(loc="upper right", reverse=True)
    return figure


def save_loss_curve(folder: Path) -> None:
    """Draw a run folder's metrics.jsonl as loss.png."""
    lines = read_metrics(folder)
    columns = (np.array([line[name] for line in lines]) for name in ("step", "loss", "learning_rate"))
    image = io.BytesIO()
    loss_curve(*columns).savefig(image, format="png", dpi=120)
    files.write_bytes(folder / "loss.png", image.getvalue())
