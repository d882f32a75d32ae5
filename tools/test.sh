#!/usr/bin/env bash
# Sets everything up, then passes all checks and tests. With arguments, only pytest runs, and gets them:
#
#   bash tools/test.sh
#   bash tools/test.sh tests/data -k order
#
# Tests of whole runs take six minutes, those of jobs on a real Slurm half an hour: they run only where they are named:
#
#   bash tools/test.sh tests/integration tests/chaos
#   bash tools/test.sh tests/slurm
#
# SCALETRAIN_STRICT=1 makes a skipped test a failure.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
bash tools/setup.sh --for_tests
python=${SCALETRAIN_PYTHON:-$root/.venv/bin/python}
PATH=$(dirname "$python"):$PATH
export PATH

if [[ $# -gt 0 ]]; then
    exec "$python" -m pytest "$@"
fi

set -x
"$python" -m ruff format --check .
"$python" -m ruff check .
"$python" -m mypy
codespell
if command -v shellcheck >/dev/null; then
    shellcheck -x tools/*.sh slurm/*.sh .ci/run
fi
# Two sessions of about the same length side by side, as most tests keep one core busy.
beside=(tests/test_readme.py tests/engine tests/training tests/hardware tests/hangs tests/tools)
named=(tests/integration tests/chaos tests/slurm)
log=$(mktemp)
"$python" -m pytest "${beside[@]}" >"$log" 2>&1 &
other=$!
trap 'kill $other 2>/dev/null || true; rm -f "$log"' EXIT
status=0
"$python" -m pytest "${beside[@]/#/--ignore=}" "${named[@]/#/--ignore=}" || status=$?
wait "$other" || status=$?
cat "$log"
trap - EXIT
rm -f "$log"
exit "$status"
