env FLAVOUR='it'"'"'s
a "test"' NCCL_DEBUG=INFO OMP_NUM_THREADS=4 PYTHONPATH=/checkout/src /env/bin/python -P -m primus.runtime.agents.agent '/runs/a run/attempts/3' --processes torchrun --nproc 4 --max-restarts 2 --restart-window 5400 --run-id a-run-3-0123
