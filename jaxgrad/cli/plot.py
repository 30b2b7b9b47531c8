"""`jaxgrad plot`: pictures of runs, sweeps, benchmarks and gradients."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jaxgrad.cli.progress import bar
from jaxgrad.errors import JaxgradError
from jaxgrad.text import visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from jaxgrad.parity.cases import Case
    from jaxgrad.plots import Theme

app = typer.Typer(no_args_is_help=True, help="Pictures of runs, sweeps, benchmarks and gradients.")

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")]
OutOption = Annotated[
    Path | None, typer.Option(help="FILE.png, .svg or .pdf; without it a PNG named after the picture.")
]
DarkOption = Annotated[bool, typer.Option("--dark", help="For dark pages.")]


@app.command()
def loss(run: RunArgument, out: OutOption = None, dark: DarkOption = False) -> None:
    """Loss over the steps of a run, and its schedule.

    Example: jaxgrad plot loss runs/demo --out loss.svg
    """
    from jaxgrad import plots
    from jaxgrad.plots import of_run

    path = _place(out, run / "loss", dark)
    _save(plots.loss_curve(*of_run.columns(run), _theme(dark)), path)


@app.command()
def logits(
    run: Annotated[
        Path | None, typer.Argument(metavar="RUN", help="Folder of a run; without it, the notebook's batch.")
    ] = None,
    step: Annotated[int | None, typer.Option(min=0, help="Which of the run's batches; the last if not given.")] = None,
    corpus: Annotated[Path | None, typer.Option(help="Another copy of the run's corpus.")] = None,
    out: OutOption = None,
    dark: DarkOption = False,
) -> None:
    """The gradient of the logits for a batch.

    What pushes a target up is taken from all others: rows sum to 0.

    Example: jaxgrad plot logits runs/demo --step 1000
    """
    import numpy as np
    from rich.console import Console

    from jaxgrad import plots
    from jaxgrad.plots import of_case

    if run is None and (step is not None or corpus is not None):
        raise JaxgradError("--step and --corpus are of a run; give its folder too, or leave them out")
    path = _place(out, (run or Path()) / "logits", dark)
    with Console().status("gradients of the batch"):
        case, vocabulary = _notebooks_batch() if run is None else _batch_of(run, step, corpus)
        dlogits = of_case.dlogits(case)
    _save(
        plots.logit_gradients(dlogits, np.asarray(case.batch.Y).reshape(-1), vocabulary, case.name, _theme(dark)), path
    )


def _notebooks_batch() -> "tuple[Case, tuple[str, ...]]":
    import string

    from jaxgrad.corpus import BOUNDARY
    from jaxgrad.parity import cases

    return cases.seed_case(), (BOUNDARY, *string.ascii_lowercase)


def _batch_of(run: Path, step: int | None, corpus: Path | None) -> "tuple[Case, tuple[str, ...]]":
    """A step's parameters and batch, by default of the last step that is known of, and the run's vocabulary."""
    from jaxgrad.cli.training import corpus_of
    from jaxgrad.parity import cases
    from jaxgrad.plots import of_run
    from jaxgrad.training import replay
    from jaxgrad.training.config import record
    from jaxgrad.training.folder import load_config

    config = load_config(run)
    number = int(of_run.columns(run)[0][-1]) - 1 if step is None else step
    params, batch = replay.step(run, number, corpus_of(config, corpus))
    name, vocab_size = f"step {number:,} of {run.name}", len(config.vocabulary)
    return cases.case(name, record(config), config.sizes, vocab_size, params, batch), config.vocabulary


@app.command()
def saturation(
    run: RunArgument,
    corpus: Annotated[Path | None, typer.Option(help="Another copy of the run's corpus.")] = None,
    out: OutOption = None,
    dark: DarkOption = False,
) -> None:
    """Saturation of tanh and batch norm's statistics.

    The steps of the run are taken again, with a look at the hidden layer at some of them.

    Example: jaxgrad plot saturation runs/demo
    """
    from jaxgrad import plots
    from jaxgrad.cli.training import corpus_of
    from jaxgrad.plots import of_run
    from jaxgrad.training.folder import load_config

    path = _place(out, run / "saturation", dark)
    data = corpus_of(load_config(run), corpus)
    last = int(of_run.columns(run)[0][-1])
    with bar(last, "steps") as update:
        watched = of_run.watch(run, data, lambda step: update(step, "taken again"))
    _save(plots.hidden_layer(watched, _theme(dark)), path)


@app.command()
def embedding(run: RunArgument, out: OutOption = None, dark: DarkOption = False) -> None:
    """Where each symbol lies, before and after training.

    Rows of the embedding on their first two principal components.

    Example: jaxgrad plot embedding runs/demo --dark
    """
    import numpy as np

    from jaxgrad import plots
    from jaxgrad.cli.training import warnings_shown
    from jaxgrad.models.model import named
    from jaxgrad.training import run as runs
    from jaxgrad.training.config import record

    path = _place(out, run / "embedding", dark)
    with warnings_shown():
        config, params, _ = runs.load(run)
    table = record(config).embedding
    if table is None:
        raise JaxgradError(f"{run}: is a run of the model {config.model}, which has no embedding to draw")
    with runs.precision(config):
        before, after = (np.asarray(named(p)[table], np.float64) for p in (runs.fresh(config).state.params, params))
    _save(plots.letters(before, after, config.vocabulary, _theme(dark)), path)


@app.command()
def errors(out: OutOption = None, dark: DarkOption = False) -> None:
    """Errors of all gradients in three types.

    By-node in float64, float32 and bfloat16 against jax.grad in float64, on the notebook's batch.

    Example: jaxgrad plot errors --out errors.pdf
    """
    from jaxgrad import plots
    from jaxgrad.parity import cases
    from jaxgrad.parity.engines import DTYPES
    from jaxgrad.plots import of_case

    path = _place(out, Path("errors"), dark)
    with bar(len(DTYPES), "types") as update:
        names, found = of_case.errors(cases.seed_case(), lambda done: update(done, DTYPES[done - 1]))
    _save(plots.node_errors(names, found, "by-node", _theme(dark)), path)


@app.command()
def graph(out: OutOption = None, dark: DarkOption = False) -> None:
    """The nodes of the notebook's model, and how they hang together.

    Example: jaxgrad plot graph --out graph.svg
    """
    from jaxgrad import plots
    from jaxgrad.models.model import named
    from jaxgrad.parity import cases
    from jaxgrad.parity.engines import graph as traced

    path = _place(out, Path("graph"), dark)
    case = cases.seed_case()
    found, parameters = traced(case.model, case.sizes, case.vocab_size), [*named(case.params)]
    nodes = [name for name in reversed(found.order) if name not in parameters]
    _save(plots.model_graph(nodes, parameters, found.users, _theme(dark)), path)


@app.command()
def noise(out: OutOption = None, dark: DarkOption = False) -> None:
    """Errors of right gradients in units of their noise, the limit, and where mistakes lie.

    By-node in float64, float32 and bfloat16 on the notebook's batch, and every mutant of its backward passes.

    Example: jaxgrad plot noise --out noise.svg
    """
    from jaxgrad import plots
    from jaxgrad.parity import cases
    from jaxgrad.parity.engines import DTYPES
    from jaxgrad.plots import of_case

    path = _place(out, Path("noise"), dark)
    with bar(len(DTYPES), "types") as update:
        judged = of_case.judged(cases.seed_case(), lambda done: update(done, DTYPES[done - 1]))
    _save(plots.noise_and_limits(judged, _theme(dark)), path)


@app.command()
def message(
    file: Annotated[
        Path | None,
        typer.Argument(metavar="FILE", help="A text file; without it, the message of an RMS norm that is wrong."),
    ] = None,
    out: OutOption = None,
    dark: DarkOption = False,
) -> None:
    """The message of a failed check.

    Example: jaxgrad plot message --out message.png
    """
    from rich.console import Console

    from jaxgrad import files, plots
    from jaxgrad.plots import of_check

    path = _place(out, Path("message") if file is None else file.with_suffix(""), dark)
    if file is None:
        with Console().status("check of an RMS norm"):
            text = of_check.message()
    else:
        try:
            text = files.read_bytes(file).decode(errors="replace")
        except OSError as error:
            raise JaxgradError(f"{file}: cannot be read ({error.strerror}); give a file of text") from None
    if not text.strip():
        raise JaxgradError(f"{file}: holds no text to draw")
    _save(plots.message_text(text, _theme(dark)), path)


@app.command()
def port(
    subject: Annotated[
        str, typer.Argument(metavar="FILE.py:FUNCTION", help="A function that returns (fn, params, *inputs).")
    ],
    torch: Annotated[
        str, typer.Option(metavar="FILE.py:MODULE", help="An nn.Module, its class, or a function that returns one.")
    ],
    out: OutOption = None,
    dark: DarkOption = False,
) -> None:
    """Where a port parts from the module it was ported from.

    Example: jaxgrad plot port model.py:case --torch reference.py:Model
    """
    from rich.console import Console

    from jaxgrad import plots
    from jaxgrad import port as porting
    from jaxgrad.cli.port import module_named, subject_named
    from jaxgrad.plots import of_port

    path = _place(out, Path("port"), dark)
    fn, params, *inputs = subject_named(subject)
    with Console().status("both programs"):
        verdict = porting.compare(fn, params, *inputs, torch=module_named(torch))
    _save(plots.side_by_side(of_port.sides(verdict), of_port.said(verdict), _theme(dark)), path)


@app.command()
def sweep(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of a sweep.")],
    out: OutOption = None,
    dark: DarkOption = False,
) -> None:
    """Loss over steps of all runs of a sweep, the best named.

    Example: jaxgrad plot sweep sweeps/rates --out rates.png
    """
    from jaxgrad import plots
    from jaxgrad.plots import of_sweep

    path = _place(out, folder / "curves", dark)
    _save(plots.sweep_curves(*of_sweep.curves(folder), _theme(dark)), path)


@app.command()
def bench(
    file: Annotated[Path, typer.Argument(metavar="FILE.json", help="What jaxgrad bench --json wrote.")],
    out: OutOption = None,
    dark: DarkOption = False,
) -> None:
    """Microseconds a training step of every competitor.

    Medians with the quartiles of their rounds.

    Example: jaxgrad plot bench a.json --out a.svg
    """
    from jaxgrad.bench import compare, plot

    path = _place(out, file.with_suffix(""), dark)
    _save(plot.figure(compare.load(file), _theme(dark)), path)


@app.command()
def ops(
    file: Annotated[Path, typer.Argument(metavar="FILE.json", help="What jaxgrad bench ops --json wrote.")],
    out: OutOption = None,
    dark: DarkOption = False,
) -> None:
    """Time and memory of operations as rows, vocabulary and sequence grow.

    Example: jaxgrad plot ops a.json --out a.svg
    """
    from jaxgrad.bench import op_plot, op_report

    path = _place(out, file.with_suffix(""), dark)
    _save(op_plot.figure(op_report.load(file), _theme(dark)), path)


def _theme(dark: bool) -> "Theme":
    from jaxgrad.plots import DARK, LIGHT

    return DARK if dark else LIGHT


def _place(out: Path | None, name: Path, dark: bool) -> Path:
    """Where the picture goes, if it can: found out before anything is computed."""
    from jaxgrad import files
    from jaxgrad.plots.theme import check_format

    path = out or name.with_name(name.name + ("-dark.png" if dark else ".png"))
    check_format(path)
    if out is not None:
        files.check_writable(path)
    return path


def _save(figure: "Figure", path: Path) -> None:
    from jaxgrad.plots import save

    save(figure, path)
    print(visible(f"written: {path}"))
