"""The bench: suites in, run folders out; training, protocols, measuring, workers."""
