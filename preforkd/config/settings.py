"""The settings: each is declared once, here, and everything else is made of the declaration.

A section of the file is a frozen dataclass, a setting one of its fields: ``Annotated[type, Setting(...)]``, its default
the field's default. From this come the check (`walk`), the JSON schema (`schema`), the commented sample file and the
manual's table (`sample`), the list of what a reload would change (`changes`), and the foreign words (`words`).

Units in the values: every duration is float seconds, every size int bytes, 0 is "no limit" or "off".
Any process may hold these values; nobody changes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Annotated, Any, Literal, get_args, get_type_hints

from .units import (
    DAY,
    Account,
    Address,
    Anything,
    Application,
    Destination,
    Duration,
    Format,
    Glob,
    Integer,
    Kind,
    Mode,
    Network,
    Path,
    Percent,
    Size,
    Text,
    TlsVersion,
    UrlPath,
    Word,
)

#: What applies a changed setting: SIGHUP, or only a new master.
Needs = Literal["reload", "restart"]

#: What a pool may be called: it appears in process titles, log lines and commands.
POOL_NAME = r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}"

#: Apache's ServerLimit ends here too; each slot costs a line of the scoreboard.
MOST_WORKERS = 20_000


@dataclass(frozen=True, slots=True)
class ListOf:
    """One value, or a list of them."""

    kind: Kind
    #: A section class if an item may also be written as a mapping.
    section: type[Any] | None = None


@dataclass(frozen=True, slots=True)
class MapOf:
    """Names with values of one kind; a name has the form of the regular expression ``names``."""

    names: str
    kind: Kind


@dataclass(frozen=True, slots=True)
class Group:
    """A section of its own: a mapping with the settings of a dataclass."""

    section: type[Any]


@dataclass(frozen=True, slots=True)
class Named:
    """Any number of sections, each below its name."""

    names: str
    section: type[Any]


Shape = Kind | ListOf | MapOf | Group | Named


@dataclass(frozen=True, slots=True)
class Setting:
    """What is to be known about one setting, beside its type and default.

    Attributes:
        shape: How its text is read and written.
        doc: A sentence for the manual and the sample file.
        words: What other programs call it: program -> words, separated by spaces.
        needs: What applies a change.
        example: A value worth showing where the default says little.
        default: The default's text where it is not the field's default (it depends on other things).
        required: It has no default.
    """

    shape: Shape
    doc: str
    words: Mapping[str, str] = field(default_factory=dict)
    needs: Needs = "reload"
    example: str = ""
    default: str = ""
    required: bool = False


@dataclass(frozen=True, slots=True)
class Declared:
    """A setting with what its dataclass field says: its key, its default, and whether ``null`` may be written."""

    key: str
    setting: Setting
    default: Any
    optional: bool


# -- the sections, from the inside out ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tls:
    """TLS on one address: `preforkd.tls` makes contexts of it."""

    certificate: Annotated[
        tuple[str, ...],
        Setting(
            ListOf(Path()),
            "File (PEM) with the certificate and the intermediate ones after it, or a list of such files: each serves"
            " the names in it, the first also clients that ask for none of them.",
            {
                "Apache": "SSLCertificateFile SSLCertificateChainFile",
                "nginx": "ssl_certificate",
                "gunicorn": "certfile",
                "uvicorn": "ssl_certfile",
                "haproxy": "crt",
            },
            example="/etc/ssl/site.pem",
            required=True,
        ),
    ] = ()
    key: Annotated[
        tuple[str, ...],
        Setting(
            ListOf(Path()),
            "File with the private key of each certificate, in the same order; none: it is in the certificate's file."
            " Read as root.",
            {
                "Apache": "SSLCertificateKeyFile",
                "nginx": "ssl_certificate_key",
                "gunicorn": "keyfile",
                "uvicorn": "ssl_keyfile",
            },
            example="/etc/ssl/private/site.key",
        ),
    ] = ()
    versions: Annotated[
        tuple[str, ...],
        Setting(
            ListOf(TlsVersion("1.2", "1.3")),
            "Versions of TLS.",
            {
                "Apache": "SSLProtocol",
                "nginx": "ssl_protocols",
                "gunicorn": "ssl_version",
                "uvicorn": "ssl_version",
                "haproxy": "ssl-min-ver ssl-max-ver",
            },
        ),
    ] = ("1.2", "1.3")
    ciphers: Annotated[
        str,
        Setting(
            Text("list of ciphers", r"[A-Za-z0-9+:!@=_, -]+", example="ECDHE+AESGCM:ECDHE+CHACHA20"),
            "Ciphers of TLS 1.2, in the words of OpenSSL (openssl-ciphers(1)); those of 1.3 are all good.",
            {
                "Apache": "SSLCipherSuite SSLHonorCipherOrder",
                "nginx": "ssl_ciphers ssl_prefer_server_ciphers",
                "gunicorn": "ciphers",
                "uvicorn": "ssl_ciphers",
            },
        ),
    ] = "ECDHE+AESGCM:ECDHE+CHACHA20"
    client_ca: Annotated[
        str | None,
        Setting(
            Path(),
            "File with the authorities whose client certificates are accepted; null: clients show none.",
            {
                "Apache": "SSLCACertificateFile",
                "nginx": "ssl_client_certificate ssl_trusted_certificate",
                "gunicorn": "ca_certs",
                "uvicorn": "ssl_ca_certs",
                "haproxy": "ca-file",
            },
            example="/etc/ssl/clients.pem",
        ),
    ] = None
    client: Annotated[
        str,
        Setting(
            Word(
                "required",
                "optional",
                foreign={
                    "require": "required",
                    "on": "required",
                    "2": "required",
                    "cert_required": "required",
                    "1": "optional",
                    "cert_optional": "optional",
                    "none": "remove client_ca to ask for no certificate",
                    "off": "remove client_ca to ask for no certificate",
                    "0": "remove client_ca to ask for no certificate",
                    "optional_no_ca": "a certificate that nobody vouches for proves nothing; write optional",
                },
            ),
            "With client_ca: whether a client must show a certificate, or may; one that is shown must be good.",
            {
                "Apache": "SSLVerifyClient",
                "nginx": "ssl_verify_client",
                "gunicorn": "cert_reqs",
                "uvicorn": "ssl_cert_reqs",
                "haproxy": "verify",
            },
        ),
    ] = "required"


@dataclass(frozen=True, slots=True)
class Listen:
    """One address. ``text`` is canonical and identifies the listener across reloads."""

    text: str
    kind: str
    host: str = ""
    port: int = 0
    path: str = ""
    name: str = ""
    mode: Annotated[
        int,
        Setting(
            Mode(),
            "Permissions of a unix socket; who may write to it may connect.",
            {"php-fpm": "listen.mode", "uWSGI": "chmod-socket"},
        ),
    ] = 0o666
    owner: Annotated[
        str | None,
        Setting(
            Account("user name", "www-data"), "Owner of a unix socket.", {"php-fpm": "listen.owner"}, example="www-data"
        ),
    ] = None
    group: Annotated[
        str | None,
        Setting(
            Account("group name", "www-data"),
            "Group of a unix socket.",
            {"php-fpm": "listen.group"},
            example="www-data",
        ),
    ] = None
    proxy_protocol: Annotated[
        tuple[str, ...],
        Setting(
            ListOf(Network()),
            "Proxies whose connections begin with a PROXY header (version 1 or 2); nobody else may connect then.",
            {
                "Apache": "RemoteIPProxyProtocol",
                "gunicorn": "proxy_protocol proxy_allow_ips",
                "uWSGI": "enable-proxy-protocol",
                "haproxy": "accept-proxy",
            },
            example="[10.0.0.0/8, unix]",
        ),
    ] = ()
    tls: Annotated[
        Tls | None,
        Setting(
            Group(Tls),
            "TLS (https) on this address.",
            {"Apache": "SSLEngine", "nginx": "ssl", "uWSGI": "https", "gunicorn": "ssl_context"},
            example="{certificate: /etc/ssl/site.pem, key: /etc/ssl/private/site.key}",
        ),
    ] = None

    @classmethod
    def of(cls, text: str, **extras: Any) -> Listen:
        """The value of the canonical address ``text``, as `units.Address` returns it; ``extras`` are further fields."""
        if text.startswith("unix:"):
            return cls(text, "unix", path=text.removeprefix("unix:"), **extras)
        if text.startswith("systemd:"):
            return cls(text, "systemd", name=text.removeprefix("systemd:"), **extras)
        host, _, port = text.rpartition(":")
        return cls(text, "tcp", host=host.strip("[]"), port=int(port), **extras)


@dataclass(frozen=True, slots=True)
class Workers:
    """How many workers a pool has. Apache's words."""

    start: Annotated[
        int,
        Setting(
            Integer(1, MOST_WORKERS),
            "Workers at the start.",
            {"Apache": "StartServers", "php-fpm": "pm.start_servers", "uWSGI": "cheaper-initial"},
            default="5, or max if that is less",
        ),
    ] = 5
    min_spare: Annotated[
        int,
        Setting(
            Integer(1, MOST_WORKERS),
            "Fewer idle workers than this, and the pool grows.",
            {"Apache": "MinSpareServers MinSpareThreads", "php-fpm": "pm.min_spare_servers", "uWSGI": "cheaper"},
            default="5, or max or max_spare if that is less",
        ),
    ] = 5
    max_spare: Annotated[
        int,
        Setting(
            Integer(1, MOST_WORKERS),
            "More idle workers than this, and the pool shrinks, slowly.",
            {"Apache": "MaxSpareServers MaxSpareThreads", "php-fpm": "pm.max_spare_servers"},
            default="10, or min_spare if that is more",
        ),
    ] = 10
    max: Annotated[
        int,
        Setting(
            Integer(1, MOST_WORKERS),
            "Never more workers than this.",
            {
                "Apache": "MaxRequestWorkers MaxClients ServerLimit",
                "php-fpm": "pm.max_children",
                "uWSGI": "processes",
                "nginx": "worker_processes",
                "mod_wsgi": "WSGIDaemonProcess",
            },
        ),
    ] = 256


