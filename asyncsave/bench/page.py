"""The report of a measurement: one HTML page that needs nothing else, no network and no script."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from typing import Any

from asyncsave.bench.palette import DARK
from asyncsave.bench.plots import inline
from asyncsave.bench.series import Plot
from asyncsave.bench.stylesheet import stylesheet, variable
from asyncsave.units import duration, plain, rate, share, short, size

__all__ = ["page"]

Document = Mapping[str, Any]

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""What a browser may load for the page: nothing; and no script may run, whatever is in it."""

_BADGES = {True: ("yes", "helps"), False: ("no", "hurts"), None: ("open", "cannot be told")}

_FEW = 80
"""A plot with so few numbers shows them as a table, too."""

_COLUMNS = (
    "way of saving",
    "cost of a save",
    "held by the call",
    "steps beside it",
    "durable after",
    "of the disk",
    "first save",
    "memory",
    "promise",
)

_METHOD = """
<p>The ways of saving took turns, so that whatever else the machine did met all of them alike. The first save of each
is told apart, since it sets up threads, processes and memory.</p>
<p><strong>Cost of a save</strong> is how long the call held the loop, and by how much the steps beside the save took
longer than quiet ones, in sum. It is what a training really loses: a call that returns at once may still cost much.</p>
<p><strong>Durable after</strong> is the time from the call until the save is complete, as its promise says: <em>page
cache</em> survives the end of the program but no power cut, <em>file</em> is flushed, <em>file + folder</em> is flushed
together with its name. <strong>Of the disk</strong> is the rate of that, beside bare writes to the same folder.</p>
<p>Figures are medians. The interval holds the true median with a confidence of at least 95 %; it assumes nothing of how
the times are distributed, and takes six saves at least. p95 is what 95 of 100 are not above.</p>
<p>How often to save follows Young (1974) and Daly (2006), with the cost of a save as their cost of a checkpoint. A
failure loses half an interval of work, and the time until a save is durable.</p>
"""


def page(document: Document) -> str:
    """Return the report of a measurement as one HTML page.

    Args:
        document: A measurement, as :func:`asyncsave.bench.session.measure` returns it.

    Raises:
        OptionError: matplotlib is missing.
    """
    verdict = document["verdict"] or {}
    parts = [
        _header(document),
        _section("In figures", _modes(document["modes"], verdict)),
        _section("In code", f"<pre><code>{_lines(verdict['code'])}</code></pre>" if verdict else ""),
        _section("Machine and settings", _facts(document)),
        _section("In pictures", "".join(_figure(plot, svg) for plot, svg in inline(document))),
        _section("How it was measured", _METHOD),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>asyncsave bench: {_said(document['machine']['folder'])}</title>\n<style>{stylesheet()}</style>\n"
        f"</head>\n<body>\n<main>\n{''.join(parts)}</main>\n</body>\n</html>\n"
    )


def _header(document: Document) -> str:
    verdict, state, machine = document["verdict"], document["state"], document["machine"]
    text = verdict["text"] if verdict else "there was nothing to compare"
    kind, badge = _BADGES[verdict["helps"] if verdict else None]
    about = f"{size(state['nbytes'])} in {state['tensors']:,} tensors, saved to {machine['folder']}"
    return (
        f'<header><p class="kicker">asyncsave bench</p><p class="badge {kind}">{badge}</p>'
        f'<h1>{_said(text)}</h1><p class="soft">{_said(about)}</p></header>\n'
    )


def _section(title: str, content: str) -> str:
    return f"<section><h2>{title}</h2>\n{content}</section>\n" if content else ""


