"""Everything that decides a run, as plain values; its optax optimizer and schedule, found by name."""

import ast
import dataclasses
import inspect
import json
import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax

from jaxgrad import models
from jaxgrad.corpus import BOUNDARY, START
from jaxgrad.errors import JaxgradError
from jaxgrad.models.model import Model, at_least, ways

NOTEBOOK_SCHEDULE = "seed"
LONGEST_VALUE = 80
Arguments = tuple[tuple[str, Any], ...]


@dataclasses.dataclass(frozen=True)
class Config:
    """A run, decided. The defaults are the notebook's recipe; `corpus` None is the corpus that ships.

    `model` is a name of `jaxgrad.models.MODELS`, and `sizes` are that model's. `clip` is the largest norm that all
    gradients together are left with, before the optimizer has them. A batch is taken in `accumulate` parts, one after
    another, whose gradients are added up. A corpus that is `text` is one stream of characters, not words. `init` is a
    checkpoint that others have made, which the run starts from instead of drawn parameters.
    `dtype` bfloat16 computes forward and backward in bfloat16 with float32 sums, and keeps float32 parameters.
    `log_every`, `chunk` and `save_every` are in steps: one metrics line, one jitted call, one checkpoint; without
    `save_every` the run picks it. Of the checkpoints the last `keep` stay, and the best. The schedule is laid out over
    `schedule_steps`, which are `steps` if None: a run that is continued keeps its old ones.
    Build one with `config_of`, which knows each model's own defaults, and `checked`.
    """

    steps: int = 200_000
    batch_size: int = 32
    learning_rate: float = 0.1
    optimizer: str = "sgd"
    optimizer_args: Arguments = ()
    schedule: str = NOTEBOOK_SCHEDULE
    schedule_args: Arguments = ()
    gradients: str = "fused"
    sizes: Any = dataclasses.field(default_factory=lambda: models.sizes_of(models.DEFAULT)())
    dtype: str = "float32"
    seed: int = 0
    log_every: int = 100
    chunk: int = 5_000
    save_every: int | None = None
    keep: int = 3
    corpus: str | None = None
    corpus_sha256: str = ""
    vocabulary: tuple[str, ...] = ()
    schedule_steps: int | None = None
    model: str = models.DEFAULT
    clip: float | None = None
    accumulate: int = 1
    text: bool = False
    init: str | None = None
    init_sha256: str = ""


# What runs were written without that were begun before there was such a choice.
SINCE = {
    "model": models.DEFAULT, "clip": None, "accumulate": 1, "text": False, "init": None, "init_sha256": "",
}  # fmt: skip


def config_of(model: str = models.DEFAULT, **values: Any) -> Config:
    """A config from values by name, sizes among them; those that are not given are the model's own.

    Raises `JaxgradError` for a model that there is not, and `TypeError` for a name that is no field.
    """
    kind = models.sizes_of(model)
    own = {field.name for field in dataclasses.fields(kind)}
    given = {**models.record(model).recipe, **values}
    sizes = kind(**{name: value for name, value in given.items() if name in own})
    return Config(model=model, sizes=sizes, **{name: value for name, value in given.items() if name not in own})


def changed(config: Config, **values: Any) -> Config:
    """The config with other values by name, sizes among them."""
    own = {name: value for name, value in values.items() if name in flat_sizes(config)}
    rest = {name: value for name, value in values.items() if name not in own}
    return dataclasses.replace(config, sizes=dataclasses.replace(config.sizes, **own), **rest)


def flat(config: Config) -> dict[str, Any]:
    """All values by name, as files have them: sizes are not apart."""
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return {name: value for key in values for name, value in _entries(key, values[key], config)}


def _entries(key: str, value: Any, config: Config) -> list[tuple[str, Any]]:
    return list(flat_sizes(config).items()) if key == "sizes" else [(key, value)]


def flat_sizes(config: Config) -> dict[str, Any]:
    """The sizes by name."""
    return dataclasses.asdict(config.sizes)


def record(config: Config) -> Model:
    """The record of the config's model."""
    return models.record(config.model)


# What a run may be told anew, or be interrupted by, without another number in it.
_FREE = ("steps", "schedule_steps", "chunk", "save_every", "keep", "corpus", "init")


