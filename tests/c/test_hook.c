/* test_hook: hooks of every kind of function, while two threads run it; chains; what is refused; failures of the system.
 *
 * usage: test_hook [20 times the changes for each kind of function in each mode]
 */
#include "arch.h"
#include "patches.h"

static uint64_t seed = 6;

/* A number more than the original. */
static uint8_t *place_replacement(execmem_domain *d, const execmem_hook *hook, uint8_t by)
{
	return place_caller(d, false, execmem_hook_original(hook), 0, by);
}

static size_t from_hex(const char *hex, uint8_t *out)
{
	size_t len = 0;

	for (; *hex; hex += 2) {
		unsigned byte;

		EXPECT(sscanf(hex, "%2x", &byte) == 1);
		out[len++] = (uint8_t)byte;
	}
	return len;
}

/* Functions that give 5. */
struct function {
	const char *hex;
	uint32_t before; /* bytes before it that are for patching */
	bool quiet; /* it needs that */
	uint32_t size; /* of its code, where data follow */
};

/* What cannot be hooked, and a word of why. */
struct refusal {
	const char *hex;
	uint32_t before, size;
	const char *word;
};

/* The first of `functions` is for patching, the second's first instruction reaches only so far. SEVERAL: one that begins with several for
 * nothing, SEVERAL_SIZE bytes; -1: there is none. */
#if defined(__aarch64__)
enum { SEVERAL = -1, SEVERAL_SIZE = 4 };

static const struct function functions[] = {
	{"1f2003d5a0008052c0035fd6", 0, false, 0}, /* nop; mov w0, 5; ret: gcc's -fpatchable-function-entry=1 */
	{"40000018c0035fd605000000", 0, false, 8}, /* ldr w0, .+8 */
	{"5f2403d51f2003d5a0008052c0035fd6", 0, false, 0}, /* behind bti c */
	{"a0008052c0035fd6", 0, false, 0}, /* mov w0, 5, which no store may change */
	{"02000014000020d4a0008052c0035fd6", 0, false, 0}, /* b .+8 */
	{"5f000034000020d4a0008052c0035fd6", 0, false, 0}, /* cbz wzr, .+8 */
	{"60000010000040b9c0035fd605000000", 0, false, 12}, /* adr x0, .+12; ldr w0, [x0] */
};

static const struct refusal refusals[] = {
	{"00000000c0035fd6", 0, 0, "no known instruction"},       {"a00080521f2003d5feffff17", 0, 0, "leads back"},
	{"a0008052c0035fd600000000", 0, 0, "Give the size"},      {"01000094c0035fd6", 0, 0, "where it lies"},
	{"1f000010a0008052c0035fd6", 0, 0, "the same elsewhere"},
};
#elif defined(__riscv)
enum { SEVERAL = 2, SEVERAL_SIZE = 4 };

static const struct function functions[] = {
	{"130000001305500067800000", 0, false, 0}, /* nop; li a0, 5; ret */
	{"63040000130000001305500067800000", 0, false, 0}, /* beqz zero, .+8 */
	{"010001001305500067800000", 0, true, 0}, /* gcc's nops: c.nop; c.nop */
	{"17000000130000001305500067800000", 0, false, 0}, /* behind lpad */
	{"1305500067800000", 0, false, 0}, /* li a0, 5 */
	{"170500000325c5006780000005000000", 0, false, 12}, /* auipc a0, 0; lw a0, 12(a0) */
	{"15458280", 0, true, 0}, /* c.li a0, 5; c.jr ra */
	{"0100130000001545828001000100", 0, true, 0}, /* c.nop; nop: six bytes */
	{"014519c113059000154582800100", 0, true, 0}, /* c.li a0, 0; c.beqz a0, .+6 */
	{"0100010001001305500067800000", 4, false, 0}, /* gcc's -fpatchable-function-entry=3,2: c.nop behind the pad */
	{"1300000015458280", 4, false, 0}, /* two bytes that are for something */
};

static const struct refusal refusals[] = {
	{"8280", 0, 0, "over before"},
	{"0100", 0, 0, "or is over"},
	{"1f00000013055000", 0, 0, "no known instruction"},
	{"13055000130000006ff09fff", 0, 0, "leads back"},
	{"13055000678000000000", 0, 0, "Give the size"},
	{"ef00400067800000", 0, 0, "where it lies"},
	{"01001305500067800000", 2, 0, "does not lie"},
	{"13055000010015458280", 4, 0, "do something"},
};
#else
enum { SEVERAL = 11, SEVERAL_SIZE = 5 };

