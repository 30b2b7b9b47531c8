"""Two programs: where each weight goes, where they part, what would mend it, and both trained together.

>>> from jaxgrad import port
>>> verdict = port.compare(fn, params, x, torch=module)  # doctest: +SKIP
"""

from jaxgrad.port.compare import compare
from jaxgrad.port.locate import Verdict
from jaxgrad.port.mapping import Mapping, load, read
from jaxgrad.port.match import match, odd_ones
from jaxgrad.port.train import Training, train

__all__ = ["Mapping", "Training", "Verdict", "compare", "load", "match", "odd_ones", "read", "train"]
