"""`jaxgrad parity` and `jaxgrad mutate`: who disagrees with whom, and would the check have noticed."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jaxgrad import models
from jaxgrad.cli.app import CorpusOption, DType, JsonOption, Platform
from jaxgrad.cli.progress import Stop, bar, counting_bar, stoppable
from jaxgrad.cli.sized import ModelOption, all_sizes
from jaxgrad.cli.terminal import say
from jaxgrad.errors import JaxgradError

if TYPE_CHECKING:
    from jaxgrad.mutation.score import Score
    from jaxgrad.parity.cases import Case


def parity(
    context_of_call: typer.Context,
    model: ModelOption = models.DEFAULT,
    seed_case: Annotated[
        bool, typer.Option("--seed-case", help="Compare on the notebook's batch; the default without --batches.")
    ] = False,
    batches: Annotated[int, typer.Option(min=0, help="How many random batches of the corpus to compare on.")] = 0,
    dtype: Annotated[DType, typer.Option(help="Type of every number in every engine.")] = DType.float64,
    batch_size: Annotated[int, typer.Option(min=2, help="Rows of a random batch.")] = 32,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of the random batches.")] = 0,
    corpus: CorpusOption = None,
    engines: Annotated[
        str | None,
        typer.Option(
            help="Two or more of by-node, fused, kernel, jax.grad, torch, torch.nn."
            "  [default: by-node,fused,jax.grad,torch]"
        ),
    ] = None,
    device: Annotated[Platform, typer.Option(help="Where JAX runs.")] = Platform.cpu,
    torch_device: Annotated[str, typer.Option(help="Where PyTorch runs: cpu, cuda, mps, ...")] = "cpu",
    json: Annotated[Path | None, typer.Option(help="Write everything as JSON, schema jaxgrad.parity/2.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with graph, table and maps of the errors.")] = None,
    replay: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Compare on the batch and parameters of a step of this run.")
    ] = None,
    step: Annotated[int, typer.Option(min=0, help="The step to replay, the first being 0.")] = 0,
) -> None:
    """Compare every engine's gradients, node by node; exit 1 when any differ, or when nothing could be judged.

    Example: jaxgrad parity --batches 5 --batch-size 64 --dtype float32
    """
    from rich.console import Console

    from jaxgrad import files, memory
    from jaxgrad.checking.findings import AGREES, DIFFERS
    from jaxgrad.models.model import load_corpus
    from jaxgrad.pages import comparison
    from jaxgrad.parity import cases, page, report
    from jaxgrad.parity import verdict as verdicts
    from jaxgrad.parity.engines import Target, usual

    record = models.record(model)
    names = usual(record) if engines is None else tuple(name.strip() for name in engines.split(","))
    if len(set(names)) < 2:
        raise JaxgradError(f"--engines is {engines!r}; name at least two different engines, separated by commas")
    if seed_case and model != models.DEFAULT:
        raise JaxgradError(f"the notebook has no batch of {model}; leave --seed-case out")
    chosen: list[Case] = []
    if replay is not None:
        chosen = [_replayed(replay, step, corpus)]
    elif seed_case or not batches:
        chosen = [cases.seed_case() if model == models.DEFAULT else _random(model, batch_size, context_of_call)]
    if batches:
        sizes = record.sizes(**all_sizes(context_of_call))
        data = load_corpus(record, sizes, corpus)
        told = ", ".join(f"{name} {value}" for name, value in all_sizes(context_of_call).items())
        numbers = record.numbers(sizes, len(data.vocabulary), batch_size)
        memory.check(8 * numbers, f"one pass with {told} and batches of {batch_size}")
        chosen += [cases.corpus_case(record, sizes, data, seed, step, batch_size) for step in range(batches)]

    console = Console(soft_wrap=True)
    target = Target(dtype.value, device.value, torch_device)
    # What is kept of a case are numbers about it: the arrays of many batches would fill the memory.
    outcomes: list[str] = []
    kept: list[dict[str, Any]] = []
    drawn: list[dict[str, Any]] = []
    with stoppable() as stop, bar(len(chosen), "batches") as update:
        for case in chosen:
            verdict = verdicts.judge(case, target, names)
            outcomes.append(verdict.outcome)
            if json is not None:
                kept.append(report.case(verdict))
            if html is not None:
                drawn.append(page.case(verdict))
            if len(chosen) == 1 or not verdict.agree:
                console.print(report.tables(verdict))
            console.print(report.summary(verdict), highlight=False)
            if verdict.outcome == DIFFERS and target.dtype != "float64":
                console.print(verdicts.appeal(verdict), highlight=False)
            update(len(outcomes), "all agree" if set(outcomes) == {AGREES} else "not all agree")
    if json is not None:
        files.write_json(json, report.to_json(kept, complete=not stop.came))
        say(console, f"written: {json}")
    if html is not None:
        written = comparison.html(page.of_cases(drawn, target.jax_device, target.torch_device))
        files.write_text(html, written)
        say(console, f"written: {html}")
    if stop.came:
        say(console, f"{len(outcomes)} of {len(chosen)} batches were compared")
    stop.exit(1 if DIFFERS in outcomes or AGREES not in outcomes else 0)


def _random(model: str, batch_size: int, context: typer.Context) -> "Case":
    from jaxgrad.parity import cases

    return cases.random_case(0, batch_size, model=model, **all_sizes(context))


def _replayed(run: Path, step: int, corpus: Path | None) -> "Case":
    from jaxgrad.cli.training import corpus_of
    from jaxgrad.parity import cases
    from jaxgrad.training import replay
    from jaxgrad.training.config import record
    from jaxgrad.training.folder import load_config

    config = load_config(run)
    params, batch = replay.step(run, step, corpus_of(config, corpus))
    vocab_size = len(config.vocabulary)
    return cases.case(f"{run}, step {step}", record(config), config.sizes, vocab_size, params, batch)


def mutate(
    subject: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODULE:FUNCTION]", help="A function that returns (fn, check, args); without it, our own passes."
        ),
    ] = None,
    model: ModelOption = models.DEFAULT,
    json: JsonOption = None,
) -> None:
    """Make one mistake at a time in a backward pass and see if its check notices; exit 1 if one survives.

    Example: jaxgrad mutate tests/test_norm.py:subject
    """
    from jaxgrad import files
    from jaxgrad.mutation import score as mutation

    scores, stop = _own_scores(model) if subject is None else _scores_of(subject)
    if json is not None:
        files.write_json(json, mutation.to_json(scores, complete=not stop.came))
    stop.exit(1 if any(score.survived for score in scores.values()) else 0)


def _scores_of(subject: str) -> "tuple[dict[str, Score], Stop]":
    """The score of a user's function, printed; where Ctrl-C stopped it, that of the mutants tried until then."""
    from jaxgrad.mutation import score as mutation

    made = mutation.load(subject)
    with stoppable() as stop, counting_bar("mutants") as progress:
        stop.found = mutation.mutation_score(made.fn, made.check, *made.args, progress=progress)
    if stop.found is None:
        return {}, stop
    print(mutation.describe(stop.found))
    return {subject: stop.found}, stop


def _own_scores(model: str) -> "tuple[dict[str, Score], Stop]":
    """The scores of this project's own backward passes, printed as tables with every mutant that survived."""
    from jaxgrad.mutation import score as mutation
    from jaxgrad.parity import own_score

    record = models.record(model)
    chosen = own_score.own_cases(record)
    measured: dict[str, list[own_score.Row]] = {title: [] for title in chosen}
    with stoppable() as stop, bar(len(chosen) * len(own_score.names(record)), "backward passes") as update:
        for title, case in chosen.items():
            for row in own_score.rows([case]):
                measured[title].append(row)
                update(sum(map(len, measured.values())), f"{row.name} done")
    rows = {title: found for title, found in measured.items() if found}
    told = {title: [f"{row.name}: {mutation.describe(row.score)}" for row in found] for title, found in rows.items()}
    print("\n\n".join("\n\n".join([title, own_score.table(rows[title]), *told[title]]) for title in rows))
    return {f"{title}, {row.name}": row.score for title, found in rows.items() for row in found}, stop
