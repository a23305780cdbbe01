"""For authors of backends: the suite every backend passes."""
