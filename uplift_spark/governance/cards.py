"""Model card, data sheet and privacy impact assessment of a version, from what is on record; starts no Spark.

The card follows Mitchell et al. (2019), the data sheet Gebru et al. (2021), the assessment art. 35 (7) of the GDPR (see
`impact`). Each figure names its source; one that does not exist is said in a sentence; what no table can tell becomes a
question to the owner.
"""

from __future__ import annotations

from collections.abc import Iterator

from uplift_spark.config import Feature
from uplift_spark.governance.documents import (
    Block,
    CardDocument,
    Cell,
    Chapter,
    OpenQuestion,
    figure_table,
    other_figure,
    sentence,
    table_figure,
)
from uplift_spark.governance.facts import BIAS_HEADS, LIFT_HEADS, METRIC_HEADS, NOT_STATED, CardFacts
from uplift_spark.governance.impact import (
    erasure_sentence,
    exports_block,
    impact_chapters,
    retention_blocks,
    source_words,
)
from uplift_spark.lake.schemas import QUARANTINE, gold_table
from uplift_spark.roles import CAMPAIGN, RUN_ID, TREATMENT, benefit_name
from uplift_spark.sections.source import Simulation


def card_documents(facts: CardFacts) -> tuple[CardDocument, ...]:
    """Write the three documents of a version.

    Args:
        facts: What is on record about it.

    Returns:
        Model card, data sheet, privacy impact assessment; the same facts give the same documents.
    """
    table, version = facts.training
    return (
        CardDocument(
            "model_card",
            f"Model card: {facts.title}",
            "What the model is, what it is for and what it does, in the structure of Mitchell et al. (2019).",
            _model_card(facts),
        ),
        CardDocument(
            "data_sheet",
            f"Data sheet: {table}, version {version}",
            f"The training set of {facts.title}, in the structure of Gebru et al. (2021).",
            _data_sheet(facts),
        ),
        CardDocument(
            "privacy_impact",
            f"Privacy impact assessment: campaign {facts.config.campaign}",
            f"What {facts.title} means for people, with the content of art. 35 (7) of the GDPR. The figures are those "
            "on record; the owner's answers make it an assessment.",
            impact_chapters(facts),
        ),
    )


# --------------------------------------------------------------------------------------------------------------------
# Model card.


def _model_card(facts: CardFacts) -> tuple[Chapter, ...]:
    parts = (
        ("Model details", _details), ("Intended use", _intended_use), ("Factors", _factors), ("Metrics", _metrics),
        ("Evaluation data", _evaluation_data), ("Training data", _training_data),
        ("Quantitative analyses", _analyses), ("Ethical considerations", _ethics),
        ("Caveats and recommendations", _caveats),
    )  # fmt: skip
    return tuple(Chapter(title, tuple(blocks(facts))) for title, blocks in parts)


def _details(facts: CardFacts) -> Iterator[Block]:
    model, params = facts.model, dict(facts.model.params)
    table, version = facts.training
    champion = "the champion" if facts.champion == model.version else "not the champion"
    rows: list[tuple[Cell, ...]] = [
        ("model", model.name), ("version", f"{model.version}, {champion}"), ("kind", str(params.pop("kind", "forest"))),
        ("training run", model.run_id), ("code", model.git_version), ("SHA-256 of the file", model.sha256),
        ("trained on", f"{table}, Delta version {version}"),
    ]  # fmt: skip
    if model.erasure_of is not None:
        rows.append(("trees", f"of version {model.erasure_of}; the sums never saw units that were erased"))
    if model.refresh is not None:
        rows.append(("trees", f"of version {model.refresh['of']}, with sums of newer rows"))
    rows += [(key.replace("_", " "), facts.stated(key)) for key in ("owner", "purpose", "legal_basis")]
    yield figure_table("The version", ("what", "value"), rows, "")
    logged = [(name, other_figure(value, "registry", name)) for name, value in sorted(facts.logged.items())]
    absent = "The registry holds no figure of the training run."
    yield figure_table("Figures of the training run", ("figure", "value"), logged, absent)
    chosen = [(name, "chosen from the data" if value is None else str(value)) for name, value in sorted(params.items())]
    yield figure_table("Parameters", ("parameter", "value"), chosen, "The registry holds no parameter.")
    pinned = ", ".join(f"{name} {value}" for name, value in facts.environment.items())
    yield sentence(f"Environment: {pinned}." if pinned else "The registry has no record of the training's environment.")
    absent = facts.why_not("entries", "The audit log has no entry about this version.")
    yield figure_table("On record about this version", ("entry", "what happened"), facts.entry_rows(), absent)
    yield OpenQuestion("Under which licence or contract may the model be used, and who answers questions about it?")


