"""What the names of columns and levels say: ids, outcomes, the control, which direction is better. No Spark.

Every rule reads a name as `name_words` writes it, so `outcome.test`, `Outcome Test` and `outcomeTest` are one name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from uplift_spark.errors import ConfigError
from uplift_spark.events.files import YES_NO
from uplift_spark.roles import RESERVED_NAMES

_ID = re.compile(
    r"(^|_)(id|uuid|guid|key|rownum|row_number|email|phone)$|^(index|idx|row_?names?|[pcu]id|hh_?id)$"
    r"|^(customer|user|client|member|person|patient|subject|participant|household)_?(no|nr|id|number)?$"
)
_ASSIGNED = re.compile(
    r"(^|_)(assign(ed|ment)?|randomi[sz](ed|ation)|treated|treatment|sent|mailed|exposed|campaign)(_|$)"
)
_ROW_NUMBER = re.compile(r"^(index|idx|row_?(names?|num|number|id)?)$")
_OUTCOMES = re.compile(
    r"^(visits?|conversions?|converted|spend|spent|revenue|purchases?|purchased|sales|clicks?|clicked|responses?|responded|"
    r"exposure|exposed|orders?|bought|outcome|target|label)$|^(out|outcome|post|target|resp|response|y|retention|retained)_"
    r"|(^|_)(endline|follow_?up|post_?test)(_|$)|^(mu_?[01]|y_?[01]|ite|cate)$"  # the last are truths of simulations
)
_WORSE = re.compile(
    r"churn|cancel|attrit|unsubscri|opt_?out|default(ed)?$|complain|fraud|death|died|dropout|bounce|lapse|refund|"
    r"(^|_)(return(s|ed)|dead|mortality|pain|adverse|symptoms?|infect(ed|ions?)|fail(s|ed|ures?)?|delinquen(t|cy)|arrears|"
    r"readmi(tted|ssions?)|hospitali[sz](ed|ations?)|injur(y|ies|ed)|accidents?)$"
)
_BETTER = re.compile(
    r"^(visits?|visited|conversions?|converted|spend|spent|revenue|purchases?|purchased|sales|clicks?|clicked|responded|"
    r"orders?|bought|profit|income|retained)$|(^|_)retention(_|$)"
)
_EVENT = re.compile(r"^(status|event|cens(or(ed)?)?|death|dead|died|relapsed?)$")
_EVENT_TIME = re.compile(r"^(time|fu_?time|surv(ival)?_?time|follow_?up_?time|time_to_event)$")  # of a survival trial
_NOT = re.compile(r"(^|_)(no|not|non|without|un|anti|never)(_|$)")
_DOSE = re.compile(
    r"(^|[^a-z])(dose|dosage|ratio|rate|percent|pct|discount|price|amount|times|frequency|freq|intensity|strength|days|"
    r"hours|count|number|num)([^a-z]|$)"
)
_MONEY = re.compile(r"spen[dt]|revenue|amount|amt|sales|profit|margin|gift|dollar|usd|eur")
_BEFORE = re.compile(r"(^|_)(pre|baseline|bl|before|prior|prev|previous)(_|$)")

_CONTROL = re.compile(
    r"(^|[^a-z])(control|ctrl|ctl|none|placebo|hold_?out|untreated|baseline|nothing|psa|sham)([^a-z]|$)|^(no|not|non)([^a-z]|$)|^c$"
)
_USUAL = re.compile(
    r"(^|[^a-z])(obs|observation|usual|standard|soc|tau|wait_?(ing_)?list|regular|original|old|existing|current|"
    r"status_quo)([^a-z]|$)"
)
_TREATED = re.compile(
    r"(^|[^a-z])(treat(ed|ment)?|test|exposed|variant|new|active|intervention|experimental)([^a-z]|$)"
)
_FALSY = ("0", "0.0", "false", "no", "n", "f")

_GOOD = re.compile(
    r"(^|[^a-z])(yes|success(ful)?|succeeded|positive|respon(ded|se|der)|converted|bought|purchased|improved|alive|survived|"
    r"voted|clicked|opened|subscribed|active|retained|stayed|paid|passed|accepted|cured|recovered|won|visited)([^a-z]|$)"
)
_BAD = re.compile(r"(^|_)(no|fail(ed|ure)?|negative|lost|rejected|declined|inactive|unpaid)(_|$)")
_NEGATED = re.compile(
    r"^((did|does|do|has|have|was|is|will|would)_not|(did|does|do|has|have|was|is)n_t|no|not|non|never|without)_"
)
_NEGATIVE_PREFIXES = ("un", "in", "dis", "non")


def name_words(name: str) -> str:
    """The words of a name in lower case, underscores between them: `preOp.calcBMI` is pre_op_calc_bmi."""
    split = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name)
    return re.sub(r"[^a-z0-9]+", "_", split.lower()).strip("_")


def plain_name(column: str, taken: Iterable[str] = ()) -> str:
    """A name of letters, digits and underscores for a column, none of `taken` (in lower case) and of RESERVED_NAMES."""
    name = re.sub(r"[^A-Za-z0-9]+", "_", column).strip("_") or "column"
    name = (f"c_{name}" if name[0].isdigit() else name)[:100]
    used = {*taken, *RESERVED_NAMES}
    for number in range(1, 10_000):
        candidate = name if number == 1 and name.lower() not in used else f"{name}_{number}"
        if candidate.lower() not in used:
            return candidate
    raise ConfigError(f"column {column!r} finds no free name: rename it in the file")


def is_id_name(name: str) -> bool:
    """Whether a column names units by its name."""
    return bool(_ID.search(name_words(name)))


def is_row_number_name(name: str) -> bool:
    """Whether a column numbers the rows by its name; any other id is a better name of a unit."""
    return bool(_ROW_NUMBER.search(name_words(name)))


def is_assignment_time(name: str) -> bool:
    """Whether a time is that of the assignment by its name, as `assigned_at` and `mail_sent_at` are."""
    words = name_words(name)
    return bool(_ASSIGNED.search(words)) and not re.search(r"(^|_)(last|first|prev|previous)(_|$)", words)


def is_dose_name(name: str) -> bool:
    """Whether a treatment's column measures how much, so that its numbers are no mere codes."""
    return bool(_DOSE.search(name_words(name)))


