"""Six game days, and the whole loop: which fault begins when, what the jobs have to make of it, and when it is over.

Each scene plays the days on which something happens: the others are as quiet as the last one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from uplift_spark.gamedays.play import GameDay
from uplift_spark.gamedays.timeline import GameDayResult, TimelineEntry
from uplift_spark.gamedays.world import FaultDays, World, WorldFault, delivery_rows
from uplift_spark.lake.schemas import DELIVERY_TABLE, OUTCOME_TABLE, profile_table
from uplift_spark.roles import UNIT

Scene = Callable[[GameDay], Sequence[GameDayResult]]
_WEEKLY = "the weekly refit"
_LABELS = ("label_lag", "outcome_completeness")


@dataclass(frozen=True)
class ScenePlan:
    """What a game day needs.

    days        that are simulated
    faults      that are injected
    scene       plays it
    planned     whether decisions are planned
    deliveries  whether sends are reported
    trained_on  day on which the champion is trained
    """

    days: int
    faults: tuple[FaultDays, ...]
    scene: Scene
    planned: bool = False
    deliveries: bool = False
    trained_on: int = 14

    def world(self, per_day: int) -> World:
        """The customers, so many each day."""
        return World("gameday", self.days, per_day, self.faults)

    def play(self, game: GameDay) -> Sequence[GameDayResult]:
        """Train, inject, and play to the end. Raises GameDayFailed where a job does anything else than it has to."""
        game.open(self.trained_on, self.planned, self.deliveries)
        return self.scene(game)


def play_drift(game: GameDay, first: int = 30, until: int = 50) -> GameDayResult:
    """A partner sends other customers, whom mail puts off: seen, learnt, tried on a slice, promoted."""
    for window in (first, first + 1, first + 4):  # drift is what differs from the same weekday of the week before, too
        game.at(window - 6).monitor(window - 7)
    began, champion = _quiet_before(game, first), game.base.champion.version
    game.at(first, 0).note("fault", "a partner sends three of ten customers: older ones, whom mail puts off")
    game.at(first + 1).monitor(first)
    game.at(first + 2).monitor(first + 1)
    alert = game.first_fired(("drift_score", "drift"), began)
    game.check(alert is not None, "no alert says that customers have changed")
    game.at(first + 5).monitor(first + 4)
    details = game.retrain("challenger")
    acted, version = game.now, int(details["model_version"])
    game.at(first + 5, 8).plan()
    game.canary("start", "running")
    game.follow_plan(f"after-{version}")
    game.at(first + 7, 9).canary("decide", "promoted")
    game.in_force(version)
    game.note("mended", f"version {version} is in force: champion, scores and decisions")
    recovered = game.now
    game.at(first + 9).monitor(first + 8)
    game.at(first + 16).monitor(first + 15)
    if until < game.world.days:
        game.at(until, 0).note("fault", "the partner's customers stay away again")
    retrained = f"retrain: version {version}, by {details['fit']}, passes against version {champion}"
    return GameDayResult(
        *("drift", began, _when(alert), _rule(alert), acted, retrained),
        *(recovered, f"canary promotes version {version}", game.lost()),
    )


def play_bad_model(game: GameDay, day: int = 60) -> GameDayResult:
    """A version whose arms were mixed up becomes the challenger by hand: its canary takes it back."""
    champion = game.base.champion.version
    began = game.at(day, 8).now
    version = game.swapped_version()
    game.note("fault", f"version {version} predicts who loses by mail, and is put on trial")
    game.canary("start", "running")
    game.follow_plan(f"after-{version}")
    game.at(day + 1).canary("decide", "running")
    game.at(day + 2, 9).canary("decide", "rolled back")
    recovered = game.now
    game.in_force(champion)
    game.note(
        "mended", f"version {champion} is in force for all customers; version {version} is no challenger any more"
    )
    return GameDayResult(
        *("bad-model", began, recovered, "canary: outcome per unit is worse", recovered, "canary decide: roll back"),
        *(recovered, f"decisions of version {champion} for all", game.lost()),
    )


def play_label_outage(game: GameDay, first: int, mended: int | None) -> GameDayResult:
    """Purchases are not reported: a page, no retraining, and after they were loaded all is well again."""
    firing = game.at(first - 1).monitor(first - 3)
    game.check(not _still(firing, _LABELS), f"alerts about labels fire before the outage: {', '.join(firing)}")
    began = game.at(first, 0).now
    game.note("fault", "no purchase is reported any more")
    for day in (first, first + 1, first + 2):
        game.at(day).monitor(day - 2)  # the newest window whose labels are all mature
    alert = game.first_fired(_LABELS, began)
    game.check(alert is not None and "page" in alert.words, "no page says that labels are missing")
    if mended is None:
        monday = first + 2 + (7 - (first + 2) % 7) % 7
        game.at(monday).monitor(monday - 1)
        game.retrain("blocked")
        blocked = "retrain: blocked, no model is fitted"
        game.note("mended", f"version {game.base.champion.version} stays: no model learns the outage")
        return GameDayResult(
            "label-outage", began, _when(alert), _rule(alert), game.now, blocked, None, "", game.lost()
        )
    game.monitor(first + 1)
    game.retrain("blocked", _WEEKLY)
    game.runbook("label-outage", "purchases are missing", over=False)
    acted = game.now
    game.at(mended, 9)
    rows = game.world.purchases()
    late = rows[game.world.held_back(rows)].assign(known_at=game.now)
    game.load(OUTCOME_TABLE, late)
    game.note("people", f"the source reports again, and {len(late):,} purchases are loaded belatedly")
    game.at(mended + 2).runbook("label-outage", "the source reports again", over=True)
    game.note("mended", "the alerts are over, and models may be fitted again")
    blocked = "retrain: blocked, no model is fitted"
    return GameDayResult(
        *("label-outage", began, _when(alert), _rule(alert), acted, blocked),
        *(game.now, f"{len(late):,} purchases loaded, runbook label-outage holds", game.lost()),
    )


def play_non_delivery(game: GameDay, first: int, mended: int) -> GameDayResult:
    """Four of ten mails fail: a page, no retraining; they are sent anew."""
    began = _quiet_before(game, first)
    game.at(first, 0).note("fault", "four of ten mails are not delivered")
    alert = _noticed(game, first, ("non_compliance", "delivery_rate"))
    game.retrain("blocked", _WEEKLY)
    game.acknowledge(_rule(alert).split(" ")[-1], "called the mailing service")
    game.runbook("delivery-outage", "mails fail", over=False)
    acted = game.now
    failed = game.world.deliveries().query("status == 'failed'")
    game.at(mended, 0).note("people", f"mails arrive again, and {len(failed):,} that failed are sent anew")
    units = failed[UNIT]
    delivered = units.map(lambda _: "delivered").to_numpy()
    again = delivery_rows(game.world.campaign, units, delivered, units.map(lambda _: game.now), "again")
    sent = game.load(DELIVERY_TABLE, again)
    game.at(mended + 1).runbook("delivery-outage", "mails arrive again", over=True)
    game.note("mended", "the alerts are over, and models may be fitted again")
    return GameDayResult(
        *("non-delivery", began, _when(alert), _rule(alert), acted, "acknowledged; retrain: blocked"),
        *(game.now, f"{sent:,} mails sent anew, runbook delivery-outage holds", game.lost()),
    )


def play_confounding(game: GameDay, first: int, mended: int) -> GameDayResult:
    """A mailer chooses by age: found by the arms' ages, and nothing is learnt from these days."""
    began = _quiet_before(game, first)
    game.at(first, 0).note("fault", "the mailer sends more to older customers, and logs the old propensity")
    alert = _noticed(game, first, ("confounding",))
    game.retrain("blocked", _WEEKLY)
    acted = game.now
    game.at(mended, 0).note("people", "the mailer draws at random again")
    recovered = _well_again(game, mended + 1, mended, ("confounding",))
    return GameDayResult(
        *("confounding", began, _when(alert), _rule(alert), acted, "retrain: blocked, no model is fitted"),
        *(recovered, "arms are alike, alert resolved", game.lost()),
    )