static const struct function functions[] = {
	{"0f1f440000b805000000c3", 0, false, 0}, /* for patching, one instruction: gcc's nops made one */
	{"8b0501000000c305000000", 0, false, 7}, /* mov eax, [rip + 1] */
	{"0f1f440008b805000000c3", 0, false, 0}, /* as clang writes it */
	{"f30f1efa0f1f440000b805000000c3", 0, false, 0}, /* behind endbr64 */
	{"b805000000c3", 0, false, 0}, /* mov eax, 5 */
	{"48b80500000000000000c3", 0, false, 0}, /* movabs */
	{"e906000000909090909090b805000000c3", 0, false, 0}, /* jmp */
	{"909090909090b805000000c3", 5, true, 0}, /* one byte is no room for a jump to the pad */
	{"90909090906690b805000000c3", 5, false, 0}, /* clang's -fpatchable-function-entry=7,5 */
	{"9090909090f30f1efa6690b805000000c3", 5, false, 0}, /* and endbr64 */
	{"909090909031c0b805000000c3", 5, false, 0}, /* two bytes that are for something */
	{"909090909090b805000000c3", 0, true, 0}, /* gcc's nops */
	{"554889e5b8050000005dc3", 0, true, 0}, /* push rbp; mov rbp, rsp */
	{"31c085c0740690909090909083c005c3", 0, true, 0}, /* a short branch behind the room */
	{"31c07406909090909090b805000000c3", 0, true, 0}, /* and within: widened */
	{"31c0e80300000083c005c30f1f00c3", 0, true, 0}, /* a call, and what it calls */
};

static const struct refusal refusals[] = {
	{"c3", 0, 0, "over before"},
	{"909090", 0, 0, "or is over"},
	{"90c3909090909090", 0, 0, "over before"},
	{"ebfe9090909090", 0, 0, "over before"},
	{"0606060606", 0, 0, "no known instruction"},
	{"b805000000ebf9c3", 0, 0, "leads back"},
	{"5557564154ffc075faebf7c3", 0, 0, "leads back"},
	{"5557564154b805000000eb0006c3", 0, 0, "Give the size"},
	{"e80000000058c3", 0, 0, "where it lies"},
	{"5551e3035990909090c3", 0, 0, "the same elsewhere"},
	{"31c09090906690b805000000c3", 5, 0, "do something"},
};
#endif
enum { FUNCTIONS = sizeof functions / sizeof functions[0] };

static uint8_t *place_function(const struct function *f, uint8_t *bytes, size_t *len)
{
	uint8_t *at;

	*len = from_hex(f->hex, bytes);
	at = place(domain, bytes, *len) + f->before;
	snprintf(test_context, sizeof test_context, "function %s", f->hex);
	EXPECT(call(at) == 5);
	return at;
}

static void attach(execmem_hook *hook, const void *replacement, int priority, bool quiet)
{
	EXPECT(execmem_hook_attach(hook, replacement, priority, quiet ? EXECMEM_PATCH_QUIET : 0) == 0);
	EXPECT(!execmem_hook_check(hook) && execmem_hook_is_attached(hook));
}

static void test_function(const struct function *f)
{
	uint64_t live;
	uint8_t bytes[32];
	size_t len;
	uint8_t *at = place_function(f, bytes, &len), *more;
	execmem_hook_options options = {.before = f->before, .size = f->size};
	execmem_hook *hook;

	live = live_blocks(domain);
	EXPECT(execmem_hook_make(at, &options, &hook) == 0);
	EXPECT(memcmp(at - f->before, bytes, len) == 0 && call(execmem_hook_original(hook)) == 5);
	more = place_replacement(domain, hook, 10);
	EXPECT(call(more) == 15);
	if (f->quiet) {
		EXPECT(execmem_hook_attach(hook, more, 0, 0) == EXECMEM_EENTRY && memcmp(at - f->before, bytes, len) == 0);
		EXPECT(!execmem_hook_is_attached(hook));
	}
	attach(hook, more, 0, f->quiet);
	EXPECT(call(at) == 15 && call(execmem_hook_original(hook)) == 5);
	EXPECT(execmem_hook_attach(hook, more, 0, 0) == EXECMEM_EBUSY && execmem_hook_free(hook) == EXECMEM_EBUSY);
	for (int i = 0; i < 3; i++) {
		EXPECT(execmem_hook_detach(hook, 0) == 0 && call(at) == 5 && !execmem_hook_check(hook));
		EXPECT(f->quiet || memcmp(at, bytes + f->before, len - f->before) == 0);
		attach(hook, more, i, false);
		EXPECT(call(at) == 15);
	}
	EXPECT(execmem_hook_detach(hook, 0) == 0 && execmem_hook_detach(hook, 0) == 0);
	if (f->quiet)
		EXPECT(execmem_hook_free(hook) == EXECMEM_EBUSY && execmem_hook_detach(hook, EXECMEM_PATCH_QUIET) == 0);
	EXPECT(memcmp(at, bytes + f->before, len - f->before) == 0);
	EXPECT(execmem_hook_free(hook) == 0 && memcmp(at - f->before, bytes, len) == 0);
	EXPECT(execmem_free(more) == 0 && live_blocks(domain) == live);
	EXPECT(call(at) == 5 && execmem_free(at - f->before) == 0);
}

