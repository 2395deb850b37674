// How a program that computes keeps its memory.
#ifndef DISTILL_COMMON_SERVICE_MEMORY_H_
#define DISTILL_COMMON_SERVICE_MEMORY_H_

namespace distill {

// Memory that is freed stays with the process, whatever its size, and serves the next allocation. By default glibc
// returns blocks above 32 MiB (at first 128 KiB) to the kernel, and every training step or inference pays for fresh,
// zeroed pages again: a third to two thirds of the time of a loss on large maps. The process then holds what it needed
// at its peak. Call at the start of main().
void KeepFreedMemory();

}  // namespace distill

#endif  // DISTILL_COMMON_SERVICE_MEMORY_H_
