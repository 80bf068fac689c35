"""Finding the application, and explaining to its developer why it cannot be found."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from preforkd import handlers
from preforkd.config import Pool
from preforkd.errors import LoadError
from preforkd.handlers.wsgi import WSGI

APP = """
import os
from os.path import join  # a helper from elsewhere
CONSTANT = 3
def application(environ, start_response):
    start_response("200 OK" if environ["PATH_INFO"] == "/" else "404 Not Found", [])
    return [os.getcwd().encode()]
def create_app():
    return application
def broken_factory():
    raise ValueError("no database")
async def asgi(scope, receive, send): ...
def other(environ, start_response, more): ...
class Callable:
    def __call__(self, environ, start_response): raise RuntimeError("at run time")
class Async:
    async def __call__(self, scope, receive, send): ...
instance = Callable()
async_instance = Async()
class Box:
    inner = application
"""


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Path]:
    """A directory with applications; path, working directory and modules are as before after the test."""
    (tmp_path / "bench_site.py").write_text(APP)
    (tmp_path / "bench_broken.py").write_text("import os\ndef helper():\n    return 1 / 0\nhelper()\n")
    (tmp_path / "bench_syntax.py").write_text("def f(:\n")
    (tmp_path / "bench_needs.py").write_text("import bench_not_there\n")
    (tmp_path / "bench_exits.py").write_text("raise SystemExit(3)\n")
    (tmp_path / "bench_empty.py").write_text("")
    path, directory, modules = list(sys.path), os.getcwd(), set(sys.modules)
    yield tmp_path
    sys.path[:] = path
    os.chdir(directory)
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def load(site: Path, app: str) -> WSGI:
    return WSGI.load(Pool(name="web", listen=(), app=app, directory=str(site)), config_path="/etc/x.yaml")


@pytest.mark.parametrize(
    "app", ["bench_site", "bench_site:application", "bench_site:create_app()", "bench_site:Box.inner"]
)
def test_loaded(site: Path, app: str) -> None:
    handler = load(site, app)
    assert handler.probe("/") == 200
    assert handler.probe("/nowhere?x") == 404
    assert handler.probe("no path") == 400
    assert sys.path[0] == str(site)
    assert Path.cwd() == site


REFUSED = {
    "bench_sight": "there is no module 'bench_sight' in DIR nor elsewhere on sys.path; did you mean 'bench_site'?",
    "zzz:app": "there is no module 'zzz' in DIR nor elsewhere on sys.path; is `directory:` right?",
    "bench_site:aplication": "module bench_site (DIR/bench_site.py) has no attribute 'aplication'; "
    "did you mean 'application'?",
    "bench_site:zzz": "it has bench_site:application, bench_site:create_app(), bench_site:",
    "bench_empty": "nothing in it can be called",
    "bench_site:CONSTANT": "bench_site:CONSTANT is an int, not an application that can be called; "
    "it has bench_site:application",
    "bench_site:CONSTANT()": "CONSTANT is an int and cannot be called",
    "bench_site:create_app": "takes no arguments: a factory? Then write bench_site:create_app()",
    "bench_site:other": "does not take the two arguments of WSGI",
    "bench_site:asgi": "probably an ASGI application",
    "bench_site:async_instance": "probably an ASGI application",
    "bench_site:broken_factory()": "ValueError: no database",
    "bench_broken": "ZeroDivisionError: division by zero",
    "bench_syntax": "SyntaxError",
    "bench_needs": "ModuleNotFoundError: No module named 'bench_not_there'",
    "bench_exits": "SystemExit: 3",
}


@pytest.mark.parametrize(("app", "text"), REFUSED.items(), ids=REFUSED)
def test_refused(site: Path, app: str, text: str) -> None:
    with pytest.raises(LoadError) as failure:
        load(site, app)
    said = str(failure.value)
    assert app in said
    assert text.replace("DIR", str(site)) in said


def test_the_traceback_is_the_applications(site: Path) -> None:
    with pytest.raises(LoadError) as failure:
        load(site, "bench_broken")
    said = str(failure.value)
    assert "return 1 / 0" in said
    assert "importlib" not in said
    assert "preforkd" not in said


def test_a_missing_directory(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="cannot enter directory"):
        load(tmp_path / "missing", "x")


def test_a_probe_that_fails_tells(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert load(site, "bench_site:instance").probe("/") == 500
    said = capsys.readouterr().err
    assert "RuntimeError: at run time" in said
    assert "GET /" in said


def test_handlers_by_name() -> None:
    assert handlers.load("wsgi") is WSGI
    assert handlers.load("preforkd.handlers.wsgi:WSGI") is WSGI
    for name in ("nothing", "preforkd.nothing:x", "preforkd.handlers.wsgi:Nothing"):
        with pytest.raises(LoadError, match="handler: "):
            handlers.load(name)
