"""Monitoring: figures of a campaign that runs, drift of its features, scores and arms, what goes wrong and how sure."""
