#!/usr/bin/env bash
# From a fresh machine to a green test suite: bash launch/test.sh [--newest] [--peers] [arguments of pytest].
#
# --newest  Runs style, types and a short part of the suite on the newest tested Python of this machine that is newer
#           than the one of .venv, with the versions of launch/locks/cpu.txt, which pods and images have. Takes about two
#           minutes, installation included. Does nothing when there is none.
# --peers   Adds the comparisons with transformers (torch and transformers are installed, some hundred megabytes).
#
# PYTHON=python3.13 bash launch/test.sh tests/models chooses the Python and installs into .venv-3.13.
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

cd "$ROOT"
# What a release of jax or flax may break, in about a minute: every operation, Pallas kernels among them; a whole model;
# a run that trains, resumes and evaluates.
SHORT=(tests/ops tests/tasks/test_sixth_task.py tests/models/test_packing.py)

extras=test
newest=
lock=
types=() # of everything that pyproject.toml names
arguments=()
for argument in "$@"; do
  case "$argument" in
    --newest) newest=yes ;;
    --peers)
      extras=test,peers
      arguments+=(--peers)
      ;;
    *) arguments+=("$argument") ;;
  esac
done

if [ "$newest" ]; then
  own="$(minor_version "$([ -x .venv/bin/python ] && echo .venv/bin/python || find_python)")"
  PYTHON="$(find_newer_python "$own")"
  if [ -z "$PYTHON" ]; then
    echo "No Python newer than $own was found on the PATH or in pyenv's folder (tested are ${TESTED[*]}): nothing to do."
    exit
  fi
  extras=check
  lock=$ROOT/launch/locks/cpu.txt # what pods and images have
  types=(lm configs launch) # those of tests need the packages that the tests need
  arguments+=("${SHORT[@]}")
fi
environment "$extras" "$lock"

echo "Checking style and types with $(python -V)"
ruff check
ruff format --check
basedpyright ${types[@]+"${types[@]}"} # written so for bash before 4.4

echo "Testing with $(python -V)"
# A worker for each core up to eight, and one more: tests wait for processes that they start, for servers, for a
# heartbeat to stop. A worker that runs out of tests takes over some of another's. A worker that dies ends the run.
cores=$(getconf _NPROCESSORS_ONLN)
exec python -m pytest -p tests.workers --numprocesses=$((cores < 8 ? cores + 1 : 9)) --dist=worksteal \
  --max-worker-restart=0 ${arguments[@]+"${arguments[@]}"}
