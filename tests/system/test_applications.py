"""Applications as people have them: Flask and Django from PyPI, a checked one over the whole surface, and odd ones."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from tests.system.daemon import PATIENCE, Daemon
from tests.system.shell import fetch

FLASK = """
import os
from flask import Flask, Response, jsonify, request, send_file, stream_with_context

app = Flask(__name__, static_folder="static")

@app.get("/")
def index():
    return f"hello from {os.getpid()}"

@app.post("/form")
def form():
    file = request.files["file"].read().decode() if request.files else None
    return jsonify(form=request.form.to_dict(flat=False), file=file)

@app.post("/json")
def take_json():
    return jsonify(request.get_json())

@app.get("/stream")
def stream():
    def pieces():
        for number in range(5):
            yield f"{number} {request.args['word']}\\n"
    return Response(stream_with_context(pieces()), mimetype="text/plain")

@app.get("/file")
def file():
    return send_file(os.path.join(app.static_folder, "big.bin"), conditional=True)

@app.get("/cookie")
def cookie():
    answer = Response("set")
    answer.set_cookie("one", "1")
    answer.set_cookie("two", "2")
    return answer

@app.get("/error")
def error():
    raise KeyError("in a view")

@app.get("/url/<path:rest>")
def url(rest):
    return jsonify(url=request.url, rest=rest, remote=request.remote_addr, base=request.base_url)
"""

DJANGO_SETTINGS = """
SECRET_KEY = "tests"
DEBUG = False
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "mysite.urls"
MIDDLEWARE = ["django.middleware.security.SecurityMiddleware", "django.middleware.common.CommonMiddleware"]
DATABASES = {}
USE_TZ = True
LOGGING = {"version": 1, "disable_existing_loggers": False, "handlers": {"out": {"class": "logging.StreamHandler"}},
           "root": {"handlers": ["out"], "level": "INFO"}}
"""

DJANGO_URLS = """
import logging
from django.http import FileResponse, HttpResponse, JsonResponse, StreamingHttpResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt

def index(request):
    logging.getLogger("mysite").info("somebody looked")
    return HttpResponse("django")

@csrf_exempt
def form(request):
    files = {name: file.read().decode() for name, file in request.FILES.items()}
    return JsonResponse({"post": dict(request.POST.lists()), "files": files, "method": request.method})

def stream(request):
    return StreamingHttpResponse((f"{number}\\n" for number in range(5)), content_type="text/plain")

def file(request):
    return FileResponse(open(__file__.replace("urls.py", "big.bin"), "rb"))

def error(request):
    raise KeyError("in a view")

def url(request, rest):
    return JsonResponse({"url": request.build_absolute_uri(), "rest": rest})

urlpatterns = [path("", index), path("form", form), path("stream", stream), path("file", file), path("error", error),
               path("url/<path:rest>", url)]
