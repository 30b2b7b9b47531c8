"""Each program in examples/ runs, and prints what it is there to show."""

import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
ROOT = EXAMPLES.parent
SHOWN = {
    "an_op_of_ones_own": ["swish: right in 21 settings", " noticed, 0 not", "loss after 100 steps: 0."],
    "check_a_custom_vjp": [
        "norm: right in 21 settings, 0 not judged",
        "the cotangent of input x is wrong",
        "who       hand differs from both oracles: jax.grad and torch agree",
    ],
    "check_a_float32_kernel": [
        "square: right in float32",
        "not judged in float64: ",
        "the kernel takes float32, not float64",
    ],
    "compare_a_port": [
        "they part (forward)",
        "gelu (exact, by erf) in the place of gelu (approximate, by tanh)",
        "agrees: ",
        "probabilities in float32 differ by no more than rounding",
    ],
    "port_to_equinox": ["they part (forward)", "gelu (exact, by erf) in the place of", "agrees: ", "loaded (16, 8)"],
    "port_to_haiku": ["they part (forward)", "gelu (exact, by erf) in the place of", "agrees: ", "loaded (8, 16)"],
    "port_to_linen": ["they part (forward)", "1e-06 should be 1e-05", "agrees: ", "loaded {'bias': (8,)"],
    "port_to_nnx": ["they part (forward)", "1e-06 should be 1e-05", "agrees: ", "loaded (8, 16)"],
    "train_a_model": ["stopped at step 1000", "train 2.", " · dev 2.", " · test 2."],
}


@pytest.mark.parametrize("name", sorted(path.stem for path in EXAMPLES.glob("*.py")))
def test_an_example_shows_what_it_is_for(name: str, capsys: pytest.CaptureFixture[str]):
    if name == "port_to_haiku":
        pytest.importorskip("haiku", reason="haiku is not installed: pip install 'jaxgrad[port-test]'")
    # In this process, which has JAX and PyTorch loaded already: as `python examples/NAME.py` would.
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    printed = capsys.readouterr().out
    for part in SHOWN[name]:
        assert part in printed, printed


def test_the_docs_show_every_example():
    page = (ROOT / "docs" / "examples.md").read_text(encoding="utf-8")
    for path in EXAMPLES.glob("*.py"):
        assert f'--8<-- "examples/{path.name}"' in page, f"docs/examples.md does not show {path.name}"
