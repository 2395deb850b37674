// UTF-8: what is valid, and how to make it so. JSON and protobuf strings must be valid; file names and error texts need
// not be.
#ifndef DISTILL_COMMON_UTF8_H_
#define DISTILL_COMMON_UTF8_H_

#include <cstddef>
#include <string>
#include <string_view>

namespace distill {

// Bytes of the valid sequence at the start of `text`; 0 when there is none (overlong, surrogate, truncated, stray
// byte). REQUIRES: text is not empty.
size_t Utf8Length(std::string_view text);
// Each byte that belongs to no valid sequence becomes U+FFFD.
std::string ReplaceInvalidUtf8(std::string_view text);

}  // namespace distill

#endif  // DISTILL_COMMON_UTF8_H_
