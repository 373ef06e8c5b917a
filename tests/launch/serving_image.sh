#!/usr/bin/env bash
# Builds the serving image and asks it, by hand, as root, with what Debian has: apt install buildah mmdebstrap.
#
#   bash tests/launch/serving_image.sh WORKDIR [arguments of buildah bud, such as --volume=/etc/pip.conf:/etc/pip.conf:ro]
#
# WORKDIR is a run of an encoder. The container's root is mounted read-only, and the server runs as uid 1000. Everything
# is kept in a temporary folder, and deleted at the end.
set -euo pipefail
model="$(realpath "$1")"
shift
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
work="$(mktemp -d)"
store() { buildah --storage-driver=vfs --root="$work/images" --runroot="$work/run" "$@"; }
trap 'store rm --all >/dev/null; rm -rf "$work"' EXIT

echo "== A base with Python, from Debian's packages"
mmdebstrap --quiet --variant=minbase --include=ca-certificates,python3,python3-venv trixie "$work/base.tar"
base="$(store from scratch)"
store add --quiet "$base" "$work/base.tar" / >/dev/null
store commit --quiet "$base" base >/dev/null
store rm "$base" >/dev/null
rm "$work/base.tar"

echo "== Build"
store bud --isolation=chroot --pull-never --build-arg=BASE=localhost/base "$@" \
  --file=launch/Dockerfile --target=serving --tag=serve .
container="$(store from --pull-never serve)"
root="$(store mount "$container")"
echo "packages: $(du -sm "$root/opt/lm" | cut -f1) MB, code: $(du -sm "$root/lm" | cut -f1) MB," \
  "whole image: $(du -smx "$root" | cut -f1) MB"
for tool in gcc cc clang pip pip3 make; do
  if chroot "$root" sh -c "PATH=/opt/lm/bin:\$PATH command -v $tool"; then echo "the image has $tool" && exit 1; fi
done

echo "== Serve in it: uid 1000, a read-only root, a tmpfs"
cat >"$work/inside.sh" <<END
set -e
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount -t tmpfs tmpfs "$root/tmp"
mkdir "$root/tmp/model" "$root/tmp/tmp"
chmod 1777 "$root/tmp"
mount --bind "$model" "$root/tmp/model"
mount -t tmpfs tmpfs "$root/dev"
for device in null zero random urandom; do touch "$root/dev/\$device"; mount --bind /dev/\$device "$root/dev/\$device"; done
mount -o remount,bind,ro "$root"
exec chroot --userspec=1000:1000 "$root" /usr/bin/env -i HOME=/tmp PATH=/opt/lm/bin:/usr/bin:/bin PYTHONPATH=/lm \
  PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 sh -c 'cd /lm && id && if touch /written 2>/dev/null; then exit 9; fi &&
  exec python launch/serve.py --host=0.0.0.0 --checkpoint=/tmp/model --port=8732 --tasks=embed --drain_seconds=2 \
  --compilation_cache=/tmp/cache'
END
unshare --mount --fork bash "$work/inside.sh" >"$work/log" 2>&1 &
server=$!
for _ in $(seq 300); do
  if curl -sf localhost:8732/ready >/dev/null; then break; fi
  if ! kill -0 $server 2>/dev/null; then cat "$work/log" && exit 1; fi
  sleep 1
done
cat "$work/log"
grep -q "uid=1000" "$work/log"
curl -sf localhost:8732/embed -d '{"inputs": ["one text", "another"]}' | head -c 60 && echo " ..."

echo "== SIGTERM: unready at once, still answering, exit code 0"
process="$(pgrep -f 'launch/serve.py --host=0.0.0.0 --checkpoint=/tmp/model --port=8732' | tail -1)"
kill -TERM "$process"
sleep 0.5
[ "$(curl -s -o /dev/null -w '%{http_code}' localhost:8732/ready)" = 503 ]
curl -sf localhost:8732/embed -d '{"inputs": ["a late text", "another"]}' >/dev/null
wait $server
echo "PASSED"
