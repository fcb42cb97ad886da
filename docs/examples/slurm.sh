#!/usr/bin/env bash
# Two nodes of four GPUs, one rank per GPU: sbatch slurm.sh
#SBATCH --job-name=trimtab-grpo
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

# Slurm sends SIGTERM two minutes before the time ends: trimtab saves a checkpoint and exits, and the job
# goes back into the queue, where it resumes.
trap 'kill -TERM "$step"; wait "$step" || true; scontrol requeue "$SLURM_JOB_ID"; exit 0' TERM

head_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export OMP_NUM_THREADS=8

# torchrun starts the ranks and starts all of them again if one fails; launch.type stays none.
srun --kill-on-bad-exit=1 torchrun \
  --nnodes="$SLURM_JOB_NUM_NODES" --nproc-per-node=4 \
  --rdzv-backend=c10d --rdzv-endpoint="$head_node:29400" --rdzv-id="$SLURM_JOB_ID" \
  --max-restarts=3 \
  -m trimtab grpo grpo.yaml &
step=$!
wait "$step"
