"""Two programs: where each weight goes, where they part, and what would mend it.

>>> from jaxgrad import port
>>> verdict = port.compare(fn, params, x, torch=module)  # doctest: +SKIP
"""

from jaxgrad.port.locate import Verdict, compare
from jaxgrad.port.mapping import Mapping, load, read
from jaxgrad.port.match import match

__all__ = ["Mapping", "Verdict", "compare", "load", "match", "read"]
