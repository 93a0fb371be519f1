"""Learners, the policies that they must beat, evaluation and controllers."""
