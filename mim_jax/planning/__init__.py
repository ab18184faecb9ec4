"""What a run will cost on a machine that is not here: compiled ahead of time, never executed."""
