"""These tests stand for other people's: they use the plugin as it is installed, and nothing of our model."""

import pytest

from jaxgrad import GradientMismatch


@pytest.fixture
def fails(three_way):
    """`fails(*args, at="…", **options)`: the check fails, and its message begins with what it says is wrong."""

    def check(*args, at: str, **options) -> str:
        # One setting is enough to fail in; that all pass is for the correct gradient to show.
        quick = {"dtypes": ("float64",), "transforms": ("jit",), "seeds": (0,)}
        with pytest.raises(GradientMismatch) as caught:
            three_way(*args, **{**quick, **options})
        message = str(caught.value)
        assert f": {at} is wrong" in message.splitlines()[0], message
        return message

    return check
