"""What the checker of a reader's derivatives is told of the GPT."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from jaxgrad.models.gpt.params import EPS
from jaxgrad.models.model import Factor, Lesson
from jaxgrad.models.sequences import IGNORED


def factors(primals: Mapping[str, np.ndarray], batch: Any) -> Iterator[Factor]:
    """The targets that count, the width that a layer norm averages over, and the scale of the scores."""
    counted, width = int((np.asarray(batch.Y) != IGNORED).sum()), primals["stream"].shape[-1]
    size = primals["block.q"].shape[-1]
    mean = f"is {counted} times too large: the loss is a mean over targets that count"
    yield Factor(float(counted), "sum for mean", mean)
    yield Factor(1 / counted, "mean for sum", f"is {counted} times too small: 1 over the targets that count, twice")
    yield Factor(float(width), "sum for mean", f"is {width} times too large: a layer norm's mean is 1/d of a sum")
    scale = f"the scores have the scale 1/sqrt({size}), 1 over the root of a head's size"
    yield Factor(size**0.5, "missing factor", f"is sqrt({size}) times too large: {scale}")
    yield Factor(size**-0.5, "extra factor", f"is sqrt({size}) times too small: {scale}, once")


def lengths(primals: Mapping[str, np.ndarray]) -> dict[int, str]:
    """What an axis of so many entries is likely to be; of equal ones the last."""
    rows, places, symbols = primals["logits"].shape
    *_, heads, size = primals["block.q"].shape
    width = primals["stream"].shape[-1]
    return {
        heads: "the heads",
        size: "a head",
        symbols: "the symbols",
        width: "the width",
        places: "the places",
        rows: "the batch",
    }


def _of_norm(name: str) -> dict[tuple[str, ...], str]:
    mean, var = f"{name}_mean", f"{name}_var"
    of = f"the layer norm {name}"
    return {
        (var,): f"has the variance of {of} taken for a constant: the path through it is missing",
        (mean,): f"has the mean of {of} taken for a constant: the path through it is missing",
        (mean, var): f"has the statistics of {of} taken for constants: the paths through mean and variance are missing",
    }


LESSON = Lesson(
    lengths=lengths,
    factors=factors,
    constants={
        **_of_norm("block.ln1"),
        **_of_norm("block.ln2"),
        **_of_norm("ln"),
        ("block.exps_sum",): "has the softmax's sum taken for a constant: the path through it is missing",
        ("counts_sum",): "has the sum of the counts taken for a constant: the path through it is missing",
    },
    epsilon=EPS,
    epsilon_in="a layer norm adds {0:g} to its variance",
)
