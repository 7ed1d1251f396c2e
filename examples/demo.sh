#!/usr/bin/env bash
# Trains a recommender on real data, compresses it, shows the report, and writes it as a page. Under three minutes after installing.
set -euo pipefail
cd "$(dirname "$0")/.."
bash .ci/setup.sh openvino,report
exec .venv/bin/python examples/hotel_bookings.py
