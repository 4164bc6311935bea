"""A model measured, and two models compared."""
