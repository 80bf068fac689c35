"""Keys and values: every class of mistake with its place and sentence, and what is right."""

# ruff: noqa: E501 - a case and its sentence stand in one line

from __future__ import annotations

from collections.abc import Callable

import pytest

from preforkd.config import Body, Config, Limits, Listen, Log, Pool, Recycle, Timeouts, Workers, read_text

from .conftest import POOL, Said

EVERYBODY = 'write 127.0.0.1:80 for this machine alone, or ["0.0.0.0:80", "[::]:80"] for everybody'

FULL = """\
user: www-data
group: 1000
pid_file: run/x.pid
control: /run/x.sock
umask: 0027
log: {level: debug, errors: syslog, access: access.log, format: '%h %>s'}
pools:
  web:
    listen: ["0.0.0.0:80", "[::]:80", {address: "unix:/run/w.sock", mode: 0660, owner: a, group: b, proxy_protocol: unix}, systemd:web]
    model: process
    handler: wsgi
    app: mysite.wsgi
    directory: site
    environment: {A: 1, B: "", C: yes, D: 0660}
    user: me
    group: us
    umask: 0007
    preload: never
    warmup: /
    health: /health
    trusted_proxies: [127.0.0.1, 2001:DB8::/32, unix]
    forwarded: [x-forwarded-for, x-forwarded-host]
    workers: {start: 1, min_spare: 2, max_spare: 3, max: 4}
    recycle: {requests: 1000, jitter: 5%, memory: 200M, age: 1d}
    timeouts: {start: 1s, request: 2s, graceful: 3s, header: 4s, body: 5s, keepalive: 0, send: 7s, queue: 8s,
               probation: 500ms}
    limits: {line: 4K, header: 16K, fields: 50, body: 1M, rate: 1K, backlog: 128, files: 1024, core: 1G}
    body: {buffer: 2M, memory: 32K, directory: /var/spool/x}
  api-2_x: {listen: 127.0.0.1:81, app: api:app}
"""


def test_everything_at_once() -> None:
    config = read_text(FULL, "/etc/preforkd/preforkd.yaml")
    assert config == Config(
        path="/etc/preforkd/preforkd.yaml",
        files=("/etc/preforkd/preforkd.yaml",),
        digest=config.digest,
        user="www-data",
        group="1000",
        pid_file="/etc/preforkd/run/x.pid",
        control="/run/x.sock",
        umask=0o027,
        log=Log("debug", "syslog", "/etc/preforkd/access.log", "%h %>s"),
        pools={
            "web": Pool(
                name="web",
                listen=(
                    Listen("0.0.0.0:80", "tcp", host="0.0.0.0", port=80),
                    Listen("[::]:80", "tcp", host="::", port=80),
                    Listen(
                        "unix:/run/w.sock",
                        "unix",
                        path="/run/w.sock",
                        mode=0o660,
                        owner="a",
                        group="b",
                        proxy_protocol=("unix",),
                    ),
                    Listen("systemd:web", "systemd", name="web"),
                ),
                app="mysite.wsgi:application",
                directory="/etc/preforkd/site",
                environment={"A": "1", "B": "", "C": "yes", "D": "0660"},
                user="me",
                group="us",
                umask=0o007,
                preload="never",
                warmup=("/",),
                health="/health",
                trusted_proxies=("127.0.0.1", "2001:db8::/32", "unix"),
                forwarded=("x-forwarded-for", "x-forwarded-host"),
                workers=Workers(1, 2, 3, 4),
                recycle=Recycle(1000, 0.05, 200 << 20, 86400.0),
                timeouts=Timeouts(1.0, 2.0, 3.0, 4.0, 5.0, 0.0, 7.0, 8.0, 0.5),
                limits=Limits(4 << 10, 16 << 10, 50, 1 << 20, 1 << 10, 128, 1024, 1 << 30),
                body=Body(2 << 20, 32 << 10, "/var/spool/x"),
            ),
            "api-2_x": Pool(name="api-2_x", listen=(Listen.of("127.0.0.1:81"),), app="api:app"),
        },
    )
    assert list(config.pools) == ["web", "api-2_x"]


