"""The answers for the notebook's batch, computed once."""

import pytest

from jaxgrad.learn import answers
from jaxgrad.parity import cases


@pytest.fixture(scope="session")
def known():
    return answers(cases.seed_case())
