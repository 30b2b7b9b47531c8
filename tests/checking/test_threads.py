"""Many arrays are worked on at once, in their order; few numbers without threads."""

import threading

import numpy as np
import pytest

from jaxgrad.checking import threads


@pytest.mark.parametrize("size", [3, 2**19])
def test_results_are_in_the_order_of_the_arrays(size: int):
    seen = set()

    def summed(array, factor):
        seen.add(threading.get_ident())
        return factor * array[0]

    arrays = [np.full(size, float(number)) for number in range(5)]
    assert threads.of_each(summed, arrays, [1, 2, 3, 4, 5]) == [0, 2, 6, 12, 20]
    assert (threading.get_ident() in seen) == (size == 3)


@pytest.mark.parametrize("size", [3, 2**19])
def test_what_one_raises_is_raised(size: int):
    def refuse(array):
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        threads.of_each(refuse, [np.zeros(size)] * 4)
