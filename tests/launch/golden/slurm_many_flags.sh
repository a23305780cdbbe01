#!/bin/bash
#SBATCH --job-name=llama
#SBATCH --nodes=16
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH -p mi300x
#SBATCH -A team
#SBATCH --time=12:00:00
#SBATCH --gpus-per-node=8
#SBATCH --switches=1@10:00
#SBATCH "--exclude=n[7-8],n12"
#SBATCH --output=/runs/llama/jobs/3/job.log
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@9
#SBATCH --requeue
export PYTHONPATH=/checkout/src
exec /env/bin/python -P -m primus.runtime.slurm.batch /runs/llama/jobs/3 \
  srun --disable-status --kill-on-bad-exit=1 --ntasks-per-node=1 --cpu-bind=none /env/bin/python -P -m primus.runtime.node /runs/llama/jobs/3
