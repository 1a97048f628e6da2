"""Sums that merge and what follows from them: moments, intervals, curves, tests, off-policy values, draws."""
