"""The command, as a person runs it: what it prints, what it writes, how it fails."""

import gzip
import os
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from scipy.optimize import linprog, minimize
from sklearn.datasets import load_diabetes

import thalweg as tw
from thalweg.cli import main


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    """The command keeps compiled programs in the user's cache folder; tests have their own."""
    import jax

    names = ("jax_compilation_cache_dir", "jax_platforms")
    before = {name: getattr(jax.config, name) for name in names}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def thalweg(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def fails(*arguments):
    """The one line that a call with bad input prints; it exits with 2 and shows no traceback."""
    result = thalweg(*arguments)
    assert result.exit_code == 2, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("Error: ")
    return lines[0]


@pytest.fixture
def diabetes(tmp_path):
    path = tmp_path / "diabetes.csv"
    load_diabetes(as_frame=True, scaled=False).frame.to_csv(path, index=False)
    return path


# The run on real data ------------------------------------------------------------------------


def reference(degree, loss, standardize):
    """The lowest risk of a polynomial on the diabetes table: linear programming, or BFGS."""
    frame = load_diabetes(as_frame=True, scaled=False).frame
    x, y = frame["bmi"].to_numpy(), frame["target"].to_numpy()
    if standardize:
        x, y = (x - x.mean()) / x.std(), (y - y.mean()) / y.std()
    n = len(x)
    # Legendre columns span the same polynomials and are well conditioned
    middle, half = (x.max() + x.min()) / 2, (x.max() - x.min()) / 2
    columns = np.polynomial.legendre.legvander((x - middle) / half, degree)
    if loss == "l1":
        # min Σ(u + v)/n with Φw + u − v = y, u, v ≥ 0
        solution = linprog(
            np.r_[np.zeros(degree + 1), np.full(2 * n, 1 / n)],
            A_eq=np.hstack([columns, np.eye(n), -np.eye(n)]),
            b_eq=y,
            bounds=[(None, None)] * (degree + 1) + [(0, None)] * (2 * n),
        )
        assert solution.success
        return solution.fun

    def huber(w):
        e = columns @ w - y
        inside = abs(e) < 1
        value = np.where(inside, e**2 / 2, abs(e) - 0.5).mean()
        return value, columns.T @ np.where(inside, e, np.sign(e)) / n

    start = np.linalg.lstsq(columns, y, rcond=None)[0]
    solution = minimize(huber, start, jac=True, method="BFGS", options={"gtol": 1e-10})
    return solution.fun


def fit(diabetes, tmp_path, *options):
    result = thalweg(
        "descend", diabetes, "--x", "bmi", "--y", "target", "--out", tmp_path / "fit", *options
    )
    assert result.exit_code == 0, result.output
    return result.output, tw.load(tmp_path / "fit" / "results.nc")


@pytest.mark.parametrize("loss", ["l1", "huber"])
@pytest.mark.parametrize(("model", "degree"), [("line", 1), ("polynomial:3", 3)])
def test_standardized_fits_reach_the_minimum(diabetes, tmp_path, model, degree, loss):
    # the README's options; a third-degree L1 fit needs a smaller step to settle between its kinks
    options = ["--lr", 0.1, "--steps", 500] if degree == 1 else ["--lr", 0.01, "--steps", 5000]
    output, tree = fit(
        diabetes, tmp_path, "--standardize", "--model", model, "--loss", loss,
        "--optimizer", "adam", *options,
    )  # fmt: skip
    # Adam's fixed step hovers about an L1 minimum: its last iterate is within 1e-4 of it
    lowest = reference(degree, loss, True)
    np.testing.assert_allclose(tree["path/risk"][-1], lowest, rtol=1e-4 if loss == "l1" else 1e-8)
    assert "Not converged" not in output


@pytest.mark.parametrize(
    ("model", "degree", "loss", "tolerance"),
    [("line", 1, "l1", 1e-4), ("line", 1, "huber", 1e-8), ("polynomial:3", 3, "huber", 1e-6)],
)
def test_fits_in_the_tables_units_reach_the_minimum_with_lbfgs(
    diabetes, tmp_path, model, degree, loss, tolerance
):
    # The cubic's columns go from 1 to 42³: it takes LBFGS without its early stops. Under L1 no
    # first-order method gets there, and the test below has the command say so.
    patient = ["tolerance_change=0", "tolerance_grad=0", "max_iter=100", "history_size=20"]
    options = ["line_search_fn=strong_wolfe", *(patient if degree == 3 else [])]
    output, tree = fit(
        diabetes, tmp_path, "--model", model, "--loss", loss, "--optimizer", "lbfgs", "--steps", 300,
        *(word for option in options for word in ("-o", option)),
    )  # fmt: skip
    lowest = reference(degree, loss, False)
    np.testing.assert_allclose(tree["path/risk"][-1], lowest, rtol=tolerance)
    assert "Not converged" not in output


@pytest.mark.parametrize("loss", ["l1", "huber"])
@pytest.mark.parametrize(("model", "degree"), [("line", 1), ("polynomial:3", 3)])
def test_an_ill_conditioned_fit_is_said_not_to_have_converged(
    diabetes, tmp_path, model, degree, loss
):
    output, tree = fit(
        diabetes, tmp_path, "--model", model, "--loss", loss, "--optimizer", "adam",
        "--lr", 0.1, "--steps", 500,
    )  # fmt: skip
    assert float(tree["path/risk"][-1]) > 1.01 * reference(degree, loss, False)
    assert "Not converged" in output
    assert "gradient norm at the end" in output


@pytest.mark.parametrize("scale", [1.0, 0.1])
def test_a_fit_that_starts_at_the_minimum_has_converged(tmp_path, scale):
    """A parabola about the mean of x has the slope 0, where a standardized line starts: what is left of the
    gradient is rounding, and so is any change of the risk."""
    table = tmp_path / "table.csv"
    table.write_text("a,b\n" + "".join(f"{a * scale},{a * a * scale}\n" for a in range(-3, 4)))
    result = thalweg(
        "descend", table, "--x", "a", "--y", "b", "--standardize", "--lr", 0.1, "--steps", 50,
        "--points", 3, "--out", tmp_path / "out",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "Not converged" not in result.output


def test_a_fit_writes_results_figures_and_a_report(diabetes, tmp_path):
    output, tree = fit(diabetes, tmp_path, "--standardize", "--steps", 100, "--lr", 0.1)
    folder = tmp_path / "fit"
    names = {p.stem for p in (folder / "figures").glob("*.png")}
    assert names == {"fit", "residuals", "landscape", "loss", "gradient"}
    report = (folder / "report.html").read_text(encoding="utf-8")
    assert report.count("data:image/png;base64,") == len(names)
    assert "http" not in report.split("<body>")[1]
    # standardized slopes are scaled back: least squares in the table's units
    frame = load_diabetes(as_frame=True, scaled=False).frame
    slope, intercept = np.polyfit(frame["bmi"], frame["target"], 1)
    assert f"slope of bmi (table's units): {slope:.6g}" in output
    assert f"intercept (table's units): {intercept:.6g}" in output
    assert "landscape" in tree.children


def test_several_features_a_network_and_a_chosen_plane(diabetes, tmp_path):
    result = thalweg(
        "descend", diabetes, "--x", "bmi", "--x", "bp", "--y", "target", "--standardize", "--lr", 0.1,
        "--steps", 200, "--plane", "weight[0],weight[1]", "--points", 21, "--out", tmp_path / "two",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    tree = tw.load(tmp_path / "two" / "results.nc")
    assert tree["landscape/empirical"].dims == ("weight[0]", "weight[1]")
    frame = load_diabetes(as_frame=True, scaled=False).frame
    design = np.column_stack([frame[["bmi", "bp"]], np.ones(len(frame))])
    exact = np.linalg.lstsq(design, frame["target"], rcond=None)[0]
    assert f"slope of bp (table's units): {exact[1]:.6g}" in result.output
    network = thalweg(
        "descend", diabetes, "--x", "bmi", "--y", "target", "--standardize", "--model", "mlp:8",
        "--optimizer", "adam", "--lr", 0.01, "--epochs", 20, "--batch-size", 32, "--shuffle",
        "--plane", "l1.weight[0,0],l2.weight[0,7]", "--points", 5, "--out", tmp_path / "net",
    )  # fmt: skip
    assert network.exit_code == 0, network.output
    tree = tw.load(tmp_path / "net" / "results.nc")
    assert tree["landscape/empirical"].dims == ("l1.weight[0,0]", "l2.weight[0,7]")


def test_a_saved_fit_runs_again_without_its_table(diabetes, tmp_path):
    _, tree = fit(
        diabetes, tmp_path, "--standardize", "--model", "mlp:4", "--lr", 0.05, "--steps", 60
    )
    diabetes.unlink()
    result = thalweg("rerun", tmp_path / "fit" / "results.nc", "--out", tmp_path / "again")
    assert result.exit_code == 0, result.output
    again = tw.load(tmp_path / "again" / "results.nc")
    assert again.equals(tree)


def test_a_diverged_fit_is_said_to_have_diverged(diabetes, tmp_path):
    output, _ = fit(diabetes, tmp_path, "--lr", 1.0, "--steps", 2000)
    assert "diverged at step" in output


# Studies -----------------------------------------------------------------------------------------


def test_a_list_that_cannot_be_written_is_one_line():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "thalweg", "list"],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == "Error: [Errno 28] No space left on device\n"


def test_what_an_encoding_lacks_is_a_question_mark():
    """cp1252 is that of Windows in Western Europe, in a pipe; it has no σ."""
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    done = subprocess.run(
        [sys.executable, "-m", "thalweg", "run", "minimal-mlp", "--settings"],
        env=environment, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "standard deviation ? of ?" in done.stdout.decode("cp1252")


def test_list_names_the_studies():
    result = thalweg("list")
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.output.splitlines()] == list(tw.studies.STUDIES)


def test_run_show_and_rerun_a_study(tmp_path):
    result = thalweg(
        "run", "minimal-mlp", "--set", "points=12", "--set", "n_samples=7", "--out", tmp_path / "a"
    )
    assert result.exit_code == 0, result.output
    assert "last iterate" in result.output
    shown = thalweg("show", tmp_path / "a" / "results.nc", "--rows", 5)
    assert shown.exit_code == 0
    assert "points = 12" in shown.output
    assert "path: trajectory, " in shown.output
    again = thalweg("rerun", tmp_path / "a" / "results.nc", "--out", tmp_path / "b")
    assert again.exit_code == 0, again.output
    assert tw.load(tmp_path / "b" / "results.nc").equals(tw.load(tmp_path / "a" / "results.nc"))


def test_settings_are_listed():
    result = thalweg("run", "minimal-mlp", "--settings")
    assert result.exit_code == 0
    assert "n_samples = 100" in result.output
    assert "Missing option '--out'" in thalweg("run", "minimal-mlp").output
    every = thalweg("run", "all", "--settings")
    assert every.exit_code == 0
    assert all(f"{name}:\n" in every.output for name in tw.studies.STUDIES)


INTERRUPTED = """
import os, signal, threading
from thalweg import blocks
from thalweg.cli import main

run = blocks.run

def run_and_press_ctrl_c(*arguments, **options):
    blocks.run = run
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    return run(*arguments, **options)

blocks.run = run_and_press_ctrl_c
main()
"""


def test_an_interrupted_run_saves_what_it_has_and_exits_130(diabetes, tmp_path):
    command = [
        sys.executable, "-c", INTERRUPTED,
        "descend", diabetes, "--x", "bmi", "--y", "target", "--standardize", "--lr", "1e-3",
        "--steps", "2000000000", "--points", "5", "--out", tmp_path / "out",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 130, done.stderr
    assert "saved" in done.stderr
    tree = tw.load(tmp_path / "out" / "results.nc")
    assert tree["path/status"] == "interrupted"


# Bad input -----------------------------------------------------------------------------------------


def test_unknown_names_are_one_line_with_the_nearest(diabetes, tmp_path):
    out = tmp_path / "never"
    assert "did you mean 'minimal-mlp'" in fails("run", "minimal-mpl", "--out", out)
    assert "unknown study 'fit'" in fails("run", "fit", "--out", out)
    assert "did you mean 'n_samples'" in fails(
        "run", "minimal-mlp", "--set", "n_sample=3", "--out", out
    )
    fit = ("descend", diabetes, "--y", "target", "--out", out)
    assert "did you mean 'bmi'" in fails(*fit, "--x", "bmy")
    assert "did you mean 'huber'" in fails(*fit, "--x", "bmi", "--loss", "hubert")
    assert "did you mean 'bce_with_logits'" in fails(*fit, "--x", "bmi", "--loss", "bce")
    assert "did you mean 'Adam'" in fails(*fit, "--x", "bmi", "--optimizer", "Adm")
    assert "did you mean 'momentum'" in fails(*fit, "--x", "bmi", "-o", "momentun=0.9")
    assert "did you mean 'polynomial'" in fails(*fit, "--x", "bmi", "--model", "polynom")
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--lr", "-1"], "lr must be at least 0"),
        (["--steps", "5", "--epochs", "2"], "not both"),
        (["--model", "polynomial:x"], "polynomial:3"),
        (["--model", "mlp:0"], "at least 1"),
        (["--start", "weight"], "name=value"),
        (["--start", "slope=1"], "unknown parameter"),
        (["--start", "weight=a"], "weight needs a finite number; 'a' given"),
        (["--start", "weight=1e400"], "weight needs a finite number; '1e400' given"),
        (["--shuffle"], "shuffle needs batch_size"),
        (["--plane", "weight"], "two parameters were expected, as in bias,weight; weight given"),
        (["--plane", "bias,bias"], "two different"),
        (["--plane", "bias,wait"], "did you mean 'weight'"),
        (["--x", "bmi"], "given twice"),
        (["--loss", "bce_with_logits"], "between 0 and 1"),
        (["--lr", "nan"], "lr must be at least 0"),
        (["--window", "1,2"], "four numbers"),
        (["--points", "0"], "at least 2"),
        (["--points", "1000000000"], "lower points"),
        (["--window", "0,0,0,1"], "range of 'bias' must be two different finite numbers"),
        (["--window", "0,1,0,inf"], "range of 'weight' must be two different finite numbers"),
        (["--loss", "huber:-1"], "positive"),
        (["--loss", "mse:2"], "no parameter"),
        (
            ["--model", "mlp:100000000000"],
            "1 random starts of 300000000001 parameters would need 4.4 TiB",
        ),
        (["--batch-size", "0"], "batch_size"),
        (["--window", "a,b,c,d"], "numbers with commas between them"),
        (["--x", "s5", "--window", "0,1,0,1"], "say over which two with plane"),
        (["--lr", "0.5", "-o", "lr=0.1"], "given twice: as lr"),
        (["-o", "momentum=0.9", "-o", "momentum=0.5"], "'momentum' was given twice"),
        (["--start", "weight=1,weight=2"], "'weight' was given twice"),
        (["--seed", "-1"], "'seed' must be between 0 and"),
    ],
)
def test_bad_options_are_one_line(diabetes, tmp_path, monkeypatch, options, message):
    def descended(*_, **__):
        pytest.fail("the descent ran before the option was refused")

    monkeypatch.setattr("thalweg.job.Job.run", descended)
    base = ("descend", diabetes, "--x", "bmi", "--y", "target", "--out", tmp_path / "never")
    assert message in fails(*base, *options)
    assert not (tmp_path / "never").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n,4\n", "1 missing values, the first in line 3"),
        ("a,b\n1,2\nlots,4\n", "holds text, 'lots' in line 3"),
        ("a,b\n1,2\ninf,4\n", "not finite in line 3"),
        ("a,b\n", "no rows"),
        ("", "could not be read"),
        ("a,c\n1,2\n", "unknown column"),
        ("a,b\n1,2,9\n3,4,9\n", "more fields than its header"),
        ("a;b\n1;2\n", "separated by ';'"),
        ("a;b\n1,5;2,5\n", "separated by ';'; save it with commas between columns, and points in"),
        ("a,b\n1,2\n\n\n3,x\n", "'x' in line 5"),
        ("a\tb\n1\t2\n", "separated by tabs"),
        ("a|b\n1|2\n", "separated by '|'"),
        ("a, a,b\n1,2,3\n", "several columns called 'a'"),
        ("\ufeffa,b,a\n1,2,3\n", "several columns called 'a'"),  # a byte-order mark, as of Excel
    ],
)
def test_bad_tables_are_one_line(tmp_path, text, message):
    table = tmp_path / "table.csv"
    table.write_text(text, encoding="utf-8")
    line = fails("descend", table, "--x", "a", "--y", "b", "--out", tmp_path / "never")
    assert message in line
    assert not (tmp_path / "never").exists()


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_a_table_in_another_encoding_is_said_to_be_in_one(tmp_path, encoding):
    table = tmp_path / "table.csv"
    table.write_text("größe,b\n1,2\n", encoding=encoding)
    line = fails("descend", table, "--x", "größe", "--y", "b", "--out", tmp_path / "never")
    assert line == f"Error: {table} is not UTF-8 text; save it as CSV in that encoding."


