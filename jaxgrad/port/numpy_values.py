"""What a function computes in NumPy while it is traced: tables of sines, masks and indices, call by call.

To JAX such a table is a constant, which it meets where the table is first used. While a function is traced here, the
name `np` of the user's own modules gives arrays that record what is done with them, each call with its line, so that a
table is a value like any other: it can be looked up, and made again with another operand.
"""

import contextlib
import sys
import sysconfig
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxgrad.port.values import Line, in_library, lines_here

# Larger arrays are no tables: those of weights and data are given, not made.
_MOST_NUMBERS = 2**20
# A table that is filled entry by entry, in so many calls, is not made again.
_MOST_CALLS = 2_000
# What makes arrays of no arrays.
_CREATORS = (
    "arange array asarray empty eye full fromfunction fromiter geomspace identity indices linspace logspace meshgrid "
    "ones tri zeros"
).split()
# Methods of an array that do not go through a function that NumPy lets a subclass see.
_METHODS = (
    "astype clip copy cumprod cumsum diagonal flatten ravel repeat reshape squeeze swapaxes take transpose"
).split()
# NumPy's names of what JAX has, too.
_NAMES = {
    "multiply": "mul", "subtract": "sub", "divide": "div", "true_divide": "div", "power": "pow", "float_power": "pow",
    "negative": "neg", "maximum": "max", "minimum": "min", "absolute": "abs", "matmul": "dot_general",
    "greater": "gt", "greater_equal": "ge", "less": "lt", "less_equal": "le", "equal": "eq", "not_equal": "ne",
    "flip": "rev", "swapaxes": "transpose", "ravel": "reshape", "flatten": "reshape", "astype": "convert_element_type",
}  # fmt: skip


class Made(NamedTuple):
    """An operand that was the result of a call, by its number."""

    call: int


class Call(NamedTuple):
    """A call of NumPy: `run` takes the operands' values, arrays and numbers, and gives the result.

    Of the `operands` those that calls made are told by number. `result` is a copy from the time of the call.
    """

    name: str
    run: Callable[[Sequence[Any]], Any]
    operands: tuple[Any, ...]
    lines: tuple[Line, ...]
    result: np.ndarray


class Calls(list[Call]):
    """The calls of a trace, in order. Arrays go on recording until it is `closed`."""

    closed = False

    def made(self, value: np.ndarray) -> int | None:
        """The last call that gave the numbers of an array, where they say something."""
        if not self or not 1 < value.size <= _MOST_NUMBERS or value.dtype.kind not in "biuf":
            return None
        if (value == value.flat[0]).all():
            return None
        same = (k for k in range(len(self) - 1, -1, -1) if self[k].result.shape == value.shape)
        return next((k for k in same if np.array_equal(self[k].result.astype(value.dtype), value)), None)

    def leading_to(self, call: int) -> list[int]:
        """A call and those that it was made from, in order; none where they are too many to be made again."""
        found, todo = set[int](), [call]
        while todo:
            k = todo.pop()
            if k not in found:
                found.add(k)
                todo += [x.call for x in self[k].operands if isinstance(x, Made)]
        return sorted(found) if len(found) <= _MOST_CALLS else []


class _Array(np.ndarray):
    """An array that knows the call it was made by; one that NumPy makes of it unseen does not."""

    _calls: Calls
    _call: int | None

    def __array_finalize__(self, made_of: Any) -> None:
        known = getattr(made_of, "_calls", None)
        self._calls, self._call = known if isinstance(known, Calls) else Calls(), None

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: Any = None, **kwargs: Any) -> Any:
        if any(type(x).__array_ufunc__ is None for x in inputs if hasattr(type(x), "__array_ufunc__")):
            return NotImplemented
        into = {} if out is None else {"out": tuple(map(_plain, out))}
        name = ufunc.__name__ if method == "__call__" else f"{ufunc.__name__}.{method}"
        calls, function = self._calls, getattr(ufunc, method)
        numbered = [_numbered(calls, x) for x in inputs]
        result = function(*map(_plain, inputs), **into, **{k: _plain(x) for k, x in kwargs.items()})
        if out is None:
            return _told(calls, name, _calling(function, kwargs), numbered, result)
        written = out[0]
        if isinstance(written, _Array):
            written._call = _add(calls, name, _calling(function, kwargs), numbered, _plain(written))
        return written

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        return _recorded(self._calls, func, args, kwargs)

    def __getitem__(self, key: Any) -> Any:
        return _recorded(self._calls, np.ndarray.__getitem__, (self, key), {}, "slice")

    def __setitem__(self, key: Any, value: Any) -> None:
        before, given = _numbered(self._calls, self), _numbered(self._calls, value)
        plain_key = jax.tree.map(_plain, key)
        np.ndarray.__setitem__(_plain(self), plain_key, _plain(value))

        def run(x: Sequence[Any]) -> Any:
            changed = np.array(x[0])
            changed[plain_key] = x[1]
            return changed

        self._call = _add(self._calls, "set", run, [before, given], _plain(self))

    @property
    def T(self) -> Any:  # noqa: N802
        return _recorded(self._calls, np.transpose, (self,), {})


