#!/usr/bin/env bash
# Lint, types, pages and tests, from nothing. Arguments go to pytest: `bash tests/run.sh -k guards`.
set -euo pipefail
cd "$(dirname "$0")/.."
bash .ci/setup.sh dev,openvino,report,cli,ray,spark,docs
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
# From nothing too: what was read before would not be complained about again.
.venv/bin/python -m sphinx -q -E -W --keep-going -j auto docs site
# There is a worker for each core: threads of their own would wait for one another.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
.venv/bin/python -m pytest -q -n "${PYTEST_WORKERS:-auto}" --dist loadfile --no-loadscope-reorder "$@"
