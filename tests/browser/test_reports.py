"""The reports in a browser, from the file and without a network: `make test-browser`.

Every study's, at the settings of the other tests, and one of every kind of figure.
"""

import functools
import io
import shutil
import subprocess
import sys

import numpy as np
import own_study
import pytest
from PIL import Image
from playwright.sync_api import sync_playwright
from small import SMALL

import thalweg as tw
from thalweg import gallery, report, studies

OWN = "of-figures"
_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# WebGL on the processor: the machines that run this have no graphics card
_OPTIONS = ["--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"]
_SLOW = 60_000  # milliseconds: a busy machine draws a surface in some seconds


# What is opened --------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def reported(tmp_path_factory):
    """The folder of a study's report, by the study's name; each is written once."""

    @functools.cache
    def written(name):
        folder = tmp_path_factory.mktemp(name)
        report.write(studies.run(name, **SMALL[name]), folder)
        return folder

    return written


@pytest.fixture(scope="session")
def own_report(tmp_path_factory):
    """A report with every kind of figure."""
    folder = tmp_path_factory.mktemp(OWN)
    with pytest.MonkeyPatch.context() as patch:
        report.write(every_kind(patch), folder)
    return folder


@pytest.fixture
def folder(request, name):
    """The folder of a report."""
    if name == OWN:
        return request.getfixturevalue("own_report")
    return request.getfixturevalue("reported")(name)


def every_kind(patch):
    problem = tw.Problem.from_function(
        lambda w: w["x"] ** 2 + 5 * w["y"] ** 2 + w["z"] ** 2,
        params={"x": 1.5, "y": 1.0, "z": 0.0},
    )
    surface = tw.landscape(problem, tw.coordinate_plane(problem, {"x": (-2, 2), "y": (-1, 2)}, 21))
    surface["empirical"][3:5, 4:8] = np.nan
    path = tw.descend(problem, tw.SGD(lr=[0.01, 0.15, 1.0]), steps=30)
    one = path.isel(lr=1, drop=True)
    return own_study.of_figures(
        patch,
        still=tw.plot.contour(surface, one),
        surface=lambda: tw.plotly.surface(surface, path, points={"minimum": [0.0, 0.0, 0.0]}),
        log=lambda: tw.plotly.surface(surface, log=True),
        path3d=lambda: tw.plotly.path3d(path),
        film=lambda: tw.animate.path(surface, one),
    )


@pytest.fixture(scope="session")
def browser():
    found = next(filter(None, map(shutil.which, _BROWSERS)))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=_OPTIONS)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser):
    """Opens a page with the network off; what it asks for and complains of fails the test."""
    wrong = []
    context = browser.new_context(viewport={"width": 1280, "height": 900}, offline=True)
    context.set_default_timeout(_SLOW)
    context.on("request", lambda request: wrong.extend(_leaves(request.url)))
    context.on("console", lambda said: wrong.extend([said.text] * (said.type == "error")))
    context.on("weberror", lambda error: wrong.extend(_errors(str(error.error))))

    def opened(path):
        page = context.new_page()
        page.goto(path.as_uri())
        page.wait_for_load_state("load")
        return page

    yield opened
    context.close()
    assert wrong == []


def _leaves(url):
    """A request that leaves the machine."""
    return [] if url.startswith(("file:", "data:", "blob:")) else [f"request to {url[:200]}"]


def _errors(text):
    """A page's errors but one: plotly rejects, with nothing, the promise of an animation that another
    one interrupts, as its pause button does."""
    return [] if text == "undefined" else [text]


# What must be seen -----------------------------------------------------------------------------


NAMES = [OWN, *sorted(studies.STUDIES)]


