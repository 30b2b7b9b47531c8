"""What a model tells the rest: functions and values under agreed names, and the little that follows from them.

Training, parity, mutation, sweeps and pictures know a model by its record alone.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxgrad import corpus
from jaxgrad.corpus import Corpus
from jaxgrad.errors import JaxgradError
from jaxgrad.jaxprs.taps import Graph, graph, tapped

JAX_GRAD = "jax-grad"

# (params, batch, sizes, key) -> (loss, cotangents of the parameters)
Gradients: TypeAlias = Callable[..., tuple[Float[Array, ""], Any]]
# (params, batch, sizes) -> (loss, cotangents of the parameters, those of nodes by name)
Nodes: TypeAlias = Callable[[Any, Any, Any], tuple[Float[Array, ""], Any, dict[str, Array]]]
# (params, opt_state, batches, update, dtype) -> (params, opt_state, losses), all steps of a chunk at once
Chunk: TypeAlias = Callable[..., tuple[Any, Any, Float[Array, " steps"]]]


def no_check(backend: str) -> None:
    """What needs no platform of its own."""


def nothing_extra(params: Any, split: Any, sizes: Any) -> Any:
    """What a model has whose parameters are all that its predictions take."""
    return ()


def nothing_named(sizes: Any) -> Mapping[str, int]:
    """What a model has of which nothing is split over a mesh's axis `model`."""
    return {}


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A way to take all steps of a chunk in one launch, for plain SGD on one device.

    `check(backend)` raises `JaxgradError` where JAX's backend cannot; `steps` takes them.
    """

    check: Callable[[str], None]
    steps: Chunk


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """Checkpoints of a model that others have made: who reads them, and how to draw without their vocabulary.

    Args:
        reader: a module, imported when it is asked for. Its `load(path, dtype, **sizes)` gives parameters and sizes:
            those of the file, and where it does not say the ones given; it raises `JaxgradError` where both say it and
            differ, and for a file of another kind.
        draw: `(params, key, prompts, count, sizes, temperature, top_k) -> symbols` that follow each row of prompts.
    """

    reader: str
    draw: Callable[..., Int[Array, "rows count"]]


@dataclasses.dataclass(frozen=True)
class Operation:
    """An operation that a model is made of, for its own mutants: `arguments(params, batch)` are those it has there."""

    op: Callable[..., Any]
    forward: Callable[..., tuple[Any, Any]]
    arguments: Callable[[Any, Any], tuple[Any, ...]]


class PerDevice(NamedTuple):
    """Of a step, on each device: operations, bytes of temporary arrays, all-reduces and the bytes given to them."""

    flops: float
    temporary_bytes: float
    all_reduces: int
    reduced_bytes: float


class Factor(NamedTuple):
    """A constant by which a derivative is likely to be too large; the kind of that mistake, and words for it."""

    factor: float
    kind: str
    words: str


def no_factors(primals: Mapping[str, Any], batch: Any) -> Iterable[Factor]:
    """What a model has of which no constant is likely to be mistaken."""
    return ()


def symbols_alone(primals: Mapping[str, Any]) -> Mapping[int, str]:
    """The one axis whose length every model tells."""
    return {primals["logits"].shape[-1]: "the symbols"}


@dataclasses.dataclass(frozen=True)
class Lesson:
    """What the checker of a reader's derivatives is told of a model; `primals` are values of nodes and parameters.

    Args:
        aliases: other names of nodes, as other people's notebooks have them.
        absent: names that a reader may look for and the model does not have, and why.
        lengths: `(primals) -> {length: words}`, what an axis of so many entries is likely to be.
        factors: `(primals, batch) -> factors`, constants that are likely to be mistaken, beside those of any model.
        constants: nodes, and what a derivative has if nothing came back through them, the fewest nodes first.
        formulas: a node, and `(primals, right derivatives) -> (words, array)` of mistakes in its formula.
        epsilon: what the forward adds to a variance.
        epsilon_in: where it does, in words; `{0:g}` is the epsilon.
    """

    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)
    absent: Mapping[str, str] = dataclasses.field(default_factory=dict)
    lengths: Callable[[Mapping[str, Any]], Mapping[int, str]] = symbols_alone
    factors: Callable[[Mapping[str, Any], Any], Iterable[Factor]] = no_factors
    constants: Mapping[tuple[str, ...], str] = dataclasses.field(default_factory=dict)
    formulas: Mapping[str, Callable[..., Iterable[tuple[str, Any]]]] = dataclasses.field(default_factory=dict)
    epsilon: float | None = None
    epsilon_in: str = "forward adds {0:g} to a variance"


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """What is timed of a model, and against whom.

    Args:
        sizes: rows of a batch and the model's sizes, by name.
        usual: the names of those that are timed if none is named.
        trial: a small batch and sizes, at which a wrong gradient shows.
        flops: `(params, sizes, rows) -> int`, the floating-point operations of a step's products.
        shown: the sizes that a table's title tells.
        telling_rows: the largest batch at which a mistake shows; where all are larger, the trial is held first.
        learning_rate: of SGD, at which the model learns at every size. Where it does not, small differences grow, and
            losses of the same gradients part.
        peers: modules by library: of `jaxgrad.bench` for flax and equinox, with `make(params, sizes)` and
            `loss(model, batch)`; of `torchref` for torch, with ways to train, as `torchref.steps` has them.
    """

    sizes: Mapping[str, tuple[int, Any]]
    usual: tuple[str, ...]
    trial: tuple[int, Any]
    flops: Callable[[Any, Any, int], int]
    shown: tuple[str, ...]
    telling_rows: int = 0
    learning_rate: float = 0.1
    peers: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A model as a record. `params` is a NamedTuple tree of arrays; `batch` has the fields X and Y, by rows.

    Args:
        name: its name on the list.
        sizes: a frozen dataclass of int, float, bool and str fields, each with a default and a `help` in its metadata.
            They are options of the command line, fields of a run's config, and axes of sweeps. An int is at least 1,
            or the `least` of its metadata; a size that shapes the examples has `examples` in its metadata. In Python
            one may also be given by the name that the maths has for it, `also` in its metadata.
        batch: the type of a batch, made of X and Y.
        init: `(key, sizes, vocab_size, dtype) -> params`, what training starts from.
        examples: `(words, vocabulary, sizes) -> batch` of NumPy arrays, all examples of a split; `words` is the text
            itself where a corpus is one stream.
        shapes: `(sizes) -> (shape of an X, shape of a Y)`, without rows.
        loss: `(params, batch, sizes, key=None) -> loss`, its nodes marked by `jaxgrad.tap`; `key` draws dropout.
        gradients: hand-written ways by name, `(params, batch, sizes, key=None) -> (loss, cotangents)`, the one that
            training takes unless it is told otherwise first.
        nodes: the same ways for parity, `(params, batch, sizes) -> (loss, cotangents, nodes' cotangents by name)`.
            `without_nodes` makes one of `gradients` from one that takes a key too.
        predict: `(params, extra, X, sizes) -> logits`, of the shape of Y and the vocabulary.
        sample: `(params, extra, sizes, key, n_words, longest, temperature, top_k, prompt) -> symbols` of the shape
            `(n_words, longest)`, 0 after a word's end; `top_k` is None or how many symbols are drawn from, `prompt` the
            symbols that each word begins with and that the result has too.
        finish: `(params, split, sizes) -> extra`, what predictions take beside parameters.
        extra: `(params, sizes) -> extra` of the same shapes and types, whatever the numbers.
        numbers: `(sizes, vocab_size, batch_size) -> int`, how many numbers a step holds at least.
        recipe: what a run is by default, as fields of `training.config.Config`, where it is not as written there.
        axes: which mesh axis the axes of a parameter are split over, by the parameter's dotted name.
        split: `(sizes) -> {what: size}`, what is split over a mesh's axis `model`, to be divided evenly.
        per_device: `(sizes, vocab_size, batch_size, data, model) -> PerDevice`, what a step takes of each device of a
            mesh, counted by hand; None where nobody has counted it.
        kernels: ways that take all steps of a chunk at once, by name.
        by_platform: more ways for parity, `platform -> nodes`, by name; "interpret" is the CPU's platform.
        twins: modules of `torchref` by the name of their engine; each has `gradients(params, X, Y, **sizes)`.
        formulas: for an engine that rounds as one of `nodes` does, rather than as `loss`, the name of that one.
        hand: files in which every line is a backward pass's; elsewhere those of functions named `..._bwd` are.
        ignored: the target that counts in no loss, if there is one.
        least_rows: the fewest rows of a batch; `few_rows` says why.
        few_rows: why a batch needs so many rows.
        streams: whether `examples` take a text that is one stream.
        checkpoints: those that others have made, which a run may start from and which can be sampled.
        apart: whether the loss of a row depends on no other row, so that a batch can be taken in parts; `together`
            says why not.
        telling: parameters for parity, none 0 or 1, so that no term of a backward vanishes unseen; `init` if not given.
        hiding: parameters -> those of a usual initialisation, which hide mistakes.
        tiny: sizes that make all axes small and, where that can be, of one length; what mutants are tried on.
        random_batch: `(key, sizes, vocab_size, batch_size) -> batch`; random words if not given.
        operations: the operations that it is made of, by name, whose mutants are tried too.
        swept: the size that sweeps always tell of.
        embedding: the parameter that holds a row for each symbol, by its dotted name.
        hidden: the four nodes of a saturating layer: its output, its input, and the batch's mean and variance.
        logits: the node that holds a batch's logits.
        lesson: what the checker of a reader's derivatives is told of it.
        benchmark: what is timed of it, and against whom.
    """

    name: str
    sizes: type[Any]
    batch: Callable[..., Any]
    init: Callable[..., Any]
    examples: Callable[[Any, tuple[str, ...], Any], Any]
    shapes: Callable[[Any], tuple[tuple[int, ...], tuple[int, ...]]]
    loss: Callable[..., Float[Array, ""]]
    gradients: Mapping[str, Gradients]
    nodes: Mapping[str, Nodes]
    predict: Callable[[Any, Any, Int[Array, "rows ..."], Any], Float[Array, "rows ... vocab"]]
    sample: Callable[..., Int[Array, "words longest"]]
    numbers: Callable[[Any, int, int], int]
    finish: Callable[[Any, Any, Any], Any] = nothing_extra
    extra: Callable[[Any, Any], Any] = lambda params, sizes: ()
    recipe: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    axes: Mapping[str, tuple[str | None, ...]] = dataclasses.field(default_factory=dict)
    split: Callable[[Any], Mapping[str, int]] = nothing_named
    per_device: Callable[[Any, int, int, int, int], PerDevice] | None = None
    kernels: Mapping[str, Kernel] = dataclasses.field(default_factory=dict)
    by_platform: Mapping[str, Callable[[str], Nodes]] = dataclasses.field(default_factory=dict)
    twins: Mapping[str, str] = dataclasses.field(default_factory=dict)
    formulas: Mapping[str, str] = dataclasses.field(default_factory=dict)
    hand: tuple[str, ...] = ()
    ignored: int | None = None
    least_rows: int = 1
    few_rows: str = ""
    streams: bool = False
    checkpoints: Checkpoints | None = None
    apart: bool = True
    together: str = ""
    telling: Callable[..., Any] | None = None
    hiding: Callable[[Any], Any] | None = None
    tiny: Any = None
    random_batch: Callable[[PRNGKeyArray, Any, int, int], Any] | None = None
    operations: Mapping[str, Operation] = dataclasses.field(default_factory=dict)
    swept: str | None = None
    embedding: str | None = None
    hidden: tuple[str, str, str, str] | None = None
    logits: str | None = None
    lesson: Lesson = Lesson()
    benchmark: Benchmark | None = None


