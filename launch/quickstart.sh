#!/usr/bin/env bash
# From a fresh machine to a small trained BERT that fills in masks: bash launch/quickstart.sh [flags of train.py].
# Nothing is downloaded but Python packages; run it again to go on where it stopped.
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

environment
cd "$ROOT"
# XLA takes the memory of every step anew from glibc; in huge pages a step on a CPU is 13 to 25% faster.
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}"
workdir=runs/quickstart

echo "Training a small BERT on the docstrings of this Python installation"
python launch/train.py --config=configs/quickstart.py --workdir="$workdir" "$@"

echo "Evaluating it on documents that it has not seen"
python launch/evaluate.py --checkpoint="$workdir"

echo "Filling in masks"
sentences="$workdir/sentences.txt"
cat >"$sentences" <<'END'
Return a [MASK] of strings.
Return True if the object [MASK] a string.
Return the number [MASK] elements in the list.
END
python launch/predict.py --checkpoint="$workdir" --task=fill-mask --input="$sentences" |
  python -c '
import json, sys
for sentence, line in zip(open(sys.argv[1]), sys.stdin):
    print(" ", sentence.strip())
    for candidate in json.loads(line)["masks"][0]:
        print("    {probability:6.1%}  {token}".format(**candidate).replace("▁", ""))
' "$sentences"

echo "The loss curve is in $ROOT/$workdir/loss.png"