/* Three hooks, attached and detached in every order; what a call gives tells who ran, and in what order. */
static void test_chain(const struct function *f)
{
	static const int orders[6][3] = {{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}};
	uint8_t bytes[32];
	size_t len;
	uint8_t *at = place_function(f, bytes, &len), *more[3];
	execmem_hook_options options = {.before = f->before, .size = f->size};
	execmem_hook *hooks[3];

	for (int i = 0; i < 3; i++) {
		EXPECT(execmem_hook_make(at, &options, &hooks[i]) == 0);
		more[i] = place_caller(domain, false, execmem_hook_original(hooks[i]), 4, (uint32_t)i + 1);
	}
	for (int in = 0; in < 6; in++)
		for (int out = 0; out < 6; out++) {
			/* by priority 2, 2, 1: among equals who came last runs first, so it comes last in the number */
			uint32_t first_of_two = orders[in][0] == 2 ? (uint32_t)orders[in][1] : (uint32_t)orders[in][0];
			uint32_t told = 0x5300 | (first_of_two + 1) << 4 | (2 - first_of_two);

			for (int i = 0; i < 3; i++)
				attach(hooks[orders[in][i]], more[orders[in][i]], orders[in][i] == 2 ? 1 : 2, f->quiet);
			EXPECT(call(at) == told);
			for (int i = 0; i < 3; i++) {
				EXPECT(call(at) != 5);
				EXPECT(execmem_hook_detach(hooks[orders[out][i]], 0) == 0 && !execmem_hook_check(hooks[0]));
			}
			EXPECT(call(at) == 5);
		}
	EXPECT(execmem_hook_free(hooks[0]) == 0 && execmem_hook_free(hooks[1]) == 0);
	EXPECT(!f->quiet || execmem_hook_detach(hooks[2], EXECMEM_PATCH_QUIET) == 0);
	EXPECT(execmem_hook_free(hooks[2]) == 0 && memcmp(at - f->before, bytes, len) == 0);
	EXPECT(execmem_free(at - f->before) == 0);
}

static void refuse_function(int code, const char *hex, uint32_t before, uint64_t size, const char *word)
{
	uint8_t bytes[32];
	size_t len = from_hex(hex, bytes);
	uint8_t *at = place(domain, bytes, len);
	execmem_hook_options options = {.before = before, .size = size};
	uint64_t live = live_blocks(domain);
	execmem_hook *hook;

	snprintf(test_context, sizeof test_context, "function %s", hex);
	EXPECT(execmem_hook_make(at + before, &options, &hook) == code);
	EXPECT(strstr(execmem_error_text(), word) && live_blocks(domain) == live && memcmp(at, bytes, len) == 0);
	EXPECT(execmem_free(at) == 0);
}

