"""A Look as one HTML file that needs nothing else: light and dark, no script, text of others escaped and visible."""

from __future__ import annotations

import html
import unicodedata
from pathlib import PurePath

from luthier.data.cells import visible
from luthier.evaluate.page.pictures import svg
from luthier.evaluate.page.pictures import text as word
from luthier.evaluate.page.sections import section
from luthier.evaluate.page.style import STYLE
from luthier.evaluate.page.words import character, count, plain, shown, table
from luthier.look.found import MOST, Drawn, Finding, Histogram, Look, Piece
from luthier.look.terminal import MARKS
from luthier.look.texts import percent, plural
from luthier.look.words import (
    edge_names,
    excerpt,
    judged_said,
    lesson_said,
    marks_said,
    measured,
    near,
    padding_said,
    pooled,
    spreads,
    talk_said,
)

OWN = """
:root { --one: #d9e8f5; --two: #fbe3c8; --taught: #2f7d4f; --read: #efebe5; --read2: #e3ddd4; --learn: #cdebd6;
  --learn2: #aedcbd; }
@media (prefers-color-scheme: dark) { :root { --one: #25405a; --two: #57402a; --taught: #6fc592; --read: #2b2723;
  --read2: #38332d; --learn: #1f4a31; --learn2: #2c6443; } }
.findings { list-style: none; margin: 12px 0 0; padding: 0; }
.findings > li { padding: 9px 0 9px 30px; border-top: 1px solid var(--line); position: relative; }
.findings .sign { position: absolute; left: 4px; font-weight: 700; }
.findings > li.is-bad .sign { color: var(--bad); } .findings > li.is-warn .sign { color: var(--even); }
.findings > li.is-note .sign { color: var(--rival); } .findings > li.is-good .sign { color: var(--good); }
.findings > li.is-good { color: var(--soft); padding-top: 4px; padding-bottom: 4px; }
.findings > li.is-good + li.is-good { border-top: 0; } .findings .hint { color: var(--soft); font-size: 14px; margin: 2px 0 0; }
.findings > li.is-bad > .says { font-weight: 600; }
.places { list-style: none; margin: 6px 0 0; padding: 0; font-size: 13.5px; }
.places li { padding: 1px 0; } .places code { color: var(--rival); margin-right: 8px; }
.rows { display: grid; gap: 18px; margin-top: 14px; } .row-head { color: var(--soft); font-size: 13.5px; margin: 0 0 4px; }
.tokens { font: 14px/2.05 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; margin: 0; }
.t { background: var(--one); border-radius: 3px; padding: 3px 1px; white-space: pre-wrap; }
.t.b { background: var(--two); } .t.special { background: none; color: var(--soft); font-style: italic; opacity: .85;
  border: 1px dashed var(--line); padding: 1px 3px; margin: 0 1px; }
.t.read { background: var(--read); } .t.read.b { background: var(--read2); }
.t.learn { background: var(--learn); } .t.learn.b { background: var(--learn2); }
.t.special.learn { background: var(--taught); color: var(--card); font-style: normal; font-weight: 700; opacity: 1;
  border-color: var(--taught); border-style: solid; }
.gap.learn { color: var(--taught); } .said-as { font: 14px/1.6 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
  white-space: pre-wrap; background: var(--code); border: 1px solid var(--line); border-radius: 8px; padding: 12px 14px;
  margin: 8px 0 0; } .said-as b { font-weight: 400; background: var(--learn); border-radius: 3px; }
.sizes.spread { max-width: 520px; } .measures td:nth-child(2) { font-weight: 600; }
.measures :is(td, th):nth-child(4) { text-align: left; color: var(--soft); }
.t.unknown { background: var(--bad); color: var(--card); }
.t.lost { text-decoration: line-through; opacity: .55; } .t.apart { margin-left: .5em; } .t i { opacity: .4; font-style: normal; }
.gap { color: var(--soft); font-size: 13px; padding: 0 6px; } .tag { color: var(--soft); font-size: 11.5px; padding: 0 3px; }
.tag.on { color: var(--taught); font-weight: 700; } .teaches { color: var(--taught); font-weight: 700; white-space: nowrap; }
.key-line { color: var(--soft); font-size: 13.5px; } .hist { max-width: 640px; margin: 6px 0 4px; }
.hist .box { fill: var(--rival); opacity: .8; } .hist .box:hover { opacity: 1; }
.sizes td:nth-child(1) { font-weight: 600; } .labels { font-size: 14px; }
@media print { .t { border: 1px solid var(--line); } }
"""
LABELS = 400  # listed at most


