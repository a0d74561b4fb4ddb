"""The report: every kind of figure is in the page, and a file beside it."""

import base64
import re

import matplotlib.pyplot as plt
import numpy as np
import own_study
import plotly.graph_objects as go
import plotly.offline
import pytest
from matplotlib import animation as mpl_animation

from thalweg import report, studies
from thalweg.errors import InputError, MissingExtra, optional
from thalweg.studies import Drawing


class Film:
    """An animation as the report sees it."""

    def __init__(self, encoder):
        self.encoder = encoder

    def save(self, path):
        if path.suffix == ".mp4" and not self.encoder:
            raise MissingExtra("videos need imageio-ffmpeg")
        if path.suffix == ".mp4":
            path.write_bytes(b"an mp4")
            return
        figure, ax = plt.subplots()
        film = mpl_animation.FuncAnimation(figure, lambda k: ax.plot([0, k]), frames=2)
        film.save(path, writer="pillow")


def matplotlib_axes():
    return plt.subplots()[1]


def interactive():
    # what is not finite, and what would end the script, both of which a page must survive
    return go.Figure(
        go.Surface(z=[[1.0, np.nan], [np.inf, 2.0]]), layout={"title": {"text": "</script>"}}
    )


def without_library():
    optional("no_such_library", "these figures need", "some-extra")


@pytest.fixture
def study(monkeypatch):
    """A study whose figures are those given: its result."""

    return lambda **things: own_study.of_figures(monkeypatch, **things)


def test_a_drawing_is_of_axes_figures_and_functions():
    figure, ax = plt.subplots()
    part = figure.subfigures()
    for thing in (ax, figure, part, lambda: ax):
        assert Drawing.of(thing, "c") == Drawing(figure, "c")
    assert not plt.fignum_exists(figure.number), "pyplot would show it, and keep it"
    shown = interactive()
    assert Drawing.of(shown, "c").figure is shown
    assert Drawing.of(lambda: shown, "c").figure is shown
    assert Drawing.of(without_library, "c") == Drawing(
        None, "c", "these figures need no-such-library: pip install 'thalweg[some-extra]'"
    )
    with pytest.raises(InputError, match="of another kind"):
        Drawing.of(bad_input, "c")


def bad_input():
    raise InputError("of another kind")


def test_a_library_that_lacks_its_own_is_not_called_missing(tmp_path, monkeypatch):
    (tmp_path / "half_there.py").write_text("import what_it_needs")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="what_it_needs"):
        optional("half_there", "these figures need", "half")


def test_a_table_is_in_the_page(study, tmp_path):
    page = report.write(study(), tmp_path).read_text(encoding="utf-8")
    assert "<h2>Parts &amp; sizes</h2>" in page
    assert '<th scope="col">part</th><th scope="col">size</th>' in page
    assert "<td>a &lt; b</td><td>2</td>" in page


def test_every_kind_of_figure_has_a_file_and_is_in_the_page(study, tmp_path):
    tree = study(
        still=matplotlib_axes,
        turned=interactive,
        also_turned=interactive,
        moving=lambda: Film(encoder=True),
        moving_gif=lambda: Film(encoder=False),
        absent=without_library,
    )
    page = report.write(tree, tmp_path).read_text(encoding="utf-8")
    files = {p.name: p for p in (tmp_path / "figures").iterdir()}
    assert set(files) == {
        "still.png", "turned.html", "also-turned.html", "plotly.min.js", "moving.mp4", "moving-gif.gif",
    }  # fmt: skip
    assert set(studies.figures("of-figures", tree)) == {
        "still", "turned", "also-turned", "moving", "moving-gif",
    }  # fmt: skip
    for name, media in (("still.png", "image/png"), ("moving.mp4", "video/mp4")):
        assert f"data:{media};base64,{encoded(files[name])}" in page
    assert f"data:image/gif;base64,{encoded(files['moving-gif.gif'])}" in page
    still = re.search(r'<source srcset="data:image/png;base64,([^"]*)" media="([^"]*)">', page)
    assert base64.b64decode(still[1]).startswith(b"\x89PNG")
    assert "prefers-reduced-motion: reduce" in still[2]
    assert "autoplay" not in page.replace(plotly.offline.get_plotlyjs(), "")
    assert "pip install &#39;thalweg[some-extra]&#39;" in page
    assert page.count("<figcaption>") == 6
    assert page.count('alt="The still &amp; its caption."') == 1


def test_plotly_is_in_the_page_once_and_from_no_network(study, tmp_path):
    program = plotly.offline.get_plotlyjs()
    page = report.write(study(a=interactive, b=interactive), tmp_path).read_text(encoding="utf-8")
    assert page.count(program) == 1
    own = page.replace(program, "")
    assert own.count("Plotly.newPlot(") == 2
    assert "://" not in own, "nothing is loaded from anywhere"
    assert "</script>" not in "".join(re.findall(r"newPlot\((.*)\)", own)), "titles are escaped"
    alone = (tmp_path / "figures" / "a.html").read_text(encoding="utf-8")
    assert 'src="plotly.min.js"' in alone
    assert "://" not in alone
    assert program not in report.write(study(a=matplotlib_axes), tmp_path).read_text()


def encoded(file):
    return base64.b64encode(file.read_bytes()).decode()


def test_a_page_says_with_what_its_numbers_were_made(study, tmp_path):
    tree = study(own=matplotlib_axes)
    tree.attrs["versions"] = '{"python": "3.0", "thalweg": "0.0.1"}'
    page = report.write(tree, tmp_path / "out").read_text()
    assert "python 3.0, thalweg 0.0.1" in page