def _method(name: str) -> Callable[..., Any]:
    def call(self: _Array, *args: Any, **kwargs: Any) -> Any:
        return _recorded(self._calls, getattr(np.ndarray, name), (self, *args), kwargs, name)

    return call


for _name in _METHODS:
    setattr(_Array, _name, _method(_name))


class _Numpy(types.ModuleType):
    """NumPy, whose new arrays record what is done with them."""

    def __init__(self, calls: Calls) -> None:
        super().__init__("numpy", np.__doc__)
        for name in _CREATORS:
            setattr(self, name, self._creator(calls, getattr(np, name), name))

    @staticmethod
    def _creator(calls: Calls, function: Any, name: str) -> Callable[..., Any]:
        return lambda *args, **kwargs: _recorded(calls, function, args, kwargs, name)

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)


def _recorded(calls: Calls, function: Any, args: Any, kwargs: Any, name: str | None = None) -> Any:
    """The call of a function of arrays, with what it gives recorded: its arrays and its numbers are operands."""
    leaves, tree = jax.tree.flatten((args, kwargs), is_leaf=lambda x: x is None)
    places = [k for k, x in enumerate(leaves) if isinstance(x, np.ndarray) or type(x) in (int, float)]
    numbered = [_numbered(calls, leaves[k]) for k in places]
    plain = list(map(_plain, leaves))

    def run(given: Sequence[Any]) -> Any:
        changed = list(plain)
        for k, x in zip(places, given, strict=True):
            # A size or an axis is a whole number, whoever computed it.
            changed[k] = type(plain[k])(x) if type(plain[k]) is int else x
        again, named = jax.tree.unflatten(tree, changed)
        return function(*again, **named)

    given, named = jax.tree.unflatten(tree, plain)
    return _told(calls, name or function.__name__, run, numbered, function(*given, **named))


def _calling(function: Any, kwargs: Mapping[str, Any]) -> Callable[[Sequence[Any]], Any]:
    named = {k: _plain(x) for k, x in kwargs.items()}
    return lambda x: function(*x, **named)


def _told(calls: Calls, name: str, run: Callable[[Sequence[Any]], Any], operands: Sequence[Any], result: Any) -> Any:
    """What a call gives, each array of it recorded."""
    if isinstance(result, (tuple, list)):
        parts = (_told(calls, name, _part(run, k), operands, x) for k, x in enumerate(result))
        return type(result)(parts) if type(result) in (tuple, list) else result
    if type(result) is not np.ndarray or calls.closed:
        return result
    told = result.view(_Array)
    told._calls, told._call = calls, _add(calls, name, run, operands, result)
    return told


def _part(run: Callable[[Sequence[Any]], Any], part: int) -> Callable[[Sequence[Any]], Any]:
    return lambda x: run(x)[part]


def _add(
    calls: Calls, name: str, run: Callable[[Sequence[Any]], Any], operands: Sequence[Any], result: np.ndarray
) -> int | None:
    if calls.closed or result.size > _MOST_NUMBERS:
        return None
    calls.append(Call(_NAMES.get(name, name), run, tuple(operands), lines_here(), np.array(result)))
    return len(calls) - 1


def _numbered(calls: Calls, x: Any) -> Any:
    """An operand as a call's number where a call made it, else as it is.

    What was written to through a view is not what its call gave: it is an array that comes from nowhere.
    """
    if not isinstance(x, _Array):
        return x
    known = x._call is not None and x._calls is calls and np.array_equal(calls[x._call].result, _plain(x))
    return Made(x._call) if known else np.array(_plain(x))  # type: ignore[arg-type]


def _plain(x: Any) -> Any:
    return x.view(np.ndarray) if isinstance(x, _Array) else x


@contextlib.contextmanager
def recording() -> Iterator[Calls]:
    """Record what the user's modules compute in NumPy: those outside of site-packages that call it by some name."""
    calls = Calls()
    numpy = _Numpy(calls)
    named = [
        (module, name)
        for module in list(sys.modules.values())
        if _is_users(module)
        for name, x in list(vars(module).items())
        if x is np
    ]
    for module, name in named:
        setattr(module, name, numpy)
    try:
        yield calls
    finally:
        calls.closed = True
        for module, name in named:
            setattr(module, name, np)


def _is_users(module: Any) -> bool:
    if getattr(module, "__name__", None) == "__main__":
        return True
    file = vars(module).get("__file__") if isinstance(module, types.ModuleType) else None
    if not isinstance(file, str) or in_library(file):
        return False
    path = Path(file)
    installed = {"site-packages", "dist-packages"} & set(path.parts)
    return not installed and not path.is_relative_to(sysconfig.get_path("stdlib"))
