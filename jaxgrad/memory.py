"""How much memory there is, and a sentence for what cannot fit in it: said before anything is made."""

import os
from pathlib import Path

from jaxgrad.errors import JaxgradError

# A container's limit, of the second and the first version of cgroups; "max", or a number near 2^63, is none.
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def total() -> int:
    """Bytes of memory that a process here may have: the machine's, or a container's where that is less."""
    found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for name in _LIMITS:
        try:
            found.append(int(Path(name).read_text(encoding="ascii")))
        except (OSError, ValueError):
            continue
    return min(found)


def check(n_bytes: int, what: str) -> None:
    """Raise `JaxgradError`, with the figures, for something that takes more than all of the memory."""
    if n_bytes > (most := total()):
        raise JaxgradError(
            f"{what} takes at least {n_bytes / 2**30:,.1f} GiB, and this machine has {most / 2**30:,.1f};"
            " make it smaller"
        )