@pytest.mark.parametrize(
    "text", ["log:\n", "log: {}\n", "log: null\n", "include:\n", "include: []\n", "user: null\n", "---\n", "# a\n"]
)
def test_what_is_empty_is_its_default(text: str) -> None:
    config = read_text(text + POOL)
    assert (config.log, config.user) == (Log(), None)


@pytest.mark.parametrize(
    "setting",
    [
        "workers:",
        "recycle: {}",
        "environment: null",
        "warmup: []",
        "warmup:",
        "directory: null",
        "forwarded:",
        "trusted_proxies: []",
    ],
)
def test_what_is_empty_in_a_pool_is_its_default(setting: str, pool_of: Callable[[str], Config]) -> None:
    assert pool_of(setting).pools["web"] == pool_of("").pools["web"]


@pytest.mark.parametrize(
    ("text", "mistakes"),
    [
        # Keys.
        ("usr: me\n", ["1:1: usr: unknown key; did you mean user?"]),
        ("pid-file: /x\n", ["1:1: pid-file: unknown key; did you mean pid_file?"]),
        ("PidFile: /x\n", ["1:1: PidFile: unknown key; did you mean pid_file?"]),
        ("xyzzy: 1\n", ["1:1: xyzzy: unknown key; known here: user, group, pid_file, control, umask, include, log, pools"]),
        ("app: a:b\n", ["1:1: app: unknown key; `app` belongs into a pool: pools.web.app"]),
        ("start: 3\n", ["1:1: start: unknown key; `start` belongs into a pool: pools.web.workers.start or pools.web.timeouts.start"]),
        ("level: info\n", ["1:1: level: unknown key; `level` belongs elsewhere: log.level"]),
        ("log: {pid_file: /x}\n", ["1:7: log.pid_file: unknown key; `pid_file` belongs to the top level of the main file"]),
        ("log: {levle: info}\n", ["1:7: log.levle: unknown key; did you mean level?"]),
        ("log: {lisen: x}\n", ["1:7: log.lisen: unknown key; `listen` belongs into a pool: pools.web.listen (if listen was meant)"]),
        ("'': me\n", ["1:1: a key is missing before the colon"]),
        ('"a b": 1\n', ["1:1: 'a b': unknown key; known here: user, group, pid_file, control, umask, include, log, pools"]),
        # Words of other programs, and of later versions.
        ("bind: x\n", ["1:1: bind: unknown key; what gunicorn calls bind is pools.web.listen here"]),
        ("MaxRequestWorkers: 9\n", ["1:1: MaxRequestWorkers: unknown key; what Apache calls MaxRequestWorkers is pools.web.workers.max here"]),
        ("worker-processes: 9\n", ["1:1: worker-processes: unknown key; what nginx calls worker_processes is pools.web.workers.max here"]),
        ("daemonize: x\n", ["1:1: daemonize: unknown key; what uWSGI calls daemonize is log.errors here"]),
        ("vacuum: true\n", ["1:1: vacuum: unknown key; uWSGI has it: sockets and pid file are always removed at the end; remove it"]),
        ("status: {listen: x}\n", ["1:1: status: the status page does not exist in this version yet; remove the key"]),
        ("tls: {}\n", ["1:1: tls: unknown key; `tls` belongs into a pool: pools.web.listen.tls"]),
        # Values.
        ("umask: 9\n", ["1:8: umask: '9' is not an octal mode; write three digits from 0 to 7, such as 0660"]),
        ("umask: [022]\n", ["1:8: umask: is a list where one octal mode belongs; write for example 0022"]),
        ("umask: {a: b}\n", ["1:8: umask: is a section where one octal mode belongs; write for example 0022"]),
        ("umask:\n", ["1:7: umask: has no value; write for example 0022, or remove the line for the default"]),
        ("umask: null\n", ["1:8: umask: is null; write for example 0022, or remove the line for the default"]),
        ("user:\n", ["1:6: user: has no value; write for example www-data, or write null for none"]),
        ("user: ~\n", ["1:7: user: is ~; write for example www-data, or write null for none"]),
        ("user: ''\n", ["1:7: user: an empty text is not a user name; write for example www-data"]),
        ("pid_file: ~/x.pid\n", ["1:11: pid_file: '~/x.pid': ~ is not expanded, for it would be another folder for root; write the path in full"]),
        ("pid_file: /run/a\n  control /run/b\n", [r"1:11: pid_file: '/run/a control /run/b' has more than one line; put text with line breaks in quotes (it goes on in the next line; is a colon missing there?)"]),
        ("pid_file: /run/a\ncontrol: /run/a\n", ["2:10: control: is the same file as pid_file; write two different paths"]),
        ("log: stderr\n", ["1:6: log: 'stderr' is one value where a section of settings belongs; write for example {level: info, errors: stderr}"]),
        ("log: [a]\n", ["1:6: log: this is a list where a section of settings belongs; write for example {level: info, errors: stderr}"]),
        ("log: {level: warn, access: 'no'}\n", ["1:14: log.level: 'warn' is unknown; did you mean warning?", "1:28: log.access: 'no' is unknown; write off"]),
        ("include: [a, [b], '', {c: d}]\n", [
            "1:14: include[1]: is a list where one pattern belongs; write for example conf.d/*.yaml",
            "1:19: include[2]: an empty text is not a path; write a file's path",
            "1:23: include[3]: is a section where one pattern belongs; write for example conf.d/*.yaml",
        ]),
        # Two in one place, three in one file: all are told.
        ("usr: a\nlog: {level: x, xyzzy: 1}\n", [
            "1:1: usr: unknown key; did you mean user?",
            "2:14: log.level: 'x' is unknown; write debug, info, warning or error",
            "2:17: log.xyzzy: unknown key; known here: level, errors, access, format",
        ]),
    ],
)  # fmt: skip
def test_mistakes_outside_of_pools(text: str, mistakes: list[str], said: Said) -> None:
    assert said(text + POOL) == mistakes


