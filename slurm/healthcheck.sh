#!/usr/bin/env bash
# Checks nodes as a training does before it starts, and trains nothing:
#
#   sbatch -N 4 slurm/healthcheck.sh
#   sbatch -w node07,node08 slurm/healthcheck.sh
#
# The job's log names the nodes that fail, and why; its exit code is 1 then. It drains and remembers nothing.
# Edit these four lines, or give their options to sbatch.
##SBATCH --partition=gpu
#SBATCH --nodes=2
#SBATCH --gpus-per-node=8
#SBATCH --time=00:15:00

#SBATCH --job-name=healthcheck
#SBATCH --output=%x-%j.log
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --no-kill

# Slurm runs a copy of this file, and knows where the original lies.
trap '' USR2 TERM
here=
for _ in {1..30}; do # its controller may be away for a while
    shown=$(scontrol show job "${SLURM_JOB_ID:?give this script to sbatch}") || { sleep 10 && continue; }
    here=$(sed -n 's|^ *Command=\(.*\)/healthcheck\.sh.*|\1|p' <<<"$shown" | head -n 1)
    break
done
if [[ ! -r $here/job.sh ]]; then
    echo "error: job.sh is not beside this script; submit slurm/healthcheck.sh of the checkout, under that name" >&2
    exit 2
fi
# shellcheck source=slurm/job.sh
source "$here/job.sh"

exec python3 -m scaletrain.launch.slurm.health_check "$@"
