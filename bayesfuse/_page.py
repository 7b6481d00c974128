"""A page of HTML in one file: style, tables, pictures and sounds inside, nothing to fetch."""

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from bayesfuse._html import Player, player

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure

_STYLE = """
:root { color-scheme: light dark; --line: rgba(128,128,128,.35); --soft: rgba(128,128,128,.12); }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1080px; margin: 0 auto; padding: 24px; }
h1 { font-size: 26px; margin: 0 0 4px; } h2 { font-size: 20px; margin: 36px 0 8px; }
h3 { font-size: 16px; margin: 22px 0 6px; }
p, ul { max-width: 860px; } .facts { opacity: .75; margin: 0 0 12px; }
nav a { margin-right: 14px; } a { color: #0072B2; }
.wide { overflow-x: auto; margin: 8px 0 14px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px; }
th, td { padding: 3px 9px; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } tbody tr:hover { background: var(--soft); }
figure { margin: 8px 0 16px; } img { max-width: 100%; background: white; border-radius: 6px; }
figcaption { opacity: .75; font-size: 13px; max-width: 860px; }
.sounds { border: 1px solid var(--line); border-radius: 6px; padding: 8px 14px; margin: 8px 0; max-width: 760px; }
.sounds h3 { margin-top: 2px; }
"""


def page(title: str, facts: Sequence[str], sections: Sequence[tuple[str, Sequence[str]]]) -> str:
    """The page; a section is a heading and pieces of HTML, sections without pieces are left out.

    Parameters
    ----------
    title, facts
        Texts of the head.
    sections
        Headings, as texts, and what stands below them, as HTML.
    """
    kept = [(heading, pieces) for heading, pieces in sections if pieces]
    links = "".join(f'<a href="#s{i}">{escape(heading)}</a>' for i, (heading, _) in enumerate(kept))
    body = "".join(
        f'<section id="s{i}"><h2>{escape(heading)}</h2>{"".join(pieces)}</section>'
        for i, (heading, pieces) in enumerate(kept)
    )
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head><body>'
        f'<header><h1>{escape(title)}</h1><p class="facts">{" · ".join(map(escape, facts))}</p><nav>{links}</nav>'
        f"</header><main>{body}</main></body></html>\n"
    )


def paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def heading(text: str) -> str:
    return f"<h3>{escape(text)}</h3>"


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table of texts, the first column to the left."""
    head = "".join(f"<th>{escape(text)}</th>" for text in header)
    body = "".join(f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def picture(figure: "Figure | SubFigure", caption: str) -> str:
    """A figure as an image in the page; the caption also stands for it where it cannot be seen."""
    buffer = io.BytesIO()
    whole: Any = figure.figure
    whole.savefig(buffer, format="png", dpi=110)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    text = escape(caption, quote=True)
    return f'<figure><img alt="{text}" src="data:image/png;base64,{data}"><figcaption>{text}</figcaption></figure>'


def sounds(title: str, players: Iterable[Player]) -> str:
    """A box of players."""
    return f'<div class="sounds"><h3>{escape(title)}</h3>{"".join(map(player, players))}</div>'
