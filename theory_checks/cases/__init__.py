"""What claims are tried on: random and hard cases, closed-form families, and the oracle that judges them."""
