"""REDbot, a lint for HTTP, against the real program: what it calls bad in an answer is ours, or the application's.

The applications here make no mistake but the one that is meant, so that nothing bad is to be found. What is good has to
be: a reader who understands nothing complains of nothing.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.system.daemon import PATIENCE, Daemon

pytestmark = pytest.mark.skipif(importlib.util.find_spec("redbot") is None, reason="redbot is not installed")

APPLICATION = """
BODY = b"".join(b"%d: a line of a page that is worth being asked for in parts\\n" % number for number in range(300))
FIELDS = [
    ("Cache-Control", "max-age=60"),
    ("ETag", '"1"'),
    ("Last-Modified", "Sun, 06 Nov 1994 08:49:37 GMT"),
]

def application(environ, start_response):
    tag, since = environ.get("HTTP_IF_NONE_MATCH"), environ.get("HTTP_IF_MODIFIED_SINCE")
    if tag == '"1"' or (since and not tag):
        start_response("304 Not Modified", FIELDS)
        return []
    typed = [("Content-Type", "text/plain; charset=utf-8"), *FIELDS]
    match environ["PATH_INFO"]:
        case "/chunks":
            start_response("200 OK", typed)
            return (BODY[at:at + 1000] for at in range(0, len(BODY), 1000))
        case "/nothing":
            start_response("204 No Content", [])
            return [b"not sent"]
        case "/fails":
            raise ValueError
        case "/tomorrow":
            typed[-1] = ("Last-Modified", "Fri, 31 Dec 9999 23:59:59 GMT")
    start_response("200 OK", typed)
    return [BODY]
"""

#: Prints what REDbot has to say of one URL as JSON: of the answer, and of those to the questions that follow from it.
ASK = """
import json, sys
from configparser import ConfigParser
import thor
from redbot.resource import HttpResource

config = ConfigParser()
config.read_dict({"redbot": {"enable_local_access": "true"}})
resource = HttpResource(config["redbot"])
resource.set_request(sys.argv[2], method=sys.argv[1])
resource.on("check_done", lambda *_: thor.stop())
resource.check()
thor.run()
assert resource.response.complete, "no complete answer"
asked = [resource, *resource.subreqs.values()]
notes = [(one.check_name, type(note).__name__, note.level.name) for one in asked for note in one.response.notes]
print(json.dumps([int(resource.response.status_code), notes]))
"""

Ask = Callable[..., tuple[int, dict[str, set[str]]]]


@pytest.fixture
def ask(daemon: Daemon) -> Ask:
    """Asks REDbot about a path: the status, and by level what it found."""
    daemon.write_module(APPLICATION)

    def ask(path: str, method: str = "GET") -> tuple[int, dict[str, set[str]]]:
        command = [sys.executable, "-c", ASK, method, f"http://{daemon.address}{path}"]
        done = subprocess.run(command, capture_output=True, check=False, timeout=2 * PATIENCE)
        assert done.returncode == 0, done.stderr.decode()
        status, notes = json.loads(done.stdout)
        found: dict[str, set[str]] = {}
        for _, name, level in notes:
            found.setdefault(level, set()).add(name)
        return status, found

    return ask


def test_nothing_is_bad_in_an_applications_answers(daemon: Daemon, ask: Ask) -> None:
    daemon.start()
    cases = {
        ("/", "GET"): (200, {"DATE_CORRECT", "CL_CORRECT", "INM_304", "IMS_304"}),
        ("/chunks", "GET"): (200, {"DATE_CORRECT", "INM_304", "IMS_304"}),
        ("/", "HEAD"): (200, {"DATE_CORRECT"}),
        ("/nothing", "GET"): (204, {"DATE_CORRECT"}),
        ("/fails", "GET"): (500, {"DATE_CORRECT", "CL_CORRECT"}),
    }
    for (path, method), (status, good) in cases.items():
        answered, found = ask(path, method)
        assert answered == status, path
        assert not found.get("BAD"), (path, method, found)
        assert good <= found["GOOD"], (path, method, found)


def test_what_is_bad_would_be_seen(daemon: Daemon, ask: Ask) -> None:
    daemon.start()
    assert "LM_FUTURE" in ask("/tomorrow")[1]["BAD"]


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_nothing_is_bad_in_the_welcome_page(daemon: Daemon, ask: Ask, method: str) -> None:
    daemon.pool["app"] = "preforkd.welcome:application"
    daemon.start()
    for path, status in (("/", 200), ("/nowhere", 404)):
        answered, found = ask(path, method)
        assert answered == status
        assert not found.get("BAD") and "DATE_CORRECT" in found["GOOD"], found


def test_nothing_is_bad_in_a_refusal(daemon: Daemon, ask: Ask) -> None:
    daemon.start()
    answered, found = ask("/%zz")
    assert answered == 400
    assert not found.get("BAD") and {"DATE_CORRECT", "CL_CORRECT"} <= found["GOOD"], found
