"""Chapters of a privacy impact assessment with the content of art. 35 (7) of the GDPR; starts no Spark."""

from __future__ import annotations

from collections.abc import Iterator

from uplift_spark.config import Config
from uplift_spark.governance.documents import (
    Block,
    Cell,
    Chapter,
    CitedFigure,
    OpenQuestion,
    figure_table,
    other_figure,
    sentence,
    table_figure,
)
from uplift_spark.governance.facts import METRIC_HEADS, NOT_STATED, CardFacts
from uplift_spark.governance.privacy import HELD_BACK
from uplift_spark.lake.schemas import BIAS_TABLE, NEVER_DUE
from uplift_spark.roles import RUN_ID, TREATMENT
from uplift_spark.sections.source import EventsSource, Simulation, TableSource, TrialConf


def impact_chapters(facts: CardFacts) -> tuple[Chapter, ...]:
    """Write the chapters of the assessment.

    Args:
        facts: What is on record about the version.

    Returns:
        Processing, purpose, necessity, rights, risks with measures, advice and verdicts.
    """
    parts = (
        ("Processing", _processing), ("Purpose and legal basis", _purposes),
        ("Necessity and proportionality", _necessity), ("Rights of people", _rights), ("Risks and measures", _risks),
        ("Advice and verdicts", _verdicts),
    )  # fmt: skip
    return tuple(Chapter(title, tuple(blocks(facts))) for title, blocks in parts)


# --------------------------------------------------------------------------------------------------------------------
# What the data sheet says, too.


def source_words(config: Config) -> str:
    """Say where the campaign's data come from."""
    source = config.source
    if isinstance(source, Simulation):
        return "The data are simulated by this package: no real people."
    if isinstance(source, TrialConf):
        return f"The data are those of a trial's file, {source.file}."
    if isinstance(source, TableSource):
        where = f"table {source.table}" if source.table else f"file {source.path}"
        return f"The data come from the user's own {where}."
    if isinstance(source, EventsSource):
        listed = ", ".join(f"{name} from {table.location}" for name, table in source.tables.items())
        return f"The data come from the user's own tables of events: {listed}."
    return "The configuration names no source: rows were loaded by `uplift load`."


def retention_blocks(facts: CardFacts) -> Iterator[Block]:
    """Tables in which people are rows, after which time a row is due, and how long Delta keeps what was deleted."""
    rows = [
        (one.name, table_figure(one.rows, one.name, "*", {}, "rows", one.version), str(one.version),
         _due_after(facts.config, one.name), one.keeps_files or "Delta's default", one.keeps_log or "Delta's default")
        for one in facts.tables
    ]  # fmt: skip
    heads = ("table", "rows", "version", "a row is due after", "deleted files are kept for", "history is kept for")
    yield figure_table("Tables in which people are rows", heads, rows, "No table with people is there.")
    yield _deletions(facts)
    endless = [one.name for one in facts.tables if _is_endless(facts.config, one.name)]
    if endless:
        yield OpenQuestion(
            f"After which time are rows of {', '.join(endless)} due? Name it in governance.retention; `uplift expire` "
            "then deletes them."
        )


def _days(config: Config, table: str) -> float | None:
    retention = config.governance.retention
    return None if retention is None or table in NEVER_DUE else retention.days_of(table)


def _is_endless(config: Config, table: str) -> bool:
    """Whether rows of a table stay until somebody deletes them, for no reason that is known."""
    return _days(config, table) is None and table not in NEVER_DUE


def _due_after(config: Config, table: str) -> Cell:
    days = _days(config, table)
    if days is not None:
        return sentence(other_figure(days, "configuration", f"governance.retention.days_of({table})"), " days")
    return f"never: {NEVER_DUE[table]}" if table in NEVER_DUE else "no time is set"


def _deletions(facts: CardFacts) -> Block:
    """Which deletions by age are on record."""
    if facts.config.governance.retention is None:
        return sentence("No time is set after which rows are deleted: governance.retention is not configured.")
    words = "`uplift expire` deletes rows that are due; what a model in use was trained on stays while it is in use."
    if not facts.rows("actions"):
        return sentence(words, " ", facts.why_not("actions", "There is no audit log, so it is not known when it did."))
    begun, complete = facts.of_log("expire"), facts.of_log("expired")
    return sentence(words, " Deletions that were begun, by the audit log: ", begun, "; complete: ", complete, ".")


def erasure_sentence(facts: CardFacts) -> Block:
    """How often somebody was erased."""
    if not facts.rows("actions"):
        return sentence(
            facts.why_not("actions", "There is no audit log, so it is not known how often people were erased.")
        )
    begun, complete = facts.of_log("erase"), facts.of_log("erased")
    return sentence("Erasures that were begun, by the audit log: ", begun, "; complete: ", complete, ".")


