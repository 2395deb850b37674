#include "common/hash/sha256.h"

#include <openssl/evp.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "absl/strings/escaping.h"
#include "common/str_cat.h"

namespace distill {

struct Sha256::Impl {
  EVP_MD_CTX* context = EVP_MD_CTX_new();
  ~Impl() { EVP_MD_CTX_free(context); }
};

namespace {
// OpenSSL's digest calls fail only when memory is exhausted or the library is broken.
void MustBeOne(int result) {
  if (result == 1) return;
  std::fputs("SHA-256 failed inside OpenSSL\n", stderr);
  std::abort();
}
}  // namespace

Sha256::Sha256() : impl_(std::make_unique<Impl>()) {
  MustBeOne(EVP_DigestInit_ex(impl_->context, EVP_sha256(), nullptr));
}
Sha256::~Sha256() = default;

void Sha256::Update(std::string_view bytes) { MustBeOne(EVP_DigestUpdate(impl_->context, bytes.data(), bytes.size())); }

std::string Sha256::HexDigest() {
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int size = 0;
  MustBeOne(EVP_DigestFinal_ex(impl_->context, digest, &size));
  return absl::BytesToHexString(absl::string_view(reinterpret_cast<const char*>(digest), size));
}

std::string Sha256Hex(std::string_view bytes) {
  Sha256 sha;
  sha.Update(bytes);
  return sha.HexDigest();
}

StatusOr<std::string> Sha256File(const std::string& path) {
  std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "rb"), &std::fclose);
  if (!file) {
    const int error = errno;
    const std::string message = StrCat("cannot open '", path, "': ", std::strerror(error));
    return error == ENOENT || error == ENOTDIR ? absl::NotFoundError(message) : absl::UnavailableError(message);
  }
  Sha256 sha;
  std::vector<char> block(1 << 20);
  for (;;) {
    const size_t n = std::fread(block.data(), 1, block.size(), file.get());
    sha.Update(std::string_view(block.data(), n));
    if (n == block.size()) continue;
    if (std::ferror(file.get()))
      return absl::UnavailableError(StrCat("cannot read '", path, "': ", std::strerror(errno)));
    return sha.HexDigest();
  }
}

}  // namespace distill