static void test_hook_refusals(void)
{
	execmem_hook *hook;
	uint8_t *at;
	void *out;

	for (size_t i = 0; i < sizeof refusals / sizeof refusals[0]; i++)
		refuse_function(EXECMEM_EENTRY, refusals[i].hex, refusals[i].before, refusals[i].size, refusals[i].word);
	refuse_function(EXECMEM_EBOUNDS, functions[0].hex, 0, 32, "are not all in its block");
	at = place_number(domain, 5);
	EXPECT(execmem_hook_make(at, &(execmem_hook_options){.before = 8}, &hook) == EXECMEM_EBOUNDS);
	EXPECT(execmem_hook_make(&hook, NULL, &hook) == EXECMEM_EFOREIGN && execmem_hook_make(at, NULL, NULL) == EXECMEM_EINVAL);
	EXPECT(execmem_alloc_in(domain, EXECMEM_TEXT, 64, 64, NULL, &out) == 0);
	EXPECT(execmem_hook_make(out, NULL, &hook) == EXECMEM_EENTRY && execmem_free(out) == 0);
	EXPECT(execmem_hook_make(out, NULL, &hook) == EXECMEM_EFREED);
	EXPECT(execmem_hook_make(at, NULL, &hook) == 0);
	EXPECT(execmem_hook_attach(hook, NULL, 0, 0) == EXECMEM_EINVAL && execmem_hook_attach(NULL, at, 0, 0) == EXECMEM_EINVAL);
	EXPECT(execmem_hook_attach(hook, (void *)(uintptr_t)far_away, 0, 0) == EXECMEM_EREACH && call(at) == 5);
	EXPECT(execmem_hook_attach(hook, (void *)(uintptr_t)far_away, 0, EXECMEM_PATCH_VENEER) == 0 && call(at) == 77);
	EXPECT(execmem_hook_detach(hook, 0) == 0 && call(at) == 5 && execmem_hook_free(hook) == 0);
	for (int nothing = 0; nothing < 2; nothing++) { /* what the hook needs lies far from the function */
		execmem_hook_options options = {.domain = second, .size = functions[!nothing].size};
		uint8_t bytes[32];
		size_t len;

		at = place_function(&functions[!nothing], bytes, &len);
		EXPECT(execmem_hook_make(at, &options, &hook) == (nothing ? 0 : EXECMEM_EREACH) && memcmp(at, bytes, len) == 0);
	}
	EXPECT(call(execmem_hook_original(hook)) == 5);
	out = place_replacement(second, hook, 1);
	EXPECT(execmem_hook_attach(hook, out, 0, 0) == EXECMEM_EREACH && call(at) == 5);
	EXPECT(execmem_hook_attach(hook, out, 0, EXECMEM_PATCH_VENEER) == EXECMEM_EREACH && call(at) == 5); /* it would lie there too */
	EXPECT(execmem_hook_free(hook) == 0);
	EXPECT(execmem_hook_detach(NULL, 0) == EXECMEM_EINVAL && execmem_hook_free(NULL) == EXECMEM_EINVAL);
	EXPECT(!execmem_hook_is_attached(NULL) && !execmem_hook_original(NULL) && !execmem_hook_check(NULL));
}

static void test_prepare(void)
{
	uint8_t bytes[32], nop[SEVERAL_SIZE];
	size_t len;
	uint8_t *at = place_function(&functions[SEVERAL < 0 ? 0 : SEVERAL], bytes, &len);
	execmem_hook *hook;

	em_arch_host()->encode_nops(nop, SEVERAL_SIZE);
	EXPECT(execmem_hook_prepare(at, SEVERAL_SIZE + 2) == EXECMEM_EENTRY && execmem_hook_prepare(at, 16) == EXECMEM_EENTRY);
	EXPECT(execmem_hook_prepare(&hook, SEVERAL_SIZE) == EXECMEM_EFOREIGN && memcmp(at, bytes, len) == 0);
	EXPECT(execmem_hook_prepare(at, SEVERAL_SIZE) == 0 && memcmp(at, nop, SEVERAL_SIZE) == 0 && call(at) == 5);
	EXPECT(execmem_hook_prepare(at, SEVERAL_SIZE) == 0);
	EXPECT(execmem_hook_make(at, NULL, &hook) == 0);
	attach(hook, place_number(domain, 8), 0, false);
	EXPECT(call(at) == 8 && execmem_hook_detach(hook, 0) == 0 && call(at) == 5 && execmem_hook_free(hook) == 0);
}