@pytest.mark.parametrize("name", NAMES)
def test_every_figure_of_a_report_is_shown(name, folder, visit):
    assert (folder / "report.html").stat().st_size < 8e6
    page = visit(folder / "report.html")
    assert page.locator("figure").count() > 0
    for figure in page.locator("figure").all():
        figure.scroll_into_view_if_needed()
        seen = figure.locator("img, video, .js-plotly-plot")
        assert seen.count() == 1, figure.get_attribute("id")
        assert figure.locator("figcaption").inner_text().strip()
        box = seen.bounding_box()
        assert box["width"] > 200, figure.get_attribute("id")
        assert box["height"] > 100, figure.get_attribute("id")
    _images_are_shown(page)
    for video in page.locator("video").all():
        assert video.evaluate(_HAS_LOADED) > 0, "a video without duration"
        assert video.evaluate("v => v.paused"), "nothing moves by itself"
    for plot in page.locator(".js-plotly-plot").all():
        _interactive_is_alive(page, plot)


@pytest.mark.parametrize("name", NAMES)
def test_interactive_figures_are_pages_of_their_own(name, folder, visit):
    for file in sorted((folder / "figures").glob("*.html")):
        page = visit(file)
        plot = page.locator(".js-plotly-plot")
        plot.wait_for()
        assert plot.evaluate("p => p._fullData.length") > 0
        page.close()


