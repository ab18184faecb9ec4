"""The evaluations there are, one a file; a file's name is the name `evaluation.tasks` and `--task` know it by."""
