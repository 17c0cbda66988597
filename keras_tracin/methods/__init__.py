"""The attribution methods, which ask the engine for passes."""
