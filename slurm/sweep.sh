#!/usr/bin/env bash
# Trains once for each line of a file, as a job array; each line holds arguments of its own:
#
#   printf -- '--optim.lr 3e-4\n--optim.lr 6e-4\n--optim.lr 1e-3\n' > rates.txt
#   sbatch --array=0-2 slurm/sweep.sh rates.txt --config mine.yaml
#
# The runs are runs/rates/0, 1 and 2; runs/rates/comparison.md compares them, anew whenever one has ended, and
# `tensorboard --logdir runs/rates` shows them together. Blank lines and those that begin with # do not count.
# Edit these four lines, or give their options to sbatch; all after the file's name goes to scaletrain/train.py.
##SBATCH --partition=gpu
#SBATCH --nodes=1
#SBATCH --gpus-per-node=1
#SBATCH --time=04:00:00

#SBATCH --job-name=sweep
#SBATCH --output=%x-%A_%a.log
#SBATCH --open-mode=append
#SBATCH --cpus-per-gpu=4
#SBATCH --requeue
#SBATCH --no-kill
#SBATCH --signal=B:USR2@180

# Slurm runs a copy of this file, and knows where the original lies; its controller may be away for a while.
: "${SLURM_JOB_ID:?give this script to sbatch}"
trap '' USR2 TERM
tries=0
until shown=$(scontrol show job "$SLURM_JOB_ID") || ((++tries == 30)); do sleep 10; done
command=${shown#*Command=}
here=${command%%.sh[[:space:]]*}
here=${here%/*}
if [[ ! -r $here/job.sh ]]; then
    echo "error: no job.sh in $here; submit a script that lies in the folder slurm of the checkout" >&2
    exit 2
fi
# shellcheck source=slurm/job.sh
source "$here/job.sh"

if [[ -z ${SLURM_ARRAY_TASK_ID:-} ]]; then
    echo "error: a sweep is a job array: sbatch --array=0-2 slurm/sweep.sh FILE ..." >&2
    exit 2
fi
if [[ $# -eq 0 || ! -r $1 ]]; then
    echo "error: ${1:-no file}: name a file with the arguments of one run in each line" >&2
    exit 2
fi
file=$1
shift
line=$(grep -v -e '^[[:space:]]*#' -e '^[[:space:]]*$' "$file" | sed -n "$((SLURM_ARRAY_TASK_ID + 1))p")
if [[ -z $line ]]; then
    echo "error: task $SLURM_ARRAY_TASK_ID counts from 0, and $file has fewer lines; give sbatch --array=0-N to match" >&2
    exit 2
fi
if ! words=$(xargs -n 1 printf '%s\n' <<<"$line"); then
    echo "error: $file: a quotation mark is not closed: $line" >&2
    exit 2
fi
mapfile -t own <<<"$words"
name=$(basename "$file")
folder=runs/${name%.*}
printf -v table 'python3 %q --runs %q --out %q' "$root/tools/compare.py" "$folder/*" "$folder/comparison.md"
export ON_END="$table${ON_END:+; $ON_END}"
supervise "$@" "${own[@]}" --run_dir "$folder/$SLURM_ARRAY_TASK_ID"