def _intended_use(facts: CardFacts) -> Iterator[Block]:
    roles = facts.roles
    levels = ", ".join(sorted({row[TREATMENT] for row in facts.rows("arms")} - {roles.control}))
    yield sentence(
        f"The model predicts for each unit of campaign {facts.config.campaign} the effect of "
        f"{levels or 'each level of its training set'} on {roles.outcome}, compared with {roles.control}. It ranks "
        f"units by {benefit_name(roles.outcome, roles.direction)}, so that `uplift policy` can decide who gets "
        f"which level. Purpose: {facts.stated('purpose')}."
    )
    yield sentence(
        "It does not predict who will have the outcome, only what a level changes. Its figures hold for units like "
        "those of the training set and for the levels that were on offer there. Where support is low, too few units "
        "are like this one."
    )
    if facts.config.governance.approval is None:
        yield OpenQuestion("Who owns the model, for which purpose, and on which legal basis is it used?")
    yield OpenQuestion("Which uses are out of scope, and who makes sure that nobody uses it so?")


def _factors(facts: CardFacts) -> Iterator[Block]:
    config = facts.config
    segments = ", ".join(config.lift.segments)
    yield sentence(f"Results are cut by {segments}." if segments else "Results are cut by no segment.")
    attributes = ", ".join(config.governance.bias.attributes or (one.name for one in config.features if one.protected))
    yield sentence(
        f"The bias audit compares groups of {attributes}." if attributes else
        "No attribute is audited for bias: governance.bias.attributes is empty and no feature is protected."
    )  # fmt: skip
    definitions = {one.name: one for one in config.feature_definitions}
    rows = [
        (
            name,
            _feature_words(definitions.get(name)),
            "yes" if name in definitions and definitions[name].protected else "no",
        )
        for name in facts.roles.features
    ]
    yield figure_table("Features", ("feature", "what it is", "protected"), rows, "The model has no features.")
    yield OpenQuestion("Which further groups may be served differently, and why are they not audited?")


def _feature_words(one: Feature | None) -> str:
    if one is None:
        return NOT_STATED
    if one.of is not None:
        return f"ratio of {one.of[0]} and {one.of[1]}"
    what = f"{one.aggregate} of {one.taken}" + (f" in events {one.event}" if one.event else " of the profile")
    window = "" if one.window_days is None else f" of {one.window_days:g} days before the assignment"
    return what + window + (f"; {one.description}" if one.description else "")


def _metrics(facts: CardFacts) -> Iterator[Block]:
    approval = facts.config.governance.approval
    yield sentence(
        "Qini and AUUC say how much a ranking brings, `ate` is the average effect, `top_30_percent_uplift` the effect "
        "on the 30 % that rank best. Intervals are of 95 %, from ", facts.configured("lift.replicates"),
        " bootstrap resamples.",
    )  # fmt: skip
    if approval is None:
        yield sentence("No threshold is set: governance.approval is not configured.")
    else:
        yield sentence(
            f"An approval needs: {', '.join(approval.needs)}. The lower end of {approval.metric} must exceed ",
            facts.configured("governance.approval.least"), " for some level.",
        )  # fmt: skip
    yield sentence(
        "The bias audit flags anything by chance with a probability of at most ",
        facts.configured("governance.bias.level"), "; a group needs ", facts.configured("governance.bias.min_units"),
        " units to be compared, and a feature counts as a proxy from a strength of ",
        facts.configured("governance.bias.proxy_strength"), ".",
    )  # fmt: skip
    lax = [
        (measure, facts.configured(f"governance.bias.tolerance.{measure}"))
        for measure in facts.config.governance.bias.tolerance
    ]
    absent = "Every difference counts: no tolerance is set."
    yield figure_table("Differences that do not matter", ("measure", "at most"), lax, absent)


