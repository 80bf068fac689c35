"""curl, as people have it, against the real program: what it says and expects differs from what our own clients do."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable

import pytest

from tests.system.daemon import PATIENCE, Daemon

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")

APPLICATION = """
def application(environ, start_response):
    body = environ["wsgi.input"].read()
    seen = [environ["SERVER_PROTOCOL"], environ["REQUEST_METHOD"], environ["PATH_INFO"], str(len(body))]
    start_response("200 OK", [("Content-Type", "text/plain"), ("X-Seen", " ".join(seen))])
    if environ["PATH_INFO"] == "/stream":
        return iter((b"one ", b"two"))
    return [body or b"hello"]
"""

Curl = Callable[..., str]


@pytest.fixture
def curl(daemon: Daemon) -> Curl:
    """Runs curl and gives what it prints: head and body of each answer; ``{}`` in an argument is the service's URL."""
    daemon.write_module(APPLICATION)
    daemon.start()
    url = f"http://{daemon.address}"

    def run(*arguments: str, stdin: bytes = b"", codes: tuple[int, ...] = (0,)) -> str:
        command = ["curl", "-q", "--noproxy", "*", "-sS", "-i", "-m", str(PATIENCE)]
        command += [argument.replace("{}", url) for argument in arguments]
        done = subprocess.run(command, input=stdin, capture_output=True, check=False, timeout=2 * PATIENCE)
        assert done.returncode in codes, (done.returncode, done.stderr.decode())
        return done.stdout.decode("latin-1")

    return run


def test_curl_keeps_its_connection(curl: Curl) -> None:
    said = curl("-w", "<%{num_connects}>", "{}/a", "{}/b/", "{}//c")
    assert [said.count(f"<{number}>") for number in (1, 0)] == [1, 2]
    assert [path in said for path in ("GET /a 0", "GET /b/ 0", "GET //c 0")] == [True] * 3


def test_curl_speaks_1_0(curl: Curl) -> None:
    said = curl("--http1.0", "{}/stream")
    assert "HTTP/1.0 GET /stream 0" in said and "Transfer-Encoding" not in said and "Connection: close" in said
    assert said.endswith("one two")
    assert "HTTP/1.0 POST / 3" in curl("--http1.0", "-d", "abc", "{}/")


def test_curl_reads_a_head_and_chunks(curl: Curl) -> None:
    assert curl("-I", "{}/").endswith("Content-Length: 5\r\n\r\n")
    said = curl("{}/stream")
    assert "Transfer-Encoding: chunked" in said and said.endswith("one two")


def test_curl_uploads(curl: Curl) -> None:
    body = b"x" * 2_000_000
    assert "PUT /up 2000000" in curl("-T", "-", "{}/up", stdin=body)  # in chunks
    said = curl("-H", "Expect: 100-continue", "--data-binary", "@-", "{}/", stdin=body)
    assert said.startswith("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK") and "POST / 2000000" in said


def test_an_application_without_ranges_answers_with_all(curl: Curl) -> None:
    said = curl("-r", "1-2", "{}/")
    assert said.startswith("HTTP/1.1 200 ") and said.endswith("hello")


def test_curl_asks_for_http_2(curl: Curl) -> None:
    """An upgrade is a wish and ignored (RFC 9110, 7.8). HTTP/2 without asking is refused in HTTP/1.1, which curl gives
    one name or another, by its version; it must not wait for more (28)."""
    version = subprocess.run(["curl", "-q", "-V"], capture_output=True, check=True, text=True).stdout
    if "HTTP2" not in version:
        pytest.skip("this curl has no HTTP/2")
    assert "HTTP/1.1 GET / 0" in curl("--http2", "{}/")
    curl("--http2-prior-knowledge", "{}/", codes=(1, 8, 16, 52, 56, 92))
    assert "HTTP/1.1 GET / 0" in curl("{}/")  # nothing is the worse for it
