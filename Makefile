# Verbs for those who work on execmem. Everything made lies in build/ and .venv/.
#
#   make build      the C core compiled into execmem/, and the package installed from this tree into .venv
#   make test       C tests and Python tests          make test-c   C tests only, asserts on
#   make asan       both under AddressSanitizer and UndefinedBehaviorSanitizer
#   make fuzz       the core and its shadow under libFuzzer (clang)      make faults   long runs of fault injection
#   make tsan       the programs with threads under ThreadSanitizer
#   make valgrind   C tests, short, under memcheck    make lint     every formatter and checker
#   make test-pkey  C tests, short, in write mode pkey on an emulated CPU that has protection keys (QEMU, a Debian kernel); LONG=1: all refusals
#   make test-cpus  C tests on emulated CPUs of the other rooms: aarch64, riscv64; short, LONG=1: as long as on this one (hours)
#   make bench      pytest-benchmark over the peers    make format   lay the source out as lint wants it
#   make bench-run  the comparison, 15 minutes: benchmarks/results/        make bench-goals  which goals hold
#   make bench-table  the tables of README.md and docs/ from results/         make bench-check  no ratio 15 % worse
#   make clean
#
# VENV=dir takes another virtual environment; TESTS='tests/test_x.py -k y' narrows what test and asan run, EMULATED=test_pkey what
# test-pkey runs.

VENV ?= .venv
PY := $(VENV)/bin/python
CC ?= gcc
TESTS ?=
BUILD := build