def _evaluation_data(facts: CardFacts) -> Iterator[Block]:
    yield sentence(
        "The model is evaluated on the hold-out: a share of ", facts.configured("holdout"),
        " of the units, chosen by the hash of their id, that no model is trained on.",
    )  # fmt: skip
    absent = facts.why_not("arms", "The training table has no hold-out.")
    yield figure_table("Units of the hold-out", facts.arm_heads, facts.arm_rows("holdout"), absent)


def _training_data(facts: CardFacts) -> Iterator[Block]:
    absent = facts.why_not("arms", "The training table has no units of this split.")
    yield figure_table("Units the model was trained on", facts.arm_heads, facts.arm_rows("train"), absent)
    yield sentence("`data_sheet.md` says more about them.")


def _analyses(facts: CardFacts) -> Iterator[Block]:
    absent = facts.why_not("lift", "This version was not evaluated: run `uplift score` and `uplift lift` with it.")
    yield figure_table("Metrics on the hold-out", METRIC_HEADS, facts.metric_rows(), absent)
    if facts.rows("lift"):
        yield figure_table("Lift of all units", LIFT_HEADS, facts.lift_rows("all"), "")
        yield figure_table("Lift by tenth of the ranking", LIFT_HEADS, facts.lift_rows("decile"), "")
        uncut = "The lift table is cut by no segment: lift.segments is empty."
        yield figure_table("Lift by segment", LIFT_HEADS, facts.lift_rows("segment"), uncut)
    names = ("n", "low_support", "width")
    rows = [[row[TREATMENT], *(facts.of_scores(row, name) for name in names)] for row in facts.rows("scores")]
    absent = facts.why_not("scores", "This version has no scores: run `uplift score` with it.")
    yield figure_table("Scores", ("level", "units", "low support", "mean width of the intervals"), rows, absent)
    plan = [
        [row[TREATMENT], row["reason"], *(facts.of_plan(row, name) for name in ("n", "gain", "cost"))]
        for row in facts.rows("decisions")
    ]
    absent = facts.why_not("decisions", "There is no plan by this version: run `uplift policy` with it.")
    yield figure_table("Its newest plan", ("level", "reason", "units", "predicted gain", "cost"), plan, absent)
    columns = ("most", "least", "used", "price")
    limits = [
        [row["name"], *facts.cells(row, gold_table("policy_limits"), columns, (RUN_ID, "name"))]
        for row in facts.rows("limits")
    ]
    if plan:
        heads = ("limit", "at most", "at least", "used", "price")
        yield figure_table("Limits of the plan", heads, limits, "The plan has no limit.")


