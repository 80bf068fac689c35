"""tools/bootstrap: which settings of pip's it follows, and that it installs nothing but the pip that is pinned."""

from __future__ import annotations

import base64
import hashlib
import http.server
import importlib.machinery
import importlib.util
import json
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest

SCRIPT = Path(__file__).parents[3] / "tools/bootstrap"
WHEEL = b"not really a wheel"


@pytest.fixture
def bootstrap(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The script as a module, on a machine where pip has no settings, with a wheel of our own pinned."""
    for name in list(os.environ):
        if name.startswith("PIP_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "XDG_CONFIG_HOME", "XDG_CONFIG_DIRS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    # The machine's own /etc/pip.conf is not ours to empty; a file named last wins over it.
    empty = tmp_path / "none.conf"
    empty.write_text("[global]\nextra-index-url =\nfind-links =\ncert =\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(empty))
    loader = importlib.machinery.SourceFileLoader("bootstrap", str(SCRIPT))
    spec = importlib.util.spec_from_loader("bootstrap", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    monkeypatch.setattr(module, "PIP_SHA256", hashlib.sha256(WHEEL).hexdigest())
    return module


class Index(http.server.BaseHTTPRequestHandler):
    """A package index that has pip and nothing else."""

    wheel: ClassVar[bytes] = WHEEL
    kind: ClassVar[str] = "text/html"
    password: ClassVar[str] = ""

    def do_GET(self) -> None:
        wanted = "Basic " + base64.b64encode(f"me:{self.password}".encode()).decode()
        if self.password and self.headers["Authorization"] != wanted:
            self.send_error(401)
            return
        name = "pip-25.3-py3-none-any.whl"
        if self.path == "/simple/pip/":
            if self.kind == "text/html":
                body = f'<a href="../../files/{name}#sha256=0">{name}</a><a href="other.whl">x</a>'.encode()
            else:
                body = json.dumps({"files": [{"filename": name, "url": f"../../files/{name}"}]}).encode()
        elif self.path == f"/files/{name}":
            body = self.wheel
        else:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Type", self.kind)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Silent."""


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Index) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"127.0.0.1:{server.server_address[1]}/simple"
        server.shutdown()
        thread.join()


def test_settings_come_in_pips_order(bootstrap: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    user = tmp_path / ".config/pip/pip.conf"
    user.parent.mkdir(parents=True)
    user.write_text("[global]\nindex-url = one\ntimeout = 3\n[install]\nproxy = two\n")
    named = tmp_path / "named.conf"
    named.write_text("[global]\nindex_url = three\n")
    assert bootstrap.pip_settings()["index-url"] == "one"
    monkeypatch.setenv("PIP_CONFIG_FILE", str(named))
    assert bootstrap.pip_settings()["index-url"] == "three"
    monkeypatch.setenv("PIP_INDEX_URL", "four")
    monkeypatch.setenv("PIP_PROXY", "")
    settings = bootstrap.pip_settings()
    assert (settings["index-url"], settings["timeout"], settings["proxy"]) == ("four", "3", "two")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    assert bootstrap.pip_settings() == {"index-url": "four"}


@pytest.mark.parametrize("kind", ["text/html", "application/vnd.pypi.simple.v1+json"])
def test_fetches_the_pinned_wheel(
    bootstrap: ModuleType, index: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Index, "kind", kind)
    assert bootstrap.fetch_pip({"index-url": f"http://{index}"}) == WHEEL


def test_refuses_another_wheel(bootstrap: ModuleType, index: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Index, "wheel", b"something else")
    with pytest.raises(bootstrap.CannotSetUp, match="SHA-256 differs"):
        bootstrap.fetch_pip({"index-url": f"http://{index}"})


def test_credentials_are_used_and_not_shown(bootstrap: ModuleType, index: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Index, "password", "s/ecret")
    assert bootstrap.fetch_pip({"index-url": f"http://me:s%2Fecret@{index}"}) == WHEEL
    with pytest.raises(bootstrap.CannotSetUp, match="401") as caught:
        bootstrap.fetch_pip({"index-url": f"http://me:wrong@{index}"})
    assert "wrong" not in str(caught.value)


def test_a_place_without_pip_is_followed_by_the_next(bootstrap: ModuleType, index: str) -> None:
    assert bootstrap.fetch_pip({"index-url": f"http://{index}/no/", "extra-index-url": f"http://{index}/"}) == WHEEL


def test_finds_links(bootstrap: ModuleType, tmp_path: Path) -> None:
    (tmp_path / bootstrap.PIP_WHEEL).write_bytes(WHEEL)
    assert bootstrap.fetch_pip({"no-index": "true", "find-links": str(tmp_path)}) == WHEEL
    with pytest.raises(bootstrap.CannotSetUp, match="no-index"):
        bootstrap.fetch_pip({"no-index": "true"})


def test_unreachable_index_says_what_to_do(bootstrap: ModuleType) -> None:
    with pytest.raises(bootstrap.CannotSetUp, match="PIP_INDEX_URL"):
        bootstrap.fetch_pip({"index-url": "http://127.0.0.1:1/simple"})


def test_does_not_touch_a_directory_that_is_something_else(bootstrap: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("data")
    with pytest.raises(bootstrap.CannotSetUp, match="not a virtual environment"):
        bootstrap.make_environment(tmp_path, "python3")
    assert (tmp_path / "precious").exists()


def test_names_the_directory_in_the_way(bootstrap: ModuleType, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    (closed / "bin").mkdir(parents=True)
    for parent in (tmp_path, *tmp_path.parents):
        if not parent.stat().st_mode & 0o001:
            assert bootstrap.closed_directory(closed / "bin/python") is not None
            return
    assert bootstrap.closed_directory(closed / "bin/python") is None
    closed.chmod(0o700)
    assert bootstrap.closed_directory(closed / "bin/python") == closed


def test_only_the_option_compiles(
    bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PREFORKD_COMPILED", "1")
    show = [sys.executable, "-c", "import os; print(os.environ['PREFORKD_COMPILED'])"]
    bootstrap.run(show, "")
    bootstrap.run(show, "", compiled=True)
    assert capfd.readouterr().out == "0\n1\n"
