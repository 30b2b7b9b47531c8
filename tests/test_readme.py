"""What README shows is true."""

import functools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad import GradientMismatch, check, modules, port
from jaxgrad.models.mlp.forward import forward
from jaxgrad.parity.engines import Target, run
from jaxgrad.parity.verdict import verdict
from jaxgrad.plots import of_check

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def alternative(picture: str) -> str:
    """The text that stands for a picture."""
    return re.search(rf'src="docs/pictures/{picture}-light.png" alt="([^"]+)"', README)[1]


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


def test_the_failing_check_that_is_shown_fails_as_its_picture_says():
    shown = block_with("def test_my_norm(three_way)")
    with pytest.raises(GradientMismatch) as caught:
        shown["test_my_norm"](functools.partial(check, name="test_my_norm"))
    *lines, _ = str(caught.value).splitlines()
    # The line of the rule is one of this page, and in the picture one of the program that draws it.
    drawn = of_check.message().splitlines()
    of_page, of_picture = ([line for line in each if not line.startswith("  rule ")] for each in (lines, drawn))
    # Both are made here, by one compiler; the figures of the picture that is kept are a user's.
    assert of_page == of_picture, "jaxgrad plot message draws another"
    assert len(of_page) == len(lines) - 1 == len(drawn) - 1
    told = ("", "who", "settings")
    alt = [next(line for line in lines if line.strip().startswith(label)).removeprefix(f"  {label}") for label in told]
    assert alternative("message").lower() == " ".join(f"{part.strip()}." for part in alt).lower()


def test_the_port_that_is_drawn_parts_where_the_picture_says():
    folder = ROOT / "docs/pictures/port"
    with modules.imported(str(folder / "model.py")) as model, modules.imported(str(folder / "reference.py")) as torchs:
        fn, params, x = model.case()
        verdict = port.compare(fn, params, x, torch=torchs.Classifier())
    assert verdict.jax is not None and "jax.nn.gelu" in str(verdict.jax.line)
    assert verdict.mends[0].words == "gelu (exact, by erf) in the place of gelu (approximate, by tanh)"
    assert len(verdict.behind) == 1 and verdict.behind[0].endswith("; 2 should be 0.5 would mend it")
    assert "2 should be 0.5" in alternative("port") and "gelu by erf" in alternative("port")


def test_pictures_are_there_for_light_and_for_dark_pages():
    shown = re.findall(r'(?:srcset|src)="([^"]+)"', README)
    assert len(shown) == 6 and all((ROOT / path).is_file() for path in shown)
    assert sum("-dark" in path for path in shown) == 3


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
