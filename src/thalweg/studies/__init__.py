"""Ready-made experiments: settings → results → figures → report.

A study is a module with

    Settings     a frozen dataclass: what can be changed, with its defaults
    run          (settings, data) -> the nodes of a DataTree, by name
    figures      (tree, settings) -> figures by name, each with its caption
    findings     (tree, settings) -> the main numbers, and what they show

Only the chosen study's module is imported, and JAX only when it runs.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from thalweg.errors import InputError, MissingExtra, unknown
from thalweg.studies.settings import listed, read

if TYPE_CHECKING:
    import xarray as xr

__all__ = [
    "STUDIES",
    "Drawing",
    "Findings",
    "drawings",
    "figures",
    "findings",
    "make_settings",
    "name_of",
    "rerun",
    "run",
    "settings_help",
    "settings_of",
    "summary",
    "title",
]

# name -> what it shows; its module has the same name, with underscores
STUDIES = {
    "minimal-mlp": "the stochastic landscape of two parameters: pointwise, empirical and expected risk",
    "losses-and-momentum": "four losses of one line, and what momentum, Nesterov, decay and dampening do",
    "regression-tour": "a line, an outlier, derivatives drawn as a graph, and polynomials fitted four ways",
    "two-layer-linear": "first-order methods against Gauss–Newton and Levenberg–Marquardt on ŷ = W1 W2 x",
    "eigenbasis": "gradient descent on least squares, coordinate by coordinate, in the basis of eigenvectors",
    "bias-complexity": "training and true risk by the number of features, and the peak that theory predicts",
    "lazy-linear": "linear models on few and many sinusoidal features: wide ones fit fast and move little",
    "lazy-mlp": "ReLU networks, deep or shallow, wide or narrow, well or badly started: how far they move",
    "lazy-scaling": "one network, its output scaled by α: how lazy its training becomes, measured",
    "lazy-1d": "one parameter: a model scaled by α and its tangent, whose losses become one curve",
    "gradient-flow": "small and large steps, the flow they follow, and which minimum every start reaches",
    "edge-of-stability": "the Hessian's largest eigenvalue along a descent: it rises to what the step allows",
    "filter-normalisation": "how far to trust a picture of a network's landscape; depth and skip connections",
}
# `thalweg descend` runs a study of the user's own data
_OWN = {"fit": "columns of a table, a model, and the way an optimizer took to fit it"}


@dataclass(frozen=True)
class Findings:
    """What a report says: the numbers that matter, in order, a few sentences, and tables by title.

    A table's rows are texts; the first is its head.
    """

    numbers: Mapping[str, str]
    sentences: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    tables: Mapping[str, Sequence[Sequence[str]]] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Drawing:
    """A figure and the sentence under it.

    The figure is matplotlib's, plotly's or an animation; None where the library that draws it is not
    installed, and then `missing` says so.
    """

    figure: Any
    caption: str
    missing: str = ""

    @classmethod
    def of(cls, drawn: Any, caption: str) -> Drawing:
        """The figure that something was drawn on.

        Args:
            drawn: matplotlib's axes, figure or part of a figure, a plotly figure, an animation, or a
                function without arguments that returns one. A function may need a library that is
                not installed: a study then goes on without that figure.
            caption: what the figure shows.
        """
        try:
            figure = drawn() if isinstance(drawn, Callable) else drawn
        except MissingExtra as error:
            return cls(None, caption, str(error))
        if hasattr(figure, "get_figure"):
            import matplotlib.pyplot as plt

            figure = figure.get_figure(root=True)
            plt.close(figure)  # a study draws many figures, which pyplot would keep open
        return cls(figure, caption)


def run(name: str, data: Mapping[str, Any] | None = None, **settings: Any) -> xr.DataTree:
    """Run a study with some of its settings changed.

    Args:
        name: of `thalweg.studies.STUDIES`.
        data: for a study of the user's own data.

    Returns:
        A DataTree with the study's name and settings in its attributes.

    Raises:
        InputError: an unknown study or setting, or a value of the wrong type.
    """
    import xarray as xr

    from thalweg import blocks, results

    module = _module(name)
    chosen = make_settings(name, settings)
    if name in _OWN and data is None:
        raise InputError(
            f"{name!r} is a study of data of your own: `thalweg descend TABLE.csv`, or data= here."
        )
    with blocks.interruptible():  # Ctrl-C ends all of its parts, not one of them
        nodes = module.run(chosen, data) if name in _OWN else module.run(chosen)
    tree = xr.DataTree.from_dict(nodes)
    tree.attrs = results.provenance("study", dataclasses.asdict(chosen), study=name)
    return tree


def figures(name: str, tree: xr.DataTree) -> dict[str, Any]:
    """The figures of a study's result, by name; a saved result draws without JAX.

    Most are matplotlib's; interactive ones are plotly's, and animations have `save`. A figure whose
    library is not installed is left out.
    """
    drawn = ((key, drawing.figure) for key, drawing in drawings(name, tree))
    return {key: figure for key, figure in drawn if figure is not None}


def drawings(name: str, tree: xr.DataTree) -> Iterator[tuple[str, Drawing]]:
    """The figures of a study's result one after the other, with their captions."""
    yield from _module(name).figures(tree, settings_of(tree))


