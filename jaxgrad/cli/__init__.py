"""`jaxgrad`: parse, call, print; a file for each group of commands.

Every command imports what it needs when it runs, so that help is instant.
"""

import gc

from jaxgrad.cli import bench, corpus, parity, plot, port, report, sweep, training
from jaxgrad.cli.app import app
from jaxgrad.cli.sized import several, sized
from jaxgrad.cli.terminal import guarded

# What a command imports and traces lives until it ends. At Python's own thresholds the collector walks through it again
# and again, which is an eighth of a short command's time.
_COLLECTED_AFTER = (10_000, 50, 10)

app.command(cls=sized("batch_size"))(parity.parity)
app.command()(parity.mutate)
app.command()(port.port)
app.command()(report.report)
app.command(cls=sized("gradients"))(training.train)
app.command("eval")(training.evaluate)
app.command()(training.sample)
app.command(cls=sized("lr", several))(sweep.sweep)
app.add_typer(corpus.app, name="corpus")
app.add_typer(bench.app, name="bench")
app.add_typer(plot.app, name="plot")


def main() -> None:
    """Run the command line; an error a person can mend is one sentence on stderr and exit code 2."""
    gc.set_threshold(*_COLLECTED_AFTER)
    raise SystemExit(guarded(lambda: app(prog_name="jaxgrad")))