def deciding(config: Config) -> dict[str, Any]:
    """All of a config that the numbers of its first steps hang on, however many follow, as JSON has it."""
    values = {name: value for name, value in flat(config).items() if name not in _FREE}
    return json.loads(json.dumps(values | {"schedule_steps": schedule_steps(config)}))


def schedule_steps(config: Config) -> int:
    """The steps that the schedule is laid out over: those of the run, or of what it was before it was continued."""
    return config.schedule_steps or config.steps


def checked(config: Config) -> Config:
    """`config`, if every value is in its range; else raises `JaxgradError` naming the value and the range."""
    model = record(config)
    least = {
        "steps": 1,
        "batch_size": max(model.least_rows, 1),
        "seed": 0,
        "log_every": 1,
        "chunk": 1,
        "keep": 1,
        "accumulate": 1,
        **{name: 1 for name in ("save_every", "schedule_steps") if getattr(config, name) is not None},
        **{field.name: at_least(field) for field in dataclasses.fields(config.sizes) if type(field.default) is int},
    }
    values = flat(config)
    for name, low in least.items():
        value = values[name]
        # Steps and rows are counted in int32 on the device; a seed fills 32 bits.
        bits = 32 if name == "seed" else 31
        if type(value) is not int or not low <= value < 2**bits:
            raise JaxgradError(f"{name} is {value!r}; it must be a whole number of at least {low}, below 2^{bits}")
    if type(config.learning_rate) not in (int, float) or not 0 < config.learning_rate < math.inf:
        raise JaxgradError(f"learning rate is {config.learning_rate}; it must be a finite number above 0")
    for field in dataclasses.fields(config.sizes):
        _check_kind(field.name, values[field.name], type(field.default))
    if config.clip is not None and not (type(config.clip) in (int, float) and 0 < config.clip < math.inf):
        raise JaxgradError(f"clip is {config.clip}; it must be a finite number above 0")
    choices = {"gradients": ways(model), "dtype": ("float32", "float64", "bfloat16")}
    for name, allowed in choices.items():
        if getattr(config, name) not in allowed:
            raise JaxgradError(f"{name} is {getattr(config, name)!r}; choose from {', '.join(allowed)}")
    if config.gradients in model.kernels and (config.optimizer, config.optimizer_args) != ("sgd", ()):
        raise JaxgradError(
            f"gradients is {config.gradients!r}, whose kernel has plain sgd inside, and the optimizer is"
            f" {config.optimizer} with {dict(config.optimizer_args)}; use sgd alone, or --gradients fused"
        )
    if config.gradients in model.kernels and config.clip is not None:
        raise JaxgradError(f"gradients is {config.gradients!r}, whose kernel does not clip; leave --clip out")
    _check_parts(config, model)
    if config.text and not model.streams:
        raise JaxgradError(f"the model {config.model} reads words, not a stream of text; choose --model gpt or gru")
    _check_vocabulary(config.vocabulary, START if config.text else BOUNDARY)
    _tried(config)
    return config


def _check_parts(config: Config, model: Model) -> None:
    if config.accumulate == 1:
        return
    if config.batch_size % config.accumulate:
        raise JaxgradError(
            f"accumulate is {config.accumulate}, and a batch of {config.batch_size} cannot be cut into so many equal"
            " parts; choose a divisor"
        )
    if not model.apart:
        raise JaxgradError(f"accumulate is {config.accumulate}, and {model.together}; leave --accumulate out")
    if config.gradients in model.kernels:
        raise JaxgradError(f"gradients is {config.gradients!r}, whose kernel takes batches whole; use fused")


def _check_kind(name: str, value: Any, kind: type) -> None:
    wanted = {bool: "true or false", str: "text", float: "a finite number"}
    number = kind is float and type(value) in (int, float) and math.isfinite(value)
    if kind in wanted and not number and type(value) is not kind:
        raise JaxgradError(f"{name} is {value!r}; it must be {wanted[kind]}")


def _check_vocabulary(vocabulary: tuple[str, ...], first: str) -> None:
    symbols = all(isinstance(symbol, str) and len(symbol) == 1 for symbol in vocabulary)
    if not symbols or len(set(vocabulary)) < len(vocabulary) or vocabulary[:1] not in ((), (first,)):
        raise JaxgradError(
            f"vocabulary is {str(vocabulary)[:80]}; it must be single characters, each once, {first!r} the first"
        )


