r"""Do competitors compute the same? Their losses, step by step, lie near the median within what rounding explains.

A competitor that rounds differently has, when its parameters are those of the others but for rounding, a loss that
varies by the noise $\sigma_L$ of one forward pass, measured as everywhere in `jaxgrad.checking`. After k steps of SGD
its parameters differ too, to first order by $-\eta \sum_k \delta g_k$ and by the roundings of k updates. An engine may
round alike at every step, so its gradients' errors are added up, not their squares; to the loss they carry, through its
derivative g,
$$V_k = \sigma_L^2 + k^2 \eta^2 \sum_i g_i^2 \sigma_{g_i}^2 + k\, u^2 \sum_i g_i^2 p_i^2,$$
with the measured noise $\sigma_{g_i}$ of each gradient and the unit roundoff u of float32. All are taken at the first
batch, where gradients are largest; how training bends small differences is left out, because on a model that learns at
its `learning_rate` they do not grow. The tolerance of a loss is then `DEVIATIONS` times the root of $V_k$.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxgrad.bench.task import Task, examples, rows
from jaxgrad.checking.compare import Noise
from jaxgrad.checking.measure import Shaken, measure, shaken
from jaxgrad.models.model import Model

# Of a normal error known from 32 samples, a chance of 1 in 15 million: once in thousands of checks of 100 steps.
DEVIATIONS = 7.0


class Judged(NamedTuple):
    """A competitor's losses, judged: the one after the last step checked, and the worst of all.

    `worst` is the largest distance from the median in units of the tolerance, at step `at`; above 1 it is wrong.
    """

    loss: float
    worst: float
    at: int


def tolerances(task: Task, steps: int) -> np.ndarray:
    """How far from the others a loss may be, for the loss before each update and the one after the last: steps + 1."""
    first = rows(task, 1)[0]
    batch = jax.tree.map(lambda symbols: np.asarray(symbols)[first], examples(task))
    run = _loss_and_gradients(task.model, task.size.sizes)
    (_, found), (of_loss, noise) = measure(run, "float32", task.params, batch)
    grads, params = jax.tree.leaves(found), jax.tree.leaves(task.params)
    of_grads = jax.tree.leaves(noise, is_leaf=lambda node: isinstance(node, Noise))
    k = np.arange(steps + 1)
    by_gradients = sum(float((g**2 * n.deviation**2).sum()) for g, n in zip(grads, of_grads, strict=True))
    unit = 2.0**-24
    by_updates = sum(float((g**2 * np.asarray(p, np.float64) ** 2).sum()) for g, p in zip(grads, params, strict=True))
    of_loss = float(of_loss.deviation) ** 2
    return DEVIATIONS * np.sqrt(of_loss + (k * task.learning_rate) ** 2 * by_gradients + k * unit**2 * by_updates)


@functools.cache
def _loss_and_gradients(model: Model, sizes: Any) -> Shaken:
    """`jax.grad`'s program as `measure` evaluates it: compiled once for the sizes."""
    return shaken(jax.value_and_grad(lambda params, batch: model.loss(params, batch, sizes)))


def judge(losses: Mapping[str, np.ndarray], limits: np.ndarray) -> dict[str, Judged]:
    """Each competitor's losses against the median of all. A NaN is infinitely far, as is everything from a NaN."""
    together = np.stack(list(losses.values()))
    median = np.median(np.where(np.isfinite(together), together, np.inf), axis=0)
    judged = {}
    for name, own in losses.items():
        with np.errstate(invalid="ignore"):
            distance = np.nan_to_num(np.abs(own - median) / limits, nan=np.inf)
        at = int(np.argmax(distance))
        judged[name] = Judged(float(own[-1]), float(distance[at]), at)
    return judged