@pytest.mark.parametrize(
    ("settings", "mistakes"),
    [
        ("modle: process", ["3:7: pools.web.modle: unknown key; did you mean model?"]),
        ("max: 3", ["3:7: pools.web.max: unknown key; `max` belongs elsewhere: pools.web.workers.max"]),
        ("timeout: 30s", ["3:7: pools.web.timeout: unknown key; what gunicorn calls timeout is pools.web.timeouts.request here"]),
        ("pm.max_children: 5", ["3:7: pools.web.pm.max_children: unknown key; what php-fpm calls pm.max_children is pools.web.workers.max here"]),
        ("worker_class: sync", ["3:7: pools.web.worker_class: unknown key; what gunicorn calls worker_class is pools.web.model here"]),
        ("env: {}", ["3:7: pools.web.env: unknown key; what gunicorn calls env is pools.web.environment here"]),
        ("name: web", ["3:7: pools.web.name: unknown key; a pool's name is its key below pools"]),
        ("certfile: x", ["3:7: pools.web.certfile: unknown key; what gunicorn calls certfile is pools.web.listen.tls.certificate here"]),
        ("threads: 4", ["3:7: pools.web.threads: the model thread does not exist in this version yet; remove the key"]),
        ("model: thread", ["3:14: pools.web.model: 'thread' does not exist in this version yet; it has process"]),
        ("model: gthread", ["3:14: pools.web.model: 'gthread' would be thread here, which does not exist in this version yet; it has process"]),
        ("model: sync", ["3:14: pools.web.model: 'sync' is unknown; did you mean process?"]),
        ("model: proces", ["3:14: pools.web.model: 'proces' is unknown; did you mean process?"]),
        ("handler: asgi", ["3:16: pools.web.handler: 'asgi' does not exist in this version yet; it has wsgi"]),
        ("handler: 'my.module:Handler'", ["3:16: pools.web.handler: handlers of one's own ('my.module:Handler') do not exist in this version yet; it has wsgi"]),
        ("handler: wsgy", ["3:16: pools.web.handler: 'wsgy' is unknown; did you mean wsgi?"]),
        ("preload: true", ["3:16: pools.web.preload: 'true' is unknown; did you mean always?"]),
        ("timeouts: {start: 30 seconds}", ["3:25: pools.web.timeouts.start: '30 seconds' is not a duration; write 30s"]),
        ("timeouts: 30s", ["3:17: pools.web.timeouts: '30s' is one value where a section of settings belongs; write for example {start: …, request: …}"]),
        ("workers: 4", ["3:16: pools.web.workers: '4' is one value where a section of settings belongs; write for example {max: 4}"]),
        ("workers: {threads: 4}", ["3:17: pools.web.workers.threads: the model thread does not exist in this version yet; remove the key"]),
        ("workers: {max: 0}", ["3:22: pools.web.workers.max: 0 is too small; at least 1"]),
        ("workers: {start: 9, max: 8}", ["3:24: pools.web.workers.start: 9 is more than max (8); raise max or lower start"]),
        ("workers: {start: 300}", ["3:24: pools.web.workers.start: 300 is more than max (256, the default); raise max or lower start"]),
        ("workers: {min_spare: 9, max_spare: 8, max: 4}", [
            "3:28: pools.web.workers.min_spare: 9 is more than max (4); raise max or lower min_spare",
            "3:28: pools.web.workers.min_spare: 9 is more than max_spare (8); raise max_spare or lower min_spare",
        ]),
        ("environment: [A=1]", ["3:20: pools.web.environment: is not a section of names with values; write for example {DJANGO_SETTINGS_MODULE: mysite.settings}"]),
        ("environment: {1A: x}", ["3:21: pools.web.environment: '1A' is not a name; letters, digits and _ make one, not beginning with a digit"]),
        ("environment: {A: }", ['3:24: pools.web.environment.A: has no value; write "" for an empty text']),
        ("environment: {A: [b]}", ["3:24: pools.web.environment.A: is a list where one text belongs; put it in quotes"]),
        ("environment: {A: b, A: c}", ["3:27: pools.web.environment.A: is here twice; the first is in line 3"]),
        ("warmup: [/, x]", ["3:19: pools.web.warmup[1]: 'x' does not begin with /; write /x"]),
        ("warmup: [/, ]\n      health: off", ["4:15: pools.web.health: 'off' does not begin with /; write /off"]),
        ("directory: ~", ["3:18: pools.web.directory: is ~; write for example /srv/mysite, or write null for none"]),
        ("umask: 0999", ["3:14: pools.web.umask: '0999' is not an octal mode; write three digits from 0 to 7, such as 0660"]),
    ],
)  # fmt: skip
def test_mistakes_in_a_pool(settings: str, mistakes: list[str], said: Said) -> None:
    text = f'pools:\n  web:\n      {settings}\n      listen: "127.0.0.1:80"\n      app: a:b\n'
    assert said(text) == mistakes


