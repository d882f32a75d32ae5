#!/usr/bin/env bash
# Sets everything up, then passes all checks and tests. With arguments, only pytest runs, and gets them:
#
#   bash tools/test.sh
#   bash tools/test.sh tests/data -k order
#
# The tests of jobs on a real Slurm take a quarter of an hour, and run only where they are named:
#
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
# Tests of whole runs wait for processes most of their time: they run beside all others, and print when these are done.
beside=(tests/integration tests/chaos tests/hangs tests/test_readme.py)
log=$(mktemp)
"$python" -m pytest "${beside[@]}" >"$log" 2>&1 &
runs=$!
trap 'kill $runs 2>/dev/null || true; rm -f "$log"' EXIT
status=0
"$python" -m pytest "${beside[@]/#/--ignore=}" --ignore=tests/slurm || status=$?
wait "$runs" || status=$?
cat "$log"
trap - EXIT
rm -f "$log"
exit "$status"
