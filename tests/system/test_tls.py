"""TLS as operators and clients meet it: certificates that change under load, sessions that any worker resumes, keys
that only root can read, and what an inspector says of it all."""

from __future__ import annotations

import contextlib
import copy
import http.client
import json
import pwd
import re
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

from tests.support.certificates import Authority
from tests.system.daemon import PATIENCE, Daemon, free_port
from tests.system.shell import Shell, python_for_nobody

APPLICATION = """
import json

answers_gates = application

def application(environ, start_response):
    if environ["PATH_INFO"].startswith("/gate/"):
        return answers_gates(environ, start_response)
    told = {key: value for key, value in environ.items() if key.startswith(("SSL_", "wsgi.url_scheme"))}
    body = json.dumps({"pid": os.getpid(), **told}).encode()
    headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
    start_response("200 OK", headers)
    return [body]
"""


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "authority")


@pytest.fixture
def secure(daemon: Daemon, authority: Authority) -> Daemon:
    """A daemon with a certificate for ``a.test``; not started yet."""
    return secured(daemon, authority)


def secured(daemon: Daemon, authority: Authority, **tls: Any) -> Daemon:
    certificate = authority.issue("a.test", "127.0.0.1")
    daemon.pool["listen"] = {"address": "systemd:web", "tls": {"certificate": str(certificate), **tls}}
    daemon.write_app(tail=APPLICATION)
    return daemon


class Secure(http.client.HTTPSConnection):
    """A client's connection to a daemon, whose certificate is for ``a.test``."""

    def __init__(
        self, address: str, context: ssl.SSLContext, session: ssl.SSLSession | None = None, name: str = "a.test"
    ) -> None:
        super().__init__(name, timeout=PATIENCE, context=context)
        self._address = address
        self._tls = context
        self._wanted = session

    def connect(self) -> None:
        if self._address.startswith("unix:"):
            sock = socket.socket(socket.AF_UNIX)
            sock.settimeout(PATIENCE)
            sock.connect(self._address.removeprefix("unix:"))
        else:
            host, _, port = self._address.rpartition(":")
            sock = socket.create_connection((host, int(port)), PATIENCE)
        self.sock = self._tls.wrap_socket(sock, server_hostname=self.host, session=self._wanted)

    def ask(self, path: str = "/", **headers: str) -> dict[str, Any]:
        """One request."""
        self.request("GET", path, headers=headers)
        response = self.getresponse()
        body = response.read()
        assert response.status == 200, body
        answer: dict[str, Any] = json.loads(body)
        return answer

    @property
    def serial(self) -> str:
        """Of the certificate that the server has shown."""
        certificate = self.sock.getpeercert()
        assert certificate is not None
        return str(certificate["serialNumber"])


def ask(address: str, context: ssl.SSLContext, **options: Any) -> dict[str, Any]:
    with contextlib.closing(Secure(address, context, **options)) as connection:
        return connection.ask()


class Load:
    """Threads that ask without a pause, over kept and over fresh connections; every failure is kept."""

    def __init__(self, address: str, context: ssl.SSLContext) -> None:
        self.address = address
        self._context = context
        self.failures: list[str] = []
        self.serials: list[str] = []
        self.count = 0
        self._news = threading.Condition()
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(keep,)) for keep in (True, True, False, False)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        self.wait(20)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def _run(self, keep: bool) -> None:
        connection = Secure(self.address, self._context)
        while not self._stopped.is_set():
            try:
                connection.ask(**({} if keep else {"Connection": "close"}))
            except Exception as error:  # whatever it is, it is a failure
                self.failures.append(repr(error))
                connection.close()
            with self._news:
                self.count += 1
                self._news.notify_all()
            self._stopped.wait(0.002)
        connection.close()

    def wait(self, count: int) -> None:
        """Until so many more requests have ended."""
        with self._news:
            wanted = self.count + count
            assert self._news.wait_for(lambda: self.count >= wanted, PATIENCE), self.failures


# --- it serves -------------------------------------------------------------------------------------------------------


