/* fuzz_core: bytes become operations on the library and on its shadow (tests/c/model.h), under libFuzzer; `make fuzz` says how.
 *
 * The first byte chooses the write mode and whether system calls may fail; the rest are operations with their arguments.
 */
#include "model.h"
#include "execmem.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (size < 2)
		return -1;
	model_run(&(struct model_options){
		.bytes = data + 1,
		.len = size - 1,
		.mode = data[0] % 8 < EXECMEM_MODES ? data[0] % 8 : 0,
		.faults = data[0] & 8 ? MODEL_FAULTS_NONE : MODEL_FAULTS_DRAWN,
		.check_every = 8,
		.small = data[0] & 16,
	});
	return 0;
}
