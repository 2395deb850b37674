// A disk that does not answer, for LD_PRELOAD: whoever opens a file whose path begins with DISTILL_TEST_HANGING sleeps
// in the kernel for ever, as on a network disk whose server is gone.
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

namespace {

void HangOn(const char* path) {
  const char* const hanging = getenv("DISTILL_TEST_HANGING");
  if (hanging == nullptr || strncmp(path, hanging, strlen(hanging)) != 0) return;
  while (true) pause();
}

using OpenFunction = int (*)(const char*, int, ...);

}  // namespace

// With their mode, which is there only when a file may be made.
extern "C" int open(const char* path, int flags, ...) {
  va_list list;
  va_start(list, flags);
  const mode_t mode = (flags & O_CREAT) != 0 ? va_arg(list, mode_t) : 0;
  va_end(list);
  HangOn(path);
  return reinterpret_cast<OpenFunction>(dlsym(RTLD_NEXT, "open"))(path, flags, mode);
}
extern "C" int open64(const char* path, int flags, ...) {
  va_list list;
  va_start(list, flags);
  const mode_t mode = (flags & O_CREAT) != 0 ? va_arg(list, mode_t) : 0;
  va_end(list);
  HangOn(path);
  return reinterpret_cast<OpenFunction>(dlsym(RTLD_NEXT, "open64"))(path, flags, mode);
}
