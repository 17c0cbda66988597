"""Examples from whatever `model.fit` takes, and their ids."""
