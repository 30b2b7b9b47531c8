"""What a check found, as data: tensors compared, under which settings, and who stands alone."""

from typing import NamedTuple

import numpy as np

from jaxgrad.checking.compare import Difference, Scale

HAND, REFERENCE, TORCH = "hand", "jax.grad", "torch"

# A remainder that falls with less than this power of the step is that of a wrong gradient: the middle of 1 and 2.
WRONG_ORDER = 1.5


class Tensor(NamedTuple):
    """One output, node or input: every engine's value, and the difference of each pair that has it.

    `kind` is "output", "node" or "input"; of the latter two the values are cotangents.
    """

    name: str
    kind: str
    scale: Scale
    given_tolerance: bool
    values: dict[str, np.ndarray]
    pairs: dict[tuple[str, str], Difference]


class Setting(NamedTuple):
    """The conditions of one comparison."""

    dtype: str
    transform: str
    seed: int


class Finding(NamedTuple):
    """What one setting showed. `orders` are Taylor's, by engine and input, where they were asked for.

    `agree` says whether engines agree, and `passed` whether that is as the check expected.
    """

    setting: Setting
    tensors: tuple[Tensor, ...]
    orders: dict[str, dict[str, float]]
    agree: bool
    first: str | None
    alone: str | None
    passed: bool


class Report(NamedTuple):
    """All findings of one check; `message` is empty where it passed."""

    name: str
    passed: bool
    findings: tuple[Finding, ...]
    message: str


class GradientMismatch(AssertionError):
    """The gradient under test is not what it should be; the message says where, by how much and who says so."""

    def __init__(self, report: Report) -> None:
        super().__init__(report.message)
        self.report = report
