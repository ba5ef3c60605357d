"""What is judged: the library itself, and implementations that are wrong on purpose."""
