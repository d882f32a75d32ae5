#!/usr/bin/env bash
# Sets everything up, then passes all checks and tests. With arguments, only pytest runs, and gets them:
#
#   bash tools/test.sh
#   bash tools/test.sh tests/data -k order
#
# SCALETRAIN_STRICT=1 makes a skipped test a failure.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
bash tools/setup.sh
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
    shellcheck tools/*.sh .ci/run
fi
"$python" -m pytest
