"""The report as one page: everything inside it, nothing loaded, no script.

It opens from a mail, on a phone and on paper, and answers in this order: how is it going, what to
look at, what moved it, for whom, which offers, is it proven, and can the models be trusted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Final

from nextbest.learn.compare_charts import Markup, bar, el, interval
from nextbest.learn.page import save, whole
from nextbest.measure import segments as parts
from nextbest.measure.attribution import RULES
from nextbest.measure.kpi.definitions import Unit
from nextbest.measure.kpi.read import Point, Reading
from nextbest.measure.report import charts, words
from nextbest.measure.report.campaigns import Campaign
from nextbest.measure.report.facts import ModelHealth, Report, Size, slipped
from nextbest.measure.report.findings import Finding, findings

__all__ = ["render", "write"]

_CARDS: Final = (
    "revenue_per_customer", "average_order_value", "purchase_frequency", "churn_rate",
    "hvc_value_share", "response_rate", "campaign_roi",
)  # fmt: skip
_TRENDS: Final = (
    "revenue_per_customer", "average_order_value", "conversion_rate", "hvc_value_share",
    "response_rate", "new_customer_share",
)  # fmt: skip
_SIGNS: Final = {"good": "▲", "bad": "▼", "look": "!", "note": "•"}
_NAMED: Final = {
    "value_tier": "Value tiers", "rfm_segment": "RFM segments", "lifecycle": "Lifecycle",
    "channel": "Channel where they buy",
}  # fmt: skip
_BASIS: Final = {
    "margin": "margin of the data", "rate": "sales times the stated margin rate", "sales": "sales",
}  # fmt: skip
_MOST: Final = 12
_WEEK_PLURAL: Final = {"day": "days", "week": "weeks", "month": "months"}


def render(report: Report) -> str:
    """Return the whole page as text."""
    style = resources.files(__package__).joinpath("report.css").read_text(encoding="utf-8")
    c = report.calendar
    period = words.span(c.day(c.current.starts_at), c.last_day(c.current))
    title = f"{report.project}: {period}"
    then = words.span(c.day(c.baseline.starts_at), c.last_day(c.baseline))
    return whole(
        title,
        el("header", el("p", "nextbest · report", class_="eyebrow"), el("h1", title),
           el("p", f"Held against {then}.", class_="lede"), _banner(report)),
        el("main", *(s for s in _sections(report) if s)),
        el("footer", el("p", "Made by ", el("code", "nextbest report"), ". The data behind every "
           "chart lie beside this page as Parquet and JSON.")),
        style=style,
    )  # fmt: skip


def write(report: Report, file: Path | str) -> None:
    """Write the page to a file; ``UsageError`` where that cannot be done."""
    save(render(report), file)


def _banner(report: Report) -> Markup | None:
    if not report.given.simulated:
        return None
    text = "Simulated outcomes: responses and purchases of this period come from a simulator."
    return el("p", text, class_="banner")


def _sections(report: Report) -> Iterator[Markup | None]:
    yield _cards(report)
    yield _look(findings(report))
    yield _trends(report)
    yield _drivers(report)
    yield _kpis(report)
    yield _customers(report)
    yield _moves(report)
    yield _cohorts(report)
    yield _offers(report)
    yield _attribution(report)
    yield _experiment(report)
    yield _models(report)
    yield _how_to_read(report)


def _section(title: str, *body: Markup | None) -> Markup:
    return el("section", el("h2", title), *body)


# ------------------------------------------------------------------ how is it going


def _cards(report: Report) -> Markup:
    made = []
    revenue = next(t for t in report.totals if t.name == "revenue")
    if revenue.before > 0:
        share = words.percent(revenue.value / revenue.before - 1, sign=True)
        delta: tuple[object, ...] = (el("strong", share), " against the baseline")
    else:
        delta = ("nothing in the baseline",)
    weekly = [p for p in report.points if p.kpi == "revenue_per_customer"]
    made.append(_card("Revenue", words.money(revenue.value), delta, "", weekly))
    for name in _CARDS:
        found = next((r for r in report.kpis if r.kpi.name == name), None)
        if found is None or found.value is None:
            continue
        points = [p for p in report.points if p.kpi == name]
        flag = words.FLAGS[found.flag]
        said: tuple[object, ...] = (found.why,)
        if found.change is not None:
            said = (el("strong", words.moved(found)), f" · {flag}")
        shown = words.amount(found.value.value, found.kpi.unit)
        made.append(_card(found.kpi.title, shown, said, found.news, points))
    return el("section", el("h2", "At a glance"), el("ul", *made, class_="cards"))


def _card(
    title: str, value: str, delta: Sequence[object], news: str, points: Sequence[Point]
) -> Markup:
    split = sum(p.in_baseline for p in points)
    values = [p.value.value if p.value else None for p in points]
    line = charts.spark(values, split) if _drawable(points) else None
    return el(
        "li", el("p", title, class_="what"), el("p", value, class_="big"),
        el("p", *delta, class_="delta"), line, class_=f"card {news}".strip(),
    )  # fmt: skip


def _look(found: Sequence[Finding]) -> Markup:
    meant = {"good": "good news: ", "bad": "bad news: ", "look": "look at this: ", "note": ""}
    items = [
        el("li", el("span", _SIGNS[f.kind], class_="sign", aria_label=meant[f.kind] or None,
                    role="img" if meant[f.kind] else None,
                    aria_hidden=None if meant[f.kind] else "true"),
           f.text, class_=f"is-{f.kind}")
        for f in found
    ]  # fmt: skip
    return _section("What to look at", el("ul", *items, class_="findings"))


# ------------------------------------------------------------------ what moved


def _trends(report: Report) -> Markup | None:
    drawn = []
    by_name = {r.kpi.name: r for r in report.kpis}
    own = [n for n in by_name if n in report.settings.kpis]
    for name in (*_TRENDS, *own):
        points = [p for p in report.points if p.kpi == name]
        if name not in by_name or not _drawable(points):
            continue
        kpi = by_name[name].kpi
        every = report.settings.period.every
        dots = [
            charts.Dot(
                _step(p.step, every), p.value.value if p.value else None, p.low, p.high,
                p.in_baseline, _news(p, by_name[name]),
            )
            for p in points
        ]  # fmt: skip
        title = f"{kpi.title}, {every} by {every}"
        picture = charts.trend(title, dots, _axis(kpi.unit), f"trend-{name}")
        caption = el("figcaption", kpi.title, el("span", kpi.meaning, class_="sub"))
        drawn.append(el("figure", caption, picture))
    if not drawn:
        return None
    every = report.settings.period.every
    text = (
        f"Each {every} beside the baseline's {_WEEK_PLURAL[every]}. The band is where a {every} "
        "usually lies; a dot marks one that lies outside by more than chance."
    )
    return _section(f"{every.capitalize()} by {every}", el("p", text),
                    el("div", *drawn, class_="charts wide"))  # fmt: skip


def _drawable(points: Sequence[Point]) -> bool:
    """Whether enough steps have a figure for a line to say something."""
    return len([p for p in points if p.value]) > len(points) / 2


def _news(point: Point, reading: Reading) -> str:
    if point.flag not in ("up", "down"):
        return ""
    if reading.kpi.better == "either":
        return "neutral"
    return "good" if (point.flag == "up") == (reading.kpi.better == "higher") else "bad"


def _step(step: str, every: str) -> str:
    year, month, day = step.split("-")
    names = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]
    return f"{names[int(month) - 1]} {year}" if every == "month" else (
        f"{int(day)} {names[int(month) - 1]}"
    )  # fmt: skip


def _axis(unit: Unit) -> Callable[[float], str]:
    if unit == "share":
        return lambda v: f"{100 * v:,.4g}%"
    return lambda v: f"{v:,.4g}" if abs(v) < 1_000 else f"{v:,.0f}"


def _drivers(report: Report) -> Markup | None:
    if not report.drivers:
        return None
    rows = [(d.name, d.effect, "good" if d.effect >= 0 else "bad") for d in report.drivers]
    total = sum(d.effect for d in report.drivers)
    rows.append(("all together", total, "base"))
    picture = charts.bars("What moved revenue", rows, lambda v: words.count(v), "drivers")
    units: dict[str, Unit] = {"share who bought": "share", "revenue per order": "currency"}
    body = [
        _row(el("span", d.name, class_="name"),
             ("baseline", _figure(d.before, units.get(d.name, "count"))),
             ("period", _figure(d.now, units.get(d.name, "count"))),
             ("brought", words.money(d.effect, sign=True)))
        for d in report.drivers
    ]  # fmt: skip
    text = (
        "Revenue is customers × share who bought × orders per buyer × revenue per order. Each "
        "bar is what the change of one of them brought; together they are the whole change."
    )
    return _section(
        "What moved revenue", el("p", text),
        el("div", el("figure", el("figcaption", "Change of revenue by what brought it"), picture),
           _table("The four factors", body, "factor", "baseline", "period", "brought"),
           class_="charts wide"),
    )  # fmt: skip


def _figure(value: float, unit: Unit) -> str:
    return words.count(value) if unit == "count" and value >= 100 else words.amount(value, unit)


def _kpis(report: Report) -> Markup:
    tables = []
    for timing, meaning in (("leading", "move before the money does"),
                            ("lagging", "are the money, and what is already done")):  # fmt: skip
        shown = [r for r in report.kpis if r.kpi.timing == timing and r.value is not None]
        if not shown:
            continue
        body = [_kpi(r) for r in shown]
        caption = f"{timing.capitalize()} figures {meaning}"
        tables.append(_table(caption, body, "figure", "baseline", "period", "change", "reading",
                             "fell ◂ ▸ rose"))  # fmt: skip
    absent = [r for r in report.kpis if r.value is None]
    notes = [el("li", el("strong", f"{r.kpi.title}: "), f"{r.why}.") for r in absent]
    return _section(
        "Key figures", *tables,
        el("p", "Not shown, and why:", class_="lede") if notes else None,
        el("ul", *notes) if notes else None,
    )  # fmt: skip


def _kpi(r: Reading) -> Markup:
    assert r.value is not None
    unit = r.kpi.unit
    span = f"{words.amount(r.value.low, unit)} to {words.amount(r.value.high, unit)}"
    title = (el("span", r.kpi.title, class_="name"), el("span", r.kpi.meaning, class_="meaning"))
    cells: list[tuple[str, object]] = [
        ("baseline", "–" if r.before is None else words.amount(r.before, unit)),
        ("period", el("span", words.amount(r.value.value, unit),
                      el("span", span, class_="range"))),
    ]  # fmt: skip
    if r.change is None:
        cells += [("change", "–"), ("reading", el("span", r.why, class_="why"))]
        return _row(*title, *cells, picture=Markup(""))
    d = r.together or r.change.difference
    bounds = " to ".join(_difference(v, unit) for v in (d.low, d.high))
    cells.append(("change", el("span", words.moved(r), el("span", bounds, class_="range"))))
    cells.append(("reading", el("span", words.FLAGS[r.flag], class_=f"reading {r.news}")))
    # Every bar has its own scale: figures of different units have none in common.
    bound = max(abs(d.low), abs(d.high))
    style = {"good": "better", "bad": "worse"}.get(r.news, "unclear")
    said = f"{r.kpi.title}: change {_difference(d.value, unit)}, interval {bounds}"
    return _row(*title, *cells, picture=interval(d.value, d.low, d.high, bound, style, said))


def _difference(value: float, unit: Unit) -> str:
    return words.points(value) if unit == "share" else words.amount(value, unit, sign=True)


# ------------------------------------------------------------------ for whom


def _customers(report: Report) -> Markup | None:
    if "segments" in report.missing:
        return _section("Customers", el("p", report.missing["segments"], class_="note"))
    drawn = []
    for dimension in dict.fromkeys(s.dimension for s in report.sizes):
        sizes = [s for s in report.sizes if s.dimension == dimension and s.customers]
        drawn.append(_sizes(report, dimension, sizes))
    days = report.settings.customers.lookback_days
    text = (
        f"Where customers stood at the end of the period. Value is over the {days} days before "
        f"({_BASIS[report.value_basis]}); grey bars are shares of customers, blue ones of value. "
        "The small number is who came less who left during the period. Segments end where they "
        "ended at the start of the baseline, so that nobody moves because others bought more."
    )
    return _section("Customers", el("p", text), el("div", *drawn, class_="masonry"),
                    _segment_news(report))  # fmt: skip


def _sizes(report: Report, dimension: str, sizes: Sequence[Size]) -> Markup:
    shown = sizes[:_MOST]
    customers = sum(s.customers for s in sizes) or 1
    value = sum(s.value for s in sizes) or 1.0
    bound = max((max(s.customers / customers, s.value / value) for s in shown), default=1.0)
    body = []
    for s in shown:
        share, worth = s.customers / customers, s.value / value
        move = s.customers - s.customers_before
        body.append(
            el(
                "tr",
                el("th", s.segment, scope="row", class_="name"),
                el("td", f"{s.customers:,}", el("span", f"{move:+,}" if move else "±0",
                                                class_="range"), class_="num"),
                el("td", bar(share, bound, "base"), bar(worth, bound, "of"),
                   el("span", f"{words.percent(share, digits=0)} of customers, "
                      f"{words.percent(worth, digits=0)} of value", class_="range")),
            )
        )  # fmt: skip
    heads = ("segment", "customers", "share of all")
    title = _NAMED.get(dimension, dimension.replace("_", " "))
    head = el("tr", *(el("th", h, scope="col") for h in heads))
    return el("div", el("table", el("caption", el("strong", title)), el("thead", head),
                        el("tbody", *body), class_="sizes"))  # fmt: skip


def _segment_news(report: Report) -> Markup:
    flagged = [r for r in report.segments if r.flag in ("up", "down")]
    judged = len([r for r in report.segments if r.change is not None])
    if not flagged:
        text = f"None of {judged:,} figures of single segments moved by more than noise."
        return el("p", text, class_="note")
    flagged.sort(key=lambda r: -abs((r.change and r.change.relative) or 0.0))
    body = []
    for r in flagged[:_MOST]:
        assert r.value is not None and r.before is not None
        name = el("span", r.segment, class_="name")
        of = el("span", _NAMED.get(r.dimension, r.dimension), class_="meaning")
        unit = r.kpi.unit
        body.append(
            _row(name, of, ("figure", r.kpi.title), ("baseline", words.amount(r.before, unit)),
                 ("period", words.amount(r.value.value, unit)), ("change", words.moved(r)),
                 ("reading", el("span", words.FLAGS[r.flag], class_=f"reading {r.news}")))
        )  # fmt: skip
    more = len(flagged) - _MOST
    caption = f"{len(flagged)} of {judged:,} figures of single segments moved by more than noise"
    heads = ("segment", "figure", "baseline", "period", "change", "reading")
    return el(
        "div", _table(caption, body, *heads),
        el("p", f"And {more} more in segments.parquet.") if more > 0 else None,
    )  # fmt: skip


def _moves(report: Report) -> Markup | None:
    tiers = [m for m in report.migrations if m.dimension == "value_tier"]
    if not tiers:
        return None
    came, left = slipped(report)
    text = (
        f"{sum(m.customers for m in came):,} customers came into the top value tier over the "
        f"period and {sum(m.customers for m in left):,} left it. Rows are where customers stood "
        "at its start, columns where they stand at its end; the small number is by how much their "
        "value has changed."
    )
    drawn = [_matrix(report, d) for d in ("value_tier", "lifecycle")]
    return _section("Who moved", el("p", text), el("div", *drawn, class_="charts wide"))


def _matrix(report: Report, dimension: str) -> Markup:
    found = [m for m in report.migrations if m.dimension == dimension]
    rows = list(dict.fromkeys(m.before for m in found))
    columns = sorted({m.after for m in found}, key=lambda s: parts.place(dimension, s))
    cells = {(m.before, m.after): m for m in found}
    body = []
    for before in rows:
        total = sum(m.customers for m in found if m.before == before)
        tds = []
        for after in columns:
            m = cells.get((before, after))
            if m is None:
                tds.append(el("td", "–"))
                continue
            change = m.value_after - m.value_before
            tds.append(el("td", f"{m.customers:,}",
                          el("span", f"{'+' if change > 0 else ''}{words.count(change)}",
                             class_="range"),
                          class_=charts.heat(m.customers / total)))  # fmt: skip
        body.append(el("tr", el("th", before, scope="row"), *tds))
    name = _NAMED.get(dimension, dimension)
    caption = f"{name}: from row to column"
    return _plain_table(caption, ("from", *columns), body)


def _cohorts(report: Report) -> Markup | None:
    if not report.cohorts:
        return None
    last = max((s[0] for o in report.cohorts for s in o.shares), default=0)
    body = []
    for o in report.cohorts:
        by = {s[0]: s for s in o.shares}
        tds = [
            el("td", words.percent(by[i][1], digits=0), class_=charts.heat(by[i][1]),
               title=f"{words.percent(by[i][2])} to {words.percent(by[i][3])}")
            if i in by else el("td", "")
            for i in range(1, last + 1)
        ]  # fmt: skip
        mark = "" if o.complete else " *"
        body.append(el("tr", el("th", f"{o.month}{mark}", scope="row"),
                       el("td", f"{o.customers:,}"), *tds))  # fmt: skip
    heads = ("first purchase", "customers", *(f"+{i}" for i in range(1, last + 1)))
    note = None
    if not all(o.complete for o in report.cohorts):
        note = el("p", "* The data begin here: many of these customers had bought before.",
                  class_="note")  # fmt: skip
    caption = "Share who bought again so many months later"
    return _section("Retention by cohort", _plain_table(caption, heads, body), note)


# ------------------------------------------------------------------ offers


def _offers(report: Report) -> Markup | None:
    if not report.offers:
        return _section("Offers", el("p", "Nobody was contacted in the period.", class_="note"))
    found = "the decision log" if report.contacts_from == "log" else "the data's contacts"
    text = (
        f"From {found}. A contact is judged once its time to answer is over. Profit is what "
        "responses brought in less incentives and contacts; it is not what the offers caused."
    )
    tables = [_campaigns("Offers of the period", "offer", report.offers)]
    if len(report.channels) > 1:
        tables.append(_campaigns("Channels of the period", "channel", report.channels))
    return _section("Offers", el("p", text), *tables)


def _campaigns(caption: str, what: str, found: Sequence[Campaign]) -> Markup:
    end = max((o.response.high for o in found if o.response), default=1.0)
    body = []
    for o in found[:_MOST]:
        rate: object = el("span", o.why, class_="why")
        picture = Markup("")
        if o.response is not None:
            r = o.response
            span = f"{words.percent(r.low)} to {words.percent(r.high)}"
            rate = el("span", words.percent(r.value), el("span", span, class_="range"))
            said = f"{o.title}: answered {words.percent(r.value)}, 95% interval {span}"
            picture = charts.range_bar(r.value, r.low, r.high, end, said)
        profit = "–" if o.profit is None or not o.closed else words.money(o.profit)
        each = o.profit_per_contact
        if each is not None and o.profit is not None:
            bounds = f"{words.money(each.value)} per contact"
            shown: object = el("span", profit, el("span", bounds, class_="range"))
        else:
            shown = profit
        body.append(
            _row(el("span", o.title, class_="name"), ("reached", f"{o.customers:,}"),
                 ("judged", f"{o.closed:,}"), ("answered", f"{o.answered:,}"), ("profit", shown),
                 ("response", rate), picture=picture)
        )  # fmt: skip
    return _table(caption, body, what, "reached", "judged", "answered", "profit", "response",
                  f"0 to {words.percent(end, digits=0)}")  # fmt: skip


def _attribution(report: Report) -> Markup | None:
    found = report.attribution
    if found is None:
        reason = report.missing.get("attribution", "")
        return _section("Attribution", el("p", reason, class_="note")) if reason else None
    total = found.responses
    shown = found.credits[:_MOST]
    bound = max((v for c in shown for v in c.responses.values()), default=1.0)
    titles = {o.name: o.title for o in report.offers} if found.by == "offer" else {}
    body = [
        el("tr", el("th", titles.get(c.name, c.name), scope="row", role="rowheader"),
           *(el("td", bar(v, bound, "of"), f"{v:,.1f}", data_label=_rule(rule), class_="num",
                role="cell")
             for rule, v in c.responses.items()), role="row")
        for c in shown
    ]  # fmt: skip
    what = {"offer": "offer", "offer_type": "type of offer", "channel": "channel"}[found.by]
    caption = f"Responses credited to each {what}, by rule"
    heads = [what, *(_rule(r) for r in RULES)]
    experiment = report.given.experiment
    contradicts = "Only an experiment could say what the contacts caused."
    if experiment is not None and not experiment.blocked and experiment.overall:
        said = experiment.overall[0].verdict
        contradicts = f"What contacts caused, the experiment says, and it holds: {said}"
    few = found.several / total if total else 0.0
    return _section(
        "Attribution",
        el("p", el("span", "descriptive", class_="tag"), " ",
           f"{total:,} responses had a contact in the {found.window_days} days before them; "
           f"{found.without:,} had none. Where a response had one contact only, every rule gives "
           f"it all: rules can differ on {found.several:,} of them "
           f"({words.percent(few, digits=0)}). Credits say who was there. {contradicts}"),
        _table(caption, body, *heads),
        el("details", el("summary", "What each rule does"),
           el("ul", *(el("li", el("strong", f"{_rule(r)}: "), f"{text}.")
                      for r, text in RULES.items()))),
    )  # fmt: skip


def _rule(name: str) -> str:
    return {"markov": "Markov chain", "shapley": "Shapley"}.get(name, name.replace("_", " "))


# ------------------------------------------------------------------ proof, and trust


def _experiment(report: Report) -> Markup:
    found = report.given.experiment
    if found is None:
        text = f"There is none: {report.given.no_experiment}."
        more = "Set a holdout in serving/policy.toml; without one, nothing proves an offer's worth."
        return _section("Experiment", el("p", text), el("p", more, class_="note"))
    counts = ", ".join(f"{arm} {n:,}" for arm, n in found.balance.counts.items())
    items = [el("li", c.verdict[:1].upper() + c.verdict[1:]) for c in found.overall]
    return _section(
        "Experiment", el("p", f"Customers by arm: {counts}. {found.balance.message}."),
        el("ul", *items),
    )  # fmt: skip


def _models(report: Report) -> Markup:
    models = report.given.models
    if not models:
        return _section("Models", el("p", "No model is in use.", class_="note"))
    body = [_model(m) for m in models]
    return _section(
        "Models in use",
        _table("Figures on the test rows, beside the simple rule's, and health limits", body,
               "model", "figure", "simple rule", "limits", "drift", "reading"),
    )  # fmt: skip


def _model(m: ModelHealth) -> Markup:
    made = f"version {m.version}, trained {words.day(m.trained_at.date())}"
    base = "–" if m.baseline is None else f"{m.baseline:,.4g}"
    checks = [
        el("span", f"{what} {figure:.3g} (limit {limit:.3g}{'' if ok else ', beyond it'})",
           class_="range")
        for what, figure, limit, ok in m.checks
    ]  # fmt: skip
    state = ("good", "healthy") if m.healthy else ("bad", "look at it")
    span = f"{m.low:,.4g} to {m.high:,.4g}"
    return _row(
        el("span", m.name, class_="name"), el("span", made, class_="meaning"),
        ("figure", el("span", f"{m.metric} {m.value:,.4g}", el("span", span, class_="range"))),
        ("simple rule", el("span", base, el("span", m.baseline_name, class_="range"))),
        ("limits", el("span", *checks) if checks else "–"),
        ("drift", el("span", m.drift, class_="why")),
        ("reading", el("span", state[1], class_=f"tag {state[0]}")),
    )  # fmt: skip


def _how_to_read(report: Report) -> Markup:
    p = report.settings.period
    points = [
        "Beyond noise: a change is flagged where it exceeds both what chance among customers and, "
        "for figures that add up over time, the usual swing from week to week explain, at 95%, all "
        "figures judged together (Holm; for single segments Benjamini and Hochberg). The bars hold "
        "for all figures of the list at once.",
        "No season is taken out. Against the days before, a change may be the time of year; with "
        'two years of data, baseline = "year before" compares with the same weeks.',
        f"Answers count within {p.response_days} days. Contacts whose time is not over are not "
        "judged.",
        "High-value customers are the top "
        f"{words.percent(report.settings.customers.hvc_share, digits=0)} of buyers by value at the "
        "start of the baseline; whoever exceeds that bound later is one too.",
        "Segments of a period are those of its first moment, so that what happens in it does not "
        "decide who is in them.",
    ]
    return _section("How to read this", el("ul", *(el("li", text) for text in points)))


# ------------------------------------------------------------------ pieces


def _row(*parts_: Markup | tuple[str, object], picture: Markup | None = None) -> Markup:
    title = [p for p in parts_ if isinstance(p, Markup)]
    cells = [p for p in parts_ if isinstance(p, tuple)]
    return el(
        "tr",
        el("th", *title, scope="row", role="rowheader"),
        *(el("td", value, data_label=label, role="cell", class_="num") for label, value in cells),
        None if picture is None else el("td", picture, role="cell", class_="pic"),
        role="row",
    )


def _table(caption: str, body: Sequence[Markup], *heads: str) -> Markup:
    """A table whose rows become cards on a phone."""
    head = el("tr", *(el("th", h, scope="col", role="columnheader") for h in heads), role="row")
    return el(
        "table", el("caption", caption), el("thead", head, role="rowgroup"),
        el("tbody", *body, role="rowgroup"), class_="stack", role="table",
    )  # fmt: skip


def _plain_table(caption: str, heads: Sequence[str], body: Sequence[Markup]) -> Markup:
    """A grid of numbers in a box that scrolls sideways where the screen is narrow."""
    head = el("tr", *(el("th", h, scope="col") for h in heads))
    table = el("table", el("caption", caption), el("thead", head), el("tbody", *body),
               class_="grid-table")  # fmt: skip
    return el("div", table, class_="scroll", tabindex="0", role="region", aria_label=caption)
