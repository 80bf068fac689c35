"""Numbers to Markdown, and Markdown into its place between two markers of a document."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import statistics
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from benchmarks.peers import program
from benchmarks.picture import Panel

BEGIN = "<!-- measured: written by `make bench`, do not edit -->"
END = "<!-- end of what was measured -->"


@dataclass(frozen=True, slots=True)
class Section:
    """What a scenario found: for people, for programs (``--json``), and for the picture."""

    text: str
    data: Mapping[str, object]
    panels: Sequence[Panel] = ()


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


#: Whose versions are said. gunicorn_h1c is gunicorn's parser in C.
_PACKAGES = (
    "preforkd",
    "httptools",
    "gunicorn",
    "gunicorn_h1c",
    "uWSGI",
    "granian",
    "mod_wsgi",
    "bjoern",
    "uvicorn",
    "uvloop",
    "Flask",
    "SQLAlchemy",
)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _says(names: Iterable[str], pattern: str) -> str:
    """What a program says about its version; empty if it is not installed, or says nothing."""
    path = program(*names)
    if not path:
        return ""
    said = subprocess.run([path, "-v"], capture_output=True, text=True, timeout=10)
    found = re.search(pattern, said.stdout + said.stderr)
    return f", {found[0].replace('/', ' ')}" if found else ""


def facts(client: str) -> str:
    """The machine and the versions, as a list. ``client`` is the load generator."""
    programs = _says(("apache2", "httpd"), r"Apache/[0-9.]+") + _says(("nginx",), r"nginx/[0-9.]+")
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
            f"* {', '.join(f'{package} {_version(package)}' for package in _PACKAGES)}{programs}",
            f"* load generator for processor time and throughput: {client}; load average before the run: {load}",
        )
    )


def write_json(file: Path, machine: str, sections: Mapping[str, Section]) -> None:
    """Writes what was measured for programs: ``{"machine": [...], "scenarios": {name: ...}}``."""
    found = {
        "machine": [line.removeprefix("* ") for line in machine.splitlines()],
        "scenarios": {name: section.data for name, section in sections.items()},
    }
    file.write_text(json.dumps(found, indent=1, allow_nan=False) + "\n", encoding="utf-8")


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