def page(look: Look) -> str:
    """The whole page."""
    name = near(look.train.source)
    title = f"{visible(name)}: what the model will see"
    body = "".join(
        (
            _top(look, name), _findings(look), section("Rows, token by token", _rows(look), key="rows"),
            _verdicts(look), _lesson(look), section("Splits", _splits(look) + _lengths(look), key="splits"), _balance(look), _scores(look),
            section("Tokens", _marks(look), key="tokens"),
        )
    )  # fmt: skip
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<meta name="referrer" content="no-referrer">\n'
        f'<link rel="icon" href="data:,">\n<title>{html.escape(title)}</title>\n<style>{STYLE}{OWN}</style>\n</head>\n'
        f"<body>\n<main>\n{body}\n<footer>Written by luthier look. This page stands alone: it loads nothing and runs "
        "nothing.</footer>\n</main>\n</body>\n</html>\n"
    )


def _top(look: Look, name: str) -> str:
    bad, warn = (sum(finding.level == level for finding in look.findings) for level in ("bad", "warn"))
    told = [f"{bad} to mend" if bad else "", f"{warn} to look at" if warn else ""]
    found = " and ".join(filter(None, told)) or "nothing to mend"
    verdict = "bad" if bad else "even" if warn else "good"
    facts = f"{look.task}, {len(look.balance)} {'tags' if look.task == 'tag' else 'labels'}"
    facts = look.task if look.task == "regress" else facts
    read = "each word's first token" if look.task == "tag" else pooled(look.pooling)
    said = f"{facts}, read from {read}" if look.lesson is None else lesson_said(look.lesson)
    said = judged_said(look.verdicts)[0] if look.verdicts is not None else said
    return (
        '<header><p class="mark-line"><span class="brand">Luthier</span><span>look</span></p>'
        f"<h1>What <strong>{shown(PurePath(look.model).name or look.model)}</strong> will see of "
        f"<strong>{shown(name)}</strong></h1>"
        f'<p class="verdict {verdict}">{found}</p>'
        f'<p class="lead">{said} · {shown(near(look.model))}, {shown(look.tokenizer)} · rows up to '
        f"{count(look.max_length)} tokens · splits: {shown(look.how)}</p></header>"
    )


def _findings(look: Look) -> str:
    items = "".join(_finding(finding) for finding in look.findings)
    return section("Findings", f'<ul class="findings">{items}</ul>', key="findings")


def _finding(finding: Finding) -> str:
    good = finding.level == "good"
    hint = f'<p class="hint">{shown(finding.hint)}</p>' if finding.hint and not good else ""
    places = "".join(f"<li><code>{shown(near(where))}</code>{shown(what)}</li>" for where, what in finding.places)
    left = finding.count - len(finding.places)
    if len(finding.places) == MOST and left > 0:
        places += f"<li>... and {count(left)} more</li>"
    listed = f'<ul class="places">{places}</ul>' if places else ""
    if len(finding.places) > 6:
        listed = f"<details><summary>{len(finding.places)} places</summary>{listed}</details>"
    return (
        f'<li class="is-{finding.level}"><span class="sign">{MARKS[finding.level]}</span>'
        f'<span class="says">{shown(finding.says)}</span>{hint}{listed}</li>'
    )


def _rows(look: Look) -> str:
    if not look.drawn:
        return ""
    taught = '<span class="teaches">what is learned</span>'
    grounds = '<span class="t">one</span><span class="t b">·token</span> each ground a token'
    signs = '<span class="t special">special</span>'
    if look.writes:
        grounds = '<span class="t read">only</span><span class="t read b">·read</span>'
        taught = '<span class="t learn">learned</span><span class="t learn b">·to·write</span>'
        signs = '<span class="t special">sign</span> · <span class="t special learn">sign that is learned</span>'
    key = (
        f'<p class="key-line">{grounds} · {taught} · {signs} · <span class="t lost">cut away</span> · '
        "point at a token for its id</p>"
    )
    writes = look.writes
    return f'{key}<div class="rows">{"".join(_row(row, writes) for row in look.drawn)}</div>'


def _row(row: Drawn, writes: bool) -> str:
    lost = f", {count(row.learned)} learned" if writes else ""
    lost += f", {count(row.lost)} cut away" if row.lost else ""
    lost += f", {row.part}" if row.part else ""
    pieces = "<wbr>".join(_piece(piece, at, writes) for at, piece in enumerate(row.pieces))
    target = f' <span class="teaches">→ {shown(row.target)}</span>' if row.target is not None else ""
    head = (
        f'<p class="row-head"><code>{shown(near(row.place))}</code> {row.split}, {count(row.tokens)} tokens{lost}</p>'
    )
    return f'<div>{head}<p class="tokens">{pieces}{target}</p></div>'


