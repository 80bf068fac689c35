"""The control socket: the protocol as values, the server against rude clients, the client against silence."""

from __future__ import annotations

import json
import os
import select
import socket
import stat
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preforkd.control import protocol, server
from preforkd.control.client import Refused, call
from preforkd.control.protocol import Answer, Command, Lines, ProtocolError
from preforkd.control.server import ControlServer, Credentials, Request
from preforkd.errors import AlreadyRunning, ExitCode, ListenError, NotRunning, PreforkdError
from tests.support.child import in_child, needs_root

words = st.text(max_size=10)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | words,
    lambda some: st.lists(some, max_size=3) | st.dictionaries(words, some, max_size=3),
    max_leaves=5,
)
json_objects = st.dictionaries(words, json_values, max_size=3)


class TestProtocol:
    @given(st.text(min_size=1, max_size=10), json_objects, st.integers())
    def test_commands_come_back(self, command: str, args: dict[str, Any], number: int) -> None:
        line = protocol.encode_command(Command(command, args, number))
        assert line.count(b"\n") == 1
        assert protocol.decode_command(line[:-1]) == Command(command, args, number)

    @given(st.integers(), st.booleans(), json_objects, st.none() | words, st.integers())
    def test_answers_come_back(
        self, number: int, final: bool, result: dict[str, Any], error: str | None, code: int
    ) -> None:
        answer = Answer(number, final, result, error, code if error is not None else 0)
        line = protocol.encode_answer(answer)
        assert line.count(b"\n") == 1
        assert protocol.decode_answer(line[:-1]) == answer

    @given(st.lists(st.binary(max_size=20).filter(lambda line: b"\n" not in line)), st.data())
    def test_lines_in_any_pieces(self, wanted: list[bytes], data: st.DataObject) -> None:
        stream = b"".join(line + b"\n" for line in wanted)
        lines, found = Lines(64), []
        while stream:
            size = data.draw(st.integers(1, len(stream)))
            found += list(lines.feed(stream[:size]))
            stream = stream[size:]
        assert found == wanted
        assert len(lines) == 0

    @pytest.mark.parametrize("end", [b"", b"\n"])
    def test_long_lines(self, end: bytes) -> None:
        assert list(Lines(64).feed(b"x" * 63 + b"\n")) == [b"x" * 63]
        with pytest.raises(ProtocolError, match="longer than 64 bytes"):
            list(Lines(64).feed(b"x" * 64 + end))

    @pytest.mark.parametrize(
        "line",
        [
            b"",
            b"status",
            b"[]",
            b"{}",
            b'{"command": 1}',
            b'{"command": ""}',
            b'{"command": "x", "args": []}',
            b'{"command": "x", "id": "1"}',
            b'{"command": "x", "id": true}',
            b'{"command": "\xff"}',
            b"[" * 60_000,
        ],
    )
    def test_nonsense(self, line: bytes) -> None:
        with pytest.raises(ProtocolError):
            protocol.decode_command(line)
        with pytest.raises(ProtocolError):
            protocol.decode_answer(line)

    def test_typed_by_hand(self) -> None:
        assert protocol.decode_command(b'{"command": "status", "later": 1}') == Command("status", {}, 0)

    def test_too_long(self) -> None:
        with pytest.raises(ProtocolError, match="at most 65536"):
            protocol.encode_command(Command("x", {"a": "x" * 70_000}))

    def test_values_that_json_does_not_know(self) -> None:
        assert json.loads(protocol.encode_answer(Answer(1, True, {"path": Path("/x")})))["result"] == {"path": "/x"}


class Clock:
    """Time that passes when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Master:
    """A loop around a server, as the master's."""

    def __init__(self, path: str, **options: Any) -> None:
        self.clock = Clock()
        self.server = ControlServer.open(path, clock=self.clock, **options)
        self.clients: list[socket.socket] = []

    def turn(self, milliseconds: int = 0) -> list[Request]:
        poll = select.poll()
        for fd, events in self.server.descriptors().items():
            poll.register(fd, events)
        return [request for fd, events in poll.poll(milliseconds) for request in self.server.ready(fd, events)]

    def turns(self) -> list[Request]:
        """Turn until nothing is left to do, or a hundred times: a level that nobody resets is a busy loop."""
        requests: list[Request] = []
        for _ in range(100):
            poll = select.poll()
            for fd, events in self.server.descriptors().items():
                poll.register(fd, events)
            ready = poll.poll(0)
            if not ready:
                return requests
            for fd, events in ready:
                requests += self.server.ready(fd, events)
        raise AssertionError("the server's descriptors stay ready: a busy loop")

    def connect(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        self.clients.append(client)
        client.settimeout(5)
        client.connect(self.server.path)
        return client

    def ask(self, client: socket.socket, line: bytes = b'{"id": 7, "command": "x"}\n') -> Request:
        client.sendall(line)
        (request,) = self.turns()
        return request

    def connected(self) -> int:
        return len(self.server.filenos()) - 1


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "control.sock")


