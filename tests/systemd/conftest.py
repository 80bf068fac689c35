"""Images to boot, the machine of a test, and its journal where the test fails."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import cast

import pytest

from tests.systemd import debian
from tests.systemd.machine import Image, Lab, Machine, missing

#: The machines that a test has booted; looked at when it fails.
MACHINES = pytest.StashKey[list[Machine]]()


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    why = missing()
    if why:
        pytest.skip(why)
    lab = Lab(tmp_path_factory.mktemp("lab"))
    yield lab
    lab.close()


@pytest.fixture(scope="session")
def here(lab: Lab) -> Image:
    """This system itself, with preforkd installed as `make install` does it."""
    image = Image(lab, "this system", [Path("/")])
    install(image)
    return image


@pytest.fixture(scope="session")
def newest(lab: Lab) -> Image:
    """Debian 13 with its systemd 257, and preforkd installed."""
    image = debian.tree(lab, "trixie")
    with image.changed() as chroot:
        debian.connect(chroot)
        chroot.run("apt-get", "update", "-qq")
        wanted = ("systemd", "systemd-sysv", "dbus", "logrotate")
        chroot.run(
            *("apt-get", "install", "-y", "-qq", "--no-install-recommends"), *wanted, DEBIAN_FRONTEND="noninteractive"
        )
    install(image)
    return image


def install(image: Image) -> None:
    with image.changed() as chroot:
        if image.name != "this system":
            debian.connect(chroot)
        chroot.copy_tree("/usr/src/preforkd")
        chroot.run("make", "-C", "/usr/src/preforkd", "install")


@pytest.fixture
def machines(request: pytest.FixtureRequest) -> list[Machine]:
    """Where a test puts the machines that it boots, so that a failure shows their journals."""
    booted: list[Machine] = []
    cast(pytest.Item, request.node).stash[MACHINES] = booted
    return booted


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        for machine in item.stash.get(MACHINES, []):
            text = machine.last_words or machine.words()
            report.sections.append((f"journal of {machine.name} ({machine.image.name})", text))
    return report
