"""Where files are when nobody says so: the configuration, the pid file, the control socket.

Every function takes what it asks the system (user, environment) as arguments with the real ones as default, so that the
answers can be told beforehand. Nothing is created here.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Mapping

#: The one configuration that a distribution's package and unit file know.
SYSTEM_FILE = "/etc/preforkd/preforkd.yaml"


def runtime_folder(uid: int | None = None, environ: Mapping[str, str] | None = None) -> str:
    """The folder for pid file and control socket: root's, the user's own, or one in /tmp with the user's number."""
    uid = os.geteuid() if uid is None else uid
    environ = os.environ if environ is None else environ
    if uid == 0:
        return "/run/preforkd"
    own = environ.get("XDG_RUNTIME_DIR", "")
    return os.path.join(own, "preforkd") if os.path.isabs(own) else f"/tmp/preforkd-{uid}"  # noqa: S108


def runtime_files(path: str, uid: int | None = None, environ: Mapping[str, str] | None = None) -> tuple[str, str]:
    """The default pid file and control socket of the main file ``path`` (absolute).

    Two instances with two files never meet: every file but the system's own gets names with a hash of its path.
    """
    folder = runtime_folder(uid, environ)
    if path in (SYSTEM_FILE, ""):
        return f"{folder}/preforkd.pid", f"{folder}/control.sock"
    stem = re.sub(r"[^A-Za-z0-9_-]", "-", os.path.splitext(os.path.basename(path))[0])[:24] or "preforkd"
    name = f"{stem}-{hashlib.sha256(os.fsencode(path)).hexdigest()[:8]}"
    return f"{folder}/{name}.pid", f"{folder}/{name}.sock"


def default_file(uid: int | None = None, environ: Mapping[str, str] | None = None) -> str:
    """The configuration of a command that names none: the system's (root), the user's own, or the welcome page's."""
    uid = os.geteuid() if uid is None else uid
    environ = os.environ if environ is None else environ
    if uid == 0 and os.path.exists(SYSTEM_FILE):
        return SYSTEM_FILE
    settings = environ.get("XDG_CONFIG_HOME", "")
    if not os.path.isabs(settings):
        settings = os.path.join(environ.get("HOME") or os.path.expanduser("~"), ".config")
    own = os.path.join(settings, "preforkd", "preforkd.yaml")
    return own if os.path.exists(own) else welcome_file()


def welcome_file() -> str:
    """The configuration that serves the welcome page: the checkout's beside the package, or the installed one."""
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    checkout = os.path.join(os.path.dirname(package), "etc", "preforkd.yaml")
    # data_files go below the prefix of the installation, PREFIX/lib/python3.X/site-packages/preforkd being the package
    # (/usr/local or ~/.local, too, where sys.prefix is /usr).
    prefix = package
    for _ in range(4):
        prefix = os.path.dirname(prefix)
    for folder in (sys.prefix, prefix):
        installed = os.path.join(folder, "etc", "preforkd", "preforkd.yaml")
        if not os.path.exists(checkout) and os.path.exists(installed):
            return installed
    return checkout