@pytest.fixture
def master(path: str) -> Iterator[Master]:
    one = Master(path)
    yield one
    one.server.close()
    for client in one.clients:
        client.close()


def answers(client: socket.socket) -> list[dict[str, Any]]:
    """All that was sent, up to a pause or the end."""
    client.setblocking(False)
    data = b""
    try:
        while more := client.recv(1 << 20):
            data += more
    except (BlockingIOError, ConnectionResetError):
        pass
    client.settimeout(5)
    return [json.loads(line) for line in data.splitlines()]


def is_closed(client: socket.socket) -> bool:
    client.setblocking(False)
    try:
        return client.recv(1, socket.MSG_PEEK) == b""
    except ConnectionResetError:
        return True
    except BlockingIOError:
        return False


class TestServer:
    def test_request_and_answers(self, master: Master) -> None:
        client = master.connect()
        request = master.ask(client, b'{"id": 7, "command": "reload", "args": {"wait": true}}\n')
        assert request == Request(
            request.id, "reload", {"wait": True}, Credentials(os.getpid(), os.getuid(), os.getgid())
        )
        assert master.server.waits(request.id)
        assert master.server.progress(request.id, {"step": 1})
        assert master.server.answer(request.id, {"step": 2}, final=False)
        assert master.server.answer(request.id, {"generation": 4})
        assert answers(client) == [
            {"id": 7, "final": False, "result": {"step": 1}},
            {"id": 7, "final": False, "result": {"step": 2}},
            {"id": 7, "final": True, "result": {"generation": 4}},
        ]
        assert not master.server.waits(request.id)
        assert not master.server.answer(request.id, {})
        second = master.ask(client)
        assert second.id != request.id
        assert master.server.refuse(second.id, "no", exit_code=ExitCode.CONFIG, result={"mistakes": [1]})
        assert answers(client) == [
            {"id": 7, "final": True, "error": "no", "exit_code": 78, "result": {"mistakes": [1]}}
        ]

    def test_request_in_pieces(self, master: Master) -> None:
        client = master.connect()
        for piece in (b'{"comm', b'and": "sta', b'tus"}'):
            client.sendall(piece)
            assert master.turns() == []
        client.sendall(b"\n")
        assert [request.command for request in master.turns()] == ["status"]

    def test_half_closed_client_gets_its_answer(self, master: Master) -> None:
        """echo ... | socat - UNIX-CONNECT:control.sock"""
        client = master.connect()
        client.sendall(b'{"command": "status"}\n')
        client.shutdown(socket.SHUT_WR)
        (request,) = master.turns()
        assert master.server.answer(request.id, {"ok": 1})
        assert answers(client) == [{"id": 0, "final": True, "result": {"ok": 1}}]
        assert is_closed(client)
        assert master.connected() == 0

    def test_order_of_a_client_that_is_gone_is_carried_out(self, master: Master) -> None:
        client = master.connect()
        client.sendall(b'{"command": "stop"}\n')
        client.close()
        (request,) = master.turns()
        assert request.command == "stop"
        assert not master.server.waits(request.id)
        assert not master.server.answer(request.id, {})
        assert master.connected() == 0

    def test_client_leaves_while_its_request_is_worked_on(self, master: Master) -> None:
        client = master.connect()
        request = master.ask(client)
        client.close()
        assert not master.server.progress(request.id, {}) or master.turns() == []
        assert not master.server.answer(request.id, {})
        assert master.connected() == 0

    @pytest.mark.parametrize("line", [b"hello\n", b'{"command": 1}\n', b"x" * protocol.MAX_REQUEST, b"\n"])
    def test_nonsense_is_answered_and_the_client_let_go(self, master: Master, line: bytes) -> None:
        client = master.connect()
        client.sendall(line)
        assert master.turns() == []
        (answer,) = answers(client)
        assert answer["final"]
        assert answer["exit_code"] == ExitCode.USAGE
        assert is_closed(client)

    def test_one_request_at_a_time(self, master: Master) -> None:
        client = master.connect()
        client.sendall(b'{"command": "a"}\n{"command": "b"}\n')
        (request,) = master.turns()
        assert request.command == "a"
        assert "one request at a time" in answers(client)[0]["error"]
        assert is_closed(client)
        assert not master.server.answer(request.id, {})

    def test_silent_client_is_let_go(self, master: Master) -> None:
        client = master.connect()
        master.turns()
        client.sendall(b'{"comm')
        master.turns()
        assert master.server.wake_at() == master.clock.now + server.DEADLINE
        master.clock.now += server.DEADLINE - 0.1
        client.sendall(b"and")  # a drip does not help
        master.turns()
        master.server.expire()
        assert not is_closed(client)
        master.clock.now += 0.1
        master.server.expire()
        assert is_closed(client)
        assert master.server.wake_at() is None

    def test_long_work_counts_against_nobody(self, master: Master) -> None:
        client = master.connect()
        request = master.ask(client)
        assert master.server.wake_at() is None
        master.clock.now += 3600
        master.server.expire()
        assert master.server.answer(request.id, {"late": True})
        assert answers(client)[0]["result"] == {"late": True}
        assert master.server.wake_at() == master.clock.now + server.DEADLINE

    def test_big_answer_to_a_slow_reader(self, master: Master) -> None:
        client = master.connect()
        request = master.ask(client)
        text = "x" * 3_000_000
        assert master.server.answer(request.id, {"text": text})
        received = b""
        while not received.endswith(b"\n"):
            master.turn()
            received += client.recv(100_000)
        assert json.loads(received)["result"]["text"] == text

    def test_answer_that_nobody_reads(self, master: Master) -> None:
        client = master.connect()
        request = master.ask(client)
        master.server.answer(request.id, {"text": "x" * 3_000_000})
        assert master.turns() == []
        master.clock.now += server.DEADLINE
        master.server.expire()
        assert master.connected() == 0
        assert client.recv(1) != b""  # what the kernel had taken

    def test_answer_that_is_too_long(self, master: Master) -> None:
        client = master.connect()
        request = master.ask(client)
        assert master.server.answer(request.id, {"text": "x" * protocol.MAX_ANSWER})
        assert "the message has" in answers(client)[0]["error"]

    def test_progress_is_left_out_for_who_does_not_read(self, master: Master) -> None:
        client = master.connect()
        request = master.ask(client)
        sent = [master.server.progress(request.id, {"text": "x" * 10_000}) for _ in range(100)]
        assert sent[0]
        assert not sent[-1]
        assert master.server.answer(request.id, {"done": True})
        received = b""
        while b"done" not in received:
            master.turn()
            received += client.recv(100_000)
        assert received.count(b"\n") == sum(sent) + 1

    def test_too_many_clients(self, master: Master) -> None:
        """Silent ones give way; if all are being served, the newcomer is told."""
        silent = []
        for _ in range(server.MAX_CLIENTS):
            silent.append(master.connect())
            master.turns()
            master.clock.now += 0.01
        working = [(client, master.ask(client)) for client in silent[1:]]
        newcomer = master.connect()
        request = master.ask(newcomer)
        assert is_closed(silent[0])
        assert master.connected() == server.MAX_CLIENTS
        refused = master.connect()
        refused.sendall(b'{"command": "status"}\n')
        assert master.turns() == []
        assert "try again later" in answers(refused)[0]["error"]
        for client, one in [*working, (newcomer, request)]:
            assert master.server.answer(one.id, {})
            assert answers(client)[0]["final"]

    def test_no_descriptor_left(self, master: Master, monkeypatch: pytest.MonkeyPatch) -> None:
        """The listener is not polled for a second, instead of being ready a million times."""

        class Exhausted:
            def __init__(self, real: socket.socket) -> None:
                self.real = real

            def accept(self) -> None:
                raise OSError(24, "Too many open files")

            def __getattr__(self, name: str) -> object:
                return getattr(self.real, name)

        real = master.server._sock
        client = master.connect()
        master.server._sock = Exhausted(real)  # type: ignore[assignment]
        assert master.turns() == []
        assert master.server.descriptors() == {}
        assert master.server.wake_at() == master.clock.now + server.SHORTAGE_PAUSE
        master.server._sock = real
        master.clock.now += server.SHORTAGE_PAUSE
        master.server.expire()
        assert master.ask(client).command == "x"

    def test_descriptors_of_others_are_ignored(self, master: Master) -> None:
        assert master.server.ready(9999, select.POLLIN) == []

    def test_mode(self, master: Master) -> None:
        assert stat.S_IMODE(os.stat(master.server.path).st_mode) == 0o660

    @needs_root
    def test_group_may_others_may_not(self, tmp_path: Path) -> None:
        for directory in [tmp_path, *list(tmp_path.parents)[:-2]]:
            directory.chmod(directory.stat().st_mode | 0o011)
        master = Master(str(tmp_path / "c"), group="mail")

        def connect_as(group: str) -> Callable[[], str]:
            def child() -> str:
                import grp

                os.setgroups([])
                os.setgid(grp.getgrnam(group).gr_gid)
                os.setuid(1)
                try:
                    call(str(tmp_path / "c"), "status", timeout=0.05)
                except NotRunning as error:
                    return str(error)
                except PreforkdError:
                    return "connected"
                return ""

            return child

        assert in_child(connect_as("mail")) == "connected"
        text = in_child(connect_as("daemon"))
        master.server.close()
        assert text == (
            f"may not speak to the master: the control socket {tmp_path}/c has mode 0660, owner root, group mail, "
            "and you are daemon; try it as root (sudo), or as a member of the group mail"
        )

    def test_live_one_is_not_stolen(self, master: Master, path: str) -> None:
        with pytest.raises(AlreadyRunning, match=f"already running: a process answers at the control socket {path}"):
            ControlServer.open(path)
        assert master.server.intact()
        master.turns()
        assert master.ask(master.connect()).command == "x"

    def test_dead_one_is_replaced(self, path: str) -> None:
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(path)
        one = ControlServer.open(path)
        one.close()
        assert not os.path.exists(path)

    def test_removed_at_the_end_only_if_ours(self, path: str) -> None:
        first = ControlServer.open(path)
        os.unlink(path)
        assert not first.intact()
        second = ControlServer.open(path)
        first.close()
        assert second.intact()
        in_child(lambda: second.close(unlink=False))
        assert second.intact()
        second.close()

    def test_directory(self, tmp_path: Path) -> None:
        one = ControlServer.open(str(tmp_path / "run" / "c"))
        one.close()
        with pytest.raises(
            ListenError, match=f"the control socket: cannot bind unix:{tmp_path}/no/run/c: No such file"
        ):
            ControlServer.open(str(tmp_path / "no" / "run" / "c"))

    def test_adopted_after_an_exec(self, path: str) -> None:
        first = ControlServer.open(path)
        fd = os.dup(first.fileno())
        first.close(unlink=False)
        second = ControlServer.adopt(path, fd)
        assert second.intact()
        second.close()
        assert not os.path.exists(path)

    def test_flush(self, master: Master) -> None:
        client = master.connect()
        request = master.ask(client)
        master.server.answer(request.id, {"text": "x" * 2_000_000})
        received: list[int] = []

        def read() -> None:
            while data := client.recv(65536):
                received.append(len(data))

        reader = threading.Thread(target=read)
        reader.start()
        master.server.flush(30)
        master.server.close()
        reader.join()
        assert sum(received) > 2_000_000


