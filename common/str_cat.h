// StrCat: printed values, one after another, as a string.
//
// Debian's Abseil is built with its own string_view class, so absl::StrCat refuses std::string_view and
// absl::Status::message() is not one. This StrCat takes both; use it instead of absl's. Numbers print as absl's do:
// integers in full, floating point with six significant digits ("%g"), bool as 0 or 1.
#ifndef DISTILL_COMMON_STR_CAT_H_
#define DISTILL_COMMON_STR_CAT_H_

#include <concepts>
#include <cstdio>
#include <string>
#include <string_view>

#include "absl/strings/string_view.h"

namespace distill {

// absl's view as the standard's. No copy.
inline std::string_view ToStd(absl::string_view text) { return {text.data(), text.size()}; }
inline absl::string_view ToAbsl(std::string_view text) { return {text.data(), text.size()}; }

namespace str_cat_internal {
inline void Append(std::string* out, std::string_view text) { out->append(text); }
inline void Append(std::string* out, const char* text) { out->append(text); }
inline void Append(std::string* out, const std::string& text) { out->append(text); }
inline void Append(std::string* out, absl::string_view text) { out->append(text.data(), text.size()); }
inline void Append(std::string* out, char) = delete;  // ambiguous: a letter or a number? Give a string.
template <std::integral T>
void Append(std::string* out, T value) {
  out->append(std::to_string(value));
}
template <std::floating_point T>
void Append(std::string* out, T value) {
  char text[32];
  out->append(text, static_cast<size_t>(std::snprintf(text, sizeof text, "%g", static_cast<double>(value))));
}
}  // namespace str_cat_internal

template <typename... Args>
std::string StrCat(const Args&... args) {
  std::string out;
  (str_cat_internal::Append(&out, args), ...);
  return out;
}
template <typename... Args>
void StrAppend(std::string* out, const Args&... args) {
  (str_cat_internal::Append(out, args), ...);
}

}  // namespace distill

#endif  // DISTILL_COMMON_STR_CAT_H_