@pytest.mark.parametrize(
    ("ending", "content", "message"),
    [
        ("csv.gz", gzip.compress(b"a,a,b\n1,2,3\n"), "several columns called 'a'"),
        ("csv.gz", gzip.compress(b"a,b\n1,2\n")[:20], "could not be read"),
        ("csv.gz", b"a,b\n1,2\n", "could not be read"),
        ("csv.gz", gzip.compress(b"")[:10] + b"no deflated text", "could not be read"),
        ("zip", b"a,b\n1,2\n", "could not be read"),
    ],
    ids=["twice", "cut off", "not packed", "not deflated", "no archive"],
)
def test_bad_packed_tables_are_one_line(tmp_path, ending, content, message):
    table = tmp_path / f"table.{ending}"
    table.write_bytes(content)
    assert message in fails("descend", table, "--x", "a", "--y", "b", "--out", tmp_path / "never")


def test_blank_lines_are_skipped_and_small_tables_fit(tmp_path):
    table = tmp_path / "table.csv"
    table.write_text("a,b\n\n1,2\n\n")
    out = tmp_path / "out"
    result = thalweg("descend", table, "--x", "a", "--y", "b", "--lr", 0.1, "--out", out)
    assert result.exit_code == 0, result.output
    assert tw.load(out / "results.nc")["data"].sizes["sample"] == 1


