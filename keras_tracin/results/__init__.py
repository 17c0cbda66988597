"""What the methods return: scores with the ids of their examples."""
