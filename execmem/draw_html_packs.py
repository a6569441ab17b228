"""draw_html_packs: packs as one page that needs no network, and nothing but itself.

    page  --- heads, tables of owners and ages, notes: readable without scripts
      +------ data: a column of numbers for each property of blocks, deflated and as base64, in JSON
      +------ SCRIPT: bars of all packs with zoom and hover, below them the 64 kB rows of one, then a row's chunks

Names are of other processes: they are escaped here, and the script only ever sets them as text. Everything returns
text: no I/O here. Size: 4 to 12 bytes a block. A page over 9.5 MB is made again without names, then with fewer packs.
"""

from __future__ import annotations

import base64
import zlib
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from execmem import draw_packs
from execmem.draw import clean, tell_bytes
from execmem.draw_packs import AGE_COLOURS, AGE_LETTERS, OWNER_COLOURS, OWNER_LETTERS, tell_age
from execmem.draw_svg import INKS, shorten, tell
from execmem.draw_svg_packs import PLAIN, rgb
from execmem.page import Page, draw_table, make_script, to_json
from execmem.survey import AGES, BLOCK_STATES, OTHER, OWNERS_SHOWN, ranges

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from execmem.survey import DomainFacts, PackBlocks, PackFacts, Share

BYTES_MAX: Final = 9_500_000  # of a page
PACKS_MAX: Final = 4096  # in a page
NAME_MAX: Final = 200  # letters of a name
OWNERS_MAX: Final = 200  # lines of the table
OWNERS_NAMED: Final = 20_000  # of a domain, told of a block


class Held(NamedTuple):
    """The blocks of a pack, and of its usable chunks which are in use by none of them."""

    blocks: PackBlocks
    alone: npt.NDArray[np.bool_]


class Told(NamedTuple):
    """A domain, and by number what its packs hold."""

    facts: DomainFacts
    held: dict[int, Held]


# ---- the data ----


def deflate(raw: bytes) -> str:
    """Return bytes deflated, as base64."""
    return base64.b64encode(zlib.compress(raw, 6)).decode()


def deflate_numbers(parts: Sequence[npt.NDArray[Any]], kind: str) -> str:
    """Return arrays, one after the other, as little-endian numbers of a kind, deflated."""
    whole = np.concatenate([*parts, np.zeros(0, np.int64)])
    return deflate(whole.astype(f"<{kind}").tobytes())


def pack_head(pack: PackFacts, domain: int, held: Held) -> dict[str, Any]:
    """Return what the script is told of a pack beside its blocks."""
    said = [f"a span of {pack.packs} packs" if pack.state == "span" else pack.state] * (pack.state != "full")
    oldest = "" if pack.oldest_ms is None else f", oldest {tell_age(pack.oldest_ms)}"
    facts = [f"{pack.fill * 100:.1f} %", tell_bytes(pack.largest_free_bytes), f"{pack.blocks:,}"]
    more = [*said, *draw_packs.notes(pack), f"made {tell_age(pack.age_ms)} ago{oldest}"]
    if pack.pinned_by is not None:
        more.append(f"pinned by {', '.join(shorten(name, 60) for name in pack.pinned_by) or 'no live block'}")
    return {
        "domain": domain,
        "number": pack.number,
        "kind": pack.kind,
        "base": f"{pack.address:#x}",
        "usable": len(held.alone),
        "count": len(held.blocks.blocks),
        "facts": facts,
        "badge": draw_packs.tell_pages(pack.pages),
        "huge": bool(pack.pages.huge_bytes),
        "more": more,
    }