def is_money_name(name: str) -> bool:
    """Whether a column is money by its name."""
    return bool(_MONEY.search(name_words(name)))


def is_worse(text: str) -> bool:
    """Whether more of what a name or a value says is bad, as of `churn`."""
    return bool(_WORSE.search(name_words(text)))


def is_better(text: str) -> bool:
    """Whether more of what a name says is good, as of `visits`."""
    return bool(_BETTER.search(name_words(text)))


def is_negation(text: str) -> bool:
    """Whether a name says that something did not happen, as `no_churn` does."""
    return bool(_NOT.search(name_words(text)))


# --------------------------------------------------------------------------------------------------------------------
# Outcomes: names of what is measured after the treatment.


def is_outcome_name(name: str, outcomes: Sequence[str] = ()) -> bool:
    """Whether a column was measured after the treatment by its name: an outcome's, or one with the time of `outcomes`.

    `g4reading` has the time of `g4math`, `pain_90min` that of `pain_30min`; `re75` comes before `re78`.
    """
    words = name_words(name)
    if _BEFORE.search(words):
        return False
    return bool(_OUTCOMES.search(words)) or any(_same_time(words, name_words(one)) for one in outcomes)


def _same_time(name: str, outcome: str) -> bool:
    event, when = (_EVENT, _EVENT_TIME) if _EVENT.search(outcome) else (_EVENT_TIME, _EVENT)
    if event.search(outcome) and when.search(name):
        return True
    stamps = _stamps(outcome)
    if stamps and stamps <= _stamps(name):
        return True
    since, wanted = _since(name), _since(outcome)
    return since is not None and since == wanted


def _stamps(words: str) -> frozenset[str]:
    """Parts of a name that say when: `g4` of g4math, `12` of turnout_12; a digit alone may count anything."""
    parts = words.split("_")
    stamps = {part for part in parts if re.fullmatch(r"[a-z]{0,8}\d+[a-z]{0,5}", part)} if len(parts) > 1 else set()
    lead = re.match(r"([a-z]{1,8}\d+)(?=[a-z]{3})", words)
    if lead and len(parts) == 1:
        stamps = {lead.group(1)}
    return frozenset(part for part in stamps if not part.isdigit() or len(part) > 1)


