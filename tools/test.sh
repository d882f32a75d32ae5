#!/usr/bin/env bash
# Sets everything up, then passes all checks and tests. With arguments, only pytest runs, and gets them:
#
#   bash tools/test.sh
#   bash tools/test.sh tests/data -k order
#
# What takes longer runs only where it is named: single slow tests, whole runs, and jobs on a real Slurm:
#
#   bash tools/test.sh -m slow
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
# Two sessions of about the same length.
beside=(tests/test_readme.py tests/engine tests/training tests/hardware tests/hangs tests/tools tests/storage)
named=(tests/integration tests/chaos tests/slurm)
rest=("${beside[@]/#/--ignore=}" "${named[@]/#/--ignore=}")
exec bash tools/test_side_by_side.sh -m "not slow" "${rest[@]}" -- -m "not slow" "${beside[@]}"