@pytest.mark.parametrize("name", sorted(studies.STUDIES))
def test_a_saved_study_is_drawn_without_jax(name, folder):
    code = (
        "import sys, matplotlib; matplotlib.use('agg');"
        "from thalweg import files, studies;"
        f"tree = files.load({str(folder / 'results.nc')!r});"
        f"assert studies.figures({name!r}, tree) and studies.findings({name!r}, tree).numbers;"
        "assert 'jax' not in sys.modules, 'JAX was loaded'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_page_that_leads_to_several(tmp_path, visit):
    several = ("eigenbasis", "lazy-1d")
    outcomes = gallery.write(tmp_path, several, SMALL)
    assert {o.name: o.message for o in outcomes if o.status != "completed"} == {}
    page = visit(tmp_path / "index.html")
    _images_are_shown(page)
    for name in several:
        assert page.locator(f'a[href="{name}/report.html"]').count() > 0


@pytest.mark.parametrize("width", [400, 1000, 1600])
def test_no_page_is_wider_than_its_window(own_report, visit, width):
    page = visit(own_report / "report.html")
    page.set_viewport_size({"width": width, "height": 900})
    page.wait_for_timeout(500)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


# Lets go of the slider between the new drawing's settings and its drawing.
_LETS_GO_EARLY = """p => {
    const held = p._fullLayout.sliders[0];
    let ended = false;
    p.on("plotly_animatingframe", async () => {
        for (let i = 0; i < 1000 && !ended; i++) {
            if (p._fullLayout.sliders[0] !== held) {
                ended = true;
                p.dispatchEvent(new MouseEvent("mouseup", {bubbles: true}));
            }
            await null;
        }
    });
    p.on("plotly_animated", () => { p.drawn = true; });
}"""


def test_a_slider_let_go_of_while_its_step_is_drawn_follows_the_play_button(own_report, visit):
    page = visit(own_report / "report.html")
    plots = [
        plot
        for plot in page.locator(".js-plotly-plot").all()
        if plot.evaluate("p => (p.layout.sliders || []).length")
    ]
    assert len(plots) == 2
    for plot in plots:
        plot.scroll_into_view_if_needed()
        plot.evaluate(_LETS_GO_EARLY)
        rail = plot.locator(".slider-rail-touch-rect").bounding_box()
        page.mouse.move(rail["x"] + 0.5 * rail["width"], rail["y"] + rail["height"] / 2)
        page.mouse.down()
        page.wait_for_function("p => p.drawn", arg=plot.element_handle())
        page.mouse.up()
        at = plot.evaluate("p => p._fullLayout.sliders[0].active")
        assert at > 0
        plot.locator(".updatemenu-button").first.click()
        page.wait_for_function(
            "([p, at]) => p._fullLayout.sliders[0].active > at", arg=[plot.element_handle(), at]
        )


GREY = (204, 204, 204)  # of points without a risk, and where there is no map


def test_the_contours_stay_while_a_path_is_animated(own_report, tmp_path, visit):
    problem = tw.Problem.from_function(
        lambda w: w["x"] ** 2 + 5 * w["y"] ** 2, params={"x": 1.5, "y": 1.0}
    )
    surface = tw.landscape(problem, tw.coordinate_plane(problem, {"x": (-2, 2), "y": (-1, 2)}, 21))
    figure = tw.plotly.surface(surface, tw.descend(problem, tw.SGD(lr=0.05), steps=60))
    figure.write_html(tmp_path / "surface.html")
    for file in (tmp_path / "surface.html", own_report / "report.html"):
        page = visit(file)
        (plot,) = (
            plot
            for plot in page.locator(".js-plotly-plot").all()
            if plot.evaluate("p => !!(p.layout.sliders && p.layout.xaxis)")
        )
        plot.scroll_into_view_if_needed()
        if page.url.endswith("surface.html"):  # plays by itself
            assert _grey_share(page, plot) < 0.2
        for _ in range(3):
            plot.locator(".updatemenu-button").first.click()
            page.wait_for_timeout(200)
            assert _grey_share(page, plot) < 0.2


def _grey_share(page, plot):
    picture = page.screenshot(clip=plot.locator(".nsewdrag").bounding_box())
    colors = Image.open(io.BytesIO(picture)).convert("RGB").getcolors(1_000_000)
    return sum(n for n, color in colors if color == GREY) / sum(n for n, _ in colors)


_HAS_LOADED = """v => new Promise((resolve, reject) => {
    const done = () => resolve(v.videoWidth > 0 && isFinite(v.duration) ? v.duration : 0);
    if (v.readyState >= 1) return done();
    v.onloadedmetadata = done;
    v.onerror = () => reject(new Error(v.error.message));
})"""


def _images_are_shown(page):
    for image in page.locator("img").all():
        image.scroll_into_view_if_needed()
        assert image.evaluate("i => i.decode().then(() => i.naturalWidth)") > 0


def _interactive_is_alive(page, plot):
    """It has traces, its 3-D part is drawn, and slider and play button change what is seen."""
    assert plot.evaluate("p => p._fullData.length") > 0
    plot.scroll_into_view_if_needed()
    scenes = plot.locator(".gl-container canvas").all()
    for scene in scenes:
        assert _settled(page, scene).getcolors(50) is None, "a 3-D canvas of few colours"
    if not plot.evaluate("p => (p.layout.sliders || []).length"):
        return
    parts = [*plot.locator(".nsewdrag").all(), *scenes]
    rail = plot.locator(".slider-rail-touch-rect").bounding_box()
    before = [_settled(page, part) for part in parts]
    page.mouse.click(rail["x"] + 0.5 * rail["width"], rail["y"] + rail["height"] / 2)
    page.wait_for_function("p => p._fullLayout.sliders[0].active > 0", arg=plot.element_handle())
    for part, old in zip(parts, before, strict=True):
        assert _settled(page, part, old) != old, "the slider changes nothing"
    at = plot.evaluate("p => p._fullLayout.sliders[0].active")
    before = [_settled(page, part) for part in parts]
    plot.locator(".updatemenu-button").first.click()
    page.wait_for_function(
        "([p, at]) => p._fullLayout.sliders[0].active != at", arg=[plot.element_handle(), at]
    )
    plot.locator(".updatemenu-button").last.click()
    for part, old in zip(parts, before, strict=True):
        assert _settled(page, part, old) != old, "the play button changes nothing"


def _settled(page, part, old=None):
    """A picture of a part of a page once it no longer changes; with `old`, once it has changed."""
    last = None
    for _ in range(60):
        picture = page.screenshot(clip=part.bounding_box())
        now = Image.open(io.BytesIO(picture)).convert("RGB")
        if now == last and now != old:
            return now
        last = now
        page.wait_for_timeout(150)
    return last
