"""What a recorded run of a program holds, of either library: every value, its place, and what it was made from."""

import functools
import itertools
import linecache
import math
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from jaxgrad.port.fingerprint import Held, Sketch, sketch

# Where libraries lie: lines inside them are told only where no line of the user's own is known.
_LIBRARIES = ("jax", "jaxlib", "flax", "equinox", "haiku", "torch", "jaxtyping", "optax", "jaxgrad", "numpy")


class Line(NamedTuple):
    """A line of source."""

    file: str
    number: int
    function: str

    @property
    def text(self) -> str:
        """The line itself; empty where the file cannot be read."""
        return linecache.getline(self.file, self.number).strip()

    def __str__(self) -> str:
        return f"{Path(self.file).name}:{self.number}" + (f", `{self.text}`" if self.text else "")


class Place(NamedTuple):
    """Where a value was made: the operation, the path of modules, and the lines that led there, the innermost first."""

    op: str
    module: str
    lines: tuple[Line, ...]

    @property
    def line(self) -> Line | None:
        """The innermost line that is the user's; else the innermost of a library."""
        return next((line for line in self.lines if not in_library(line.file)), next(iter(self.lines), None))

    @property
    def caller(self) -> Line | None:
        """The user's line that called the function of `line`; None where that is the function that was compared."""
        own = self.line
        if own is None or in_library(own.file):
            return None
        above = self.lines[self.lines.index(own) + 1 :]
        others = (x for x in above if not in_library(x.file) and (x.file, x.function) != (own.file, own.function))
        return next((line for line in others if "<lambda>" not in line.function), None)

    def within_caller_of(self, source: "Place") -> "Place":
        """The place as the function sees it that made `source` and then called the function of this place.

        That is the place itself where both are in one function, or where the source is not made in any. Where the
        source is made further down in the function, as a loop's last turn does, it is the source's.
        """
        own = [line for line in self.lines if not in_library(line.file)]
        theirs = [line for line in source.lines if not in_library(line.file)]
        for number, (mine, other) in enumerate(zip(reversed(own), reversed(theirs), strict=False)):
            if mine != other:
                if (mine.file, mine.function) != (other.file, other.function):
                    return self
                first, lines = (self, own) if mine.number > other.number else (source, theirs)
                return first._replace(lines=tuple(lines[len(lines) - 1 - number :]))
        return self

    @property
    def brief(self) -> str:
        """The operation, its module and its line, in a few words."""
        return self.op + (f" in {self.module}" if self.module else "") + (f" ({self.line})" if self.line else "")

    def __str__(self) -> str:
        own, inner, caller = self.line, next(iter(self.lines), None), self.caller
        told = f"{self.op}" + (f" in {self.module}" if self.module else "") + (f", {own}" if own else "")
        told += f" (from {inner})" if inner is not None and inner != own else ""
        return told + (f", called at {caller}" if caller else "")


class Value(NamedTuple):
    """A value of a run: `held` is it in float64, or a sketch of it; `operands` the numbers of what it was made from.

    `again` computes it anew where it was let go. `varies` tells whether it depends on the inputs, and not on parameters
    and constants alone. `moved` is true where the operation only moves numbers. `scalars` are the numbers written into
    the operation, by name.
    """

    held: Held
    varies: bool
    place: Place
    operands: tuple[int, ...]
    moved: bool
    scalars: tuple[tuple[str, float], ...] = ()
    again: Callable[[], np.ndarray] | None = None

    @property
    def array(self) -> np.ndarray:
        """The value in float64; one that was let go is computed again."""
        if isinstance(self.held, np.ndarray):
            return self.held
        assert self.again is not None, "a value is let go only where it can be computed again"
        return self.again()

    @property
    def shape(self) -> tuple[int, ...]:
        """The value's shape."""
        return self.held.shape

    @property
    def size(self) -> int:
        """How many numbers the value has."""
        return self.held.size


_GIVEN = frozenset(("input", "parameter", "constant"))


class Values:
    """The values of a run while it is recorded: their arrays, or sketches from where they are too many to keep.

    `again` computes the value of a number anew. What is given, and what is only moved from weights, is kept. `most` is
    how many bytes are, and an array of no more than `few` numbers always is: it is no larger than its sketch.
    """

    most: ClassVar[int] = 2**26
    few: ClassVar[int] = 512

    def __init__(self, again: Callable[[int], np.ndarray]) -> None:
        self.values: list[Value] = []
        self.again = again
        self.kept, self.all = 0, True

    def add(self, value: Value) -> int:
        """Take a value with its array; its number."""
        self.values.append(value if self.all else self._less(len(self.values), value))
        self.kept += 0 if _is_free(value) else value.held.size * 8
        if self.all and self.kept > self.most:
            self.all = False
            self.values = [self._less(n, each) for n, each in enumerate(self.values)]
        return len(self.values) - 1

    def _less(self, number: int, value: Value) -> Value:
        if _is_free(value) or isinstance(value.held, Sketch) or value.size <= self.few:
            return value
        return value._replace(held=self.sketch(value), again=functools.partial(self.again, number))

    def sketch(self, value: Value) -> Sketch:
        """What is kept of a value that is let go."""
        return sketch(value.array)


