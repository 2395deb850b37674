// SHA-256, as lower-case hex (64 letters). OpenSSL inside.
#ifndef DISTILL_COMMON_HASH_SHA256_H_
#define DISTILL_COMMON_HASH_SHA256_H_

#include <memory>
#include <string>
#include <string_view>

#include "common/status.h"

namespace distill {

class Sha256 {
 public:
  Sha256();
  ~Sha256();
  void Update(std::string_view bytes);
  std::string HexDigest();  // once

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};
std::string Sha256Hex(std::string_view bytes);
// kNotFound, or kUnavailable (no permission, a folder, read error), naming the path.
StatusOr<std::string> Sha256File(const std::string& path);

}  // namespace distill

#endif  // DISTILL_COMMON_HASH_SHA256_H_