def _ethics(facts: CardFacts) -> Iterator[Block]:
    if facts.rows("bias"):
        yield sentence(f"The newest bias audit is run {facts.runs['bias']}.")
        clean = "It flags nothing: no group is treated or served differently by more than chance and tolerance."
        yield figure_table("Flags of the bias audit", BIAS_HEADS, facts.bias_rows(True), clean)
        yield figure_table("All its comparisons", BIAS_HEADS, facts.bias_rows(False), "")
    else:
        yield sentence(facts.why_not("bias", "This version has no bias audit: run `uplift audit bias` with it."))
    for row in facts.rows("proxies"):
        name = f"{row['seq']}:{row['cut']}:{row['feature']}"
        yield sentence(
            f"Feature {row['feature']} is a proxy of {row['cut']}, with a strength of ",
            other_figure(row["strength"], "audit", name),
            f" of 1: leaving {row['cut']} out of the model does not keep it out.",
        )
    if facts.rows("lift"):
        safe = "No row of the lift table has an interval that lies wholly on the side of harm."
        yield figure_table("Groups that treatment harms", LIFT_HEADS, facts.harm_rows(), safe)
    yield sentence("`privacy_impact.md` says what the processing means for people, and what is done about it.")
    yield OpenQuestion("Which harms beside the measured outcome were considered, and with whom?")


def _caveats(facts: CardFacts) -> Iterator[Block]:
    if isinstance(facts.config.source, Simulation):
        yield sentence("Simulated data: no real people.")
    if facts.config.nuisances is not None:
        yield sentence(
            "Nobody randomised: effects hold if whatever decided the treatment, and matters to the outcome, is a "
            "feature."
        )
        keys = (RUN_ID, "outcome", TREATMENT, "estimand", "cut", "bucket")
        rows = [
            [*(row[key] for key in keys[1:4]),
             *facts.cells(row, gold_table("average_effects"), ("value", "lower", "upper"), keys)]
            for row in facts.rows("averages") if row["cut"] == "all"
        ]  # fmt: skip
        heads = ("outcome", "level", "estimand", "value", "lower", "upper")
        absent = facts.why_not("averages", "gold.average_effects has no row of the campaign: run `uplift nuisances`.")
        yield figure_table("Average effects", heads, rows, absent)
    if facts.rows("lift"):
        few = sum(bool(row["low_sample"]) for row in facts.rows("lift"))
        where = {RUN_ID: facts.runs["lift"], "low_sample": True}
        rough = table_figure(few, gold_table("lift_table"), "*", where, "rows")
        yield sentence("Rows of the lift table with too few units for more than a rough interval: ", rough, ".")
    yield _allowed(facts)
    yield OpenQuestion("What should whoever uses the model know that is not on this page?")


def _allowed(facts: CardFacts) -> Block:
    rows = [(str(row["seq"]), row["subject"], row["reason"]) for row in facts.rows("allowed")]
    absent = "No leak and no broken trial was let pass, by the audit log."
    if not facts.rows("actions"):
        absent = facts.why_not("actions", "There is no audit log: whether leaks were let pass is not known.")
    return figure_table("Leaks and broken trials that somebody let pass", ("entry", "what", "why"), rows, absent)


# --------------------------------------------------------------------------------------------------------------------
# Data sheet.


def _data_sheet(facts: CardFacts) -> tuple[Chapter, ...]:
    parts = (
        ("Motivation", _motivation), ("Composition", _composition), ("Collection process", _collection),
        ("Preprocessing, cleaning, labelling", _preprocessing), ("Uses", _uses), ("Distribution", _distribution),
        ("Maintenance", _maintenance),
    )  # fmt: skip
    return tuple(Chapter(title, tuple(blocks(facts))) for title, blocks in parts)


def _motivation(facts: CardFacts) -> Iterator[Block]:
    yield sentence(
        f"The training set serves to learn the effect of a treatment on {facts.roles.outcome} in campaign "
        f"{facts.config.campaign}. Purpose: {facts.stated('purpose')}. Owner: {facts.stated('owner')}."
    )
    yield OpenQuestion("Who collected the data, for which other purposes, and who paid for it?")


