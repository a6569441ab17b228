/* model_wrong: what must be refused, each by its own error, and change nothing. */
#include "model_state.h"

/* What hardens is looked at last, when calls may have been refused. */
static void wrong_hardening(int room)
{
	static const execmem_options wrong[] = {{.trust = EXECMEM_TRUST_MAX + 1}, {.gap = EXECMEM_GAP_MAX + 1}, {.gap = UINT32_MAX}};
	uint32_t above = model.rooms[room].trust, which = model_draw(4);
	execmem_options o = which < 3 || above < 2 ? wrong[which % 3] : (execmem_options){.trust = 1 + model_draw(above - 1)};
	execmem_domain *none = NULL;
	int err;

	o.parent = model.rooms[room].d;
	o.window = 2 << 20;
	err = execmem_domain_open(&o, &none);
	EXPECT(!none && (err == EXECMEM_EINVAL || (model.scripted && model_is_systems(err))));
}

void model_wrong_requests(void)
{
	int room = model_draw_room(), which = (int)model_draw(14);
	execmem_domain *d = model.rooms[room].d, *none = NULL;
	uint64_t two[3] = {0, 100, 50}, out[2] = {7, 7};
	char name[300];
	void *at = NULL;

	memset(name, 'n', sizeof name);
	name[model_draw(2) ? 256 : 299] = '\0';
	switch (which) {
	case 0:
		EXPECT(execmem_alloc_in(d, 0, model_draw(2) ? 0 : SIZE_MAX - model_draw(256), 16, NULL, &at) == EXECMEM_EINVAL);
		break;
	case 1:
		EXPECT(execmem_alloc_in(d, 0, 1 + model_draw(256), model_draw(2) ? 0 : 3 + 2 * model_draw(9000), NULL, &at) ==
		       EXECMEM_EINVAL);
		break;
	case 2:
		EXPECT(execmem_place(d, model_draw(2) ? -1 : 3 + (int)model_draw(256), model_source, 9, 16, NULL, &at) == EXECMEM_EINVAL);
		break;
	case 3:
		EXPECT(execmem_alloc_in(d, 0, 9, 16, name, &at) == EXECMEM_EINVAL);
		break;
	case 4:
		EXPECT(execmem_place(d, 0, NULL, 9, 16, NULL, &at) == EXECMEM_EINVAL);
		break;
	case 5:
		EXPECT(execmem_alloc_in(d, 0, 9, 16, NULL, NULL) == EXECMEM_EINVAL);
		break;
	case 6:
		EXPECT(execmem_place_many(d, 0, 2, model_source, two, 16, NULL, out) == EXECMEM_EINVAL && execmem_error_index() == 1);
		break;
	case 7:
		EXPECT(execmem_place_many(d, 0, SIZE_MAX, NULL, two, 16, NULL, out) == EXECMEM_EINVAL);
		break;
	case 8:
		EXPECT(execmem_fill_many(d, 2, out, model_source, two) < 0 && execmem_free_many(d, SIZE_MAX / 8, NULL) < 0);
		break;
	case 9:
		EXPECT(execmem_domain_open(&(execmem_options){.window = 1 + model_draw(65536)}, &none) == EXECMEM_EINVAL && !none);
		break;
	case 10:
		EXPECT(execmem_domain_open(&(execmem_options){.name = name}, &none) == EXECMEM_EINVAL && !none);
		break;
	case 12:
		wrong_hardening(room);
		break;
	default:
		EXPECT(execmem_domain_open(&(execmem_options){.write_mode = -1 - (int)model_draw(256)}, &none) < 0 && !none);
		break;
	}
	EXPECT(!at);
	if (which != 6) /* there the first element may have been taken, and lost on the way back */
		model_expect_counts(room);
	else
		model_count_lost(room);
}

/* In a sealed domain wrong or right makes no difference. */
static void refused_by_seal(const struct thing *t, uint32_t inside)
{
	uint64_t twice[2] = {(uintptr_t)t->address, (uintptr_t)t->address}, offsets[3] = {0, 1, 2};
	execmem_domain *d = model.rooms[t->room].d;

	inside %= t->size;
	EXPECT(execmem_free(t->address + inside) == EXECMEM_ESEALED && execmem_free_in(d, t->address + inside) == EXECMEM_ESEALED);
	EXPECT(execmem_fill(t->address, model_source, t->size + 1ull) == EXECMEM_ESEALED);
	EXPECT(execmem_free_many(d, 2, twice) == EXECMEM_ESEALED && execmem_error_index() == 0);
	EXPECT(execmem_fill_many(d, 2, twice, model_source, offsets) == EXECMEM_ESEALED && execmem_error_index() == 0);
	EXPECT(execmem_domain_seal(d) == 0);
	model_expect_bytes(t);
	model_expect_counts(t->room);
}

