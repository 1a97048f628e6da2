"""The lakehouse: the Spark session, named tables with exactly-once writes, and their contracts."""