class Serving:
    """A master in a thread that answers what the test tells it to."""

    def __init__(self, path: str, work: Callable[[ControlServer, Request], None]) -> None:
        self.server = ControlServer.open(path)
        self.work = work
        self.stop_reading, self.stop_writing = os.pipe()
        self.thread = threading.Thread(target=self.run)

    def run(self) -> None:
        while True:
            poll = select.poll()
            poll.register(self.stop_reading, select.POLLIN)
            for fd, events in self.server.descriptors().items():
                poll.register(fd, events)
            for fd, events in poll.poll():
                if fd == self.stop_reading:
                    return
                for request in self.server.ready(fd, events):
                    self.work(self.server, request)
                    if self.server.fileno() < 0:
                        return

    def __enter__(self) -> Serving:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.stop_writing)
        self.thread.join()
        os.close(self.stop_reading)
        self.server.close()


class TestClient:
    def test_answer_after_progress(self, path: str) -> None:
        def work(control: ControlServer, request: Request) -> None:
            for step in range(3):
                control.progress(request.id, {"step": step})
            control.answer(request.id, {"echo": dict(request.args), "command": request.command})

        heard: list[Mapping[str, Any]] = []
        with Serving(path, work):
            result = call(path, "reload", {"a": [1]}, timeout=10, on_progress=heard.append)
            assert call(path, "status") == {"echo": {}, "command": "status"}
        assert result == {"echo": {"a": [1]}, "command": "reload"}
        assert heard == [{"step": 0}, {"step": 1}, {"step": 2}]

    def test_refused(self, path: str) -> None:
        def work(control: ControlServer, request: Request) -> None:
            control.refuse(request.id, "web: it does not import", exit_code=int(request.args["code"]), result={"x": 1})

        with Serving(path, work):
            for code, expected in ((78, ExitCode.CONFIG), (99, ExitCode.FAILURE)):
                with pytest.raises(Refused, match="web: it does not import") as caught:
                    call(path, "reload", {"code": code})
                assert caught.value.exit_code == expected
                assert caught.value.result == {"x": 1}

    def test_until_the_master_has_gone(self, path: str) -> None:
        """preforkd stop && preforkd start"""
        released = []

        def work(control: ControlServer, request: Request) -> None:
            control.answer(request.id, {"state": "stopped"})
            released.append(True)
            control.close()

        with Serving(path, work):
            assert call(path, "stop", timeout=10, until_gone=True) == {"state": "stopped"}
            assert released
            ControlServer.open(path).close()

    def test_master_goes_away(self, path: str) -> None:
        with (
            Serving(path, lambda control, _: control.close()),
            pytest.raises(PreforkdError, match="the master went away before it answered stop"),
        ):
            call(path, "stop")

    def test_no_answer_in_time(self, path: str) -> None:
        with (
            Serving(path, lambda *_: None),
            pytest.raises(PreforkdError, match=r"no answer to reload within 0.05 s; the master may still be working"),
        ):
            call(path, "reload", timeout=0.05)

    def test_nobody_accepts(self, path: str) -> None:
        with socket.socket(socket.AF_UNIX) as hung:
            hung.bind(path)
            hung.listen(0)
            with socket.socket(socket.AF_UNIX) as first:
                first.connect(path)
                with pytest.raises(PreforkdError, match=r"does not take calls at .* within 0.1 s; it may hang"):
                    call(path, "status", timeout=0.1)

    def test_something_else_answers(self, path: str) -> None:
        def greet() -> None:
            client, _ = other.accept()
            client.sendall(b"220 mail.example.com ESMTP\r\n")
            client.close()

        with socket.socket(socket.AF_UNIX) as other:
            other.bind(path)
            other.listen()
            thread = threading.Thread(target=greet)
            thread.start()
            with pytest.raises(PreforkdError, match="is no preforkd master"):
                call(path, "status")
            thread.join()

    def test_not_running(self, tmp_path: Path) -> None:
        def why(path: Path) -> str:
            with pytest.raises(NotRunning) as caught:
                call(str(path), "status", timeout=1)
            return str(caught.value)

        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(tmp_path / "dead"))
        (tmp_path / "file").write_text("")
        assert why(tmp_path / "none") == (
            f"not running: there is no control socket {tmp_path}/none (`preforkd start` starts the service)"
        )
        assert "which a master left behind" in why(tmp_path / "dead")
        assert "file is not a control socket" in why(tmp_path / "file")
        assert "cannot be used: AF_UNIX path too long" in why(tmp_path / ("x" * 200))

    @needs_root
    def test_closed_directory(self, tmp_path: Path) -> None:
        (tmp_path / "run").mkdir(mode=0o700)
        for directory in [tmp_path, *list(tmp_path.parents)[:-2]]:
            directory.chmod(directory.stat().st_mode | 0o011)
        one = ControlServer.open(str(tmp_path / "run" / "c"))

        def child() -> str:
            os.setuid(1)
            try:
                call(str(tmp_path / "run" / "c"), "status")
            except NotRunning as error:
                return str(error)
            return ""

        text = in_child(child)
        one.close()
        assert text == (
            "may not speak to the master: daemon may not enter the directory of the control socket "
            f"{tmp_path}/run/c; try it as root (sudo)"
        )
