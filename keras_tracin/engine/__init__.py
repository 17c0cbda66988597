"""One pass over checkpoints and batches, and what it is made of."""
