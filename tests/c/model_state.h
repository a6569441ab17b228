/* model_state: what the files of the model share: the shadow, draws from the input, what is expected. */
#ifndef EM_TEST_MODEL_STATE_H
#define EM_TEST_MODEL_STATE_H

#include "model.h"
#include "test.h"

enum { DOMAINS = 6, BLOCKS = 192, BATCH = 48, STALE = 4, BIGGEST = 5 << 20, SPANS = 2, WATCHED = 8, RETIRED = 48 };

struct waiting { /* a freed block that nobody may get yet */
	uint8_t *address;
	uint32_t bytes;
	int kind;
};

struct queue { /* of one shard, oldest first */
	struct waiting *all;
	size_t from, to, room;
	uint64_t bytes;
};

struct room { /* a domain; the first is the root */
	execmem_domain *d;
	bool open;
	int parent;
	int mode;
	bool tight;   /* a small window, which may be full */
	uint64_t limit;
	uint64_t live, live_bytes, used; /* what the shadow has in it */
	uint64_t lost, lost_bytes, lost_used; /* blocks of a batch that could neither be completed nor made blank again */
	uint64_t quarantine;
	uint32_t trust;
	struct queue waiting[EXECMEM_SHARDS_MAX];
	bool unsure;        /* more may wait than the shadow knows, from before what it knows */
	bool sealed;        /* nothing of it changes any more */
	bool pinned;        /* it or one below is sealed: it cannot be closed */
	uint64_t kept_used; /* of sealed children that are watched no more */
	uint64_t retired, retired_bytes; /* of the live ones */
	const void *code;   /* of a sealed one: a function */
	uint32_t result;    /* what it gives */
};

struct thing { /* a block */
	uint8_t *address; /* NULL: the slot is free */
	uint8_t *bytes;
	uint32_t size;
	int room, kind;
	char name[40];
};

struct retired { /* a block that waits until nobody can be inside */
	struct thing thing;
	bool late[2]; /* threads that must say first that they are outside */
	int shard;    /* it is freed in */
};

struct model_state {
	struct model_options o;
	size_t at;
	uint64_t random;
	bool scripted; /* a call may fail */
	struct room rooms[DOMAINS];
	struct thing things[BLOCKS];
	execmem_domain *stale[STALE];
	struct thing freed; /* the last one: address, room */
	struct retired gone[RETIRED]; /* oldest first */
	int retired;
	bool elsewhere; /* the second thread has its turn */
	int online[2]; /* how often each thread has said so */
	int spans;
	int seals; /* done in this run */
};

extern struct model_state model;
extern uint8_t model_source[BIGGEST + 256]; /* what blocks are filled with */

/* ---- model.c ---- */

uint8_t model_draw8(void);
uint32_t model_draw(uint32_t below);
int model_draw_room(void);
struct thing *model_draw_thing(void); /* a live block; NULL: there is none */

uint64_t model_rounded(uint64_t size);
void model_blank(uint8_t *to, int kind, uint64_t phase, uint64_t len);
void model_expect_bytes(const struct thing *thing);
void model_adopt_blank(struct thing *thing, uint64_t from, uint64_t len); /* after a refusal: as it was, or blank */
uint64_t model_charged(int room);
bool model_is_systems(int err);
void model_expect_systems(int err, int mode);
void model_expect_refusal(int err, int room, uint64_t bytes);
void model_expect_counts(int room);
void model_count_lost(int room);
struct thing *model_free_slot(void);
void model_enter_thing(struct thing *thing, int room, int kind, void *address, uint32_t size, const char *name);
void model_leave_thing(struct thing *thing);  /* it is not there any more */
void model_forget_thing(struct thing *thing); /* it is, and stays, and the shadow looks no more */
void model_stop_failures(void);               /* the script ends, what it did is counted */

/* ---- model_rooms.c: domains ---- */

int model_possible_mode(int mode);
void model_open_room(void);
void model_close_room(void);
void model_set_limit(void);
void model_seal_room(int room);
void model_end_room(int room); /* with all below it: closed, or, where that cannot be, sealed for good */
void model_expect_room(int room);

/* ---- model_waiting.c: freed blocks in quarantine ---- */

int model_waiting_shard(int room, const void *address); /* whose queue a block goes to when it is freed */
void model_waiting_add(int room, int shard, const struct thing *freed);
void model_waiting_expect_fresh(int room, const void *address, uint64_t bytes); /* given out: none of it waits */
void model_waiting_expect_given_up(int room); /* what waited came to whoever found the window full */
void model_waiting_lose_track(int room); /* what was undone may have gone there, and pushed others out */
void model_waiting_expect_counts(int room, const execmem_shard *sum);
void model_waiting_expect_blank(int room);
void model_waiting_free_again(uint32_t drawn);
void model_waiting_forget(int room);

/* ---- model_census.c: what is sealed stays until the process ends, and is not counted as left behind ---- */

bool model_census_can_seal(void); /* the kernel has mseal, and lets it through */
bool model_census_has_room(void); /* for another */
void model_census_keep(const struct room *sealed);
void model_census_expect_kept(void); /* they are as they were */

/* ---- model_live.c: instructions that are changed, blocks that are retired ---- */

void model_live_poke(void);
void model_live_retire(void);
void model_live_offline(void); /* the calling thread */
void model_live_settle(void); /* what waits is freed */
void model_live_forget(int room); /* what waits there goes with it */
void model_live_expect(void); /* what waits is as it was */

/* ---- model_wrong.c ---- */

void model_wrong_requests(void);
void model_wrong_addresses(void);
void model_wrong_free_again(void);
void model_wrong_closed(void);

#endif
