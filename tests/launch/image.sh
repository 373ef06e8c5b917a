#!/usr/bin/env bash
# Builds launch/Dockerfile and trains in it, by hand, as root, with what Debian has: apt install buildah mmdebstrap.
#
#   bash tests/launch/image.sh [arguments of buildah bud, such as --build-arg=EXTRAS=parquet or --volume=...]
#
# Everything is kept in a temporary folder, and deleted at the end.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
work="$(mktemp -d)"
store() { buildah --storage-driver=vfs --root="$work/images" --runroot="$work/run" "$@"; }
trap 'store rm --all >/dev/null; rm -rf "$work"' EXIT

echo "== A base with Python, from Debian's packages"
mmdebstrap --quiet --variant=minbase --include=ca-certificates,python3,python3-venv trixie "$work/base.tar"
base="$(store from scratch)"
store add --quiet "$base" "$work/base.tar" / >/dev/null
store commit --quiet "$base" base >/dev/null

echo "== Build"
store bud --isolation=chroot --pull-never --build-arg=BASE=localhost/base "$@" \
  --layers --file=launch/Dockerfile --tag=lm .
echo "== Build again after a change of the code: the packages come from the cache"
mkdir "$work/changed"
cp -r configs launch lm setup.py pyproject.toml LICENSE .dockerignore "$work/changed"
echo "# changed" >>"$work/changed/lm/cli.py"
store bud --isolation=chroot --pull-never --build-arg=BASE=localhost/base "$@" \
  --layers --file=launch/Dockerfile --tag=changed "$work/changed" | tee "$work/log"
[ "$(grep -c 'Using cache' "$work/log")" -ge 5 ]

echo "== Train in it, as the user of the image"
container="$(store from --pull-never lm)"
inside() { store run --isolation=chroot "$container" -- "$@"; }
inside id
inside python launch/train.py --config=configs/quickstart.py --workdir=/home/lm/run \
  --config.data.source=text --config.data.path='/lm/lm/*.py' --config.data.vocab_size=512 --config.model.vocab_size=512 \
  --config.model.d_model=48 --config.model.d_ff=96 --config.train.steps=20 --config.train.eval_every=0
inside ls -l /home/lm/run
echo "PASSED"
