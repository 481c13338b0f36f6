"""What do all HTML reports share? Text made safe, the frame of a page, and its style; nothing is loaded from anywhere.

Pages hold no script at all, and their content security policy allows none: whatever a tensor is called, nothing runs.
"""

from __future__ import annotations

import html
import re
from typing import Literal

from onnxcomp.results import ABSENT, PAGE_MARK, REMOVED

# characters that cannot be seen, or that turn the reading direction around, are written as their code
UNSEEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]"
)
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"

# classes of storage: every precision has one; told apart by lightness too, not by hue alone
KINDS = {
    "float64": "f32",
    "float32": "f32",
    "float16": "f16",
    "bfloat16": "f16",
    "int16": "i16",
    "uint16": "i16",
    "int8": "i8",
    "uint8": "i8",
    "int4": "i4",
    "uint4": "i4",
    "int2": "i2",
    "uint2": "i2",
    "int1": "i2",
    ABSENT: "gone",
    REMOVED: "gone",
    "everything else": "gone",
}


def text(value: object) -> str:
    """Any text, safe between tags and in quoted attributes."""
    shown = UNSEEN.sub(lambda found: f"\\u{{{ord(found.group()):x}}}", str(value))
    return html.escape(shown, quote=True)


def kind(precision: str) -> str:
    """The style class of a precision."""
    return KINDS.get(precision, "f8" if precision.startswith("float8") else "other")


def page(title: str, body: str) -> str:
    """A whole document."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{text(POLICY)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f'<meta name="referrer" content="no-referrer">\n{PAGE_MARK}\n'
        f"<title>{text(title)}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def section(key: str, title: str, body: str, note: str = "") -> str:
    """A part of a page under its own heading; nothing where the body is empty."""
    if not body:
        return ""
    hint = f'<p class="note">{note}</p>' if note else ""
    return f'<section id="{key}" aria-labelledby="{key}-h">\n<h2 id="{key}-h">{title}</h2>\n{hint}{body}\n</section>\n'


def table(
    columns: list[str],
    rows: list[list[str]],
    *,
    right: tuple[int, ...] = (),
    caption: str = "",
    narrow: Literal["scroll", "cards", "remarks"] = "scroll",
) -> str:
    """A table of cells that are HTML already; the first cell of a row is its heading.

    Args:
        right: columns that stand at the right.
        narrow: what becomes of it on a narrow screen: it scrolls; each row is a card, cell below cell, each after its
            column's title; or the last cell of a row, a remark, goes below the others.
    """
    side = ['class="n"' if index in right else "" for index in range(len(columns))]
    head = "".join(f"<th scope=col {side[i]}>{name}</th>" for i, name in enumerate(columns))
    lines = []
    for row in rows:
        of = [f' data-of="{text(name)}"' if narrow == "cards" and name else "" for name in columns]
        cells = "".join(f"<td {side[i]}{of[i]}>{cell}</td>" for i, cell in enumerate(row) if i)
        lines.append(f"<tr><th scope=row>{row[0]}</th>{cells}</tr>")
    named = f"<caption>{caption}</caption>" if caption else ""
    body = f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody>"
    kinds = "scroll" if narrow == "scroll" else f"scroll {narrow}"
    return f'<div class="{kinds}" role="group" aria-label="table" tabindex=0><table>{named}{body}</table></div>'


def wide_chart(svg: str) -> str:
    """A chart over the whole width, which scrolls where the screen is too narrow for its words."""
    return f'<div class="scroll" role="group" aria-label="chart" tabindex=0>{svg}</div>'


STYLE = """\
:root {
  color-scheme: light dark;
  --ground: #fff; --raised: #f5f6f8; --line: #d9dde3; --text: #1b1f24; --dim: #59636e; --focus: #0b5fff;
  --good: #12703a; --good-ground: #dff3e6; --bad: #a8201a; --bad-ground: #fbe3e1; --mid: #805600;
  --mid-ground: #fbefd3;
  --before: #8793a3; --after: #1f6feb;
  --f32: #8793a3; --f16: #4f9dc4; --f8: #7a86d8; --i16: #3d8f8f; --i8: #2a9d5c; --i4: #e09b2d; --i2: #cf5b3c;
  --gone: #e4e7eb;
  --other: #b07cc6; --ink: #10151b;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #0f1318; --raised: #191f27; --line: #333c47; --text: #e8ecf1; --dim: #9aa6b3; --focus: #7db0ff;
    --good: #6fdc96; --good-ground: #12331f; --bad: #ff938b; --bad-ground: #431a18; --mid: #f0c462;
    --mid-ground: #3a2d0e;
    --before: #77838f; --after: #5a9cff;
    --f32: #77838f; --f16: #4f9dc4; --f8: #8d97e0; --i16: #4aa3a3; --i8: #35b06b; --i4: #e09b2d; --i2: #e0694a;
    --gone: #2b333d;
    --other: #b98ad0;
  }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 1.5rem clamp(.75rem, 3vw, 2.5rem) 4rem; background: var(--ground);
  color: var(--text); font: 15px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { font-size: 1.6rem; margin: 0; overflow-wrap: anywhere; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1rem 0 .3rem; } h2, h3, p { overflow-wrap: anywhere; }
