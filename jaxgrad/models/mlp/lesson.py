"""What the checker of a reader's derivatives is told of the notebook's model."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from jaxgrad.models.mlp.forward import EPS
from jaxgrad.models.model import Factor, Lesson

# The names of the lecture's notebook, where ours differ, and after them the one that its retelling misspells.
LECTURE = {
    "hprebn": "h_prenorm",
    "bnmeani": "bnmean",
    "bndiff": "bn_diff",
    "bndiff2": "bn_diff_sq",
    "bnvar": "bn_var",
    "bnvar_inv": "bn_var_inv",
    "bnraw": "bn_raw",
    "hpreact": "h_norm",
    "logprobs": "log_probs",
    "bngain": "bn_gain",
    "bnbias": "bn_bias",
    "bn_dff_sq": "bn_diff_sq",
}


def factors(primals: Mapping[str, np.ndarray], batch: Any) -> Iterator[Factor]:
    """Bessel's correction beside a plain mean, and the mean over neurons."""
    n = len(primals["logits"])
    bessel = "n - 1 is Bessel's correction, in the variance; the mean has n"
    missing = f"is n - 1 = {n - 1} times too large: the 1/(n - 1) of the variance is missing"
    yield Factor(n - 1.0, "missing n - 1", missing)
    yield Factor(1 / (n - 1), "n and n - 1", f"is n - 1 = {n - 1} times too small: it has 1/(n - 1) once too often")
    yield Factor((n - 1) / n, "n and n - 1", f"has 1/n where 1/(n - 1) should be: {bessel}")
    yield Factor(n / (n - 1), "n and n - 1", f"has 1/(n - 1) where 1/n should be: {bessel}")


def lengths(primals: Mapping[str, np.ndarray]) -> dict[int, str]:
    """What an axis of so many entries is likely to be; of equal ones the last."""
    n, symbols = primals["logits"].shape
    return {primals["h"].shape[1]: "the neurons", symbols: "the symbols", n: "the batch"}


def slopes_of_tanh(
    primals: Mapping[str, np.ndarray], right: Mapping[str, np.ndarray]
) -> Iterator[tuple[str, np.ndarray]]:
    """Derivatives of h_norm by what is taken for the slope of tanh."""
    h, dh = primals["h"], right["h"]
    yield "has (1 - h)^2 where 1 - h^2 should be", (1 - h) ** 2 * dh
    yield "has h (1 - h), the slope of a sigmoid; that of tanh is 1 - h^2", h * (1 - h) * dh


LESSON = Lesson(
    aliases=LECTURE,
    absent={
        "b1": "the first layer has no bias, because batch norm would subtract it again with the mean; its derivative is"
        " zero but for rounding"
    },
    lengths=lengths,
    factors=factors,
    # The least first: where the second changes nothing more, the first is what is told.
    constants={
        ("bn_var",): "has the batch variance taken for a constant: the path through it is missing",
        ("bnmean",): "has the batch mean taken for a constant: the path through it is missing",
        (
            "bnmean",
            "bn_var",
        ): "has the batch statistics taken for constants: the paths through the mean and the variance are missing",
    },
    formulas={"h_norm": slopes_of_tanh},
    epsilon=EPS,
    epsilon_in="forward adds {0:g} to bn_var",
)
