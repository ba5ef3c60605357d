"""What became of each weight, what is promised of it, and whether the promise is kept."""
