"""Plots: what is drawn is in the CSV, every measurement can be drawn, and nothing global of matplotlib's is used."""

from __future__ import annotations

import copy
import csv
import itertools
import operator
import subprocess
import sys
import textwrap
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from bench_document import document, hostile, minimal
from PIL import Image

from asyncsave import OptionError, SaveError
from asyncsave.bench import plots
from asyncsave.bench.advice import advise
from asyncsave.bench.labels import spread_out
from asyncsave.bench.palette import DARK, INK, PHASES, colour_of
from asyncsave.bench.plots import inline, write_plots
from asyncsave.bench.series import plan_of, plots_of

ALL = ["timeline", "phases", "size", "tensors", "threads", "interval"]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Return a folder with all plots of a whole measurement."""
    folder = tmp_path_factory.mktemp("plots")
    write_plots(document(), str(folder))
    return folder


def table(folder: Path, name: str) -> list[dict[str, str]]:
    """Read a CSV."""
    with (folder / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def plot_of(name, made=None):
    """Return one plot's content."""
    return next(plot for plot in plots_of(made or document()) if plot.name == name)


def test_there_are_three_files_of_each_plot(drawn, tmp_path):
    """In a folder that is made; the paths are returned."""
    assert {path.name for path in drawn.iterdir()} == {
        f"{name}.{kind}" for name in ALL for kind in ("png", "svg", "csv")
    }
    paths = write_plots(minimal(), str(tmp_path / "new" / "folder"))
    assert {str(path) for path in (tmp_path / "new" / "folder").iterdir()} == set(paths)


def test_the_pictures_are_pictures(drawn):
    """Wide enough to be read, and not empty: what is drawn has the colours it should have."""
    for name in ALL:
        with Image.open(drawn / f"{name}.png") as image:
            assert image.width >= 1200
            colours = image.convert("RGB").getcolors(1 << 24)
        assert len(colours) > 50, f"{name} is nearly blank"
        root = ET.fromstring((drawn / f"{name}.svg").read_text(encoding="utf-8"))  # noqa: S314 - made here
        assert root.tag == "{http://www.w3.org/2000/svg}svg"


def test_names_of_modes_are_text_in_the_svg(drawn):
    """They can be searched for and read out."""
    for name in ("timeline", "phases", "interval"):
        text = " ".join(ET.fromstring((drawn / f"{name}.svg").read_text(encoding="utf-8")).itertext())  # noqa: S314
        assert "process" in text
        assert "torch.save+fsync" in text


def test_the_timeline_holds_every_step_and_save(drawn):
    """In seconds from the call of the first save."""
    rows = [row for row in table(drawn, "timeline") if row["mode"] == "process"]
    timeline = document()["modes"]["process"]["timeline"]
    zero = timeline["saves"][0][0]
    saves = [[float(row[key]) for key in ("began_s", "ended_s", "complete_s")] for row in rows if row["kind"] == "save"]
    assert saves == [pytest.approx([moment - zero for moment in save]) for save in timeline["saves"]]
    steps = [float(row["step_ms"]) for row in rows if row["kind"] == "step"]
    assert steps == pytest.approx([1e3 * (ended - began) for began, ended in timeline["steps"]])


def test_what_a_call_takes_is_not_its_steps():
    """A step may hold the call of a save."""
    made = minimal()
    made["modes"]["thread"]["timeline"] |= {"steps": [[0.0, 1.0], [1.0, 2.5]], "saves": [[1.25, 1.75, 2.0]]}
    rows = plot_of("timeline", made).rows
    assert [row[5] for row in rows if row[1] == "step"] == pytest.approx([1000, 1000])


def test_the_phases_hold_what_was_measured(drawn):
    """Those of asyncsave by name; of other modes what the call held, and the rest."""
    found = {(row["mode"], row["phase"]): (row["holds_the_loop"], float(row["ms"])) for row in table(drawn, "phases")}
    assert found["process", "stage"] == ("True", 40.5)
    assert found["process", "write"] == ("False", 478.0)
    assert found["torch.save+fsync", "held"] == ("True", 655.0)
    assert ("torch.save+fsync", "background") not in found
    assert found["aiofiles", "held"] == ("True", 188.0)
    assert found["aiofiles", "background"] == ("False", pytest.approx(810 - 188))


