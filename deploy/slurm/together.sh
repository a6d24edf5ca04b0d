#!/usr/bin/env bash
# Rendered by deploy/render.py: sbatch this from the project's folder, on a disk that all machines share, with the environment active.
# The login lies in ~/.mlflow/credentials: [mlflow], mlflow_tracking_username = ..., mlflow_tracking_password = ...
#SBATCH --job-name=tracked-cls
#SBATCH --partition=batch
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=2
#SBATCH --mem=8G
#SBATCH --time=08:00:00
#SBATCH --signal=B:TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

export MLFLOW_TRACKING_URI=http://tracking.example:5000
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR WORLD_SIZE=$SLURM_NTASKS LOCAL_WORLD_SIZE=1
export MASTER_PORT=$((20000 + SLURM_JOB_ID % 12000)) # one per job, below those that Linux gives to clients
export TRACKED_CLS_CORES=$((SLURM_CPUS_PER_TASK * LOCAL_WORLD_SIZE)) # of all processes of a machine, which share them out
export TRACKED_CLS_RESTARTS=${SLURM_RESTART_COUNT:-0} # put back into the queue, it goes on even with resume=never

# since Slurm 22.05 the #SBATCH line of --cpus-per-task does not hold for srun
srun --kill-on-bad-exit=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" \
  bash -c 'RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID GROUP_RANK=$SLURM_NODEID exec "$@"' rank \
  python -m pipelines.train --params params/train.yaml &
ranks=$!

# 300 s before the time is over Slurm tells this script, and it the processes, which save their state: the same command goes on
# from there. By an exit code alone a rank that failed, and took the others with it, would look like that. scancel signals every
# step of the job, whatever its number, and not this script; srun itself, told to stop, would kill the processes at once.
told=no code=0
trap 'told=yes; scancel --signal=TERM "$SLURM_JOB_ID" || true' TERM
wait "$ranks" || code=$?
if [ "$told" = yes ]; then
  code=0
  wait "$ranks" || code=$?
  [ "$code" -eq 0 ] || scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
