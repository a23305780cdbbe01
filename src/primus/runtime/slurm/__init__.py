"""A run as a job of Slurm: queueing it, its batch step, queueing it again."""
