r"""Two trainings side by side: the same batches, the same first weights, compared through the mapping after each step.

How far rounding alone drives two runs apart is grown by running the JAX side twice, from weights one rounding apart:
$\lVert p_k - p'_k \rVert$ is what the loss's own curvature makes of it, and the bound is a multiple of that. The first
step and leaf beyond it are told. Then the optimizer of the torch side is computed again, in NumPy and on the JAX side's
own gradients, with one convention changed at a time: the change with which the JAX side's weights come out is named.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad.checking.oracles import rules
from jaxgrad.errors import JaxgradError
from jaxgrad.port import jax_values, torch_values
from jaxgrad.port.mapping import Mapping as WeightMapping
from jaxgrad.port.match import flat_call, match

# By how much two right programs may differ more than one does from itself: they round at other places.
_SLACK = 256.0


class Step(NamedTuple):
    """A step: both losses, the leaf that is farthest off for its bound, its distance, and the bound."""

    jax_loss: float
    torch_loss: float
    leaf: str
    distance: float
    bound: float


class Training(NamedTuple):
    """Two trainings beside each other.

    `first` is the number of the first step after which a leaf is beyond its bound, None where there is none. `why`
    are the conventions that explain it; `gradient` tells whether that step's gradients already differ, in which case
    the programs do and `compare` says where.
    """

    agrees: bool
    steps: tuple[Step, ...]
    first: int | None
    why: tuple[str, ...]
    gradient: bool

    def __str__(self) -> str:
        lines = [f"{'agree' if self.agrees else 'they part'} over {len(self.steps)} steps"]
        for number, s in enumerate(self.steps[: (self.first or len(self.steps) - 1) + 1]):
            told = f"{s.leaf} is {s.distance:.1e} off, of {s.bound:.1e} that rounding explains"
            lines.append(f"  step {number}  loss {s.jax_loss:.9g} and {s.torch_loss:.9g}; {told}")
        if self.first is not None:
            if self.gradient:
                lines.append("  the gradients of that step differ already: compare the two programs first")
            lines += [f"  because {why}" for why in self.why]
            if not self.why and not self.gradient:
                lines.append("  no known difference of convention explains it")
        return "\n".join(lines)


class Run(NamedTuple):
    """A training of one side: losses, and after each step the weights and gradients of all leaves."""

    losses: list[float]
    weights: list[list[np.ndarray]]
    gradients: list[list[np.ndarray]]


def train(
    loss: Callable[..., Any],
    params: Any,
    optimizer: Any,
    batches: Sequence[tuple[Any, ...]],
    *,
    torch: Any,
    torch_optimizer: Callable[[Any], Any],
    torch_loss: Callable[..., Any] | None = None,
    torch_scheduler: Callable[[Any], Any] | None = None,
    clip: float | None = None,
    mapping: WeightMapping | None = None,
) -> Training:
    """Train a JAX function and a torch module on the same batches in float64, and compare them after each step.

    Args:
        loss: `loss(params, *batch)`, a scalar.
        params: the JAX tree of parameters, arrays or shapes; both sides begin with the module's weights.
        optimizer: an optax `GradientTransformation`.
        batches: one tuple of arrays a step.
        torch: the `nn.Module`.
        torch_optimizer: a function of the module's parameters that gives its optimizer.
        torch_loss: `torch_loss(module, *batch)`; by default the module itself gives the loss.
        torch_scheduler: a function of the optimizer that gives a scheduler, which steps after each step.
        clip: the global norm that `torch.nn.utils.clip_grad_norm_` clips to on the torch side.
        mapping: of the weights, as `match` gives it; needed where the module gives no loss by itself.

    Raises `JaxgradError` for no batches, and what the two sides raise.
    """
    if not batches:
        raise JaxgradError("train needs at least one batch")
    if mapping is None:
        if torch_loss is not None:
            raise JaxgradError("with a torch_loss, train needs a mapping: port.match(params, module, *inputs, fn=...)")
        mapping = match(params, torch, *batches[0], fn=loss)
    theirs, hyper = _torch_run(torch, torch_optimizer, torch_loss, torch_scheduler, clip, batches)
    call, leaves, _ = flat_call(loss, params, batches[0], {})
    by_path = {entry.path: entry.rule for entry in mapping.entries}
    missing = [path for path, _ in leaves if path not in by_path]
    if missing:
        raise JaxgradError(f"the mapping has no rules for {missing}; match the tree that is trained")
    chosen = [by_path[path] for path, _ in leaves]
    start = [rules.apply(rule, theirs.tensors[0]) for rule in chosen]
    of_torch = [[rules.apply(rule, tensors) for rule in chosen] for tensors in theirs.tensors[1:]]
    own = _jax_run(call, start, optimizer, batches, loss, params)
    rng = np.random.default_rng(0)
    moved = [x * (1 + 2.0**-52 * rng.choice([-1.0, 1.0], x.shape)) for x in start]
    again = _jax_run(call, moved, optimizer, batches, loss, params)
    names = [path for path, _ in leaves]
    steps, first = [], None
    for k in range(len(batches)):
        step, beyond = _compared(names, own, again, of_torch, theirs.losses, k)
        steps.append(step)
        first = k if first is None and beyond else first
    if first is None:
        return Training(True, tuple(steps), None, (), False)
    if len(set(hyper.rates)) > 1 and hyper.kind in _OPTIMIZERS:
        # Optax computes schedules in float32 from whole steps.
        same = _simulated(start, own.gradients, hyper)
        if all(_explains(start, own, same, k, 2.0**-20) for k in range(len(same))):
            return Training(True, tuple(steps), None, ("the schedule's rates are float32 in JAX",), False)
    of_gradients = [rules.apply(rule, theirs.gradients[0]) for rule in chosen]
    gradient = first == 0 and not all(_near(a, b, 1e-9) for a, b in zip(own.gradients[0], of_gradients, strict=True))
    why = () if gradient else tuple(_conventions(start, own, hyper))
    return Training(False, tuple(steps), first, why, gradient)


class _TorchRun(NamedTuple):
    losses: list[float]
    tensors: list[dict[str, np.ndarray]]
    gradients: list[dict[str, np.ndarray]]


class Hyper(NamedTuple):
    """A torch optimizer as it is told: its kind, what its groups hold, its rate at each step, and the clipping."""

    kind: str
    options: dict[str, Any]
    rates: list[float]
    clip: float | None
    clip_epsilon: float = 1e-6


def _torch_run(
    module: Any,
    make: Callable[[Any], Any],
    loss: Callable[..., Any] | None,
    schedule: Callable[[Any], Any] | None,
    clip: float | None,
    batches: Sequence[tuple[Any, ...]],
) -> tuple[_TorchRun, Hyper]:
    import torch

    own = torch_values.in_float64(module, {})
    optimizer = make(own.parameters())
    scheduler = schedule(optimizer) if schedule is not None else None
    run = _TorchRun([], [torch_values.tensors_of(own)], [])
    rates = []
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        for batch in batches:
            given = [torch_values.tensor(x) for x in batch]
            optimizer.zero_grad()
            value = own(*given) if loss is None else loss(own, *given)
            value = value[0] if isinstance(value, tuple) else value
            value.backward()
            named = own.named_parameters(remove_duplicate=False)
            run.gradients.append(
                {n: p.grad.numpy().copy() if p.grad is not None else np.zeros(p.shape) for n, p in named}
            )
            if clip is not None:
                torch.nn.utils.clip_grad_norm_(own.parameters(), clip)
            rates.append(float(optimizer.param_groups[0]["lr"]))
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
            run.losses.append(float(value.detach()))
            run.tensors.append(torch_values.tensors_of(own))
    finally:
        torch.set_default_dtype(before)
    group = {name: x for name, x in optimizer.param_groups[0].items() if name != "params"}
    return run, Hyper(type(optimizer).__name__, group, rates, clip)


def _jax_run(
    call: Callable[..., Any],
    start: Sequence[np.ndarray],
    optimizer: Any,
    batches: Sequence[tuple[Any, ...]],
    loss: Callable[..., Any],
    params: Any,
) -> Run:
    run = Run([], [], [])
    with jax_values.float64():

        def value(weights: list[Any], others: list[Any]) -> Any:
            out = call(*weights, *others)
            return out[0] if isinstance(out, tuple) else out

        def one(weights: list[Any], state: Any, others: list[Any]) -> Any:
            total, grads = jax.value_and_grad(value)(weights, others)
            updates, state = optimizer.update(grads, state, weights)
            return [w + u for w, u in zip(weights, updates, strict=True)], state, total, grads

        step = jax.jit(one)
        weights = [jnp.asarray(x) for x in start]
        state = optimizer.init(weights)
        for batch in batches:
            others = flat_call(loss, params, batch, {})[2]
            wide = [jnp.asarray(x, jnp.float64) if np.asarray(x).dtype.kind == "f" else jnp.asarray(x) for x in others]
            weights, state, total, grads = step(weights, state, wide)
            run.losses.append(float(total))
            run.weights.append(list(map(np.asarray, weights)))
            run.gradients.append(list(map(np.asarray, grads)))
    return run


def _compared(
    names: Sequence[str],
    own: Run,
    again: Run,
    theirs: Sequence[Sequence[np.ndarray]],
    losses: Sequence[float],
    k: int,
) -> tuple[Step, bool]:
    """A step, and whether some leaf is beyond its bound."""
    # Where one leaf has gone astray, all have in the steps behind: the noise of a step is that of all leaves.
    spread = max(_relative(a, b) for a, b in zip(own.weights[k], again.weights[k], strict=True))
    bound = _SLACK * max(spread, 2.0**-52)
    distances = [_relative(a, b) for a, b in zip(own.weights[k], theirs[k], strict=True)]
    worst = int(np.argmax(distances))
    return Step(own.losses[k], losses[k], names[worst], distances[worst], bound), distances[worst] > bound


def _relative(a: np.ndarray, b: np.ndarray) -> float:
    size = float(np.linalg.norm(b))
    return float(np.linalg.norm(a - b)) / size if size else float(np.linalg.norm(a))


def _near(a: np.ndarray, b: np.ndarray, tolerance: float) -> bool:
    return bool(np.abs(a - b).max(initial=0.0) <= tolerance * max(float(np.abs(b).max(initial=0.0)), 1e-300))


# Conventions.


def _conventions(start: Sequence[np.ndarray], own: Run, hyper: Hyper) -> Iterator[str]:
    """The changes to torch's optimizer with which it does what the JAX side did, in words."""
    if hyper.kind not in _OPTIMIZERS:
        return
    for words, changed in _variants(hyper):
        with np.errstate(all="ignore"):
            made = _simulated(start, own.gradients, changed)
        # Updates are compared, and not weights: of these a small rate changes only the last digits.
        if all(_explains(start, own, made, k) for k in range(len(made))):
            yield words
            return
    rates = _rates(start, own, hyper)
    if rates is not None:
        yield rates


