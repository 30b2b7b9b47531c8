"""The page on how a difference is judged has the code's own constants and limits."""

from pathlib import Path

import numpy as np

from jaxgrad.checking import compare, expected, taylor
from jaxgrad.checking.pullback import Pulled
from jaxgrad.jaxprs import noise

PAGE = (Path(__file__).parents[2] / "docs/how-it-decides.md").read_text(encoding="utf-8")


def test_the_constants_are_those_of_the_code():
    assert compare.ALPHA == 1e-9 and r"$\alpha = 10^{-9}$" in PAGE
    assert compare.LEAST == 4 and "No limit is below 4 times the noise." in PAGE
    assert compare.MOST_UNJUDGED == 1 / 4 and "more than a quarter of a tensor" in PAGE
    assert noise.RUN == 512 and "at most 512 terms" in PAGE
    assert taylor._RATIO ** -(taylor._STEPS - 1) == 4.0**-23 and "down to $4^{-23}$" in PAGE
    assert expected.samples_for(Pulled([np.zeros(3)], [], [])) == 32 and "up to 32 times" in PAGE


def test_the_limits_are_those_of_the_code():
    element, of_many, of_slices = (compare.limit(1.0, 32, count) for count in (1, 6000, 200))
    assert f"| {element:.1f} for one element, {of_many:.1f} for 6,000 |" in PAGE
    assert f"| at least {compare.limit(1e6, 32):.0f}, at most {of_slices:.1f} for 200 slices |" in PAGE
    assert f"| between 4 and {element:.1f} |" in PAGE
