"""What the picture of a sweep shows: its curves.csv, read again."""

import csv
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from jaxgrad.errors import JaxgradError


def curves(folder: Path) -> tuple[Int[np.ndarray, " windows"], list[Float[np.ndarray, " windows"]], list[str]]:
    """The step at which each window ends, a curve of mean losses for each run, the best first, and their names.

    Raises `JaxgradError` for a folder without a curves.csv that `jaxgrad sweep` wrote.
    """
    path = folder / "curves.csv"
    try:
        with path.open(encoding="utf-8", newline="") as file:
            (first, *labels), *lines = csv.reader(file)
        table = np.array(lines, np.float64)
        if first != "step" or not labels or table.shape != (len(lines), 1 + len(labels)) or not lines:
            raise ValueError("no column 'step', no run, or no line")
    except OSError as error:
        raise JaxgradError(f"{path}: cannot be read ({error.strerror}); give the folder of a sweep") from None
    except ValueError as error:
        raise JaxgradError(f"{path}: is not as jaxgrad sweep wrote it ({error}); run the sweep again") from None
    return table[:, 0].astype(np.int64), list(table[:, 1:].T), labels
