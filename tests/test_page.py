"""The report: what stands in it, that nothing can break out of its place, and how a real browser shows it."""

from __future__ import annotations

import html.parser
import re
import shutil
import subprocess
import sys

import pytest
from bench_document import document, hostile, minimal
from PIL import Image

from asyncsave import OptionError
from asyncsave.bench.page import page
from asyncsave.bench.palette import PHASES
from asyncsave.bench.series import plots_of
from asyncsave.bench.stylesheet import stylesheet
from asyncsave.units import duration, plain, rate, share, short, size

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
in_a_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (apt-get install chromium)")

VOID = {"meta", "br", "img", "hr", "input", "link"}


class Reader(html.parser.HTMLParser):
    """Notes the elements, their attributes, what is said, and whether every element that is opened is closed."""

    def __init__(self, text):
        super().__init__()
        self.elements = []
        self.said = []
        self._open = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attributes):
        """Note an element that is opened."""
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes):
        """Note an element that has no content."""
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        """See whether it was the last that was opened."""
        assert self._open.pop() == tag

    def handle_data(self, data):
        """Note what is said, and in what."""
        self.said.append((self._open[-1] if self._open else "", data))

    def text(self, *tags):
        """Return what stands in such elements."""
        return "".join(data for tag, data in self.said if not tags or tag in tags)

    def all(self, tag):
        """Return the attributes of each such element."""
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def whole():
    """Return the report of a whole measurement."""
    return page(document())


@pytest.fixture(scope="module")
def least():
    """Return the report of the least measurement."""
    return page(minimal())


@pytest.fixture(scope="module")
def broken_into():
    """Return the report of a measurement whose texts are hostile."""
    return page(hostile())


def test_the_verdict_comes_first(whole):
    """Then the figures, the code, the machine, the pictures, and how it was measured."""
    read = Reader(whole)
    assert read.text("h1") == document()["verdict"]["text"]
    assert [data for tag, data in read.said if tag == "h2"] == [
        "In figures",
        "In code",
        "Machine and settings",
        "In pictures",
        "How it was measured",
    ]
    assert whole.index("<h1>") < whole.index("<h2>") < whole.index("<svg")
    assert "helps" in read.text("p")


def test_the_figures_are_those_of_the_measurement(whole):
    """With their intervals, in a table with headings for each row and column."""
    read = Reader(whole)
    rows = re.findall(r"<tr.*?</tr>", whole[whole.index('<table class="modes">') : whole.index("</table>")], re.DOTALL)
    cells = [re.sub(r"<small>", " | ", row) for row in rows]
    cells = [re.sub(r"<[^>]+>", ";", row).strip(";").split(";") for row in cells]
    (process,) = [[cell for cell in row if cell] for row in cells if row[0] == "process"]
    assert process == [
        "process", "71 ms | 66 ms to 76.7 ms", "44 ms | p95 57.2 ms", "+5.0 %", "610 ms | 440 MB/s", "68.8 %", "394 ms",
        "537 MB", "file + folder",
    ]  # fmt: skip
    assert {attributes.get("scope") for attributes in read.all("th")} == {"row", "col"}
    assert len(read.all("caption")) == 1


def test_the_code_can_be_copied(whole):
    """Line by line as it was."""
    assert Reader(whole).text("code") == document()["verdict"]["code"]


def test_machine_and_settings_are_told(whole):
    """All that the figures depend on."""
    text = Reader(whole).text("td")
    for part in (
        "AMD EPYC 7B13",
        "2 cores",
        "Linux 6.1",
        "Python 3.11.7",
        "torch 2.13.0",
        "ext4",
        "direct I/O",
        "float32",
    ):
        assert part in text
    for part in ("writes 640 MB/s", "reads 1.21 GB/s", "fsync 3.8 ms", "12 of each"):
        assert part in text


def test_every_plot_is_there_and_has_words(whole):
    """A name for those who do not see it, and a caption for all."""
    read = Reader(whole)
    plots = plots_of(document())
    assert [one["aria-label"] for one in read.all("svg")] == [plot.title for plot in plots]
    assert {one["role"] for one in read.all("svg")} == {"img"}
    captions = read.text("figcaption")
    assert all(plot.caption in captions for plot in plots)


def test_no_name_is_there_twice(whole):
    """The pictures have names inside, and they refer to each other by them."""
    read = Reader(whole)
    names = [attributes["id"] for _, attributes in read.elements if "id" in attributes]
    assert len(names) == len(set(names))
    referred = set(re.findall(r"url\(#([^)]+)\)", whole)) | set(re.findall(r'href="#([^"]+)"', whole))
    assert referred
    assert referred <= set(names)


def test_the_page_needs_nothing_else(whole):
    """No script, no picture, style or font from elsewhere; and the browser is told so."""
    read = Reader(whole)
    assert not {tag for tag, _ in read.elements} & {
        "script",
        "link",
        "img",
        "iframe",
        "object",
        "image",
        "foreignobject",
    }
    links = [
        value for _, attributes in read.elements for name, value in attributes.items() if name.endswith(("href", "src"))
    ]
    assert all(link.startswith("#") for link in links)
    assert not re.search(r"@import|url\((?!#)", whole)
    assert not [name for _, attributes in read.elements for name in attributes if name.startswith("on")]
    (policy,) = [one["content"] for one in read.all("meta") if one.get("http-equiv") == "Content-Security-Policy"]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"


def test_the_same_measurement_gives_the_same_page(least):
    """To be compared and kept."""
    assert page(minimal()) == least


def test_the_least_measurement_has_a_page(least):
    """What is not known is said so."""
    read = Reader(least)
    assert read.text("h1") == "no measurable difference"
    assert "cannot be told" in read.text("p")
    assert "3 saves only" in read.text("small")
    assert {"none", "unknown"} <= {data for tag, data in read.said if tag == "td"}


