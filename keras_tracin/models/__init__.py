"""A Keras model's own state: its variables, and one caller at a time."""
