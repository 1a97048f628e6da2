"""Whom to treat with what: plans within limits and policy trees; Spark in `policy.spark` and `policy.planning`."""
