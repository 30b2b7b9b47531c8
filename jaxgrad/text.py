"""Text from files and names, as it is shown: nothing in it commands a terminal or turns a line around."""

import unicodedata

# Embeddings, overrides and isolates make text look like another; joiners and marks are of some scripts' words.
_BIDIRECTIONAL = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def visible(text: str) -> str:
    """`text` with control characters, halves of surrogate pairs and changes of direction as escapes."""
    return "".join(escaped(c) if _commands(c) else c for c in text)


def escaped(character: str) -> str:
    """A character as Python writes it in ASCII."""
    return character.encode("unicode_escape").decode("ascii")


def _commands(character: str) -> bool:
    return (unicodedata.category(character) in ("Cc", "Cs") and character not in "\n\t") or character in _BIDIRECTIONAL