def _explains(
    start: Sequence[np.ndarray], own: Run, made: Sequence[Sequence[np.ndarray]], k: int, tolerance: float = 1e-7
) -> bool:
    """Whether weights that were made in another way change in a step as the JAX side's do."""
    before = start if k == 0 else own.weights[k - 1]
    for old, a, b in zip(before, own.weights[k], made[k], strict=True):
        size = float(np.linalg.norm(a - old))
        if float(np.linalg.norm(a - b)) > tolerance * size + 1e-13 * float(np.linalg.norm(a)):
            return False
    return True


def _simulated(
    start: Sequence[np.ndarray], gradients: Sequence[Sequence[np.ndarray]], hyper: Hyper
) -> list[list[np.ndarray]]:
    """The weights after each step of a torch optimizer with these options, on given gradients."""
    weights = [x.copy() for x in start]
    states: list[dict[str, Any]] = [{} for _ in weights]
    made = []
    for k, grads in enumerate(gradients):
        scale = 1.0
        if hyper.clip is not None:
            norm = float(np.sqrt(sum((g**2).sum() for g in grads)))
            scale = min(1.0, hyper.clip / (norm + hyper.clip_epsilon))
        update = _OPTIMIZERS[hyper.kind]
        weights = [
            update(w, g * scale, state, k + 1, hyper.rates[k], hyper.options)
            for w, g, state in zip(weights, grads, states, strict=True)
        ]
        made.append(weights)
    return made


