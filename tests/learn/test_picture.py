"""Pictures of shapes."""

import xml.etree.ElementTree as ET

import pytest

from jaxgrad.errors import JaxgradError
from jaxgrad.learn import shapes


def words(spec: str, **sizes: int) -> list[str]:
    """The texts of a drawing, in its order."""
    drawing = shapes(spec, **sizes)._repr_svg_()
    return [element.text for element in ET.fromstring(drawing).iter() if element.tag.endswith("}text")]


def test_an_axis_that_the_result_lacks_is_summed():
    told = words("h[batch, hidden] * dy[batch, vocab] -> dw[hidden, vocab]", batch=4, hidden=3, vocab=2)
    assert told.count("batch 4") == 2 and {"h", "dy", "dw", "hidden 3", "vocab 2", "×", "="} <= set(told)
    assert told[-1] == "summed over batch: the result has no such axis"


def test_an_axis_that_only_the_result_has_is_copied():
    told = words("dsum[batch, 1] -> dcounts[batch, vocab]", batch=4, vocab=2)
    assert told[-1] == "copied along vocab: only the result has that axis"


def test_joined_axes_are_neither():
    told = words("dflat[batch, n·size] -> demb[batch, n, size]", batch=4, n=3, size=2)
    assert "n·size 6" in told and not any("summed" in text or "copied" in text for text in told)


def test_numbers_without_axes_are_drawn():
    assert {"dloss", "/", "n", "dp"} <= set(words("dloss[] / n -> dp[batch]", batch=3))


def test_the_same_spec_gives_the_same_drawing():
    assert shapes("a[k] -> b[]", k=3) == shapes("a[k] -> b[]", k=3)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("a[k]", "is not of the form"),
        ("a[k] -> b", "is not of the form"),
        ("a[k] -> b[k] c[k]", "is not of the form"),
        ("a[k, k, k, k] -> b[]", "more than three axes"),
        ("a[j] -> b[]", r"axis 'j' of .* has no size; give it as j="),
    ],
)
def test_a_spec_that_cannot_be_drawn_is_refused(spec: str, message: str):
    with pytest.raises(JaxgradError, match=message):
        shapes(spec, k=2)
