#!/bin/sh
# env.sh [SCRIPT ARGUMENTS ...]: finds a Python 3.11 and runs SCRIPT with it, or make_env.py, which makes the environment of
# this checkout. $PYTHON, if set, is tried first.
set -eu
unset CDPATH PYTHONPATH PYTHONHOME PYTHONSTARTUP PYTHONDONTWRITEBYTECODE __PYVENV_LAUNCHER__ || true
here=$(cd "$(dirname "$0")" && pwd)
[ $# -gt 0 ] || set -- "$here/make_env.py"
without_venv=""

for candidate in "${PYTHON:-}" python3.11 python3 python /usr/local/bin/python3.11 /usr/bin/python3.11 \
    "${HOME:-/nonexistent}"/.pyenv/versions/3.11*/bin/python3.11; do
    [ -n "$candidate" ] && command -v "$candidate" >/dev/null 2>&1 || continue
    "$candidate" -I -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' >/dev/null 2>&1 || continue
    if "$candidate" -I -c 'import venv, ensurepip' >/dev/null 2>&1; then
        exec "$candidate" -I "$@"
    fi
    without_venv=$candidate
done

if [ -n "$without_venv" ]; then
    echo "env: $without_venv has no venv module. Install it (Debian and Ubuntu: the package python3.11-venv) and try again." >&2
else
    echo "env: no Python 3.11 found. Install one, or name it: make env PYTHON=/path/to/python3.11" >&2
fi
exit 1
