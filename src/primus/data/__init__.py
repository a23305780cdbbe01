"""From text to batches: the token dataset, its preparation, the sample order and the reader."""
