#include "common/service/memory.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <cstdlib>
#include <cstring>

namespace distill {
namespace {

#ifndef __SANITIZE_ADDRESS__  // which has an allocator of its own

long PagesOfABlock(size_t bytes) {
  rusage before, after;
  getrusage(RUSAGE_SELF, &before);
  void* block = std::malloc(bytes);
  std::memset(block, 1, bytes);
  getrusage(RUSAGE_SELF, &after);
  const volatile char* byte = static_cast<char*>(block) + bytes / 2;
  EXPECT_EQ(*byte, 1);
  std::free(block);
  return after.ru_minflt - before.ru_minflt;
}

TEST(KeepFreedMemoryTest, ALargeBlockIsNotFetchedFromTheKernelAgain) {
  constexpr size_t kBytes = 128 << 20;
  ASSERT_GT(PagesOfABlock(kBytes), 50);
  ASSERT_GT(PagesOfABlock(kBytes), 50) << "this allocator keeps freed memory anyway";
  KeepFreedMemory();
  PagesOfABlock(kBytes);
  EXPECT_LT(PagesOfABlock(kBytes), 50);
}

#endif

}  // namespace
}  // namespace distill
