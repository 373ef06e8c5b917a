#!/usr/bin/env bash
# Writes launch/locks/cpu.txt, gpu.txt and tpu.txt anew: what images and TPU VMs install, with hashes.
#
#   bash launch/lock.sh [options of uv pip compile, such as --upgrade-package=jax]
#
# The locks are for Python 3.12 and newer on 64-bit Linux with glibc 2.31 or newer. Versions that a lock already has stay
# unless setup.py or the options say otherwise; --upgrade takes the newest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/uv"
"$work/uv/bin/pip" install --quiet uv
for kind in cpu gpu tpu; do
  extras=(--extra=serve --extra=gcs --extra=s3)
  if [ "$kind" != cpu ]; then extras+=(--extra="$kind"); fi
  "$work/uv/bin/uv" pip compile setup.py "${extras[@]}" --quiet --generate-hashes --no-annotate --no-header \
    --python-version=3.12 --python-platform=x86_64-manylinux_2_31 --output-file="launch/locks/$kind.txt" "$@"
done
