"""Speed and memory of the library, measured compared with reference costs."""
