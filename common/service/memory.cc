#include "common/service/memory.h"

#include <malloc.h>

namespace distill {

void KeepFreedMemory() {
#ifdef __GLIBC__
  mallopt(M_MMAP_MAX, 0);         // everything from the heap
  mallopt(M_TRIM_THRESHOLD, -1);  // whose end is never given back
  mallopt(M_TOP_PAD, 64 << 20);   // and which grows in large steps
#endif
}

}  // namespace distill