@pytest.mark.parametrize(
    ("listen", "mistakes"),
    [
        ("'*:80'", [f"1:23: pools.web.listen: '*:80' does not say on which address; {EVERYBODY}"]),
        ("80", [f"1:23: pools.web.listen: '80' does not say on which address; {EVERYBODY}"]),
        ("['1.2.3.4:80', '1.2.3.4:80']", ["1:38: pools.web.listen[1]: 1.2.3.4:80 is here twice; the first is pools.web.listen[0] in line 1"]),
        ("['[::1]:80', '[0::1]:80']", ["1:36: pools.web.listen[1]: [::1]:80 is here twice; the first is pools.web.listen[0] in line 1"]),
        ("['1.2.3.4:80', '0.0.0.0:80']", ["1:38: pools.web.listen[1]: 0.0.0.0:80 cannot listen beside 1.2.3.4:80, which is pools.web.listen[0] in line 1"]),
        ("['[::]:80', '[::1]:80']", ["1:35: pools.web.listen[1]: [::1]:80 cannot listen beside [::]:80, which is pools.web.listen[0] in line 1"]),
        ("['0.0.0.0:80', '[::]:80', '0.0.0.0:81', '1.2.3.4:82', 'unix:/x:80']", []),
        ("{address: 'unix:/x', mode: 0660}", []),
        ("{address: '1.2.3.4:80', proxy_protocol: unix}", ["1:63: pools.web.listen.proxy_protocol: nobody could connect to 1.2.3.4:80: nobody comes by a unix socket; write the proxy's address"]),
        ("{address: 'unix:/x', proxy_protocol: [10.0.0.0/8]}", ["1:60: pools.web.listen.proxy_protocol: nobody could connect to unix:/x: to a unix socket nobody comes from an address; write unix"]),
        ("{address: 'unix:/x', proxy_protocol: [10.0.0.1/8]}", ["1:61: pools.web.listen.proxy_protocol[0]: '10.0.0.1/8' has bits set behind the first 8; did you mean 10.0.0.0/8, or 10.0.0.1 alone?"]),
        ("{address: '1.2.3.4:80', mode: 0660}", ["1:47: pools.web.listen.mode: 1.2.3.4:80 is not a unix socket, and only these have one; remove it"]),
        ("{mode: 0660}", ['1:23: pools.web.listen: has no address; write for example {address: "unix:/run/preforkd/web.sock", mode: 0660}']),
        ("{address: 'unix:/x', mode: 999}", ["1:50: pools.web.listen.mode: '999' is not an octal mode; write three digits from 0 to 7, such as 0660"]),
        ("{127.0.0.1: 80}", ["1:23: pools.web.listen: is a section where one address belongs; write 127.0.0.1:80 without a space"]),
        ("{host: 127.0.0.1}", [
            '1:23: pools.web.listen: has no address; write for example {address: "unix:/run/preforkd/web.sock", mode: 0660}',
            "1:24: pools.web.listen.host: unknown key; what uvicorn calls host is pools.web.listen here",
        ]),
        ("[[a]]", ["1:24: pools.web.listen[0]: is a list within a list where one address belongs; write for example 127.0.0.1:8080"]),
        ("['']", ["1:24: pools.web.listen[0]: '' is not an address; write for example 127.0.0.1:8080, \"[::1]:8080\", unix:/run/preforkd/web.sock or systemd:web"]),
        ("[]", ['1:23: pools.web.listen: is missing; write for example listen: "127.0.0.1:8080"']),
        ("*x", ["1:23: pools.web.listen: '*x' is an alias, which is not allowed; write the value out, or quote the text"]),
        ("[*x]", ["1:24: pools.web.listen[0]: '*x' is an alias, which is not allowed; write the value out, or quote the text"]),
    ],
)  # fmt: skip
def test_addresses(listen: str, mistakes: list[str], said: Said) -> None:
    assert said(f"pools: {{web: {{listen: {listen} , app: a}}}}") == mistakes


