"""The claims on a network of the user's: what the checks share, and the report."""
