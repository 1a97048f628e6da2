"""Registered models: log, find, load, rebuild."""
