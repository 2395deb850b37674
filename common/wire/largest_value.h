// The size of a tensor's largest element, found while its bytes are in the cache for another reason. It says what a
// student has to know about a teacher's map before it is used: whether it holds a number that is none, and whether its
// values are large enough for the type that carried them.
//
// Integer arithmetic on the elements' bits (their order without the sign is that of their size), so it vectorises, and
// NaN cannot hide. Thread-compatible.
#ifndef DISTILL_COMMON_WIRE_LARGEST_VALUE_H_
#define DISTILL_COMMON_WIRE_LARGEST_VALUE_H_

#include <cstddef>
#include <cstdint>

#include "common/wire/dtype.h"

namespace distill {

class LargestValue {
 public:
  explicit LargestValue(WireDtype dtype) : dtype_(dtype) {}
  // More of the tensor's elements. REQUIRES: bytes is aligned to, and size a multiple of, the element's size.
  void Add(const uint8_t* bytes, size_t size);
  // Largest |x| of the elements added, 0 of none; an infinity or a NaN if there was one of either.
  float value() const;

 private:
  WireDtype dtype_;
  uint32_t bits_ = 0;  // of the element, without its sign
};

}  // namespace distill

#endif  // DISTILL_COMMON_WIRE_LARGEST_VALUE_H_
