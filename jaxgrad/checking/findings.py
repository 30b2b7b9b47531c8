"""What a check found, as data: tensors compared, under which settings, and who stands alone."""

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from jaxgrad.checking.compare import Difference, Noise
from jaxgrad.checking.taylor import Judgement

HAND, REFERENCE, TORCH = "hand", "jax.grad", "torch"
# The expected value in float64, which every engine of a narrower type is compared with.
TRUTH = "float64"

# The elements of the largest tensor that is kept where engines agree: all settings together hold some hundred.
MOST_KEPT = 2**16

AGREES, DIFFERS, NOT_JUDGED = "agrees", "differs", "not judged"

# A difference below this may be the accuracy at which an iteration was meant to stop, and what is then said.
ACCURACY = 1e-5
OF_A_LOOP = "a loop in it stops at an accuracy of its own; if that is meant, give tolerance="


class Tensor(NamedTuple):
    """One output, node or input: every engine's value, and the difference of each pair that has it.

    Of a large tensor whose pairs agree a report keeps the differences alone: `values` is empty, and so is `noise`.

    `kind` is "output", "node" or "input"; of the latter two the values are cotangents. `noise` is that of one
    engine in the setting's type. In float64 pairs are of engines; in a narrower type each is compared with `TRUTH`.
    `note` is what a reader should know of the comparison, such as a constant that has no gradient on purpose.
    """

    name: str
    kind: str
    noise: Noise
    given_tolerance: bool
    values: dict[str, np.ndarray]
    pairs: dict[tuple[str, str], Difference]
    note: str = ""

    @property
    def agree(self) -> bool:
        """Whether all pairs agree."""
        return all(d.agrees for d in self.pairs.values())

    @property
    def engines(self) -> list[str]:
        """Those that have a value of it."""
        return list(self.values or dict.fromkeys(itertools.chain.from_iterable(self.pairs)))


class Setting(NamedTuple):
    """The conditions of one comparison; `sizes` are those of `vary`, such as "n=7"."""

    dtype: str
    transform: str
    seed: int
    sizes: str = ""

    def __str__(self) -> str:
        said = f"{self.dtype}/{self.transform}/{self.seed}"
        return f"{said} with {self.sizes}" if self.sizes else said


class Finding(NamedTuple):
    """What one setting showed.

    `outcome` is "agrees", "differs" or "not judged", and `why` says so in words where it is not the first, or where
    there is something to know. `taylor` is what the definition of the derivative says of an engine's cotangents, by
    input, where it was asked. `first` is the tensor where engines part, and `alone` the engine that is wrong there.
    `passed` says whether the outcome is as the check expected. `iterates` tells that the function, or what it is
    compared with, holds a loop that ends when a condition is met.
    """

    setting: Setting
    tensors: tuple[Tensor, ...]
    taylor: dict[str, dict[str, Judgement]]
    outcome: str
    why: str
    first: str | None
    alone: str | None
    passed: bool
    iterates: bool = False

    @property
    def agree(self) -> bool:
        """Whether engines agree."""
        return self.outcome == AGREES

    def without_arrays(self) -> "Finding":
        """The same without the arrays of large tensors that agree, which nobody looks at."""
        nothing = Noise(np.zeros(0), 1, (1.0,), np.zeros(0, bool))
        tensors = (
            t._replace(values={}, noise=nothing) if t.pairs and t.agree and t.noise.deviation.size > MOST_KEPT else t
            for t in self.tensors
        )
        return self._replace(tensors=tuple(tensors))


class Report(NamedTuple):
    """All findings of one check; `message` is empty where it passed."""

    name: str
    passed: bool
    findings: tuple[Finding, ...]
    message: str

    @property
    def not_judged(self) -> tuple[Finding, ...]:
        """The settings of which nothing could be said, each with its `why`."""
        return tuple(f for f in self.findings if f.outcome == NOT_JUDGED)


class GradientMismatch(AssertionError):
    """The gradient under test is not what it should be; the message says where, by how much and who says so.

    `judged` is the report as it was found. `place` looks for the lines where the programs part, with a label each;
    it is asked when the message is first read, as it takes longer than the verdict, which mutants alone need.
    """

    def __init__(self, report: Report, place: Callable[[], list[tuple[str, str]]] = list) -> None:
        super().__init__(report.message)
        self.judged = report
        self.place = place

    @functools.cached_property
    def report(self) -> Report:
        """The report, whose message tells the place below its title."""
        lines = [f"  {label:10s}{text}" for label, text in self.place()]
        title, *rest = self.judged.message.split("\n")
        return self.judged._replace(message="\n".join([title, *rest[:1], *lines, *rest[1:]]))

    def __str__(self) -> str:
        return self.report.message

    def __reduce__(self) -> tuple[Any, ...]:
        # Another process has neither the function nor its module.
        return type(self), (self.report,)