def test_dollars_in_columns_names_are_no_mathematics(tmp_path):
    table = tmp_path / "table.csv"
    table.write_text("US$_per_CA$,$a^{b$\n1,2\n2,3\n")
    result = thalweg(
        "descend", table, "--x", "US$_per_CA$", "--y", "$a^{b$", "--steps", 3, "--points", 3,
        "--out", tmp_path / "out",
    )  # fmt: skip
    assert result.exit_code == 0, result.output


def test_a_start_that_overflows_has_diverged_at_step_0(diabetes, tmp_path):
    output, _ = fit(diabetes, tmp_path, "--start", "weight=1e200", "--lr", 0.1, "--steps", 5)
    assert "diverged at step 0" in output


def test_logistic_fits_draw_probabilities(tmp_path):
    table = tmp_path / "table.csv"
    rng = np.random.default_rng(0)
    a = rng.standard_normal(200)
    b = (rng.uniform(size=200) < 1 / (1 + np.exp(-2 * a + 1))).astype(int)
    np.savetxt(table, np.column_stack([a, b]), delimiter=",", header="a,b", comments="")
    result = thalweg(
        "descend", table, "--x", "a", "--y", "b", "--loss", "bce_with_logits", "--optimizer", "lbfgs",
        "--steps", 20, "--out", tmp_path / "out",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "Not converged" not in result.output
    tree = tw.load(tmp_path / "out" / "results.nc")

    def risk(w):
        z = w[0] + w[1] * a
        return np.mean(np.logaddexp(0, z) - b * z)

    np.testing.assert_allclose(tree["path/risk"][-1], minimize(risk, [0.0, 0.0]).fun, rtol=1e-6)
    assert 0 < float(tree["fit/yhat_grid"].min()) < float(tree["fit/yhat_grid"].max()) < 1
    assert not (tmp_path / "out" / "figures" / "residuals.png").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("11", "'a' is constant"),
        (["0.1"] * 7, "'a' is constant"),  # of which the mean is 0.1 but for rounding
        (["1e200", "2e200"], "'a' cannot be standardized: its standard deviation is inf"),
        (["1e308", "-1e308"], "'a' cannot be standardized: its standard deviation is inf"),
        (["1e-200", "2e-200"], "'a' cannot be standardized: its standard deviation is 0"),
    ],
)
def test_a_column_without_a_standard_deviation_cannot_be_standardized(tmp_path, values, message):
    table = tmp_path / "table.csv"
    table.write_text("a,b\n" + "".join(f"{value},{row}\n" for row, value in enumerate(values)))
    base = ("descend", table, "--x", "a", "--y", "b", "--out", tmp_path / "never")
    assert message in fails(*base, "--standardize")


