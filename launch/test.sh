#!/usr/bin/env bash
# From a fresh machine to a green test suite: bash launch/test.sh [--peers] [arguments of pytest].
# --peers adds the comparisons with transformers (torch and transformers are installed, some hundred megabytes).
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

extras="test"
for argument in "$@"; do
  if [ "$argument" = --peers ]; then extras=test,peers; fi
done
environment "$extras"
cd "$ROOT"

echo "Checking style and types"
ruff check
ruff format --check
basedpyright

echo "Testing"
# A worker for each core up to eight, and one more: tests wait for processes that they start, for servers, for a
# heartbeat to stop. A worker that runs out of tests takes over some of another's.
cores=$(getconf _NPROCESSORS_ONLN)
exec python -m pytest --numprocesses=$((cores < 8 ? cores + 1 : 9)) --dist=worksteal "$@"