def _piece(piece: Piece, at: int, writes: bool) -> str:
    mask = ("learn" if piece.learned else "read") if writes else ""
    if piece.gap:
        return f'<span class="gap {mask}">…\u00a0{count(piece.gap)}\u00a0{"cut " if piece.lost else ""}tokens\u00a0…</span>'
    kinds = ["t"] + ["b"] * (at % 2) + ["special"] * piece.special + ["lost"] * piece.lost + ["unknown"] * piece.unknown
    kinds += ["apart"] * (not piece.joined and at > 0) + [mask] * writes
    inside = shown(piece.text) if piece.special else "".join(_glyph(one) for one in piece.text)
    tag = ""
    if piece.target is not None:
        tag = f'<span class="tag{"" if piece.target == "O" else " on"}">{shown(piece.target)}</span>'
    title = f"id {piece.id}" + (", learned" if piece.learned else "") + (", cut away" if piece.lost else "")
    return f'<span class="{" ".join(kinds)}" title="{title}">{inside}</span>{tag}'


def _glyph(one: str) -> str:
    """A character of a token, white space drawn."""
    signs = {" ": "·", "\n": "↵", "\t": "⇥"}
    if one in signs:
        return f"<i>{signs[one]}</i>"
    if unicodedata.category(one) == "Zs" and one != "\u3000":
        return f'<span class="hidden" title="{unicodedata.name(one, "").lower()}">U+{ord(one):04X}</span>'
    return character(one)


def _verdicts(look: Look) -> str:
    """Who judged how much, how far they agree, and what sways them."""
    told = look.verdicts
    if told is None:
        return ""
    body = "".join(f"<p class='small'>{shown(line[0].upper() + line[1:])}.</p>" for line in judged_said(told))
    rows = [[shown(one.name), *measured(one), shown(one.says)] for one in told.measures]
    body += table(["", "value", "95 % interval", "what it is"], rows, "measures")
    if told.places:
        won = [[f"{place + 1}", percent(share), f"{100 * low:.1f} to {100 * high:.1f} %"] for place, share, low, high in told.places]
        body += "<h3>Pairs won by the place a completion was shown at</h3>" + table(["place", "won", "95 % interval"], won, "sizes")
    if told.people:
        people = [
            [shown(name), percent(share), f"{100 * low:.1f} to {100 * high:.1f} %", count(prompts), "disagrees with everyone" * odd]
            for name, share, low, high, prompts, odd in told.people
        ]
        listed = table(["rater", "agrees on", "95 % interval", "prompts in common", ""], people[:LABELS], "sizes")
        opened, title = " open" * (len(people) <= 12), f"{plural(len(people), 'rater')}, the least agreeing first"
        body += f"<details{opened}><summary>{title}</summary>{listed}</details>"
    sizes = [
        [name, *map(count, (one.median, one.p90, one.p99, one.longest))]
        for name, one in (("prompt", told.prompt), ("completion", told.completion))
    ]
    body += table(["tokens of train", "median", "90 %", "99 %", "longest"], sizes, "sizes spread")
    return section("Judgements", body, "Over the whole training file; intervals are over prompts.", key="judgements")


def _lesson(look: Look) -> str:
    """What is read and what is learned, who speaks, and a conversation as the template writes it."""
    lesson = look.lesson
    if lesson is None:
        return ""
    rows = [
        [name, *map(count, (spread.median, spread.p90, spread.p99, spread.longest))]
        for name, spread in spreads(look.train)
    ]
    body = table(["tokens of train", "median", "90 %", "99 %", "longest"], rows, "sizes spread")
    body += "".join(f"<p class='small'>{shown(line[0].upper() + line[1:])}.</p>" for line in talk_said(lesson))
    if lesson.rendered:
        parts = "".join(
            f"<b>{shown(text)}</b>" if learned else shown(text) for text, learned in excerpt(lesson.rendered)
        )
        body += (
            f"<h3>A conversation as the template writes it</h3><p class='small'>Template: {shown(lesson.template)}. On green: "
            f"what is learned.</p><div class='said-as'>{parts}</div>"
        )
    return section("What is read, what is learned", body, "Before anything is cut.", key="lesson")


def _splits(look: Look) -> str:
    head = ["", "source", "rows", "tokens", "median", "90 %", "99 %", "longest", "cut", "tokens lost"]
    head[4:4] = ["learned", "share"] if look.lesson is not None else []
    rows = []
    for split in look.splits:
        told = split.lengths
        cells = (split.rows, told.tokens, told.median, told.p90, told.p99, told.longest, told.truncated, told.lost)
        written = list(map(count, cells))
        if split.taught is not None:
            written[2:2] = [count(split.taught.learned), percent(split.taught.learned / max(1, told.tokens))]
        rows.append([split.name, f'<span class="path">{shown(near(split.source))}</span>', *written])
    return table(head, rows, "data sizes")