def _adam(w: np.ndarray, g: np.ndarray, state: dict[str, Any], t: int, lr: float, o: Mapping[str, Any]) -> np.ndarray:
    b1, b2 = o["betas"]
    if o["decoupled"]:
        w = w * (1 - (lr if o.get("decay times rate", True) else 1.0) * o["weight_decay"])
    else:
        g = g + o["weight_decay"] * w
    m = state["m"] = b1 * state.get("m", 0.0) + (1 - b1) * g
    v = state["v"] = b2 * state.get("v", 0.0) + (1 - b2) * g * g
    corrected = o.get("bias correction", True)
    m_hat = m / (1 - b1**t) if corrected else m
    v_hat = v / (1 - b2**t) if corrected else v
    if o.get("amsgrad"):
        v_hat = state["top"] = np.maximum(state.get("top", 0.0), v_hat)
    if o.get("nesterov"):
        m_hat = b1 * m / (1 - b1 ** (t + 1)) + (1 - b1) * g / (1 - b1**t)
    root = np.sqrt(v_hat + o.get("eps_root", 0.0))
    return w - lr * m_hat / (root + o["eps"])


def _adamw(w: np.ndarray, g: np.ndarray, state: dict[str, Any], t: int, lr: float, o: Mapping[str, Any]) -> np.ndarray:
    return _adam(w, g, state, t, lr, {"decoupled": True, **o})


