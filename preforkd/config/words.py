"""What an unknown key probably means: another section's key, another program's word, a slip of the finger.

People arrive from Apache, gunicorn, uWSGI, php-fpm, nginx or mod_wsgi and write what they know. The words of these
programs stand beside each declaration (`settings`); those that have no counterpart here are listed below with a
sentence. The word lists are built once, at the first unknown key.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from .settings import Config, Group, ListOf, Named, declared
from .units import nearest

#: Sections and settings of the design that later versions bring: key -> what it is.
LATER = {
    "status": "the status page",
    "metrics": "the metrics page",
    "threads": "the model thread",
    "connections": "the model async",
    "sandbox": "sandboxing",
    "chroot": "sandboxing",
    "websocket": "WebSocket",
}

#: Other programs' words (folded) for which there is no setting -> program, sentence.
_NO_SETTING = {
    "workerconnections": (
        "gunicorn",
        "a worker of model process serves one request at a time; workers.max bounds the pool",
    ),
    "threadsperchild": ("Apache", "the model thread does not exist in this version yet"),
    "threadlimit": ("Apache", "the model thread does not exist in this version yet"),
    "enablethreads": ("uWSGI", "threads of the application always work here; remove it"),
    "singleinterpreter": ("uWSGI", "there is one interpreter in each worker; remove it"),
    "master": ("uWSGI", "there is always a master; remove it"),
    "vacuum": ("uWSGI", "sockets and pid file are always removed at the end; remove it"),
    "dieonterm": ("uWSGI", "TERM always ends the service; remove it"),
    "needapp": ("uWSGI", "an application that does not load is always an error; remove it"),
    "thunderlock": ("uWSGI", "remove it; the workers wait on one poll set of the kernel"),
    "daemon": ("gunicorn", "the command says so: preforkd start detaches, preforkd run does not"),
    "background": ("php-fpm", "the command says so: preforkd start detaches, preforkd run does not"),
    "reload": ("gunicorn", "there is no watching of files; preforkd reload loads new code"),
    "pyautoreload": ("uWSGI", "there is no watching of files; preforkd reload loads new code"),
    "touchreload": ("uWSGI", "there is no watching of files; preforkd reload loads new code"),
    "pyreload": ("uWSGI", "there is no watching of files; preforkd reload loads new code"),
    "reuseport": ("gunicorn", "the workers share one socket, so that a reload drops no connection; remove it"),
    "procname": ("gunicorn", "processes are named after pool, slot and state; the pool's name is its key below pools"),
    "procnameprefix": (
        "uWSGI",
        "processes are named after pool, slot and state; the pool's name is its key below pools",
    ),
    "workertmpdir": ("gunicorn", "there is no heartbeat file here; remove it"),
    "virtualenv": ("uWSGI", "run preforkd from the virtual environment itself: its python -m preforkd"),
    "venv": ("uWSGI", "run preforkd from the virtual environment itself: its python -m preforkd"),
    "pythonhome": ("mod_wsgi", "run preforkd from the virtual environment itself: its python -m preforkd"),
    "wsgipythonhome": ("mod_wsgi", "run preforkd from the virtual environment itself: its python -m preforkd"),
    "staticmap": (
        "uWSGI",
        "serving files does not exist in this version yet; leave them to a proxy or the application",
    ),
    "alias": ("Apache", "serving files does not exist in this version yet; leave them to a proxy or the application"),
    "root": ("nginx", "serving files does not exist in this version yet; leave them to a proxy or the application"),
    "servername": ("Apache", "a pool answers for every host name; remove it"),
    "maxkeepaliverequests": (
        "Apache",
        "a connection may carry any number of requests; timeouts.keepalive bounds its idling",
    ),
    "keepaliverequests": (
        "nginx",
        "a connection may carry any number of requests; timeouts.keepalive bounds its idling",
    ),
    "lockfile": ("Apache", "there is no accept lock here; remove it"),
    "mutex": ("Apache", "there is no accept lock here; remove it"),
    "loadmodule": ("Apache", "there are no modules here; remove it"),
    "prerequest": ("gunicorn", "there are no hooks in the file; a WSGI middleware can do it"),
    "postfork": ("gunicorn", "there are no hooks in the file; os.register_at_fork in the application can do it"),
    "whenready": ("gunicorn", "there are no hooks in the file; systemd's ExecStartPost= can do it"),
    "onexit": ("gunicorn", "there are no hooks in the file; systemd's ExecStopPost= can do it"),
    "name": ("", "a pool's name is its key below pools"),
    "proxypass": ("nginx", "there is no proxying here; app names the application itself"),
    "version": ("", "the file has no version; remove it"),
}


@dataclass(slots=True)
class _Lists:
    """Where each key of ours stands, and what each foreign word means."""

    #: Key -> the sections that have it, as dotted templates ("pools.NAME.workers").
    places: dict[str, list[str]] = field(default_factory=dict)
    #: Folded key -> key.
    folded: dict[str, str] = field(default_factory=dict)
    #: Folded foreign word -> (program, word as the program writes it, our dotted template).
    foreign: dict[str, list[tuple[str, str, str]]] = field(default_factory=dict)


def folded(word: str) -> str:
    """``word`` without what programs differ in: capitals, hyphens, underscores, dots."""
    return word.lower().replace("-", "").replace("_", "").replace(".", "").replace(" ", "")


@cache
def _lists() -> _Lists:
    lists = _Lists()

    def collect(section: type[Any], place: str) -> None:
        for key, item in declared(section).items():
            path = f"{place}.{key}" if place else key
            lists.places.setdefault(key, []).append(place)
            lists.folded.setdefault(folded(key), key)
            for program, words in item.setting.words.items():
                for word in words.split():
                    lists.foreign.setdefault(folded(word), []).append((program, word, path))
            shape = item.setting.shape
            if isinstance(shape, Group):
                collect(shape.section, path)
            elif isinstance(shape, Named):
                collect(shape.section, f"{path}.NAME")
            elif isinstance(shape, ListOf) and shape.section is not None:
                collect(shape.section, path)

    collect(Config, "")
    return lists


def unknown(key: str, section: type[Any], place: str, pool: str) -> str:
    """The sentence about the unknown ``key``.

    ``place`` is the dotted path of the section it stands in ("" at the top, "pools.web.workers"); ``pool`` is the name
    of a pool of this file, for examples.
    """
    here = declared(section)
    lists = _lists()
    fold = folded(key[:60])

    def shown_place(template: str) -> str:
        return template.replace("NAME", pool)

    # 1. The same word with other hyphens or capitals: pidFile, pid-file.
    same = lists.folded.get(fold, "")
    if same in here:
        return f"unknown key; did you mean {same}?"
    # 2. A key of ours in the wrong place.
    if key in lists.places:
        return _elsewhere(key, lists.places[key], place, shown_place)
    # 3. A word of another program.
    if fold in lists.foreign:
        found = lists.foreign[fold]
        program, word, _ = found[0]
        ours = list(dict.fromkeys(shown_place(path) for _, _, path in found))
        return f"unknown key; what {program} calls {word} is {' or '.join(ours)} here"
    if fold in _NO_SETTING:
        program, sentence = _NO_SETTING[fold]
        return f"unknown key; {program + ' has it: ' if program else ''}{sentence}"
    if key in LATER or fold in LATER:
        return f"{LATER.get(key) or LATER[fold]} does not exist in this version yet; remove the key"
    # 4. A slip of the finger, here or in another place.
    if meant := nearest(key, tuple(here)):
        return f"unknown key; did you mean {meant}?"
    if meant := same or nearest(key, tuple(lists.places)):
        return f"{_elsewhere(meant, lists.places[meant], place, shown_place)} (if {meant} was meant)"
    return f"unknown key; known here: {', '.join(here)}"


def _elsewhere(key: str, places: list[str], place: str, shown_place: Callable[[str], str]) -> str:
    """The sentence about a key of ours that stands in the wrong section."""
    targets = [shown_place(f"{other}.{key}" if other else key) for other in places]
    if all(other.startswith("pools.NAME") for other in places) and not place.startswith("pools"):
        return f"unknown key; `{key}` belongs into a pool: {' or '.join(targets)}"
    if "" in places and len(places) == 1:
        return f"unknown key; `{key}` belongs to the top level of the main file"
    return f"unknown key; `{key}` belongs elsewhere: {' or '.join(targets)}"


def foreign_words() -> frozenset[str]:
    """The folded words of other programs that have a setting here."""
    return frozenset(_lists().foreign)