@dataclass(frozen=True, slots=True)
class Recycle:
    """When a worker is replaced by a fresh one; each is off at 0."""

    requests: Annotated[
        int,
        Setting(
            Integer(0, 10**9),
            "A worker leaves after this many requests; 0: never.",
            {
                "Apache": "MaxConnectionsPerChild MaxRequestsPerChild",
                "gunicorn": "max_requests",
                "php-fpm": "pm.max_requests",
                "mod_wsgi": "maximum-requests",
            },
        ),
    ] = 0
    jitter: Annotated[
        float,
        Setting(
            Percent(),
            "Every worker's own limits differ by up to this share, so that they do not all leave at once.",
            {"gunicorn": "max_requests_jitter", "uWSGI": "max-requests-delta"},
        ),
    ] = 0.10
    memory: Annotated[
        int,
        Setting(
            Size(1 << 20),
            "A worker leaves when its own memory is more than this; 0: never.",
            {"uWSGI": "reload-on-rss evil-reload-on-rss reload-on-as", "granian": "workers_max_rss"},
        ),
    ] = 0
    age: Annotated[
        float,
        Setting(
            Duration(1.0, 3650 * DAY),
            "A worker leaves when it is older than this; 0: never.",
            {"uWSGI": "max-worker-lifetime", "granian": "workers_lifetime"},
        ),
    ] = 0.0


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long what may take; 0 is no limit."""

    start: Annotated[
        float,
        Setting(
            Duration(), "From the fork until a worker is ready, the import included.", {"mod_wsgi": "startup-timeout"}
        ),
    ] = 60.0
    request: Annotated[
        float,
        Setting(
            Duration(),
            "One request in the application; a worker that takes longer is killed and replaced.",
            {
                "gunicorn": "timeout",
                "uWSGI": "harakiri",
                "php-fpm": "request_terminate_timeout",
                "mod_wsgi": "request-timeout",
            },
        ),
    ] = 0.0
    graceful: Annotated[
        float,
        Setting(
            Duration(),
            "How long a worker that leaves may finish what it holds.",
            {
                "Apache": "GracefulShutdownTimeout",
                "gunicorn": "graceful_timeout",
                "php-fpm": "process_control_timeout",
                "nginx": "worker_shutdown_timeout",
                "uWSGI": "worker-reload-mercy reload-mercy",
                "uvicorn": "timeout_graceful_shutdown",
            },
        ),
    ] = 30.0
    header: Annotated[
        float,
        Setting(
            Duration(),
            "From a connection's first byte until its request's header is complete.",
            {"Apache": "RequestReadTimeout", "nginx": "client_header_timeout"},
        ),
    ] = 10.0
    body: Annotated[
        float,
        Setting(
            Duration(),
            "Longest pause within a request's body; the whole of it has this long, and what limits.rate adds.",
            {"nginx": "client_body_timeout", "uWSGI": "socket-timeout http-timeout"},
        ),
    ] = 20.0
    keepalive: Annotated[
        float,
        Setting(
            Duration(),
            "How long an idle connection is kept for its next request; 0: closed after each response.",
            {
                "Apache": "KeepAliveTimeout KeepAlive",
                "gunicorn": "keep-alive",
                "nginx": "keepalive_timeout",
                "uWSGI": "http-keepalive so-keepalive",
                "uvicorn": "timeout_keep_alive",
            },
        ),
    ] = 5.0
    send: Annotated[
        float,
        Setting(
            Duration(),
            "Longest pause of a client that reads its answer; for the whole of it limits.rate adds to this.",
            {"Apache": "SendTimeout", "nginx": "send_timeout"},
        ),
    ] = 30.0
    queue: Annotated[
        float,
        Setting(
            Duration(0.1),  # the kernel counts in ticks of up to 10 ms
            "A request that waited longer for a worker gets a quick 503 with Retry-After; 0: it is served.",
            {"mod_wsgi": "queue-timeout"},
        ),
    ] = 30.0
    probation: Annotated[
        float,
        Setting(
            Duration(),
            "After a reload: how long the new workers must live, or the former generation comes back.",
            {"php-fpm": "emergency_restart_interval"},
        ),
    ] = 10.0


@dataclass(frozen=True, slots=True)
class Limits:
    """How much what may be."""

    line: Annotated[
        int,
        Setting(
            Size(128, 1 << 20),
            "Longest request line (and with it, URL).",
            {"Apache": "LimitRequestLine", "gunicorn": "limit_request_line"},
        ),
    ] = 8 << 10
    header: Annotated[
        int,
        Setting(
            Size(512, 16 << 20),
            "Largest request header, all its lines together.",
            {
                "Apache": "LimitRequestFieldSize",
                "gunicorn": "limit_request_field_size",
                "nginx": "large_client_header_buffers client_header_buffer_size",
                "uWSGI": "buffer-size",
            },
        ),
    ] = 32 << 10
    fields: Annotated[
        int,
        Setting(
            Integer(1, 10_000, zero=True),
            "Most fields in a request's header.",
            {"Apache": "LimitRequestFields", "gunicorn": "limit_request_fields"},
        ),
    ] = 100
    body: Annotated[
        int,
        Setting(
            Size(),
            "Largest request body.",
            {
                "Apache": "LimitRequestBody",
                "nginx": "client_max_body_size",
                "uWSGI": "limit-post",
                "php": "post_max_size upload_max_filesize",
            },
        ),
    ] = 1 << 30
    rate: Annotated[
        int,
        Setting(
            Size(1, 1 << 30),
            "Least rate of a client in bytes a second: so many bytes add a second to timeouts.body for a whole body, "
            "and to timeouts.send for a whole answer; 0: only pauses count.",
            {"Apache": "MinRate"},
        ),
    ] = 500
    backlog: Annotated[
        int,
        Setting(
            Integer(1, 65_535),
            "Connections that the kernel lets wait; it takes no more than net.core.somaxconn.",
            {"Apache": "ListenBacklog", "php-fpm": "listen.backlog"},
        ),
    ] = 511
    files: Annotated[
        int,
        Setting(
            Integer(64, 1 << 30, zero=True),
            "Most open descriptors of a worker (RLIMIT_NOFILE); 0: as inherited.",
            {"php-fpm": "rlimit_files", "nginx": "worker_rlimit_nofile", "uWSGI": "max-fd"},
        ),
    ] = 0
    core: Annotated[
        int,
        Setting(
            Size(),
            "Largest core file of a worker (RLIMIT_CORE); 0: none.",
            {"php-fpm": "rlimit_core", "nginx": "worker_rlimit_core", "Apache": "CoreDumpDirectory"},
        ),
    ] = 0


@dataclass(frozen=True, slots=True)
class Body:
    """How request bodies are received."""

    buffer: Annotated[
        int,
        Setting(
            Size(),
            "A body up to this size is received before the application is called, so that a slow client costs no "
            "worker; the application itself reads what is larger. 0: it reads all.",
            {
                "nginx": "proxy_request_buffering uwsgi_request_buffering fastcgi_request_buffering",
                "uWSGI": "post-buffering-bufsize",
            },
        ),
    ] = 1 << 20
    memory: Annotated[
        int,
        Setting(
            Size(),
            "So much of a received body is kept in memory, the rest in a file; 0: all in a file.",
            {"nginx": "client_body_buffer_size", "uWSGI": "post-buffering"},
        ),
    ] = 64 << 10
    directory: Annotated[
        str | None,
        Setting(
            Path(folder=True),
            "Where these files are made; null: where TMPDIR says, or /tmp.",
            {"nginx": "client_body_temp_path", "gunicorn": "tmp_upload_dir", "php": "upload_tmp_dir"},
            example="/var/spool/mysite",
        ),
    ] = None


@dataclass(frozen=True, slots=True)
class Answer:
    """How answers are sent."""

    buffer: Annotated[
        int,
        Setting(
            Size(),
            "So much of a complete answer is kept in memory for a slow client, so that it costs no worker; a worker "
            "waits until the rest is no longer than that. A file takes no memory. 0: it waits until all is taken.",
            {
                "nginx": "proxy_buffering proxy_buffers uwsgi_buffering uwsgi_buffers",
                "mod_wsgi": "response-buffer-size",
            },
        ),
    ] = 1 << 20


@dataclass(frozen=True, slots=True)
class Pool:
    """Workers that serve one application on some addresses."""

    name: str
    listen: Annotated[
        tuple[Listen, ...],
        Setting(
            ListOf(Address(), Listen),
            "Where to listen, one address or a list: host:port, [v6]:port, unix:/path, or systemd:NAME.",
            {
                "gunicorn": "bind",
                "uWSGI": "http http-socket socket uwsgi-socket",
                "uvicorn": "host port uds",
                "nginx": "server",
                "Apache": "VirtualHost",
            },
            example="127.0.0.1:8080",
            required=True,
        ),
    ] = ()
    model: Annotated[
        str,
        Setting(
            Word(
                "process",
                later=("thread", "async", "fork"),
                foreign={
                    "prefork": "process",
                    "sync": "process",
                    "processes": "process",
                    "gthread": "thread",
                    "worker": "thread",
                    "event": "thread",
                    "threads": "thread",
                    "asyncio": "async",
                    "gevent": "async",
                    "eventlet": "async",
                    "tornado": "async",
                    "asgi": "async",
                    "forking": "fork",
                    "uvicorn.workers.uvicornworker": "async",
                },
            ),
            "How a worker serves: process is one request at a time in each process.",
            {"gunicorn": "worker_class", "Apache": "MPM mpm_prefork", "php-fpm": "pm", "granian": "runtime_mode"},
        ),
    ] = "process"
    handler: Annotated[
        str,
        Setting(
            Word(
                "wsgi",
                later=("asgi", "static", "tcp", "socketserver", "exec", "echo"),
                foreign={
                    "http": "wsgi",
                    "flask": "wsgi",
                    "django": "wsgi",
                    "asgi3": "asgi",
                    "files": "static",
                    "fastcgi": "this program speaks HTTP; write wsgi",
                    "uwsgi": "this program speaks HTTP; write wsgi",
                },
                own="handlers of one's own",
            ),
            "What a worker serves: wsgi is a WSGI application (PEP 3333).",
            {"Apache": "SetHandler AddHandler", "granian": "interface", "uWSGI": "plugin plugins protocol"},
        ),
    ] = "wsgi"
    app: Annotated[
        str,
        Setting(
            Application(),
            "The application, module:attribute; without attribute it is :application.",
            {
                "gunicorn": "wsgi_app",
                "uWSGI": "module wsgi wsgi-file callable file mount",
                "mod_wsgi": "WSGIScriptAlias WSGIScriptAliasMatch WSGICallableObject application-group",
                "php": "DocumentRoot",
            },
            example="mysite.wsgi:application",
            required=True,
        ),
    ] = ""
    directory: Annotated[
        str | None,
        Setting(
            Path(folder=True),
            "Working directory of the workers, and the first place where modules are looked for.",
            {
                "gunicorn": "chdir pythonpath",
                "uWSGI": "pythonpath python-path pp chdir2",
                "mod_wsgi": "python-path WSGIPythonPath home",
                "uvicorn": "app_dir app-dir",
                "php-fpm": "prefix",
            },
            example="/srv/mysite",
        ),
    ] = None
    environment: Annotated[
        Mapping[str, str],
        Setting(
            MapOf(r"[A-Za-z_][A-Za-z0-9_]*", Anything()),
            "Environment variables of the workers.",
            {"gunicorn": "raw_env env", "Apache": "SetEnv PassEnv", "uWSGI": "env", "php-fpm": "env clear_env"},
            example="{DJANGO_SETTINGS_MODULE: mysite.settings}",
        ),
    ] = field(default_factory=dict)
    user: Annotated[
        str | None,
        Setting(
            Account("user name", "www-data"), "This pool's own user, instead of the global one.", example="www-data"
        ),
    ] = None
    group: Annotated[
        str | None,
        Setting(
            Account("group name", "www-data"), "This pool's own group, instead of the global one.", example="www-data"
        ),
    ] = None
    umask: Annotated[
        int | None, Setting(Mode(), "This pool's own umask, instead of the global one.", example="0027")
    ] = None
    preload: Annotated[
        str,
        Setting(
            Word(
                "auto",
                "always",
                "never",
                foreign={
                    "true": "always",
                    "yes": "always",
                    "on": "always",
                    "false": "never",
                    "no": "never",
                    "off": "never",
                    "lazy": "never",
                },
            ),
            "Load the application once and fork from there; auto: unless its import leaves threads or sockets behind.",
            {"gunicorn": "preload_app", "uWSGI": "lazy-apps lazy", "mod_wsgi": "WSGIImportScript"},
        ),
    ] = "auto"
    warmup: Annotated[
        tuple[str, ...],
        Setting(
            ListOf(UrlPath()),
            "Paths requested before the loaded application is copied, to share more memory.",
            example="[/]",
        ),
    ] = ()
    health: Annotated[
        str | None,
        Setting(
            UrlPath(),
            "Path that a new generation's first worker must answer with a status below 400, or the reload fails.",
            {"php-fpm": "ping.path", "haproxy": "option_httpchk"},
            example="/health",
        ),
    ] = None
    trusted_proxies: Annotated[
        tuple[str, ...],
        Setting(
            ListOf(Network()),
            "Proxies that are believed when they say who the client is; unix is whoever connects to a unix socket.",
            {
                "gunicorn": "forwarded_allow_ips",
                "uvicorn": "forwarded_allow_ips proxy_headers",
                "nginx": "set_real_ip_from",
                "Apache": "RemoteIPInternalProxy RemoteIPTrustedProxy RemoteIPInternalProxyList",
                "mod_wsgi": "WSGITrustedProxies",
            },
            example="[127.0.0.1, 10.0.0.0/8, unix]",
        ),
    ] = ()
    forwarded: Annotated[
        tuple[str, ...],
        Setting(
            ListOf(
                Word(
                    "x-forwarded-for",
                    "x-forwarded-proto",
                    "x-forwarded-host",
                    "x-forwarded-port",
                    "forwarded",
                    foreign={
                        "x-real-ip": "x-forwarded-for",
                        "remote_addr": "x-forwarded-for",
                        "for": "x-forwarded-for",
                        "proto": "x-forwarded-proto",
                        "x-forwarded-protocol": "x-forwarded-proto",
                        "x-forwarded-scheme": "x-forwarded-proto",
                        "x-forwarded-ssl": "x-forwarded-proto",
                        "host": "x-forwarded-host",
                        "x-forwarded-server": "x-forwarded-host",
                        "port": "x-forwarded-port",
                        "rfc7239": "forwarded",
                    },
                )
            ),
            "Header fields of trusted proxies that are believed; the proxy must set or remove each of them itself.",
            {
                "gunicorn": "forwarder_headers secure_scheme_headers",
                "nginx": "real_ip_header",
                "Apache": "RemoteIPHeader",
                "mod_wsgi": "WSGITrustedProxyHeaders",
            },
            example="[forwarded]",
        ),
    ] = ("x-forwarded-for", "x-forwarded-proto")
    workers: Annotated[
        Workers, Setting(Group(Workers), "How many workers; the pool follows the load between these bounds.")
    ] = Workers()
    recycle: Annotated[
        Recycle, Setting(Group(Recycle), "When a worker is replaced by a fresh one, against leaks; 0 is never.")
    ] = Recycle()
    timeouts: Annotated[Timeouts, Setting(Group(Timeouts), "How long what may take; 0 is no limit.")] = Timeouts()
    limits: Annotated[Limits, Setting(Group(Limits), "How much what may be; 0 is no limit.")] = Limits()
    body: Annotated[Body, Setting(Group(Body), "How request bodies are received.")] = Body()
    answer: Annotated[Answer, Setting(Group(Answer), "How answers are sent.")] = Answer()


@dataclass(frozen=True, slots=True)
class Log:
    """Where the logs go, and how much is written."""

    level: Annotated[
        str,
        Setting(
            Word(
                "debug",
                "info",
                "warning",
                "error",
                foreign={
                    "warn": "warning",
                    "notice": "info",
                    "trace": "debug",
                    "trace1": "debug",
                    "crit": "error",
                    "critical": "error",
                    "alert": "error",
                    "emerg": "error",
                    "fatal": "error",
                    "err": "error",
                    "verbose": "debug",
                },
            ),
            "The least that is written: debug, info, warning, error.",
            {"gunicorn": "loglevel log-level", "php-fpm": "log_level"},
        ),
    ] = "info"
    errors: Annotated[
        str,
        Setting(
            Destination(
                "stderr",
                "journal",
                "syslog",
                foreign={
                    "-": "write stderr",
                    "stdout": "errors go to stderr, journal, syslog or a file; a file of this name would be ./stdout",
                    "journald": "did you mean journal?",
                    "systemd": "did you mean journal?",
                    "off": "errors cannot be switched off; set level: error for less of them",
                    "none": "errors cannot be switched off; set level: error for less of them",
                    "no": "errors cannot be switched off; set level: error for less of them",
                    "false": "errors cannot be switched off; set level: error for less of them",
                },
            ),
            "Where events and errors go: stderr, journal, syslog, or a file.",
            {
                "Apache": "ErrorLog",
                "gunicorn": "error_logfile error-logfile log_file",
                "uWSGI": "logto logto2 daemonize logger",
            },
        ),
    ] = "stderr"
    access: Annotated[
        str,
        Setting(
            Destination(
                "off",
                "stdout",
                "syslog",
                foreign={
                    "-": "write stdout",
                    "none": "write off",
                    "no": "write off",
                    "false": "write off",
                    "/dev/null": "write off",
                    "on": "write stdout, or the path of a file",
                    "true": "write stdout, or the path of a file",
                    "yes": "write stdout, or the path of a file",
                    "stderr": "an access log goes to stdout, syslog or a file; a file of this name would be ./stderr",
                    "journal": "write stdout, which systemd passes to the journal, or syslog",
                },
            ),
            "Where a line for each request goes: off, stdout, syslog, or a file.",
            {
                "Apache": "CustomLog TransferLog",
                "gunicorn": "access_logfile access-logfile",
                "nginx": "access_log",
                "php-fpm": "access.log",
                "uWSGI": "req-logger disable-logging",
            },
            example="/var/log/preforkd/access.log",
        ),
    ] = "off"
    format: Annotated[
        str,
        Setting(
            Format(),
            "The form of the access log's lines: common, combined, json, or a LogFormat string as Apache has it.",
            {
                "Apache": "LogFormat",
                "gunicorn": "access_log_format access-logformat",
                "php-fpm": "access.format",
                "nginx": "log_format",
                "uWSGI": "log-format logformat",
            },
        ),
    ] = "combined"


@dataclass(frozen=True, slots=True)
class Config:
    """A whole configuration: the main file and what it includes.

    ``path`` is the main file, absolute ("" if there is none), ``files`` all files read, ``digest`` the SHA-256 over
    exactly the names and bytes read.
    """

    path: str = ""
    files: tuple[str, ...] = ()
    digest: str = ""
    user: Annotated[
        str | None,
        Setting(
            Account("user name", "www-data"),
            "User that the workers run as, with all its groups, when started as root; null: who started it.",
            {"gunicorn": "user", "uWSGI": "uid"},
            example="www-data",
        ),
    ] = None
    group: Annotated[
        str | None,
        Setting(
            Account("group name", "www-data"),
            "Group that the workers run as; null: the user's own.",
            {"uWSGI": "gid"},
            example="www-data",
        ),
    ] = None
    pid_file: Annotated[
        str,
        Setting(
            Path(),
            "File that holds the master's pid, locked while it lives.",
            {"Apache": "PidFile", "php-fpm": "pid", "uWSGI": "pidfile2 safe-pidfile"},
            needs="restart",
            default="/run/preforkd/preforkd.pid",
        ),
    ] = ""
    control: Annotated[
        str,
        Setting(
            Path(socket=True),
            "Unix socket that preforkd's commands speak to.",
            {"uWSGI": "stats master-fifo", "gunicorn": "control_socket"},
            needs="restart",
            default="/run/preforkd/control.sock",
        ),
    ] = ""
    umask: Annotated[int, Setting(Mode(), "Permissions that new files of the workers do not get.")] = 0o022
    log: Annotated[Log, Setting(Group(Log), "The logs.")] = Log()
    pools: Annotated[
        Mapping[str, Pool],
        Setting(Named(POOL_NAME, Pool), "The pools of workers, each below a name of its own.", required=True),
    ] = field(default_factory=dict)


#: Settings of the file that are used up while reading it: section -> the key before it -> its own key and declaration.
_FILE_ONLY: Mapping[type[Any], tuple[str, Declared]] = {
    Config: (
        "umask",
        Declared(
            "include",
            Setting(
                ListOf(Glob()),
                "Further files with pools, one pattern or a list, relative to this file.",
                {"Apache": "IncludeOptional", "uWSGI": "ini emperor vassal"},
                example="conf.d/*.yaml",
            ),
            (),
            False,
        ),
    ),
    Listen: (
        "",
        Declared(
            "address",
            Setting(Address(), "The address itself.", example="unix:/run/preforkd/web.sock", required=True),
            "",
            False,
        ),
    ),
}


_DECLARED: dict[type[Any], Mapping[str, Declared]] = {}


def declared(section: type[Any]) -> Mapping[str, Declared]:
    """The settings of a section by key, in the order in which they are shown; worked out once."""
    found = _DECLARED.get(section)
    if found is None:
        found = _DECLARED[section] = _collect(section)
    return found


def _collect(section: type[Any]) -> Mapping[str, Declared]:
    hints = get_type_hints(section, include_extras=True)
    after, extra = _FILE_ONLY.get(section, ("", None))
    found: dict[str, Declared] = {}
    if extra is not None and not after:
        found[extra.key] = extra
    for item in fields(section):
        setting = next((part for part in get_args(hints[item.name]) if isinstance(part, Setting)), None)
        if setting is not None:
            default = _default(item)
            found[item.name] = Declared(item.name, setting, default, default is None)
        if extra is not None and item.name == after:
            found[extra.key] = extra
    return found


def _default(item: Field[Any]) -> Any:
    return item.default_factory() if item.default_factory is not MISSING else item.default


def default_text(item: Declared) -> str:
    """The default as it would be written in the file (a flow collection for lists and mappings)."""
    shape = item.setting.shape
    if isinstance(shape, ListOf):
        return f"[{', '.join(map(shape.kind.write, item.default))}]"
    if isinstance(shape, MapOf):
        return "{}"
    if isinstance(shape, (Group, Named)) or item.setting.required:
        return ""
    if item.optional:
        return "null"
    if isinstance(shape, Path):
        return item.setting.default  # depends on who asks and where the file is: `paths.runtime_files`
    return shape.write(item.default)
