"""What the backends on PyTorch share: samples, starts, checkpoints, measurements, declared patches. No engine."""
