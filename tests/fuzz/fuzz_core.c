/* fuzz_core: bytes become operations on the library and on its shadow (tests/c/model.h), under libFuzzer: `make fuzz`. What is kept in
 * tests/fuzz/corpus is done again by tests/c/test_corpus.c, without clang.
 */
#include "model.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	model_replay(data, size);
	return 0;
}
