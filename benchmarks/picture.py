"""Series over time as one SVG: panels below each other, one time axis, marks across all of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["Panel", "picture"]

Points = Sequence[tuple[float, float]]

_WIDTH, _HEIGHT, _GAP, _LEFT, _RIGHT, _TOP = 860, 120, 44, 70, 150, 40
_COLOURS = ("#2563eb", "#d97706", "#059669", "#dc2626", "#7c3aed", "#475569")


@dataclass(frozen=True)
class Panel:
    """One chart."""

    title: str
    lines: Mapping[str, Points]


def picture(title: str, panels: Sequence[Panel], marks: Sequence[tuple[float, str]]) -> str:
    """The SVG; `marks` are (seconds, text)."""
    end = max((points[-1][0] for panel in panels for points in panel.lines.values() if points), default=1.0)
    height = _TOP + len(panels) * (_HEIGHT + _GAP) + 14 * len(marks)
    body = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif" font-size="11">',
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="{_LEFT}" y="20" font-size="14" font-weight="bold">{escape(title)}</text>',
    ]
    for number, panel in enumerate(panels):
        body += _panel(panel, _TOP + number * (_HEIGHT + _GAP), end, marks)
    for number, (at, text) in enumerate(marks):
        y = height - 14 * (len(marks) - number) + 6
        body.append(f'<text x="{_LEFT}" y="{y}">{number + 1}: {_clock(at)} {escape(text)}</text>')
    return "\n".join([*body, "</svg>"]) + "\n"


def _panel(panel: Panel, top: float, end: float, marks: Sequence[tuple[float, str]]) -> Iterator[str]:
    inner, bottom = _WIDTH - _LEFT - _RIGHT, top + _HEIGHT
    most = max((value for points in panel.lines.values() for _, value in points), default=1.0) * 1.05 or 1.0

    def place(at: float, value: float) -> str:
        return f"{_LEFT + at / end * inner:.1f},{bottom - value / most * (_HEIGHT - 18):.1f}"

    yield f'<text x="{_LEFT}" y="{top + 8}" font-weight="bold">{escape(panel.title)}</text>'
    yield f'<path d="M{_LEFT},{bottom} H{_LEFT + inner}" stroke="#94a3b8"/>'
    for share in (0.0, 0.5, 1.0):
        x, y = _LEFT + share * inner, bottom - share / 1.05 * (_HEIGHT - 18)
        yield f'<text x="{x}" y="{bottom + 14}" text-anchor="middle" fill="#475569">{_clock(share * end)}</text>'
        yield f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end" fill="#475569">{share * most / 1.05:,.0f}</text>'
    for number, (at, _) in enumerate(marks):
        x = _LEFT + at / end * inner
        yield f'<path d="M{x:.1f},{top + 14} V{bottom}" stroke="#dc2626" stroke-dasharray="3 3"/>'
        yield f'<text x="{x:.1f}" y="{top + 12}" text-anchor="middle" fill="#dc2626">{number + 1}</text>'
    for points, colour in zip(panel.lines.values(), _COLOURS, strict=False):
        if points:
            yield f'<path fill="none" stroke="{colour}" d="M{" L".join(place(at, value) for at, value in points)}"/>'
    for number, (name, colour) in enumerate(zip(panel.lines, _COLOURS, strict=False)):
        yield f'<text x="{_LEFT + inner + 8}" y="{top + 26 + 14 * number}" fill="{colour}">{escape(name)}</text>'


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02}:{int(seconds) % 60:02}"