def _plain_adam(
    w: np.ndarray, g: np.ndarray, state: dict[str, Any], t: int, lr: float, o: Mapping[str, Any]
) -> np.ndarray:
    return _adam(w, g, state, t, lr, {"decoupled": o.get("decoupled_weight_decay", False), **o})


def _sgd(w: np.ndarray, g: np.ndarray, state: dict[str, Any], t: int, lr: float, o: Mapping[str, Any]) -> np.ndarray:
    if o.get("decoupled"):
        w = w * (1 - lr * o["weight_decay"])
    else:
        g = g + o["weight_decay"] * w
    if o["momentum"]:
        dampening = o["dampening"]
        first = g if not o.get("first dampened") else (1 - dampening) * g
        state["m"] = first if t == 1 else o["momentum"] * state["m"] + (1 - dampening) * g
        g = g + o["momentum"] * state["m"] if o["nesterov"] else state["m"]
    return w - lr * g


def _rmsprop(
    w: np.ndarray, g: np.ndarray, state: dict[str, Any], t: int, lr: float, o: Mapping[str, Any]
) -> np.ndarray:
    g = g + o["weight_decay"] * w
    v = state["v"] = o["alpha"] * state.get("v", o.get("initial", 0.0)) + (1 - o["alpha"]) * g * g
    if o["centered"]:
        mean = state["mean"] = o["alpha"] * state.get("mean", 0.0) + (1 - o["alpha"]) * g
        v = v - mean**2
    step = g / np.sqrt(v + o["eps"]) if o.get("eps inside") else g / (np.sqrt(v) + o["eps"])
    if o["momentum"]:
        step = state["m"] = o["momentum"] * state.get("m", 0.0) + step
    return w - lr * step


_OPTIMIZERS: dict[str, Callable[..., np.ndarray]] = {
    "AdamW": _adamw,
    "Adam": _plain_adam,
    "SGD": _sgd,
    "RMSprop": _rmsprop,
}


def _variants(hyper: Hyper) -> Iterator[tuple[str, Hyper]]:
    """An optimizer with one convention changed, or two of them, and the change in words."""
    single = list(_single(hyper))
    yield from ((words, hyper._replace(**change)) for words, change in single)
    for number, (words, change) in enumerate(single):
        for other, second in list(_single(hyper._replace(**change)))[number + 1 :]:
            yield f"{words}, and {other}", hyper._replace(**change)._replace(**second)


