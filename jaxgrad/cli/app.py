"""The application that commands join, and the options that several of them have."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Hand-written gradients in JAX: prove them against jax.grad and PyTorch, then train with them.",
    epilog="Start with: jaxgrad parity · jaxgrad train · jaxgrad sample RUN",
)


class DType(StrEnum):
    """Types that the engines compute in."""

    float64 = "float64"
    float32 = "float32"
    bfloat16 = "bfloat16"


class Platform(StrEnum):
    """Platforms as JAX names them."""

    cpu = "cpu"
    gpu = "gpu"
    tpu = "tpu"


CorpusOption = Annotated[
    Path | None,
    typer.Option(
        "--corpus", envvar="JAXGRAD_CORPUS", help="UTF-8 text, one word a line; without it, names of US births of 2018."
    ),
]
