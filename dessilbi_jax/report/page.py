"""The HTML of a report: sections in, one self-contained page out.

A page has no script, no font, picture or style from elsewhere, and its own content security policy
holds it to that.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from dessilbi_jax.report import style
from dessilbi_jax.report.plots import Picture
from dessilbi_jax.report.text import escape

GENERATOR = "dessilbi_jax"  # by which a page of ours is known
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="generator" content="{generator}">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header>
<p class="kicker">{kicker}</p>
<h1>{title}</h1>
{lead}
<nav aria-label="Sections"><ul>{links}</ul></nav>
</header>
<main>
{sections}
</main>
<footer><p class="kicker">{footer}</p></footer>
</body>
</html>
"""


@dataclass(frozen=True)
class Section:
    """One part of a page. `body` is HTML whose text is escaped; `key` is its anchor."""

    key: str
    title: str
    body: str

    def html(self) -> str:
        """Returns the section as HTML.

        >>> print(Section("figures", "The figures", "<p>None.</p>").html())
        <section id="figures" aria-labelledby="figures-title">
        <h2 id="figures-title">The figures</h2>
        <p>None.</p>
        </section>
        """
        key = escape(self.key)
        return (
            f'<section id="{key}" aria-labelledby="{key}-title">\n'
            f'<h2 id="{key}-title">{escape(self.title)}</h2>\n{self.body}\n</section>'
        )


def page(title: str, kicker: str, lead: str, sections: Sequence[Section], footer: str) -> str:
    """Returns the whole page. `lead` is HTML, the other texts are escaped here."""
    links = "".join(f'<li><a href="#{escape(s.key)}">{escape(s.title)}</a></li>' for s in sections)
    return _PAGE.format(
        title=escape(title),
        generator=GENERATOR,
        kicker=escape(kicker),
        style=style.CSS,
        lead=lead,
        links=links,
        sections="\n".join(section.html() for section in sections),
        footer=escape(footer),
    )


def figure(picture: Picture, caption: str) -> str:
    """Returns a picture with its alternative text and the caption that tells how to read it."""
    narrow = ""
    if picture.narrow is not None:
        uri = style.data_uri(picture.narrow)
        narrow = f'<source media="screen and (max-width: 40rem)" srcset="{uri}">'
    uri = style.data_uri(picture.figure)
    image = f'<picture>{narrow}<img src="{uri}" alt="{escape(picture.alt)}"></picture>'
    return (
        f"<figure>{image}\n"
        f"<figcaption>{escape((caption + ' ' + picture.remark).strip())}</figcaption></figure>"
    )


def paragraph(text: str, kind: str = "") -> str:
    """Returns a paragraph of escaped text, of a CSS class if one is given.

    >>> paragraph("a < b"), paragraph("still running", "note")
    ('<p>a &lt; b</p>', '<p class="note">still running</p>')
    """
    return f'<p class="{escape(kind)}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def table(
    caption: str,
    head: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    numbers: Sequence[int] = (),
    spare: Sequence[int] = (),
    total: Sequence[object] = (),
) -> str:
    """Returns a table whose first column heads its rows.

    `numbers` are the columns set flush right, `spare` those that a phone does not show; `total` is
    a last row, set apart.

    >>> print(table("Layers", ["name", "groups"], [["fc1", 3]], numbers=[1]))
    <div class="wide"><table><caption>Layers</caption>
    <thead><tr><th scope="col">name</th><th scope="col" class="number">groups</th></tr></thead>
    <tbody><tr><th scope="row">fc1</th><td class="number">3</td></tr></tbody></table></div>
    """

    def cell(tag: str, column: int, value: object) -> str:
        names = ["number"] * (column in numbers) + ["spare"] * (column in spare)
        kind = f' class="{" ".join(names)}"' if names else ""
        return f"<{tag}{kind}>{escape(value)}</{tag.split()[0]}>"

    def row(values: Sequence[object]) -> str:
        tags = ['th scope="row"', *["td"] * (len(values) - 1)]
        cells = [cell(tag, i, v) for i, (tag, v) in enumerate(zip(tags, values, strict=True))]
        return f"<tr>{''.join(cells)}</tr>"

    heads = "".join(cell('th scope="col"', i, value) for i, value in enumerate(head))
    body = "\n".join(row(values) for values in rows)
    foot = f"\n<tfoot>{row(total)}</tfoot>" if total else ""
    return (
        f'<div class="wide"><table><caption>{escape(caption)}</caption>\n'
        f"<thead><tr>{heads}</tr></thead>\n<tbody>{body}</tbody>{foot}</table></div>"
    )


def settings(values: Sequence[tuple[str, str]]) -> str:
    """Returns names and values as a list in two columns.

    >>> settings([("nu", "100")])
    '<dl class="settings"><div><dt>nu</dt><dd>100</dd></div></dl>'
    """
    pairs = (f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in values)
    return f'<dl class="settings">{"".join(pairs)}</dl>'
