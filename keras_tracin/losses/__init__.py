"""The loss of one example, and what the compiled losses say of outputs."""