"""

DJANGO_WSGI = """
import os
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mysite.settings")
from django.core.wsgi import get_wsgi_application
application = get_wsgi_application()
"""

#: More than any socket buffer, and recognizable at every place.
BIG = b"".join(b"%07d\n" % number for number in range(100_000))

FORM = {"Content-Type": "application/x-www-form-urlencoded"}
MULTIPART = {"Content-Type": 'multipart/form-data; boundary="XyZ"'}


def multipart(content: bytes) -> bytes:
    return (
        b'--XyZ\r\nContent-Disposition: form-data; name="name"\r\n\r\nv\xc3\xa4lue\r\n'
        b'--XyZ\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\nContent-Type: text/plain\r\n\r\n'
        + content
        + b"\r\n--XyZ--\r\n"
    )


def test_a_flask_application(daemon: Daemon) -> None:
    daemon.write_module(FLASK)
    (daemon.app_folder / "static").mkdir()
    (daemon.app_folder / "static" / "big.bin").write_bytes(BIG)
    (daemon.app_folder / "static" / "style.css").write_text("body {}")
    daemon.pool["app"] = "site_app:app"
    daemon.start()
    address = daemon.address
    assert fetch(address).text.startswith("hello from ")
    answer = fetch(address, "/form", "POST", b"a=1&a=2&b=%C3%A4", FORM)
    assert json.loads(answer.body)["form"] == {"a": ["1", "2"], "b": ["ä"]}
    answer = fetch(address, "/form", "POST", multipart(b"content " * 10_000), MULTIPART)
    assert json.loads(answer.body) == {"form": {"name": ["välue"]}, "file": "content " * 10_000}
    # The length of this one is not known beforehand: Transfer-Encoding: chunked.
    answer = fetch(
        address, "/json", "POST", (part for part in (b'{"a":', b" [1, 2", b"]}")), {"Content-Type": "application/json"}
    )
    assert json.loads(answer.body) == {"a": [1, 2]}
    assert fetch(address, "/stream?word=x").text == "0 x\n1 x\n2 x\n3 x\n4 x\n"
    assert fetch(address, "/file").body == BIG
    answer = fetch(address, "/file", headers={"Range": "bytes=8-15"})
    assert (answer.status, answer.body) == (206, b"0000001\n")
    answer = fetch(address, "/static/style.css")
    assert answer.text == "body {}" and answer.headers["content-type"].startswith("text/css")
    again = fetch(address, "/static/style.css", headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status, again.body) == (304, b"")
    assert fetch(address, "/", "HEAD").body == b""
    answer = fetch(address, "/url/a%2Fb/%C3%A4?q=%20", headers={"Host": "example.com"})
    assert json.loads(answer.body)["url"] == "http://example.com/url/a/b/ä?q=%20"
    assert json.loads(answer.body)["remote"] == "127.0.0.1"
    assert fetch(address, "/nowhere").status == 404 and fetch(address, "/form").status == 405
    assert fetch(address, "/error").status == 500
    daemon.wait_for_event("app_output", line="KeyError: 'in a view'", stream="stderr")
    # Two headers of one name are two headers.
    with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), PATIENCE) as sock:
        sock.sendall(b"GET /cookie HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        head = sock.makefile("rb").read().partition(b"\r\n\r\n")[0].lower()
    assert head.count(b"set-cookie: ") == 2


@pytest.mark.parametrize("preload", ["auto", "never"])
def test_a_django_site(daemon: Daemon, preload: str) -> None:
    site = daemon.app_folder / "mysite"
    site.mkdir()
    for name, text in (("__init__", ""), ("settings", DJANGO_SETTINGS), ("urls", DJANGO_URLS), ("wsgi", DJANGO_WSGI)):
        (site / f"{name}.py").write_text(text)
    (site / "big.bin").write_bytes(BIG)
    daemon.pool.update(
        app="mysite.wsgi:application",
        environment={"DJANGO_SETTINGS_MODULE": "mysite.settings"},
        preload=preload,
        warmup=["/"],
        health="/",
    )
    daemon.start()
    address = daemon.address
    assert fetch(address).text == "django"
    answer = fetch(address, "/form", "POST", b"a=1&a=2&b=%C3%A4", FORM)
    assert json.loads(answer.body) == {"post": {"a": ["1", "2"], "b": ["ä"]}, "files": {}, "method": "POST"}
    # More than Django keeps in memory: it goes through a temporary file.
    answer = fetch(address, "/form", "POST", multipart(b"content " * 400_000), MULTIPART)
    assert json.loads(answer.body)["files"] == {"file": "content " * 400_000}
    assert fetch(address, "/stream").text == "0\n1\n2\n3\n4\n"
    assert fetch(address, "/file").body == BIG
    answer = fetch(address, "/url/%C3%A4", headers={"Host": "example.com"})
    assert json.loads(answer.body)["url"] == "http://example.com/url/%C3%A4"
    assert fetch(address, "/nowhere").status == 404 and fetch(address, "/error").status == 500
    daemon.wait_for_event("app_output", line=lambda line: "somebody looked" in line)
    daemon.wait_for_event("app_output", line="KeyError: 'in a view'", stream="stderr")
    assert daemon.status()["pools"]["web"]["template"]["preload"] is (preload == "auto")


# --- a checked one over the whole surface ----------------------------------------------------------------------------

CHECKED = """
import io
from wsgiref.validate import validator

