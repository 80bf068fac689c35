"""Room for more workers: the tightest limit of the cgroups, the machine's memory, the master's descriptors."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from preforkd.headroom import RESERVE, SPARE_FILES, SPARE_PIDS, Headroom, connections, headroom
from tests.support.child import in_child

MIB = 1 << 20


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A machine with 4 GiB available, and a service two cgroups deep without a limit."""
    (tmp_path / "cgroup/system.slice/preforkd.service").mkdir(parents=True)
    (tmp_path / "membership").write_text("0::/system.slice/preforkd.service\n")
    (tmp_path / "meminfo").write_text(f"MemTotal: 9 kB\nMemAvailable: {4096 * 1024} kB\n")
    return tmp_path


def ask(machine: Path, cost: int) -> Headroom:
    return headroom(
        cost,
        root=str(machine / "cgroup"),
        membership=str(machine / "membership"),
        meminfo=str(machine / "meminfo"),
    )


def limit(machine: Path, folder: str, **files: str) -> None:
    for name, text in files.items():
        (machine / "cgroup" / folder / name.replace("_", ".", 1)).write_text(text)


def test_without_limits_the_machine_counts(machine: Path) -> None:
    room = ask(machine, 100 * MIB)
    assert room.workers == (4096 * MIB - RESERVE) // (100 * MIB)
    assert room.why == "the machine leaves 4096 MiB, a worker takes 100"


def test_the_tightest_cgroup_counts(machine: Path) -> None:
    limit(machine, "system.slice/preforkd.service", memory_max="max\n", memory_current=f"{MIB}\n")
    limit(machine, "system.slice", memory_max=f"{1000 * MIB}\n", memory_current=f"{900 * MIB}\n")
    assert ask(machine, 10 * MIB) == Headroom(3, "the memory.max of its cgroup leaves 100 MiB, a worker takes 10")
    # Pages of files that nobody has used lately are given back before anybody is killed.
    limit(machine, "system.slice", memory_stat=f"anon 1\ninactive_file {50 * MIB}\n")
    assert ask(machine, 10 * MIB).workers == 8
    limit(machine, "system.slice", memory_current=f"{1001 * MIB}\n", memory_stat="")
    assert ask(machine, 10 * MIB).workers == 0


def test_processes_are_limited_too(machine: Path) -> None:
    folder = "system.slice/preforkd.service"
    limit(machine, folder, pids_max="20\n", pids_current="10\n")
    room = ask(machine, MIB)
    assert room.workers == 10 - SPARE_PIDS
    assert room.why.startswith("pids.max of ") and room.why.endswith(" leaves 10 processes")


def test_the_master_needs_a_descriptor_for_each_worker(machine: Path) -> None:
    def limited() -> Headroom:
        # What the test's own process has open by now does not matter.
        limit = len(os.listdir("/proc/self/fd")) - 1 + SPARE_FILES + 8
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
        return ask(machine, MIB)

    room = in_child(limited)
    assert 0 < room.workers <= 8
    assert "descriptors" in room.why


@pytest.mark.parametrize(
    ("limit", "free", "room"),
    [(1024, 1000, 1000 - 64), (600, 160, 140), (600, 20, 18), (600, 1, 1), (600, 0, 1)],
)
def test_a_worker_leaves_descriptors_to_its_application(tmp_path: Path, limit: int, free: int, room: int) -> None:
    # The limits are far above what the test's own process has open, which could not open the folder otherwise.
    for number in range(limit - free + 1):  # the folder itself is one of them
        (tmp_path / str(number)).touch()

    def limited() -> int:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
        return connections(files=str(tmp_path))

    assert in_child(limited) == room


def test_what_is_unknown_is_no_limit(tmp_path: Path) -> None:
    assert ask(tmp_path, MIB).workers > 1000 or "descriptors" in ask(tmp_path, MIB).why
    (tmp_path / "membership").write_text("1:name=systemd:/nowhere\n")
    (tmp_path / "meminfo").write_text("garbage\nMemAvailable: a lot\n")
    assert ask(tmp_path, MIB).why in ("",) or "descriptors" in ask(tmp_path, MIB).why


def test_this_machine_has_an_answer() -> None:
    assert headroom(MIB).workers > 0
