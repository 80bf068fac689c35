"""Bars as SVG, made of nothing but text: a panel for each kind of work, a bar for each server.

Stands on a card of its own, so that it can be read on a light and on a dark page; where the reader's system is dark,
the card is dark as well (CSS Media Queries 5, prefers-color-scheme, which browsers heed in SVG images, too).
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape, quoteattr


class Kind(enum.Enum):
    """Whose bar; the value is its class in the style sheet."""

    OURS = "ours"
    PEER = "peer"
    YARDSTICK = "yardstick"


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar: the median, with a line from the least to the most."""

    name: str
    low: float
    median: float
    high: float
    kind: Kind


@dataclass(frozen=True, slots=True)
class Panel:
    """Bars that share a scale, which begins at 0."""

    title: str
    bars: Sequence[Bar]


_COLUMNS = 3
_MARGIN, _GAP = 24, 28
_WIDTH = 360
#: Of a panel: room for the names, and for the figure behind the longest bar.
_NAMES, _FIGURES = 112, 50
_LINE, _BAR = 19, 12
_TITLE = 30
_HEAD, _FOOT = 66, 44

_STYLE = """\
text { font: 12px system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif; fill: #1f2328 }
.card { fill: #ffffff; stroke: #d0d7de }
.head { font-size: 17px; font-weight: 600 }
.note, .name { fill: #59636e }
.title { font-size: 13px; font-weight: 600 }
.figure { font-variant-numeric: tabular-nums }
.bold { font-weight: 700 }
.ours { fill: #0b63ce }
text.ours { fill: #0b63ce }
.peer { fill: #9aa4b0 }
.yardstick { fill: #ffffff; stroke: #9aa4b0 }
.range { stroke: #1f2328; stroke-width: 1.2; opacity: 0.55 }
.base { stroke: #d0d7de }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 }
  .card { fill: #0d1117; stroke: #30363d }
  .note, .name { fill: #9198a1 }
  .ours, text.ours { fill: #58a6ff }
  .peer { fill: #656c76 }
  .yardstick { fill: #0d1117; stroke: #858d97 }
  .range { stroke: #e6edf3 }
  .base { stroke: #30363d }
}"""


def _text(x: float, y: float, text: str, style: str, anchor: str = "start") -> str:
    return f'<text x="{x:g}" y="{y:g}" class="{style}" text-anchor="{anchor}">{escape(text)}</text>'


def _figure(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"


def _panel(panel: Panel, left: float, top: float) -> list[str]:
    """The best first, so that the eye sees the order without reading a figure."""
    found = [_text(left, top + 13, panel.title, "title")]
    zero = left + _NAMES
    room = _WIDTH - _NAMES - _FIGURES
    scale = room / max((bar.high for bar in panel.bars), default=0.0) if panel.bars else 0.0
    y = top + _TITLE
    for bar in sorted(panel.bars, key=lambda bar: bar.median):
        style = bar.kind.value
        emphasis = "ours bold" if bar.kind is Kind.OURS else ""
        middle = y + _BAR / 2
        end = zero + bar.median * scale
        found += (
            _text(zero - 8, y + 10, bar.name, emphasis or "name", "end"),
            f'<rect x="{zero:g}" y="{y:.1f}" width="{end - zero:.1f}" height="{_BAR}" class="{style}"/>',
        )
        if bar.high > bar.low:
            low, high = zero + bar.low * scale, zero + bar.high * scale
            found.append(f'<path d="M{low:.1f} {middle:g}H{high:.1f}" class="range"/>')
        found.append(_text(max(end, zero + bar.high * scale) + 6, y + 10, _figure(bar.median), f"figure {emphasis}"))
        y += _LINE
    found.append(f'<path d="M{zero:g} {top + _TITLE - 4:g}V{y - 3:g}" class="base"/>')
    return found


def svg(title: str, note: str, panels: Sequence[Panel]) -> str:
    """The whole picture; ``title`` and ``note`` stand above it, a legend below."""
    rows = [panels[at : at + _COLUMNS] for at in range(0, len(panels), _COLUMNS)]
    columns = min(_COLUMNS, max(1, len(panels)))
    width = 2 * _MARGIN + columns * _WIDTH + (columns - 1) * _GAP
    top: float = _HEAD + _MARGIN
    body: list[str] = []
    for row in rows:
        for column, panel in enumerate(row):
            body += _panel(panel, _MARGIN + column * (_WIDTH + _GAP), top)
        top += _TITLE + _LINE * max(len(panel.bars) for panel in row) + _GAP
    legend: list[str] = []
    x: float = _MARGIN
    for kind, words in (
        (Kind.OURS, "preforkd"),
        (Kind.PEER, "servers of the same application"),
        (Kind.YARDSTICK, "yardsticks: they do less, or something else"),
    ):
        legend.append(f'<rect x="{x:g}" y="{top:g}" width="12" height="{_BAR}" class="{kind.value}"/>')
        legend.append(_text(x + 19, top + 10, words, "note"))
        x += 19 + 6.6 * len(words) + 28
    height = top + _FOOT
    return "\n".join(
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height:g}" width="{width}" '
            f'height="{height:g}" role="img" aria-label={quoteattr(title)}>',
            f"<style>\n{_STYLE}\n</style>",
            f'<rect x="0.5" y="0.5" width="{width - 1}" height="{height - 1:g}" rx="8" class="card"/>',
            _text(_MARGIN, _MARGIN + 14, title, "head"),
            _text(_MARGIN, _MARGIN + 36, note, "note"),
            *body,
            *legend,
            "</svg>",
            "",
        )
    )