def test_the_sweeps_hold_what_was_measured(drawn):
    """Each point."""
    sweeps = document()["sweeps"]
    for name, x in (("size", "nbytes"), ("tensors", "tensors")):
        rows = [
            (row["mode"], int(row[x]), float(row["stall_ms"]), float(row["durable_s"])) for row in table(drawn, name)
        ]
        assert rows == [(one["mode"], one[x], one["stall_ms"], one["durable_s"]) for one in sweeps[name]]
    rows = [(int(row["threads"]), int(row["block_bytes"]), float(row["mb_s"])) for row in table(drawn, "threads")]
    assert rows == [(one["threads"], one["block_bytes"], one["mb_s"]) for one in sweeps["threads"]]
    assert plot_of("threads").marks == {"ceiling_mb_s": 640.0}


def test_the_interval_plot_is_the_advice(drawn):
    """The least that is lost lies at the advised interval, and the overhead is cost over interval."""
    rows = [row for row in table(drawn, "interval") if row["mode"] == "process"]
    best = min(rows, key=lambda row: float(row["lost_percent"]))
    advice = advise(plan_of(document(), "process"))
    assert float(best["interval_s"]) == pytest.approx(advice.prospect.interval_s, rel=0.1)
    assert float(best["overhead_percent"]) == pytest.approx(100 * 0.071 / float(best["interval_s"]))
    marks = plot_of("interval").marks
    assert marks["advised_s"] == advice.prospect.interval_s
    assert marks["budget_percent"] == pytest.approx(3.5)


def test_no_interval_is_drawn_that_the_disk_cannot_keep_up_with():
    """Where the disk decides, the curve begins there."""
    made = document()
    made["modes"]["process"]["durable_s"] = 500.0
    rows = [row for row in plot_of("interval", made).rows if row[0] == "process"]
    assert min(row[1] for row in rows) >= 500


def test_the_least_measurement_can_be_drawn(tmp_path):
    """What has no numbers is left out: no sweeps, no timeline."""
    paths = write_plots(minimal(), str(tmp_path))
    assert [Path(path).name for path in paths] == [
        f"{n}.{k}" for n in ("phases", "interval") for k in ("png", "svg", "csv")
    ]


VARIANTS = {
    "no verdict": {"verdict": None},
    "a verdict on a mode that is gone": {"verdict": {"mode": "gone", "baseline": "gone"}},
    "empty sweeps": {"sweeps": {"size": [], "tensors": [], "threads": [], "ceiling_mb_s": 0.0}},
    "one point each": {
        "sweeps": {
            "size": [{"nbytes": 4096, "mode": "thread", "stall_ms": 0.2, "durable_s": 0.1}],
            "tensors": [{"tensors": 1, "nbytes": 4096, "mode": "thread", "stall_ms": 0.0, "durable_s": 0.1}],
            "threads": [{"threads": 1, "block_bytes": 4096, "mb_s": 3.0}],
            "ceiling_mb_s": 3.0,
        }
    },
}


@pytest.mark.parametrize("name", VARIANTS)
def test_what_may_be_missing_may_be_missing(name, tmp_path):
    """A warning would be an error here."""
    assert write_plots(minimal() | VARIANTS[name], str(tmp_path))


def test_wild_figures_can_be_drawn(tmp_path):
    """Steps a hundred times as long as usual; a cost below zero; a phase that nobody knows."""
    made = document() | {"sweeps": None}
    made["modes"] = {name: made["modes"][name] for name in ("thread", "process")}
    made["modes"]["thread"]["timeline"]["steps"] += [[9.0, 13.2]]
    made["modes"]["process"]["cost_ms"]["median"] = -3.0
    made["modes"]["process"]["phases"]["polish"] = 300.0
    assert write_plots(made, str(tmp_path))
    assert plan_of(made, "process").cost_s == pytest.approx(0.044)


def test_names_cannot_leave_their_place():
    """Markup, mathematics, control characters and half characters in the name of a mode are drawn, or replaced."""
    for plot in plots_of(hostile()):
        root = ET.fromstring(plots._render(plot, "svg"))  # noqa: S314 - made here
        plot.csv().decode()
        assert not [one for one in root.iter() if one.tag.endswith(("script", "img"))]


def test_the_same_measurement_gives_the_same_files(drawn):
    """No dates, no random names."""
    for plot in plots_of(document()):
        assert plots._render(plot, "svg") == (drawn / f"{plot.name}.svg").read_bytes(), plot.name
        assert plot.csv() == (drawn / f"{plot.name}.csv").read_bytes()
    assert plots._render(plot_of("phases"), "png") == (drawn / "phases.png").read_bytes()