def test_settings_given_twice_are_one_line(tmp_path):
    run = ("run", "minimal-mlp", "--out", tmp_path / "never")
    assert "'points' was given twice" in fails(*run, "--set", "points=5", "--set", "points=6")
    assert "the seed was given twice" in fails(*run, "--seed", 1, "--set", "seed=1")


def test_a_folder_without_a_name_is_refused(monkeypatch):
    """An unset variable in `--out "$FOLDER"`."""
    monkeypatch.setattr("thalweg.studies.run", lambda *_, **__: pytest.fail("it was computed"))
    result = thalweg("run", "minimal-mlp", "--out", "")
    assert result.exit_code == 2
    assert "a folder's name was expected; '' given" in result.stderr


def test_missing_files_are_one_line(tmp_path):
    assert "no file" in fails("show", tmp_path / "nothing.nc")
    assert "no file" in fails("rerun", tmp_path / "nothing.nc", "--out", tmp_path / "never")
    assert "no file" in fails(
        "descend", tmp_path / "no.csv", "--x", "a", "--y", "b", "--out", tmp_path / "n"
    )
    table = tmp_path / "t.csv"
    table.write_text("a,b\n1,2\n")
    assert "not a result" in fails("show", table)
    assert "there is a file of that name" in fails("run", "minimal-mlp", "--out", table)


