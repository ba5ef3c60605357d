"""A network and its points: reading points, forward passes, and every use of a weight that a trace sees."""
