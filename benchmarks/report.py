"""Numbers to Markdown, and Markdown into its place between two markers of a document."""

from __future__ import annotations

import datetime
import os
import platform
import statistics
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path

BEGIN = "<!-- measured: written by `make bench`, do not edit -->"
END = "<!-- end of what was measured -->"


def spread(values: Sequence[float], digits: int = 0, scale: float = 1.0) -> str:
    """The median, with minimum and maximum where there is more than one value."""
    if not values:
        return "-"
    low, middle, high = (
        f"{scale * value:.{digits}f}" for value in (min(values), statistics.median(values), max(values))
    )
    return middle if low == high else f"**{middle}** ({low}-{high})"


def ratio(peers: Iterable[Sequence[float]], ours: Sequence[float]) -> str:
    """How many times as much the best of the peers needs as we do, by medians."""
    medians = [statistics.median(values) for values in peers if values]
    if not medians or not ours or not statistics.median(ours):
        return "-"
    return f"{min(medians) / statistics.median(ours):.2f}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are numbers."""
    lines = ["| " + " | ".join(head) + " |", "|---|" + "--:|" * (len(head) - 1)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def facts(client: str) -> str:
    """The machine and the versions, as a list. ``client`` is the load generator."""
    model = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    load = Path("/proc/loadavg").read_text().split()[0]
    return "\n".join(
        (
            f"* {datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC; {len(os.sched_getaffinity(0))} processors "
            f"({model}), Linux {platform.release()}, {platform.python_implementation()} {platform.python_version()}",
            f"* preforkd {_version('preforkd')}, httptools {_version('httptools')}; gunicorn {_version('gunicorn')}, "
            f"its C parser gunicorn_h1c {_version('gunicorn_h1c')}; "
            f"Flask {_version('Flask')}, SQLAlchemy {_version('SQLAlchemy')}",
            f"* load generator for processor time and throughput: {client}; load average before the run: {load}",
        )
    )


def splice(document: Path, text: str) -> None:
    """Replaces what stands between the markers of ``document``.

    Raises:
        ValueError: It has no markers.
    """
    before, begin, rest = document.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{document} has not got the two lines between which the table belongs:\n{BEGIN}\n{END}")
    document.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", encoding="utf-8")
