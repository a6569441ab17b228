"""draw_html_replay: what policies would have made of a workload, as one page that needs no network.

The table, the differences and the curves are there without scripts. With its script (in the frame of ``page``) curves
zoom, a slider goes through the workload, policies are shown or hidden, and any of them is the one to compare with.
Everything returns text: no I/O here. Of a curve there are up to 2,000 points, for
zooming: 0.1 MB with the six policies, 0.5 MB at most.
"""

from __future__ import annotations

from typing import Any, Final

from execmem import draw_svg_replay
from execmem.directmap.replay import FIGURES, GIVEN, differ
from execmem.draw import clean
from execmem.draw_svg import LEFT, WIDTH, tell
from execmem.draw_svg_replay import HIGH, LINES, NOTES, PLOT, Comparison, look_of
from execmem.page import Page, make_script, to_json

# ---- the data ----


def keep_changes(points: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the points of a curve of steps that do not repeat the value before them, and its end.

    >>> keep_changes([(0, 1), (1, 1), (2, 3), (3, 3), (4, 3)])
    [(0, 1), (2, 3), (4, 3)]
    """
    changes = [point for before, point in zip([(0, None), *points], points, strict=False) if before[1] != point[1]]
    return changes if changes[-1:] == points[-1:] else [*changes, points[-1]]


def pack_replay(given: Comparison) -> str:
    """Return what the script draws."""
    policies = [
        {
            "look": look_of(number),
            "letter": LINES[look_of(number)].letter,
            "name": clean(row.policy),
            "splits": row.over_time,
            "held": keep_changes([(at, held) for at, _, held in row.memory]),
            "figures": [figure.take(row) for figure in FIGURES],
        }
        for number, row in enumerate(given.results)
    ]
    data: dict[str, Any] = {
        "rows": max(given.rows, 1),
        "against": given.against,
        "plot": [LEFT, PLOT, 24, HIGH],
        "figures": [[figure.unit, figure.digits, figure.name not in GIVEN] for figure in FIGURES],
        "live": keep_changes([(at, live) for at, live, _ in given.base.memory]),
        "policies": policies,
    }
    return to_json(data)


# ---- the page ----


def draw_swatch(number: int) -> str:
    """Return a piece of a policy's line, for a cell."""
    return f'<svg width="34" height="10" aria-hidden="true">{draw_svg_replay.draw_swatch(number, 2, 5)}</svg>'


def draw_table(given: Comparison) -> str:
    """Return the table of figures, with what shows a policy and what compares with it."""
    heads = "".join(f'<th scope="col">{tell(figure.words)}</th>' for figure in FIGURES)
    rows = []
    best = [draw_svg_replay.find_best(figure, given.results) for figure in FIGURES]
    for number, row in enumerate(given.results):
        name = tell(draw_svg_replay.name_of(number, row))
        told = [figure.tell(figure.take(row)) for figure in FIGURES]
        cells = "".join(
            f"<td{' class=best' * (cell == least)}>{cell}</td>" for cell, least in zip(told, best, strict=True)
        )
        checked = " checked" * (number == given.against)
        rows.append(
            f'<tr><td><label><input type="checkbox" checked aria-label="show {name}">{draw_swatch(number)}{name}'
            f'</label></td><td><input type="radio" name="against"{checked} aria-label="compare with {name}"></td>'
            f'<td class="now"></td><td class="now"></td>{cells}</tr>\n'
        )
    now = '<th scope="col">split by the slider</th><th scope="col">held, MB, at the slider</th>'
    return (
        f'<table><thead><tr><th scope="col">policy</th><th scope="col">compare with</th>{now}{heads}</tr></thead>'
        f"<tbody>\n{''.join(rows)}</tbody></table>"
    )


def draw_differences(given: Comparison) -> str:
    """Return the table of differences."""
    figures = [figure for figure in FIGURES if figure.name not in GIVEN]
    heads = "".join(f'<th scope="col">{tell(figure.words)}</th>' for figure in figures)
    rows = []
    for number, row in enumerate(given.results):
        changes = differ(row, given.base)
        cells = "".join(
            f'<td class="{"better" if changes[figure.name] < 0 else "worse"}">'
            f"{figure.tell_change(changes[figure.name])}</td>"
            for figure in figures
        )
        hidden = " hidden" * (number == given.against)
        name = tell(draw_svg_replay.name_of(number, row))
        rows.append(f"<tr{hidden}><td>{draw_swatch(number)}{name}</td>{cells}</tr>\n")
    return f'<table><thead><tr><th scope="col">policy</th>{heads}</tr></thead>\n<tbody>{"".join(rows)}</tbody></table>'


def draw_page(given: Comparison) -> str:
    """Return the page."""
    charts = "".join(
        f'<h2>{title}</h2><svg id="{name}" class="chart" tabindex="0" viewBox="0 18 {WIDTH} {part.height - 18:g}" '
        f'role="img" aria-label="{title}; arrow keys move, the line above tells what is there">{part.body}</svg>\n'
        for name, title, part in (
            ("splits", "Regions split so far (lower is better)", draw_svg_replay.draw_curves(given)),
            (
                "held",
                "Memory held for code, MB (lower is better); grey: the code that lives",
                draw_svg_replay.draw_memory(given),
            ),
        )
    )
    body = f"""<section id="time" aria-label="place in the workload"><label for="slider">loads and unloads</label>
<input id="slider" type="range" min="0" max="{max(given.rows, 1)}" value="{max(given.rows, 1)}">\
<output id="told"></output></section>
<section aria-label="figures"><p class="say">Lower is better in every column; bold is the least.</p>
<div class="roll" id="figures">{draw_table(given)}</div></section>
<section aria-label="differences"><h2>Against <span id="against">\
{tell(draw_svg_replay.name_of(given.against, given.base))}</span></h2>
<p class="say">Below 0 is better, = is the same.</p><div class="roll" id="differences">{draw_differences(given)}</div>
</section>
<section aria-label="curves"><div class="bar"><span class="keys">wheel or + and -: zoom; arrow keys: move; \
a click or drag: the slider goes there; a policy that is not shown gives the others room</span>\
<button id="in" title="zoom in (+)">+</button><button id="out" title="zoom out (-)">&minus;</button>\
<button id="all" title="all of it (0)">all</button></div>
<p id="here" role="status">Point at a curve.</p>
{charts}<noscript><p>Zoom and slider need scripts; the rest of this page does not.</p></noscript></section>
<section><h2>What to mind</h2><ul class="notes">{"".join(f"<li>{tell(note)}</li>" for note in NOTES)}</ul></section>"""
    looks = draw_svg_replay.style() + STYLE
    return Page(f"what if: {given.title}", given.facts, body, pack_replay(given), SCRIPT, looks).draw()


STYLE: Final = """
.say{margin:4px 0;color:var(--dim)}.chart{width:100%;height:auto;cursor:crosshair;touch-action:pan-y}
.roll table{font-variant-numeric:tabular-nums;font-size:12.5px}
.roll th,.roll td{text-align:right;padding:3px 7px;vertical-align:middle}
.roll th:first-child,.roll td:first-child{text-align:left;white-space:nowrap}
#figures td:nth-child(2){text-align:center}.roll svg{vertical-align:0;margin:0 6px}.best{font-weight:700}
.now{background:color-mix(in srgb,var(--giant) 12%,transparent)}.better{color:var(--came)}.worse{color:var(--went)}
"""

SCRIPT: Final = make_script(r"""
const { rows, policies, live, figures } = data, [LEFT, PLOT, TOP, HIGH] = data.plot, BASE = TOP + HIGH, MB = 2 ** 20;
let from = 0, to = rows, at = rows, hover = -1, against = data.against;
const shown = policies.map(() => true);
const number = (value, digits) =>
  value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
const nameOf = (policy) => `${policy.letter} ${policy.name}`;
const valueAt = (points, row) => {
  let low = 0, high = points.length - 1;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (points[middle][0] <= row) low = middle; else high = middle - 1;
  }
  return points[low][1];
};

// ---- charts ----
const make = (name, attributes, text) => {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const key in attributes) node.setAttribute(key, attributes[key]);
  if (text !== undefined) node.textContent = text;
  return node;
};
const write = (x, y, text, look, anchor = "start") =>
  make("text", { x, y, class: `em em-m ${look}`, "text-anchor": anchor }, text);
const roundUp = (most) => {
  const step = 10 ** Math.max(0, Math.ceil(Math.log10(Math.max(most, 1))) - 1);
  return step * [1, 2, 5, 10].find((times) => step * times >= most || times === 10);
};
const ticks = () => {
  const power = 10 ** Math.floor(Math.log10(to - from));
  const step = Math.max(1, power * [0.1, 0.2, 0.5, 1].find((times) => (to - from) / (power * times) <= 10));
  const found = [];
  for (let tick = Math.ceil(from / step) * step; tick <= to; tick += step) found.push(tick);
  return found;
};
const across = (row) => LEFT + PLOT * (row - from) / (to - from);
const spread = (wanted) => {
  const found = [];
  wanted.forEach((y, i) => found.push(i ? Math.max(y, found[i - 1] + 16) : y));
  for (let i = found.length - 1; i >= 0; i--)
    found[i] = Math.min(found[i], i === found.length - 1 ? BASE : found[i + 1] - 16);
  return found;
};
const charts = [
  { svg: $("splits"), points: policies.map((one) => one.splits), area: null, unit: 1, digits: 0 },
  { svg: $("held"), points: policies.map((one) => one.held), area: live, unit: MB, digits: 1 },
];
const drawChart = ({ svg, points, area, unit, digits }) => {
  const visible = policies.map((_, i) => i).filter((i) => shown[i]);
  const drawn = [area || [], ...visible.map((i) => points[i])].flat();
  const most = drawn.reduce((above, point) => Math.max(above, point[1]), 0);
  const ceiling = roundUp(most / unit), height = (value) => BASE - HIGH * value / unit / ceiling;
  const steps = (series) => {
    let path = `M${LEFT} ${height(valueAt(series, from))}`;
    for (const [row, value] of series) if (row > from && row <= to) path += `H${across(row)}V${height(value)}`;
    return `${path}H${LEFT + PLOT}`;
  };
  const out = [];
  if (area) out.push(make("path", { class: "em-line", d: `${steps(area)}V${BASE}H${LEFT}z` }));
  for (const share of [0, 0.25, 0.5, 0.75, 1]) {
    const y = BASE - HIGH * share;
    out.push(make("path", { class: "em-n em-line-l", d: `M${LEFT} ${y}h${PLOT}` }));
    if (share % 0.5 === 0) out.push(write(LEFT - 8, y + 4, (ceiling * share).toLocaleString("en"), "em-dim", "end"));
  }
  for (const tick of ticks()) {
    out.push(make("path", { class: "em-n em-line-l", d: `M${across(tick)} ${BASE}v5` }));
    out.push(write(across(tick), BASE + 18, tick.toLocaleString("en"), "em-dim", "middle"));
  }
  out.push(write(LEFT + PLOT, BASE + 34, "loads and unloads", "em-dim", "end"));
  for (const i of visible) out.push(make("path", { class: `em-n em-p${policies[i].look}-l`, d: steps(points[i]) }));
  const end = (i) => height(valueAt(points[i], to));
  const order = [...visible].sort((a, b) => end(a) - end(b) || a - b);
  spread(order.map(end)).forEach((y, place) => {
    const i = order[place], x = LEFT + PLOT, value = number(valueAt(points[i], to) / unit, digits);
    out.push(make("path", { class: "em-n em-dim-l", d: `M${x + 2} ${end(i)}L${x + 18} ${y}` }));
    out.push(write(x + 22, y + 4, `${nameOf(policies[i])}: ${value}`, "em-ink"));
  });
  for (const [row, dashes] of [[at, "none"], [hover, "3 3"]]) {
    const looks = { class: "em-n em-ink-l", "stroke-width": 1.5, "stroke-dasharray": dashes };
    if (row >= from && row <= to) out.push(make("path", { ...looks, d: `M${across(row)} ${TOP}V${BASE}` }));
  }
  svg.replaceChildren(...out);
  svg.dataset.from = from;
  svg.dataset.to = to;
  svg.dataset.ceiling = ceiling;
};
const draw = () => charts.forEach(drawChart);

// ---- what is told ----
const tellAt = (row) => {
  const parts = policies.map((one, i) => shown[i] &&
    `${nameOf(one)}: ${many(valueAt(one.splits, row))} split, ${number(valueAt(one.held, row) / MB, 1)} MB held`);
  const alive = number(valueAt(live, row) / MB, 1);
  return `After ${many(row)} of ${many(rows)} loads and unloads, ${alive} MB of code live. ` +
    parts.filter(Boolean).join("; ");
};
const setAt = (row) => {
  at = Math.min(Math.max(Math.round(row), 0), rows);
  $("slider").value = at;
  const words = `${many(at)} of ${many(rows)}; code that lives: ${number(valueAt(live, at) / MB, 1)} MB`;
  $("told").textContent = words;
  $("slider").setAttribute("aria-valuetext", words);
  policies.forEach((one, i) => {
    const cells = lines[i].querySelectorAll(".now");
    cells[0].textContent = many(valueAt(one.splits, at));
    cells[1].textContent = number(valueAt(one.held, at) / MB, 1);
  });
  draw();
};
const [lines, changes] = ["figures", "differences"].map((name) => [...$(name).querySelectorAll("tbody tr")]);
const compare = () => {
  $("against").textContent = nameOf(policies[against]);
  changes.forEach((line, i) => {
    line.hidden = i === against || !shown[i];
    let cell = 1;
    figures.forEach(([unit, digits, changing], figure) => {
      if (!changing) return;
      const change = policies[i].figures[figure] - policies[against].figures[figure], here = line.cells[cell++];
      const told = number(Math.abs(change) / unit, digits);
      const none = !/[1-9]/.test(told);
      here.textContent = none ? "=" : (change < 0 ? "-" : "+") + told;
      here.className = none ? "" : change < 0 ? "better" : "worse";
    });
  });
};
lines.forEach((line, i) => {
  const [show, choose] = line.querySelectorAll("input");
  show.addEventListener("change", () => { shown[i] = show.checked; compare(); draw(); });
  choose.addEventListener("change", () => { against = i; compare(); });
  show.checked = true;
  choose.checked = i === against;
});

// ---- moving ----
const look = (first, wide) => {
  wide = Math.min(Math.max(wide, Math.min(10, rows)), rows);
  from = Math.min(Math.max(first, 0), rows - wide);
  to = from + wide;
  draw();
};
const zoom = (way, row) => {
  const wide = (to - from) * (way > 0 ? 0.5 : 2);
  look(row - (row - from) / (to - from) * wide, wide);
};
const middle = () => at >= from && at <= to ? at : (from + to) / 2;
const rowAt = (svg, event) => {
  const box = svg.getBoundingClientRect(), x = (event.clientX - box.left) / box.width * svg.viewBox.baseVal.width;
  return Math.min(Math.max(from + (x - LEFT) / PLOT * (to - from), from), to);
};
for (const { svg } of charts) {
  const roll = (event) => { event.preventDefault(); zoom(-event.deltaY, rowAt(svg, event)); };
  svg.addEventListener("wheel", roll, { passive: false });
  svg.addEventListener("pointerdown", (event) => { setAt(rowAt(svg, event)); });
  svg.addEventListener("pointermove", (event) => {
    hover = Math.round(rowAt(svg, event));
    $("here").textContent = tellAt(hover);
    if (event.buttons & 1) setAt(hover); else draw();
  });
  svg.addEventListener("pointerleave", () => { hover = -1; draw(); });
  svg.addEventListener("keydown", (event) => {
    const wide = to - from, keys = {
      ArrowLeft: () => look(from - wide / 8, wide), ArrowRight: () => look(from + wide / 8, wide),
      Home: () => look(0, wide), End: () => look(rows, wide),
      "+": () => zoom(1, middle()), "=": () => zoom(1, middle()), "-": () => zoom(-1, middle()), 0: () => look(0, rows),
    };
    if (event.ctrlKey || event.metaKey || event.altKey || !keys[event.key]) return;
    event.preventDefault();
    keys[event.key]();
  });
}
$("slider").addEventListener("input", () => { setAt(+$("slider").value); $("here").textContent = tellAt(at); });
$("in").addEventListener("click", () => zoom(1, middle()));
$("out").addEventListener("click", () => zoom(-1, middle()));
$("all").addEventListener("click", () => look(0, rows));
compare();
setAt(rows);
""")
