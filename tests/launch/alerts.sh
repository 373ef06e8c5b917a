#!/usr/bin/env bash
# Tests the alert rules with promtool, by hand: PROMTOOL=promtool bash tests/launch/alerts.sh. Debian's package
# prometheus has promtool.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python - >"$work/rules.yaml" <<'END'
import yaml
print(yaml.safe_dump(yaml.safe_load(open("launch/cluster/monitoring/alerts.yaml"))["spec"]))
END
cp tests/launch/alerts_cases.yaml "$work"
"${PROMTOOL:-promtool}" check rules "$work/rules.yaml"
"${PROMTOOL:-promtool}" test rules "$work/alerts_cases.yaml"