p { margin: .4rem 0; } code { overflow-wrap: anywhere;
  font-size: .92em; }
.note, .dim, caption { color: var(--dim); } caption { text-align: left; padding-bottom: .3rem; }
a { color: var(--after); } :focus-visible { outline: 3px solid var(--focus); outline-offset: 2px; }
.skip { position: absolute; left: -99rem; } .skip:focus { position: static; }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; margin: .6rem 0; }
.badge { display: inline-block; max-width: 100%; overflow-wrap: anywhere;
  padding: .15rem .7rem; border-radius: 1rem; font-weight: 600; }
.accepted, .held { color: var(--good); background: var(--good-ground); }
.over-budget, .missed, .failed { color: var(--bad); background: var(--bad-ground); }
.unchanged { color: var(--mid); background: var(--mid-ground); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(12rem, 1fr)); gap: .8rem; margin: 1.2rem 0; }
.tile { background: var(--raised); border: 1px solid var(--line); border-radius: .5rem; padding: .7rem .9rem; }
.tile { overflow-wrap: anywhere; }
.tile b { display: block; font-size: 1.55rem; line-height: 1.25; } .tile span { color: var(--dim); }
.scroll { overflow-x: auto; background: linear-gradient(90deg, var(--ground) 30%, transparent) left / 3rem 100%,
  linear-gradient(270deg, var(--ground) 30%, transparent) right / 3rem 100%,
  linear-gradient(90deg, var(--line), transparent) left / .9rem 100%,
  linear-gradient(270deg, var(--line), transparent) right / .9rem 100%;
  background-repeat: no-repeat; background-attachment: local, local, scroll, scroll; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .3rem .7rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top;
  font-weight: 400; } thead th { color: var(--dim); } .n { text-align: right; white-space: nowrap; }
tbody th { overflow-wrap: anywhere; min-width: 9rem; } td .badge { white-space: nowrap; }
svg { display: block; max-width: 100%; height: auto; } svg.wide { width: 100%; }
svg { font: 11px system-ui, "DejaVu Sans", sans-serif; }
svg text { fill: var(--text); } svg .on { fill: var(--ink); } svg .dim { fill: var(--dim); }
.grid { stroke: var(--line); } .frame { fill: none; stroke: var(--line); } .edge { stroke: var(--ground);
  stroke-width: 1; }
.before { fill: var(--before); } .after { fill: var(--after); } path.before, path.after { fill-opacity: .35; }
path.before { stroke: var(--before); } path.after { stroke: var(--after); } .mark { stroke-width: 1.5;
  stroke-dasharray: 4 3; }
line.before { stroke: var(--before); } line.after { stroke: var(--after); }
.line, .front { fill: none; stroke-width: 2; stroke-linejoin: round; } .front { stroke: var(--dim);
  stroke-width: 1.5; stroke-dasharray: 5 3; } .dot { stroke: var(--ground); stroke-width: 1.5; }
.s0.line { stroke: var(--after); } .s1.line { stroke: var(--i4); stroke-dasharray: 7 3; } .s2.line {
  stroke: var(--i8); stroke-dasharray: 2 3; } .s3.line { stroke: var(--other); }
.s0.dot { fill: var(--after); } .s1.dot { fill: var(--i4); } .s2.dot { fill: var(--i8); } .s3.dot {
  fill: var(--other); }
.f32 { fill: var(--f32); } .f16 { fill: var(--f16); } .f8 { fill: var(--f8); } .i16 { fill: var(--i16); }
  .i8 { fill: var(--i8); }
.i4 { fill: var(--i4); } .i2 { fill: var(--i2); } .gone { fill: var(--gone); } .other { fill: var(--other); }
.legend { display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; margin: .4rem 0; padding: 0; list-style: none; }
.legend svg { display: inline-block; vertical-align: -1px; margin-right: .4rem; }
.maps { display: flex; flex-wrap: wrap; gap: 1.2rem; align-items: flex-end; } figure { margin: 0; max-width: 100%; }
figcaption { color: var(--dim); padding: .2rem 0; }
fieldset { border: 0; padding: 0; margin: .4rem 0; } legend { float: left; margin-right: .8rem; color: var(--dim); }
fieldset label { margin-right: 1rem; cursor: pointer; }
.rows { display: flex; flex-direction: column; } .row { order: var(--g); display: grid; gap: 0 .8rem;
  align-items: center;
  grid-template-columns: minmax(8rem, 2fr) minmax(4.5rem, .8fr) 9.6rem 9.8rem 12.2rem 130px;
  padding: .18rem 0;
  border-bottom: 1px solid var(--line); font-variant-numeric: tabular-nums; content-visibility: auto;
  contain-intrinsic-size: auto 30px; }
