"""page: the frame of pages that need no network, and nothing but themselves.

    page  --- what its author drew: readable without scripts
      +------ data: numbers and texts, in JSON that holds no mark of HTML
      +------ one script, which begins with the tools that every page has

A policy in the page itself lets the browser run that script (by its hash) and load nothing. Everything returns text: no
I/O here.
"""

from __future__ import annotations

import base64
import hashlib
import json
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from execmem.draw_svg import INKS, style, tell

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

POLICY_REST: Final = "base-uri 'none'; form-action 'none'"


def pack(numbers: npt.NDArray[Any], kind: str) -> str:
    """Return an array as base64 of little-endian numbers of a kind."""
    return base64.b64encode(numbers.astype(f"<{kind}").tobytes()).decode()


def to_json(data: Mapping[str, Any]) -> str:
    r"""Return what a script draws, as JSON without marks of HTML.

    >>> print(to_json({"name": "</script>"}))
    {"name":"\u003c/script\u003e"}
    """
    text = json.dumps(data, separators=(",", ":"))
    for mark in "<>&":
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    return text


def draw_table(names: Sequence[str], rows: Sequence[Sequence[str]], marks: Sequence[str] = ()) -> str:
    """Return a table; cells are escaped here, `marks` are attributes of its rows."""
    head = "".join(f'<th scope="col">{tell(name)}</th>' for name in names)
    body = "".join(
        f"<tr{marks[number] if marks else ''}>{''.join(f'<td>{tell(cell)}</td>' for cell in row)}</tr>\n"
        for number, row in enumerate(rows)
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table>"


def make_script(body: str, *, waits: bool = False) -> str:
    """Return a script: the tools, what one page does, and the sign that it has run: one that waits gives it itself."""
    ready = "" if waits else "ready();"
    return f'\n"use strict";\n(() => {{{TOOLS}{body}{ready}\n}})();\n'


class Page(NamedTuple):
    """A page: title and facts above its body, which is HTML; its data, in JSON; what it does; its own style sheet."""

    title: str
    facts: str
    body: str
    data: str
    script: str
    looks: str

    def draw(self) -> str:
        """Return the page as a file."""
        digest = base64.b64encode(hashlib.sha256(self.script.encode()).digest()).decode()
        policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; {POLICY_REST}"
        light, dark = ("".join(f"--{name}:{pair[way]};" for name, pair in INKS.items()) for way in (0, 1))
        inks = f":root{{{light}}}@media(prefers-color-scheme:dark){{:root{{{dark}}}}}"
        return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width"><meta name="color-scheme" content="light dark">
<title>{tell(self.title)}</title><style>{inks}{style()}{STYLE}{self.looks}</style></head><body>
<header><h1>{tell(self.title)}</h1><p>{tell(self.facts)}</p></header>
{self.body}
<script type="application/json" id="data">{self.data}</script>
<script>{self.script}</script></body></html>
"""


STYLE: Final = """
body{margin:0 auto;padding:12px 20px;max-width:1240px;background:var(--page);color:var(--ink);
font:14px/1.45 system-ui,'DejaVu Sans',sans-serif}
h1{font-size:19px;margin:0}h2{font-size:15px;margin:22px 0 6px}header p{margin:0;color:var(--dim)}
header{display:flex;gap:18px;align-items:baseline;flex-wrap:wrap}
#time{display:flex;gap:12px;align-items:center;margin:8px 0}#slider{flex:0 0 480px;accent-color:var(--giant)}
#told{font-variant-numeric:tabular-nums}[hidden]{display:none!important}
.bar{display:flex;gap:6px;align-items:center;margin-bottom:4px}.keys{flex:1;color:var(--dim);font-size:12px;padding-left:12px}
button{font:inherit;min-width:32px;padding:1px 8px;color:var(--ink);background:var(--page);border:1px solid var(--line);
border-radius:4px;cursor:pointer}
:focus-visible{outline:2px solid var(--giant);outline-offset:2px}
#here{margin:6px 0;min-height:2.9em;overflow-wrap:anywhere}
.roll{max-height:340px;overflow:auto;border:1px solid var(--line)}.roll p{margin:8px}
table{border-collapse:collapse;width:100%;font-size:13px}th{position:sticky;top:0;background:var(--page);text-align:left}
th,td{padding:3px 10px;border-bottom:1px solid var(--line);vertical-align:top}
.notes{color:var(--dim);padding-left:20px}
"""

TOOLS: Final = r"""
const $ = (id) => document.getElementById(id);
const data = JSON.parse($("data").textContent);
const read = (text, Kind) => {
  const raw = atob(text), bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  return new Kind(bytes.buffer);
};
const size = (value, digits = 4) => {
  for (const [unit, scale] of [["TB", 2 ** 40], ["GB", 2 ** 30], ["MB", 2 ** 20], ["kB", 2 ** 10]])
    if (value >= scale) return +(value / scale).toFixed(digits) + " " + unit;
  return value + " B";
};
const many = (value) => Math.round(value).toLocaleString("en");
const ready = () => { document.documentElement.dataset.ready = Math.round(performance.now()); };
"""
