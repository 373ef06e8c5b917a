#!/usr/bin/env bash
# Runs every command of README.md, shortened, in a clean clone: bash tests/readme.sh [--quick]
#
# --quick  Runs the launchers' dry runs alone, in this checkout and with the Python on the PATH.
#
# tests/readme.py says how each command is shortened. The clone makes an environment of its own, which takes minutes.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

if [ "${1:-}" = --quick ]; then
  cd "$root"
  exec python -m tests.readme --quick
fi

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
git clone --quiet "$root" "$work/lm"
cd "$work/lm"
bash launch/quickstart.sh --config.train.steps=2 --config.train.eval_batches=1 # makes the environment
PATH="$work/lm/.venv/bin:$PATH" python -m tests.readme --all
