"""The one error type that the command line shows as a sentence, without a traceback; and what is not installed."""

# The extra that brings a library which a plain install does not.
_EXTRAS = {
    "equinox": "bench",
    "flax": "bench",
    "matplotlib": "train",
    "optax": "train",
    "orbax": "train",
    "safetensors": "parity",
    "tokamax": "third-party",
    "torch": "parity",
}


class JaxgradError(ValueError):
    """Something a person can mend: the message says what was wrong, which value it had and what to do."""


def not_installed(error: ModuleNotFoundError) -> JaxgradError | None:
    """What to install for a library that one of the extras brings; None for any other."""
    module = (error.name or "").partition(".")[0]
    if module not in _EXTRAS:
        return None
    return JaxgradError(f"{module} is not installed: pip install 'jaxgrad[{_EXTRAS[module]}]'")
