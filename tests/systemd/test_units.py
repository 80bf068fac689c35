"""The unit files, without booting anything: what systemd says of them, and the lines that must not be lost.

Each of these lines was tried out with a real systemd; `test_service` shows the behavior they are there for.
"""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from preforkd.errors import ExitCode

UNITS = Path(__file__).parents[2] / "systemd"

#: "Exposure" as systemd-analyze(1) counts it, times ten: 0 is a service that can do nothing, 100 one that can do all.
EXPOSURE = 30


def section(unit: str, name: str) -> dict[str, str]:
    parser = configparser.RawConfigParser(strict=False, delimiters=("=",), comment_prefixes=("#", ";"))
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # the names of settings are case-sensitive
    parser.read(UNITS / unit)
    return dict(parser.items(name))


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The unit files with a program that exists; `make install` writes the real one into them."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("not installed: systemd-analyze (package systemd)")
    for name in ("preforkd.service", "preforkd.socket"):
        text = (UNITS / name).read_text()
        (tmp_path / name).write_text(text.replace("/opt/preforkd/bin/preforkd", "/bin/true"))
    return tmp_path


def test_systemd_finds_no_mistake(units: Path) -> None:
    names = [str(units / name) for name in ("preforkd.service", "preforkd.socket")]
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", *names], capture_output=True, text=True)
    # It also judges the units of this system that these depend on: only what is said of ours counts.
    said = [line for line in done.stderr.splitlines() if "preforkd" in line]
    assert not said


def test_exposure(units: Path) -> None:
    command = ["systemd-analyze", "security", "--offline=yes", f"--threshold={EXPOSURE}", "--no-pager"]
    done = subprocess.run([*command, str(units / "preforkd.service")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("name", "value"),
    [
        # One unit for every version: 252 does not know notify-reload, and would make it "simple".
        ("Type", "notify"),
        ("NotifyAccess", "main"),
        # Only a command that waits tells `systemctl reload` of a failure.
        ("ExecReload", "/opt/preforkd/bin/preforkd reload /etc/preforkd/preforkd.yaml"),
        # Only this lets requests outlive their master.
        ("KillMode", "process"),
        # A stored unix socket keeps its path.
        ("RuntimeDirectoryPreserve", "restart"),
        ("OOMPolicy", "continue"),
        ("Restart", "on-failure"),
        ("RestartPreventExitStatus", str(int(ExitCode.CONFIG))),
    ],
)
def test_service_says(name: str, value: str) -> None:
    assert section("preforkd.service", "Service")[name] == value


def test_no_start_limit() -> None:
    assert section("preforkd.service", "Unit")["StartLimitIntervalSec"] == "0"


def test_the_store_takes_more_sockets_than_anybody_configures() -> None:
    assert int(section("preforkd.service", "Service")["FileDescriptorStoreMax"]) >= 64


def test_socket_unit() -> None:
    settings = section("preforkd.socket", "Socket")
    assert settings["BindIPv6Only"] == "ipv6-only"
    assert re.fullmatch(r"[a-z]+", settings["FileDescriptorName"]), "a colon ends a name in LISTEN_FDNAMES"
    text = (UNITS / "preforkd.socket").read_text()
    paths = re.findall(r"^ListenStream=(/.*)$", text, re.MULTILINE)
    assert paths
    assert not [path for path in paths if path.startswith("/run/preforkd/")], "the service removes that directory"


def test_logrotate_reads_its_file() -> None:
    if shutil.which("logrotate") is None:
        pytest.skip("not installed: logrotate")
    command = ["logrotate", "--debug", "--state", "/dev/null", str(UNITS / "preforkd.logrotate")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "error:" not in done.stderr
    assert "rotating pattern: /var/log/preforkd/*.log" in done.stderr
