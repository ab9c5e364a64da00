#!/bin/sh
# Run with `sbatch examples/slurm.sh`: 64 tasks, each restores its part of a bucket.
# A task that failed or was killed goes on by itself: sbatch --array=7 examples/slurm.sh
#SBATCH --job-name=diip
#SBATCH --array=0-63
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
export DIIP_CACHE="$HOME/diip_cache"  # compiled programs, shared by all tasks
exec diip --image s3://bucket/scans/ --output s3://bucket/restored/ --recursive \
  --shard auto/64 --no_progress
