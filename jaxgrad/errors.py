"""The one error type that the command line shows as a sentence, without a traceback."""


class JaxgradError(ValueError):
    """Something a person can mend: the message says what was wrong, which value it had and what to do."""
