#!/usr/bin/env bash
# Lint, types and tests, from nothing. Arguments go to pytest: `bash tests/run.sh -k guards`.
set -euo pipefail
cd "$(dirname "$0")/.."
bash .ci/setup.sh dev,openvino,report
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
.venv/bin/python -m pytest -q -n "${PYTEST_WORKERS:-auto}" --dist loadfile "$@"
