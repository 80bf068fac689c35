"""The child that reads the configuration: whatever befalls it is an answer in words, and the master goes on."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest
import yaml

import preforkd
from preforkd import config as configuration
from preforkd.config import Config
from preforkd.errors import ConfigError, PreforkdError
from preforkd.master import checker as checking
from preforkd.master.checker import Checked, Checker
from preforkd.stamp import build_stamp

POOL = {"web": {"listen": "127.0.0.1:8080", "app": "a:b"}}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "preforkd.yaml"
    path.write_text(yaml.safe_dump({"pools": POOL}))
    return path


@pytest.fixture(autouse=True)
def nothing_left_open() -> Iterator[None]:
    before = set(os.listdir("/proc/self/fd"))
    yield
    assert set(os.listdir("/proc/self/fd")) == before
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def quiet() -> None:
    """In the child: what it prints about its end is not for the test's output."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def checked_with(monkeypatch: pytest.MonkeyPatch, file: Path, read: Callable[[str], Config]) -> Checked:
    monkeypatch.setattr(configuration, "read_placed", read)
    return Checker(str(file)).result()


# --- answers ---------------------------------------------------------------------------------------------------------


def test_a_good_file_comes_back_as_it_was_read(file: Path) -> None:
    checked = Checker(str(file)).result()
    assert checked.error() is None
    assert checked.config == configuration.read(str(file))
    assert checked.identities is not None and checked.identities["web"].uid == os.geteuid()


def test_all_mistakes_come_back_with_their_places(file: Path) -> None:
    file.write_text("pools:\n  web:\n    listen: nonsense\n    workers: {max: -1}\n    app: a:b\n")
    error = Checker(str(file)).result().error()
    assert isinstance(error, ConfigError)
    assert [(mistake.line, mistake.key) for mistake in error.mistakes] == [
        (3, "pools.web.listen"),
        (4, "pools.web.workers.max"),
    ]
    assert str(error).startswith(f"{file}:3:13: ")


@pytest.mark.skipif(os.geteuid() != 0, reason="users are looked up for root only")
def test_users_are_looked_up_in_the_child(file: Path) -> None:
    file.write_text(yaml.safe_dump({"user": "nobody-of-this-name", "pools": POOL}))
    error = Checker(str(file)).result().error()
    assert isinstance(error, ConfigError) and "nobody-of-this-name" in str(error)
    file.write_text(yaml.safe_dump({"user": "nobody", "pools": POOL}))
    checked = Checker(str(file)).result()
    assert checked.identities is not None and checked.identities["web"].user == "nobody"


def test_a_file_that_is_not_there_is_a_mistake(tmp_path: Path) -> None:
    error = Checker(str(tmp_path / "nowhere.yaml")).result().error()
    assert isinstance(error, ConfigError) and "nowhere.yaml" in str(error)


def test_a_big_configuration_fits_through_the_pipe(file: Path) -> None:
    pools = {f"p{number}": {"listen": f"127.0.0.1:{20000 + number}", "app": "a:b"} for number in range(500)}
    file.write_text(yaml.safe_dump({"pools": pools}))
    checked = Checker(str(file)).result()
    assert checked.error() is None and checked.config is not None and len(checked.config.pools) == 500


# --- what befalls it -------------------------------------------------------------------------------------------------


def failure(checked: Checked) -> str:
    error = checked.error()
    assert isinstance(error, PreforkdError) and not isinstance(error, ConfigError)
    return str(error)


