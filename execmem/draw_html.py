"""draw_html: a history of the direct map as one page that needs no network, and nothing but itself.

    page  --- facts, ledger (SVG), tables and notes: readable without scripts
      +------ data: numbers as base64 of little-endian arrays, in JSON that holds no mark of HTML
      +------ SCRIPT: the atlas with zoom and hover, and the slider of time

The frame (``page``) lets the browser run this one script and load nothing. Texts of traces are names that others
chose: they are escaped here, and the script only ever sets them as text.

Everything returns text: no I/O here. Size: 15 bytes for a split, and at most about 9 MB (see ``history``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from execmem import draw_svg
from execmem.directmap.history import REGION, STEPS
from execmem.draw import clean, tell_bytes
from execmem.draw_svg import HIGH, INKS, LEFT, LOOKS, PLOT, tell
from execmem.page import Page, draw_table, make_script, pack, to_json

if TYPE_CHECKING:
    from execmem.directmap.history import Bytes, History

TICKS: Final = (1 << 32) - 1  # the time of a move is so many parts of the whole

# ---- the data ----


def pack_states(states: Bytes) -> dict[str, Any]:
    """Return states as runs, or one by one where that is shorter.

    >>> pack_states(np.repeat(np.array([2, 3], np.uint8), 500))
    {'count': 1000, 'states': 'AgM=', 'runs': '9AEAAPQBAAA='}
    """
    starts = np.flatnonzero(np.append(True, states[1:] != states[:-1])) if len(states) else np.zeros(0, np.intp)
    if 5 * len(starts) < len(states):
        runs = np.diff(starts, append=len(states))
        return {"count": len(states), "states": pack(states[starts], "u1"), "runs": pack(runs, "u4")}
    return {"count": len(states), "states": pack(states, "u1"), "runs": ""}


def pack_history(history: History) -> str:
    """Return what the script draws, as JSON without marks of HTML."""
    scale = TICKS / history.seconds if history.seconds else 0.0
    data = {
        "seconds": history.seconds,
        "looks": {int(state): look._asdict() for state, look in LOOKS.items()},
        "inks": INKS,
        "region": REGION,
        "plot": [LEFT, PLOT, 24, 2 * HIGH + 80],
        "begin": pack_states(history.begin),
        "when": pack(np.minimum(history.when * scale, TICKS), "u4"),
        "where": pack(history.where, "u4"),
        "after": pack(history.after, "u1"),
        "who": pack(history.who, "i2"),
        "suspects": [[one.joined, clean(one.owner), clean(one.why)] for one in history.suspects],
        "counters": [[pack(when, "f4"), pack(values, "f8")] for when, values in history.counters.values()],
        "splits": pack(np.cumsum(history.splits), "f8"),
        "joins": pack(np.cumsum(history.joins), "f8"),
        "live": pack(history.live, "f8"),
        "bytes": pack(history.live_bytes, "f8"),
        "before": int(history.live[0] - history.loads[0] + history.unloads[0]),
    }
    return to_json(data)


# ---- the page ----


def draw_suspects(history: History) -> str:
    """Return the table of who split what."""
    if not history.suspects:
        return "<p>Nothing was split.</p>"
    rows = [
        (
            str(number),
            f"{one.pieces:,}",
            tell_bytes(one.size),
            "joined" if one.joined else "split",
            f"{one.first:,.3f}",
            one.owner or "unattributed",
            one.why,
        )
        for number, one in enumerate(history.suspects, 1)
    ]
    marks = [f' tabindex="0" data-first="{one.first!r}"' for one in history.suspects]
    return draw_table(("", "how many", "of", "what", "first at, s", "suspect", "why"), rows, marks)


def draw_counters(history: History) -> str:
    """Return the table of counters: first, at the time of the slider, last."""
    if not history.counters:
        return "<p>No counters were recorded.</p>"
    rows = [
        (name, f"{values[0]:,.0f}", f"{values[-1]:,.0f}", f"{values[-1]:,.0f}", f"{values[-1] - values[0]:+,.0f}")
        for name, (_, values) in history.counters.items()
    ]
    return draw_table(("counter", "first", "at the slider", "last", "change"), rows)


def draw_page(history: History) -> str:
    """Return the page."""
    title = f"direct map of Linux {history.title}"
    ledger = draw_svg.draw_ledger(history)
    whole = f"{len(history.begin):,} regions of 2 MB"
    if history.seconds:
        whole += f", {len(history.when):,} splits and joins with a place; {history.seconds:,.4g} s recorded"
    notes = "".join(f"<li>{tell(note)}</li>" for note in history.notes)
    timed = "" if history.seconds else " hidden"
    body = f"""<section id="time" aria-label="time"{timed}><label for="slider">time</label>
