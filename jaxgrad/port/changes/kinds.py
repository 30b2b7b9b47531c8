"""The kinds of changes, in the order in which they are tried."""

from jaxgrad.port.changes import (
    activations,
    arrangements,
    constants,
    factors,
    literals,
    operands,
    operations,
    parts,
    structures,
    variants,
)
from jaxgrad.port.changes.region import Kind

# Those that say most precisely what is wrong come first.
KINDS: list[Kind] = [
    literals.known, factors.without, activations.functions, variants.pools, variants.functions, variants.paddings,
    operations.alike, parts.reordered, parts.cut_reordered, operations.comparisons, factors.missing, constants.states,
    factors.biases, factors.addends, operations.orders, structures.scales, structures.axes, constants.weights,
    constants.tables, variants.reductions, variants.choices, variants.smoothings, variants.resizes, structures.masks,
    structures.rolls, structures.dilations, arrangements.repeats, arrangements.orders, operands.exchanged,
    variants.turns, parts.interleaved, variants.norms, literals.solved, constants.computed, factors.odd,
    operands.taken,
]  # fmt: skip