.row > * { overflow-wrap: anywhere; min-width: 0; } .row.top { color: var(--dim); order: -1; }
.layers:has(#by-error:checked) .row:not(.top) { order: var(--e); }
.layers:has(#by-size:checked) .row:not(.top) { order: var(--b); }
.bar { display: flex; align-items: center; gap: .5rem; } .bar svg { flex: none; }
details { margin: .4rem 0; } summary { cursor: pointer; } ul { margin: .2rem 0; padding-left: 1.3rem; }
li { overflow-wrap: anywhere; }
.good { color: var(--good); } .bad { color: var(--bad); }
.sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(7.2rem, 1fr)); gap: .8rem; padding: 0;
  list-style: none; font-size: .87rem; line-height: 1.35; }
.sheet img { display: block; width: 96px; height: 96px; object-fit: contain; image-rendering: pixelated;
  background: var(--raised); margin-bottom: .2rem; }
.parts { display: grid; grid-template-columns: minmax(13rem, 19rem) 1fr; gap: 0 1rem;
  grid-template-rows: repeat(var(--parts), min-content) 1fr; max-height: 40rem;
  overflow: auto; border: 1px solid var(--line); border-radius: .5rem; padding: .5rem; margin: .6rem 0; }
.part { display: contents; } .part label { grid-column: 1; padding: .2rem .4rem; margin: 0; overflow-wrap: anywhere;
  font-size: .92em; } .part:has(:checked) label { background: var(--raised); border-radius: .3rem; }
.part .view { display: none; grid-column: 2; grid-row: 1 / -1; align-self: start; position: sticky; top: 0;
  gap: 1.2rem; max-height: 39rem; overflow: auto; } .part:has(:checked) .view { display: flex; }
.view figure { flex: none; max-width: none; } svg.net { max-width: none; }
.node { fill: var(--raised); stroke: var(--line); } .node.new, .key.new { fill: var(--good-ground);
  stroke: var(--good); background: var(--good-ground); border-color: var(--good); }
.node.gone, .key.gone { fill: var(--bad-ground); stroke: var(--bad); background: var(--bad-ground);
  border-color: var(--bad); stroke-dasharray: 4 2; }
.node.changed, .key.changed { fill: var(--mid-ground); stroke: var(--mid); background: var(--mid-ground);
  border-color: var(--mid); } .node.outside { fill: none; stroke-dasharray: 2 3; } .op { font-weight: 600; }
.key { display: inline-block; width: 12px; height: 12px; border: 1px solid var(--line); border-radius: 3px;
  vertical-align: -1px; margin-right: .4rem; background: var(--raised); }
.arrow { fill: none; stroke: var(--dim); } .head { fill: var(--dim); }
@media screen and (max-width: 60rem) { .row { grid-template-columns: 1fr 1fr; } .row.top { display: none; }
  .row > :first-child { grid-column: 1 / -1; font-weight: 600; } svg.wide { width: 44rem; max-width: none; } }
@media screen and (max-width: 50rem) { .parts { grid-template-columns: 1fr; max-height: none; } .part .view {
  grid-column: 1; grid-row: auto; position: static; } }
@media screen and (max-width: 40rem) { .cards table, .cards tbody, .cards tr, .cards td, .cards th { display: block; }
  .cards thead { display: none; } .cards tr { border: 1px solid var(--line); border-radius: .5rem; padding: .5rem .8rem;
  margin: 0 0 .8rem; } .cards td, .cards th { border: 0; padding: .1rem 0; text-align: left; white-space: normal; }
  .cards td:empty { display: none; } .cards td[data-of]::before { content: attr(data-of) ": "; color: var(--dim); }
  .remarks table, .remarks thead, .remarks tbody { display: block; } .remarks tr { display: grid;
  grid-template-columns: 1fr 5.5rem 5.5rem; border-bottom: 1px solid var(--line); padding: .3rem 0; }
  .remarks th, .remarks td { border: 0; padding: 0; min-width: 0; } .remarks tr > :last-child { grid-column: 1 / -1;
  color: var(--dim); } svg.fit { width: 100%; font-size: 24px; } }
pre { background: var(--raised); border: 1px solid var(--line); border-radius: .4rem; padding: .5rem .7rem;
  white-space: pre-wrap; overflow-wrap: anywhere; user-select: all; }
@media print {
  :root { color-scheme: light; } body { max-width: none; padding: 0; font-size: 10.5px; } nav, .layers fieldset,
  .skip { display: none; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; } section, figure, .tile { break-inside: auto; }
  h2, h3, .note, .legend { break-after: avoid; } .note { break-inside: avoid; }
  .row, tr, figure, .tile { break-inside: avoid; }
  .row { grid-template-columns: minmax(6rem, 2fr) minmax(4rem, .8fr) 6.2rem 6.6rem 10.4rem 130px; }
  .scroll { overflow: visible; background: none; }
  .row { content-visibility: visible; }
  .parts { display: block; max-height: none; overflow: visible; border: 0; }
  .part { display: block; break-inside: avoid; }
  .part .view { display: flex; position: static; max-height: none; overflow: visible; zoom: .6; } .part input,
  .parts legend { display: none; }
  details::details-content { content-visibility: visible; block-size: auto; }
}
"""
