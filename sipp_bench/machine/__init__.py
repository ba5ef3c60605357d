"""This machine: its files, threads, memory and description, and the registry that every list of names uses."""
