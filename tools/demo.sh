#!/usr/bin/env bash
# Sets everything up, then runs the main job on the embedded default: a small GPT learns from the source code of
# Python's standard library. Arguments go to the job:
#
#   bash tools/demo.sh
#   bash tools/demo.sh --train.max_steps 50
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
bash tools/setup.sh
python=${SCALETRAIN_PYTHON:-$root/.venv/bin/python}
bin=$(dirname "$python")
# DeepSpeed calls ninja and starts ranks by name.
export PATH=$bin:$PATH

deepspeed scaletrain/train.py "$@"
echo "watch it: $bin/tensorboard --logdir $root/runs"
