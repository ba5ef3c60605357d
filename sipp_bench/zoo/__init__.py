"""Networks, data and trained checkpoints to prune: names in, torch objects out."""
