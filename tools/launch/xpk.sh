#!/usr/bin/env bash
# Submits a training run to a GKE cluster of TPUs with XPK; Kubernetes starts it again after pre-emptions and stalls.
#
#     export CLUSTER=my-cluster TPU_TYPE=v5litepod-64 IMAGE=gcr.io/my-project/mim_jax:latest
#     tools/launch/xpk.sh mae-l --config=configs/mae_vit_l16_in1k.py --workdir=/mnt/runs/mae-l --config.mesh.fsdp=8
#
# Needs xpk (with --restart-on-exit-codes), a cluster made with it, an image in which this repository is installed and
# is the working directory, and a --workdir on storage that all pods mount (`xpk storage attach`).
# PROJECT, ZONE, NUM_SLICES (1) and MAX_RESTARTS (100) may be set too.
set -euo pipefail

: "${CLUSTER:?set CLUSTER to the name of the GKE cluster}"
: "${TPU_TYPE:?set TPU_TYPE, such as v5litepod-64}"
: "${IMAGE:?set IMAGE to a container image with mim_jax}"
workload=${1:?usage: $0 NAME --config=FILE --workdir=DIRECTORY ...}
shift

# exec: the pod's SIGTERM has to reach Python itself. XPK restarts on 42 and 127-255 of its own accord, so on 134 too.
xpk workload create \
    --workload="$workload" \
    --cluster="$CLUSTER" \
    ${PROJECT:+--project="$PROJECT"} \
    ${ZONE:+--zone="$ZONE"} \
    --tpu-type="$TPU_TYPE" \
    --num-slices="${NUM_SLICES:-1}" \
    --docker-image="$IMAGE" \
    --max-restarts="${MAX_RESTARTS:-100}" \
    --restart-on-exit-codes=75,76 \
    --termination-grace-period-seconds=300 \
    --command="exec python -m mim_jax.train --distributed$(printf ' %q' "$@")"