def _composition(facts: CardFacts) -> Iterator[Block]:
    yield sentence("A row is a unit of the campaign with the level it was assigned, its features and its outcome.")
    absent = facts.why_not("arms", "The training table has no row.")
    yield figure_table("Units", facts.arm_heads, facts.arm_rows(), absent)
    takes, rows = ("missing", "kinds", "least", "mean", "most"), []
    for row in facts.rows("features"):
        shown = takes if row["kind"] == "number" else takes[:2]
        figures = [facts.of_training(row[take], row["feature"], take, {"split": "train"}) for take in shown]
        rows.append([row["feature"], row["kind"], *figures, *("" for _ in takes[len(shown) :])])
    heads = ("feature", "kind", "missing", "different values", "least", "mean", "most")
    absent = facts.why_not("features", "The training table has no row of split train.")
    yield figure_table("Features, of the units in split train", heads, rows, absent)
    protected = ", ".join(one.name for one in facts.config.features if one.protected)
    yield sentence(f"Protected attributes: {protected}." if protected else "No feature is marked as protected.")
    yield OpenQuestion("Do the data hold special categories (art. 9 GDPR), or attributes from which these follow?")
    yield OpenQuestion("Which errors or sources of noise does whoever collected the data know of?")


def _collection(facts: CardFacts) -> Iterator[Block]:
    yield sentence(source_words(facts.config))
    period = [f"Units were assigned from {row['first']} to {row['last']} (UTC)." for row in facts.rows("period")]
    yield sentence(*period or [facts.why_not("period", "It is not known when units were assigned.")])
    trial = "assigned at random" if facts.config.nuisances is None else "not assigned at random"
    yield sentence(f"By the configuration levels were {trial}; the control is {facts.roles.control}.")
    rows = [
        (row["purpose"], "granted" if row["granted"] else "withdrawn", facts.of_consent(row))
        for row in facts.rows("consent")
    ]
    absent = facts.why_not("consent", "No statement about consent is on record in bronze.consent.")
    yield figure_table("Statements about consent", ("purpose", "statement", "rows"), rows, absent)
    yield OpenQuestion("Were people informed of the collection, how, and could they refuse?")


def _preprocessing(facts: CardFacts) -> Iterator[Block]:
    config, outcome = facts.config, facts.roles.outcome
    yield sentence(
        f"Outcome {outcome} counts for ",
        other_figure(config.labels.days(outcome), "configuration", f"labels.days({outcome})"),
        " days after the assignment. Features hold what had happened and was known at the assignment.",
    )
    rows: list[list[Cell]] = []
    for row in facts.rows("quarantine"):
        where = {CAMPAIGN: config.campaign, "source_table": row["source_table"], "rule": row["rule"]}
        rows.append([row["source_table"], row["rule"], table_figure(row["n"], QUARANTINE, "*", where, "rows")])
    absent = facts.why_not("quarantine", "No row of the campaign is in quarantine.")
    yield figure_table("Rejected rows, kept in quarantine", ("meant for", "rule", "rows"), rows, absent)
    hashed = config.pseudonyms is not None
    yield sentence(
        f"Unit ids are {'replaced by a keyed hash before anything is written' if hashed else 'kept as they came'}."
    )
    cut = [(name, facts.configured(f"lift.winsorise.{name}")) for name in config.lift.winsorise]
    absent = "No outcome is cut off at a size."
    yield figure_table("Outcomes cut off at a share of the hold-out", ("outcome", "share"), cut, absent)


def _uses(facts: CardFacts) -> Iterator[Block]:
    yield sentence(f"It trained {facts.title}. Scores, lift tables and plans of that version rest on it.")
    yield _allowed(facts)
    yield OpenQuestion("Was the data set used for anything else, and what must it not be used for?")


def _distribution(facts: CardFacts) -> Iterator[Block]:
    yield exports_block(facts)
    yield OpenQuestion("Is the data set passed on to third parties, on which terms, and to which countries?")


def _maintenance(facts: CardFacts) -> Iterator[Block]:
    yield from retention_blocks(facts)
    yield sentence(
        "`uplift erase` removes a unit from every table and from the models in use; a version that never saw it "
        "replaces them."
    )
    yield erasure_sentence(facts)
    yield OpenQuestion("Who maintains the sources of the data, and how are errors reported to them?")