def _single(hyper: Hyper) -> Iterator[tuple[str, dict[str, Any]]]:
    o = hyper.options

    def option(name: str, value: Any) -> dict[str, Any]:
        return {"options": {**hyper.options, name: value}}

    decay, rate = o.get("weight_decay", 0.0), hyper.rates[0]
    for value in (0.0, 1e-4, 1e-2, 1e-3, 5e-4, 0.1, 0.05):
        if value != decay:
            default = {1e-4: ", optax's default", 1e-2: ", torch's default of AdamW"}
            told = f"{value:g}{default.get(value, '')} in JAX and {decay:g}{default.get(decay, '')} in torch"
            yield f"the weight decay is {told}", option("weight_decay", value)
    if hyper.kind in ("Adam", "AdamW"):
        own = hyper.kind == "AdamW" or bool(o.get("decoupled_weight_decay"))
        ways = ("added to the gradient", "decoupled") if own else ("decoupled", "added to the gradient")
        yield f"the weight decay is {ways[0]} in JAX and {ways[1]} in torch", option("decoupled", not own)
        yield "the decoupled weight decay is not multiplied by the rate in JAX", option("decay times rate", False)
        for eps in (1e-8, 1e-7, 1e-6, 1e-5, 1e-3, 1e-10, 0.0):
            if eps != o["eps"]:
                yield f"epsilon is {eps:g} in JAX and {o['eps']:g} in torch", option("eps", eps)
            if eps:
                inside = {**o, "eps": 0.0, "eps_root": eps}
                yield f"epsilon is inside the root (eps_root={eps:g}) in JAX and outside in torch", {"options": inside}
                yield f"epsilon is added inside the root too (eps_root={eps:g}) in JAX", option("eps_root", eps)
        yield "the moments are not corrected for their bias in JAX", option("bias correction", False)
        yield "JAX uses Nesterov's momentum (nadam)", option("nesterov", True)
        yield f"AMSGrad is {'off' if o.get('amsgrad') else 'on'} in JAX", option("amsgrad", not o.get("amsgrad"))
        for betas in ((0.9, 0.999), (0.9, 0.99), (0.9, 0.95), (0.95, 0.999), (0.9, 0.98)):
            if betas != tuple(o["betas"]):
                yield f"the betas are {betas} in JAX and {tuple(o['betas'])} in torch", option("betas", betas)
    if hyper.kind == "SGD":
        for value in (0.0, 0.9, 0.99, 0.95):
            if value != o["momentum"]:
                yield f"the momentum is {value:g} in JAX and {o['momentum']:g} in torch", option("momentum", value)
        yield f"Nesterov's form is {'off' if o['nesterov'] else 'on'} in JAX", option("nesterov", not o["nesterov"])
        if o["dampening"]:
            yield "the momentum is not dampened in JAX", option("dampening", 0.0)
        yield (
            "the momentum is an average (ema) in JAX",
            {"options": {**o, "dampening": o["momentum"], "first dampened": True}},
        )
        yield "the weight decay is not part of the momentum in JAX", option("decoupled", True)
    if hyper.kind == "RMSprop":
        for value in (0.9, 0.99):
            if value != o["alpha"]:
                yield f"the decay of squares is {value:g} in JAX and {o['alpha']:g} in torch", option("alpha", value)
        yield "epsilon is inside the root in JAX and outside in torch", option("eps inside", True)
        yield "the mean of squares begins with 1 in JAX", option("initial", 1.0)
        yield f"it is {'not ' if o['centered'] else ''}centred in JAX", option("centered", not o["centered"])
        for eps in (1e-8, 1e-7, 1e-6, 1e-5, 1e-3):
            if eps != o["eps"]:
                yield f"epsilon is {eps:g} in JAX and {o['eps']:g} in torch", option("eps", eps)
    if hyper.clip is not None:
        yield "the global norm is clipped without torch's epsilon of 1e-6 in JAX", {"clip_epsilon": 0.0}
        yield "gradients are not clipped in JAX", {"clip": None}
    if len(set(hyper.rates)) > 1:
        later, earlier = [*hyper.rates[1:], hyper.rates[-1]], [rate, *hyper.rates[:-1]]
        yield "the schedule is one step ahead in JAX: it is counted from 1", {"rates": later}
        yield "the schedule is one step behind in JAX", {"rates": earlier}


def _rates(start: Sequence[np.ndarray], own: Run, hyper: Hyper) -> str | None:
    """Another rate in JAX, solved for at each step, where that explains it."""
    if hyper.options.get("weight_decay"):
        return None
    with np.errstate(all="ignore"):
        made = _simulated(start, own.gradients, hyper)
    ratios = []
    for k in range(len(made)):
        before = start if k == 0 else own.weights[k - 1]
        previous = start if k == 0 else made[k - 1]
        a = np.concatenate([(x - y).ravel() for x, y in zip(own.weights[k], before, strict=True)])
        b = np.concatenate([(x - y).ravel() for x, y in zip(made[k], previous, strict=True)])
        ratio = float(a @ b / (b @ b)) if b.any() else float("nan")
        if not np.linalg.norm(a - ratio * b) <= 1e-6 * np.linalg.norm(a):
            return None
        ratios.append(ratio)
    told = ", ".join(f"{ratio * rate:.6g}" for ratio, rate in zip(ratios[:4], hyper.rates, strict=False))
    theirs = ", ".join(f"{rate:.6g}" for rate in hyper.rates[:4])
    return f"the rate of the first steps is {told} in JAX and {theirs} in torch"
