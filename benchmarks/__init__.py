"""Speed and memory of the library, measured beside what it should cost."""