def findings(name: str, tree: xr.DataTree) -> Findings:
    """The numbers that matter in a study's result, and what to see in it."""
    return _module(name).findings(tree, settings_of(tree))


def title(name: str) -> str:
    """A study's title."""
    return _module(name).TITLE


def summary(name: str) -> str:
    """A study in one line."""
    return (STUDIES | _OWN)[name]


def settings_of(tree: xr.DataTree) -> Any:
    """The settings that made a study's result, as its `Settings`."""
    from thalweg import results

    name = name_of(tree)
    return make_settings(name, results.settings_of(tree))


def name_of(tree: xr.DataTree | xr.Dataset) -> str:
    """The name of the study that made a result."""
    if getattr(tree, "attrs", {}).get("kind") != "study":
        raise InputError("this result was not made by a study.")
    if "study" not in tree.attrs:
        raise InputError(
            "this result does not say which study made it: its attribute 'study' is missing."
        )
    return tree.attrs["study"]


def rerun(result: xr.DataTree | xr.Dataset) -> xr.DataTree | xr.Dataset:
    """Repeat, from a saved result alone, the run that made it: a study, a command's run, or a descent
    or flow on a catalogue problem. The same versions on the same kind of machine give the same numbers.

    Raises:
        InputError: a result that does not hold all it was made from.
    """
    import xarray as xr

    from thalweg import results

    kind = getattr(result, "attrs", {}).get("kind")
    if kind == "study" and isinstance(result, xr.DataTree):
        name = name_of(result)
        if "settings" not in result.attrs:  # the study's own settings are not those that made it
            raise InputError(
                "this result does not say how it was made: its attribute 'settings' is missing."
            )
        data = None
        if name in _OWN:
            data = {str(k): v.values for k, v in results.part(result, "data").items()}
        return run(name, data, **results.settings_of(result))
    if kind == "trajectory" and isinstance(result, xr.Dataset):
        from thalweg.descent import descend_again
        from thalweg.flows import flow_again

        is_flow = "flow" in results.settings_of(result)
        return flow_again(result) if is_flow else descend_again(result)
    raise InputError(
        f"a {kind or 'file of another kind'} cannot be run again; studies, descents and flows can."
    )


def make_settings(name: str, given: Mapping[str, Any]) -> Any:
    """The settings of study `name`, with `given` (Python values, or text as in --set) put in."""
    return read(_module(name).Settings, given, name)


def settings_help(name: str) -> list[tuple[str, str, str]]:
    """(name, default, what it does) of every setting of a study."""
    return listed(_module(name).Settings)


def _module(name: str) -> Any:
    if not isinstance(name, str) or name not in STUDIES | _OWN:
        raise unknown("study", name, STUDIES)
    return importlib.import_module(f"thalweg.studies.{name.replace('-', '_')}")
