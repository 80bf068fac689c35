"""What is made of the measurements: tables, a picture, JSON."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from benchmarks import cpu, overload, picture, report
from benchmarks.load import LATE, Sample, Throughput
from benchmarks.peers import PEERS, PREFORKD
from benchmarks.picture import Bar, Kind, Panel

_HELLO, _FILE = "hello, keep-alive", "file of 10 KiB, keep-alive"
_SVG = "{http://www.w3.org/2000/svg}"


def _cell(cost: float, failed: int = 0) -> cpu.Cell:
    return cpu.Cell(cost, Throughput(requests=1000, seconds=2.0, p50=0.001, p99=0.004, failed=failed))


_CELLS = {
    (_HELLO, PREFORKD): [_cell(20.0), _cell(10.0), _cell(12.0)],
    (_HELLO, "uWSGI"): [_cell(30.0), _cell(18.0, failed=2), _cell(24.0)],
    (_HELLO, "bare loop"): [_cell(6.0)],
    (_FILE, PREFORKD): [_cell(40.0)],
}
_SHOWN = [PEERS[PREFORKD], PEERS["uWSGI"], PEERS["bare loop"]]


def _rows(text: str) -> dict[str, list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return {
        cells[0].strip(): [cell.strip() for cell in cells[1:]] for line in lines if (cells := line[1:-1].split("|"))
    }


def test_a_column_for_each_server_with_its_ratio() -> None:
    text = cpu.text(3, 1, [_HELLO, _FILE], _SHOWN, {"nginx": "not installed: `get it`"}, _CELLS)
    first = _rows(text.split("\n\n")[2])
    assert first["CPU for a request, µs; times preforkd's"] == ["preforkd", "uWSGI", "*bare loop*"]
    assert first[_HELLO] == ["**12.0** (10.0-20.0)", "**24.0** (18.0-30.0)<br>2.00x", "6.0<br>0.50x"]
    assert first[_FILE] == ["40.0", "-", "-"]
    assert _rows(text.split("\n\n")[3])[_HELLO] == ["500<br>1.0<br>4.0"] * 3
    assert "* nginx is left out: not installed: `get it`." in text
    assert "* *bare loop* is a yardstick: " in text
    assert text.endswith("as the load generator counts them: uWSGI 2.")


def test_json_holds_every_measurement(tmp_path: Path) -> None:
    section = report.Section("", cpu.data([_HELLO, _FILE], _SHOWN, {"nginx": "why"}, _CELLS))
    file = tmp_path / "found.json"
    report.write_json(file, "* one\n* two", {"cpu": section})
    found = json.loads(file.read_text())
    assert found["machine"] == ["one", "two"]
    works = found["scenarios"]["cpu"]["works"]
    assert [cell["cpu_us"] for cell in works[_HELLO]["uWSGI"]] == [30.0, 18.0, 24.0]
    assert works[_HELLO]["uWSGI"][1] == {
        "cpu_us": 18.0,
        "requests_per_second": 500.0,
        "p50_ms": 1.0,
        "p99_ms": 4.0,
        "failed": 2,
    }
    assert list(works[_FILE]) == [PREFORKD]
    assert found["scenarios"]["cpu"]["left_out"] == {"nginx": "why"}


def test_the_picture_shows_what_the_table_says() -> None:
    hello, file = cpu.panels([_HELLO, _FILE], _SHOWN, _CELLS)
    assert hello.title == _HELLO
    assert hello.bars == [
        Bar(PREFORKD, 10.0, 12.0, 20.0, Kind.OURS),
        Bar("uWSGI", 18.0, 24.0, 30.0, Kind.PEER),
        Bar("bare loop", 6.0, 6.0, 6.0, Kind.YARDSTICK),
    ]
    assert [bar.name for bar in file.bars] == [PREFORKD]


def test_bars_are_as_long_as_their_figures() -> None:
    bars = [Bar("slow <&>", 90.0, 100.0, 200.0, Kind.PEER), Bar("fast", 25.0, 25.0, 25.0, Kind.OURS)]
    root = ET.fromstring(picture.svg('Ti"tle', "note", [Panel("a & b", bars)]))
    texts = [text.text for text in root.iter(f"{_SVG}text")]
    # The best is first.
    assert texts[:7] == ['Ti"tle', "note", "a & b", "fast", "25.0", "slow <&>", "100"]
    widths = {
        rect.get("class"): float(rect.get("width") or 0)
        for rect in root.iter(f"{_SVG}rect")
        if rect.get("class") in ("ours", "peer") and float(rect.get("width") or 0) != 12
    }
    assert widths["ours"] > 0
    assert widths["peer"] == pytest.approx(4 * widths["ours"], rel=0.01)
    # One line from the minimum to the maximum: where there is only one figure there is none.
    assert len([path for path in root.iter(f"{_SVG}path") if path.get("class") == "range"]) == 1


def test_everything_is_inside_the_picture() -> None:
    bars = [Bar("a server's long name", 1.0, 2.0, 3.0, Kind.PEER)] * 12
    root = ET.fromstring(picture.svg("title", "note", [Panel("title", bars)] * 7))
    width, height = float(root.get("width") or 0), float(root.get("height") or 0)
    places = [(float(text.get("x") or 0), float(text.get("y") or 0)) for text in root.iter(f"{_SVG}text")]
    assert len(places) > 7 * 12 * 2
    assert all(0 < x < width and 0 < y < height for x, y in places)
    # No two texts begin at the same place.
    assert len(set(places)) == len(places)


def test_who_waited_too_long_was_not_served() -> None:
    samples = [
        Sample(0.0, 0.1, "", b""),
        Sample(0.0, 0.3, "", b""),
        Sample(0.0, 0.6, "", b""),  # an answer, but nobody was there any more
        Sample(0.0, 0.4, LATE, b""),
        Sample(0.0, 0.2, "status 503", b""),
        Sample(0.0, 0.0, "Connection refused", b""),
    ]
    assert overload.outcome(samples, 0.5) == overload.Outcome(useful=2, refused=2, late=2, longest=0.3)
    assert overload.outcome([], 0.5) == overload.Outcome(0, 0, 0, 0.0)


def test_a_setting_is_found_in_a_schema() -> None:
    pool = {"properties": {"timeouts": {"properties": {"queue": {"default": "30s"}}}}}
    schema = {"properties": {"pools": {"anyOf": [{"type": "null"}, {"additionalProperties": pool}]}}}
    assert overload.knows(schema, "timeouts", "queue")
    assert not overload.knows(schema, "timeouts", "request")
    assert not overload.knows(schema, "limits", "queue")
