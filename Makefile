# What people type. Everything else is in setup.cfg, and in the tools this calls.
#
#   make run        serve the welcome page on http://127.0.0.1:8080/, in the foreground
#   make test       check the code and run every test, on every Python of this machine
#   make lint       only look at the code: ruff, mypy
#   make bench      measure it beside its peers, into docs/benchmarks.md
#   make fuzz       look for input that breaks the request parser, FUZZ seconds long
#   make install    as root: the service, for systemctl start preforkd
#   make clean      remove what the others made in this tree
#
# With COMPILED=1, run and install make the build whose busiest modules are compiled (gcc and python3-dev are needed).
#
# Needed: Linux, make, Python 3.11 or newer. pip is fetched where it is missing (tools/bootstrap). All of it works as
# any user, and again after the first time without asking the network.

PYTHON ?= python3
VENV   ?= .venv
# The configuration that `make run` serves.
CONFIG ?= etc/preforkd.yaml
# More for pytest, as in: make test TESTS="tests/unit -k reconcile"
TESTS  ?=
# Less of a benchmark, as in: make bench BENCH=--quick
BENCH  ?=
# Not empty: `make run` and `make install` compile the busiest modules (setup.py).
COMPILED ?=
# How long `make fuzz` looks, in seconds.
FUZZ   ?= 300

# Where `make install` puts things.
PREFIX      ?= /opt/preforkd
ETCDIR      ?= /etc/preforkd
BINDIR      ?= /usr/local/bin
UNITDIR     ?= /etc/systemd/system
SYSUSERSDIR ?= /etc/sysusers.d
TMPFILESDIR ?= /etc/tmpfiles.d
LOGROTATEDIR ?= /etc/logrotate.d

BOOTSTRAP = $(PYTHON) tools/bootstrap

# The program is started some hundred times by the tests, and should not be compiled each time.
unexport PYTHONDONTWRITEBYTECODE

# The recipes share one environment and one terminal.
.NOTPARALLEL:
.PHONY: help venv run test lint test-here test-others test-compiled bench fuzz install clean

help:
	@sed -n '3,/^#$$/s/^#   //p' Makefile

# Only what the others need before they start; for those who want to be offline afterwards.
venv:
	@$(BOOTSTRAP) $(VENV)

run:
	@$(BOOTSTRAP) $(VENV)$(if $(COMPILED),-compiled --compiled)
	@exec $(VENV)$(if $(COMPILED),-compiled)/bin/preforkd run $(CONFIG)

test: lint test-here test-others test-compiled

lint:
	@$(BOOTSTRAP) $(VENV) --extras lint,test
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/mypy tools/bootstrap
	$(VENV)/bin/mypy tools/pythons
	$(VENV)/bin/mypy tools/fuzz

# Most tests wait more than they compute, so several run at once; those that boot a system of their own come after them.
test-here:
	@$(BOOTSTRAP) $(VENV) --extras lint,test
	$(VENV)/bin/python -m pytest -n 4 --dist worksteal -m 'not systemd and not bare' $(TESTS)
	$(VENV)/bin/python -m pytest -m 'systemd or bare' $(TESTS) || test $$? = 5

# What is slow, or looks at the system rather than at Python, is the same under every Python. (5 is pytest's "no tests",
# where TESTS names only such.)
test-others:
	@others=$$($(VENV)/bin/python tools/pythons) || exit; \
	for python in $$others; do \
	    venv=$(VENV)-$$($$python -c 'import sys; print("%d.%d" % sys.version_info[:2])') || exit; \
	    $$python tools/bootstrap $$venv --extras test || exit; \
	    echo $$venv/bin/python -m pytest -n 4 --dist worksteal -m 'not slow and not system and not systemd and not bare' $(TESTS); \
	    $$venv/bin/python -m pytest -n 4 --dist worksteal -m 'not slow and not system and not systemd and not bare' $(TESTS) || test $$? = 5 || exit; \
	done

# The compiled build, as pip installs it. The tests run from a directory without preforkd/, or Python would find that
# first; they insist on what they test (tests/conftest.py). What goes nowhere near a compiled module is left out.
COMPILED_TESTS = tests/contract tests/process tests/unit/handlers tests/unit/http tests/unit/models \
    $(addprefix tests/system/test_,cli.py signals.py kill_under_load.py porter.py)
CAN_COMPILE = command -v gcc >/dev/null \
    && test -e "$$($(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h"
test-compiled:
	@if ! { $(CAN_COMPILE); }; then \
	    echo "The compiled build is not tested: it takes gcc and Python.h (apt-get install gcc python3-dev)." >&2; \
	    test -z "$$PREFORKD_CI"; exit; \
	fi; \
	$(BOOTSTRAP) $(VENV)-compiled --compiled --extras test || exit; \
	rm -rf build/compiled && mkdir -p build/compiled || exit; \
	cp -a tests benchmarks docs etc tools setup.cfg pyproject.toml README.md build/compiled || exit; \
	cd build/compiled; export PREFORKD_COMPILED=1; \
	set -x; $(abspath $(VENV))-compiled/bin/python -m pytest -n 4 --dist worksteal $(or $(TESTS),$(COMPILED_TESTS)) || test $$? = 5

# Not part of the tests: what it says depends on what else the machine does.
bench:
	@$(BOOTSTRAP) $(VENV) --extras bench
	@if $(CAN_COMPILE); then $(BOOTSTRAP) $(VENV)-compiled --compiled; fi
	@exec $(VENV)/bin/python -m benchmarks $(BENCH)

# atheris is a tool of its own, with a compiled libFuzzer in it: installed when it is asked for.
fuzz:
	@$(BOOTSTRAP) $(VENV)
	@$(VENV)/bin/python -m pip install --quiet atheris
	@exec $(VENV)/bin/python tools/fuzz -max_total_time=$(FUZZ)

# The service keeps its own copy, in an environment whose Python the workers can run once they have given up root. An
# operator's files below $(ETCDIR) are never overwritten.
install:
	@test "$$(id -u)" = 0 || { echo "make install writes below /etc and $(PREFIX): run it as root (sudo make install)" >&2; exit 1; }
	@$(BOOTSTRAP) $(PREFIX) --shared --copy $(if $(COMPILED),--compiled)
	tools/install --prefix $(PREFIX) --etc $(ETCDIR) --bin $(BINDIR) --units $(UNITDIR) \
	    --sysusers $(SYSUSERSDIR) --tmpfiles $(TMPFILESDIR) --logrotate $(LOGROTATEDIR)

clean:
	rm -rf $(VENV) $(VENV)-3.* $(VENV)-compiled build dist *.egg-info .coverage .coverage.* htmlcov
	rm -rf .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
