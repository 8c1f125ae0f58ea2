"""The command line: each verb a few lines, nothing heavy imported before a verb runs."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer

from luthier import errors

app = typer.Typer(
    name="luthier", no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False,
    help="Every way to adapt a language model, every way to teach it, one recipe.",
    context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip

Runs = Annotated[Path, typer.Option("--runs", help="folder of the runs")]
Sets = Annotated[list[str], typer.Option("--set", help="change a value, such as train.lr=1e-4")]
RUNS = Path("runs")
TopP = Annotated[float, typer.Option("--top-p", help="the likeliest tokens that together have this probability")]
TopK = Annotated[int, typer.Option("--top-k", help="so many of the likeliest tokens; 0 for all")]
MinP = Annotated[float, typer.Option("--min-p", help="tokens at least this likely, against the likeliest")]
Seed = Annotated[int, typer.Option(help="of the noise")]
Stops = Annotated[list[str], typer.Option("--stop", help="a text that ends an answer and is cut off")]
System = Annotated[str | None, typer.Option(help="instructions in front of the conversation")]
ChatTemplate = Annotated[str | None, typer.Option(help="another chat template: chatml, plain, or a .jinja file")]
Thinking = Annotated[bool, typer.Option("--thinking", help="a model that reasons writes its reasoning first")]
Task = Annotated[str | None, typer.Option(help="of a run of several tasks, one of them")]
BaseOnly = Annotated[bool, typer.Option("--base", help="of a run, the model that it started from, for comparison")]


@app.command()
def demo(
    to: Annotated[Path, typer.Option(help="folder for the runs and the report")] = Path("luthier-demo"),
) -> None:
    """The whole idea on the embedded base, offline, in minutes, ending in a report."""
    from luthier.demo import demo as verb

    verb(to)


@app.command()
def new(
    file: Annotated[str, typer.Argument(help="your CSV, TSV, JSONL, JSON, Parquet or Arrow, or a folder of them")],
    to: Annotated[Path | None, typer.Option(help="where the recipe goes; beside the file when left out")] = None,
    model: Annotated[str, typer.Option(help="hub id, folder or pocket")] = "pocket",
    adapt: Annotated[str | None, typer.Option(help="head, last-n, lora or full; chosen when left out")] = None,
    force: Annotated[bool, typer.Option("--force", help="write over an existing recipe")] = False,
) -> None:
    """Read a data file, say what was found, and write a runnable recipe with a comment above every key."""
    from luthier.new import new as verb

    verb(file, to, model, adapt, force)


@app.command()
def tune(
    recipe: Annotated[str, typer.Argument(help="recipe, a data file (a recipe is then written first), or a run to run again")],
    sets: Sets = [],  # noqa: B006  typer reads the default
    resume: Annotated[
        bool, typer.Option("--resume", help="go on exactly with the run; start it if there is none")
    ] = False,
    name: Annotated[str | None, typer.Option(help="of the run")] = None,
    runs: Runs = RUNS,
    quiet: Annotated[bool, typer.Option("--quiet", help="no progress")] = False,
    rerun: Annotated[list[str], typer.Option("--rerun", help="of several stages: run this one again, or stale")] = [],  # noqa: B006
    anyway: Annotated[bool, typer.Option("--anyway", help="learn from a judge that is no better than chance or length")] = False,
) -> None:
    """Run a recipe. Ctrl-C and SIGTERM leave a checkpoint that --resume goes on from, exactly."""
    from luthier.recipe import read_any

    if Path(recipe, "recipe.yaml").is_file():
        from luthier.runs import again

        recipe, name, runs = again(Path(recipe), sets, name, runs, resume)
    if Path(recipe).suffix.lower() not in (".yaml", ".yml"):
        from luthier.new import new as write_recipe

        recipe = str(write_recipe(recipe, None, "pocket", None, False, keep=True))
    checked = read_any(recipe, [*sets, *(["method.anyway=true"] if anyway else [])])  # mistakes are told before heavy imports
    from luthier.record import headline
    from luthier.run import run

    result = run(checked, said=sets, resume=resume, name=name, runs=runs, quiet=quiet, rerun=rerun)
    print(headline(result.record))
    print(f"report: {result.report}")


@app.command()
def search(
    recipe: Annotated[str, typer.Argument(help="recipe with search: what to try, and for how long")],
    sets: Sets = [],  # noqa: B006
    lr: Annotated[bool, typer.Option("--lr", help="the learning-rate finder instead: one short run, a suggestion")] = False,
    name: Annotated[str | None, typer.Option(help="of the search; the same name goes on or joins")] = None,
    runs: Runs = RUNS,
    quiet: Annotated[bool, typer.Option("--quiet", help="no progress")] = False,
) -> None:
    """Try settings, write out the best recipe, and tell a gain from noise. The same command goes on, or joins in."""
    if lr:
        from luthier.search.ranges import find

        found, page = find(recipe, sets=sets, runs=runs, name=name)
        print(f"{found.sentence()}\nreport: {page}")
        return
    from luthier.search import headline
    from luthier.search import search as verb

    result = verb(recipe, sets=sets, runs=runs, name=name, quiet=quiet)
    print(headline(result.record))
    print(f"best recipe: {result.best}\nreport: {result.report}")


@app.command(name="prompt-or-tune")
def prompt_or_tune(
    recipe: Annotated[str, typer.Argument(help="recipe with model and data; of method: fewshot its prompt is used too")],
    sets: Sets = [],  # noqa: B006
    examples: Annotated[list[int], typer.Option(help="labelled examples; 8, 32, 128 and all when left out")] = [],  # noqa: B006
    way: Annotated[list[str], typer.Option(help="zero-shot, k-shot, probe, setfit, lora, full; all when left out")] = [],  # noqa: B006
    seeds: Annotated[int, typer.Option(help="how often examples are drawn anew")] = 1,
    name: Annotated[str | None, typer.Option(help="of the folder below --runs; the same name goes on")] = None,
    runs: Runs = RUNS,
) -> None:
    """Would a few examples in the prompt do? Every way of using labelled examples, with its cost, in one table."""
    from luthier.prompt_or_tune import prompt_or_tune as verb

    verb(recipe, sets, counts=examples, seeds=seeds, ways=way, name=name, runs=runs)


@app.command()
def look(
    recipe: Annotated[str, typer.Argument(help="recipe, or a data file")],
    sets: Sets = [],  # noqa: B006
    html: Annotated[Path | None, typer.Option(help="write the page here too")] = None,
    rows: Annotated[int, typer.Option(help="how many rows to draw")] = 5,
) -> None:
    """What the model will really see: tokens, lengths, truncation, label balance, duplicates, leaks, broken rows."""
    from luthier.look import look as verb

    verb(recipe, sets, html, rows)


@app.command()
def evaluate(
    run: Annotated[str, typer.Argument(help="run: name or folder")],
    data: Annotated[str, typer.Argument(help="your test set")],
    metric: Annotated[
        list[str], typer.Option(help="such as rouge-l, or your own: module:function or file.py:function")
    ] = [],  # noqa: B006
    rows: Annotated[int | None, typer.Option(help="how many rows, evenly spread; all of them when left out")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="of a run that writes: longest answer")] = None,
    task: Task = None,
    general: Annotated[str | None, typer.Option(help="text on which to show what was forgotten: loss before and after")] = None,
    runs: Runs = RUNS,
) -> None:
    """Base against tuned on your own set, with intervals; of a run that writes, with answers side by side."""
    from luthier.judge import evaluate as verb

    verb(run, data, metric, runs, rows=rows, new_tokens=max_new_tokens, task=task)
    if general is not None:
        from luthier.forgetting import evaluate as forgotten

        forgotten(run, general, runs)


@app.command()
def predict(
    run: Annotated[str, typer.Argument(help="run: name or folder")],
    data: Annotated[str, typer.Argument(help="file with the texts")],
    to: Annotated[Path | None, typer.Option(help=".csv or .jsonl; on the screen when left out")] = None,
    task: Task = None,
    runs: Runs = RUNS,
) -> None:
    """File in, file out: every row with its prediction and confidence; of several tasks all, with one pass of the model."""
    from luthier.judge import predict as verb

    verb(run, data, to, runs, task=task)


@app.command()
def generate(
    run: Annotated[str, typer.Argument(help="run, model folder, hub id or pocket")],
    prompt: Annotated[str | None, typer.Argument(help="what it goes on from; standard input when left out")] = None,
    file: Annotated[
        str | None, typer.Option(help="prompts: a column prompt, messages or text; or .txt, one a line")
    ] = None,
    to: Annotated[Path | None, typer.Option(help=".jsonl for the answers; on the screen when left out")] = None,
    samples: Annotated[int, typer.Option(help="answers to each prompt")] = 1,
    temperature: Annotated[
        float | None, typer.Option(help="0 takes the likeliest token; 0, or 1 for several samples")
    ] = None,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    min_p: MinP = 0.0,
    max_new_tokens: Annotated[int, typer.Option(help="longest answer")] = 64,
    stop: Stops = [],  # noqa: B006
    seed: Seed = 0,
    system: System = None,
    as_chat: Annotated[
        bool | None, typer.Option("--chat/--plain", help="as a turn of a conversation or not; as it was trained")
    ] = None,
    template: ChatTemplate = None,
    thinking: Thinking = False,
    base: BaseOnly = False,
    best: Annotated[str | None, typer.Option(help="a judge: of several answers only the one that it scores highest")] = None,
    runs: Runs = RUNS,
) -> None:
    """What a model writes: one prompt in, its answer out; or a file of prompts in, a file of answers out."""
    from luthier.models.sampling import Sampling
    from luthier.talk import generate as verb

    if prompt is None and file is None and not sys.stdin.isatty():
        prompt = sys.stdin.read().rstrip("\n") or None
    heat = (1.0 if samples > 1 else 0.0) if temperature is None else temperature
    sampling = Sampling(max_new_tokens, heat, top_p, top_k, min_p, tuple(stop), seed, samples)
    verb(
        run, prompt, file=file, to=to, sampling=sampling, base=base, template=template, chats=as_chat, system=system,
        thinking=thinking, runs=runs, best=best,
    )  # fmt: skip


@app.command()
def score(
    judge: Annotated[str, typer.Argument(help="a run that judges, file.py:function, or 0.7*run + 0.3*file.py:function")],
    file: Annotated[str, typer.Argument(help="prompt with completions, completion, or chosen and rejected")],
    to: Annotated[Path | None, typer.Option(help=".csv or .jsonl; on the screen when left out")] = None,
    runs: Runs = RUNS,
) -> None:
    """What a judge makes of the outputs in a file: every row with its scores, the best, and where an ensemble disagrees."""
    from luthier.score import score as verb

    verb(judge, file, to, runs)


@app.command()
def chat(
    run: Annotated[str, typer.Argument(help="run, model folder, hub id or pocket")],
    system: System = None,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token")] = 0.7,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    min_p: MinP = 0.0,
    max_new_tokens: Annotated[int, typer.Option(help="longest answer")] = 256,
    stop: Stops = [],  # noqa: B006
    seed: Seed = 0,
    template: ChatTemplate = None,
    thinking: Thinking = False,
    base: BaseOnly = False,
    runs: Runs = RUNS,
) -> None:
    """Talk with a model, in its own template. /reset, /undo, /save FILE, /quit; Ctrl-C stops an answer."""
    from luthier.chat import chat as verb
    from luthier.models.sampling import Sampling

    sampling = Sampling(max_new_tokens, temperature, top_p, top_k, min_p, tuple(stop), seed)
    verb(run, system=system, sampling=sampling, base=base, template=template, thinking=thinking, runs=runs)


@app.command()
def rank(
    source: Annotated[str, typer.Argument(help="file with several outputs to a prompt, or a run: it is sampled first")],
    rater: Annotated[str | None, typer.Option(help="who judges; your user name when left out")] = None,
    to: Annotated[Path | None, typer.Option(help=".jsonl that is added to; beside the source when left out")] = None,
    each: Annotated[int | None, typer.Option(help="leave out prompts that so many people have judged")] = None,
    show: Annotated[int, typer.Option(help="most outputs shown at once")] = 6,
    samples: Annotated[int, typer.Option(help="of a run: outputs to a prompt")] = 4,
    prompts: Annotated[int, typer.Option(help="of a run: how many of its held-out prompts")] = 40,
    runs: Runs = RUNS,
) -> None:
    """Judge outputs blind: type 2>1=3, a choice, skip, undo, leave and come back; several people at once on one file."""
    from luthier.rank import rank as verb

    verb(source, rater=rater, to=to, each=each, show=show, samples=samples, prompts=prompts, runs=runs)


@app.command()
def export(
    run: Annotated[str, typer.Argument(help="run: name or folder")],
    to: Annotated[Path | None, typer.Option(help="folder; runs/<name>/export when left out")] = None,
    form: Annotated[str, typer.Option(help="merged (plain transformers) or adapter (peft)")] = "merged",
    push: Annotated[str | None, typer.Option(help="OWNER/NAME on the hub, private unless --public")] = None,
    public: Annotated[bool, typer.Option("--public", help="everybody may see what is pushed")] = False,
    task: Task = None,
    runs: Runs = RUNS,
) -> None:
    """A folder that plain transformers or peft loads, checked in a fresh process before it says done."""
    from luthier.export import export as verb

    verb(run, to, form, runs, push=push, public=public, task=task)


@app.command(name="runs")
def list_runs(
    names: Annotated[list[str] | None, typer.Argument(help="runs to put side by side; all are listed when left out")] = None,
    runs: Runs = RUNS,
) -> None:
    """The runs, with their state, headline and what differs; of those named every figure and setting side by side."""
    from luthier.runs import beside, table

    print(beside(names, runs) if names else table(runs))


@app.command()
def show(
    what: Annotated[
        str, typer.Argument(help="adapters, methods, losses, metrics, schedules, sources, records, recipe, schema")
    ],
) -> None:
    """The tables of the house, with their docs."""
    from luthier.show import show as verb

    print(verb(what))


@app.command()
def cache(clear: Annotated[bool, typer.Option("--clear", help="remove everything")] = False) -> None:
    """What is kept of frozen models and parsed rows, and how much room it takes."""
    from luthier.runs import cache_table

    print(cache_table(clear))


@app.callback()
def _options(debug: Annotated[bool, typer.Option("--debug", help="show tracebacks")] = False) -> None:
    pass


def main(arguments: list[str] | None = None) -> None:
    """Entry point: runs a verb and turns what went wrong into a sentence and an exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    sys.exit(_guarded(arguments, debug))


def _guarded(arguments: list[str], debug: bool) -> int:
    try:
        outcome: Any = app(arguments, standalone_mode=False)
        if outcome == 130:  # Ctrl-C before a verb has its own handler
            raise KeyboardInterrupt
        return int(outcome or 0)
    except errors.UserError as error:
        _told(str(error), debug)
        return errors.EXIT_USER
    except (errors.Interrupted, KeyboardInterrupt) as error:
        _told(str(error) or "Stopped.", debug)
        return errors.EXIT_INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()
        return errors.EXIT_OK
    except Exception as error:
        show = getattr(error, "show", None)
        if callable(show):  # click's own words for a wrong option or argument
            show()
            return errors.EXIT_USER
        if type(error).__name__ in ("Abort", "Exit"):
            return int(getattr(error, "exit_code", errors.EXIT_USER))
        _told(
            f"This is a defect of Luthier: {type(error).__name__}: {error}\n  Please report it with the output of --debug.",
            debug,
        )
        return errors.EXIT_DEFECT


def _told(sentence: str, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    print(sentence, file=sys.stderr)


if __name__ == "__main__":
    main()
