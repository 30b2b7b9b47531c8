"""One process of several: a hundred steps over all devices, and the parameters as this process has them."""

import sys

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad import corpus
from jaxgrad.models.mlp.forward import Batch, init
from jaxgrad.models.mlp.record import MODEL
from jaxgrad.training import distributed
from jaxgrad.training import mesh as meshes
from jaxgrad.training.config import config_of, optimizer
from jaxgrad.training.step import run_steps, start

HIDDEN = 24


def train(mesh: jax.sharding.Mesh | None) -> tuple[np.ndarray, ...]:
    """The losses and parameters of a hundred steps in float64."""
    with jax.enable_x64(True):
        transformation = optimizer(config_of())
        state = start(init(jax.random.key(3), 27, h_size=HIDDEN, dtype=jnp.float64), transformation)
        examples = Batch(*(np.asarray(array) for array in corpus.load().train))
        key = np.asarray(jax.random.key_data(jax.random.key(4)))
        if mesh is not None:
            state = jax.device_put(jax.device_get(state), meshes.of_state(mesh, MODEL, transformation, state))
            key, examples = jax.device_put((key, examples), meshes.replicated(mesh))
        state, losses = run_steps(
            state, jax.random.wrap_key_data(key), jax.tree.map(jnp.asarray, examples),
            model=MODEL, sizes=MODEL.sizes(),
            gradients="fused", optimizer=transformation, dtype="float64", batch_size=32, n_steps=100, mesh=mesh,
        )  # fmt: skip
        return np.asarray(losses), *map(np.asarray, distributed.whole(state.params))


if __name__ == "__main__":
    coordinator, processes, process_id, axes, out = sys.argv[1:]
    distributed.join(coordinator, int(processes), int(process_id))
    built = meshes.build(meshes.parse(axes), jax.devices(), 32, {"hidden layer": HIDDEN})
    np.savez(out, *train(built))
