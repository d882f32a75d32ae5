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

# Slurm runs a copy of this file, and knows where the original lies.
trap '' USR2 TERM
here=
for _ in {1..30}; do # its controller may be away for a while
    shown=$(scontrol show job "${SLURM_JOB_ID:?give this script to sbatch}") || { sleep 10 && continue; }
    here=$(sed -n 's|^ *Command=\(.*\)/pretrain\.sh.*|\1|p' <<<"$shown" | head -n 1)
    break
done
if [[ ! -r $here/job.sh ]]; then
    echo "error: job.sh is not beside this script; submit slurm/pretrain.sh of the checkout, under that name" >&2
    exit 2
fi
# shellcheck source=slurm/job.sh
source "$here/job.sh"

supervise "$@"
