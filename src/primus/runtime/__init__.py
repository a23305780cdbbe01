"""What happens around and inside the processes of a run: environments, run directory, workers, supervision."""