def test_curl_and_its_verdict(secure: Daemon, authority: Authority) -> None:
    if shutil.which("curl") is None:
        pytest.skip("the command curl is missing")
    secure.start()
    port = secure.address.rpartition(":")[2]
    common = ["curl", "-sS", "--max-time", "20", "--cacert", str(authority.file), "--noproxy", "*"]
    for version in ("1.2", "1.3"):
        done = subprocess.run(
            [*common, f"--tlsv{version}", "--tls-max", version, "--resolve", f"a.test:{port}:127.0.0.1",
             f"https://a.test:{port}/", f"https://a.test:{port}/"],
            capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        assert done.stdout.count(f'"SSL_PROTOCOL": "TLSv{version}"') == 2
    plain = subprocess.run(
        [*common, f"http://{secure.address}/"], capture_output=True, text=True, timeout=60, check=True
    )
    assert "this port speaks TLS" in plain.stdout


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
def test_a_session_is_resumed_by_every_worker(daemon: Daemon, authority: Authority, version: str) -> None:
    secured(daemon, authority).pool["workers"] = {"start": 4, "min_spare": 1, "max_spare": 4, "max": 4}
    daemon.start()
    context = authority.client(version=version)
    with contextlib.closing(Secure(daemon.address, context)) as first:
        first.ask()
        session = first.sock.session
    with contextlib.ExitStack() as stack:
        busy: set[int] = set()
        for number in range(4):
            # Whoever is busy accepts nobody, so the next one comes to another worker.
            connection = stack.enter_context(contextlib.closing(Secure(daemon.address, context, session)))
            connection.request("GET", "/gate/one")
            busy.add(int(connection.getresponse().headers["X-Worker-Pid"]))
            assert connection.sock.session_reused, f"not by worker {number}"
        assert busy == set(daemon.pids()) and len(busy) == 4
        (daemon.gates / "one").touch()


def test_openssls_client_resumes(secure: Daemon, authority: Authority, tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("the command openssl is missing")
    secure.start()

    def visit(*options: str) -> str:
        done = subprocess.run(
            ["openssl", "s_client", "-connect", secure.address, "-servername", "a.test", "-CAfile",
             str(authority.file), "-verify_return_error", "-ign_eof", *options],
            input="GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n",
            capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        return done.stdout

    for version in ("-tls1_2", "-tls1_3"):
        file = str(tmp_path / f"session{version}")
        assert re.search(r"(?m)^New, TLSv1\.[23]", visit(version, "-sess_out", file))
        again = visit(version, "-sess_in", file)
        assert re.search(r"(?m)^Reused, TLSv1\.[23]", again) and '"SSL_SESSION_RESUMED": "Resumed"' in again


def test_half_handshakes_do_not_keep_others_out(daemon: Daemon, authority: Authority) -> None:
    secured(daemon, authority).pool["workers"] = {"start": 4, "min_spare": 1, "max_spare": 4, "max": 4}
    daemon.pool["timeouts"]["header"] = "60s"
    daemon.start()
    host, _, port = daemon.address.rpartition(":")
    out = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        authority.client().wrap_bio(ssl.MemoryBIO(), out, server_hostname="a.test").do_handshake()
    flight = out.read()
    with contextlib.ExitStack() as stack:
        for number in range(200):
            half = stack.enter_context(socket.create_connection((host, int(port)), PATIENCE))
            half.sendall(flight if number % 2 else flight[:100])
        began = time.monotonic()
        for _ in range(10):
            assert ask(daemon.address, authority.client())["SSL_PROTOCOL"] == "TLSv1.3"
        assert time.monotonic() - began < 5, "a tenth of that is slow"


def test_a_unix_socket_and_two_pools(secure: Daemon, authority: Authority, tmp_path: Path) -> None:
    path = tmp_path / "web.sock"
    here = secure.pool["listen"]
    plain = f"127.0.0.1:{free_port()}"
    secure.settings["pools"]["plain"] = copy.deepcopy({**secure.pool, "listen": plain})
    secure.pool["listen"] = [here, copy.deepcopy({**here, "address": f"unix:{path}"})]
    secure.start()
    for address in (secure.address, f"unix:{path}"):
        assert ask(address, authority.client())["wsgi.url_scheme"] == "https"
    connection = http.client.HTTPConnection(plain, timeout=PATIENCE)
    connection.request("GET", "/")
    assert json.loads(connection.getresponse().read())["wsgi.url_scheme"] == "http"
    connection.close()
    # Only who speaks TLS has OpenSSL in memory, and the master never.
    loaded = {name: uses_openssl(secure.pids(name)[0]) for name in ("web", "plain")}
    assert loaded == {"web": True, "plain": False} and not uses_openssl(secure.pid)
    assert secure.stop() == 0
    path.unlink(missing_ok=True)


def uses_openssl(pid: int) -> bool:
    return "_ssl." in Path(f"/proc/{pid}/maps").read_text()


def test_without_preload_the_template_reads_the_keys_all_the_same(secure: Daemon, authority: Authority) -> None:
    secure.pool["preload"] = "never"
    secure.start()
    context = authority.client()
    first = Secure(secure.address, context)
    first.ask()
    assert ask(secure.address, context, session=first.sock.session)["SSL_SESSION_RESUMED"] == "Resumed"
    first.close()


def test_keys_that_only_root_can_read(as_nobody: Daemon, authority: Authority) -> None:
    secured(as_nobody, authority)
    certificate = Path(as_nobody.pool["listen"]["tls"]["certificate"])
    certificate.chmod(0o400)
    as_nobody.start(executable=python_for_nobody())
    assert ask(as_nobody.address, authority.client())["SSL_PROTOCOL"] == "TLSv1.3"
    assert status_uid(as_nobody.pids()[0]) == pwd.getpwnam("nobody").pw_uid
    as_nobody.write_app(version="2", tail=APPLICATION)
    assert as_nobody.ask_reload() == ""
    assert ask(as_nobody.address, authority.client())


def status_uid(pid: int) -> int:
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("Uid:"))
    return int(line.split()[2])


# --- certificates that change ----------------------------------------------------------------------------------------


def test_a_reload_serves_the_new_certificate_and_loses_nobody(secure: Daemon, authority: Authority) -> None:
    secure.start()
    context = authority.client()
    before = Secure(secure.address, context)
    before.ask()
    old = before.serial
    with Load(secure.address, context) as load:
        for _ in range(3):
            authority.issue("a.test", "127.0.0.1")
            assert secure.ask_reload() == ""
            load.wait(40)
    assert load.failures == [] and load.count > 150
    after = Secure(secure.address, context)
    after.ask()
    assert after.serial != old
    before.close()
    after.close()


def test_a_broken_certificate_fails_the_reload_and_the_old_one_goes_on(secure: Daemon, authority: Authority) -> None:
    secure.start()
    context = authority.client()
    file = Path(secure.pool["listen"]["tls"]["certificate"])
    good = file.read_text()
    with Load(secure.address, context) as load:
        for text, why in (
            (good[: len(good) // 2], "is damaged"),
            (good.replace("BEGIN CERTIFICATE", "END CERTIFICATE"), "holds no certificate in PEM form"),
            (authority.issue("x.test", days=-1).read_text(), "expired on"),
        ):
            file.write_text(text)
            answer = secure.ask_reload()
            assert why in answer and str(file) in answer and "pools.web.listen" in answer
            load.wait(20)
    assert load.failures == [] and {worker["generation"] for worker in secure.workers()} == {1}


def test_a_service_starts_with_an_expired_certificate_and_says_so(secure: Daemon, authority: Authority) -> None:
    file = authority.issue("a.test", days=-2)
    secure.pool["listen"]["tls"]["certificate"] = str(file)
    assert "expired" not in secure.log
    secure.start()
    event = secure.wait_for_event("certificate_expires", file=str(file))
    assert event.level == "warning" and "UTC" in event["when"]
    context = authority.client()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    assert ask(secure.address, context)["SSL_PROTOCOL"] == "TLSv1.3"
    done = secure.command("check", str(secure.config_file))
    assert done.code == 1 and f"{file} expired on" in done.text


# --- the command line ------------------------------------------------------------------------------------------------


def test_check_names_place_file_and_remedy(shell: Shell, authority: Authority) -> None:
    certificate, key = authority.split(authority.issue("a.test"))
    _, other = authority.split(authority.issue("b.test"))
    shell.pool["listen"] = {
        "address": "127.0.0.1:0",
        "tls": {"certificate": str(certificate), "key": str(other), "ciphers": "NONSENSE"},
    }
    done = shell.run("check", str(shell.file))
    assert done.code == 1
    assert re.search(
        rf"preforkd\.yaml:\d+:\d+: pools\.web\.listen\S*\.tls\.key: the private key in {other} does not", done.text
    )
    assert "tls.ciphers: OpenSSL knows no cipher 'NONSENSE'" in done.text
    shell.pool["listen"]["tls"] = {"certificate": str(certificate), "key": str(key)}
    assert shell.run("check", str(shell.file)).code == 0


def test_single_speaks_tls(secure: Daemon, authority: Authority) -> None:
    secure.notify = False
    secure.listen_on({**secure.pool["listen"], "address": f"127.0.0.1:{free_port()}"})
    secure.start("run", "--single", str(secure.config_file), ready=False)
    secure.wait_for_event("serving")
    assert ask(secure.address, authority.client())["SSL_PROTOCOL"] == "TLSv1.3"
    secure.signal(15)
    assert secure.wait_exit() == 0


# --- an inspector ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_sslyze_finds(secure: Daemon, authority: Authority, tmp_path: Path) -> None:
    if subprocess.run([sys.executable, "-c", "import sslyze"], capture_output=True, check=False).returncode:
        pytest.skip("sslyze is not installed")
    secure.pool["listen"]["tls"]["certificate"] = [
        str(authority.issue("a.test", "127.0.0.1", rsa=True, file="rsa.pem")),
        str(authority.issue("a.test", "127.0.0.1", file="ec.pem")),
    ]
    secure.start()
    out = tmp_path / "found.json"
    subprocess.run(
        [sys.executable, "-m", "sslyze", "--json_out", str(out), "--certinfo", "--certinfo_ca_file",
         str(authority.file),
         "--sslv2", "--sslv3", "--tlsv1", "--tlsv1_1", "--tlsv1_2", "--tlsv1_3", "--compression", "--reneg", "--resum",
         "--heartbleed", "--openssl_ccs", "--robot", "--early_data", "--elliptic_curves", "--sni", "a.test",
         secure.address],
        capture_output=True, text=True, timeout=170, check=False,
    )  # fmt: skip
    (target,) = json.loads(out.read_text())["server_scan_results"]
    found = {name: one["result"] for name, one in target["scan_result"].items() if one and one["status"] == "COMPLETED"}
    for old in ("ssl_2_0", "ssl_3_0", "tls_1_0", "tls_1_1"):
        assert found[f"{old}_cipher_suites"]["accepted_cipher_suites"] == [], old
    for new in ("tls_1_2", "tls_1_3"):
        names = [one["cipher_suite"]["name"] for one in found[f"{new}_cipher_suites"]["accepted_cipher_suites"]]
        assert names and all(re.search("GCM|CHACHA20", name) for name in names), names
        assert new == "tls_1_3" or all("ECDHE" in name for name in names), names
    assert not found["tls_compression"]["supports_compression"]
    renegotiation = found["session_renegotiation"]
    assert (
        not renegotiation["is_vulnerable_to_client_renegotiation_dos"]
        and renegotiation["supports_secure_renegotiation"]
    )
    resumption = found["session_resumption"]
    assert resumption["tls_ticket_resumption_result"] == "FULLY_SUPPORTED"
    assert not found["heartbleed"]["is_vulnerable_to_heartbleed"]
    assert not found["openssl_ccs_injection"]["is_vulnerable_to_ccs_injection"]
    assert found["robot"]["robot_result"].startswith("NOT_VULNERABLE")
    assert not found["tls_1_3_early_data"]["supports_early_data"]
    assert "X25519" in [curve["name"] for curve in found["elliptic_curves"]["supported_curves"]]
    deployments = found["certificate_info"]["certificate_deployments"]
    assert len(deployments) == 2, "RSA and ECDSA"
    assert all(deployment["received_chain_has_valid_order"] for deployment in deployments)