def pack_domains(domains: Sequence[Told], most: int, *, named: bool) -> dict[str, Any]:
    """Return what the script draws: at most so many packs, with the names of blocks or without."""
    heads: list[dict[str, Any]] = []
    columns: dict[str, list[npt.NDArray[Any]]] = {
        key: [] for key in ("first", "size", "age", "state", "owner", "alone")
    }
    names: list[str] = []
    owners: list[list[str]] = []
    for place, (facts, held) in enumerate(domains):
        known = [share.name for share in facts.owners or []][:OWNERS_NAMED]
        numbers = {name: rank for rank, name in enumerate(known)}
        owners.append([*(shorten(name, NAME_MAX) for name in known), "one of those with fewest bytes"])
        for pack in facts.packs[: most - len(heads)]:
            inside = held[pack.number]
            found = inside.blocks
            heads.append(pack_head(pack, place, inside))
            first, _ = ranges(found.blocks, pack.address)
            columns["first"].append(np.diff(first, prepend=0))
            columns["size"].append(found.blocks["size"])
            columns["age"].append(np.diff(found.ages, prepend=0))
            columns["state"].append(found.blocks["state"])
            ranks = np.array([numbers.get(owner, len(known)) for owner in found.owners], dtype=np.int64)
            columns["owner"].append(ranks[found.which] if len(found.which) else found.which)
            columns["alone"].append(np.packbits(inside.alone, bitorder="little"))
            if named:
                names += [shorten(name, NAME_MAX) for name in found.names]
    kinds = {"first": "u2", "size": "u4", "age": "i8", "state": "u1", "owner": "u4", "alone": "u1"}
    packed = {key: deflate_numbers(parts, kinds[key]) for key, parts in columns.items()}
    packed["names"] = deflate("\n".join(names).encode()) if named else ""  # a name that is clean has no end of line
    return {"heads": heads, "owners": owners, "columns": packed}


def size_of(packed: dict[str, Any]) -> int:
    """Return about how many bytes the data of a page takes."""
    whole = sum(map(len, packed["columns"].values())) + len(to_json({"heads": packed["heads"]}).encode())
    return whole + len(to_json({"owners": packed["owners"]}).encode())


