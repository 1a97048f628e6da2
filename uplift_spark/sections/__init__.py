"""Sections of the configuration that stand apart from `config`, one module each."""
