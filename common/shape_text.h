// A tensor's shape, or any other row of numbers, as people read it.
#ifndef DISTILL_COMMON_SHAPE_TEXT_H_
#define DISTILL_COMMON_SHAPE_TEXT_H_

#include <string>

#include "absl/strings/str_join.h"
#include "common/str_cat.h"

namespace distill {

// "[128, 16, 28, 28]". `shape`: whatever can be iterated over, at::IntArrayRef included.
template <typename Shape>
std::string ShapeText(const Shape& shape) {
  return StrCat("[", absl::StrJoin(shape, ", "), "]");
}

}  // namespace distill

#endif  // DISTILL_COMMON_SHAPE_TEXT_H_
