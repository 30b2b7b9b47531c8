"""`jaxgrad corpus`: look at one, or fetch the notebook's."""

from pathlib import Path
from typing import Annotated

import typer

from jaxgrad.cli.app import CorpusOption, JsonOption
from jaxgrad.text import visible

app = typer.Typer(no_args_is_help=True, help="Look at a corpus, or fetch the notebook's exact one.")


@app.command("show")
def corpus_show(
    corpus: CorpusOption = None,
    context: Annotated[int, typer.Option(min=1, help="Characters of context.")] = 3,
    json: JsonOption = None,
) -> None:
    """Words, symbols and the sizes of the three splits.

    Example: jaxgrad corpus show --corpus words.txt
    """
    from jaxgrad import corpus as corpora
    from jaxgrad import files

    path = corpora.shipped("names.txt") if corpus is None else corpus
    data = corpora.load(path, context)
    splits = {name: getattr(data, name) for name in ("train", "dev", "test")}
    words = len(corpora.read_words(path))
    if json is not None:
        from jaxgrad.checking.report import dated

        sizes = {name: list(split.X.shape) for name, split in splits.items()}
        told = {"corpus": str(path), "words": words, "vocabulary": data.vocabulary, "X": sizes}
        files.write_json(json, dated("jaxgrad.corpus/1", **told))
    print(visible(f"{path}: {words:,} words, {len(data.vocabulary)} symbols {''.join(data.vocabulary)}"))
    for name, split in splits.items():
        print(f"{name:5s} X {split.X.shape} Y {split.Y.shape} {split.X.dtype}")


@app.command("fetch")
def corpus_fetch(
    target: Annotated[Path, typer.Argument(help="Where to put the file.")] = Path("names.txt"),
) -> None:
    """Download the notebook's exact corpus, checked by its sha256 before it replaces anything.

    Example: jaxgrad corpus fetch names.txt && export JAXGRAD_CORPUS=$PWD/names.txt
    """
    from jaxgrad import corpus as corpora

    corpora.fetch(target)
    print(visible(f"{target}: the notebook's corpus; use it with --corpus {target} or JAXGRAD_CORPUS"))
