"""Numbers, durations and costs in few characters."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["amount", "clock", "dollars", "short"]


def short(number: float) -> str:
    """A number in at most five characters: 0.4, 9994, 12.3k, 1.2M."""
    if number < 9.95 and number != round(number):
        return f"{number:.1f}"
    for limit, unit in ((1e4, ""), (1e6, "k"), (1e9, "M"), (1e12, "G")):
        if number < limit * 0.9995:
            value = number / (limit / 1e3) if unit else number
            return f"{value:.0f}{unit}" if not unit or value >= 99.95 else f"{value:.1f}{unit}"
    return f"{number:.0e}"


def clock(seconds: float) -> str:
    """A duration: 0:07, 12:03, 3h05, 2d04h."""
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02}"
    if whole < 86_400:
        return f"{whole // 3600}h{whole % 3600 // 60:02}"
    return f"{whole // 86_400}d{whole % 86_400 // 3600:02}h"


def amount(cost: Mapping[str, float]) -> str:
    """A cost for people: `$1.23, 0.40 GPU-hours`."""
    hours = [_gpu_time(cost["gpu_hours"])] if cost["gpu_hours"] else []
    return ", ".join([dollars(cost["usd"]), *hours] if cost["usd"] or not hours else hours)


def _gpu_time(hours: float) -> str:
    return f"{hours:.3g} GPU-hours" if hours >= 0.01 else f"{hours * 3600:.3g} GPU-seconds"


def dollars(usd: float) -> str:
    """Money in dollars; small amounts with two significant digits."""
    return f"${usd:,.2f}" if usd >= 1 or usd < 1e-12 else f"${float(f'{usd:.2g}'):.12f}".rstrip("0").rstrip(".")
