"""`smolcls fit`: measures the stages of a chain on rows, shows what they do together, writes a `smolcls.toml`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from smolcls import settings
from smolcls.cli.options import load_task, make_classifier, task_option
from smolcls.cli.output import printable
from smolcls.cli.progress import StepBars
from smolcls.errors import ConfigError, require
from smolcls.files import replacing, write_text
from smolcls.router import ConfidenceRouter
from smolcls.stage import Stage
from smolcls.task import SHIPPED_TASKS, Task, as_task

if TYPE_CHECKING:
    from smolcls.chain import ChainFit, Frontier

_SHOWN = 16  # chains that the table has at most, besides the chosen one
_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command("fit")
@click.argument("data", type=_FILE)
@click.option(
    "--stage", "words", multiple=True, metavar="SPEC[@LABELS]",
    help="A stage, in order; behind @, with commas, the only labels that it may give. "
    "Without any the chain of `smolcls classify` is fitted.",
)  # fmt: skip
@click.option("--max-error", type=float, metavar="0..1", help="Choose the fastest chain with this bound on its error.")
@click.option("--target-accuracy", type=float, metavar="0..1", help="Choose the fastest chain that is so accurate.")
@click.option("--max-latency-ms", type=float, metavar="MS", help="Choose the most accurate chain of this mean latency.")
@click.option("--confidence", type=float, default=0.95, show_default=True, help="Probability that the bound holds.")
@click.option(
    "--pool/--no-pool", default=True, show_default=True,
    help="Let what earlier stages said about a text count in each stage's answer, with weights fitted on the rows; "
    "else stages keep the pools that they have.",
)  # fmt: skip
@click.option("--out", type=_FILE, help="Write the chosen chain as a smolcls.toml.")
@click.option("--force", is_flag=True, help="Replace --out where it is there.")
@click.option("--plot", type=_FILE, help="Draw accuracy against mean latency as a PNG.")
@task_option
def command(
    data: Path, words: tuple[str, ...], task_name: str | None, out: Path | None, force: bool, **others: Any
) -> None:
    """Fit the thresholds of a chain on the rows of DATA (JSONL, CSV, Parquet), which no stage was trained on.

    Half of the rows propose thresholds, the other half judge them: the table shows each chain on rows that had
    no part in its choice, where rows of one "family" count as one. With --pool a stage's answer counts what the
    stages before it said, with weights from the first half. Give one of the three aims to have a chain chosen;
    without one the table is all.

    \b
    smolcls fit rows.jsonl --stage rules@command --stage linear --stage onnx \\
        --max-error 0.05 --out smolcls.toml
    """
    from smolcls import chain
    from smolcls.data.tables import read_table
    from smolcls.measured import measure

    plot, pool = others.pop("plot"), others.pop("pool")
    aim = (
        chain.Aim(**others)
        if any(value is not None for name, value in others.items() if name != "confidence")
        else None
    )
    router = _router(words, load_task(task_name))
    if out is not None:
        if aim is None:
            raise click.UsageError(
                "--out writes a chosen chain: give --max-error, --target-accuracy or --max-latency-ms."
            )
        if out.exists() and not force:
            raise ConfigError(f"{out} is there already. Give --force to replace it, or another --out.")
        _text(router, task_name)  # what cannot be written is said before minutes are spent
    with router, StepBars() as bars:
        frontier = chain.explore(measure(router.stages, router.task, read_table(data), bars.update), pool=pool)
    found = None
    try:
        found = None if aim is None else chain.choose(frontier, aim)
    finally:  # where no chain serves the aim, the table shows what there is
        click.echo("\n".join(_table(frontier, found)))
        if plot is not None:
            _draw(frontier, found, plot)
    if found is not None:
        click.echo("\n".join([_summary(found), *_pools(found)]))
        if out is not None:
            write_text(out, _text(router.with_fit(found), task_name))
            click.echo(f"wrote {out}")


def _router(words: tuple[str, ...], task: Task | None) -> ConfidenceRouter:
    if words:
        stages = [_stage(word, as_task(task)) for word in words]
        backends = [str(stage.classifier).partition(":")[0] for stage in stages]
        short = [  # the backend alone where it says which stage is meant: a path is much to read in a table
            replace(stage, name=backend) if backends.count(backend) == 1 else stage
            for stage, backend in zip(stages, backends, strict=True)
        ]
        return ConfidenceRouter(short, task=task)
    router = make_classifier(None, None, task)
    assert isinstance(router, ConfidenceRouter)
    return router


def _stage(word: str, task: Task) -> Stage:
    spec, at, rest = word.rpartition("@")
    if not at:
        return Stage(word)
    labels = rest.split(",")
    if not spec or not set(labels) <= set(task.names):
        raise ConfigError(
            f"--stage takes a backend, and behind @ labels of the task ({', '.join(task.names)}); found {word!r}. "
            "Thresholds are what is fitted."
        )
    return Stage(spec, accept=labels)


def _text(router: ConfidenceRouter, task_name: str | None) -> str:
    """The router as the text of a `smolcls.toml`."""
    if router.task.name in SHIPPED_TASKS and task_name in (None, *SHIPPED_TASKS):
        return settings.dump(router)
    if task_name is None:
        raise ConfigError(f"The chain's task {router.task.name!r} has to be named to be written: give --task FILE.")
    return settings.dump(router, task_file=Path(task_name).absolute())


def _table(frontier: Frontier, found: ChainFit | None) -> list[str]:
    """The frontier in lines, the fastest chain first; the chosen one is marked."""
    points = frontier.checked
    chosen = [place for place, point in enumerate(points) if found is not None and point.thresholds == found.thresholds]
    steps = min(_SHOWN, len(points))
    shown = {round(step * (len(points) - 1) / max(1, steps - 1)) for step in range(steps)}
    rows = [["", "accuracy", "mean ms", *(f"{printable(name)} %" for name in frontier.stages), "thresholds"]]
    for place in sorted({*shown, *chosen}):
        point = points[place]
        shares = (f"{100 * share:.1f}" for share in point.shares)
        cuts = "  ".join(f"{cut:.6g}" for cut in point.thresholds[:-1])
        rows.append(
            ["*" if place in chosen else "", f"{point.accuracy:.2%}", f"{point.mean_latency_ms:.3f}", *shares, cuts]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row[:-1], widths[:-1], strict=True)) for row in rows]
    return [f"{line}  {row[-1]}".rstrip() for line, row in zip(lines, rows, strict=True)]


def _summary(found: ChainFit) -> str:
    cuts = ", ".join(
        f"{printable(name)} {cut:.6g}" for name, cut in zip(found.stages[:-1], found.thresholds[:-1], strict=True)
    )
    return (
        f"chosen: accuracy {found.accuracy:.2%} on {found.rows} rows, at least {found.accuracy_lower:.2%} with "
        f"confidence {found.confidence:.1%}; {found.mean_latency_ms:.3g} ms a row; thresholds {cuts or 'none'}"
    )


def _pools(found: ChainFit) -> list[str]:
    """A line a stage that pools: the names and weights of what counts in it."""
    return [
        f"{printable(name)} pools: " + ", ".join(f"{printable(other)} {weight:g}" for other, weight in pool.items())
        for name, pool in zip(found.stages, found.pools or (), strict=False)
        if pool is not None
    ]


def _draw(frontier: Frontier, found: ChainFit | None, path: Path) -> None:
    """Accuracy against mean latency; the figure itself draws with Agg, no window is opened."""
    figure = require("matplotlib.figure", extra="evaluate", purpose="A plot").Figure(figsize=(7, 4.5), layout="tight")
    axes = figure.add_subplot()
    for points, label in ((frontier.proposed, "rows that proposed"), (frontier.checked, "rows that judge")):
        axes.plot(
            [point.mean_latency_ms for point in points], [100 * point.accuracy for point in points], ".-", label=label
        )
    if found is not None:
        axes.plot(found.mean_latency_ms, 100 * found.accuracy, "k*", markersize=14, label="chosen")
    axes.set_xscale("log")
    axes.set(xlabel="mean latency (ms)", ylabel="accuracy (%)", title=" → ".join(frontier.stages))
    axes.grid(alpha=0.3)
    axes.legend()
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
