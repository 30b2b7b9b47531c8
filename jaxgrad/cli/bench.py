"""`jaxgrad bench`: alternatives timed side by side."""

from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Time alternatives side by side on this machine.")


@app.command("embedding")
def bench_embedding(
    rounds: Annotated[int, typer.Option(min=3, help="Interleaved rounds; their median and quartiles are shown.")] = 9,
) -> None:
    """The embedding's gradient as scatter-add, which the op uses, against a one-hot product.

    Example: jaxgrad bench embedding --rounds 15
    """
    import jax
    from rich.console import Console
    from rich.table import Table

    from jaxgrad.bench import embedding

    table = Table("lookups", "width", "rows", title=f"microseconds a gradient, {jax.devices()[0].device_kind}")
    for heading in ("scatter-add", "one-hot product", "ratio"):
        table.add_column(heading, justify="right")
    for size in embedding.SIZES:
        timings = embedding.compare(size, rounds)
        cells = [f"{1e6 * t.median:,.1f} ({1e6 * t.low:,.1f}-{1e6 * t.high:,.1f})" for t in timings.values()]
        scatter, product = (t.median for t in timings.values())
        table.add_row(*map(str, size), *cells, f"{product / scatter:.1f}")
    Console().print(table)