void model_wrong_addresses(void)
{
	struct thing *t = model_draw_thing(), *other = model_draw_thing();
	uint64_t twice[2], far;
	uint32_t inside = model_draw(65536);
	execmem_domain *d;

	EXPECT(execmem_free(NULL) == EXECMEM_EFOREIGN && execmem_fill(&far, model_source, 1) == EXECMEM_EFOREIGN);
	if (!t)
		return;
	if (model.rooms[t->room].sealed) {
		refused_by_seal(t, inside);
		return;
	}
	d = model.rooms[t->room].d;
	far = model_rounded(t->size);
	inside = 1 + inside % (uint32_t)(far - 1);
	EXPECT(execmem_free(t->address + inside) == EXECMEM_EINTERIOR);
	EXPECT(execmem_free_in(d, t->address + inside) == EXECMEM_EINTERIOR);
	EXPECT(execmem_fill(t->address, model_source, t->size + 1ull) == EXECMEM_EBOUNDS);
	EXPECT(execmem_fill(t->address + t->size - 1, model_source, SIZE_MAX - inside) == EXECMEM_EBOUNDS);
	EXPECT(execmem_fill(t->address, NULL, 1) == EXECMEM_EINVAL);
	twice[0] = twice[1] = (uintptr_t)t->address;
	EXPECT(execmem_free_many(d, 2, twice) == EXECMEM_EFREED && execmem_error_index() == 1);
	twice[1] = (uintptr_t)t->address + inside;
	EXPECT(execmem_free_many(d, 2, twice) == EXECMEM_EINTERIOR && execmem_error_index() == 1);
	twice[1] = 1;
	EXPECT(execmem_free_many(d, 2, twice) == EXECMEM_EFOREIGN && execmem_error_index() == 1);
	if (other->room != t->room)
		EXPECT(execmem_free_in(d, other->address) == EXECMEM_EFOREIGN);
	model_expect_counts(t->room);
}

/* Frees again what was freed last, unless something else lies there by now. */
void model_wrong_free_again(void)
{
	uint8_t *at = model.freed.address;
	int room = model.freed.room;

	if (!at || !model.rooms[room].open || model.rooms[room].lost > 0)
		return;
	for (int i = 0; i < BLOCKS; i++)
		if (model.things[i].address && at >= model.things[i].address &&
		    at < model.things[i].address + model_rounded(model.things[i].size))
			return;
	if (model.rooms[room].sealed)
		EXPECT(execmem_free(at) == EXECMEM_ESEALED && execmem_fill(at, model_source, 1) == EXECMEM_ESEALED);
	else
		EXPECT(execmem_free(at) == EXECMEM_EFREED && execmem_fill(at, model_source, 1) == EXECMEM_EFREED);
	model_expect_counts(room);
}

void model_wrong_closed(void)
{
	execmem_domain *d = model.stale[model_draw(STALE)], *none = NULL;
	uint64_t out[2], sizes[1] = {8};
	execmem_stats stats;
	void *at = NULL;

	if (!d)
		return;
	EXPECT(execmem_alloc_in(d, 0, 8, 16, NULL, &at) == EXECMEM_ECLOSED && execmem_free_in(d, model_source) == EXECMEM_ECLOSED);
	EXPECT(execmem_place(d, 0, model_source, 8, 16, NULL, &at) == EXECMEM_ECLOSED && !at);
	EXPECT(execmem_domain_close(d, (int)model_draw(2)) == EXECMEM_ECLOSED && execmem_domain_stats(d, &stats) == EXECMEM_ECLOSED);
	EXPECT(execmem_domain_seal(d) == EXECMEM_ECLOSED);
	EXPECT(execmem_domain_limit(d, 5) == EXECMEM_ECLOSED && execmem_alloc_many(d, 0, 1, sizes, 16, NULL, out) == EXECMEM_ECLOSED);
	EXPECT(!execmem_domain_ledger(d) && execmem_domain_check(d));
	EXPECT(execmem_domain_open(&(execmem_options){.parent = d}, &none) == EXECMEM_ECLOSED && !none);
}
