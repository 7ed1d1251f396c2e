#!/usr/bin/env bash
# Makes .venv with this package in it: `setup.sh EXTRAS`, for instance `setup.sh dev,openvino`. Quick when nothing changed.
set -euo pipefail
cd "$(dirname "$0")/.."
extras="$1"
python="${PYTHON:-python3}"
if ! command -v "$python" >/dev/null; then
    echo "setup: $python not found; install Python 3.11 or newer, or set PYTHON" >&2
    exit 1
fi
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "setup: $("$python" --version) is too old; 3.11 or newer is needed (set PYTHON to one)" >&2
    exit 1
fi
if [ ! -x .venv/bin/python ]; then
    "$python" -m venv .venv || { echo "setup: venv is missing; on Debian: apt install python3-venv" >&2; exit 1; }
fi
stamp=".venv/installed-${extras//,/-}"
now="$(sha256sum pyproject.toml | cut -d' ' -f1)"
if [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$now" ]; then
    echo "setup: installing into .venv, a few minutes the first time"
    # torch by itself first: the version that needs no GPU packages.
    .venv/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -e ".[$extras]"
    echo "$now" >"$stamp"
fi