def play_schema_change(game: GameDay, first: int) -> GameDayResult:
    """A source reports ages in months: a page after one day, no retraining; the file is loaded anew."""
    began = _quiet_before(game, first)
    game.at(first, 0).note("fault", "the source of the profiles reports ages in months")
    alert = _noticed(game, first, ("deployment_mismatch",))
    game.retrain("blocked", _WEEKLY)
    acted, world, table = game.now, game.world, profile_table(game.world.campaign)
    game.at(first + 1, 12)
    wrong = world.reported_in_months()
    some = world.units.loc[wrong, UNIT].iloc[0]
    source = game.base.lake.read(table).where(f"{UNIT} = '{some}'").select("source").toPandas()["source"].iloc[0]
    mended = game.load(table, world.profiles(mended=True)[wrong], replaced=(source,))
    game.note("people", f"{mended:,} profiles are loaded anew in place of the wrong ones")
    recovered = _well_again(game, first + 2, first, ("deployment_mismatch",), first + 1)
    return GameDayResult(
        *("schema-change", began, _when(alert), _rule(alert), acted, "retrain: blocked, no model is fitted"),
        *(recovered, f"{mended:,} profiles replaced, alert resolved", game.lost()),
    )


def play_loop(game: GameDay) -> list[GameDayResult]:
    """The whole loop: drift on day 30, a bad model on day 60, an outage of the labels on day 80."""
    return [play_drift(game, 30, 50), play_bad_model(game, 60), play_label_outage(game, 80, None)]