def exports_block(facts: CardFacts) -> Block:
    """What left the lakehouse."""
    if not facts.rows("actions"):
        return sentence(facts.why_not("actions", "There is no audit log, so it is not known what left the lakehouse."))
    known = {row["action"] for row in facts.rows("actions")}
    rows = [(action, facts.of_log(action)) for action in ("export", "publish") if action in known]
    absent = "No export and no publication of the campaign is on record."
    return figure_table("What left the lakehouse, by the audit log", ("action", "entries"), rows, absent)


# --------------------------------------------------------------------------------------------------------------------
# Chapters.


def _processing(facts: CardFacts) -> Iterator[Block]:
    roles = facts.roles
    yield sentence(
        f"Campaign {facts.config.campaign} profiles people: from their features the model predicts what a level "
        f"changes in {roles.outcome}, and a plan decides who gets which level. {source_words(facts.config)}"
    )
    yield sentence(f"Features: {', '.join(roles.features)}.")
    yield from retention_blocks(facts)
    yield exports_block(facts)
    yield OpenQuestion("Who is the controller, who are processors and recipients, and do data leave the EEA?")
    yield OpenQuestion("Are children or other vulnerable people among the units?")


def _purposes(facts: CardFacts) -> Iterator[Block]:
    purpose, basis = facts.stated("purpose"), facts.stated("legal_basis")
    yield sentence(f"Purpose: {purpose}. Legal basis: {basis}. Owner: {facts.stated('owner')}.")
    consent = facts.config.consent
    rule = "only who granted it is contacted" if consent.required else "everybody is contacted who has not withdrawn it"
    yield sentence(f"Consent to {consent.purpose}: {rule}.")
    if NOT_STATED in (purpose, basis):
        yield OpenQuestion("What are purpose and legal basis? Set governance.approval.purpose and legal_basis.")
    yield OpenQuestion(
        "If the basis is a legitimate interest: which is it, and how was it weighed against the interests of people?"
    )


def _necessity(facts: CardFacts) -> Iterator[Block]:
    absent = facts.why_not("lift", "Nothing shows yet that the model is of use: it was not evaluated.")
    rows = facts.metric_rows("qini", "ate")
    yield figure_table("What the treatment and its ranking bring", METRIC_HEADS, rows, absent)
    barred = ", ".join(one.name for one in facts.config.features if not one.targeting)
    yield sentence(
        f"Features that may not decide whom to treat: {barred}." if barred else
        "No feature is barred from deciding whom to treat."
    )  # fmt: skip
    rules = [(name, f"`{sql}`") for name, sql in facts.config.policy.exclude.items()]
    yield figure_table(
        "Rules that leave people out", ("rule", "condition"), rules, "No rule leaves people out of plans."
    )
    yield OpenQuestion("Would fewer features, or none about the person, serve the purpose nearly as well?")
    if priced := facts.config.governance.price_levels:
        yield sentence(
            f"A plan decides about prices, by {', '.join(priced)}: exported rows of these levels have the column "
            "`price_notice`, so that people are informed of a personalised price."
        )
        yield OpenQuestion("Where are people informed of a personalised price, before they are bound by it?")
    else:
        yield OpenQuestion("Does a plan decide about prices? Name their levels in governance.price_levels.")
    yield OpenQuestion("Does a plan decide about anything else of similar weight for people (art. 22)?")


def _rights(facts: CardFacts) -> Iterator[Block]:
    yield sentence("Access and explanation: `uplift audit explain UNIT` prints why a unit gets what it gets.")
    yield sentence(
        "Objection: a withdrawal in `bronze.consent` keeps a unit out of the next plan, export and publication. One of "
        "the purpose `profiling` also keeps it out of the next training set and of all scores."
    )
    held = [
        (row["reason"], row[TREATMENT], facts.of_plan(row, "n"))
        for row in facts.rows("decisions")
        if row["reason"] in HELD_BACK
    ]
    absent = "The newest plan held nobody back for want of consent."
    if not facts.rows("decisions"):
        absent = facts.why_not("decisions", "There is no plan by this version.")
    yield figure_table("Held back by the newest plan", ("reason", "level", "units"), held, absent)
    yield sentence("Erasure: `uplift erase`.")
    yield erasure_sentence(facts)
    yield OpenQuestion("How are people informed of the profile, and of a price or an offer that it chose for them?")
    yield OpenQuestion("Where do people object, and within which time does that reach `bronze.consent`?")
    yield OpenQuestion("What did people or their representatives say (art. 35 (9))?")


def _verdicts(facts: CardFacts) -> Iterator[Block]:
    rows = facts.entry_rows("approve", "reject")
    absent = "Nobody approved or rejected this version yet."
    yield figure_table("Verdicts about this version", ("entry", "verdict"), rows, absent)
    yield OpenQuestion("What did the data protection officer advise (art. 35 (2))?")
    yield OpenQuestion("Is a high risk left, so that the supervisory authority must be consulted (art. 36)?")


