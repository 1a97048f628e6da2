"""Words of the service's answers: why a unit gets its level, and what an answer lacks. Clients read them, too."""

from __future__ import annotations

OFF, NOT_PUBLISHED, HELD_OUT, EXPLORATION = "switched off", "unit not published", "holdout", "exploration"
NO_PLAN, BEST_NOW, NONE_WORTH = "no plan", "best at the limits' prices", "not worth it at the limits' prices"
BEST_TODAY, NONE_TODAY, SPENT = "best at the day's price", "not worth it at the day's price", "day's budget spent"
SAMPLED = "sampled by the effects' errors"
NOT_LOGGED, NOT_READ = "log unavailable", "store unavailable"
"""Reasons that are not the plan's own."""

STORE_DOWN, UNKNOWN, STALE = "store_unavailable", "unit_unknown", "features_stale"
NOT_COMPLETE, BATCH, AVERAGE, KEPT = "features_incomplete", "batch_effects", "average_effects", "version_kept"
LOG_DOWN, UNREACHABLE = "log_unavailable", "service_unreachable"
"""What `degraded` may say; UNREACHABLE is the client's own."""