def without_nodes(way: Callable[..., tuple[Any, Any, Any]]) -> Gradients:
    """A way of `nodes` as one of `gradients`. Under `jit` what nodes alone would need is not computed."""

    def gradients(params: Any, batch: Any, sizes: Any, key: PRNGKeyArray | None = None) -> tuple[Array, Any]:
        loss, cotangents, _ = way(params, batch, sizes, key)
        return loss, cotangents

    return gradients


def jax_grad(model: Model) -> Gradients:
    """The loss and `jax.grad` of it, as one of the model's `gradients`."""

    def gradients(params: Any, batch: Any, sizes: Any, key: PRNGKeyArray | None = None) -> tuple[Array, Any]:
        return jax.value_and_grad(lambda p: model.loss(p, batch, sizes, key))(params)

    return gradients


def jax_grad_nodes(model: Model) -> Nodes:
    """The loss, and `jax.grad` of it with respect to the parameters and to a zero added at each node."""

    def nodes(params: Any, batch: Any, sizes: Any) -> tuple[Array, Any, dict[str, Array]]:
        with_taps, zeros = tapped(lambda p, b: model.loss(p, b, sizes), params, batch, in_scans=True)
        loss, (dparams, dnodes) = jax.value_and_grad(
            lambda p, taps, b: with_taps(taps, p, b), argnums=(0, 1)
        )(params, zeros, batch)  # fmt: skip
        return loss, dparams, dnodes

    return nodes


