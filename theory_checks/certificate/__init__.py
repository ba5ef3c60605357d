"""Bounds through a whole network (claims C7 and C18)."""