<input id="slider" type="range" min="-1" max="{STEPS - 1}" value="{STEPS - 1}"><output id="told"></output></section>
<section aria-label="atlas"><div class="bar"><span id="scale"></span><span class="keys">wheel or + and -: zoom; \
drag or arrows: move; n and p: next and previous split</span><button id="in" title="zoom in (+)">+</button>\
<button id="out" title="zoom out (-)">&minus;</button><button id="all" title="all of the map (0)">all</button></div>
<canvas id="atlas" tabindex="0" role="application" aria-label="regions of the direct map; arrow keys move, the line \
below tells what is there"></canvas>
<p id="here" role="status">Point at a region, or press arrow keys in the atlas.</p>
<ul id="legend" aria-label="what the colours mean, from better to worse"></ul>
<noscript><p>The atlas and the slider need scripts; the rest of this page does not.</p></noscript></section>
<section aria-label="ledger"{timed}><h2>Ledger</h2><svg id="ledger" viewBox="0 0 {draw_svg.WIDTH} {ledger.height:g}" \
role="img" aria-label="splits, code that came and went, and suspects">{ledger.body}</svg></section>
<section{timed}><h2>Splits and suspects</h2><div class="roll" id="suspects">{draw_suspects(history)}</div></section>
<section{timed}><h2>Counters</h2><div class="roll" id="counters">{draw_counters(history)}</div></section>
<section><h2>What to mind</h2><ul class="notes"><li>Places are offsets in the direct map, which are physical \
addresses. Rows run from left to right, then down; a cell shows the worst of its regions.</li>{notes}</ul></section>"""
    return Page(title, whole, body, pack_history(history), SCRIPT, STYLE).draw()


STYLE: Final = """
canvas{display:block;width:100%;height:400px;cursor:crosshair;touch-action:pan-y}
#legend{list-style:none;display:flex;flex-wrap:wrap;gap:4px 18px;margin:0;padding:0}
#legend i{display:inline-block;width:18px;height:15px;margin-right:6px;border:1px solid var(--line);vertical-align:-2px}
#ledger{width:100%;height:auto;cursor:pointer}
#suspects td:nth-child(n+6){overflow-wrap:anywhere}th,#suspects td:nth-child(4){white-space:nowrap}
#suspects td:nth-child(-n+3),#suspects td:nth-child(5),#counters td:nth-child(n+2){text-align:right;white-space:nowrap;
font-variant-numeric:tabular-nums}#counters th:nth-child(n+2){text-align:right}
#suspects tbody tr{cursor:pointer}#suspects tbody tr:hover{background:color-mix(in srgb,var(--ink) 8%,transparent)}
"""

SCRIPT: Final = make_script(r"""
// ---- numbers ----
const count = data.begin.count, begin = new Uint8Array(count);
const kinds = read(data.begin.states, Uint8Array);
if (data.begin.runs) {
  let at = 0;
  read(data.begin.runs, Uint32Array).forEach((run, i) => { begin.fill(kinds[i], at, at + run); at += run; });
} else begin.set(kinds);
const when = read(data.when, Uint32Array), where = read(data.where, Uint32Array);
const after = read(data.after, Uint8Array), who = read(data.who, Int16Array);
const [splits, joins, live, bytes] = ["splits", "joins", "live", "bytes"].map((name) => read(data[name], Float64Array));
const counters = data.counters.map(([times, values]) => [read(times, Float32Array), read(values, Float64Array)]);
const steps = splits.length, rank = new Uint8Array(256);
for (const state in data.looks) rank[state] = data.looks[state].rank;

const seconds = (value) => value.toLocaleString("en", { maximumFractionDigits: 3 });
const hex = (value) => "0x" + BigInt(value).toString(16);

