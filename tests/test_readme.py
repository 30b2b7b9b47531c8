"""What README shows is true."""

import functools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad import GradientMismatch, check
from jaxgrad.models.mlp.forward import forward
from jaxgrad.parity.engines import Target, run
from jaxgrad.parity.verdict import verdict

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def block_with(text: str) -> dict:
    """The names that the Python block with `text` in it defines."""
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    (block,) = (block for block in blocks if text in block)
    shown: dict = {}
    exec(compile(block, "README.md", "exec"), shown)
    return shown


def test_the_model_that_is_shown_has_gradients():
    gradients = block_with("gradients = jax.jit(jax.grad(loss))")["gradients"]
    assert len(gradients) == 5 and all(np.isfinite(leaf).all() for leaf in gradients.values())


@pytest.mark.as_users_compile
def test_the_failing_check_that_is_shown_fails_as_shown():
    shown = block_with("def test_my_norm(three_way)")
    with pytest.raises(GradientMismatch) as caught:
        shown["test_my_norm"](functools.partial(check, name="test_my_norm"))
    *lines, _ = str(caught.value).splitlines()
    assert "\n".join(lines) in README


@pytest.mark.as_users_compile
def test_the_mistake_that_is_shown_is_found_as_shown(seeded_case):
    case = seeded_case()
    gradients = run(("by-node", "jax.grad", "torch"), case, Target("float64"))
    honest = gradients["by-node"]
    nodes = honest.nodes
    with jax.enable_x64(True):
        primals = jax.tree.map(np.asarray, forward(*jax.tree.map(jnp.asarray, (case.params, case.batch))))
    forgotten = honest._replace(nodes={**nodes, "bn_diff": primals.bn_var_inv * nodes["bn_raw"]})
    sentence = verdict(case, Target("float64"), {**gradients, "by-node": forgotten}).sentence
    assert " ".join(sentence.split()) in " ".join(README.split())
