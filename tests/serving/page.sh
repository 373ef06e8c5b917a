#!/usr/bin/env bash
# Tries the page of a running server in a real Chromium: bash tests/serving/page.sh URL FOLDER
# It writes a screenshot of every task, in both languages and at two widths, into FOLDER.
# Needs node and Debian's chromium (or CHROMIUM=PATH); playwright-core and axe-core are installed into BROWSER_TOOLS.
set -euo pipefail

url="${1:?give the URL of a server, such as http://127.0.0.1:8000}"
folder="${2:?give a folder for the screenshots}"
tools="${BROWSER_TOOLS:-${TMPDIR:-/tmp}/lm-browser-tools}"
mkdir -p "$tools" "$folder"
[ -d "$tools/node_modules/axe-core" ] || npm install --silent --prefix "$tools" playwright-core@1.65 axe-core@4
cp "$(dirname "${BASH_SOURCE[0]}")/page.mjs" "$tools/page.mjs" # node looks for packages beside the file
exec node "$tools/page.mjs" "$url" "$folder" "${CHROMIUM:-$(command -v chromium)}"
