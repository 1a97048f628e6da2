"""Erasure of units, pseudonyms and consent."""
