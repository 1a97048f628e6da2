"""Evaluation on a hold-out: sums in one pass, curves, metrics, lift tables, comparisons, pictures, reports."""