CORE := $(sort $(wildcard csrc/*.c arch/*.c arch/*/*.c csrc/*.S arch/*/*.S))
C_TESTS := $(sort $(wildcard tests/c/test_*.c))
C_SHARED := $(filter-out $(C_TESTS),$(sort $(wildcard tests/c/*.c)))
C_STYLED := $(wildcard csrc/*.[ch] arch/*.[ch] arch/*/*.[ch] tests/c/*.[ch] execmem/directmap/*.c execmem/bench_loops.c tests/emulate/*.c tests/fuzz/*.c examples/*.c benchmarks/*.[ch] benchmarks/*/*.[ch] benchmarks/*/*.cpp)
INPUTS := $(CORE) $(wildcard csrc/*.h arch/*.h arch/*/*.h) csrc/cffi_build.py setup.py pyproject.toml

CPPFLAGS_ALL := -D_GNU_SOURCE -Icsrc -Iarch
CFLAGS_ALL := -std=c11 -pthread -g -Wall -Wextra -Wundef -Wshadow -Werror -MMD -MP
# arch/arch.c refuses the CPUs before 2008 that lack it.
ifneq ($(filter x86_64-%,$(shell $(CC) -dumpmachine)),)
CFLAGS_ALL += -mpopcnt
endif
CFLAGS_debug := -O1 -DEM_DEBUG=1 -fno-omit-frame-pointer
CFLAGS_asan := $(CFLAGS_debug) -fsanitize=address,undefined -fno-sanitize-recover=all
LDFLAGS_asan := -fsanitize=address,undefined
CFLAGS_static := $(CFLAGS_debug)
LDFLAGS_static := -static
# A plain lock stands in for the biased one, whose fence (membarrier) ThreadSanitizer does not know: em_sys_lock_init.
CFLAGS_tsan := $(CFLAGS_debug) -fsanitize=thread
LDFLAGS_tsan := -fsanitize=thread
# It keeps signals back from threads that make no system call, which mode flip waits for: no such writes beside busy threads.
TSAN := exitcode=66:second_deadlock_stack=1

.DELETE_ON_ERROR:
.SUFFIXES:
.PHONY: build test test-c test-pkey test-cpus emulate-cpu asan asan-c asan-python tsan fuzz fuzz-merge faults valgrind bench bench-run bench-table bench-goals bench-check lint format clean

# ---- the package ----

INSTALLED := $(VENV)/.execmem-installed

build: $(INSTALLED)

$(PY):
	python3 -m venv $(VENV)

# An editable install: Python files are used where they lie, and the core is compiled into execmem/.
$(INSTALLED): $(INPUTS) | $(PY)
	$(PY) -m pip install -q -e '.[test,dev]'
	@touch $@

test: build test-c
	$(PY) -m pytest $(TESTS)

# ---- benchmarks: benchmarks/README.md says what is needed ----

BENCH := $(BUILD)/.bench-installed

$(BENCH): $(INSTALLED)
	$(PY) -m pip install -q -e '.[bench]'
	@touch $@

bench: $(BENCH)
	$(PY) -m pytest benchmarks

bench-run: $(BENCH)
	$(PY) benchmarks/run.py
	$(PY) benchmarks/python_layer.py --out benchmarks/results/python.json
	$(PY) benchmarks/hardening.py --out benchmarks/results/hardening.json
	$(PY) benchmarks/forks.py --out benchmarks/results/forks.json
	$(PY) benchmarks/poke.py --out benchmarks/results/poke.json
	$(PY) benchmarks/patching.py --out benchmarks/results/patching.json

bench-table: build
	$(PY) benchmarks/run.py --table

bench-goals: build
	$(PY) benchmarks/run.py --goals

bench-check: build
	$(PY) benchmarks/run.py --regress

# ---- C tests: one program for each tests/c/test_*.c, linked with the whole core; objects are kept by flavour ----

define flavour
objects_$(1) := $$(patsubst %,$$(BUILD)/c/$(1)/%.o,$$(CORE) $$(C_SHARED))
programs_$(1) := $$(patsubst tests/c/%.c,$$(BUILD)/c/$(1)/%,$$(C_TESTS))

$$(BUILD)/c/$(1)/%.o: % Makefile
	@mkdir -p $$(@D)
	@echo '  $$(CC) $(1) $$<'
	@$$(CC) $$(CPPFLAGS_ALL) $$(CFLAGS_ALL) $$(CFLAGS_$(1)) $$(CFLAGS) -c $$< -o $$@

$$(programs_$(1)): $$(BUILD)/c/$(1)/%: $$(BUILD)/c/$(1)/tests/c/%.c.o $$(objects_$(1))
	@$$(CC) -pthread $$(LDFLAGS_$(1)) $$^ -o $$@ -lm

-include $$(patsubst %.o,%.d,$$(objects_$(1)) $$(patsubst %,$$(BUILD)/c/$(1)/%.o,$$(C_TESTS)))
endef
$(eval $(call flavour,debug))
$(eval $(call flavour,asan))
$(eval $(call flavour,static))
$(eval $(call flavour,tsan))

# libFuzzer is clang's. What it finds new goes to build/fuzz/corpus, a crash to build/fuzz; FUZZ_SECONDS=3600 is an hour.
FUZZ_SECONDS ?= 60
FUZZ_CORE := $(BUILD)/fuzz/fuzz_core

$(FUZZ_CORE): tests/fuzz/fuzz_core.c $(wildcard tests/c/model*.[ch]) tests/c/test.h $(INPUTS)
	@mkdir -p $(@D)/corpus
	clang $(CPPFLAGS_ALL) -Itests/c -std=c11 -pthread $(CFLAGS_asan) -fsanitize=fuzzer \
		$(filter %.c,$(filter-out csrc/cffi_build.py,$^)) -o $@

fuzz: $(FUZZ_CORE)
	$< -max_total_time=$(FUZZ_SECONDS) -max_len=2048 -timeout=60 -rss_limit_mb=4096 -artifact_prefix=$(BUILD)/fuzz/ \
		$(BUILD)/fuzz/corpus tests/fuzz/corpus

# What the corpus of the tree and the one found since then cover, in as few inputs as that takes.
fuzz-merge: $(FUZZ_CORE)
	rm -rf $(BUILD)/fuzz/merged && mkdir -p $(BUILD)/fuzz/merged
	$< -set_cover_merge=1 -max_len=2048 -timeout=60 -rss_limit_mb=4096 $(BUILD)/fuzz/merged $(BUILD)/fuzz/corpus tests/fuzz/corpus

# Ten million operations under fault injection, some ten minutes; then each refusal at each place, and pairs of them.
faults: $(programs_debug)
	$(BUILD)/c/debug/test_model 10000000 1000
	$(BUILD)/c/debug/test_fault_pairs 1
.SECONDARY:

# $(call run_each,programs,prefix): runs all of them, tells the failed ones, fails if there was one.
define run_each
	@failed=; for program in $(1); do \
		echo "$$program"; $(2) $$program || failed="$$failed $$program"; \
	done; \
	if [ -n "$$failed" ]; then echo "failed:$$failed" >&2; exit 1; fi
endef

test-c: $(programs_debug)
	$(call run_each,$^,)

# ---- C tests on an emulated CPU: tests/emulate/emulate.py says how ----

EMULATED_INIT := $(BUILD)/c/static/init

$(EMULATED_INIT): tests/emulate/init.c Makefile
	@mkdir -p $(@D)
	@$(CC) $(CPPFLAGS_ALL) $(filter-out -MMD -MP,$(CFLAGS_ALL)) $(CFLAGS_static) $(LDFLAGS_static) $< -o $@

# All but those that do not write in modes, take too long here (pairs of refusals, steps of a debugger), or need files: the corpus.
EMULATED ?= $(filter-out test_report test_arch test_move test_decode test_fault_pairs test_trap test_corpus,$(notdir $(programs_static)))

# QEMU before 8.1 misses a change of code that another of its CPUs is translating (deba78709a), so these have one CPU, or in long runs two
# that take turns, which is slow: emulate.py.
EMULATED_ALONE := test_live test_live_edges test_patch test_hook test_retire

# Of the refusals, those of calls that this mode makes otherwise than the rest; LONG=1: all.
PKEY_CALLS := $(if $(LONG),,--set EXECMEM_TEST_CALLS=key,protect,view)
emulate = $(if $(word 2,$(1)),python3 tests/emulate/emulate.py $(2) --set EXECMEM_TEST_MODES=pkey --set EXECMEM_TEST_SHORT=1 $(PKEY_CALLS) $(1))

test-pkey: $(EMULATED_INIT) $(addprefix $(BUILD)/c/static/,$(EMULATED))
	$(call emulate,$(filter-out $(EMULATED_ALONE:%=$(BUILD)/c/static/%),$^))
	$(call emulate,$(EMULATED_INIT) $(filter $(EMULATED_ALONE:%=$(BUILD)/c/static/%),$^),--set maxcpus=1)

# Each room's programs are made by a compiler of its own, in a directory of its own, and run by one machine, side by side.
CPUS ?= aarch64 riscv64
CPU_JOBS ?= 2
CPU_TESTS ?= $(filter-out test_corpus test_pkey $(if $(LONG),,test_fault_pairs),$(patsubst tests/c/%.c,%,$(C_TESTS)))
# Short runs are of all modes on one CPU, of the usual ones on the other. Of the refusals, those of calls that matter more on these
# CPUs than here: how other threads are told of new code, and what a write does then.
CPU_MODES ?= $(CPU_MODES_$(CPU))
CPU_MODES_riscv64 := syscall,alias
CPU_CALLS_riscv64 := sync
CPU_CALLS_aarch64 := sync,stop,write
CPU_SHORT = --timeout 900 --set EXECMEM_TEST_SHORT=1 --set EXECMEM_TEST_CALLS=$(CPU_CALLS_$(CPU)) \
	$(addprefix --set EXECMEM_TEST_MODES=,$(CPU_MODES))
CPU_ALONE = $(if $(LONG),--turns,--set maxcpus=1)
CPU_SETTINGS = $(if $(LONG),--timeout 7200 --set EXECMEM_TEST_CHANGES=1000000 --set EXECMEM_TEST_TELL=1,$(CPU_SHORT))

test-cpus:
	@$(MAKE) --no-print-directory --jobs=$(CPU_JOBS) --output-sync=target $(addprefix test-cpu-,$(CPUS))

test-cpu-%:
	@$(MAKE) --no-print-directory CC=$*-linux-gnu-gcc BUILD=$(BUILD)/cpu/$* CPU=$* EMULATED='$(CPU_TESTS)' emulate-cpu

emulate-cpu: $(EMULATED_INIT) $(addprefix $(BUILD)/c/static/,$(EMULATED))
ifneq ($(filter-out $(EMULATED_ALONE),$(EMULATED)),)
	python3 tests/emulate/emulate.py --cpu $(CPU) $(CPU_SETTINGS) $(filter-out $(addprefix %/,$(EMULATED_ALONE)),$^)
endif
ifneq ($(filter $(EMULATED_ALONE),$(EMULATED)),)
	python3 tests/emulate/emulate.py --cpu $(CPU) $(CPU_ALONE) $(CPU_SETTINGS) $(filter %/init $(addprefix %/,$(EMULATED_ALONE)),$^)
endif

asan-c: $(programs_asan)
	$(call run_each,$^,EXECMEM_TEST_SHORT=1 ASAN_OPTIONS=detect_leaks=1:abort_on_error=1 UBSAN_OPTIONS=print_stacktrace=1)

tsan: $(filter %/test_threads %/test_batch %/test_core %/test_live %/test_live_edges %/test_trap %/test_patch %/test_hook %/test_retire,$(programs_tsan))
	$(call run_each,$(filter-out %/test_threads %/test_retire,$^),EXECMEM_TEST_SHORT=1 TSAN_OPTIONS=$(TSAN))
	EXECMEM_TEST_MODES=syscall,alias,procmem EXECMEM_TEST_SHORT=1 TSAN_OPTIONS=$(TSAN) $(BUILD)/c/tsan/test_retire
	TSAN_OPTIONS=$(TSAN) $(BUILD)/c/tsan/test_threads 1500

# memcheck reads code once unless told that it changes under it. EXECMEM_TEST_SHORT asks the programs for fewer rounds. It runs one
# thread at a time, and one that spins for another's lock till its turn is over: programs with threads are for asan. It also makes the
# frames of signal handlers itself, without what the CPU told: so is the reporter's program. It does not know mseal: so is the one of
# sealing. Nor would it see code change under a thread. The pairs of refusals and the fuzzer's inputs would take too long: asan has them too.
#
# Leaks are not looked for where processes fork: memcheck does that whenever one ends, in all memory that is mapped. That is the whole
# address space of each inherited ledger, gigabytes of holes: half a minute a child, in which the test's alarm rings. The walk of
# refusals leaves its rows that fork out.
MEMCHECK := EXECMEM_TEST_SHORT=1 EXECMEM_TEST_NO_FORKS=1 valgrind -q --smc-check=all --error-exitcode=1
valgrind: $(programs_debug)
	$(call run_each,$(filter-out %/test_threads %/test_signals %/test_fork %/test_fork_edges %/test_report %/test_lockdown %/test_fault_pairs %/test_corpus %/test_live %/test_live_edges %/test_trap %/test_patch %/test_hook %/test_retire,$^),$(MEMCHECK) \
		--leak-check=full --errors-for-leak-kinds=definite)
	$(call run_each,$(filter %/test_fork_edges,$^),$(MEMCHECK) --leak-check=no)

# ---- Python tests on a sanitized core: a copy of the tree with its own _core, the runtime preloaded ----

ASAN_TREE := $(BUILD)/asan
ASAN_ENV = EXECMEM_SANITIZE=address,undefined EXECMEM_DEBUG=1
# libstdc++ too, or the runtime does not find the exceptions of C++ extensions that Python loads later.
ASAN_PRELOAD = $(shell $(CC) -print-file-name=libasan.so) $(shell $(CC) -print-file-name=libstdc++.so)

UNSANITIZED := directmap* draw* export occupancy notebook cli *_cli house bench* commands completion tui

asan: asan-c asan-python

# Python itself never frees all it has, so leaks are looked for in the C tests only. Some tests die of SIGSEGV on purpose.
# Left out are tests of Python that has no C, of C programs that are built without sanitizers, and of commands: what C those call, others test.
asan-python: build
	@mkdir -p $(ASAN_TREE)
	@for old in $(ASAN_TREE)/*; do case "$$old" in */build) ;; *) rm -rf "$$old" ;; esac; done
	@tar -cf - --exclude='./build' --exclude='./.venv' --exclude='./.git' --exclude='*.so' --exclude='__pycache__' \
		--exclude='./.*_cache' . | tar -xf - -C $(ASAN_TREE)
	cd $(ASAN_TREE) && $(ASAN_ENV) $(abspath $(PY)) setup.py -q build_ext --inplace
	cd $(ASAN_TREE) && $(ASAN_ENV) LD_PRELOAD="$(ASAN_PRELOAD)" PYTHONMALLOC=malloc PYTHONPATH=. \
		ASAN_OPTIONS=detect_leaks=0:abort_on_error=1:allocator_may_return_null=1:handle_segv=0:handle_sigbus=0 UBSAN_OPTIONS=print_stacktrace=1 \
		HYPOTHESIS_STORAGE_DIRECTORY=.hypothesis EXECMEM_TEST_SHORT=1 \
		$(abspath $(PY)) -m pytest -p no:cacheprovider -m 'not unsanitized' $(UNSANITIZED:%=--ignore-glob='*test_%.py') --benchmark-skip $(TESTS)

# ---- style ----

lint: build
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/clang-format --dry-run -Werror $(C_STYLED)

format: build
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix-only .
	$(VENV)/bin/clang-format -i $(C_STYLED)

clean:
	rm -rf $(BUILD) $(INSTALLED) dist *.egg-info execmem/*.so execmem/_core.c .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
