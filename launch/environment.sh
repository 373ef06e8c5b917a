# shellcheck shell=bash
# Sourced by the scripts beside it. `environment [EXTRAS] [LOCK]` puts the project, with the extras of setup.py that are
# named (comma-separated), into a virtual environment at the root of the repository, and its commands first on the
# PATH. Packages that a lock of launch/locks has get its versions. The virtual environment is .venv. PYTHON=python3.13
# chooses the Python; the virtual environment is then .venv-3.13. `environment` installs again only when setup.py, the
# lock or the extras have changed.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
TESTED=(3.13 3.12 3.11) # the Pythons that the tests pass on, newest first

environment() {
  local name base venv extras installed wanted stamp lock="${2:-}"
  name="$(environment_name)"
  venv="$ROOT/$name"
  stamp="$venv/.installed"
  installed="$(cat "$stamp" 2>/dev/null || true)"
  # A virtual environment does not survive being moved, nor an interruption before it had its pip.
  if ! "$venv/bin/python" -c 'import pip' 2>/dev/null || { [ "$installed" ] && [ "${installed%%$'\n'*}" != "$ROOT" ]; }
  then
    base="${PYTHON:-$(find_python)}"
    echo "Making the virtual environment $name with $("$base" -V)"
    "$base" -m venv --clear "$venv"
    installed=
  fi
  # Extras of an earlier call stay wanted: the quickstart does not undo what the tests need.
  extras="$({ tr , '\n' <<<"${1:-}"; sed -n 's/^extra //p' <<<"$installed"; } | sed '/^$/d' | sort -u)"
  wanted="$(
    echo "$ROOT"
    "$venv/bin/python" -V
    cat "$ROOT/setup.py" ${lock:+"$lock"} | cksum
    sed '/^$/d; s/^/extra /' <<<"$extras"
  )"
  if [ "$wanted" != "$installed" ]; then
    extras="$(paste -sd, <<<"$extras")"
    echo "Installing lm${extras:+[$extras]} into $name: minutes, the first time"
    # The lock without its hashes, which pip would then ask of every package. Modules are compiled when they are first
    # imported: most of torch's and transformers' never are, and compiling them all takes a minute.
    "$venv/bin/python" -m pip install -qq --no-compile --disable-pip-version-check --editable "$ROOT${extras:+[$extras]}" \
      --constraint <(if [ "$lock" ]; then sed -n 's/ \\$//; /^[a-z].*==/p' "$lock"; fi)
    echo "$wanted" >"$stamp" # last: what was interrupted is repeated
  fi
  export PATH="$venv/bin:$PATH"
}

# Prints the folder of the virtual environment.
environment_name() {
  if [ -z "${PYTHON:-}" ]; then
    echo .venv
  elif can_make_environments "$PYTHON"; then
    echo ".venv-$(minor_version "$PYTHON")"
  else
    echo "error: PYTHON=$PYTHON is not a Python 3.11 or newer that can make virtual environments; name another one." >&2
    return 2
  fi
}

can_make_environments() {
  "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

# Prints a Python's version without its last part: 3.13.
minor_version() {
  "$1" -c 'import sys; print("{}.{}".format(*sys.version_info))'
}

# Prints the first Python of the PATH that is new enough and can make virtual environments.
find_python() {
  local candidate
  for candidate in "${TESTED[@]/#/python}" python3 python; do
    if can_make_environments "$candidate"; then
      echo "$candidate"
      return
    fi
  done
  echo "error: found no Python 3.11 or newer that can make virtual environments; install one" \
    "(Debian, Ubuntu: apt install python3 python3-venv) and run this again." >&2
  return 2
}

# Prints the newest tested Python that is newer than version $1, nothing if there is none. It looks on the PATH, and in
# the folder of pyenv, which has more Pythons than those that it puts on the PATH.
find_newer_python() {
  local version candidate pyenv
  pyenv="$(pyenv root 2>/dev/null || echo "$HOME/.pyenv")"
  for version in "${TESTED[@]}"; do
    if [ "$version" = "$1" ]; then return; fi
    for candidate in "python$version" "$pyenv/versions/$version".*/"bin/python$version"; do
      if can_make_environments "$candidate"; then
        echo "$candidate"
        return
      fi
    done
  done
}
