"""draw_html_occupancy: packs in the course of time, as one page that needs no network.

Without scripts the page has the picture of ``draw_occupancy``. With its script (in the frame of ``page``) time zooms, a
slider goes through it, and what is pointed at is told. Everything returns text: no I/O here. 60 kB and the picture for
each domain, and 1.5 kB a row of packs; 1,000 rows at most.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from execmem.draw import clean
from execmem.draw_occupancy import CHARTS, draw_svg, tell_history, tell_lives, tell_notes
from execmem.draw_svg import tell
from execmem.draw_svg_packs import PLAIN
from execmem.occupancy import find_column, find_fills, find_values
from execmem.page import Page, make_script, pack, to_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from execmem.occupancy import History, Life

STEPS: Final = 1024  # of time
ROWS_MAX: Final = 1000
BARE: Final = 255  # a fill that is not known; others are per cent
KINDS: Final = ("size", "count", "count", "rate", "rate")  # of the values of CHARTS, for the script


def find_levels(history: History, lives: Sequence[Life]) -> npt.NDArray[np.uint8]:
    """Return how full a pack was in each step of time, in per cent; more than none is at least 1."""
    found = np.full(STEPS, BARE, np.uint8)
    for life in lives:
        fills = np.array([np.nan if fill is None else fill for fill in find_fills(history, life, STEPS)])
        known = ~np.isnan(fills)
        found[known] = np.where(fills[known] > 0, np.maximum(np.rint(fills[known] * 100), 1), 0)
    return found


def pack_domain(history: History, limit: int | None) -> dict[str, Any]:
    """Return what the script draws of a domain."""
    first, last = history.span
    rows = history.rows()
    shown = [rows[number] for number in list(rows)[: min(limit or ROWS_MAX, ROWS_MAX)]]
    values = [find_values(history, key, STEPS) for key, _, _ in CHARTS]
    return {
        "name": clean(f"{history.name} ({history.number})"),
        "told": clean(tell_history(history, PLAIN)),
        "first": first,
        "seconds": last - first,
        "values": [pack(np.array([np.nan if one is None else one for one in each]), "f8") for each in values],
        "rows": [
            {
                "label": clean(f"{lives[-1].number} {lives[-1].kind}"[:12]),
                "told": tell_lives(lives, first),
                "levels": pack(find_levels(history, lives), "u1"),
                "marks": [
                    [column, int(went)]
                    for life in lives
                    for when, went in ((life.born, False), (life.returned, True))
                    if when is not None and (column := find_column(history, when, STEPS)) is not None
                ],
            }
            for lives in shown
        ],
        "notes": tell_notes(history, len(rows) - len(shown)),
    }


def draw_page(histories: Sequence[History], title: str, limit: int | None) -> str:
    """Return the page."""
    domains = [pack_domain(history, limit) for history in histories]
    charts = [[words, kind] for (_, words, _), kind in zip(CHARTS, KINDS, strict=True)]
    data = to_json({"steps": STEPS, "bare": BARE, "charts": charts, "domains": domains})
    choices = "".join(f'<option value="{number}">{tell(one["name"])}</option>' for number, one in enumerate(domains))
    notes = "".join(f"<li>{tell(one['name'])}: {tell(note)}</li>" for one in domains for note in one["notes"])
    body = f"""<div id="view" hidden><section id="time" aria-label="moment"><label for="slider">time</label>
