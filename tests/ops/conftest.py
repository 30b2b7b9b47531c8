"""Every op test runs with each property and each size: `passed_by_op` names them, the test names the op."""

import functools

import pytest

from tests.ops import suite


@pytest.fixture(params=suite.PROPERTIES, ids=lambda p: p.__name__)
def property(request: pytest.FixtureRequest):
    return request.param


@pytest.fixture(params=suite.SIZES, ids=("seed_case", "smallest", "small"))
def passed_by(request: pytest.FixtureRequest, seeded_case, property):
    """`passed_by(op)`: run one property of the suite on the op's arguments in one seeded case."""
    return functools.partial(suite.passes, property=property, case=seeded_case(**request.param))
