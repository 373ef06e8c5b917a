# shellcheck shell=bash
# Sourced by the scripts beside it. `environment [EXTRAS]` puts the project, with the extras of setup.py that are
# named (comma-separated), into .venv at the root of the repository, and .venv/bin first on the PATH. It installs
# again only when setup.py or the extras have changed.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

environment() {
  local venv="$ROOT/.venv" base extras installed wanted
  local stamp="$venv/.installed"
  installed="$(cat "$stamp" 2>/dev/null || true)"
  # A virtual environment does not survive being moved, nor an interruption before it had its pip.
  if ! "$venv/bin/python" -c 'import pip' 2>/dev/null || { [ "$installed" ] && [ "${installed%%$'\n'*}" != "$ROOT" ]; }
  then
    base="$(find_python)"
    echo "Making the virtual environment .venv with $("$base" -V)"
    "$base" -m venv --clear "$venv"
    installed=
  fi
  # Extras of an earlier call stay wanted: the quickstart does not undo what the tests need.
  extras="$({ tr , '\n' <<<"${1:-}"; sed -n 's/^extra //p' <<<"$installed"; } | sed '/^$/d' | sort -u)"
  wanted="$(
    echo "$ROOT"
    "$venv/bin/python" -V
    cksum <"$ROOT/setup.py"
    sed '/^$/d; s/^/extra /' <<<"$extras"
  )"
  if [ "$wanted" != "$installed" ]; then
    extras="$(paste -sd, <<<"$extras")"
    echo "Installing lm${extras:+[$extras]} into .venv: minutes, the first time"
    "$venv/bin/python" -m pip install -qq --disable-pip-version-check --editable "$ROOT${extras:+[$extras]}"
    echo "$wanted" >"$stamp" # last: what was interrupted is repeated
  fi
  export PATH="$venv/bin:$PATH"
}

# Prints the first Python that is new enough and can make virtual environments.
find_python() {
  local candidate
  for candidate in python3.13 python3.12 python3.11 python3 python; do
    if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "error: found no Python 3.11 or newer that can make virtual environments; install one" \
    "(Debian, Ubuntu: apt install python3 python3-venv) and run this again." >&2
  return 2
}