def test_the_document_is_not_changed():
    """It is shown as JSON afterwards."""
    made = document()
    before = copy.deepcopy(made)
    plots_of(made)
    assert made == before


def test_a_folder_that_cannot_be_made_is_an_error_of_ours(tmp_path):
    """With its path."""
    (tmp_path / "file").write_text("")
    with pytest.raises(SaveError, match="file"):
        write_plots(document(), str(tmp_path / "file" / "plots"))


def test_without_matplotlib_the_remedy_is_named(monkeypatch, tmp_path):
    """And nothing is written."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for draw in (lambda: write_plots(document(), str(tmp_path / "plots")), lambda: inline(document())):
        with pytest.raises(OptionError, match=r"pip install 'asyncsave\[plots\]'"):
            draw()
    assert not (tmp_path / "plots").exists()


def test_neither_torch_nor_pyplot_is_needed(tmp_path):
    """And the settings of whoever draws something else stay as they were."""
    source = """
        import sys, matplotlib
        from bench_document import minimal
        matplotlib.rcParams["text.color"] = "red"
        from asyncsave.bench.plots import write_plots
        write_plots(minimal(), sys.argv[1])
        assert "torch" not in sys.modules and "matplotlib.pyplot" not in sys.modules
        assert matplotlib.rcParams["text.color"] == "red"
        assert matplotlib.rcParams["svg.hashsalt"] is None
    """
    here = Path(__file__).parent
    command = [sys.executable, "-c", textwrap.dedent(source), str(tmp_path)]
    done = subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_settings_of_the_user_do_not_change_a_plot(drawn):
    """Whatever a matplotlibrc says."""
    import matplotlib as mpl  # noqa: PLC0415 - only here

    with mpl.rc_context({"font.size": 30, "axes.facecolor": "black", "savefig.bbox": "tight", "text.color": "red"}):
        assert plots._render(plot_of("phases"), "svg") == (drawn / "phases.svg").read_bytes()


def test_labels_do_not_overlap():
    """Those too near to each other are put around their common middle."""
    assert spread_out([0.1, 0.5]) == [0.1, 0.5]
    near = spread_out([0.5, 0.5, 0.51, 0.9])
    assert all(after - before >= 0.0619 for before, after in itertools.pairwise(near))
    assert sum(near[:3]) / 3 == pytest.approx(sum([0.5, 0.5, 0.51]) / 3)
    assert near[3] == 0.9
    assert spread_out([]) == []


def _simulated(colour: str, matrix: tuple[tuple[float, ...], ...]) -> tuple[float, ...]:
    """Return a colour as a colour-blind eye sees it (Viénot et al., 1999), in linear light."""
    light = [(int(colour[place : place + 2], 16) / 255) ** 2.2 for place in (1, 3, 5)]
    return tuple(max(0.0, sum(map(operator.mul, row, light))) ** (1 / 2.2) for row in matrix)


EYES = {
    "all colours": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "no red": ((0.11238, 0.88762, 0), (0.11238, 0.88762, 0), (0.00401, -0.00401, 1)),
    "no green": ((0.29275, 0.70725, 0), (0.29275, 0.70725, 0), (-0.02234, 0.02234, 1)),
}


@pytest.mark.parametrize("eye", EYES)
@pytest.mark.parametrize("night", [False, True])
def test_colours_that_are_compared_can_be_told_apart(eye, night):
    """What the verdict compares, and what holds the loop from what does not."""
    modes = ["torch.save+fsync", "thread", "process"]
    modes = [colour_of(mode, modes) for mode in modes]
    for group in (modes, [PHASES["stage"], PHASES["write"]], [PHASES["held"], PHASES["background"]]):
        seen = [_simulated(DARK.get(one, one) if night else one, EYES[eye]) for one in group]
        for number, one in enumerate(seen):
            for other in seen[:number]:
                assert sum((a - b) ** 2 for a, b in zip(one, other, strict=True)) ** 0.5 > 0.2


def test_a_mode_has_the_same_colour_in_every_plot():
    """Whatever other modes there are; unknown ones get others."""
    assert colour_of("process", ["process"]) == colour_of("process", ["x", "process", "thread"])
    assert len({colour_of(mode, ["x", "y", "process"]) for mode in ("x", "y", "process")}) == 3
    assert INK in DARK
