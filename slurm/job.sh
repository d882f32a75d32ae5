# shellcheck shell=bash
# What all jobs share; sourced by the scripts beside it, never run. It prepares the environment, and then becomes the
# supervisor (scaletrain/launch/slurm), which checks the nodes, trains, and requeues the job.
#
# Environment variables, besides those of docs/cluster.md:
#   VENV        virtual environment to activate; .venv of the project where there is one
#   MODULES     environment modules to load first, separated by blanks
#   CONTAINER   image that the nodes train in: .sqsh or a registry's for pyxis, .sif for Apptainer
set -euo pipefail

# A signal that comes while the environment is prepared must not end the job; the supervisor listens from its start on.
trap '' USR2 TERM

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

if [[ -n ${MODULES:-} ]]; then
    # shellcheck disable=SC2086 # several modules
    module load $MODULES
fi
venv=${VENV:-$root/.venv}
if [[ -e $venv/bin/activate ]]; then
    # shellcheck disable=SC1091 # made by tools/setup.sh
    source "$venv/bin/activate"
elif [[ -n ${VENV:-} ]]; then
    echo "error: VENV=$VENV has no bin/activate" >&2
    exit 2
fi
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"

supervise() {
    exec python3 -m scaletrain.launch.slurm.supervise "$@"
}