# --------------------------------------------------------------------------------------------------------------------
# Risks: what is on record of each, and the measure in force.


def _risks(facts: CardFacts) -> Iterator[Block]:
    config, people = facts.config, _people(facts)
    log = config.governance.audit
    rows: list[tuple[Cell, ...]] = [
        ("groups are treated or served differently", _bias(facts), _cap(config)),
        ("treatment harms some people", _harm(facts), "plans reckon with the lower end of each interval"
         if config.policy.bound == "lower" else "none: plans reckon with the predicted effect, not with its lower end"),
        ("a prediction rests on too few people like this one", _support(facts), "each score has an interval and says "
         "whether its support is low"),
        ("somebody is contacted who does not want it", _withdrawals(facts), "only who granted it is contacted"
         if config.consent.required else "who withdrew is not contacted; silence counts as a yes"),
        ("a person is recognised in the tables", people, "ids are keyed hashes"
         if config.pseudonyms is not None else "none: ids are kept as they came, `pseudonyms` is not set"),
        ("somebody reads what is not theirs to read", people, "a verb runs only for its role"
         if config.governance.access is not None else "none here: governance.access is not set"),
        ("nobody can say who decided what", _entries(facts), "none: governance.audit is not set" if log is None
         else "an audit log with signed checkpoints elsewhere" if log.checkpoints is not None
         else "an audit log; without checkpoints a cut end goes unnoticed"),
        ("data outlive their purpose", _outlived(facts), "rows that are due are deleted, and units on request"
         if config.governance.retention is not None
         else "erasure on request; none by age: governance.retention is not set"),
    ]  # fmt: skip
    yield figure_table("Risks", ("risk to people", "what is on record", "measure in force"), rows, "")
    yield OpenQuestion("How likely and how severe is each risk for people, and which further measures are planned?")


def _bias(facts: CardFacts) -> Cell:
    rows = facts.rows("bias")
    if not rows:
        return facts.why_not("bias", "this version has no bias audit")
    parts: list[str | CitedFigure] = []
    for flag in ("difference", "harm", "explained"):
        n, where = sum(row["flag"] == flag for row in rows), {RUN_ID: facts.runs["bias"], "flag": flag}
        parts += [
            ", " if parts else "",
            table_figure(n, BIAS_TABLE, "*", where, "rows"),
            f" rows flagged {flag}",
        ]
    return sentence(*parts)


def _cap(config: Config) -> str:
    caps = ", ".join(limit.name for limit in config.policy.limits if limit.gap is not None)
    approval = config.governance.approval
    needs = approval is not None and "bias" in approval.needs
    capped = f"the policy caps {caps}" if caps else "no cap on a gap in the policy"
    return f"{capped}; {'an approval needs' if needs else 'no approval needs'} a bias audit"


def _harm(facts: CardFacts) -> Cell:
    if not facts.rows("lift"):
        return facts.why_not("lift", "this version was not evaluated")
    if facts.harm_rows():
        return "the model card lists groups that treatment harms"
    return "no row of the lift table lies wholly on the side of harm"


def _support(facts: CardFacts) -> Cell:
    parts: list[str | CitedFigure] = []
    for row in facts.rows("scores"):
        parts += ["; " if parts else "", f"{row[TREATMENT]}: low support of ", facts.of_scores(row, "low_support")]
    return sentence(*parts) if parts else facts.why_not("scores", "this version has no scores")


def _withdrawals(facts: CardFacts) -> Cell:
    parts: list[str | CitedFigure] = []
    for row in facts.rows("consent"):
        if not row["granted"]:
            parts += ["; " if parts else "", f"withdrawals of {row['purpose']}: ", facts.of_consent(row)]
    return sentence(*parts) if parts else "no withdrawal is on record"


def _people(facts: CardFacts) -> Cell:
    names = ", ".join(one.name for one in facts.tables)
    return f"people are rows in {names}" if names else "no table with people is there"


def _outlived(facts: CardFacts) -> Cell:
    timed = [one.name for one in facts.tables if _days(facts.config, one.name) is not None]
    endless = [one.name for one in facts.tables if _is_endless(facts.config, one.name)]
    parts = [f"rows are due in {', '.join(timed)}"] if timed else []
    parts += [f"no time is set for {', '.join(endless)}"] if endless else []
    return "; ".join(parts) or _people(facts)


def _entries(facts: CardFacts) -> Cell:
    actions = [row["action"] for row in facts.rows("actions")]
    if not actions:
        return facts.why_not("actions", "there is no audit log")
    return sentence(facts.of_log(*actions), " entries of the campaign, without those of cards")
