"""The application that commands join, and the options that several of them have."""

import contextlib
import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import platformdirs
import typer
import typer.core

from jaxgrad.cli.terminal import INTERRUPTED, complain

GUIDE = """\
Hand-written gradients, proved against jax.grad and PyTorch, then trained with.

  jaxgrad parity       are the derivatives right? node by node, on one batch
  jaxgrad train        the notebook's 200,000 steps, in seconds, as a run folder
  jaxgrad sample RUN   new names from that run

All commands: jaxgrad --help. One of them: jaxgrad COMMAND --help."""


class _Group(typer.core.TyperGroup):
    """Commands that Ctrl-C ends with the exit code of its signal, where one does not see to it itself."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            complain("stopped by Ctrl-C")
            raise SystemExit(INTERRUPTED) from None


app = typer.Typer(
    cls=_Group,
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"max_content_width": 100},
    help="Hand-written gradients in JAX: prove them against jax.grad and PyTorch, then train with them.",
    epilog="Start with: jaxgrad parity · jaxgrad train · jaxgrad sample RUN",
)


@app.callback()
def options(
    context: typer.Context,
    compile_cache: Annotated[
        bool,
        typer.Option(
            "--compile-cache/--no-compile-cache",
            help="Keep compiled programs in your cache folder, so that the next start is quicker.",
        ),
    ] = True,
) -> None:
    """Options of every command. JAX reads them from the environment when it is imported, which no command has yet."""
    if context.invoked_subcommand is None:
        print(GUIDE)
        return
    if context.invoked_subcommand == "sweep":
        # One model keeps one core busy: on a CPU each core is a device, and takes its share of the models.
        os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(os.cpu_count() or 1))
    folder = platformdirs.user_cache_path("jaxgrad") / "compiled"
    if compile_cache:
        # Where no cache can be kept, JAX would warn of every program that it compiles.
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            # What is set already, a folder or JAX_ENABLE_COMPILATION_CACHE=false, is the user's and stays.
            os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder))
            os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")


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


JsonOption = Annotated[Path | None, typer.Option("--json", help="Write what is shown as JSON too.")]

CorpusOption = Annotated[
    Path | None,
    typer.Option("--corpus", envvar="JAXGRAD_CORPUS", help="UTF-8 text, a word a line; else the one that ships."),
]