def pack_within(domains: Sequence[Told], room: int) -> tuple[dict[str, Any], list[str]]:
    """Return the data of a page that has so much room, and notes about what is left out."""
    whole = sum(len(told.facts.packs) for told in domains)
    most, named, notes = min(whole, PACKS_MAX), True, []
    packed = pack_domains(domains, most, named=named)
    while size_of(packed) > room and most > 1:
        most, named = (most // 2, named) if not named else (most, False)
        packed = pack_domains(domains, most, named=named)
    if not named:
        notes.append("The names of blocks would make this page too large: it tells their owners only.")
    left = whole - most + sum(told.facts.packs_left_out for told in domains)
    if left:
        notes.append(f"{left:,} packs are not in this page, which would become too large; owners and ages count them.")
    return packed, notes


# ---- the page ----


def draw_shares(what: str, shares: Sequence[Share]) -> str:
    """Return the table of blocks by owner or by age."""
    total = sum(share.bytes for share in shares) or 1
    letters = OWNER_LETTERS if what == "owner" else AGE_LETTERS
    ages = [text for _, text in AGES]
    rows = []
    for place, share in enumerate(shares[:OWNERS_MAX]):
        kind = min(place, OTHER) if what == "owner" else ages.index(share.name)
        cells = (f"{share.blocks:,}", tell_bytes(share.bytes), f"{share.bytes / total * 100:.1f} %")
        name = shorten(share.name, NAME_MAX)
        rows.append((letters[kind], name, *cells, tell_age(share.youngest_ms), tell_age(share.oldest_ms)))
    table = draw_table(("", what, "blocks", "bytes", "share", "youngest", "oldest"), rows)
    rest = len(shares) - OWNERS_MAX
    return f'<div class="roll shares">{table}{f"<p>and {rest:,} more</p>" if rest > 0 else ""}</div>'


def draw_domain(facts: DomainFacts) -> str:
    """Return what is told of a domain as a whole."""
    first, *more = draw_packs.head(facts, PLAIN)
    lines = "<br>".join(tell(line) for line in more)
    tables = draw_shares("owner", facts.owners or []) + draw_shares("age", facts.ages or [])
    shown = f'<div class="pair">{tables}</div>' if facts.packs else ""
    return f"<section><h2>{tell(first)}</h2><p>{lines}</p>{shown}</section>"


def draw_page(domains: Sequence[Told], title: str, by: str) -> str:
    """Return the page; `by` is what colours tell at first, "age" or "owner"."""
    rest = "\n".join(draw_domain(told.facts) for told in domains)
    packed, notes = pack_within(domains, BYTES_MAX - len(rest.encode()) - len(SCRIPT) - 40_000)
    ages = [[text, edge] for edge, text in AGES]
    data = packed | {
        "inks": INKS,
        "by": "owner" if by == "owner" else "age",
        "domains": [clean(told.facts.name) for told in domains],
        "states": BLOCK_STATES,
        "ages": ages,
        "shown": OWNERS_SHOWN,
        "colours": {"age": [*map(rgb, AGE_COLOURS)], "owner": [*map(rgb, OWNER_COLOURS)]},
        "letters": {"age": AGE_LETTERS, "owner": OWNER_LETTERS},
    }
    for told in domains:
        notes += [f"pages: not available: {reason}" for reason in draw_packs.tell_no_pages(told.facts)]
        notes += [draw_packs.SEVERAL_MOMENTS] * (told.facts.of_one_moment is False)
    listed = "".join(f"<li>{tell(note)}</li>" for note in notes)
    packs, blocks = (sum(getattr(told.facts, what) for told in domains) for what in ("packs_live", "live_blocks"))
    body = f"""<section aria-label="packs"><div class="bar"><span id="scale"></span><span class="keys">\
click or Enter: into a pack; \
Ctrl and wheel, + and -: zoom; drag: move; arrows: from block to block, from pack to pack</span>
<label>colour <select id="by"><option value="age">age</option><option value="owner">owner</option></select></label>\
<button id="in" title="zoom in (+)">+</button><button id="out" title="zoom out (-)">&minus;</button>\
<button id="all" title="whole packs (0)">all</button></div>
<div id="roll"><div id="room"></div><canvas id="bars" tabindex="0" role="application" aria-label="a bar for each pack; \
arrow keys move, the line below tells what is there"></canvas></div>
<p id="here" role="status">Point at a block, or press arrow keys in the bars.</p>
<ul id="legend" aria-label="what colours and heights mean"></ul></section>
<section id="inside" hidden><h2 id="which"></h2><p id="facts"></p><canvas id="rows" aria-label="the rows of 64 kB of \
this pack"></canvas></section>
<section id="deep" hidden><h2 id="where"></h2><canvas id="chunks" aria-label="the chunks of 64 bytes of this row">\
</canvas><div class="roll" id="blocks"></div></section>
<noscript><p>Bars need scripts; what follows does not.</p></noscript>
{rest}
<section><h2>What to mind</h2><ul class="notes"><li>A column is as high as its part of the pack is in use, and has the \
colour of most of these bytes. Addresses grow to the right, then down.</li>{listed}</ul></section>"""
    facts = f"{packs:,} packs, {blocks:,} blocks"
    return Page(shorten(title, 160), facts, body, to_json(data), SCRIPT, STYLE).draw()


STYLE: Final = """
canvas{display:block;width:100%;cursor:crosshair;touch-action:pan-y}
#legend{list-style:none;display:flex;flex-wrap:wrap;gap:4px 18px;margin:0;padding:0}
#legend i{display:inline-block;width:18px;height:15px;margin-right:6px;border:1px solid var(--line);vertical-align:-2px}
#roll{max-height:448px;overflow:auto;border:1px solid var(--line);position:relative}
#roll canvas{position:sticky;top:0;height:100%}#room{float:right;width:0}
#rows{height:516px}#chunks{height:330px}#blocks{margin-top:8px}
#here{min-height:2.9em;margin:6px 0;overflow-wrap:anywhere}
.shares td:nth-child(2),#blocks td:last-child{overflow-wrap:anywhere}
.pair{display:flex;gap:16px;flex-wrap:wrap;align-items:start}
.pair .roll{flex:1 1 480px}.shares td:nth-child(n+3),#blocks td:nth-child(-n+4){text-align:right;
white-space:nowrap;font-variant-numeric:tabular-nums}.shares th:nth-child(n+3),#blocks th:nth-child(-n+4){
text-align:right}select{font:inherit;color:var(--ink);background:var(--page)}
"""

SCRIPT: Final = make_script(
    r"""
const theme = matchMedia("(prefers-color-scheme: dark)");
const ink = (name) => data.inks[name][theme.matches ? 1 : 0];
const hex = (value) => "0x" + BigInt(value).toString(16);
const CHUNKS = 32768, ROW = 1024, CHUNK = 64;
const inflate = async (text) => {
  const stream = new Blob([read(text, Uint8Array)]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).arrayBuffer();
};
const age = (ms) => {
  for (const [unit, scale] of [["days", 864e5], ["h", 36e5], ["min", 6e4], ["s", 1e3]])
    if (ms >= scale) return (ms / scale).toFixed(1) + " " + unit;
  return ms + " ms";
};
const start = async () => {
const packs = data.heads, total = packs.reduce((sum, pack) => sum + pack.count, 0);
const [deltas, sizes, grown, states, owners, alone] = (await Promise.all(
  ["first", "size", "age", "state", "owner", "alone"].map((key) => inflate(data.columns[key])))
).map((buffer, i) => new [Uint16Array, Uint32Array, BigInt64Array, Uint8Array, Uint32Array, Uint8Array][i](buffer));
const names = data.columns.names ? new TextDecoder().decode(await inflate(data.columns.names)).split("\n") : null;
const first = new Uint32Array(total), ages = new Float64Array(total);
let begun = 0, bits = 0;
for (const pack of packs) {
  pack.begin = begun;
  pack.end = begun += pack.count;
  pack.bits = bits;
  bits += Math.ceil(pack.usable / 8);
  for (let i = pack.begin, at = 0, old = 0n; i < pack.end; i++) {
    first[i] = at += deltas[i];
    ages[i] = Number(old += grown[i]);
  }
}
const last = (i) => first[i] + Math.ceil(sizes[i] / CHUNK);
const isAlone = (pack, chunk) => chunk < pack.usable && alone[pack.bits + (chunk >> 3)] >> (chunk & 7) & 1;

// ---- colours ----
let by = data.by;
const edges = data.ages.map((each) => each[1]);
const classOf = (i) => {
  if (by === "owner") return Math.min(owners[i], data.shown);
  for (let kind = 0; kind < edges.length; kind++) if (edges[kind] === null || ages[i] < edges[kind]) return kind;
};
const drawLegend = () => {
  const words = by === "age" ? data.ages.map((each) => each[0]) : data.owners.length === 1
    ? [...data.owners[0].slice(0, -1).slice(0, data.shown), "all others"]
    : [...Array(data.shown)].map((_, i) => i ? "" : "of most bytes in its domain").concat("all others");
  const lead = document.createElement("li");
  lead.textContent = by === "age" ? "age, from new to old:" : "owner, from most bytes to fewest:";
  const items = [...data.colours[by], null].map((colour, kind) => {
    const item = document.createElement("li"), box = document.createElement("i");
    box.style.background = colour || ink("dim");
    if (!colour) box.style.opacity = 0.4;
    item.append(box, colour ? `${data.letters[by][kind]} ${words[kind] || ""}` : "in use by no live block");
    return item;
  });
  const used = by === "age" ? items : items.filter((_, kind) => kind > data.shown || words[kind] !== undefined);
  $("legend").replaceChildren(lead, ...used);
};

// ---- finding ----
const find = (pack, chunk) => { // the last block that begins at a chunk or before it
  let low = pack.begin, high = pack.end;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (first[middle] <= chunk) low = middle + 1; else high = middle;
  }
  return low - 1;
};
const within = (pack, from, to) => { // the blocks that have chunks there: first, and the one behind the last
  let low = find(pack, from);
  if (low < pack.begin || last(low) <= from) low++;
  return [low, Math.max(find(pack, Math.ceil(to) - 1) + 1, low)];
};

// ---- drawing ----
const prepare = (canvas) => {
  const dots = devicePixelRatio || 1, pen = canvas.getContext("2d");
  const wide = Math.round(canvas.clientWidth * dots), high = Math.round(canvas.clientHeight * dots);
  if (canvas.width !== wide) canvas.width = wide;
  if (canvas.height !== high) canvas.height = high;
  pen.setTransform(dots, 0, 0, dots, 0, 0);
  pen.clearRect(0, 0, canvas.clientWidth, canvas.clientHeight);
  pen.font = "12px system-ui, 'DejaVu Sans', sans-serif";
  pen.textBaseline = "middle";
  return pen;
};
const paint = (pen, pack, from, to, x, y, wide, high) => { // chunks of a pack as columns
  const columns = Math.max(1, Math.floor(wide)), each = (to - from) / columns, kinds = data.colours[by].length + 1;
  const open = Math.min(Math.max(pack.usable - from, 0), to - from) / (to - from);
  pen.globalAlpha = 0.3;
  pen.fillStyle = ink("line");
  pen.fillRect(x, y, wide * open, high);
  pen.globalAlpha = 1;
  const sums = new Float32Array(columns * kinds);
  const add = (begin, end, kind) => {
    begin = Math.max(begin, from) - from;
    end = Math.min(end, to) - from;
    for (let at = begin; at < end;) {
      const column = Math.min(Math.floor(at / each + 1e-9), columns - 1);
      const next = column === columns - 1 ? end : Math.min(end, Math.max((column + 1) * each, at + 1e-6));
      sums[column * kinds + kind] += next - at;
      at = next;
    }
  };
  const [low, top] = within(pack, from, to);
  for (let i = low; i < top; i++) add(first[i], last(i), classOf(i));
  for (let byte = Math.floor(from) >> 3, end = Math.min(Math.ceil(to), pack.usable) / 8; byte < end; byte++)
    if (alone[pack.bits + byte])
      for (let bit = 0; bit < 8; bit++)
        if (isAlone(pack, byte * 8 + bit)) add(byte * 8 + bit, byte * 8 + bit + 1, kinds - 1);
  for (let column = 0; column < columns; column++) {
    let used = 0, best = 0;
    for (let kind = 0; kind < kinds; kind++) {
      const sum = sums[column * kinds + kind];
      used += sum;
      if (sum > sums[column * kinds + best]) best = kind;
    }
    if (!used) continue;
    const tall = Math.max(1, Math.min(used / each, 1) * high);
    pen.fillStyle = best === kinds - 1 ? ink("dim") : data.colours[by][best];
    if (best === kinds - 1) pen.globalAlpha = 0.4;
    pen.fillRect(x + column * wide / columns, y + high - tall, wide / columns + 0.2, tall);
    pen.globalAlpha = 1;
  }
  pen.strokeStyle = ink("line");
  pen.lineWidth = 1;
  pen.strokeRect(x + 0.5, y + 0.5, wide - 1, high - 1);
};
const mark = (pen, x, y, wide, high) => {
  for (const [name, gap] of [["ink", 1], ["page", 2.5], ["ink", 4]]) {
    pen.strokeStyle = ink(name);
    pen.lineWidth = 1.5;
    pen.strokeRect(x - gap, y - gap, Math.max(wide, 2) + 2 * gap, high + 2 * gap);
  }
};
const write = (pen, words, x, y, name = "ink", align = "left") => {
  pen.fillStyle = ink(name);
  pen.textAlign = align;
  pen.fillText(words, x, y);
};

const fit = (pen, words, room) => { // cut to a width
  if (pen.measureText(words).width <= room) return words;
  const letters = [...words];
  while (letters.length && pen.measureText(letters.join("") + "\u2026").width > room) letters.pop();
  return letters.join("") + "\u2026";
};

// ---- bars of all packs ----
const LINE = 32, BAR = 22, LEFT = 132, RIGHT = 366, HEAD = 22;
const several = data.domains.length > 1;
let from = 0, span = CHUNKS, chosen = -1, row = -1, here = null;
const bars = $("bars"), roll = $("roll");
const barWide = () => Math.max(100, bars.clientWidth - LEFT - RIGHT);
const spot = () => here.block >= 0 ? [first[here.block], last(here.block)] : [here.chunk, here.chunk + 1];
const draw = () => {
  const pen = prepare(bars), wide = barWide(), top = roll.scrollTop;
  for (let i = Math.max(0, Math.floor((top - HEAD) / LINE)); i < packs.length; i++) {
    const y = HEAD + i * LINE - top, pack = packs[i];
    if (y > bars.clientHeight) break;
    if (i === chosen) {
      pen.fillStyle = ink("giant");
      pen.fillRect(0, y - 2, 5, BAR + 4);
    }
    const room = LEFT - 24 - pen.measureText(`${pack.kind} ${pack.number}`).width;
    const label = several ? fit(pen, data.domains[pack.domain], room) : "pack";
    write(pen, `${label} ${pack.number}`, 10, y + BAR / 2);
    write(pen, pack.kind, LEFT - 8, y + BAR / 2, "dim", "right");
    paint(pen, pack, from, from + span, LEFT, y, wide, BAR);
    [56, 126, 190].forEach((x, k) => write(pen, pack.facts[k], LEFT + wide + x, y + BAR / 2, "ink", "right"));
    write(pen, (pack.huge ? "\u25a0 " : "\u25a1 ") + pack.badge, LEFT + wide + 202, y + BAR / 2);
    if (here && here.pack === pack) {
      const [begin, end] = spot().map((chunk) => Math.min(Math.max((chunk - from) / span, 0), 1) * wide);
      if (end > begin) mark(pen, LEFT + begin, y, end - begin, BAR);
    }
  }
  pen.clearRect(0, 0, bars.clientWidth, HEAD - 6);
  for (let part = 0; part <= 4; part++)
    write(pen, size((from + span * part / 4) * CHUNK), LEFT + wide * part / 4, 8, "dim", part < 4 ? "center" : "right");
  ["in use", "max free", "blocks"].forEach((words, k) =>
    write(pen, words, LEFT + wide + [56, 126, 190][k], 8, "dim", "right"));
  write(pen, "pages", LEFT + wide + 202, 8, "dim");
  $("scale").textContent = `${size(span * CHUNK)} of each pack`;
  bars.dataset.from = from;
  bars.dataset.span = span;
};
const tellHere = () => {
  const { pack, chunk, block, others } = here, at = (n) => "0x" + (BigInt(pack.base) + BigInt(n)).toString(16);
  const place = `pack ${pack.number} of ${data.domains[pack.domain]}`;
  if (block >= 0) {
    const name = names ? names[block] || "(no name)" : "(names are left out)";
    const owner = data.owners[pack.domain][owners[block]];
    const more = others > 1 ? ` Largest of ${others} blocks there.` : "";
    $("here").textContent = `${at(first[block] * CHUNK)}: ${name}, owner ${owner}, ${many(sizes[block])} bytes, ` +
      `${age(ages[block])} old, ${data.states[states[block]] || "being freed"}; ${place}, ` +
      `+${hex(first[block] * CHUNK)}.${more}`;
    return;
  }
  const what = chunk >= pack.usable ? "not open for blocks" : isAlone(pack, chunk)
    ? "in use by no live block: parked, retired, in quarantine, or held for a fork" : "free";
  $("here").textContent = `${at(chunk * CHUNK)}: ${what}; ${place}, +${hex(chunk * CHUNK)}.`;
};
const point = (pack, begin, end) => { // at chunks of a pack: at the largest of the blocks there
  const chunk = Math.max(0, Math.floor(begin)), [low, top] = within(pack, chunk, Math.max(end, chunk + 1));
  let block = -1;
  for (let i = low; i < top; i++) if (block < 0 || sizes[i] > sizes[block]) block = i;
  if (here && here.pack === pack && here.block === block && (block >= 0 || here.chunk === chunk)) return;
  here = { pack, chunk, block, others: top - low };
  redraw();
  tellHere();
};
const barAt = (event) => {
  const box = bars.getBoundingClientRect(), wide = barWide();
  const i = Math.floor((event.clientY - box.top + roll.scrollTop - HEAD) / LINE);
  const x = event.clientX - box.left - LEFT;
  if (event.clientY - box.top < HEAD - 6 || i < 0 || i >= packs.length) return [-1, 0, 0];
  return [i, x < 0 || x >= wide ? -1 : from + x / wide * span, span / wide];
};
const zoom = (way, at = from + span / 2) => {
  const next = Math.min(Math.max(way > 0 ? span / 2 : span * 2, 256), CHUNKS);
  from = Math.min(Math.max(at - (at - from) * next / span, 0), CHUNKS - next);
  span = next;
  draw();
};

// ---- the rows of a pack, the chunks of a row ----
const SIDE = 116, THIN = 16;
const rows = $("rows"), chunks = $("chunks");
const drawRows = () => {
  if (chosen < 0) return;
  const pack = packs[chosen], pen = prepare(rows), wide = rows.clientWidth - SIDE - 8;
  for (let i = 0; i < 32; i++) {
    const y = 2 + i * THIN;
    write(pen, `${i}  +${hex(i * ROW * CHUNK)}`, SIDE - 8, y + 7, i === row ? "giant" : "dim", "right");
    paint(pen, pack, i * ROW, (i + 1) * ROW, SIDE, y, wide, THIN - 2);
    frame(pen, pack, i * ROW, ROW, SIDE, y, wide, THIN - 2);
  }
};
const frame = (pen, pack, low, count, x, y, wide, high) => {
  if (!here || here.pack !== pack) return;
  const [begin, end] = spot().map((chunk) => Math.min(Math.max((chunk - low) / count, 0), 1) * wide);
  if (end > begin) mark(pen, x + begin, y, end - begin, high);
};
const DEEP = 20;
const drawChunks = () => {
  if (row < 0) return;
  const pack = packs[chosen], pen = prepare(chunks), wide = chunks.clientWidth - SIDE - 8;
  for (let i = 0; i < 16; i++) {
    const low = row * ROW + i * 64, y = 3 + i * DEEP, [begin, end] = within(pack, low, low + 64);
    write(pen, `+${hex(low * CHUNK)}`, SIDE - 8, y + 8, "dim", "right");
    paint(pen, pack, low, low + 64, SIDE, y, wide, DEEP - 4);
    for (let block = begin; block < end; block++) {
      const x = (Math.max(first[block], low) - low) / 64 * wide;
      const to = (Math.min(last(block), low + 64) - low) / 64 * wide;
      pen.strokeStyle = ink("page");
      pen.strokeRect(SIDE + x + 0.5, y + 0.5, to - x - 1, DEEP - 5);
      if (to - x < 14) continue;
      pen.fillStyle = "#000";
      pen.textAlign = "left";
      const words = names && (to - x) / 6.5 > 8 ? names[block].slice(0, Math.floor((to - x) / 6.5)) : "";
      pen.fillText(words || data.letters[by][classOf(block)], SIDE + x + 4, y + 8);
    }
    frame(pen, pack, low, 64, SIDE, y, wide, DEEP - 4);
  }
};
const drawBlocks = () => {
  const pack = packs[chosen], [begin, end] = within(pack, row * ROW, (row + 1) * ROW);
  const table = document.createElement("table"), base = BigInt(pack.base);
  const line = (cells, kind) => {
    const line = document.createElement("tr");
    for (const words of cells) line.append(Object.assign(document.createElement(kind), { textContent: words }));
    return line;
  };
  table.append(line(["address", "bytes", "chunks", "age", "state", "owner", "name"], "th"));
  for (let i = begin; i < end; i++)
    table.append(line(["0x" + (base + BigInt(first[i] * CHUNK)).toString(16), many(sizes[i]), many(last(i) - first[i]),
      age(ages[i]), data.states[states[i]] || "being freed", data.owners[pack.domain][owners[i]],
      names ? names[i] || "(no name)" : ""], "td"));
  $("blocks").replaceChildren(end > begin ? table : "no live block lies here");
};
const enter = (number) => {
  if (number < 0 || number >= packs.length) return;
  chosen = number;
  row = -1;
  const pack = packs[chosen];
  $("inside").hidden = false;
  $("deep").hidden = true;
  $("which").textContent = `pack ${pack.number} of ${data.domains[pack.domain]}: rows of 64 kB`;
  $("facts").textContent = `${pack.facts[0]} in use, largest free ${pack.facts[1]}, ${pack.facts[2]} blocks; ` +
    `${pack.badge}; ${pack.more.join(", ")}. Click a row for its chunks and blocks.`;
  redraw();
};
const enterRow = (number) => {
  if (number < 0 || number > 31) return;
  row = number;
  $("deep").hidden = false;
  $("where").textContent = `row ${row}: chunks of 64 bytes`;
  drawBlocks();
  redraw();
};
const redraw = () => { draw(); drawRows(); drawChunks(); };
const cellAt = (canvas, event, top, high, count) => {
  const box = canvas.getBoundingClientRect(), line = Math.floor((event.clientY - box.top - top) / high);
  const share = (event.clientX - box.left - SIDE) / (canvas.clientWidth - SIDE - 8);
  return [line, share < 0 || share >= 1 ? -1 : share * count, count / (canvas.clientWidth - SIDE - 8)];
};
rows.addEventListener("pointermove", (event) => {
  const [line, at, each] = cellAt(rows, event, 2, THIN, ROW);
  if (line >= 0 && line < 32 && at >= 0) point(packs[chosen], line * ROW + at, line * ROW + at + each);
});
rows.addEventListener("click", (event) => enterRow(cellAt(rows, event, 2, THIN, ROW)[0]));
chunks.addEventListener("pointermove", (event) => {
  const [line, at] = cellAt(chunks, event, 3, DEEP, 64);
  if (line >= 0 && line < 16 && at >= 0) {
    const chunk = row * ROW + line * 64 + Math.floor(at);
    point(packs[chosen], chunk, chunk + 1);
  }
});

// ---- what is pressed ----
let grip = null, dragged = false;
bars.addEventListener("wheel", (event) => {
  const [i, at] = barAt(event);
  if (!event.ctrlKey || i < 0 || at < 0) return;
  event.preventDefault();
  zoom(-event.deltaY, at);
}, { passive: false });
bars.addEventListener("pointerdown", (event) => { grip = { x: event.clientX, from }; dragged = false; });
addEventListener("pointerup", () => { grip = null; });
bars.addEventListener("pointermove", (event) => {
  if (grip && span < CHUNKS && Math.abs(event.clientX - grip.x) > 3) {
    dragged = true;
    from = Math.min(Math.max(grip.from - (event.clientX - grip.x) / barWide() * span, 0), CHUNKS - span);
    draw();
    return;
  }
  const [i, at, each] = barAt(event);
  if (i >= 0 && at >= 0) point(packs[i], at, at + each);
});
bars.addEventListener("click", (event) => { if (!dragged) enter(barAt(event)[0]); });
const all = () => { span = CHUNKS; from = 0; draw(); };
const step = (way) => {
  const pack = here ? here.pack : packs[0];
  const next = here && here.block >= 0 ? here.block + way : here ? find(pack, here.chunk) + (way > 0) : pack.begin;
  if (next < pack.begin || next >= pack.end) return;
  here = { pack, chunk: first[next], block: next, others: 1 };
  redraw();
  tellHere();
};
const jump = (way) => {
  const i = here ? packs.indexOf(here.pack) + way : 0;
  if (i < 0 || i >= packs.length) return;
  if (HEAD + i * LINE < roll.scrollTop + HEAD || HEAD + (i + 1) * LINE > roll.scrollTop + roll.clientHeight)
    roll.scrollTop = i * LINE - roll.clientHeight / 2;
  const chunk = here ? here.chunk : 0;
  here = null;
  point(packs[i], chunk, chunk + 1);
};
bars.addEventListener("keydown", (event) => {
  const keys = {
    ArrowLeft: () => step(-1), ArrowRight: () => step(1), ArrowUp: () => jump(-1), ArrowDown: () => jump(1),
    "+": () => zoom(1), "=": () => zoom(1), "-": () => zoom(-1), 0: all,
    Enter: () => { if (here) { enter(packs.indexOf(here.pack)); enterRow(here.chunk >> 10); } },
  };
  if (event.ctrlKey || event.metaKey || event.altKey || !packs.length || !keys[event.key]) return;
  event.preventDefault();
  keys[event.key]();
});
$("in").addEventListener("click", () => zoom(1));
$("out").addEventListener("click", () => zoom(-1));
$("all").addEventListener("click", all);
$("by").value = by;
$("by").addEventListener("change", () => { by = $("by").value; drawLegend(); redraw(); });
theme.addEventListener("change", () => { drawLegend(); redraw(); });
addEventListener("resize", redraw);
roll.addEventListener("scroll", draw);
const tall = HEAD + packs.length * LINE + 4;
roll.style.height = Math.min(tall, 446) + "px";
$("room").style.height = tall + "px";
drawLegend();
redraw();
ready();
};
start().catch((error) => { $("here").textContent = `This page cannot be drawn here: ${error}`; });
""",
    waits=True,
)