def _modes(modes: Mapping[str, Mapping[str, Any]], verdict: Mapping[str, Any]) -> str:
    head = "".join(f'<th scope="col">{name}</th>' for name in _COLUMNS)
    rows = "".join(_mode(name, found, chosen=name == verdict.get("mode")) for name, found in modes.items())
    caption = "<caption>Medians; below them the 95 % interval, or what else is said.</caption>"
    return (
        '<div class="scroll" role="region" aria-label="Figures of each way of saving" tabindex="0">'
        f'<table class="modes">{caption}<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _mode(name: str, found: Mapping[str, Any], *, chosen: bool) -> str:
    inflation, peak = found["inflation"], found["peak_bytes"]
    cells = [
        _cell(_ms(found["cost_ms"]["median"]), _between(found["cost_ms"])),
        _cell(_ms(found["stall_ms"]["median"]), f"p95 {_ms(found['stall_ms']['p95'])}"),
        _cell("none" if inflation is None else f"{100 * (inflation - 1):+.1f} %"),
        _cell(duration(found["durable_s"]), rate(found["durable_mb_s"])),
        _cell(share(found["share_of_disk"])),
        _cell(_ms(found["first_ms"])),
        _cell("unknown" if peak is None else size(peak)),
        f'<td class="text">{_said(found["promise"])}</td>',
    ]
    row = '<tr class="chosen">' if chosen else "<tr>"
    return f'{row}<th scope="row">{_said(short(name))}</th>{"".join(cells)}</tr>'


def _cell(text: str, below: str = "") -> str:
    return f"<td>{_said(text)}{f'<small>{_said(below)}</small>' if below else ''}</td>"


def _between(spread: Mapping[str, Any]) -> str:
    low, high = spread["ci95"]
    return f"{spread['n']} saves only" if low is None or high is None else f"{_ms(low)} to {_ms(high)}"


def _facts(document: Document) -> str:
    machine, state, training, disk = (document[name] for name in ("machine", "state", "training", "disk"))
    direct = "direct I/O" if machine["direct"] else "no direct I/O"
    facts = {
        "processor": f"{machine['cpu']}, {machine['cores']} cores, load {machine['load']:.2f}",
        "accelerator": machine["gpu"] or "none",
        "memory": f"{size(machine['memory_bytes'])}, {size(machine['headroom_bytes'])} of it left",
        "system": machine["kernel"],
        "versions": f"Python {machine['python']}, torch {machine['torch']}, asyncsave {machine['asyncsave']}",
        "folder": f"{machine['folder']} ({machine['file_system']}, {direct})",
        "disk": f"writes {rate(disk['write_mb_s'])}, reads {rate(disk['read_mb_s'])}, fsync {_ms(disk['fsync_ms'])}",
        "state": f"{state['source']}: {size(state['nbytes'])}, {state['tensors']:,} tensors, {state['dtype']}",
        "training": f"{training['kind']}: a quiet step takes {_ms(training['quiet_ms']['median'])}",
        "saves": f"{training['saves']} of each way that count",
    }
    rows = "".join(f'<tr><th scope="row">{name}</th><td>{_said(text)}</td></tr>' for name, text in facts.items())
    return f'<table class="facts"><tbody>{rows}</tbody></table>'


def _figure(plot: Plot, svg: str) -> str:
    return (
        f'<figure id="{plot.name}">{_embedded(plot, svg)}<figcaption>{_said(plot.caption)}</figcaption>'
        f"{_numbers(plot)}</figure>\n"
    )


def _numbers(plot: Plot) -> str:
    if len(plot.rows) > _FEW:
        return ""
    head = "".join(f'<th scope="col">{_said(name)}</th>' for name in plot.header)
    rows = "".join(f"<tr>{''.join(f'<td>{_value(value)}</td>' for value in row)}</tr>" for row in plot.rows)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    return f'<details><summary>The numbers</summary><div class="scroll">{table}</div></details>'


def _value(value: object) -> str:
    return f"{value:.5g}" if isinstance(value, float) else _said(value)


def _embedded(plot: Plot, svg: str) -> str:
    """Return an SVG that is one of several in a page: names of its own, colours that follow the page's."""
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{plot.name}-", svg)
    for colour in DARK:
        svg = svg.replace(colour, variable(colour))
    shape = re.search(r'viewBox="[^"]*"', svg)
    opening = f'<svg {shape[0] if shape else ""} role="img" aria-label="{_said(plot.title)}" '
    opening += 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">'
    return opening + svg[svg.index(">") + 1 :]


def _lines(text: object) -> str:
    return "\n".join(_said(line) for line in str(text).split("\n"))


def _said(text: object) -> str:
    """Return a text as it may stand anywhere in a page: it cannot leave its place, whatever it holds."""
    return html.escape(plain(text), quote=True)


def _ms(value: float) -> str:
    return duration(value / 1e3)
