"""Finds an application by its name in the file, and explains to its developer why it cannot be found.

Runs in the template or in the worker, never in the master.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, TracebackType

from preforkd.errors import LoadError

_OURS = __name__.rpartition(".")[0] + "."

#: What applications are usually called, for suggestions.
_USUAL = ("application", "app", "create_app()", "make_app()", "wsgi_app", "wsgi")


def load_application(name: str, directory: str | None) -> object:
    """Imports ``module:attribute`` with ``directory`` as working directory and first on sys.path.

    The attribute may be dotted, may end in ``()`` (a factory, called without arguments), and is ``application`` if it
    is left out.

    Raises:
        LoadError: With the application's own traceback, or what was found instead and what was probably meant.
    """
    module_name, _, attribute = name.partition(":")
    attribute = attribute or "application"
    if directory is not None:
        try:
            os.chdir(directory)
        except OSError as error:
            raise LoadError(f"app: cannot enter directory {directory}: {error.strerror}") from error
        if directory not in sys.path[:1]:
            sys.path.insert(0, directory)
    module = _import(name, module_name)
    path, factory = (attribute[:-2], True) if attribute.endswith("()") else (attribute, False)
    found: object = module
    for part in path.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise LoadError(_missing(name, module, part)) from None
    if factory:
        if not callable(found):
            raise LoadError(f"app: {name}: {path} is {_kind(found)} and cannot be called")
        try:
            found = found()
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise LoadError(f"app: {name}: {path}() failed\n{application_traceback(error)}") from error
    return found


def require_wsgi(name: str, found: object) -> None:
    """Checks that ``found`` can be a WSGI application.

    Raises:
        LoadError: It cannot be called, or is an ASGI application.
    """
    module = sys.modules.get(name.partition(":")[0])
    if not callable(found):
        meant = f"; {_suggest(module)}" if module is not None else ""
        raise LoadError(f"app: {name} is {_kind(found)}, not an application that can be called{meant}")
    if inspect.iscoroutinefunction(found) or inspect.iscoroutinefunction(type(found).__call__):
        raise LoadError(
            f"app: {name} is a coroutine function, so probably an ASGI application; handler: wsgi cannot run it"
        )
    if not _takes(found, {}, None):
        if _takes(found):
            why = f"takes no arguments: a factory? Then write {name}()"
        else:
            why = "does not take the two arguments of WSGI (environ, start_response)"
        raise LoadError(f"app: {name} {why}")


def _takes(call: Callable[..., object], *arguments: object) -> bool:
    """True unless it is sure that ``call`` cannot be called with ``arguments``."""
    try:
        inspect.signature(call).bind(*arguments)
    except TypeError:
        return False
    except ValueError:
        pass  # no signature to look at: written in C
    return True


def _import(name: str, module_name: str) -> ModuleType:
    try:
        return importlib.import_module(module_name)
    except KeyboardInterrupt:
        raise
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if missing and (module_name == missing or module_name.startswith(missing + ".")):
            raise LoadError(f"app: {name}: there is no module {missing!r}{_nearby(missing)}") from error
        raise LoadError(f"app: {name} cannot be imported\n{application_traceback(error)}") from error
    except BaseException as error:  # SystemExit at import is a mistake of the application like any other
        raise LoadError(f"app: {name} cannot be imported\n{application_traceback(error)}") from error


def application_traceback(error: BaseException) -> str:
    """The traceback of ``error`` as text, without the frames that lead from us into the application."""
    return "".join(
        traceback.format_exception(type(error), error, cut_traceback(error.__traceback__), chain=True)
    ).rstrip("\n")


def cut_traceback(tb: TracebackType | None) -> TracebackType | None:
    """``tb`` from the first frame that is neither ours nor the import system's; None if there is no such frame."""
    while tb is not None:
        # By the module's name: a compiled one has no file that could be found.
        module = f"{tb.tb_frame.f_globals.get('__name__')}."
        if not module.startswith((_OURS, "importlib.")):
            return tb
        tb = tb.tb_next
    return None


def _nearby(missing: str) -> str:
    """Where was looked, and a module there that is spelt alike."""
    here = os.getcwd()
    try:
        names = {
            entry.name.removesuffix(".py")
            for entry in Path(here).iterdir()
            if entry.suffix == ".py" or (entry.is_dir() and entry.name.isidentifier())
        }
    except OSError as error:
        return f"; directory {here} cannot be read: {error.strerror}"
    alike = difflib.get_close_matches(missing.partition(".")[0], names, n=1)
    hint = f"; did you mean {alike[0]!r}?" if alike else "; is `directory:` right?"
    return f" in {here} nor elsewhere on sys.path{hint}"


def _missing(name: str, module: ModuleType, part: str) -> str:
    alike = difflib.get_close_matches(part, [found for found in dir(module) if not found.startswith("_")], n=1)
    hint = f"did you mean {alike[0]!r}?" if alike else _suggest(module)
    return f"app: {name}: module {module.__name__} ({module.__file__}) has no attribute {part!r}; {hint}"


def _suggest(module: ModuleType) -> str:
    """The callables of a module that may be the application, the usual names first."""
    own = [
        key
        for key, value in vars(module).items()
        if callable(value)
        and not key.startswith("_")
        and not inspect.isclass(value)
        # A function imported from elsewhere is a helper; an object of an imported class may well be the application.
        and not (inspect.isroutine(value) and getattr(value, "__module__", None) != module.__name__)
    ]
    usual = [key for key in _USUAL if key.removesuffix("()") in own]
    names = usual + [key for key in own if key not in usual and key + "()" not in usual]
    if not names:
        return "nothing in it can be called"
    return f"it has {', '.join(f'{module.__name__}:{key}' for key in names[:5])}"


def _kind(found: object) -> str:
    if isinstance(found, ModuleType):
        return f"the module {found.__name__}"
    article = "an" if type(found).__name__[:1] in "aeiouAEIOU" else "a"
    return f"{article} {type(found).__name__}"
