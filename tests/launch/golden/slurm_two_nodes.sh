#!/bin/bash
#SBATCH --job-name=llama
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --output=/runs/llama/jobs/3/job.log
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
export PYTHONPATH=/checkout/src
exec /env/bin/python -P -m primus.runtime.slurm.batch /runs/llama/jobs/3 \
  srun --disable-status --kill-on-bad-exit=1 --ntasks-per-node=1 --cpu-bind=none /env/bin/python -P -m primus.runtime.node /runs/llama/jobs/3