<input id="slider" type="range" min="0" max="{STEPS - 1}" value="{STEPS - 1}"><output id="when"></output></section>
<div class="bar"><span class="keys">Ctrl and wheel, + and -: zoom; drag: move; a click: the slider goes there; \
arrow keys: from moment to moment, from pack to pack</span>
<label>domain <select id="domain">{choices}</select></label>\
<button id="in" title="zoom in (+)">+</button><button id="out" title="zoom out (-)">&minus;</button>\
<button id="all" title="all of it (0)">all</button></div>
<p id="told"></p><p id="here" role="status">Point at a chart or at a pack.</p>
<div id="stage"><canvas id="canvas" tabindex="0" role="img" \
aria-label="counters above, a row for each pack below; the line above tells what is at the slider"></canvas>
<div id="cursor"></div></div>
<p class="keys">A pack is emptier where it is fainter. A green mark: made; an orange one: returned. \
Bare: no pack, or nobody looked.</p></div>
<div id="still">{draw_svg(histories, title, min(limit or ROWS_MAX, ROWS_MAX), PLAIN)}
<noscript><p>Zoom and slider need scripts; this picture does not.</p></noscript></div>
<ul class="notes">{notes}</ul>"""
    pictures = sum(len(history.times) for history in histories)
    return Page(title, f"{pictures:,} picture{'s' * (pictures != 1)}", body, data, SCRIPT, STYLE).draw()


STYLE: Final = """
#stage{position:relative;touch-action:pan-y}#canvas{width:100%;display:block;cursor:crosshair}
#cursor{position:absolute;top:0;bottom:0;width:0;border-left:1.5px solid var(--ink);pointer-events:none}
#still{overflow:auto}#told{margin:4px 0;color:var(--dim)}
"""

SCRIPT: Final = make_script(r"""
const { steps, bare, charts, domains } = data, LEFT = 104, RIGHT = 20, CHART = 74, ROW = 16, AXIS = 26;
const canvas = $("canvas"), theme = matchMedia("(prefers-color-scheme:dark)");
let from = 0, to = steps, at = steps - 1, row = -1, domain, values, levels;
const ink = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`);
const round = (value) => +value.toPrecision(4);
const tellValue = (value, kind) => Number.isNaN(value) ? "not available"
  : kind === "size" ? size(value, 1) : kind === "rate" && value < 10 ? value.toFixed(1) : many(value);
const timeOf = (step) => domain.seconds * step / steps, stepOf = (time) => time / domain.seconds * steps;
const snap = (x) => Math.round(x * devicePixelRatio) / devicePixelRatio;  // neighbours leave no seam
const across = (step) => LEFT + (canvas.clientWidth - LEFT - RIGHT) * (step - from) / (to - from);
const top0 = charts.length * CHART + 8;

// ---- drawing ----
const write = (pen, words, x, y, look, align = "left") => {
  pen.fillStyle = ink(look);
  pen.textAlign = align;
  pen.fillText(words, x, y);
};
const drawChart = (pen, [words, kind], series, top) => {
  const base = top + CHART - 12, high = CHART - 26, first = Math.floor(from), end = Math.ceil(to);
  let most = -1;  // none is known
  for (let i = first; i < end; i++) if (series[i] > most) most = series[i];
  pen.fillStyle = ink(words === "allocs/s" ? "came" : words === "frees/s" ? "went" : "giant");
  for (let i = first; i < end; i++) {
    if (!(series[i] > 0)) continue;
    const left = snap(Math.max(across(i), LEFT)), tall = Math.max(high * series[i] / most, 1);
    pen.fillRect(left, base - tall, snap(Math.min(across(i + 1), canvas.clientWidth - RIGHT)) - left, tall);
  }
  pen.fillStyle = ink("line");
  pen.fillRect(LEFT, base, canvas.clientWidth - LEFT - RIGHT, 1);
  write(pen, words, LEFT - 8, base - high + 6, "ink", "right");
  write(pen, tellValue(most < 0 ? NaN : most, kind), LEFT + 2, base - high - 7, "dim");
};
const drawRow = (pen, { label, marks }, level, y, chosen) => {
  write(pen, label, LEFT - 8, y + ROW / 2 - 1, chosen ? "ink" : "dim", "right");
  pen.fillStyle = ink("giant");
  const end = Math.ceil(to), edge = canvas.clientWidth - RIGHT;
  for (let i = Math.floor(from); i < end;) {
    const begin = i, fill = level[i];
    while (i < end && level[i] === fill) i++;
    if (fill === bare) continue;
    const left = snap(Math.max(across(begin), LEFT));
    pen.globalAlpha = 0.12 + 0.88 * fill / 100;
    pen.fillRect(left, y, snap(Math.min(across(i), edge)) - left, ROW - 3);
  }
  pen.globalAlpha = 1;
  for (const [step, went] of marks) {
    const x = across(step + went);
    if (x < LEFT - 1 || x > edge + 1) continue;
    pen.fillStyle = ink(went ? "went" : "came");
    pen.beginPath();
    pen.moveTo(x, y - 1);
    pen.lineTo(x, y + ROW - 2);
    pen.lineTo(x + (went ? -6 : 6), y + ROW / 2 - 1);
    pen.fill();
  }
};
const drawAxis = (pen, y) => {
  const seconds = timeOf(to - from), power = 10 ** Math.floor(Math.log10(seconds));
  if (!(seconds > 0)) return;
  const step = power * [0.1, 0.2, 0.5, 1].find((times) => seconds / (power * times) <= 10);
  for (let tick = Math.ceil(timeOf(from) / step); tick * step <= timeOf(to) * (1 + 1e-9); tick++)
    write(pen, round(tick * step).toLocaleString("en"), across(stepOf(tick * step)), y, "dim", "center");
  write(pen, "seconds", LEFT - 8, y, "dim", "right");
};
const draw = () => {
  const high = top0 + domain.rows.length * ROW + AXIS;
  const ratio = Math.min(devicePixelRatio, 32000 / high);  // Firefox draws nothing on a canvas above 32,767
  canvas.style.height = `${high}px`;
  canvas.width = canvas.clientWidth * ratio;
  canvas.height = high * ratio;
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  pen.font = "11.5px system-ui, 'DejaVu Sans', sans-serif";
  pen.textBaseline = "middle";
  charts.forEach((chart, i) => drawChart(pen, chart, values[i], i * CHART));
  domain.rows.forEach((each, i) => drawRow(pen, each, levels[i], top0 + i * ROW, i === row));
  drawAxis(pen, high - AXIS / 2);
  canvas.dataset.from = from;
  canvas.dataset.to = to;
  point();
};
const point = () => {
  const x = across(at + 0.5);
  $("cursor").style.left = `${x}px`;
  $("cursor").hidden = x < LEFT || x > canvas.clientWidth - RIGHT;
};

// ---- what is told ----
const tellAt = (step) => {
  const words = charts.map(([name, kind], i) => `${name} ${tellValue(values[i][step], kind)}`);
  const looked = values.some((series) => !Number.isNaN(series[step]));
  const parts = [`At ${round(timeOf(step))} s: ${looked ? words.join(", ") : "nobody looked"}.`];
  if (row >= 0) {
    const fill = levels[row][step], { label, told } = domain.rows[row];
    parts.push(`Pack ${label}: ${fill === bare ? "not there, or not looked at" : `${fill} % full`} (${told}).`);
  }
  return parts.join(" ");
};
const setAt = (step) => {
  at = Math.min(Math.max(Math.round(step), 0), steps - 1);
  $("slider").value = at;
  $("when").textContent = `${round(timeOf(at))} of ${round(domain.seconds)} s`;
  $("slider").setAttribute("aria-valuetext", $("when").textContent);
  $("here").textContent = tellAt(at);
  point();
};

// ---- moving ----
const look = (first, wide) => {
  wide = Math.min(Math.max(wide, 16), steps);
  from = Math.min(Math.max(first, 0), steps - wide);
  to = from + wide;
  draw();
};
const zoom = (way, step) => {
  const wide = (to - from) * (way > 0 ? 0.5 : 2);
  look(step - (step - from) / (to - from) * wide, wide);
};
const middle = () => at >= from && at <= to ? at : (from + to) / 2;
const choose = (number) => {
  domain = domains[number];
  $("domain").value = number;  // a browser may keep what was chosen before a reload
  values = domain.values.map((text) => read(text, Float64Array));
  levels = domain.rows.map((each) => read(each.levels, Uint8Array));
  row = -1;
  $("told").textContent = domain.told;
  look(0, steps);
  setAt(steps - 1);
};
const placeOf = (event) => {
  const box = canvas.getBoundingClientRect(), wide = canvas.clientWidth - LEFT - RIGHT;
  const step = from + (event.clientX - box.left - LEFT) / wide * (to - from);
  const found = Math.floor((event.clientY - box.top - top0) / ROW);
  return [Math.min(Math.max(Math.floor(step), from), to - 1), found >= 0 && found < domain.rows.length ? found : -1];
};
let held = null;
canvas.addEventListener("pointerdown", (event) => { held = [event.clientX, from, false]; });
canvas.addEventListener("pointerup", (event) => {
  if (held && !held[2]) setAt(placeOf(event)[0]);
  held = null;
});
canvas.addEventListener("pointermove", (event) => {
  if (held && event.buttons & 1) {
    const moved = event.clientX - held[0];
    held[2] ||= Math.abs(moved) > 3;
    if (held[2]) look(held[1] - moved / (canvas.clientWidth - LEFT - RIGHT) * (to - from), to - from);
    return;
  }
  const [step, found] = placeOf(event);
  row = found;
  $("here").textContent = tellAt(step);
});
canvas.addEventListener("wheel", (event) => {
  if (!event.ctrlKey) return;
  event.preventDefault();
  zoom(-event.deltaY, placeOf(event)[0]);
}, { passive: false });
canvas.addEventListener("keydown", (event) => {
  const go = (step) => { setAt(step); if (at < from || at >= to) look(at - (to - from) / 2, to - from); };
  const pick = (way) => { row = Math.min(Math.max(row + way, -1), domain.rows.length - 1); draw(); setAt(at); };
  const keys = {
    ArrowLeft: () => go(at - 1), ArrowRight: () => go(at + 1), ArrowUp: () => pick(-1), ArrowDown: () => pick(1),
    Home: () => go(0), End: () => go(steps - 1), 0: () => look(0, steps),
    "+": () => zoom(1, middle()), "=": () => zoom(1, middle()), "-": () => zoom(-1, middle()),
  };
  if (event.ctrlKey || event.metaKey || event.altKey || !keys[event.key]) return;
  event.preventDefault();
  keys[event.key]();
});
$("slider").addEventListener("input", () => setAt(+$("slider").value));
$("domain").addEventListener("change", () => choose(+$("domain").value));
$("in").addEventListener("click", () => zoom(1, middle()));
$("out").addEventListener("click", () => zoom(-1, middle()));
$("all").addEventListener("click", () => look(0, steps));
addEventListener("resize", draw);
theme.addEventListener("change", draw);
$("view").hidden = false;
$("still").hidden = true;
choose(0);
""")
