"""A running server: where it is, how fast it answers, what it scores in tasks."""
