"""export: numbers for Prometheus: families of samples, as text in its two formats or as JSON, and those of the machine.

    directmap.source, region --> measure_machine --+
                                                   +--> Page --> 0.0.4, OpenMetrics 1.0, JSON
    ledgers of processes ------> export_packs -----+

``FAMILIES`` is every metric there is, with its type and its help. Labels have few values: sizes, uses, states, names of
processes and of domains up to a limit; never a program, a block or a pack. What cannot be read has no sample, and
``execmem_source_up`` says that it is missing. Needs no compiled core; docs/export.md explains each metric.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from execmem.directmap import region, source
from execmem.directmap.source import NotAvailable, Use
from execmem.draw import make_visible, tell_version

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

SCHEMA: Final = "execmem-metrics-1"
COUNTER, GAUGE = "counter", "gauge"
TOTAL: Final = "_total"  # behind the name of each counter's samples
UNITS: Final = ("bytes", "seconds")
ROOT: Final = Path("/")


@dataclass(frozen=True)
class Family:
    """A metric: its type and what it tells, in one line without quotes and backslashes."""

    type: str
    help: str


FAMILIES: Final[Mapping[str, Family]] = {
    "execmem_build_info": Family(GAUGE, "1; the label version is that of execmem."),
    "execmem_source_up": Family(GAUGE, "Whether a source could be read; what comes from one that is 0 is absent."),
    "execmem_scrape_duration_seconds": Family(GAUGE, "How long reading all of this took."),
    # the machine
    "execmem_directmap_bytes": Family(
        GAUGE, "Kernel memory that pages of a size map in the direct map; never add sizes up, look at changes."
    ),
    "execmem_directmap_splits_total": Family(COUNTER, "Pages of the direct map that were split since boot."),
    "execmem_directmap_joins_total": Family(COUNTER, "Pages of the direct map that were joined again since boot."),
    "execmem_directmap_regions": Family(GAUGE, "2 MB regions of the direct map by what the page tables have."),
    "execmem_kernel_areas": Family(GAUGE, "Areas of kernel memory for code, by use."),
    "execmem_kernel_area_bytes": Family(GAUGE, "Memory of areas of kernel memory for code, by use."),
    "execmem_bpf_jit_limit_bytes": Family(GAUGE, "How much machine code of BPF programs the kernel allows."),
    "execmem_bpf_jit_used_bytes": Family(
        GAUGE, "Machine code of BPF programs that have a number; classic ones come on top, so it is a lower bound."
    ),
    "execmem_bpf_jit_pack_bytes": Family(GAUGE, "Memory of the areas that machine code of BPF lies in."),
    # processes
    "execmem_processes": Family(GAUGE, "Processes whose domains are read."),
    "execmem_processes_unreadable": Family(
        GAUGE, "Processes that may not be looked at, or whose ledger is damaged; whether all use execmem is not known."
    ),
    "execmem_domains": Family(GAUGE, "Domains that samples with these labels are the sum of."),
    "execmem_domain_packs": Family(GAUGE, "Packs, as 2 MB of addresses each."),
    "execmem_domain_packs_huge": Family(GAUGE, "Packs mapped by one 2 MB page when the kernel was last asked."),
    "execmem_domain_pack_bytes": Family(GAUGE, "Memory of packs that is open for blocks."),
    "execmem_domain_pack_used_bytes": Family(
        GAUGE, "Memory of packs that is in use: by live, parked, quarantined and held blocks, as rounded."
    ),
    "execmem_domain_live_blocks": Family(GAUGE, "Live blocks, retired ones included."),
    "execmem_domain_live_bytes": Family(GAUGE, "Bytes of live blocks as asked for, retired ones included."),
    "execmem_domain_used_bytes": Family(GAUGE, "Bytes of live blocks as rounded."),
    "execmem_domain_quarantined_bytes": Family(GAUGE, "Bytes of freed blocks that wait in quarantine, as rounded."),
    "execmem_domain_retired_blocks": Family(GAUGE, "Retired blocks that wait to be freed."),
    "execmem_domain_charged_bytes": Family(
        GAUGE,
        "What counts against the limit: rounded sizes, those of child domains too; absent as the limit is.",
    ),
    "execmem_domain_limit_bytes": Family(GAUGE, "Limit of rounded block sizes; absent while one domain has none."),
    "execmem_domain_allocs_total": Family(COUNTER, "Blocks made."),
    "execmem_domain_frees_total": Family(COUNTER, "Blocks freed."),
    "execmem_domain_fills_total": Family(COUNTER, "Writes into blocks."),
    "execmem_domain_refusals_total": Family(COUNTER, "Calls that ended in an error."),
    "execmem_domain_packs_made_total": Family(COUNTER, "Packs made."),
    "execmem_domain_packs_returned_total": Family(COUNTER, "Packs given back to the system."),
    "execmem_domain_collapses_total": Family(COUNTER, "Packs that the kernel made one 2 MB page."),
    "execmem_domain_collapse_failures_total": Family(COUNTER, "Packs that the kernel did not make one 2 MB page."),
}

Labels = tuple[tuple[str, str], ...]


@dataclass
class Page:
    """What one scrape found: samples by family and labels; and why sources are missing."""

    samples: dict[str, dict[Labels, float]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, value: float, **labels: str) -> None:
        """Add to a sample: those of equal labels are summed, for no series may be there twice."""
        found = self.samples.setdefault(name, {})
        key = tuple((label, make_visible(text)) for label, text in labels.items())
        found[key] = found.get(key, 0) + value

    def drop(self, name: str, **labels: str) -> None:
        """Take a sample out again."""
        self.samples.get(name, {}).pop(tuple(labels.items()), None)

    def attempt(self, name: str, read: Callable[[], None]) -> None:
        """Read a source, and tell whether it could be read."""
        try:
            read()
        except NotAvailable as error:
            self.tell_source(name, str(error))
        except OSError as error:  # what is read came or went meanwhile
            self.tell_source(name, f"not available: {error}")
        else:
            self.tell_source(name, None)

    def tell_source(self, name: str, why: str | None) -> None:
        """Tell that a source was read, or why it was not."""
        self.add("execmem_source_up", int(why is None), source=name)
        if why is not None:
            self.missing[name] = make_visible(why)


# ---- the formats ----

PROMETHEUS, OPENMETRICS = "prometheus", "openmetrics"
CONTENT_TYPES: Final = {
    PROMETHEUS: "text/plain; version=0.0.4; charset=utf-8",
    OPENMETRICS: "application/openmetrics-text; version=1.0.0; charset=utf-8",
}


def escape(text: str) -> str:
    r"""Return a text as it stands between the quotes of a label.

    >>> print(escape('a"b' + chr(10) + chr(92)))
    a\"b\n\\
    """
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def tell_number(value: float) -> str:
    """Return a number as both formats have it.

    >>> tell_number(2**64 - 1), tell_number(1.0), tell_number(0.25)
    ('18446744073709551615', '1', '0.25')
    """
    return str(int(value)) if value == int(value) else repr(float(value))


def unit_of(name: str) -> str | None:
    """Return the unit that a name ends in.

    >>> unit_of("execmem_directmap_bytes"), unit_of("execmem_domains")
    ('bytes', None)
    """
    return next((unit for unit in UNITS if name.endswith(f"_{unit}")), None)


def write_text(page: Page, form: str) -> str:
    """Return a page as text: Prometheus 0.0.4, which tells what is missing in comments, or OpenMetrics 1.0."""
    open_metrics = form == OPENMETRICS
    lines = [] if open_metrics else [f"# {name}: {why}" for name, why in page.missing.items()]
    for name, family in FAMILIES.items():
        if name not in page.samples:
            continue
        told = name.removesuffix(TOTAL) if open_metrics else name
        lines += [f"# HELP {told} {family.help}", f"# TYPE {told} {family.type}"]
        if open_metrics and (unit := unit_of(told)):
            lines.append(f"# UNIT {told} {unit}")
        for labels, value in sorted(page.samples[name].items()):
            pairs = ",".join(f'{label}="{escape(text)}"' for label, text in labels)
            lines.append(f"{name}{{{pairs}}} {tell_number(value)}" if pairs else f"{name} {tell_number(value)}")
    return "\n".join([*lines, "# EOF\n" if open_metrics else ""])


def as_json(page: Page) -> dict[str, Any]:
    """Return the same numbers for JSON; docs/export.md has the schema."""
    return {
        "schema": SCHEMA,
        "metrics": [
            {
                "name": name,
                "type": family.type,
                "help": family.help,
                "unit": unit_of(name.removesuffix(TOTAL)),
                "samples": [
                    {"labels": dict(labels), "value": value} for labels, value in sorted(page.samples[name].items())
                ],
            }
            for name, family in FAMILIES.items()
            if name in page.samples
        ],
        "missing": page.missing,
    }


MEDIA: Final = re.compile(r"\s*([\w*.+-]+/[\w*.+-]+)\s*((?:;[^,]*)?)", re.ASCII)


def choose_format(accept: str) -> str:
    """Return the format that an Accept header prefers; OpenMetrics only where it is asked for by name.

    >>> choose_format("application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.2")
    'openmetrics'
    >>> choose_format("text/html, */*"), choose_format("application/openmetrics-text;version=0.0.1;q=1")
    ('prometheus', 'prometheus')
    """
    weights = dict.fromkeys(CONTENT_TYPES, 0.0)
    for media, parameters in MEDIA.findall(accept):
        fields = dict(part.strip().split("=", 1) for part in parameters.split(";") if "=" in part)
        weight = float(fields["q"]) if re.fullmatch(r"[01](\.\d{0,3})?", fields.get("q", "")) else 1.0
        if media == "application/openmetrics-text" and fields.get("version", "1.0.0") == "1.0.0":
            weights[OPENMETRICS] = max(weights[OPENMETRICS], weight)
        elif media in {"text/plain", "text/*", "*/*"} and fields.get("version", "0.0.4") == "0.0.4":
            weights[PROMETHEUS] = max(weights[PROMETHEUS], weight)
    return OPENMETRICS if weights[OPENMETRICS] > 0 and weights[OPENMETRICS] >= weights[PROMETHEUS] else PROMETHEUS


# ---- the machine ----

PAGE_SIZES: Final = {4 << 10: "4k", 2 << 20: "2m", 4 << 20: "4m", 1 << 30: "1g"}


def add_directmap(page: Page, root: Path) -> None:
    """Add what pages of each size map."""
    for size, value in source.read_directmap(root).sizes.items():
        page.add("execmem_directmap_bytes", value, page_size=PAGE_SIZES.get(size, str(size)))


def add_splits(page: Page, root: Path) -> None:
    """Add the kernel's counters of splits, and of joins where it has them."""
    found = source.read_splits(root)
    for size, splits, joins in (
        ("2m", found.level2_splits, found.level2_collapses),
        ("1g", found.level3_splits, found.level3_collapses),
    ):
        page.add("execmem_directmap_splits_total", splits, page_size=size)
        if joins is not None:
            page.add("execmem_directmap_joins_total", joins, page_size=size)