# --------------------------------------------------------------------------------------------------------------------
# What all scenes have.


def _quiet_before(game: GameDay, first: int) -> datetime:
    """The day before the fault: nothing fires. Midnight at which the fault begins."""
    firing = game.at(first - 1).monitor(first - 2)
    game.check(not firing, f"alerts fire before the fault: {', '.join(firing)}")
    return game.world.at(first)


def _noticed(game: GameDay, first: int, rules: tuple[str, ...]) -> TimelineEntry | None:
    """Monitor the fault's first day on the next morning; the alert that fires."""
    game.at(first + 1).monitor(first)
    alert = game.first_fired(rules, game.world.at(first))
    game.check(alert is not None, f"no alert of {' or '.join(rules)} fires")
    return alert


def _well_again(game: GameDay, day: int, window: int, rules: tuple[str, ...], *more: int) -> datetime:
    """Monitor windows after the fault: no alert of these rules fires any more."""
    firing: list[str] = []
    for one in (*more, window):
        firing = game.at(day).monitor(one)
    still = _still(firing, rules)
    game.check(not still, f"alerts still fire: {', '.join(still)}")
    game.note("mended", "the alerts are over")
    return game.now


def _still(firing: Sequence[str], rules: tuple[str, ...]) -> list[str]:
    return [one for one in firing if one.split(" ")[-1] in rules]


def _when(alert: TimelineEntry | None) -> datetime | None:
    return None if alert is None else alert.at


def _rule(alert: TimelineEntry | None) -> str:
    """`page label_lag` of the alert's entry."""
    return "" if alert is None else alert.words.partition(" fired")[0]


def _one(play: Callable[..., GameDayResult], *days: int) -> Scene:
    """The scene of a single game day, played on these days."""
    return lambda game: [play(game, *days)]


def _fault(kind: WorldFault, first: int, until: int) -> tuple[FaultDays, ...]:
    return (FaultDays(kind, first, until),)


GAME_DAYS: Mapping[str, ScenePlan] = {
    "drift": ScenePlan(47, _fault("partner", 30, 47), _one(play_drift, 30, 47), planned=True),
    "bad-model": ScenePlan(23, (), _one(play_bad_model, 20), planned=True),
    "label-outage": ScenePlan(25, _fault("label_outage", 20, 22), _one(play_label_outage, 20, 22)),
    "non-delivery": ScenePlan(23, _fault("non_delivery", 20, 22), _one(play_non_delivery, 20, 22), deliveries=True),
    "confounding": ScenePlan(23, _fault("confounding", 20, 22), _one(play_confounding, 20, 22)),
    "schema-change": ScenePlan(22, _fault("months", 20, 21), _one(play_schema_change, 20)),
}
"""What is injected on which days, and what is played."""
LOOP = ScenePlan(84, (*_fault("partner", 30, 50), *_fault("label_outage", 80, 84)), play_loop, planned=True)
"""All in one campaign: drift on day 30, a bad model on day 60, an outage of the labels on day 80."""
