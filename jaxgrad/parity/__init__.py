"""Several engines' gradients of one batch, compared node by node: who agrees with whom, and where they part."""

from jaxgrad.parity.findings import GradientMismatch, Report
from jaxgrad.parity.mutate import mutation_score
from jaxgrad.parity.taps import tap
from jaxgrad.parity.three_way import check

__all__ = ["GradientMismatch", "Report", "check", "mutation_score", "tap"]
