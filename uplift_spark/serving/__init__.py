"""One user's features now, without Spark."""