/* Two hooks come and go while threads run the function, of each kind. */
static void stress_hooks(int amount)
{
	for (int n = 0; n < FUNCTIONS; n++) {
		uint8_t bytes[32];
		size_t len;
		uint8_t *at = place_function(&functions[n], bytes, &len);
		execmem_hook_options options = {.before = functions[n].before, .size = functions[n].size};
		execmem_hook *hooks[2];
		const void *more[2];

		for (int i = 0; i < 2; i++) {
			EXPECT(execmem_hook_make(at, &options, &hooks[i]) == 0);
			more[i] = place_replacement(domain, hooks[i], i == 0 ? 10 : 0);
		}
		attach(hooks[0], more[0], 0, functions[n].quiet);
		runners.code[0] = at;
		runners.count = 1;
		runners.nested = true;
		start(1, 5, 15);
		for (int i = 0; i < amount; i++) {
			int which = (int)(test_random(&seed) % 2), now = atomic_load(&runners.now);
			bool on = execmem_hook_is_attached(hooks[which]);

			begin_change();
			if (on)
				CHANGE(execmem_hook_detach(hooks[which], 0));
			else
				CHANGE(execmem_hook_attach(hooks[which], more[which], (int)(test_random(&seed) % 3), 0));
			end_change(which == 0 ? !on : now);
			if (i % 16 == 0)
				EXPECT(execmem_hook_check(hooks[0]) == NULL);
		}
		stop();
		runners.nested = false;
		for (int i = 0; i < 2; i++)
			EXPECT(execmem_hook_detach(hooks[i], 0) == 0);
		EXPECT(execmem_hook_detach(hooks[1], EXECMEM_PATCH_QUIET) == 0);
		for (int i = 0; i < 2; i++)
			EXPECT(execmem_hook_free(hooks[i]) == 0);
		EXPECT(memcmp(at - functions[n].before, bytes, len) == 0 && execmem_free(at - functions[n].before) == 0);
	}
}

static void test_hook_failures(const struct function *f)
{
	uint8_t bytes[32];
	size_t len;
	uint8_t *at = place_function(f, bytes, &len), *more;
	execmem_hook_options options = {.before = f->before, .size = f->size};
	execmem_hook *hook;
	uint64_t live = live_blocks(domain);
	bool refused;
	int err, number;

	for (number = 0, refused = true; refused; number++) {
		refuse_call(number);
		err = execmem_hook_make(at, &options, &hook);
		refused = was_refused();
		EXPECT(call(at) == 5 && memcmp(at - f->before, bytes, len) == 0);
		EXPECT((err < 0 || execmem_hook_free(hook) == 0) && live_blocks(domain) == live);
	}
	EXPECT(execmem_hook_make(at, &options, &hook) == 0);
	more = place_replacement(domain, hook, 10);
	for (number = 0, refused = true; refused; number++) {
		refuse_call(number);
		err = execmem_hook_attach(hook, more, 0, EXECMEM_PATCH_QUIET);
		refused = was_refused();
		EXPECT(execmem_hook_is_attached(hook) == (err == 0) && !execmem_hook_check(hook));
		EXPECT(call(at) == (err == 0 ? 15 : 5) && call(execmem_hook_original(hook)) == 5);
		EXPECT(execmem_hook_detach(hook, EXECMEM_PATCH_QUIET) == 0 && memcmp(at, bytes + f->before, len - f->before) == 0);
	}
	EXPECT(number > 2);
	for (number = 0, refused = true; refused; number++) {
		attach(hook, more, 0, f->quiet);
		refuse_call(number);
		err = execmem_hook_detach(hook, EXECMEM_PATCH_QUIET);
		refused = was_refused();
		EXPECT(execmem_hook_is_attached(hook) == (err < 0) && !execmem_hook_check(hook));
		EXPECT(call(at) == (err < 0 ? 15 : 5));
		EXPECT(execmem_hook_detach(hook, EXECMEM_PATCH_QUIET) == 0 && memcmp(at, bytes + f->before, len - f->before) == 0);
	}
	EXPECT(execmem_hook_free(hook) == 0 && memcmp(at - f->before, bytes, len) == 0);
}

int main(int argc, char **argv)
{
	int amount = test_amount(argc, argv, 2000, 100);

	for (int mode = EXECMEM_MODE_SYSCALL; mode < EXECMEM_MODES; mode++) {
		if (!test_takes_mode(mode) || (mode == EXECMEM_MODE_FLIP && !TEST_STOPS_THREADS))
			continue;
		open_domains(mode);
		for (int i = 0; i < FUNCTIONS; i++) {
			test_function(&functions[i]);
			test_chain(&functions[i]);
			test_hook_failures(&functions[i]);
		}
		test_hook_refusals();
		test_prepare();
		stress_hooks((mode == EXECMEM_MODE_FLIP ? amount / 20 : amount) / 20 + 1);
		close_domains();
	}
	puts("ok");
	return 0;
}
