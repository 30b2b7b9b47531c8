"""Train the notebook's model from Python, stop half-way, go on, and draw names from it."""

import tempfile
from pathlib import Path

import jax

from jaxgrad import corpus
from jaxgrad.models import record
from jaxgrad.training import run
from jaxgrad.training.config import config_of
from jaxgrad.training.sample import sample

if __name__ == "__main__":
    data = corpus.load()
    config = config_of(steps=2000, chunk=1000, hidden=64, gradients="fused", vocabulary=data.vocabulary)

    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "run"
        # `stop` is asked between jitted calls; Ctrl-C does the same to `jaxgrad train`.
        try:
            run.train(config, data, folder, stop=lambda: True)
        except run.Stopped as stopped:
            print(f"stopped at step {stopped.step}")

        # Bit for bit as if it had not been stopped.
        losses = run.resume(folder, data)
        print(" · ".join(f"{name} {loss:.4f}" for name, loss in losses._asdict().items()))

        config, params, statistics = run.load(folder)
        words = sample(record(config.model), config.sizes, params, statistics, config.vocabulary, jax.random.key(42), 5)
        print("\n".join(words))
