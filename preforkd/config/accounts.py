"""Whether the users and groups of a configuration exist on this machine.

Apart from the reading: a configuration may be checked elsewhere (in a pipeline, on a laptop), and a look-up may hang
(LDAP). The check calls this when it runs as root on the machine; the master does not.
"""

from __future__ import annotations

import grp
import pwd
from collections.abc import Iterator, Mapping

from ..errors import Mistake
from .settings import Config, Pool
from .units import nearest, shown
from .walk import Place


def lookup_accounts(config: Config, places: Mapping[str, Place] | None = None) -> list[Mistake]:
    """A mistake for each user and group that does not exist; ``places`` as in `Reading` give them their places."""
    mistakes = []
    for key, name, is_user, has_group in _accounts(config):
        what = _no_user(name, has_group) if is_user else _no_group(name)
        if what:
            # A single address stands in the file without its number.
            known = places or {}
            place = known.get(key) or known.get(key.replace("listen[0]", "listen")) or Place(config.path, 0, 0)
            mistakes.append(Mistake(place.file, place.line, place.column, key, what))
    return mistakes


def _accounts(config: Config) -> Iterator[tuple[str, str, bool, bool]]:
    """Each account named: key, name, whether it is a user, whether a group is named with it."""
    holders: list[tuple[Config | Pool, str]] = [(config, "")]
    holders += [(pool, f"pools.{name}.") for name, pool in config.pools.items()]
    for holder, prefix in holders:
        if holder.user is not None:
            yield f"{prefix}user", holder.user, True, holder.group is not None
        if holder.group is not None:
            yield f"{prefix}group", holder.group, False, True
    for name, pool in config.pools.items():
        for number, listen in enumerate(pool.listen):
            prefix = f"pools.{name}.listen[{number}]."
            if listen.owner is not None:
                yield f"{prefix}owner", listen.owner, True, True
            if listen.group is not None:
                yield f"{prefix}group", listen.group, False, True


def _no_user(name: str, has_group: bool) -> str:
    try:
        if not name.isdecimal():
            pwd.getpwnam(name)
        elif not has_group:
            pwd.getpwuid(int(name))
    except (KeyError, OverflowError):
        if name.isdecimal():
            return f"there is no user with the number {name}, so its group is unknown; set group as well"
        meant = nearest(name, [entry.pw_name for entry in pwd.getpwall()])
        return f"there is no user {shown(name)} on this machine" + (f"; did you mean {meant}?" if meant else _CREATE)
    return ""


def _no_group(name: str) -> str:
    try:
        if not name.isdecimal():
            grp.getgrnam(name)
    except KeyError:
        meant = nearest(name, [entry.gr_name for entry in grp.getgrall()])
        return f"there is no group {shown(name)} on this machine" + (f"; did you mean {meant}?" if meant else _CREATE)
    return ""


_CREATE = "; create it, or name one that exists"
