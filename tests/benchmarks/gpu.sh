#!/usr/bin/env bash
# Measures one GPU in under eight minutes and prints a table. See tests/benchmarks/gpu/__main__.py.
#
#   bash tests/benchmarks/gpu.sh [--output=DIR] [--parts=attention,bert] [--budget=SECONDS] [--smoke]
#
# Without a GPU it runs every part at the sizes of --smoke, to see that they run. PYTHON chooses the interpreter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
python=${PYTHON:-python3}
if [[ -z ${PYTHON:-} && -x .venv/bin/python ]]; then python=.venv/bin/python; fi
exec "$python" -m tests.benchmarks.gpu "$@"