def _tried(config: Config) -> None:
    """One step of the optimizer, because optax checks some arguments only then."""
    gradient = {"parameter": jnp.ones(2)}
    transformation = optimizer(config)
    try:
        transformation.update(gradient, transformation.init(gradient), gradient)
    except Exception as error:
        raise JaxgradError(
            f"optax.{config.optimizer} cannot step with gradients alone and these arguments"
            f" ({type(error).__name__}: {str(error)[:200]}); choose another optimizer or other arguments"
        ) from None


def parse_arguments(texts: list[str]) -> Arguments:
    """`["b1=0.8", "nesterov=True"]` as pairs of a name and a Python literal; raises `JaxgradError` for other text."""
    pairs = []
    for text in texts:
        name, equals, value = text.partition("=")
        try:
            # Python's parser goes into itself for every sign and bracket.
            if not (equals and name.isidentifier()) or len(value) > LONGEST_VALUE:
                raise ValueError
            literal = ast.literal_eval(value)
            if not isinstance(literal, bool | int | float | str) or literal in (math.inf, -math.inf):
                raise ValueError
            pairs.append((name, literal))
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            raise JaxgradError(
                f"{text[:80]!r} is not an argument; write NAME=VALUE, such as b1=0.8 or nesterov=True"
            ) from None
    return tuple(pairs)


def schedule(config: Config) -> optax.Schedule:
    """Step -> learning rate. "seed" is the rate for the first half of the steps and a tenth of it for the second.

    Any other name is one of optax's, with or without its ending `_schedule`. Its arguments are `schedule_args`;
    where it has them and none is given, the first value is the learning rate and the length the run's steps.
    Raises `JaxgradError` for a name or an argument that optax does not have.
    """
    if config.schedule == NOTEBOOK_SCHEDULE:
        if config.schedule_args:
            raise JaxgradError(
                f"the schedule {NOTEBOOK_SCHEDULE!r} takes no arguments; name one of optax's, such as cosine_decay"
            )
        return optax.piecewise_constant_schedule(config.learning_rate, {max(schedule_steps(config) // 2, 1): 0.1})
    build = _named(config.schedule, "schedule", ("_schedule", ""))
    accepted = inspect.signature(build).parameters
    usual = {
        "value": config.learning_rate,
        "init_value": config.learning_rate,
        "peak_value": config.learning_rate,
        "decay_steps": schedule_steps(config),
        "transition_steps": schedule_steps(config),
    }
    arguments = {name: value for name, value in usual.items() if name in accepted} | dict(config.schedule_args)
    return _call(build, arguments)


def optimizer(config: Config) -> optax.GradientTransformation:
    """The optax optimizer of that name on the schedule, with `optimizer_args`.

    Raises `JaxgradError` for a name or an argument that optax does not have.
    """
    build = _named(config.optimizer, "optimizer", ("",))
    if "learning_rate" not in inspect.signature(build).parameters:
        raise JaxgradError(f"optax.{config.optimizer} takes no learning rate, so it is no optimizer; try sgd or adam")
    if "learning_rate" in dict(config.optimizer_args):
        raise JaxgradError(
            "learning_rate is not an optimizer argument here; give it as --lr, from which schedules start"
        )
    made = _call(build, {"learning_rate": schedule(config), **dict(config.optimizer_args)})
    return made if config.clip is None else optax.chain(optax.clip_by_global_norm(config.clip), made)


def _named(name: str, kind: str, endings: tuple[str, ...]) -> Callable[..., Any]:
    for ending in endings:
        found = getattr(optax, name + ending, None)
        if inspect.isfunction(found):
            return found
    raise JaxgradError(f"optax has no {kind} {name!r}; its documentation lists them, such as sgd, adam or cosine_decay")


def _call(build: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    try:
        return build(**arguments)
    except (TypeError, ValueError, OverflowError) as error:
        accepted = ", ".join(inspect.signature(build).parameters)
        raise JaxgradError(f"optax.{build.__name__}: {error}; its arguments are {accepted}") from None