def test_an_address_twice_in_two_pools(said: Said) -> None:
    assert said("pools:\n a: {app: a, listen: 'unix:/x'}\n b: {app: b, listen: ['1.2.3.4:1', 'unix:/x']}\n") == [
        "3:36: pools.b.listen[1]: unix:/x is here twice; the first is pools.a.listen in line 2"
    ]


@pytest.mark.parametrize(
    ("text", "mistakes"),
    [
        ("pools: [a]", ['1:8: pools: this is a list where pools with their names belong; write for example {web: {listen: "127.0.0.1:8080", app: "mysite.wsgi:application"}}']),
        ("pools: {a b: {listen: 1.2.3.4:1, app: a}}", ["1:9: pools: 'a b' is not a pool's name; use letters, digits, - and _, at most 32"]),
        ("pools: {-a: {listen: 1.2.3.4:1, app: a}}", ["1:9: pools: '-a' is not a pool's name; use letters, digits, - and _, at most 32"]),
        ("pools: {é: {listen: 1.2.3.4:1, app: a}}", ["1:9: pools: 'é' is not a pool's name; use letters, digits, - and _, at most 32"]),
        ("pools: {" + "a" * 33 + ": {listen: 1.2.3.4:1, app: a}}", [f"1:9: pools: '{'a' * 33}' is longer than 32 characters; use letters, digits, - and _, at most 32"]),
        ("pools: {web: 8080}", ['1:14: pools.web: \'8080\' is one value where a section of settings belongs; write for example {listen: "127.0.0.1:8080", app: "mysite.wsgi:application"}']),
        ("pools: {web: }", ['1:9: pools.web.app: is missing; write for example app: mysite.wsgi:application', '1:9: pools.web.listen: is missing; write for example listen: "127.0.0.1:8080"']),
        ("pools: {web: {app: }}", ['1:9: pools.web.listen: is missing; write for example listen: "127.0.0.1:8080"', "1:20: pools.web.app: has no value; write for example mysite.wsgi:application"]),
        ("pools: {web: *x}", ["1:14: pools.web: '*x' is an alias, which is not allowed; write the value out, or quote the text"]),
        ("pools: *x", ["1:8: pools: '*x' is an alias, which is not allowed; write the value out, or quote the text"]),
        ("pools: {listen: 1.2.3.4:1, app: a}", [
            '1:9: pools.listen: `listen` is a setting of a pool, and the pool\'s name is missing above it; write pools: {web: {listen: "127.0.0.1:8080", app: "mysite.wsgi:application"}}',
            '1:28: pools.app: `app` is a setting of a pool, and the pool\'s name is missing above it; write pools: {web: {listen: "127.0.0.1:8080", app: "mysite.wsgi:application"}}',
        ]),
        ("web\n", ['1:1: \'web\' is one value where a section of settings belongs; write for example pools: {web: {listen: "127.0.0.1:8080", app: "mysite.wsgi:application"}}', ]),
        ("poolz: {}\n", ["1:1: poolz: unknown key; did you mean pools?"]),
    ],
)  # fmt: skip
def test_pools(text: str, mistakes: list[str], said: Said) -> None:
    assert sorted(said(text)) == sorted(mistakes)


