#!/usr/bin/env bash
# Fine-tunes the final weights of another run, once that run is complete:
#
#   job=$(sbatch --parsable slurm/pretrain.sh --config pretrain.yaml)
#   sbatch --dependency="afterok:$job" slurm/finetune.sh --config finetune.yaml --init runs/pretrain
#
# A requeued job keeps its number, and ends with code 0 only when its run is complete: that is what afterok waits for.
# Edit these four lines, or give their options to sbatch; all after the script's name goes to scaletrain/train.py.
##SBATCH --partition=gpu
#SBATCH --nodes=1
#SBATCH --gpus-per-node=8
#SBATCH --time=12:00:00

#SBATCH --job-name=finetune
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --requeue
#SBATCH --no-kill
#SBATCH --kill-on-invalid-dep=yes
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

case " $*" in
*" --init"*) ;;
*)
    echo "error: --init is missing: name the run whose weights are to be fine-tuned, as --init runs/pretrain" >&2
    exit 2
    ;;
esac
supervise "$@"
