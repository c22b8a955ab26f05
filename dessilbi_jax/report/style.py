"""Colours and typography of a report: one palette for the pictures and for the page around them.

The line colours are Okabe and Ito's, which stay apart under the common forms of colour blindness;
times of entry are shown on matplotlib's viridis without its yellow end, which white paper swallows.
"""

import io
import warnings
from base64 import b64encode
from collections.abc import Callable
from typing import Any

import matplotlib
from matplotlib.colors import Colormap, ListedColormap
from matplotlib.figure import Figure

WIDTHS = {False: 9.4, True: 4.4}  # inches, of a picture in the page's column, and on a phone

INK = "#22272e"
MUTED = "#5b6470"
RULE = "#d9dde2"
PAPER = "#fcfcfa"
WAITING = "#b9bec5"  # a group that has not entered

DENSE = "#0072B2"
PROJECTED = "#D55E00"
ASKED = "#5b6470"

LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#7A6A53")
DASHES = ("-", "--", "-.", ":")

_RC: Any = {
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.labelsize": 9.0,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e9ebee",
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.7,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "svg.fonttype": "path",  # outlines: the same picture on machines without the font
    "svg.hashsalt": "dessilbi_jax",  # the same run gives the same bytes
    "text.parse_math": False,  # a leaf may have a $ in its name
}

CSS = f"""
:root {{ color-scheme: light; --ink: {INK}; --muted: {MUTED}; --rule: {RULE}; --paper: {PAPER};
  --dense: {DENSE}; --projected: {PROJECTED};
  --text: Charter, "Bitstream Charter", "Iowan Old Style", Cambria, Georgia, serif;
  --label: system-ui, -apple-system, "Segoe UI", "Helvetica Neue", Arial, sans-serif;
  --code: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }}
* {{ box-sizing: border-box; }}
html {{ background: var(--paper); color: var(--ink); font: 1.0625rem/1.6 var(--text); }}
body {{ max-width: 60rem; margin: 0 auto; padding: 3rem 1.5rem 4rem; }}
h1, h2, nav, table, dl, figcaption, .note, .kicker {{ font-family: var(--label); }}
.kicker {{ color: var(--muted); font-size: .8125rem; margin: 0; }}
h1 {{ font-size: 1.875rem; line-height: 1.2; font-weight: 650; margin: .25rem 0 .75rem; }}
h2 {{ font-size: 1.25rem; line-height: 1.3; font-weight: 650; margin: 0 0 .75rem; }}
p {{ margin: 0 0 1rem; max-width: 44rem; text-wrap: pretty; }}
.lead {{ font-size: 1.1875rem; line-height: 1.55; }}
nav {{ font-size: .875rem; margin: 1.5rem 0 0; padding: .75rem 0; border: solid var(--rule);
  border-width: 1px 0; }}
nav ul {{ list-style: none; display: flex; flex-wrap: wrap; gap: .25rem 1.2rem; margin: 0;
  padding: 0; }}
a {{ color: #00568a; text-underline-offset: .15em; }}
a:focus-visible {{ outline: 2px solid var(--dense); outline-offset: 3px; }}
section {{ margin-top: 3rem; }}
.note {{ font-size: .9375rem; line-height: 1.5; margin: 1rem 0; padding: .625rem 1rem;
  background: #f3f1ea; border-left: 3px solid #b08a2e; max-width: 44rem; }}
.figures {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(12.5rem, 1fr));
  gap: 1.25rem 2rem; margin: 1.75rem 0 0; }}
.figures > div {{ border-top: 3px solid var(--rule); padding-top: .625rem; }}
.figures > .dense {{ border-color: var(--dense); }}
.figures > .projected {{ border-color: var(--projected); }}
.figures dt {{ font-size: .875rem; color: var(--muted); }}
.figures dd {{ margin: 0; }}
.figures .value {{ display: block; font-size: 1.875rem; line-height: 1.25; font-weight: 600;
  font-variant-numeric: tabular-nums; white-space: nowrap; }}
.figures .aside {{ display: block; font-size: .8125rem; line-height: 1.45; color: var(--muted); }}
figure {{ margin: 1.25rem 0 0; }}
figure img {{ display: block; width: 100%; height: auto; }}
figure .wide {{ margin: 0; }}
figure + p {{ margin-top: 1.25rem; }}
figcaption {{ font-size: .9375rem; line-height: 1.5; color: var(--muted); margin-top: .5rem;
  max-width: 46rem; text-wrap: pretty; }}
.wide {{ overflow-x: auto; margin: 1.25rem 0 0; }}
table {{ border-collapse: collapse; min-width: min(100%, 26rem); font-size: .875rem;
  line-height: 1.4; font-variant-numeric: tabular-nums; }}
caption {{ text-align: left; color: var(--muted); padding: 0 0 .5rem; font-size: .9375rem;
  max-width: 46rem; }}
th, td {{ text-align: left; vertical-align: top; padding: .375rem 1.5rem .375rem 0;
  border-bottom: 1px solid var(--rule); }}
th {{ font-weight: 600; }}
thead th {{ border-bottom: 1.5px solid var(--muted); white-space: nowrap; }}
tbody th {{ font-weight: 500; }}
tfoot td, tfoot th {{ border-bottom: 0; border-top: 1.5px solid var(--muted); font-weight: 600; }}
.number {{ text-align: right; white-space: nowrap; }}
.settings {{ columns: 2 20rem; column-gap: 3rem; margin: .75rem 0 0; font-size: .875rem; }}
.settings > div {{ display: flex; justify-content: space-between; gap: 1.5rem;
  padding: .3125rem 0; border-bottom: 1px solid var(--rule); break-inside: avoid; }}
.settings dd {{ margin: 0; text-align: right; overflow-wrap: anywhere; }}
.settings dd, code, pre {{ font-variant-numeric: tabular-nums; }}
code, pre {{ font-family: var(--code); font-size: .875rem; }}
pre {{ background: #f1f3f5; border: 1px solid var(--rule); border-radius: 4px; padding: .75rem 1rem;
  white-space: pre-wrap; overflow-wrap: anywhere; margin: 0 0 1rem; }}
footer {{ margin-top: 4rem; padding-top: .75rem; border-top: 1px solid var(--rule); }}
@media screen and (max-width: 40rem) {{
  body {{ padding: 1.5rem 1rem 3rem; }}
  .spare {{ display: none; }}
  table {{ font-size: .8125rem; min-width: 100%; }}
  th, td {{ padding-right: .625rem; overflow-wrap: anywhere; }}
  thead th {{ white-space: normal; }}
  .settings {{ columns: 1; }}
}}
@media print {{
  @page {{ margin: 16mm 15mm; }}
  html {{ background: none; font-size: 10.5pt; }}
  body {{ max-width: none; padding: 0; }}
  nav {{ display: none; }}
  section {{ margin-top: 1.75rem; }}
  h2 {{ break-after: avoid; }}
  figure, tr, pre, .note, .figures > div {{ break-inside: avoid; }}
  .wide {{ overflow: visible; }}
  .figures {{ grid-template-columns: repeat(4, 1fr); gap: 1rem 1.25rem; }}
  .figures .value {{ font-size: 1.375rem; }}
  a {{ color: inherit; text-decoration: none; }}
}}
"""


