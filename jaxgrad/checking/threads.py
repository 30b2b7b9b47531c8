"""Work on several arrays at once: NumPy computes without Python's lock, and most of its time waits for memory."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

Result = TypeVar("Result")
# Of fewer elements all takes less time than threads take to start.
_FEW = 2**20


def of_each(fn: Callable[..., Result], arrays: Sequence[np.ndarray], *others: Sequence[Any]) -> list[Result]:
    """`fn` of each array, with what is in the same place of `others`; in threads where the arrays are large.

    Raises the first of what `fn` raises, in the order of the arrays.
    """
    if sum(array.size for array in arrays) < _FEW:
        return list(map(fn, arrays, *others))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(fn, arrays, *others))
