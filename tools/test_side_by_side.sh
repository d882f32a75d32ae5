#!/usr/bin/env bash
# Runs two sessions of pytest at once, as most tests keep one core busy; -- stands between their arguments:
#
#   bash tools/test_side_by_side.sh tests/engine tests/training -- tests/data -k order
#
# The second one's output follows once both are over. It fails where one of them does.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
python=${SCALETRAIN_PYTHON:-$root/.venv/bin/python}
PATH=$(dirname "$python"):$PATH
export PATH
first=()
while [[ $1 != -- ]]; do
    first+=("$1")
    shift
done
second=("${@:2}")

# With job control: a shell without it has what it starts beside itself ignore Ctrl-C, which is among what is tested.
set -m
log=$(mktemp)
"$python" -m pytest "${second[@]}" >"$log" 2>&1 </dev/null &
other=$!
trap 'kill -- "-$other" 2>/dev/null || true; rm -f "$log"' EXIT
status=0
"$python" -m pytest "${first[@]}" || status=$?
if [[ $status -eq 2 ]]; then  # Ctrl-C, which the other one does not get, or a file that cannot be imported
    exit 2
fi
wait "$other" || status=$?
trap 'rm -f "$log"' EXIT  # its number may be another's from now on
cat "$log"
exit "$status"
