#!/bin/sh
# Make .venv with everything in it, or say in one line why that cannot be. Usage: .ci/setup.sh [python]
set -eu
cd "$(dirname "$0")/.."
die() { echo "setup: $*" >&2; exit 1; }
new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }
has_pip() { .venv/bin/python -m pip --version >/dev/null 2>&1; }

rm -f .venv/.installed
if ! { new_enough .venv/bin/python && has_pip; }; then
    python=
    for candidate in ${1:-python3.11 python3 python}; do
        if new_enough "$candidate"; then python=$candidate; break; fi
    done
    [ -n "$python" ] || die "Python 3.11 or newer is needed, and none was found as ${1:-python3.11, python3 or python}; name one with 'make PYTHON=/path/to/python'"
    echo "setup: making .venv with $("$python" --version)"
    "$python" -m venv --clear .venv >/dev/null 2>&1 && has_pip ||
        die "'$python -m venv .venv' failed; on Debian and Ubuntu: apt-get install python3-venv (or python3.11-venv)"
fi

echo "setup: installing flame-vision[all,dev] into .venv (several GB with PyTorch, some minutes the first time)"
.venv/bin/python -m pip install --disable-pip-version-check --quiet --config-settings editable_mode=compat -e '.[all,dev]' ||
    die "the installation failed, see pip's message above; the same command tries again"
touch .venv/.installed
