"""Files: written whole or not at all, and locked while they are shared."""