def checked(environ, start_response):
    path, method = environ["PATH_INFO"], environ["REQUEST_METHOD"]
    plain = [("Content-Type", "text/plain")]
    if path == "/file":
        start_response("200 OK", plain)
        return environ["wsgi.file_wrapper"](io.BytesIO(b"x" * 100_000), 8192)
    if path == "/write":
        write = start_response("200 OK", plain)
        write(b"one ")
        write(b"two ")
        return [b"three"]
    if path == "/generator":
        return generator(start_response)
    if path == "/empty":
        start_response("204 No Content", [])
        return []
    if path == "/again":
        start_response("200 OK", plain)
        try:
            raise ValueError("changed its mind")
        except ValueError:
            import sys
            start_response("418 I'm a teapot", plain, sys.exc_info())
        return [b"short and stout"]
    if path == "/lines":
        start_response("200 OK", plain)
        return [b"%d:" % len(line) for line in environ["wsgi.input"]]
    if path == "/read":
        start_response("200 OK", plain)
        taken = [environ["wsgi.input"].read(7)]
        while taken[-1]:
            taken.append(environ["wsgi.input"].read(1000))
        return [b"%d" % sum(map(len, taken))]
    start_response("200 OK", plain + [("Content-Length", "5")])
    environ["wsgi.errors"].write("noted\\n")
    return [b"", b"hel", b"lo"]

