#!/bin/bash
#SBATCH --job-name=llama
#SBATCH --nodes=2-4
#SBATCH --nodelist "n[1-4]"
#SBATCH -c 16
#SBATCH "--comment=it is; $(mine)"
#SBATCH --no-requeue
#SBATCH --output=/runs/llama/jobs/3/job.log
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120
export PYTHONPATH=/checkout/src
exec /env/bin/python -P -m primus.runtime.slurm.batch /runs/llama/jobs/3 \
  srun --disable-status --kill-on-bad-exit=1 --ntasks-per-node=1 --cpu-bind=none /env/bin/python -P -m primus.runtime.node /runs/llama/jobs/3
