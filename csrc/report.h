/* report: tells what a fault in a domain's window was about (execmem_report_faults). The signal handler is in sys_fault.c, the words in
 * docs/crashes.md.
 *
 * All of it runs in a signal handler, on a thread that may hold any lock, beside threads that change what it reads. So it takes no lock
 * and believes nothing: the ledger is read as another process would read it, by copies of memory that may be gone, and every number out
 * of it is checked before it is used. What it says of a block is of the moment of the report.
 */
#ifndef EM_REPORT_H
#define EM_REPORT_H

#include "domain.h"

#endif
