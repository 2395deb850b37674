// Makes the calling thread's vector arithmetic treat denormal floats as zero while it lives.
#ifndef DISTILL_COMMON_KERNELS_FLUSH_DENORMALS_H_
#define DISTILL_COMMON_KERNELS_FLUSH_DENORMALS_H_

#if defined(__SSE__)
#include <xmmintrin.h>
#endif

namespace distill {

#if defined(__SSE__)
class FlushDenormals {
 public:
  FlushDenormals() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ | 0x8040); }  // flush results, and take inputs as zero
  ~FlushDenormals() { _mm_setcsr(saved_); }
  FlushDenormals(const FlushDenormals&) = delete;
  FlushDenormals& operator=(const FlushDenormals&) = delete;

 private:
  const unsigned saved_;
};
#else
struct FlushDenormals {
  FlushDenormals() {}
  ~FlushDenormals() {}
};
#endif

}  // namespace distill

#endif  // DISTILL_COMMON_KERNELS_FLUSH_DENORMALS_H_
