"""Rules are undone, and cotangents go back the way that numbers came."""

import numpy as np
import pytest

from jaxgrad.checking.oracles import rules
from jaxgrad.checking.oracles.rules import CONCATENATE, GATED, ONE, STACK, SUM, Rule

CASES = {
    "transposed": (Rule(("w",), ONE, (("transpose", (1, 0)),)), (6, 4), {"w": (4, 6)}),
    "split heads": (Rule(("w",), ONE, (("transpose", (1, 0)), ("reshape", (6, 2, 2)))), (6, 2, 2), {"w": (4, 6)}),
    "the second third": (Rule(("w",), ONE, (("slice", 0, 2, 4), ("transpose", (1, 0)))), (3, 2), {"w": (6, 3)}),
    "a part along axis 1": (Rule(("w",), ONE, (("slice", 1, 0, 3),)), (2, 3), {"w": (2, 6)}),
    "flipped": (Rule(("w",), ONE, (("flip", (1,)), ("transpose", (1, 0)))), (3, 2), {"w": (2, 3)}),
    "parts in another order": (Rule(("w",), ONE, (("blocks", 0, (1, 2, 0)),)), (6, 2), {"w": (6, 2)}),
    "stacked": (Rule(("a", "b"), STACK, (("transpose", (0, 2, 1)),)), (2, 3, 4), {"a": (4, 3), "b": (4, 3)}),
    "joined": (Rule(("a", "b"), CONCATENATE, (("transpose", (1, 0)),)), (3, 4), {"a": (2, 3), "b": (2, 3)}),
    "summed": (Rule(("a", "b"), SUM), (6,), {"a": (6,), "b": (6,)}),
    "summed but for the last gate": (Rule(("a", "b"), GATED), (6,), {"a": (6,), "b": (6,)}),
}


def tensors(rule: Rule, leaf: np.ndarray, shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    found = {name: np.zeros(shape) for name, shape in shapes.items()}
    for piece in rules.undone(rule, leaf, shapes):
        found[piece.name][piece.at] = piece.numbers
    return found


@pytest.mark.parametrize("name", CASES)
def test_a_rule_makes_the_leaf_again_from_what_it_is_undone_to(name: str):
    rule, shape, shapes = CASES[name]
    leaf = np.random.default_rng(0).standard_normal(shape)
    made = tensors(rule, leaf, shapes)
    np.testing.assert_array_equal(rules.apply(rule, made), leaf)
    taken = sum(rules.covered(rule, source, shapes) for source in rule.sources)
    assert taken == sum(np.count_nonzero(x) for x in made.values())


@pytest.mark.parametrize("name", CASES)
def test_sharing_cotangents_is_the_transpose_of_undoing(name: str):
    rule, shape, shapes = CASES[name]
    rng = np.random.default_rng(1)
    leaf = rng.standard_normal(shape)
    dtensors = {name: rng.standard_normal(of) for name, of in shapes.items()}
    made = tensors(rule, leaf, shapes)
    there = sum(np.vdot(made[name], dtensors[name]) for name in shapes)
    np.testing.assert_allclose(np.vdot(leaf, rules.shared(rule, dtensors)), there, rtol=1e-13)


def test_a_type_of_16_bits_is_kept():
    import ml_dtypes

    leaf = np.arange(6).astype(ml_dtypes.bfloat16)
    rule, _, shapes = CASES["summed"]
    assert all(piece.numbers.dtype == ml_dtypes.bfloat16 for piece in rules.undone(rule, leaf, shapes))
