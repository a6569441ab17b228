/* map: the window, its packs, and the doors through which bytes get in.
 *
 *   window   guard | pack 0 | pack 1 | pack 2 |  reserved, no access ...  | guard
 *   file             0        2 MB     4 MB      one file: pack i is at offset i * 2 MB, so neighbours share one mapping
 *   alias    guard | pack 0 | pack 1 | pack 2 |  reserved ...             | guard   (modes alias and pkey only, at an unrelated random address, RW-)
 *
 * Offsets are bytes from the window's start. A pack is born here with all its memory blank (traps for text, zeros otherwise) before
 * the first view that can be executed exists (data packs are private memory in every mode); in mode procmem alone the pages read as zeros for the moment between mapping and
 * blanking. Packs are made by any number of threads at once, each its own; only em_map_extend is for one at a time.
 *
 * In mode pkey the alias lies under a protection key, to which a thread has rights only between open_key and shut_key, in map.c: while
 * it writes through a door, or blanks new memory. No code but ours runs in between, so no thread is made there that would inherit the
 * rights; and a signal handler starts with the kernel's default, which is none.
 */
#ifndef EM_MAP_H
#define EM_MAP_H

#include "base.h"

enum {
	EM_MAP_BLANK = 4096,   /* bytes of one blank unit: one that stays in the first cache is written quickest */
	EM_MAP_GUARD = 65536, /* bytes without access before and after the window, and the alias: addresses only */
};

struct em_map_options {
	int mode;            /* not AUTO */
	uint32_t packs;      /* of the window; may come out smaller when `shrink` */
	bool shrink;         /* take a smaller window rather than none */
	bool small_pages;
	bool fallback;       /* anywhere, when nothing is within reach */
	uint64_t near_address, reach; /* near_address 0: anywhere */
	const uint8_t *traps; /* EM_MAP_BLANK bytes, blank text */
};

struct em_map {
	int mode;
	bool small_pages;
	bool far;            /* the fallback was taken */
	bool sealed;         /* for ever */
	bool inherited;      /* some of its packs may lie in the parent process's file */
	int fd;              /* memfd or unlinked file; /proc/self/mem in procmem; -1 in flip, and once sealed */
	uint32_t backing;    /* enum execmem_backing */
	uint32_t packs;
	uint8_t *window;
	uint8_t *alias;      /* NULL but in modes alias and pkey, and once sealed */
	int key;             /* protection key of the alias; 0, which is everybody's: none */
	const uint8_t *traps;
	uint64_t file_size;
};

/* What an open door leads to: memory that may be written, or a file to pwrite to. */
struct em_map_door {
	uint8_t *memory;
	int fd;
	uint64_t at;
	uint64_t flipped, flipped_size; /* mode flip: what to turn back */
	int prot;
	bool keyed;                     /* mode pkey: this thread is to have these rights again */
	uint64_t rights;
};

bool em_map_has_keys(void); /* this CPU and kernel have protection keys */
/* 0 or why this mode cannot be had here: tries it on one page. *backing: of enum execmem_backing, as it came out. */
int em_map_works(int mode, const uint8_t *traps, uint32_t *backing);
int em_map_open(struct em_map *map, const struct em_map_options *options);
void em_map_close(struct em_map *map);

int em_map_extend(struct em_map *map, uint32_t packs); /* makes the file hold so many packs, before they are made */
/* Maps bytes [from, to) of a pack on small pages, blank. */
int em_map_grow(struct em_map *map, uint32_t pack, int kind, uint64_t from, uint64_t to);
/* Maps the rest of a pack, blank, as one 2 MB page where that can be had: *huge is what the kernel says then. */
int em_map_complete(struct em_map *map, uint32_t pack, int kind, uint64_t from, bool *huge);
/* Gives packs back to the system. What cannot be unmapped stays mapped and blank, and is reused when the pack is made again. */
void em_map_remove(struct em_map *map, uint32_t pack, uint32_t packs);

/* Gives up every way to write that the library has, and asks the kernel to refuse others: an enum execmem_sealed says how far it does.
 * Nobody opens a door or makes a pack meanwhile or later. `shared`: another process may have the file mapped. Negative: the alias could not be unmapped, and all is as it was. */
int em_map_seal(struct em_map *map, bool shared);

/* For poke only. The range lies in one extent [extent, extent + extent_size): the mapped part of a pack or a span. */
int em_map_open_door(struct em_map *map, int kind, uint64_t offset, uint64_t extent, uint64_t extent_size, struct em_map_door *out);
int em_map_close_door(struct em_map_door *door);

/* In a forked child: no way is left into the parent's packs, and new ones go to a file of this process. What is mapped in the window stays.
 * An error: a way may be left, and nothing may be written here any more. */
int em_map_inherit(struct em_map *map);
void em_map_forget(struct em_map *map,
                   uint32_t pack); /* in a forked child: one that was being made, by a thread that is not here */

uint64_t em_map_resident(const struct em_map *map); /* of its file while that is open; where there is none, of the window */
uint64_t em_map_present(const struct em_map *map, uint64_t offset, uint64_t size); /* bytes that this process has there */
#define EM_MAP_UNTOLD UINT64_MAX /* the kernel cannot be asked: no /proc */
uint64_t em_map_huge(const struct em_map *map, uint64_t offset, uint64_t size);
uint64_t em_map_vmas(const struct em_map *map);

/* Whether packs of text and rodata are in a memory file, which forked processes share. */
static inline bool em_map_has_file(int mode)
{
	return mode == EXECMEM_MODE_SYSCALL || mode == EXECMEM_MODE_ALIAS || mode == EXECMEM_MODE_PKEY;
}

#endif
