"""What a decision about a claim is: findings and verdicts, exact statistics, room for rounding, words."""