def _is_free(value: Value) -> bool:
    """Whether keeping a value takes no memory that is not taken anyway."""
    return value.place.op in _GIVEN or (value.moved and not value.varies)


class Trace(NamedTuple):
    """All values of a run in the order they were made, and the numbers of the outputs with their names."""

    values: tuple[Value, ...]
    outputs: tuple[int, ...]
    names: tuple[str, ...]


class Step(NamedTuple):
    """A value as it is shown: its place and shape, and whether it agrees; None where its numbers say nothing.

    `like` is the number of the other program's step that it agrees with.
    """

    place: Place
    shape: tuple[int, ...]
    agrees: bool | None
    like: int | None = None


@functools.cache
def in_library(file: str) -> bool:
    """Whether a file belongs to one of the libraries that programs are made of."""
    parts = Path(file).parts
    if "site-packages" in parts:
        return parts[parts.index("site-packages") + 1] in _LIBRARIES
    return file.startswith(str(Path(__file__).parents[1]))


def within(lines: Sequence[Line]) -> tuple[Line, ...]:
    """Those of a chain of lines, the innermost first, that are of the program: up to the call from this package."""
    return tuple(itertools.takewhile(lambda line: not _is_ours(line.file), lines))


def lines_here() -> tuple[Line, ...]:
    """The lines outside of this package that led here, the innermost first, up to the call from this package."""
    found: list[Line] = []
    frame = sys._getframe(1)
    while frame is not None and _is_ours(frame.f_code.co_filename):
        frame = frame.f_back  # type: ignore[assignment]
    while frame is not None and not _is_ours(frame.f_code.co_filename):
        code = frame.f_code
        if not code.co_filename.startswith("<"):
            found.append(Line(code.co_filename, frame.f_lineno, code.co_qualname))
        frame = frame.f_back  # type: ignore[assignment]
    return tuple(found)


@functools.cache
def _is_ours(file: str) -> bool:
    """Whether a file is of those that call other people's programs to record them."""
    room = Path(__file__).parent
    return Path(file).parent == room or Path(file) == room.parent / "front.py"


def raised(error: BaseException, when: str = "") -> str:
    """What was raised, and when, in one line, and the last line of the user's own that led to it."""
    said = next(iter(str(error).strip().splitlines()), "no message")
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not in_library(f.filename)]
    where = f" ({Line(frames[-1].filename, frames[-1].lineno or 0, frames[-1].name)})" if frames else ""
    return f"raised {type(error).__name__}{when}: {said}{where}"


def as_float64(x: Any) -> np.ndarray:
    """An array as float64, complex numbers as pairs; what is no number, such as a key, as an empty array."""
    array = np.asarray(x)
    if array.dtype.kind == "c":
        wide = array.astype(np.complex128)
        return np.stack([wide.real, wide.imag], -1)
    try:
        return array.astype(np.float64, copy=False)
    except (TypeError, ValueError):
        return np.zeros(0)


def decimal(x: np.ndarray) -> np.ndarray:
    """A float32 array in float64, each number as it was probably written: 0.1 and not 0.10000000149.

    So are the roots and quotients that activations and scales are made with.

    >>> float(decimal(np.float32(0.1))), float(decimal(np.sqrt(np.float32(0.5))))
    (0.1, 0.7071067811865476)
    """
    array = np.asarray(x)
    if array.dtype != np.float32 or array.size > 100_000:
        return array.astype(np.float64)
    return np.array([_written(number) for number in array.ravel()], np.float64).reshape(array.shape)


# What people compute constants from: GELU's roots, SELU's are decimals, and the scales of attention.
_KNOWN = (
    *(1 / n for n in range(3, 65)),
    *(n**0.5 for n in range(2, 257)),
    *(n**-0.5 for n in range(2, 257)),
    2 / 3, math.pi, 2 * math.pi, (2 / math.pi) ** 0.5, (math.pi / 2) ** 0.5, (2 * math.pi) ** 0.5,
    2 / math.pi**0.5, math.e, math.log(2), 1 / math.log(2), math.log(10), math.log(2 * math.pi),
)  # fmt: skip
_EXACT = {float(np.float32(sign * number)): sign * number for number in _KNOWN for sign in (1, -1)}


def _written(number: np.float32) -> float:
    shortest = str(number)
    # A number of few digits was written with these.
    few = sum(sign.isdigit() for sign in shortest.split("e")[0].strip("-0.")) < 7
    return float(shortest) if few else _EXACT.get(float(number), float(shortest))
