"""The games: one module each, rules and numbers, nothing else."""
