#!/usr/bin/env bash
# Trains on all workers of a Cloud TPU VM or pod slice, and starts again after a pre-emption, a stall or a lost worker.
#
#     export TPU=my-slice ZONE=us-central2-b
#     REPOSITORY=https://github.com/me/mim_jax tools/launch/tpu_pod.sh setup
#     tools/launch/tpu_pod.sh train --config=configs/mae_vit_l16_in1k.py --workdir=/mnt/runs/mae --config.mesh.fsdp=8
#
# Needs gcloud, logged in; a slice that exists; and a --workdir that is the same directory on all workers (Filestore,
# or a bucket mounted with Cloud Storage FUSE). Run it where the connection lasts, such as in tmux.
set -euo pipefail

: "${TPU:?set TPU to the name of the TPU VM}"
: "${ZONE:?set ZONE to its zone}"
DIRECTORY=${DIRECTORY:-mim_jax}        # on the workers, below the home directory
MAX_RESTARTS=${MAX_RESTARTS:-100}
RESTART_SECONDS=${RESTART_SECONDS:-30} # between two starts

on_all_workers() {
    gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" ${PROJECT:+--project="$PROJECT"} \
        --worker=all --batch-size=all --command="$1" # all at once: they wait for one another
}

setup() {
    : "${REPOSITORY:?set REPOSITORY to the git address the workers clone}"
    local directory repository
    printf -v directory '%q' "$DIRECTORY"
    printf -v repository '%q' "$REPOSITORY"
    on_all_workers "set -e; [ -d $directory ] || git clone $repository $directory; cd $directory; git pull --ff-only
        tools/create_venv.sh .venv; .venv/bin/python -m pip install -q -e '.[tpu]'"
}

train() {
    local command code restarts=0
    command=$(printf 'cd %q && exec .venv/bin/python -m mim_jax.train --distributed' "$DIRECTORY")
    command+=$(printf ' %q' "$@")
    while true; do
        code=0
        on_all_workers "$command" || code=$? # the first worker's that is not 0
        case $code in
            75 | 76 | 134) ;; # saved, stalled, another worker died: the same command goes on
            *) exit "$code" ;;
        esac
        if ((restarts++ >= MAX_RESTARTS)); then
            echo "Given up after $MAX_RESTARTS restarts (MAX_RESTARTS)." >&2
            exit "$code"
        fi
        echo "Exit code $code: starting again ($restarts of $MAX_RESTARTS)." >&2
        sleep "$RESTART_SECONDS"
    done
}

case ${1:-} in
    setup | train) "$@" ;;
    *)
        echo "usage: TPU=NAME ZONE=ZONE $0 setup | train --config=FILE --workdir=DIRECTORY ..." >&2
        exit 2
        ;;
esac
