"""What every backend must compute alike: the random start and the learning rate."""