def _since(words: str) -> str | None:
    """What stands before a number of days, weeks, months: two such names count the time since one moment."""
    units = r"(mo?|months?|wk?|weeks?|d|days?|hr?|hours?|min|minutes?|y|yr|years?)"
    match = re.match(rf"([a-z_]*?)_?\d+_?{units}(_|$)", words)
    return match.group(1) if match else None


def yes_of_texts(texts: Sequence[str]) -> dict[str, float] | None:
    """{text: 1 or 0} of an outcome's texts where they say which of them counts; None where they do not.

    Known are Yes and No with a code before them (`1_yes`), a text and its negation (`voted`, `did not vote`), and one
    good or bad end beside another text.
    """
    words = {text: re.sub(r"^\d+_", "", name_words(text)) for text in texts}
    if all(word in YES_NO for word in words.values()):
        return {text: YES_NO[word] for text, word in words.items()}
    if len(words) != 2:
        return None
    negated = {text for text, word in words.items() if _negates(word, words.values())}
    good = {text for text, word in words.items() if _GOOD.search(word)} - negated
    bad_ends = {text for text, word in words.items() if _WORSE.search(word)}
    bad = {text for text, word in words.items() if _BAD.search(word)} | negated
    for counted in (set(texts) - negated if negated else set(), good, bad_ends, set(texts) - bad if bad else set()):
        if len(counted) == 1:
            return {text: float(text in counted) for text in texts}
    return None


def _negates(words: str, others: Iterable[str]) -> bool:
    return bool(_NEGATED.match(words)) or any(words == prefix + one for prefix in _NEGATIVE_PREFIXES for one in others)


# --------------------------------------------------------------------------------------------------------------------
# Levels.


def natural_order(text: str) -> tuple[bool, float, list[tuple[str, float]]]:
    """Sort key: numbers by size, and numbers inside texts, too, so that $5 comes before $10."""
    try:
        return False, float(text), []
    except ValueError:
        parts = re.split(r"(\d+(?:\.\d+)?)", text)
        digits = [float(number) for number in parts[1::2]] + [-1.0]
        return True, 0.0, list(zip(parts[::2], digits, strict=True))


def control_of(levels: Sequence[str]) -> tuple[str, bool]:
    """The level that the others are compared with, and whether its name says so for sure."""
    words = {text: name_words(text) for text in levels}
    if by_name := [text for text in levels if _CONTROL.search(words[text])]:
        return sorted(by_name, key=len)[0], len(by_name) == 1
    if falsy := [text for text in levels if text.lower() in _FALSY]:
        return falsy[0], True
    if usual := [text for text in levels if _USUAL.search(words[text])]:
        return sorted(usual, key=len)[0], False
    rest = [text for text in levels if not _TREATED.search(words[text])]
    if len(rest) == 1:
        return rest[0], False
    letters = {text.lower(): text for text in levels}
    if "p" in letters and all(len(text) == 1 for text in levels):  # placebo beside active or drug
        return letters["p"], False
    return sorted(levels, key=natural_order)[0], False


def doses_of(levels: Mapping[str, str], measured: bool) -> dict[str, float] | None:
    """{level: dose} of {text: level} that are numbers or percentages, the control first; numbers that count in ones may
    be mere codes unless the column's name says that they are `measured`."""
    numbers = []
    for text in levels:
        match = re.fullmatch(r"[^\d-]{0,3}(\d+(?:\.\d+)?)\s*[%A-Za-z€$]{0,4}", text)
        is_control = text == next(iter(levels))
        numbers.append(float(match.group(1)) if match else 0.0 if is_control else None)
    known = [number for number in numbers if number is not None]
    if len(known) < len(numbers) or len(known) < 3 or len(set(known)) < len(known) or known[0] != min(known):
        return None
    if not measured and sorted(known) == [known[0] + i for i in range(len(known))]:
        return None
    return dict(zip(levels.values(), known, strict=True))