@pytest.mark.parametrize("text", ["", "# nothing\n", "pools:\n", "pools: {}\n", "user: me\n"])
def test_no_pools_at_all(text: str, said: Said) -> None:
    example = 'write for example {web: {listen: "127.0.0.1:8080", app: "mysite.wsgi:application"}}'
    (mistake,) = said(text)
    assert mistake.endswith(f"pools: there is no pool, so there is nothing to serve; {example}")


@pytest.mark.parametrize(
    ("written", "numbers"),
    [
        ("", (5, 5, 10, 256)),
        ("max: 2", (2, 2, 10, 2)),
        ("min_spare: 20", (5, 20, 20, 256)),
        ("max_spare: 3", (5, 3, 3, 256)),
        ("start: 4, max: 4", (4, 4, 10, 4)),
    ],
)
def test_defaults_give_way_to_what_is_written(
    written: str, numbers: tuple[int, int, int, int], pool_of: Callable[[str], Config]
) -> None:
    assert pool_of(f"workers: {{{written}}}").pools["web"].workers == Workers(*numbers)


def test_a_default_socket_that_is_too_long(said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/" + "x" * 120)
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    (mistake,) = said(POOL)
    assert "control: is not set, and its default cannot be used: '/xxx" in mistake


def test_the_digest_is_of_the_bytes_and_the_name() -> None:
    one = read_text(POOL, "/a.yaml").digest
    assert one == read_text(POOL, "/a.yaml").digest
    assert len({one, read_text(POOL + "#", "/a.yaml").digest, read_text(POOL, "/b.yaml").digest}) == 3