def test_a_crash_is_an_answer(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    def read(path: str) -> NoReturn:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.kill(os.getpid(), signal.SIGSEGV)
        raise AssertionError

    assert failure(checked_with(monkeypatch, file, read)) == (
        "the check of the configuration ended without an answer: it was killed by signal 11 (SIGSEGV)"
    )


def test_a_bug_is_an_answer(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    def read(path: str) -> NoReturn:
        quiet()
        raise ZeroDivisionError

    assert "exit code 1" in failure(checked_with(monkeypatch, file, read))


def test_a_memory_bomb_is_an_answer(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    monkeypatch.setattr(checking, "_MEMORY", 400 << 20)

    def read(path: str) -> NoReturn:
        quiet()
        hoard = []
        while True:
            hoard.append(bytearray(16 << 20))

    text = failure(checked_with(monkeypatch, file, read))
    assert text == "the check of the configuration needed more than 400 MiB of memory and was ended"


def test_a_cpu_bomb_is_an_answer(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    monkeypatch.setattr(checking, "_CPU_SECONDS", 1)

    def read(path: str) -> NoReturn:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        while True:
            pass

    assert failure(checked_with(monkeypatch, file, read)).endswith("it used more than 1 s of processor time")


def test_a_hang_is_an_answer(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    """NFS and LDAP can hang for as long as they like."""
    monkeypatch.setattr(checking, "DEADLINE", 0.05)

    def read(path: str) -> NoReturn:
        while True:
            signal.pause()

    assert "took longer than" in failure(checked_with(monkeypatch, file, read))


def test_a_check_that_is_stopped_is_an_answer(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    monkeypatch.setattr(checking, "DEADLINE", 0.05)

    def read(path: str) -> NoReturn:
        os.kill(os.getpid(), signal.SIGSTOP)
        raise AssertionError

    assert "took longer than" in failure(checked_with(monkeypatch, file, read))


def test_an_answer_without_end_is_an_answer(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    monkeypatch.setattr(checking, "_ANSWER", 200_000)

    def read(path: str) -> NoReturn:
        raise PreforkdError("x" * 1_000_000)

    assert "longer than" in failure(checked_with(monkeypatch, file, read))


def test_an_end_without_an_answer_is_an_answer(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    def read(path: str) -> NoReturn:
        os._exit(3)

    assert failure(checked_with(monkeypatch, file, read)).endswith("without an answer: it ended with exit code 3")


# --- what it keeps of its parent -------------------------------------------------------------------------------------


def test_the_child_holds_nothing_of_the_master(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    """The lifeline above all: a check that hangs must not keep orphans alive."""
    reading, writing = os.pipe()
    monkeypatch.setattr(checking, "DEADLINE", 0.3)

    def read(path: str) -> NoReturn:
        found = []
        for name in os.listdir("/proc/self/fd"):
            try:
                os.fstat(int(name))
            except OSError:
                continue
            found.append(name)
        raise PreforkdError(f"{len(found)} {str(writing) in found}")

    try:
        text = failure(checked_with(monkeypatch, file, read))
    finally:
        os.close(reading)
        os.close(writing)
    count, has = text.split()
    assert has == "False" and int(count) == 4  # 0, 1, 2 and its pipe


def test_it_can_be_given_up_at_any_time(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    monkeypatch.setattr(configuration, "read_placed", lambda path: time.sleep(60))
    one = Checker(str(file))
    one.close()
    assert os.waitstatus_to_exitcode(os.waitpid(one.pid, 0)[1]) == -signal.SIGKILL


# --- mixed versions --------------------------------------------------------------------------------------------------


def test_another_build_on_disk_is_refused(file: Path) -> None:
    assert Checker(str(file), build_stamp()).result().error() is None
    text = failure(Checker(str(file), "another").result())
    assert preforkd.__version__ in text and "restart" in text


def test_a_package_that_is_upgraded_under_its_master_is_not_mixed_with_it(file: Path, tmp_path: Path) -> None:
    home = tmp_path / "lib"
    shutil.copytree(Path(preforkd.__file__).parent, home / "preforkd", ignore=shutil.ignore_patterns("__pycache__"))
    script = """
import sys
from preforkd.master.checker import Checker
from preforkd.stamp import build_stamp
import preforkd
assert preforkd.__file__.startswith(sys.argv[2]), preforkd.__file__
stamp = build_stamp()
print(Checker(sys.argv[1], stamp).result().error(), flush=True)
sys.stdin.readline()
print(Checker(sys.argv[1], stamp).result().error(), flush=True)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(file), str(home)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=home,
        env={**os.environ, "PYTHONPATH": str(home)},
    )
    with process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == "None\n"
        init = home / "preforkd" / "__init__.py"
        init.write_text(init.read_text().replace(preforkd.__version__, "99.0"))
        text, _ = process.communicate("go\n")
    assert f"99.0 is installed, {preforkd.__version__} is running" in text and "restart" in text
