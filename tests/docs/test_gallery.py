"""Every mistake of the gallery is found with the message that is shown, and its mended form passes."""

import linecache
import math
import re
from pathlib import Path

import pytest

from jaxgrad import GradientMismatch

PAGE = (Path(__file__).parents[2] / "docs/gallery.md").read_text(encoding="utf-8")
BLOCK = re.compile(
    r"(?P<fails>^<!-- fails: .+? -->\n+)?^```python\n(?P<code>.*?)^```$(?(fails)\n+^```\n(?P<said>.*?)^```$)",
    flags=re.DOTALL | re.MULTILINE,
)
NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e[-+]\d+)?")


def test_the_page_runs_and_says_what_it_shows():
    names: dict = {"__name__": "page"}
    failed = 0
    for block in BLOCK.finditer(PAGE):
        code = compile(block["code"], "mine.py", "exec")
        # A message shows the line of the wrong rule, as it does of a reader's own file.
        linecache.cache["mine.py"] = len(block["code"]), None, block["code"].splitlines(keepends=True), "mine.py"
        if block["fails"]:
            with pytest.raises(GradientMismatch) as caught:
                exec(code, names)
            assert_same(block["said"], f"{caught.value}\n")
            failed += 1
        else:
            exec(code, names)
    assert failed == PAGE.count("<!-- fails: ") == 13


def assert_same(shown: str, said: str) -> None:
    """The words are the same, and numbers within a factor of ten: another machine's arithmetic has other noise."""
    assert NUMBER.sub("#", shown) == NUMBER.sub("#", said)
    for a, b in zip(NUMBER.findall(shown), NUMBER.findall(said), strict=True):
        assert a == b or abs(math.log10(float(a) / float(b))) < 1, (a, b, said)
