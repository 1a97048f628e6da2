"""Load on the real service, on loopback and bounded: how fast, when it is too much, and what faults do to answers."""