def generator(start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    for number in range(3):
        yield b"%d" % number
        yield b""

application = validator(checked)
"""


def test_a_validated_application_over_the_whole_surface(daemon: Daemon) -> None:
    daemon.write_module(CHECKED)
    daemon.start()
    for path, status, body in (
        ("/", 200, b"hello"),
        ("/%F0%9F%92%A9?q=%ff", 200, b"hello"),
        ("/file", 200, b"x" * 100_000),
        ("/write", 200, b"one two three"),
        ("/generator", 200, b"012"),
        ("/empty", 204, b""),
        ("/again", 418, b"short and stout"),
    ):
        answer = fetch(daemon.address, path)
        assert (answer.status, answer.body) == (status, body), path
        head = fetch(daemon.address, path, "HEAD")
        assert (head.status, head.body) == (status, b""), path
    for body in (b"", b"a\nbb\nccc", b"x" * 300_000):
        assert fetch(daemon.address, "/lines", "POST", body).text == "".join(
            f"{len(x)}:" for x in body.splitlines(True)
        )
        assert fetch(daemon.address, "/read", "POST", body).text == str(len(body))
        assert fetch(daemon.address, "/read", "PUT", iter([body or b"x"])).text == str(len(body) or 1)
    for method in ("OPTIONS", "DELETE", "PATCH"):
        assert fetch(daemon.address, "/", method).text == "hello"
    # Bodies that nobody reads do not disturb the next request.
    assert fetch(daemon.address, "/", "POST", b"x" * 300_000).text == "hello"
    assert not daemon.events("app_exception") and not daemon.events("worker_exit")
    assert "AssertionError" not in daemon.log and "WSGIWarning" not in daemon.log


# --- preload, warm-up, health ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (
            "import threading\nthreading.Thread(target=threading.Event().wait, name='poller', daemon=True).start()\n",
            "'poller'",
        ),
        ("import socket\nkept = socket.create_server(('127.0.0.1', 0))\n", "bound to 127.0.0.1:"),
        (
            "import sqlite3\nkept = sqlite3.connect('site.db')\nkept.execute('create table if not exists t (x)')\n",
            "site.db",
        ),
        ("import subprocess\nkept = subprocess.Popen(['sleep', '1000'])\nimport atexit\n", "(sleep)"),
    ],
    ids=["thread", "socket", "database", "process"],
)
def test_what_an_import_left_behind_is_named_and_each_worker_loads_for_itself(
    daemon: Daemon, head: str, words: str
) -> None:
    daemon.write_app(head=head)
    daemon.pool["workers"] = {"start": 1, "min_spare": 1, "max_spare": 1, "max": 1}
    daemon.start()
    event = daemon.wait_for_event("template_unsafe")
    assert words in event["findings"] and "preload" in event["effect"]
    assert daemon.status()["pools"]["web"]["template"]["preload"] is False
    assert fetch(daemon.address).text == "1"
    # It is found once a generation, and new code gets its chance.
    daemon.write_app(version="2")
    assert daemon.ask_reload() == ""
    assert fetch(daemon.address).text == "2"
    assert daemon.status()["pools"]["web"]["template"]["preload"] is True


def test_always_means_always(daemon: Daemon) -> None:
    daemon.write_app(head="import socket\nkept = socket.create_server(('127.0.0.1', 0))\n")
    daemon.pool["preload"] = "always"
    daemon.start()
    assert "bound to" in daemon.wait_for_event("template_unsafe")["findings"]
    assert daemon.status()["pools"]["web"]["template"]["preload"] is True
    assert fetch(daemon.address).text == "1"


WARM = """
import os
loaded_by, seen = os.getpid(), []

def application(environ, start_response):
    seen.append(f"{environ['PATH_INFO']} {os.getpid() == loaded_by}")
    start_response("503 No" if environ["PATH_INFO"] in bad else "200 OK", [])
    return [";".join(seen).encode()]

bad = set()
"""


def test_warm_up_happens_in_the_template_and_health_in_the_first_worker(daemon: Daemon) -> None:
    daemon.write_module(WARM)
    daemon.pool.update(warmup=["/a", "/b?c=d"], health="/health")
    daemon.pool["workers"] = {"start": 1, "min_spare": 1, "max_spare": 1, "max": 1}
    daemon.start()
    assert fetch(daemon.address).text == "/a True;/b True;/health False;/ False"
    assert [event["path"] for event in daemon.events("template_warmup", status=200)] == ["/a", "/b?c=d"]


def test_a_warm_up_that_fails_is_said_and_no_reason_not_to_serve(daemon: Daemon) -> None:
    daemon.write_module(WARM + "bad.add('/a')\n")
    daemon.pool["warmup"] = ["/a"]
    daemon.start()
    assert daemon.wait_for_event("template_warmup", path="/a", status=503).level == "warning"
    assert fetch(daemon.address).status == 200


def test_a_new_generation_that_is_not_well_is_refused(daemon: Daemon) -> None:
    daemon.write_module(WARM)
    daemon.pool["health"] = "/health"
    daemon.start()
    before = set(daemon.pids())
    daemon.write_module(WARM + "bad.add('/health')\n")
    assert "/health answered 503" in daemon.ask_reload()
    assert before <= set(daemon.pids())
    assert daemon.status()["master"]["generation"] == 1


def test_the_environment_of_a_pool_changes_with_a_reload(daemon: Daemon) -> None:
    daemon.write_app(tail="VERSION = os.environ['RELEASE']\n")
    daemon.pool["environment"] = {"RELEASE": "one"}
    daemon.start()
    assert fetch(daemon.address).text == "one"
    daemon.pool["environment"] = {"RELEASE": "two"}
    daemon.save()
    assert daemon.ask_reload() == ""
    assert fetch(daemon.address).text == "two"
    daemon.pool["environment"] = {}
    daemon.save()
    assert "KeyError: 'RELEASE'" in daemon.ask_reload()
    assert fetch(daemon.address).text == "two"


@pytest.mark.parametrize("loads", ["auto", "never"])
def test_an_application_that_forks_and_leaves_children_behind(daemon: Daemon, tmp_path: Path, loads: str) -> None:
    """They are adopted by the master, which reaps them, and ends those that are still there when the service stops."""
    daemon.pool["preload"] = loads
    daemon.write_app(
        tail="""
usual = application
def application(environ, start_response):
    if environ["PATH_INFO"].startswith("/spawn/"):
        import subprocess
        # Forked twice over: its parent is gone at once.
        subprocess.run(["sh", "-c", environ["PATH_INFO"].removeprefix("/spawn/") + " & "], stdout=2)
    return usual(environ, start_response)
"""
    )
    daemon.start()
    fetch(daemon.address, "/spawn/true")
    daemon.wait_for_event("stranger_exit", cause="exit code 0")
    fetch(daemon.address, "/spawn/sleep%20987")
    assert any("sleep 987" in title for title in daemon.processes().values())
    assert daemon.stop() == 0
    daemon.wait_alone()
