#!/usr/bin/env bash
# Trains under SLURM on GPUs, one process for each; saves before the time limit and queues itself again.
#
#     sbatch --nodes=4 --time=12:00:00 tools/launch/slurm.sh --config=configs/mae_vit_l16_in1k.py --workdir=runs/mae
#
# Submit it from the repository's root, with the environment in .venv (or PYTHON=...) and --workdir on a shared file
# system. JAX gives every task the GPU of its SLURM_LOCALID, so all tasks of a node must see all its GPUs: ask for
# --gpus-per-node, not --gpus-per-task, and for as many --ntasks-per-node.
#SBATCH --job-name=mim_jax
#SBATCH --nodes=1
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
# Without "B:" it goes to srun's tasks, so to Python, and not to this shell.
#SBATCH --signal=USR1@300
set -euo pipefail

cd "${SLURM_SUBMIT_DIR:?submit this script with sbatch}"
MAX_RESTARTS=${MAX_RESTARTS:-100}

code=0
# Every process saves and ends by itself; killing the rest once one has ended would cut their last checkpoint short.
srun --kill-on-bad-exit=0 "${PYTHON:-.venv/bin/python}" -m mim_jax.train --distributed "$@" || code=$?
case $code in
    75 | 76 | 134) # saved, stalled, another process died: the same command goes on
        if ((${SLURM_RESTART_COUNT:-0} < MAX_RESTARTS)); then
            echo "Exit code $code: queued again." >&2
            exec scontrol requeue "$SLURM_JOB_ID"
        fi
        echo "Given up after $MAX_RESTARTS restarts (MAX_RESTARTS)." >&2
        ;;
esac
exit "$code"
