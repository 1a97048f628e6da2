"""Erasure of units, pseudonyms and consent; audit log, approvals, bias audit, roles."""
