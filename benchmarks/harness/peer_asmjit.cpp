// peer_asmjit: AsmJit's JitAllocator, written to the way its own JitRuntime::add() does.
//
// "asmjit" is what a user gets who asks for nothing, with the one change that what is freed is filled with traps, since
// every other executable peer here does that. "asmjit-plain" is without.
#include "peer.h"

#include <asmjit/core.h>

#include <cstdio>
#include <cstring>
#include <new>

using asmjit::JitAllocator;
using asmjit::JitAllocatorOptions;

namespace
{

constexpr JitAllocatorOptions kTraps = JitAllocatorOptions::kFillUnusedMemory;
constexpr JitAllocatorOptions kDual = JitAllocatorOptions::kUseDualMapping | kTraps;
constexpr JitAllocatorOptions kDualPools = kDual | JitAllocatorOptions::kUseMultiplePools;

void *allocator_open(const struct peer *self, const struct peer_plan *, char why[PEER_WHY])
{
	JitAllocator::CreateParams params{};
	params.options = static_cast<JitAllocatorOptions>(self->variant);
	JitAllocator *allocator = new (std::nothrow) JitAllocator(&params);
	if (allocator == nullptr || allocator->blockSize() == 0) {
		std::snprintf(why, PEER_WHY, "JitAllocator could not be made");
		delete allocator;
		return nullptr;
	}
	return allocator;
}

int allocator_alloc(void *state, size_t size, struct span *out)
{
	return static_cast<JitAllocator *>(state)->alloc(&out->code, &out->writable, size) == asmjit::kErrorOk ? 0 : -1;
}

int allocator_write(void *, const struct span *at, const void *code, size_t size)
{
	asmjit::VirtMem::ProtectJitReadWriteScope scope(at->code, size);
	std::memcpy(at->writable, code, size);
	return 0;
}

int allocator_free(void *state, const struct span *at, size_t)
{
	return static_cast<JitAllocator *>(state)->release(at->code) == asmjit::kErrorOk ? 0 : -1;
}

void allocator_close(void *state)
{
	delete static_cast<JitAllocator *>(state);
}

constexpr struct peer make(const char *name, const char *about, JitAllocatorOptions options, int traps)
{
	struct peer peer{};
	peer.name = name;
	peer.about = about;
	peer.executable = 1;
	peer.traps = traps;
	peer.holds = 1;
	peer.variant = static_cast<int>(options);
	peer.sharing = PEER_SHARED; // JitAllocator has a lock of its own
	peer.open = allocator_open;
	peer.alloc = allocator_alloc;
	peer.write = allocator_write;
	peer.free = allocator_free;
	peer.close = allocator_close;
	return peer;
}

} // namespace

extern "C" const struct peer peers_asmjit[] = {
	make("asmjit", "AsmJit JitAllocator, default options and trap fill (RWX)", kTraps, 1),
	make("asmjit-plain", "AsmJit JitAllocator, default options, no traps (RWX)", JitAllocatorOptions::kNone, 0),
	make("asmjit-dual", "AsmJit JitAllocator, dual mapping, trap fill", kDual, 1),
	make("asmjit-dual-pools", "AsmJit JitAllocator, dual mapping, multiple pools, trap fill", kDualPools, 1),
	{},
};
