"""What tests/conftest.py promises, shown on tests that break it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

CONFTEST = Path(__file__).parents[2] / "conftest.py"

SETTINGS = "[pytest]\nmarkers =\n    may_skip: x\n    slow: x\n    system: x\n    systemd: x\n"


def outcome(directory: Path, test: str, **environment: str) -> tuple[int, str]:
    """Run pytest on one file with our conftest; its exit status and what it printed."""
    (directory / "conftest.py").write_text(CONFTEST.read_text())
    (directory / "pytest.ini").write_text(SETTINGS)
    (directory / "test_it.py").write_text(test)
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PREFORKD_", "PYTEST_"))}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", str(directory)],
        cwd=directory,
        env={**clean, **environment},
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout


def test_a_detached_process_is_found_and_ended(tmp_path: Path) -> None:
    """Whatever it does to get away: another session, another parent, another environment, no descriptors."""
    test = """
import os, subprocess, sys

AWAY = "import os, sys, time; os.close(1); os.close(2); time.sleep(1000)"

def test_leaves_one():
    command = [sys.executable, "-c", AWAY]
    subprocess.run(["sh", "-c", 'exec env -i setsid "$@" > /dev/null &', "sh", *command])

def test_is_not_blamed():
    pass
"""
    status, said = outcome(tmp_path, test)
    assert status == 1
    assert "1 error" in said and "2 passed" in said
    assert "ERROR test_it.py::test_leaves_one" in said
    assert "time.sleep(1000)" in said


def test_a_process_that_is_waited_for_is_fine(tmp_path: Path) -> None:
    test = """
import subprocess

def test_fine():
    subprocess.run(["true"], check=True)
"""
    assert outcome(tmp_path, test)[0] == 0


def test_skips_count_where_nothing_may_be_skipped(tmp_path: Path) -> None:
    test = """
import pytest

def test_skipped():
    pytest.skip("no root")

@pytest.mark.may_skip("needs two network cards")
def test_allowed():
    pytest.skip("one network card")

@pytest.mark.xfail(strict=True)
def test_expected():
    assert False
"""
    assert outcome(tmp_path, test)[0] == 0
    status, said = outcome(tmp_path, test, PREFORKD_CI="1")
    assert status == 1
    assert "1 failed, 1 skipped, 1 xfailed" in said
    assert "test_skipped was skipped where nothing may be: Skipped: no root" in said


def test_a_skipped_module_counts_too(tmp_path: Path) -> None:
    test = 'import pytest\npytest.skip("not today", allow_module_level=True)\n'
    status, said = outcome(tmp_path, test, PREFORKD_CI="1")
    assert status != 0
    assert "not today" in said
