"""A self-contained HTML card: facts, a table, and audio players with their sound inside."""

import base64
import io
import wave
from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

# Notebook front ends strip style sheets and have light and dark themes: styles stand on the elements, and colours are
# those of the surrounding text or translucent.
_BORDER = "1px solid rgba(128,128,128,.35)"
_CELL = f"padding:2px 10px;text-align:right;border-bottom:{_BORDER}"


class Player(NamedTuple):
    """A sound with a title; only the first `seconds` are embedded."""

    title: str
    audio: Float[np.ndarray, "channel sample"]
    rate: int
    seconds: float = 60.0


class Row(NamedTuple):
    """Texts of one row of the table, and the length of its bar in [0, 1]."""

    cells: Sequence[str]
    bar: float


def wav_bytes(audio: Float[np.ndarray, "channel sample"], rate: int) -> bytes:
    """A WAV file of 16 bits per sample; full scale is 1, and what exceeds it is clipped."""
    steps = np.clip(np.rint(audio.T.astype(np.float64) * 32768.0), -32768, 32767).astype("<i2")
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(audio.shape[0])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(steps.tobytes())
    return buffer.getvalue()


def card(
    title: str, facts: Iterable[str], header: Sequence[str], rows: Iterable[Row], players: Iterable[Player]
) -> str:
    """The card as HTML. All texts are escaped."""
    return (
        f'<div style="border:{_BORDER};border-radius:6px;padding:10px 14px;max-width:760px;font-size:13px">'
        f'<div style="font-weight:600;font-size:14px">{escape(title)}</div>'
        f'<div style="opacity:.75;margin:2px 0 8px">{" · ".join(escape(fact) for fact in facts)}</div>'
        f"{_table(header, rows)}{''.join(player(item) for item in players)}</div>"
    )


def _table(header: Sequence[str], rows: Iterable[Row]) -> str:
    head = "".join(f'<th style="{_CELL};font-weight:600">{escape(text)}</th>' for text in header)
    body = "".join(f"<tr>{_cells(row)}</tr>" for row in rows)
    return (
        '<div style="max-height:320px;overflow:auto;margin-bottom:8px">'
        f'<table style="border-collapse:collapse"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _cells(row: Row) -> str:
    share = f"{100.0 * row.bar:.2f}%"
    bar = f"background:linear-gradient(to right,rgba(0,114,178,.3) {share},transparent {share})"
    return "".join(
        f'<td style="{_CELL};{bar if index == 0 else ""}">{escape(text)}</td>' for index, text in enumerate(row.cells)
    )


def player(item: Player) -> str:
    """A player with its title, as HTML."""
    kept = item.audio[:, : max(1, round(item.seconds * item.rate))]
    notes = []
    if kept.shape[1] < item.audio.shape[1]:
        total = item.audio.shape[1] / item.rate
        notes.append(f"first {kept.shape[1] / item.rate:g} s of {total:.1f} s")
    peak = float(np.max(np.abs(kept)))
    if peak > 1.0:
        notes.append(f"peak {peak:.3g} exceeds full scale, clipped here")
    note = f'<span style="opacity:.75"> ({"; ".join(notes)})</span>' if notes else ""
    data = base64.b64encode(wav_bytes(kept, item.rate)).decode("ascii")
    return (
        '<div style="display:flex;align-items:center;gap:10px;margin:3px 0">'
        f'<div style="min-width:110px;overflow-wrap:anywhere">{escape(item.title)}{note}</div>'
        f'<audio controls preload="metadata" style="height:32px" src="data:audio/wav;base64,{data}"></audio></div>'
    )