def graph_of(model: Model, params: Any, batch: Any, sizes: Any) -> Graph:
    """How the model's nodes and parameters hang together, read from its traced loss."""
    return graph(lambda p, b: model.loss(p, b, sizes), list(named(params)), params, batch)


def ways(model: Model) -> tuple[str, ...]:
    """The names that a run's `gradients` may have: by hand, by autodiff, in a kernel."""
    return (*model.gradients, JAX_GRAD, *model.kernels)


def gradients_of(model: Model, name: str) -> Gradients:
    """The way of that name to loss and gradients; raises `KeyError` for another."""
    return jax_grad(model) if name == JAX_GRAD else model.gradients[name]


def named(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> dict[str, Any]:
    """The leaves of a tree of NamedTuples by their dotted names, such as `blocks.w`; None is no leaf."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def renamed(like: Any, leaves: Mapping[str, Any]) -> Any:
    """The tree of the form of `like` whose leaves are those of `leaves`, by the names of `named`."""
    return jax.tree.unflatten(jax.tree.structure(like), [leaves[name] for name in named(like)])


def load_corpus(model: Model, sizes: Any, path: Any = None, text: bool = False) -> Corpus:
    """A corpus with the model's examples, of words or of one text; raises as `corpus.load` and `load_text` do."""
    if text:
        return corpus.load_text(lambda stream, vocabulary: model.examples(stream, vocabulary, sizes), path)
    return corpus.load_as(lambda words, vocabulary: model.examples(words, vocabulary, sizes), path)


def check_rows(model: Model, rows: int) -> None:
    """Raise `JaxgradError` for a batch of fewer rows than the model can take."""
    if rows < model.least_rows:
        raise JaxgradError(f"a batch of {rows}: {model.few_rows}; give at least {model.least_rows} rows")


def at_least(field: Any) -> int:
    """The least value of an int among sizes."""
    return field.metadata.get("least", 1)
