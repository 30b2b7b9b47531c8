"""What README shows is true."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad.models.mlp import forward
from jaxgrad.parity.engines import Target, run
from jaxgrad.parity.verdict import verdict

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_every_python_block_runs():
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert blocks
    for block in blocks:
        shown: dict = {}
        exec(compile(block, "README.md", "exec"), shown)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(shown["gradients"]))


def test_the_mistake_that_is_shown_is_found_as_shown(seeded_case):
    case = seeded_case()
    gradients = run(("by-node", "jax.grad", "torch"), case, Target("float64"))
    honest = gradients["by-node"]
    nodes = honest.nodes
    with jax.enable_x64(True):
        primals = jax.tree.map(np.asarray, forward(*jax.tree.map(jnp.asarray, (case.params, case.batch))))
    forgotten = honest._replace(nodes=nodes._replace(bn_diff=primals.bn_var_inv * nodes.bn_raw))
    sentence = verdict(case, Target("float64"), {**gradients, "by-node": forgotten}).sentence
    assert " ".join(sentence.split()) in " ".join(README.split())
