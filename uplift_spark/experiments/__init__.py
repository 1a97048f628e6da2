"""Experiments: who gets which arm, and how many units a trial needs."""
