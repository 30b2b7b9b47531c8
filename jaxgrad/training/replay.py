"""One step of a run again: its parameters, its batch and its gradients, for any engine to be asked about."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxgrad.corpus import Corpus
from jaxgrad.errors import JaxgradError
from jaxgrad.training import not_finite
from jaxgrad.training.folder import load_config
from jaxgrad.training.run import check_corpus, examples_of, precision, state_before


def step(folder: Path, number: int, corpus: Corpus) -> tuple[Any, Any]:
    """The parameters before a step of a run, counted from 0, and its batch, bit for bit, in float64 and int32.

    From the last whole checkpoint before the step, or from the run's beginning. Parameters are as the run computes
    with them, so rounded to bfloat16 in a run of that type. Raises `JaxgradError` for a folder that is no run, a
    step that it does not have, and another corpus.
    """
    config = load_config(folder)
    check_corpus(config, corpus)
    if not 0 <= number < config.steps:
        raise JaxgradError(f"{folder}: has no step {number}; its steps are 0 to {config.steps - 1}")
    with precision(config):
        examples = examples_of(config, corpus.train)
        state, key = state_before(config, folder, examples, number)
        params = not_finite.in_type(config, state.params)
        batch = not_finite.batch_of(config, key, number, examples)
        return (
            jax.tree.map(lambda p: np.asarray(p, np.float64), params),
            jax.tree.map(lambda symbols: np.asarray(symbols, np.int32), batch),
        )
