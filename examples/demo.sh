#!/usr/bin/env bash
# Trains a recommender on real data, compresses it, and shows the report. Under three minutes after installing.
set -euo pipefail
cd "$(dirname "$0")/.."
bash .ci/setup.sh openvino
exec .venv/bin/python examples/hotel_bookings.py
