"""One pass over checkpoints and batches: values, plans, and its only loop."""