// ---- time ----
let now = begin.slice(), done = 0, step = steps - 1;
const setTime = (to) => {
  step = Math.min(Math.max(Math.round(to), -1), steps - 1);
  const upto = step < 0 ? -1 : step === steps - 1 ? 2 ** 32 : (step + 1) / steps * (2 ** 32 - 1);
  if (done && when[done - 1] > upto) { now = begin.slice(); done = 0; }
  for (; done < when.length && when[done] <= upto; done++) now[where[done]] = after[done];
  const time = data.seconds * (step + 1) / steps;
  $("slider").value = step;
  const words = step < 0
    ? `0 s: nothing has happened; pieces of code that were there before: ${many(data.before)}`
    : `${seconds(time)} s: ${many(splits[step])} split so far, ${many(joins[step])} joined; ` +
      `pieces of code live: ${many(live[step])}, ${size(bytes[step], 1)}`;
  $("told").textContent = words;
  $("slider").setAttribute("aria-valuetext", words);
  counters.forEach(([times, values], i) => {
    let at = 0;
    while (at + 1 < times.length && times[at + 1] <= time * 1.0000001) at++;
    $("counters").querySelectorAll("tbody tr")[i].cells[2].textContent = many(values[at]);
  });
  for (const name of ["x1", "x2"]) cursor.setAttribute(name, data.plot[0] + data.plot[1] * (step + 1) / steps);
  drawLegend();
  draw();
  if (here >= 0) tellHere();
};
const ledger = $("ledger"), cursor = document.createElementNS("http://www.w3.org/2000/svg", "line");
for (const [name, value] of [["y1", data.plot[2]], ["y2", data.plot[3]], ["class", "em-ink-l"], ["stroke-width", 1.5]])
  cursor.setAttribute(name, value);
ledger.append(cursor);
const seek = (event) => {
  const box = ledger.getBoundingClientRect(), x = (event.clientX - box.left) / box.width * ledger.viewBox.baseVal.width;
  if (x >= data.plot[0] - 8 && x <= data.plot[0] + data.plot[1] + 8)
    setTime((x - data.plot[0]) / data.plot[1] * steps - 1);
};
ledger.addEventListener("pointerdown", seek);
ledger.addEventListener("pointermove", (event) => { if (event.buttons & 1) seek(event); });
$("slider").addEventListener("input", () => setTime(+$("slider").value));

