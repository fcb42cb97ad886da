"""One short file a method: its paper and its point in the space."""
