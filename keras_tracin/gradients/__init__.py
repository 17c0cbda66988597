"""Per-example gradients: their factors, the layer rules, the capture."""