def context() -> Any:
    """Returns a context manager under which matplotlib draws in the style of the report.

    >>> with context():
    ...     print(matplotlib.rcParams["svg.fonttype"])
    path
    """
    return matplotlib.rc_context(_RC)


def entry_colours() -> Colormap:
    """Returns the colours of entry times, from early (dark violet) to late (light green).

    >>> entry_colours().N
    256
    """
    viridis = matplotlib.colormaps["viridis"].resampled(1000)
    return ListedColormap([viridis(0.87 * i / 255) for i in range(256)], name="entry")


def svg(figure: Figure, background: str = "none", title: str | None = None) -> bytes:
    """Returns a matplotlib figure as an SVG document, the same bytes on every call.

    Args:
        figure: the figure; its layout is settled by this.
        background: colour of the paper; `none` lets the page's own show through.
        title: what the document calls itself.

    >>> svg(Figure(figsize=(1, 1)))[:5]
    b'<?xml'
    """
    file = io.BytesIO()
    plain: Any = {"Date": None, "Creator": None, **({} if title is None else {"Title": title})}
    with context(), warnings.catch_warnings():
        # A name in a script the font lacks shows as boxes; the page's text has it in full.
        warnings.filterwarnings("ignore", message="Glyph")
        _settle(figure)
        figure.savefig(file, format="svg", facecolor=background, metadata=plain)
    return file.getvalue()


def data_uri(figure: Figure | Callable[[], Figure]) -> str:
    """Returns a matplotlib figure as an SVG in a `data:` address, the same bytes on every call.

    A function that makes the figure will do as well.

    >>> data_uri(Figure(figsize=(1, 1)))[:26]
    'data:image/svg+xml;base64,'
    """
    return "data:image/svg+xml;base64," + b64encode(
        svg(figure() if callable(figure) else figure)
    ).decode("ascii")


def _settle(figure: Figure) -> None:
    """Lays a figure out and rounds what came out: the solver's last digits vary between calls."""
    if engine := figure.get_layout_engine():
        engine.execute(figure)
    figure.set_layout_engine("none")
    for axes in figure.axes:
        left, bottom, width, height = axes.get_position(original=True).bounds
        axes.set_position((round(left, 4), round(bottom, 4), round(width, 4), round(height, 4)))
