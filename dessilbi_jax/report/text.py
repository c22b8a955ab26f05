"""Numbers and values as a report writes them, and the escaping of all text it shows."""

import html
import json
import math


def escape(value: object) -> str:
    """Returns a value as text that is safe in HTML, in attributes too.

    >>> escape('<b> & "x"')
    '&lt;b&gt; &amp; &quot;x&quot;'
    """
    return html.escape(str(value), quote=True)


def percent(fraction: float, digits: int = 2) -> str:
    r"""Returns a fraction in percent; '–' where it is not known.

    >>> percent(0.0512), percent(float("nan"))
    ('5.12\xa0%', '–')
    """
    return f"{100 * fraction:.{digits}f}\N{NO-BREAK SPACE}%" if math.isfinite(fraction) else "–"


def count(number: float) -> str:
    """Returns a whole number with its thousands apart.

    >>> count(431080)
    '431,080'
    """
    return f"{int(number):,}"


def number(value: float) -> str:
    """Returns a number to four significant digits.

    >>> number(0.00123456), number(128.0)
    ('0.001235', '128')
    """
    return f"{value:.4g}"


def signed(value: float) -> str:
    """Returns a difference with its sign, to two decimals.

    >>> signed(-4.719), signed(0.5), signed(-0.001)
    ('−4.72', '+0.50', '0.00')
    """
    rounded = round(value, 2)
    return f"{rounded:+.2f}".replace("-", "−") if rounded else "0.00"


def duration(seconds: float) -> str:
    """Returns a time in the units people say it in; '–' where it is not known.

    >>> duration(8.42), duration(75), duration(7380)
    ('8.4 s', '1 min 15 s', '2 h 3 min')
    """
    if not math.isfinite(seconds):
        return "–"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def setting(value: object) -> str:
    """Returns the value of a setting as a person would write it.

    >>> setting("auto"), setting(None), setting(True), setting(0.05), setting([300, 100])
    ('auto', 'none', 'yes', '0.05', '[300, 100]')
    """
    if isinstance(value, str):
        return value
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return json.dumps(value, ensure_ascii=False)
