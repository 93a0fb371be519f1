"""How fast things are: against other ways of doing the same, and against what cannot be beaten."""
