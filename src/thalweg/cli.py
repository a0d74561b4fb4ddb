"""The command: list, run, descend, show, rerun."""

from __future__ import annotations

import functools
import importlib
import io
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from thalweg import __version__

_INTERRUPTED = 130  # the shell's exit status of a program that Ctrl-C ended


def _one_line(command: Callable[..., None]) -> Callable[..., None]:
    """Report bad input and a full disk in one line with exit status 2, without a traceback."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        from thalweg.errors import InputError

        try:
            command(*args, **kwargs)
        except BrokenPipeError:
            raise  # `thalweg show FILE | head` has seen enough; click ends quietly
        except (InputError, OSError) as error:
            click.echo(f"Error: {' '.join(str(error).split())}", err=True)
            sys.exit(2)
        except KeyboardInterrupt:
            click.echo("Interrupted; what was under way is not written.", err=True)
            sys.exit(_INTERRUPTED)

    return wrapped


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="thalweg")
def main() -> None:
    """See and measure how optimizers move through loss landscapes."""
    # LAPACK's threads wait for each other on a busy machine (fifty times slower, as measured) and gain little
    # on matrices as small as these. OpenBLAS reads this once, when NumPy is imported.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # In a pipe or a file, Windows writes in the code page of the country, which may lack an arrow: then a
    # question mark stands for it, rather than that a run ends with a traceback.
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="replace")


def _folder(text: str) -> Path:
    if not text:  # as of a shell's variable that is not set; to Path it is the current folder
        raise click.BadParameter("a folder's name was expected; '' given.")
    return Path(text)


_out = click.option(
    "--out",
    type=_folder,
    metavar="PATH",
    required=True,
    help="Folder for results.nc, the figures and report.html.",
)
_set = click.option(
    "--set",
    "changes",
    metavar="NAME=VALUE",
    multiple=True,
    help="Change a setting; may be given several times.",
)


@main.command("list")
@_one_line
def list_studies() -> None:
    """List the studies."""
    from thalweg.studies import STUDIES

    width = max(map(len, STUDIES))
    for name, text in STUDIES.items():
        click.echo(f"{name:<{width}}  {text}")


@main.command()
@click.argument("study")
@click.option(
    "--out",
    type=_folder,
    metavar="PATH",
    help="Folder for results.nc, the figures and report.html; required unless --settings is given.",
)
@click.option("--seed", type=int, help="Short for --set seed=N.")
@_set
@click.option("--settings", "only_list", is_flag=True, help="List what can be set, and stop.")
@_one_line
def run(
    study: str, out: Path | None, seed: int | None, changes: tuple[str, ...], only_list: bool
) -> None:
    """Run STUDY and write its results, figures and report to a folder.

    STUDY may be `all`: every study, each in a folder of its own, and an index page. --set and --seed
    then change the setting in every study that has it.
    """
    from thalweg import studies
    from thalweg.errors import one_of

    if only_list:
        every = study == "all"
        for one in studies.STUDIES if every else (study,):
            if every:
                click.echo(f"{one}:")
            for name, default, text in studies.settings_help(one):
                click.echo(f"{name} = {default}\n    {text}")
        return
    if study == "all":
        _run_all(out, seed, changes)
        return
    out = _needed(out)
    changed = _assignments(changes, seed)
    one_of("study", study, studies.STUDIES)
    studies.make_settings(study, changed)
    _load()
    _run_and_write(lambda: studies.run(study, **changed), out)


def _run_all(out: Path | None, seed: int | None, changes: tuple[str, ...]) -> None:
    """Run every study; exit status 1 if one failed."""
    from thalweg import blocks, gallery, studies
    from thalweg.errors import unknown

    out = _needed(out)
    changed = _assignments(changes, seed)
    names = {name: [field[0] for field in studies.settings_help(name)] for name in studies.STUDIES}
    for key in changed:
        if not any(key in setting_names for setting_names in names.values()):
            raise unknown("setting (of any study)", key, {k for v in names.values() for k in v})
    settings = {
        name: {key: value for key, value in changed.items() if key in setting_names}
        for name, setting_names in names.items()
    }

    def say(outcome: Any) -> None:
        page = out / outcome.name / "report.html"
        end = f"failed: {outcome.message}" if outcome.status == "failed" else f"{page}"
        tqdm.write(f"{outcome.name} ({outcome.seconds:.1f} s): {end}")

    from tqdm import tqdm

    _own_process()
    with blocks.interruptible() as interrupt:
        outcomes = gallery.write(out, settings=settings, done=say)
    click.echo(f"Wrote {out / 'index.html'}")
    if interrupt:
        click.echo("Interrupted; what was computed until then is saved.", err=True)
        sys.exit(_INTERRUPTED)
    failed = [outcome.name for outcome in outcomes if outcome.status == "failed"]
    if failed:
        click.echo(f"Failed: {', '.join(failed)}", err=True)
        sys.exit(1)


@main.command()
@click.argument("table", type=click.Path(path_type=Path))
@click.option(
    "--x", "x", multiple=True, required=True, metavar="COLUMN", help="A feature; may be repeated."
)
@click.option("--y", "y", required=True, metavar="COLUMN", help="The target.")
@click.option(
    "--model",
    default="line",
    show_default=True,
    help="line, polynomial:3, mlp:16,16, tanh-mlp:16,16.",
)
@click.option(
    "--loss",
    default="mse",
    show_default=True,
    help="mse, l1, huber:1.0, smooth_l1:1.0, bce_with_logits.",
)
@click.option(
    "--optimizer", default="sgd", show_default=True, help="sgd, adam, lbfgs, … (torch.optim's)."
)
@click.option("--lr", type=float, help="Learning rate; by default the optimizer's own.")
@click.option(
    "-o",
    "--option",
    "options",
    multiple=True,
    metavar="NAME=VALUE",
    help="Another option of the optimizer, as in momentum=0.9.",
)
@click.option("--steps", type=int, help="Number of steps; 1000 if --epochs is not given either.")
@click.option("--epochs", type=int, help="Number of passes through the data.")
@click.option("--batch-size", type=int, help="Samples per step; all of them by default.")
@click.option("--shuffle", is_flag=True, help="A new order each epoch.")
@click.option(
    "--standardize", is_flag=True, help="Scale all columns to mean 0, standard deviation 1."
)
@click.option("--start", default="", metavar="NAME=VALUE,…", help="Where to start, by parameter.")
@click.option(
    "--seed", type=int, default=0, show_default=True, help="For random starts and shuffling."
)
@click.option(
    "--plane", default="", metavar="NAME,NAME", help="Two parameters to draw the landscape over."
)
@click.option("--window", default="", metavar="X0,X1,Y0,Y1", help="The landscape's range.")
@click.option(
    "--points", type=int, default=101, show_default=True, help="Its grid points along each axis."
)
@_out
@_one_line
def descend(
    table: Path, x: tuple[str, ...], y: str, out: Path, options: tuple[str, ...], **chosen: Any
) -> None:
    """Fit a model to columns of TABLE, a CSV file, and draw the path the optimizer took."""
    from thalweg import studies

    if chosen["steps"] is None and chosen["epochs"] is None:
        chosen["steps"] = 1000
    settings = {"x": x, "y": y, "options": ",".join(options), **chosen}
    studies.make_settings("fit", settings)
    _load()
    from thalweg import tables

    data = tables.read(table, x, y)
    tree = _run_and_write(lambda: studies.run("fit", data, **settings), _needed(out))
    for warning in studies.findings("fit", tree).warnings:
        click.echo(warning)


@main.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--node", help="The part of a study's result to show, as in path/mse/plain.")
@click.option("--rows", type=int, default=200, show_default=True, help="Steps to print at most.")
@_one_line
def show(file: Path, node: str | None, rows: int) -> None:
    """Print what a saved result holds: what made it, the losses step by step, where it ended."""
    from thalweg import show as showing
    from thalweg.files import load

    for line in showing.lines(load(file), node, rows):
        click.echo(line)


@main.command()
@click.argument("file", type=click.Path(path_type=Path))
@_out
@_one_line
def rerun(file: Path, out: Path) -> None:
    """Repeat the run that made FILE, a saved study or fit, from that file alone."""
    _load()
    from thalweg import studies
    from thalweg.errors import InputError
    from thalweg.files import load

    saved = load(file)
    kind = saved.attrs.get("kind", "table")
    if kind != "study":
        also = " (in Python, thalweg.rerun also repeats descents and flows on catalogue problems)"
        raise InputError(
            f"{file} holds a {kind}, but only studies and fits can be run again"
            f"{also if kind == 'trajectory' else ''}."
        )
    _run_and_write(lambda: studies.rerun(saved), _needed(out))


def _needed(out: Path | None) -> Path:
    from thalweg.errors import InputError

    if out is None:
        raise click.UsageError("Missing option '--out': the folder to write to.")
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: there is a file of that name.")
    # check before anything is computed; the report is first written to a scratch folder beside `out`
    for wanted in (out.absolute(), out.absolute().parent):
        existing = next(folder for folder in (wanted, *wanted.parents) if folder.exists())
        try:
            os.rmdir(tempfile.mkdtemp(dir=existing, prefix=".thalweg-"))
        except OSError as error:
            raise InputError(
                f"--out {out}: cannot write to {existing}: {error.strerror}."
            ) from None
    return out


def _assignments(changes: tuple[str, ...], seed: int | None) -> dict[str, Any]:
    from thalweg.errors import InputError

    values: dict[str, Any] = {}
    for change in changes:
        name, equals, value = change.partition("=")
        if not equals:
            raise InputError(f"--set needs NAME=VALUE; {change!r} given.")
        if name.strip() in values:
            raise InputError(f"--set: {name.strip()!r} was given twice.")
        values[name.strip()] = value.strip()
    if seed is not None:
        if "seed" in values:
            raise InputError("the seed was given twice: as --seed, and with --set.")
        values["seed"] = seed
    return values


def _run_and_write(make: Callable[[], Any], out: Path) -> Any:
    """Run a study, write its report to `out`, print its main numbers, and handle Ctrl-C."""
    from thalweg import blocks, report, studies

    _own_process()
    with blocks.interruptible() as interrupt:
        tree = make()
        page = report.write(tree, out)
    found = studies.findings(studies.name_of(tree), tree)
    for name, value in found.numbers.items():
        click.echo(f"{name}: {value}")
    click.echo(f"Wrote {page}")
    if interrupt:
        click.echo("Interrupted; what was computed until then is saved.", err=True)
        sys.exit(_INTERRUPTED)
    return tree


def _load() -> None:
    """Import the slow modules with Ctrl-C deferred: an interrupted import leaves a module half loaded."""
    from thalweg import blocks

    with blocks.interruptible() as interrupt:
        importlib.import_module("thalweg.descent")
        importlib.import_module("pandas")
    if interrupt:
        raise KeyboardInterrupt


def _own_process() -> None:
    """Settings that only a program that owns its process may make: studies run on the CPU, compiled programs
    are cached for the next run, and figures need no display."""
    from thalweg import backend

    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    backend.prefer_cpu()
    backend.keep_compiled(Path(cache) / "thalweg" / "compiled")
    import matplotlib

    matplotlib.use("agg")
