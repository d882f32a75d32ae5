#!/usr/bin/env bash
# Pretrains on a Slurm cluster, and keeps itself alive until the run is complete:
#
#   sbatch -N 4 slurm/pretrain.sh --config configs/pretrain/llama3_8b.yaml --optim.lr 1e-4
#
# Edit these four lines, or give their options to sbatch; all after the script's name goes to scaletrain/train.py.
##SBATCH --partition=gpu
#SBATCH --nodes=2
#SBATCH --gpus-per-node=8
#SBATCH --time=24:00:00

#SBATCH --job-name=pretrain
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --exclusive
#SBATCH --mem=0
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

supervise "$@"
