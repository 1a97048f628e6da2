"""From raw events to a training set: simulate, ingest, load, labels, features, leakage."""
