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

exec python3 -m scaletrain.launch.slurm.health_check "$@"