// ---- the atlas ----
const ROWS = 32, CELLS = 512, LEAST = 32, AXIS = 86, TOP = 4;
const canvas = $("atlas"), pen = canvas.getContext("2d");
const theme = matchMedia("(prefers-color-scheme: dark)");
const ink = (name) => data.inks[name][theme.matches ? 1 : 0];
const colour = (state) => data.looks[state][theme.matches ? "dark" : "light"];
let most = 64;
while (most * ROWS < count) most *= 2;
let inRow = most, start = 0, here = -1;
const shape = () => {
  const rows = Math.max(1, Math.min(ROWS, Math.ceil(count / inRow)));
  const each = Math.max(1, inRow / CELLS), across = inRow / each;
  const wide = (canvas.clientWidth - AXIS - 2) / across, high = Math.min((canvas.clientHeight - 2 * TOP) / rows, 22);
  return { rows, each, across, wide, high };
};
const worst = (from, each) => {
  let found = -1;
  for (let i = from, end = Math.min(from + each, count); i < end; i++)
    if (found < 0 || rank[now[i]] > rank[now[found]]) found = i;
  return found;
};
const draw = () => {
  const { rows, each, across, wide, high } = shape(), dots = devicePixelRatio || 1;
  const last = Math.max(0, Math.ceil(count / each) * each - rows * inRow);
  start = Math.min(Math.max(start - start % each, 0), last);
  if (canvas.width !== Math.round(canvas.clientWidth * dots)) canvas.width = Math.round(canvas.clientWidth * dots);
  if (canvas.height !== Math.round(canvas.clientHeight * dots)) canvas.height = Math.round(canvas.clientHeight * dots);
  pen.setTransform(dots, 0, 0, dots, 0, 0);
  pen.clearRect(0, 0, canvas.clientWidth, canvas.clientHeight);
  pen.font = "11px system-ui, 'DejaVu Sans', sans-serif";
  pen.textBaseline = "middle";
  for (let row = 0; row < rows; row++) {
    const first = start + row * inRow, y = TOP + row * high;
    if (first >= count) break;
    pen.fillStyle = ink("dim");
    pen.textAlign = "right";
    pen.fillText(+(first * data.region / 2 ** 30).toFixed(3) + " GB", AXIS - 8, y + high / 2);
    pen.textAlign = "center";
    for (let cell = 0; cell < across;) {
      const region = worst(first + cell * each, each), from = cell++;
      if (region < 0) break;
      const state = now[region];
      for (let next; cell < across && (next = worst(first + cell * each, each)) >= 0 && now[next] === state;) cell++;
      pen.fillStyle = colour(state);
      pen.fillRect(AXIS + from * wide, y, Math.max((cell - from) * wide, 1), high - 1);
      if (wide >= 11 && rank[state] > 3) {
        pen.fillStyle = state === 5 ? ink("page") : "#000";
        if (state === 4) pen.fillStyle = theme.matches ? "#000" : "#fff";
        for (let at = from; at < cell; at++)
          pen.fillText(data.looks[state].letter, AXIS + (at + 0.5) * wide, y + high / 2);
      }
    }
  }
  if (here >= start && here < start + rows * inRow) {
    const at = here - start;
    const x = AXIS + Math.floor(at % inRow / each) * wide, y = TOP + Math.floor(at / inRow) * high;
    for (const [name, gap] of [["ink", 1.5], ["page", 3], ["ink", 4.5]]) {
      pen.strokeStyle = ink(name);
      pen.lineWidth = 1.5;
      pen.strokeRect(x - gap, y - gap, Math.max(wide, 2) + 2 * gap, high - 1 + 2 * gap);
    }
  }
  canvas.dataset.start = start;
  canvas.dataset.row = inRow;
  const scale = `${size(inRow * data.region)} a row, ${size(each * data.region)} a cell`;
  $("scale").textContent = count ? scale : "no region is known";
};
const placeOf = (event) => {
  const box = canvas.getBoundingClientRect(), { wide, high } = shape();
  return [Math.floor((event.clientY - box.top - TOP) / high), (event.clientX - box.left - AXIS) / wide];
};
const regionAt = (event) => {
  const { rows, each, across } = shape(), [row, cell] = placeOf(event);
  if (row < 0 || row >= rows || cell < 0 || cell >= across) return -1;
  return worst(start + row * inRow + Math.floor(cell) * each, each);
};
const look = (state) => `${data.looks[state].letter} ${data.looks[state].words}`;
const tellHere = () => {
  const { each } = shape(), from = here - here % each, parts = [];
  if (each > 1) {
    const sums = new Map();
    for (let i = from; i < Math.min(from + each, count); i++) sums.set(now[i], (sums.get(now[i]) || 0) + 1);
    const told = [...sums].sort((a, b) => rank[b[0]] - rank[a[0]]).map(([state, n]) => `${n} ${look(state)}`);
    parts.push(`A cell of ${each} regions: ${told.join(", ")}. The worst, first of its kind:`);
  }
  const at = here * data.region;
  parts.push(`${size(at)}, ${hex(at)} to ${hex(at + data.region - 1)}: ${look(now[here])}.`);
  const found = [];
  for (let i = 0; i < done; i++) if (where[i] === here) found.push(i);
  if (found.length) {
    const name = (i) => {
      const [joined, owner, why] = data.suspects[who[i]] || [after[i] === 2, "", "one of those that are not listed"];
      return `${joined ? "joined" : "split"} at ${seconds(when[i] / (2 ** 32 - 1) * data.seconds)} s by ` +
        `${owner || "nobody known"} (${why})`;
    };
    parts.push(`First seen: ${name(found[0])}.`);
    if (found.length > 1) parts.push(`Last of ${found.length}: ${name(found[found.length - 1])}.`);
  } else parts.push(data.seconds ? "Not split or joined by then in this trace." : "");
  $("here").textContent = parts.join(" ");
};
const pick = (region) => {
  if (region < 0 || region >= count || region === here) return;
  here = region;
  const { rows, each } = shape();
  if (here < start) start = here - here % inRow;
  if (here >= start + rows * inRow) start = here - here % inRow - (rows - 1) * inRow;
  draw();
  tellHere();
};
const zoom = (way, region, event) => { // what is below the pointer stays there; without one rows begin at round places
  const next = Math.min(Math.max(way > 0 ? inRow / 2 : inRow * 2, Math.min(LEAST, most)), most);
  if (next === inRow) return;
  const row = Math.floor((region - start) / inRow);
  inRow = next;
  start = region - region % inRow - row * inRow;
  if (event) {
    const [y, cell] = placeOf(event), { each, across } = shape();
    start = region - Math.min(Math.floor(cell), across - 1) * each - y * inRow;
  }
  draw();
  if (here >= 0) tellHere();
};
const middle = () => here >= 0 ? here : Math.min(start + Math.floor(shape().rows / 2) * inRow, Math.max(count - 1, 0));
const all = () => { inRow = most; start = 0; draw(); };
const isSplit = (state) => rank[state] > 3;
const hunt = (way) => {
  for (let i = here + way; i >= 0 && i < count; i += way) if (isSplit(now[i])) return pick(i);
};
let grip = null;
canvas.addEventListener("wheel", (event) => {
  const region = regionAt(event);
  if (region < 0) return;
  event.preventDefault();
  zoom(-event.deltaY, region, event);
}, { passive: false });
canvas.addEventListener("pointerdown", (event) => {
  grip = { x: event.clientX, y: event.clientY, start };
  canvas.setPointerCapture(event.pointerId);
  pick(regionAt(event));
});
canvas.addEventListener("pointerup", () => { grip = null; });
canvas.addEventListener("pointercancel", () => { grip = null; });
canvas.addEventListener("pointermove", (event) => {
  if (grip) {
    const { each, wide, high } = shape();
    const down = Math.round((event.clientY - grip.y) / high), right = Math.round((event.clientX - grip.x) / wide);
    start = grip.start - down * inRow - right * each;
    draw();
  } else pick(regionAt(event));
});
canvas.addEventListener("keydown", (event) => {
  const { rows, each } = shape(), from = Math.max(here, 0);
  const go = (by) => pick(Math.min(Math.max(from + by, 0), count - 1));
  const keys = {
    ArrowLeft: () => go(-each), ArrowRight: () => go(here < 0 ? 0 : each),
    ArrowUp: () => go(-inRow), ArrowDown: () => go(inRow),
    PageUp: () => go(-rows * inRow), PageDown: () => go(rows * inRow), Home: () => go(-count), End: () => go(count),
    "+": () => zoom(1, middle()), "=": () => zoom(1, middle()), "-": () => zoom(-1, middle()), 0: all,
    n: () => hunt(1), p: () => hunt(-1),
  };
  if (event.ctrlKey || event.metaKey || event.altKey || !count || !keys[event.key]) return;
  event.preventDefault();
  keys[event.key]();
});
$("in").addEventListener("click", () => zoom(1, middle()));
$("out").addEventListener("click", () => zoom(-1, middle()));
$("all").addEventListener("click", all);

// ---- what is beside it ----
const drawLegend = () => {
  const sums = new Float64Array(256);
  for (let i = 0; i < count; i++) sums[now[i]]++;
  const order = Object.keys(data.looks).sort((a, b) => rank[a] - rank[b]).filter((state) => sums[state]);
  const words = document.createElement("li");
  words.textContent = "better to worse:";
  $("legend").replaceChildren(words, ...order.map((state) => {
    const item = document.createElement("li"), box = document.createElement("i");
    box.style.background = colour(state);
    item.append(box, `${look(state)}: ${many(sums[state])}`);
    return item;
  }));
};
const visit = (row, number) => {
  setTime(Math.ceil(+row.dataset.first / data.seconds * steps) - 1);
  const move = who.indexOf(number);
  if (move >= 0) pick(where[move]);
};
document.querySelectorAll("#suspects tbody tr").forEach((row, number) => {
  row.title = "show when and where";
  row.addEventListener("click", () => visit(row, number));
  row.addEventListener("keydown", (event) => { if (event.key === "Enter") visit(row, number); });
});
theme.addEventListener("change", () => { drawLegend(); draw(); });
addEventListener("resize", draw);
setTime(steps - 1);
""")
