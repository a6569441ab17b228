/* none/poke: making new bytes run on this CPU. */
#include "room.h"

/* ---- after a write ---- */

/* No domain can be opened on this CPU, so nothing was written. */
void em_none_flush(void *exec, size_t len)
{
	(void)exec;
	(void)len;
}

/* ---- past the caches ---- */

/* Nothing is known of this CPU's stores, so the table has none. */

/* ---- protection keys ---- */

/* None are known, so the table has none. */

/* ---- live changes ---- */

/* None are allowed. */