def _lengths(look: Look) -> str:
    picture = _bars(look.train.lengths.histogram, "Row lengths of train in tokens")
    return f"<h3>Row lengths of train, in tokens</h3>{picture}"


def _scores(look: Look) -> str:
    if look.train.scores is None:
        return ""
    rows = [
        [split.name, *(f"{value:.4g}" for value in (told.mean, told.deviation, told.least, told.most))]
        for split in look.splits
        if (told := split.scores) is not None
    ]
    picture = _bars(look.train.scores.histogram, "Scores of train")
    return section("Scores", picture + table(["", "mean", "sd", "min", "max"], rows), key="scores")


def _bars(histogram: Histogram, label: str) -> str:
    """A histogram; every bar tells its numbers when pointed at."""
    width, height, floor = 640.0, 170.0, 140.0
    names, bins, top = edge_names(histogram), len(histogram.counts), max(histogram.counts)
    step = width / bins
    drawn, every = [], max(1, -(-bins // 12))
    for at, number in enumerate(histogram.counts):
        high = (floor - 18) * number / top
        left, last = names[at], at == bins - 1
        span = f"{left} and more" if last else f"{left} to {names[at + 1]}"
        drawn.append(
            f'<rect class="box" x="{at * step + 1:.1f}" y="{floor - high:.1f}" width="{max(step - 2, 1):.1f}" '
            f'height="{high:.1f}" rx="2"><title>{plain(span)}: {number:,}</title></rect>'
        )
        if bins <= 16 and number:
            drawn.append(word((at + 0.5) * step, floor - high - 4, f"{number:,}", "tick", "middle"))
        if at % every == 0:
            drawn.append(word(at * step + 1, floor + 16, left + ("+" if last else ""), "tick"))
    drawn.append(f'<line class="grid" x1="0" x2="{width:g}" y1="{floor:g}" y2="{floor:g}"/>')
    return f'<div class="hist">{svg(width, height, "".join(drawn), label)}</div>'


def _balance(look: Look) -> str:
    if not look.balance:
        return ""
    tagging = look.task == "tag"
    totals = {split.name: max(1, split.targets if tagging else split.rows) for split in look.splits}
    head = [("tag" if tagging else "label"), *(cell for split in look.splits for cell in (split.name, "share %"))]
    top = max(max(one.counts[name] / totals[name] for name in totals) for one in look.balance) or 1.0
    rows = []
    for one in look.balance[:LABELS]:
        cells = []
        for name in totals:
            share = one.counts[name] / totals[name]
            bar = f'<span class="bar" style="--share:{100 * share / top:.1f}%">{100 * share:.1f}</span>'
            cells += [count(one.counts[name]), bar]
        rows.append([shown(one.label), *cells])
    left = len(look.balance) - LABELS
    rows += [[f"... and {count(left)} rarer"]] if left > 0 else []
    most, least = look.balance[0], [one for one in look.balance if one.counts["train"]][-1]
    lead = (
        f"Commonest in train: {shown(most.label)} ({count(most.counts['train'])}); rarest: {shown(least.label)} "
        f"({count(least.counts['train'])}). Shares are of {'all words' if tagging else 'the rows'}."
    )
    body = table(head, rows, "labels")
    if len(rows) > 40:
        body = (
            f"<details><summary>{count(len(look.balance))} {'tags' if tagging else 'labels'}</summary>{body}</details>"
        )
    return section("Balance", body, lead, key="balance")


def _marks(look: Look) -> str:
    said = "".join(f"<li>{shown(line[0].upper() + line[1:])}</li>" for line in marks_said(look.marks))
    both = look.padding
    shares = [percent(1 - both.tokens / places) for places in (both.cut, both.one)]
    rows = [
        [f"length-sorted micro-batches, {both.micros:.1f} a step", count(both.cut), shares[0]],
        [f"one rectangle a step of {both.batch_size} rows", count(both.one), shares[1]],
    ]
    told = padding_said(both)
    note = "" if not both.cached else f'<p class="small">{shown(told.rpartition("; ")[2].capitalize())}.</p>'
    lead = f"<h3>Padding</h3><p class='small'>{count(both.tokens)} tokens of {both.steps} steps of the first pass fill:</p>"
    return f"<ul>{said}</ul>{lead}{table(['', 'places', 'of them padding'], rows)}{note}"
