"""Brings the docstrings' dialect to what griffe, which reads them for the site, knows.

`Example:` is `Examples:` there, else its code would be taken for a quotation; and arguments that
are told together, as in `nu, kappa: those of the run`, become one entry each.
"""

import re
from typing import Any

from griffe import Extension, Object

_EXAMPLE = re.compile(r"^Example:$", re.MULTILINE)
_TOGETHER = re.compile(r"^( {4})(\*{0,2}\w+(?:, \*{0,2}\w+)+):(.*(?:\n {5,}.*)*)", re.MULTILINE)


class Dialect(Extension):
    """Rewrites every docstring before it is parsed."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Called by griffe for each function, class and attribute that it has read."""
        if obj.docstring:
            obj.docstring.value = as_griffe(obj.docstring.value)


def as_griffe(text: str) -> str:
    r"""A docstring without its indentation, in griffe's words.

    >>> as_griffe("Args:\n    a, b: those of\n        the run.\nExample:").split("\n")
    ['Args:', '    a: those of', '        the run.', '    b: those of', '        the run.',
     'Examples:']
    """
    text = _EXAMPLE.sub("Examples:", text)
    return _TOGETHER.sub(
        lambda m: "\n".join(f"{m[1]}{name}:{m[3]}" for name in m[2].split(", ")), text
    )
