#!/bin/bash
#SBATCH --job-name=a-run
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH "--output=/a \"b\" %%j/$(id)/`x`/ü#/job.log"
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
export PRIMUS_HOME=''
export PYTHONPATH='a'"'"'b
$HOME'
exec '/o'"'"'k/python' -P -m primus.runtime.slurm.batch '/a "b" %j/$(id)/`x`/ü#' \
  srun --disable-status --kill-on-bad-exit=1 --ntasks-per-node=1 --cpu-bind=none '/o'"'"'k/python' -P -m primus.runtime.node '/a "b" %j/$(id)/`x`/ü#'
