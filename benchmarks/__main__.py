"""The command line: ``python -m benchmarks [--quick] [--only NAME] [--json FILE] [--picture FILE]``."""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from benchmarks import cpu, growth, life, load, measure, memory, overload, peers, report, servers, stages
from benchmarks.run import FULL, QUICK, QUIET, Run

#: Each with the part of the whole time that may have passed when it begins its last round.
_SCENARIOS: dict[str, tuple[Callable[[Run], report.Section], float]] = {
    "cpu": (cpu.scenario, 0.6),
    "memory": (memory.scenario, 0.8),
    "growth": (growth.scenario, 0.86),
    "life": (life.scenario, 0.93),
    "overload": (overload.scenario, 0.99),
    "stages": (stages.scenario, 1.0),
}
_DOCUMENT = peers.ROOT / "docs" / "benchmarks.md"
_PICTURE = _DOCUMENT.with_suffix(".svg")
#: So many seconds after its time the run is ended, wherever it is.
_OVERTIME = 60


def _stop(signum: int, frame: FrameType | None) -> None:
    raise SystemExit(
        "it takes too long: is the machine busy? --quick and --only NAME do less" if signum == signal.SIGALRM else 130
    )


def _client() -> str:
    if not load.WRK:
        return "benchmarks/load.py (wrk is not installed: apt-get install wrk)"
    version = subprocess.run([load.WRK, "-v"], capture_output=True, text=True).stdout.split()
    return "wrk " + " ".join(version[1:2])


def _disturbed(run: Run) -> str:
    """A sentence about what else the machine did."""
    if not run.others:
        return ""
    middle, most = statistics.median(run.others), max(run.others)
    verdict = "the machine was quiet" if most < QUIET else "read what is measured with that in mind"
    return (
        f"* other work on the machine meanwhile: {middle:.2f} processors in the median, {most:.2f} at most: {verdict}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure preforkd beside its peers.")
    parser.add_argument("--quick", action="store_true", help="less of everything: does it work, roughly how much?")
    parser.add_argument("--only", choices=_SCENARIOS, metavar="NAME", help=f"one of {', '.join(_SCENARIOS)}")
    parser.add_argument(
        "--write", type=Path, metavar="FILE", help="where the tables go (a whole run: docs/benchmarks.md; else nowhere)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="where every single measurement goes as well")
    parser.add_argument(
        "--picture",
        type=Path,
        metavar="FILE",
        help="where the SVG goes (a whole run: docs/benchmarks.svg; else nowhere)",
    )
    options = parser.parse_args()
    effort = QUICK if options.quick else FULL
    whole = not (options.quick or options.only or options.write)
    document: Path | None = _DOCUMENT if whole else options.write
    drawing: Path | None = options.picture or (_PICTURE if whole else None)
    for signum in (signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
        signal.signal(signum, _stop)
    signal.alarm(int(effort.limit) + _OVERTIME)
    servers.adopt_orphans()
    facts = report.facts(_client())
    sections: dict[str, report.Section] = {}
    try:
        with tempfile.TemporaryDirectory(prefix="benchmark-") as directory:
            run = Run(effort, Path(directory))
            for name in [options.only] if options.only else _SCENARIOS:
                began = time.monotonic()
                scenario, share = _SCENARIOS[name]
                run.share = 1.0 if options.only else share
                sections[name] = scenario(run)
                print(f"{sections[name].text.replace('<br>', ' ')}\n\n({time.monotonic() - began:.0f} s)\n", flush=True)
    except servers.ServerFailed as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        servers.end_orphans(measure.tree(os.getpid())[1:])
    machine = "\n".join(filter(None, (facts, _disturbed(run))))
    shown = (
        [f"![Processor time for a request]({os.path.relpath(drawing, document.parent)})"]
        if drawing and document
        else []
    )
    text = "\n\n".join([machine, *shown, *(section.text for section in sections.values())])
    if options.json:
        report.write_json(options.json, machine, sections)
    if drawing and "cpu" in sections:
        cpu.draw(sections["cpu"].panels, drawing)
    if document is None:
        print(text.partition("\n\n")[0])
    else:
        report.splice(document, text)
        print(f"written into {document}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