def test_a_folder_that_cannot_be_written_to_is_found_before_anything_is_computed(
    tmp_path, monkeypatch
):
    (tmp_path / "file").write_text("mine")
    monkeypatch.setattr("thalweg.studies.run", lambda *_, **__: pytest.fail("it was computed"))
    for out in ("/proc/never", tmp_path / "file" / "never"):
        assert f"--out {out}: cannot write to" in fails("run", "minimal-mlp", "--out", out)
    assert (tmp_path / "file").read_text() == "mine"
    assert os.listdir(tmp_path) == ["file"]


def test_figures_of_the_run_before_do_not_stay(tmp_path):
    few = ("--set", "points=5", "--set", "n_samples=6", "--out", tmp_path / "o")
    thalweg("run", "minimal-mlp", "--set", "at=0,1,2", *few)
    figures = tmp_path / "o" / "figures"
    first = set(os.listdir(figures))
    (figures / "mine.png").write_text("mine")
    thalweg("run", "minimal-mlp", "--set", "at=0", *few)
    assert first - set(os.listdir(figures)) == {"step-001.png", "step-002.png"}
    assert (figures / "mine.png").read_text() == "mine"


def test_a_failed_run_leaves_what_was_there(diabetes, tmp_path, monkeypatch):
    fit(diabetes, tmp_path, "--standardize", "--lr", 0.1, "--steps", 20)
    folder = tmp_path / "fit"
    before = {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}

    def full_disk(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("thalweg.report._page", full_disk)
    line = fails(
        "descend", diabetes, "--x", "bmi", "--y", "target", "--lr", 0.2, "--steps", 20,
        "--standardize", "--out", folder,
    )  # fmt: skip
    assert "No space left" in line
    assert before == {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
    assert sorted(os.listdir(tmp_path)) == ["diabetes.csv", "fit"]


@pytest.mark.parametrize(("asked", "got"), [("", "cpu"), ("cuda,cpu", "cuda,cpu")])
def test_it_computes_on_the_processor_unless_told_otherwise(asked, got):
    code = (
        "import jax; from thalweg.cli import _own_process\n"
        "_own_process(); print(jax.config.jax_platforms)"
    )
    environment = {**os.environ, "JAX_PLATFORMS": asked}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == got


@pytest.mark.parametrize(
    "words",
    [["run", "minimal-mlp", "--settings"], ["descend", "TABLE", "--x", "none"], ["show", "TABLE"]],
)
def test_lapack_has_one_thread(diabetes, words):
    """Which it is told before NumPy, that brings it, is loaded."""
    code = """
import os, sys
from thalweg.cli import main

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "numpy":
            print("threads:", os.environ["OPENBLAS_NUM_THREADS"], flush=True)
            os._exit(0)

sys.meta_path.insert(0, Watch())
main(sys.argv[1:])
"""
    options = [str(diabetes) if word == "TABLE" else word for word in words]
    if words[0] == "descend":
        options += ["--y", "target", "--out", "never-written"]
    environment = {k: v for k, v in os.environ.items() if k != "OPENBLAS_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, "-c", code, *options], env=environment, capture_output=True, text=True
    )
    assert done.stdout.startswith("threads: 1"), done.stderr
