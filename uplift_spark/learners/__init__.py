"""Nuisances, meta-learners and average effects; Spark in `learners.spark` alone."""
