"""A Look on the terminal: colours where there is one, the same words without them elsewhere (pipes, NO_COLOR)."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from luthier.data.cells import visible
from luthier.look.found import MOST, Drawn, Finding, Histogram, Lesson, Look, Piece, Verdicts
from luthier.look.texts import percent
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
    spaced,
    spreads,
    talk_said,
)

MARKS = {"bad": "✗", "warn": "!", "note": "·", "good": "✓"}
STYLES = {"bad": "bold red", "warn": "bold yellow", "note": "cyan", "good": "green"}
GROUNDS = ("black on color(153)", "black on color(223)")
PLAIN_GROUNDS = ("black on cyan", "black on yellow")  # a terminal of 16 colours can't tell the former apart
LEARNED, READ = ("black on color(114)", "black on color(157)"), ("black on color(250)", "black on color(254)")
PLAIN_LEARNED, PLAIN_READ = ("black on green", "black on bright_green"), ("black on white", "black on bright_white")
LEARNED_SIGN = "bold white on color(22)"
TOP, BOTTOM = 16, 6  # labels listed of a long list: the commonest and the rarest
BAR = 32  # cells of the longest bar
WIDTH = 100  # where there is no terminal


def show(look: Look) -> None:
    """Print to stdout."""
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="replace")  # a terminal without UTF-8 gets question marks, not a traceback
    console = Console(highlight=False, markup=False, emoji=False)
    if console.is_terminal:
        _Sheet(console).print(look)
    else:
        print(text(look), end="")


def text(look: Look, *, colour: bool = False, width: int = WIDTH) -> str:
    """The same as a string, with ANSI colours or without."""
    out = io.StringIO()
    console = Console(
        file=out, force_terminal=colour, color_system="256" if colour else None, width=width, highlight=False,
        markup=False, emoji=False,
        no_color=not colour, legacy_windows=False, _environ={},
    )  # fmt: skip
    _Sheet(console).print(look)
    return out.getvalue() if colour else "".join(f"{line.rstrip()}\n" for line in out.getvalue().splitlines())


class _Sheet:
    """One printing of a Look."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.colour = console.is_terminal and console.color_system is not None and not console.no_color
        few = console.color_system in ("standard", "windows")
        self.grounds = PLAIN_GROUNDS if few else GROUNDS
        self.masked = (PLAIN_READ, PLAIN_LEARNED) if few else (READ, LEARNED)  # by whether a token is learned
        self.writes = False

    def print(self, look: Look) -> None:
        self.writes = look.writes
        self._top(look)
        self._findings(look.findings)
        self._splits(look)
        if look.lesson is not None:
            self._lesson(look, look.lesson)
        if look.verdicts is not None:
            self._verdicts(look.verdicts)
        if look.balance:
            self._balance(look)
        for split in look.splits:
            if split.scores is not None and split.name == "train":
                self._title("scores of train")
                self._histogram(split.scores.histogram)
        self._title("row lengths of train, in tokens")
        self._histogram(look.train.lengths.histogram)
        self._title("tokens")
        for sentence in (*marks_said(look.marks), padding_said(look.padding)):
            self._line(sentence)
        self._rows(look)

    def _line(self, line: str | Text, indent: int = 2) -> None:
        body = line if isinstance(line, Text) else Text(visible(line))
        grid = Table.grid()
        grid.add_column(width=indent)
        grid.add_column(overflow="fold")
        grid.add_row("", body)
        self.console.print(grid)

    def _title(self, title: str, more: str = "") -> None:
        self.console.print()
        line = Text(title, style="bold")
        line.append(f"  {more}" if more else "", style="not bold dim")
        self.console.print(line)

    def _top(self, look: Look) -> None:
        line = Text("what the model will see", style="bold")
        self.console.print(line)
        task = f"{look.task}, {len(look.balance)} {'tags' if look.task == 'tag' else 'labels'}"
        task = look.task if look.task == "regress" else task
        self._line(f"model {near(look.model)} · {look.tokenizer} · rows up to {look.max_length:,} tokens")
        read = "each word's first token" if look.task == "tag" else pooled(look.pooling)
        said = f"task {task}, read from {read}" if look.lesson is None else lesson_said(look.lesson)
        said = judged_said(look.verdicts)[0] if look.verdicts is not None else said
        self._line(f"{said} · splits: {look.how}")

    def _findings(self, findings: Sequence[Finding]) -> None:
        self._title("findings")
        for finding in findings:
            mark, style = MARKS[finding.level], STYLES[finding.level]
            says = "bold" if finding.level == "bad" else "dim" if finding.level == "good" else ""
            self._line(Text().append(f"{mark} ", style=style).append(visible(finding.says), style=says), 2)
            if finding.hint and finding.level != "good":
                self._line(Text(visible(finding.hint), style="italic dim"), 4)
            for where, what in finding.places:
                place = Text().append(visible(near(where)), style="cyan").append(f"  {visible(what)}")
                if self.console.is_terminal:
                    self._line(place, 6)
                else:  # unbroken, so that it can be searched for
                    self.console.print(Text("      ").append_text(place), soft_wrap=True)
            left = finding.count - len(finding.places)
            if len(finding.places) == MOST and left > 0:
                self._line(f"... and {left:,} more", 6)

    def _splits(self, look: Look) -> None:
        self._title("splits")
        scored = look.train.scores is not None
        names = ["", "rows", "tokens", "median", "90 %", "99 %", "longest", "cut", "tokens lost"]
        names += ["mean", "sd", "min", "max"] if scored else []
        names[3:3] = ["learned", "share"] if look.lesson is not None else []
        table = Table(*names, box=None, padding=(0, 2, 0, 0), header_style="dim")
        for column in table.columns[1:]:
            column.justify = "right"
        for split in look.splits:
            told, scores = split.lengths, split.scores
            cells = [split.rows, told.tokens, told.median, told.p90, told.p99, told.longest, told.truncated, told.lost]
            moments = [] if scores is None else [scores.mean, scores.deviation, scores.least, scores.most]
            written = [f"{cell:,}" for cell in cells]
            if split.taught is not None:
                written[2:2] = [f"{split.taught.learned:,}", percent(split.taught.learned / max(1, told.tokens))]
            table.add_row(f"  {split.name}", *written, *(f"{cell:.4g}" for cell in moments))
        self.console.print(table)

    def _lesson(self, look: Look, lesson: Lesson) -> None:
        """Lengths of what is read and learned, who speaks, and a conversation as the template writes it."""
        self._title("lengths of train, in tokens", "before anything is cut")
        table = Table("", "median", "90 %", "99 %", "longest", box=None, padding=(0, 2, 0, 0), header_style="dim")
        for column in table.columns[1:]:
            column.justify = "right"
        for name, spread in spreads(look.train):
            table.add_row(f"  {name}", *(f"{one:,}" for one in (spread.median, spread.p90, spread.p99, spread.longest)))
        self.console.print(table)
        for sentence in talk_said(lesson):
            self._line(sentence)
        if lesson.rendered:
            mark = "green is learned" if self.colour else "{+...+} is learned"
            self._title("a conversation as the template writes it", f"{mark}; template: {lesson.template}")
            body = Text()
            for text, learned in excerpt(lesson.rendered):
                raw = "\n".join(visible(line) for line in text.split("\n"))
                body.append(raw if self.colour or not learned else f"{{+{raw}+}}", style=LEARNED[1] if learned else "")
            self._line(body)

    def _verdicts(self, told: Verdicts) -> None:
        """Who judged how much, how far they agree, and what sways them."""
        self._title("judgements")
        for sentence in judged_said(told):
            self._line(sentence)
        table = Table(box=None, padding=(0, 2, 0, 0), show_header=False, show_edge=False)
        for style in ("", "bold", "", "dim"):
            table.add_column(style=style, overflow="fold")
        for one in told.measures:
            table.add_row(f"  {one.name}", *measured(one), one.says)
        self.console.print(table)
        if told.places:
            won = ", ".join(f"place {place + 1} {percent(share)}" for place, share, _, _ in told.places)
            self._line(f"pairs won by the place a completion was shown at: {won}")
        if told.people:
            self._title("raters", "agreement with all others on the same pairs, the least agreeing first")
            for name, share, low, high, prompts, odd in told.people[:BOTTOM]:
                line = f"{name}: {percent(share)} ({100 * low:.1f} to {100 * high:.1f}), {prompts:,} prompts in common"
                self._line(line + (", disagrees with everyone" if odd else ""))
            if len(told.people) > BOTTOM:
                self._line(f"... and {len(told.people) - BOTTOM:,} who agree more")
        self._title("lengths of train, in tokens", "before anything is cut")
        for name, spread in (("prompt", told.prompt), ("completion", told.completion)):
            self._line(f"{name}: median {spread.median:,}, 90 % {spread.p90:,}, 99 % {spread.p99:,}, longest {spread.longest:,}")

    def _balance(self, look: Look) -> None:
        what = "tags, in words" if look.task == "tag" else "labels, in rows"
        most, least = look.balance[0], [one for one in look.balance if one.counts["train"]][-1]
        ratio = most.counts["train"] / max(1, least.counts["train"])
        self._title(
            f"balance of {what}",
            f"commonest {visible(most.label)!r}, rarest {visible(least.label)!r}: {ratio:.3g} to 1",
        )
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", show_edge=False)
        table.add_column("", overflow="fold", max_width=34)
        table.add_column("train", justify="right")
        table.add_column("share", justify="right")
        table.add_column("", min_width=BAR)
        for split in look.splits[1:]:
            table.add_column(split.name, justify="right")
        totals = {split.name: split.rows if look.task != "tag" else split.targets for split in look.splits}
        shown = list(look.balance)
        skipped = len(shown) - TOP - BOTTOM
        top = max(1, most.counts["train"])
        for at, one in enumerate(shown):
            if skipped > 1 and TOP <= at < TOP + skipped:
                if at == TOP:
                    table.add_row(f"  ... {skipped} more")
                continue
            count = one.counts["train"]
            others = [f"{one.counts[split.name]:,}" for split in look.splits[1:]]
            share = percent(count / max(1, totals["train"]))
            table.add_row(f"  {visible(one.label)}", f"{count:,}", share, self._bar(count, top), *others)
        self.console.print(table)

    def _bar(self, count: int, top: int) -> Text:
        return Text("█" * round(BAR * count / top) or ("▏" if count else ""), style="color(67)")

    def _histogram(self, histogram: Histogram) -> None:
        names, top = edge_names(histogram), max(histogram.counts)
        wide = max(map(len, names)) + 2
        for at, (name, count) in enumerate(zip(names, histogram.counts, strict=True)):
            open_end = "+" if at == len(names) - 1 else " "
            line = Text(f"{name:>{wide}}{open_end} ").append(self._bar(count, top)).append(f" {count:,}")
            self.console.print(line)

    def _rows(self, look: Look) -> None:
        if not look.drawn:
            return
        cut = "struck" if self.colour else "[-...-]"
        self._title("rows, token by token", f"· space  ↵ new line  …+9… tokens not drawn  {cut}: cut away")
        if self.writes:
            self._line(self._legend())
        for row in look.drawn:
            self.console.print()
            lost = f", {row.learned:,} learned" if self.writes else ""
            lost += f", {row.lost:,} cut away" if row.lost else ""
            lost += f", {row.part}" if row.part else ""
            head = Text(f"  {visible(near(row.place))}", style="cyan")
            self.console.print(head.append(f"  {row.tokens:,} tokens{lost}", style="dim"), soft_wrap=True)
            for line in self._lines(self._drawn(row)):
                self.console.print(Text("  ").append_text(line))

    def _legend(self) -> Text:
        """What the colours of a row that is to be written mean."""
        if not self.colour:
            return Text("{+...+}: learned to be written, its end too; all else is only read")
        read, learned = self.masked
        line = Text("only ").append("read", style=read[0]).append("·before", style=read[1]).append("  ")
        line.append("learned", style=learned[0]).append("·to", style=learned[1]).append("·write", style=learned[0])
        return line.append("  ").append("<end>", style=LEARNED_SIGN).append(" a sign that is learned  ").append(
            "<sign>", style="dim italic").append(" one that is read")  # fmt: skip

    def _drawn(self, row: Drawn) -> list[Text]:
        """What a line may be broken between: tokens, and at last what the row teaches."""
        units, kind = [], (False, False)
        for at, piece in enumerate(row.pieces):
            unit = Text()
            now = (piece.learned, piece.lost)
            if not self.colour and now != kind:
                unit.append(_closing(*kind) + _opening(*now))
            elif not self.colour and at:
                unit.append("|")
            kind = now
            units.append(unit.append_text(self._piece(piece, at)))
        if any(kind) and not self.colour:
            units[-1].append(_closing(*kind).rstrip())
        if row.target is not None:
            units.append(Text("  → ", style="dim").append(visible(row.target), style="not dim bold green"))
        return units

    def _lines(self, units: Sequence[Text]) -> list[Text]:
        """Units on as few lines as they need: a token is never broken."""
        lines, room = [Text()], max(20, self.console.width - 2)
        for unit in units:
            if lines[-1].cell_len + unit.cell_len > room and lines[-1].cell_len:
                lines.append(Text())
            lines[-1].append_text(unit)
        return lines

    def _piece(self, piece: Piece, at: int) -> Text:
        """One token: ground by turns, special ones dim, lost ones struck, a learned tag in green behind it."""
        if piece.gap:
            return Text(f"…+{piece.gap:,}…", style="dim strike" if piece.lost else "dim")
        name = visible(piece.text) if piece.special else spaced(piece.text)
        sign = LEARNED_SIGN if piece.learned else "dim italic"
        grounds = self.masked[piece.learned] if self.writes else self.grounds
        style = sign if piece.special else "bold white on red" if piece.unknown else grounds[at % 2]
        drawn = Text(" " if self.colour and not piece.joined and at else "")
        drawn.append(name, style=f"{style} strike" if piece.lost else style)
        if piece.target is not None:
            quiet = piece.target == "O"
            drawn.append(f"/{visible(piece.target)}", style="dim" if quiet else "bold green")
        return drawn


def _opening(learned: bool, lost: bool) -> str:
    """Signs of wdiff, where there is no colour."""
    return (" [-" if lost else "") + (" {+" if learned else "")


def _closing(learned: bool, lost: bool) -> str:
    return ("+} " if learned else "") + ("-] " if lost else "")
