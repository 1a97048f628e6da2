"""Dashboards in the browser: three pages that stand alone, from gold tables."""
