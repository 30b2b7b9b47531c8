"""What mkdocstrings needs to be told to show this project's docstrings."""

import re
from typing import Any

import griffe


class DisplayFormulas(griffe.Extension):
    """Puts `$$…$$` inside a docstring's paragraph between blank lines, where Markdown knows it as a block."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of one object, if it has one."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"\s*(\$\$.+?\$\$)\s*", r"\n\n\1\n\n", obj.docstring.value, flags=re.DOTALL)
