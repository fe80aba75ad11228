"""A page that stands alone: a heading, a note, tables and figures."""

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from contrastive.files import write_bytes, write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["image", "table", "write"]

# Dots an inch of a figure, and pixels below which neither it nor a table shrinks.
_DPI, _LEAST = 110, 720


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows as HTML.

    Arguments:
        rows: the first is the head.
    """
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in rows[0])
    body = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows[1:])
    return f"<div class=wide><table><tr>{head}</tr>{body}</table></div>"


def image(drawn: "Figure", path: Path, alt: str) -> str:
    """A figure within the page, and as a file beside it.

    Arguments:
        drawn: the figure.
        path: of the file.
        alt: what it shows, in words.
    """
    buffer = io.BytesIO()
    drawn.savefig(buffer, format="png", dpi=_DPI)
    write_bytes(path, buffer.getvalue())
    uri = base64.b64encode(buffer.getvalue()).decode()
    # A phone shows panels at a size that can be read, and scrolls.
    least = min(_LEAST, drawn.get_figwidth() * _DPI)
    source = f'src="data:image/png;base64,{uri}"'
    return f'<div class=wide><img style="min-width: {least:.0f}px" {source} alt="{html.escape(alt)}"></div>'


def write(path: Path, title: str, heading: str, note: str, body: Sequence[str]) -> Path:
    """Writes the page.

    Arguments:
        path: of it.
        title: of the window.
        heading: above the note.
        note: what a reader must know first.
        body: pieces of HTML.

    Returns:
        `path`.
    """
    words = {name: html.escape(text) for name, text in (("title", title), ("heading", heading), ("note", note))}
    write_text(path, _PAGE.format(**words, body="\n".join(body)))
    return path


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em; color: #222;
  background: #fff }}
img {{ max-width: 100% }}
.wide {{ overflow-x: auto }}
table {{ border-collapse: collapse; margin: 1em 0; font-size: 13px }}
@media (max-width: 720px) {{ .wide > table {{ min-width: 720px }} }}
td, th {{ border-bottom: 1px solid #ccc; padding: .25em .6em; text-align: left; vertical-align: top }}
.bad {{ color: #a00 }}
</style></head><body>
<h1>{heading}</h1>
<p>{note}</p>
{body}
</body></html>
"""
