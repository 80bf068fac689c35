"""What setup.cfg cannot say: with PREFORKD_COMPILED=1 in the environment, mypyc compiles the modules that every request
goes through. They stay ordinary Python; without it nothing here does anything, and no compiler is needed.
"""

import os

from setuptools import setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CCompilerError, ExecError, PlatformError

#: Not an ``__init__``: a template's process loses a compiled package's path. Not http/errors.py: mypyc's classes cannot
#: inherit from OSError. Of the rest, only what a request costs time in.
COMPILED = """
    handlers/wsgi http/_llhttp http/chunked http/events http/exchange http/limits http/memory http/parser
    http/response models/connection models/deadlines models/handover models/outbox models/overload models/pace
    models/porter models/preamble models/process models/seldom models/tls models/upload scoreboard worker/context
"""


class Compile(build_ext):
    """As setuptools does it, but says what is missing: whoever asked for a compiled build never gets another one."""

    def run(self) -> None:
        if self.editable_mode:
            raise SystemExit(
                "preforkd: an editable install cannot be compiled: unset PREFORKD_COMPILED or leave out -e"
            )
        try:
            super().run()
        except (CCompilerError, ExecError, PlatformError) as error:
            raise SystemExit(
                f"preforkd: PREFORKD_COMPILED is set, and the modules cannot be compiled: {error}\n"
                "A C compiler and the headers of this Python are needed (Debian: apt-get install gcc python3-dev); "
                "without the variable preforkd installs as pure Python."
            ) from None


if os.environ.get("PREFORKD_COMPILED", "0") in ("", "0"):
    setup()
else:
    try:
        from mypyc.build import mypycify
    except ModuleNotFoundError:
        # Where pip isolates the build it asks first what to install for it, and this call answers.
        setup(setup_requires=["mypy[mypyc] >= 2.4"])
        raise SystemExit("preforkd: PREFORKD_COMPILED is set, and mypy is missing: pip install mypy") from None
    # The settings in setup.cfg are for an environment with everything in it; that of the build has not.
    options = ["--config-file=", "--ignore-missing-imports"]
    modules = [f"preforkd/{name}.py" for name in COMPILED.split()]
    extensions = mypycify([*options, *modules], group_name="preforkd")
    setup(ext_modules=extensions, cmdclass={"build_ext": Compile})