def add_areas(page: Page, root: Path) -> None:
    """Add areas of kernel memory by use."""
    found = source.read_areas(root)
    for use in Use:
        if use is not Use.OTHER:
            count, size = found.total(use)
            page.add("execmem_kernel_areas", count, use=use.value)
            page.add("execmem_kernel_area_bytes", size, use=use.value)


def add_jit(page: Page, root: Path) -> None:
    """Add how much code BPF may have, and what is known of how much it has."""
    found = source.read_jit(root)
    page.add("execmem_bpf_jit_limit_bytes", found.limit)
    for name, value in (("used", found.programs), ("pack", found.packs)):
        if value is not None:
            page.add(f"execmem_bpf_jit_{name}_bytes", value)


READERS: Final[Mapping[str, Callable[[Page, Path], None]]] = {
    "directmap": add_directmap,
    "splits": add_splits,
    "vmallocinfo": add_areas,
    "jit": add_jit,
}


def measure_machine(page: Page, walk: Callable[[], region.Walk] | None, root: Path = ROOT) -> None:
    """Add what the kernel tells of its direct map and of code in it: 0.1 ms, for root 20 ms and 60 us a BPF program.

    `walk` reads the state of regions from the page tables.
    """
    for name, read in READERS.items():
        page.attempt(name, functools.partial(read, page, root))
    if walk is not None:
        page.attempt("regions", lambda: add_regions(page, walk()))


def add_regions(page: Page, found: region.Walk) -> None:
    """Add how many regions there are of each state."""
    for state in region.State:
        page.add("execmem_directmap_regions", found.count(state), state=state.name.lower())


def about_us(page: Page) -> None:
    """Add what tells of this exporter itself."""
    page.add("execmem_build_info", 1, version=tell_version())
