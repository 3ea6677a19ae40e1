#!/bin/sh
# Creates .venv with all requirements; `make setup` runs it from the repository root.
#
# FFCV is compiled here. Where that cannot be done the suite works without it, so a missing FFCV is one line
# of output, not an error.
set -eu

PYTHON=${PYTHON:-python3}
PACKAGES="build-essential pkg-config libopencv-dev libturbojpeg0-dev python3-dev python3-venv"
LOG=.venv/ffcv.log

say() { echo "setup: $*"; }
die() { echo "setup: $*" >&2; exit 2; }
as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi; }  # -n: never ask for a password
pip() { .venv/bin/python -m pip --disable-pip-version-check "$@"; }

"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null ||
    die "'$PYTHON' is not Python 3.10 or newer; choose one that is: make setup PYTHON=python3.11"

if command -v apt-get >/dev/null && ! dpkg -s $PACKAGES >/dev/null 2>&1 && as_root true 2>/dev/null; then
    say "installing system packages: $PACKAGES"
    { as_root apt-get update -qq &&
        as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends $PACKAGES
    } >/dev/null || say "apt-get failed; going on with what is there"
fi

if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then  # absent, or left behind half made
    "$PYTHON" -m venv --clear .venv >/dev/null 2>&1 ||
        die "'$PYTHON -m venv .venv' failed; on Debian and Ubuntu, as root: apt-get install python3-venv"
fi

pins="--constraint constraints.txt"
if [ "$(.venv/bin/python -c 'import sys; print(sys.platform, *sys.version_info[:2])')" != "linux 3 11" ]; then
    pins=""
    say "constraints.txt is for Python 3.11 on Linux; here requirements.txt alone chooses the versions"
fi

say "installing requirements.txt (several gigabytes where PyTorch comes with CUDA)"
pip install --quiet $pins --upgrade pip
grep -v '^ffcv' requirements.txt | pip install --quiet --no-compile $pins -r requirements-dev.txt -r /dev/stdin
# pip would compile on one core. What cannot be compiled are templates in some packages.
.venv/bin/python -m compileall -qq -j 0 .venv/lib || true

# What is left of requirements.txt now is FFCV. The import tells whether its libraries are there, too; FFCV
# that does not import must go, as the loaders take an installed one to work.
if [ "$(uname -s)" = Linux ]; then
    { pip install $pins ${pins:+--build-constraint constraints.txt} -r requirements.txt &&
        .venv/bin/python -c 'import ffcv'
    } >"$LOG" 2>&1 || {
        pip uninstall --quiet --yes ffcv >/dev/null 2>&1 || true
        say "going on without FFCV, which cannot be built here (see $LOG); to have it, as root:" \
            "apt-get install $PACKAGES, then: make -B setup"
    }
fi
