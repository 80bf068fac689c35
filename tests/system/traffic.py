"""Load in the background of a test: clients that keep their connections, and clients that make one for each request."""

from __future__ import annotations

import http.client
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from tests.support.counting_client import CountingClient, Outcome, Result
from tests.system.daemon import LOOK, PATIENCE, Daemon

#: Between two requests of one thread, so that the load leaves processor time to what is tested. Seconds.
PACE = 0.002


class Traffic:
    """Both kinds of clients at once, until the end of the ``with`` block; every request is counted."""

    def __init__(
        self,
        daemon: Daemon,
        *,
        kept: int = 2,
        fresh: int = 2,
        path: str = "/",
        address: str = "",
        pace: float = PACE,
        timeout: float = 10.0,
    ) -> None:
        def between(number: int) -> None:
            time.sleep(pace)

        address = address or daemon.address
        self.clients = [
            CountingClient(address, threads=threads, keep_alive=keep, path=path, between=between, timeout=timeout)
            for threads, keep in ((kept, True), (fresh, False))
            if threads
        ]

    def __enter__(self) -> Self:
        for client in self.clients:
            client.start()
        self.wait(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Send no more, and wait for the answers of what was sent."""
        for client in self.clients:
            client.stop()

    def wait(self, count: int) -> None:
        """Wait until each kind of client has got so many more answers."""
        for client in self.clients:
            client.wait(count)

    @property
    def results(self) -> list[Result]:
        """What became of the requests, one result for each kind of client."""
        return [client.result() for client in self.clients]

    @property
    def outcomes(self) -> list[Outcome]:
        """All requests that have ended, by the time of their start."""
        return sorted(
            (outcome for result in self.results for outcome in result.outcomes), key=lambda outcome: outcome.started
        )

    @property
    def failed(self) -> list[Outcome]:
        """Those that failed."""
        return [outcome for result in self.results for outcome in result.failed]

    def worst(self, since: float, until: float) -> float:
        """The longest that a request took that was sent in this time (monotonic), seconds."""
        return max((o.latency for o in self.outcomes if since <= o.started <= until), default=0.0)

    def check(self, at_least: int = 20) -> None:
        """AssertionError with a summary unless every request was answered, and each kind of client was."""
        for result in self.results:
            result.check(at_least)


def ask(daemon: Daemon, path: str = "/", address: str = "") -> tuple[str, int]:
    """One request on a connection of its own: the body (the application's version), and who answered."""
    connection = http.client.HTTPConnection(address or daemon.address, timeout=10)
    try:
        connection.request("GET", path, headers={"Connection": "close"})
        response = connection.getresponse()
        body = response.read().decode()
        assert response.status == 200, body
        return body, int(response.headers["X-Worker-Pid"])
    finally:
        connection.close()


def number_of(request: str) -> int:
    """The number of a client's request, out of its request line."""
    return int(request.split()[1].partition("n=")[2])


def settled(generation: int) -> Callable[[dict[str, Any]], bool]:
    """For `Daemon.wait_for_status`: only that generation serves, and nobody of another is left."""

    def look(status: dict[str, Any]) -> bool:
        workers = status["pools"]["web"]["workers"]
        return all(w["generation"] == generation and w["state"] in ("idle", "busy") for w in workers)

    return look


def wait_titled(daemon: Daemon, words: str) -> int:
    """The first process of the daemon whose title has these words in it, as soon as there is one."""
    deadline = time.monotonic() + PATIENCE
    while True:
        for pid, title in daemon.processes().items():
            if words in title:
                return pid
        assert time.monotonic() < deadline, f"no process is called {words!r}\n{daemon.picture()}"
        time.sleep(LOOK)


__all__ = ["PACE", "Traffic", "ask", "number_of", "settled", "wait_titled"]
