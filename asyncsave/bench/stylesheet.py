"""How a report looks: on a screen by day and by night, on a telephone, on paper."""

from __future__ import annotations

from asyncsave.bench.palette import DARK, INK, PAPER, RULE, SOFT

__all__ = ["stylesheet", "variable"]

_RULES = """
* { box-sizing: border-box; }
body { margin: 0; background: $paper; color: $ink; line-height: 1.55;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", "Noto Sans", Helvetica, Arial, sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: .4rem 0 .6rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.6rem 0 .7rem; padding-top: 1.1rem; border-top: 1px solid $rule; }
p, li, figcaption, dd { overflow-wrap: anywhere; }
.soft, figcaption, .kicker, caption { color: $soft; }
.kicker { margin: 0; font-size: .9rem; letter-spacing: .04em; }
.badge { display: inline-block; margin: .9rem 0 0; padding: .1rem .7rem; border: 2px solid currentColor;
  border-radius: 1rem; font-weight: 700; font-size: .9rem; }
.badge.yes { color: $good; } .badge.no { color: $bad; } .badge.open { color: $soft; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
.modes { width: 100%; }
caption { text-align: left; padding-bottom: .5rem; font-size: .9rem; }
th, td { padding: .38rem .65rem; border-bottom: 1px solid $rule; text-align: right; vertical-align: top; }
th { font-weight: 600; } thead th { color: $soft; vertical-align: bottom; }
th[scope=row], .text { text-align: left; overflow-wrap: anywhere; }
.modes th[scope=row], .modes td { white-space: nowrap; } .modes th[scope=row] { min-width: 8rem; }
td small { display: block; color: $soft; font-size: .8rem; }
tr.chosen { background: $shade; } tr.chosen th::after { content: " \\2190"; }
.modes thead th:first-child, .modes thead th:last-child { text-align: left; } .facts th { white-space: nowrap; }
.facts td { text-align: left; overflow-wrap: anywhere; }
pre { background: $shade; border: 1px solid $rule; border-radius: .4rem; padding: .9rem 1.1rem; overflow-x: auto;
  font: .92rem/1.5 ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; }
figure { margin: 1.8rem 0 2.6rem; break-inside: avoid; }
figure svg { display: block; width: 100%; height: auto; }
figcaption { font-size: .92rem; margin-top: .6rem; max-width: 48rem; }
details { margin-top: .5rem; font-size: .9rem; } summary { cursor: pointer; color: $soft; }
@media print {
  body { font-size: 10.5pt; } main { max-width: none; padding: 0; } details { display: none; }
  .scroll { overflow: visible; } .modes { font-size: 7.5pt; } .modes td, .modes th { padding: .2rem .3rem; }
  h2 { break-after: avoid; }
}
"""

_OWN = {"shade": ("#f3f6f9", "#1a2129"), "good": ("#00735a", "#3ccfa5"), "bad": ("#b3361b", "#ff8a6b")}
_NAMES = {"$paper": PAPER, "$ink": INK, "$soft": SOFT, "$rule": RULE}


def variable(colour: str) -> str:
    """Return the CSS variable that stands for a colour, which is another one on a dark page."""
    return f"var(--c{colour.removeprefix('#')})"


def stylesheet() -> str:
    """Return the rules of the page, with its colours by day and by night; paper is always by day."""
    day = {f"--c{light[1:]}": light for light in DARK} | {f"--{name}": light for name, (light, _) in _OWN.items()}
    night = {f"--c{light[1:]}": dark for light, dark in DARK.items()}
    night |= {f"--{name}": dark for name, (_, dark) in _OWN.items()}
    rules = _RULES
    for name, colour in _NAMES.items():
        rules = rules.replace(name, variable(colour))
    for name in _OWN:
        rules = rules.replace(f"${name}", f"var(--{name})")
    at_night = "@media screen and (prefers-color-scheme: dark)"
    return f":root {{ color-scheme: light dark; {_set(day)} }}\n{at_night} {{ :root {{ {_set(night)} }} }}\n{rules}"


def _set(variables: dict[str, str]) -> str:
    return " ".join(f"{name}: {value};" for name, value in variables.items())