def test_without_a_verdict_there_is_no_code():
    """Where there was nothing to compare."""
    read = Reader(page(minimal() | {"verdict": None}))
    assert "nothing to compare" in read.text("h1")
    assert "In code" not in read.text("h2")


def test_what_hurts_is_called_so():
    """In words, not only in red."""
    made = minimal()
    made["verdict"]["helps"] = False
    assert '<p class="badge no">hurts</p>' in page(made)


def test_texts_stay_in_their_place(broken_into):
    """A name of a folder or a processor may be anything: it is shown as it is, or with a mark for what cannot be."""
    read = Reader(broken_into)
    assert not {tag for tag, _ in read.elements} & {"script", "img"}
    assert not [name for _, attributes in read.elements for name in attributes if name.startswith("on")]
    evil = plain(hostile()["verdict"]["text"])
    assert read.text("h1") == evil
    assert evil in read.text("td")
    assert broken_into.encode()
    assert not re.search(r"[\x00-\x08\x0b-\x1f\ud800-\udfff]", broken_into)


def test_there_is_a_night_and_paper_is_white():
    """Each colour of the day has one for the night, on screens only."""
    sheet = stylesheet()
    day, night = (
        set(re.findall(r"(--\w+): #", part)) for part in sheet.split("@media screen and (prefers-color-scheme: dark)")
    )
    assert day == night
    assert set(re.findall(r"var\((--\w+)\)", sheet)) <= day
    assert "$" not in sheet
    assert "@media print" in sheet


def test_pictures_follow_the_page(whole):
    """Ink and lines have no colour of their own."""
    svg = "".join(re.findall(r"<svg.*?</svg>", whole, re.DOTALL))
    assert not re.search(r"#1f2328|#ffffff|#0069a8", svg)
    assert set(re.findall(r"var\((--\w+)\)", svg)) <= set(re.findall(r"(--\w+): #", stylesheet()))


def test_without_matplotlib_the_remedy_is_named(monkeypatch):
    """As for plots."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(OptionError, match=r"asyncsave\[plots\]"):
        page(document())


def browse(tmp_path, text, *options):
    """Open a page; return what Chromium wrote to stdout, and what the page's console said."""
    (tmp_path / "page.html").write_text(text, encoding="utf-8")
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--enable-logging=stderr",
        "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-crash-reporter",
        "--force-device-scale-factor=1", f"--user-data-dir={tmp_path / 'profile'}", *options,
        (tmp_path / "page.html").as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@in_a_browser
def test_a_browser_has_nothing_to_complain_of(tmp_path, broken_into):
    """Nothing is run, nothing is fetched, nothing is said; whatever the texts are."""
    dom, console = browse(tmp_path, broken_into, "--dump-dom")
    assert console == []
    assert dom.count("<svg") == 6
    assert "<script" not in dom
    assert "<img" not in dom


@in_a_browser
def test_a_browser_would_complain(tmp_path, least):
    """What the test above looks for is there to be seen: a picture from elsewhere is refused, and a script too."""
    bad = '<img src="http://127.0.0.1:9/x.png"><script>console.log("ran")</script></body>'
    _, console = browse(tmp_path, least.replace("</body>", bad), "--dump-dom")
    assert len(console) == 2
    assert all("Content Security Policy" in line for line in console)


@in_a_browser
@pytest.mark.parametrize("night", [False, True])
def test_a_browser_shows_the_plots(tmp_path, whole, night):
    """The page is as light or as dark as it should be, and the colours of bars and lines are on it."""
    picture = tmp_path / "page.png"
    options = ["--force-dark-mode"] if night else []
    _, console = browse(tmp_path, whole, *options, "--window-size=1000,5200", f"--screenshot={picture}")
    assert console == []
    with Image.open(picture) as image:
        colours = {colour: count for count, colour in image.convert("RGB").getcolors(1 << 24)}
    assert max(colours, key=colours.get) == ((15, 20, 25) if night else (255, 255, 255))
    for phase, dark in (("write", "#5ab4f0"), ("held", "#e0705c"), ("background", PHASES["background"])):
        wanted = dark if night else PHASES[phase]
        assert colours.get(tuple(bytes.fromhex(wanted[1:])), 0) > 2000, f"no {phase} is seen"
    assert sum(colours.values()) == 1000 * 5200


def test_figures_are_written_in_three_digits():
    """For people: never an exponent, always a unit."""
    assert [duration(value) for value in (0, 2e-5, 0.0032, 1.234, 60, 150, 5400, 86400, 4e5)] == [
        "0 s", "20 µs", "3.2 ms", "1.23 s", "1 min", "2.5 min", "90 min", "1 d", "4.63 d",
    ]  # fmt: skip
    assert duration(1e12) == "11574074 d"
    assert [size(value) for value in (0, 999, 1000, 1.05e6, 2.5e9, 3e18)] == [
        "0 B", "999 B", "1 kB", "1.05 MB", "2.5 GB", "3000 PB",
    ]  # fmt: skip
    assert [rate(value) for value in (0.5, 640, 999.9, 1210)] == ["0.5 MB/s", "640 MB/s", "1 GB/s", "1.21 GB/s"]
    assert [share(value) for value in (0.035, 0.000123, 1.97)] == ["3.5 %", "0.0123 %", "197 %"]
    assert short("x" * 30) == "x" * 23 + "\N{HORIZONTAL ELLIPSIS}"
    assert plain("a\nb\x1b\ud800é") == "a\N{REPLACEMENT CHARACTER}b" + 2 * "\N{REPLACEMENT CHARACTER}" + "é"
