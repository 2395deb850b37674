#include "common/rpc/rpc_internal.h"

#include <google/protobuf/stubs/logging.h>
#include <grpc/support/log.h>
#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>

#include "absl/base/call_once.h"
#include "absl/strings/ascii.h"
#include "common/log.h"
#include "common/rpc/security_files.h"
#include "common/str_cat.h"

namespace distill {
namespace {

StatusOr<std::string> ReadSmallFile(const std::string& path, std::string_view flag) {
  constexpr size_t kLimit = 1 << 20;
  std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "rb"), &std::fclose);
  if (!file) return absl::InvalidArgumentError(StrCat(flag, ": cannot open '", path, "': ", std::strerror(errno)));
  std::string content(kLimit + 1, '\0');
  content.resize(std::fread(content.data(), 1, content.size(), file.get()));
  if (std::ferror(file.get()))
    return absl::InvalidArgumentError(StrCat(flag, ": cannot read '", path, "': ", std::strerror(errno)));
  if (content.size() > kLimit) return absl::InvalidArgumentError(StrCat(flag, ": '", path, "' is larger than 1 MiB"));
  return content;
}

using BioPtr = std::unique_ptr<BIO, int (*)(BIO*)>;
using X509Ptr = std::unique_ptr<X509, void (*)(X509*)>;
using KeyPtr = std::unique_ptr<EVP_PKEY, void (*)(EVP_PKEY*)>;

BioPtr MemoryBio(const std::string& pem) {
  return BioPtr(BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())), &BIO_free);
}

X509Ptr ParseCertificate(const std::string& pem) {
  X509Ptr parsed(PEM_read_bio_X509(MemoryBio(pem).get(), nullptr, nullptr, nullptr), &X509_free);
  ERR_clear_error();
  return parsed;
}

KeyPtr ParseKey(const std::string& pem) {
  // Without this an encrypted key would make OpenSSL ask at the terminal.
  const auto no_password = [](char*, int, int, void*) { return -1; };
  KeyPtr parsed(PEM_read_bio_PrivateKey(MemoryBio(pem).get(), nullptr, no_password, nullptr), &EVP_PKEY_free);
  ERR_clear_error();
  return parsed;
}

Status NotPem(std::string_view flag, const std::string& path, std::string_view what) {
  return absl::InvalidArgumentError(StrCat(flag, ": '", path, "' holds no ", what, " in PEM form"));
}

}  // namespace

StatusOr<SecurityFiles> ReadSecurityFiles(const RpcSecurity& security) {
  SecurityFiles files;
  if (security.cert_file.empty() != security.key_file.empty()) {
    return absl::InvalidArgumentError("--tls-cert and --tls-key belong together: give both or neither");
  }
  if (!security.ca_file.empty()) {
    DISTILL_ASSIGN_OR_RETURN(files.ca, ReadSmallFile(security.ca_file, "--tls-ca"));
    if (!ParseCertificate(files.ca)) return NotPem("--tls-ca", security.ca_file, "certificate");
  }
  if (!security.cert_file.empty()) {
    DISTILL_ASSIGN_OR_RETURN(files.cert, ReadSmallFile(security.cert_file, "--tls-cert"));
    DISTILL_ASSIGN_OR_RETURN(files.key, ReadSmallFile(security.key_file, "--tls-key"));
    const X509Ptr cert = ParseCertificate(files.cert);
    if (!cert) return NotPem("--tls-cert", security.cert_file, "certificate");
    const KeyPtr key = ParseKey(files.key);
    if (!key) return NotPem("--tls-key", security.key_file, "unencrypted private key");
    const bool match = X509_check_private_key(cert.get(), key.get()) == 1;
    ERR_clear_error();
    if (!match) {
      return absl::InvalidArgumentError(StrCat("--tls-key: the key in '", security.key_file,
                                               "' does not belong to the certificate in '", security.cert_file, "'"));
    }
  }
  if (!security.token_file.empty()) {
    DISTILL_ASSIGN_OR_RETURN(const std::string content, ReadSmallFile(security.token_file, "--token-file"));
    files.token = std::string(absl::StripAsciiWhitespace(content));
    if (files.token.empty())
      return absl::InvalidArgumentError(StrCat("--token-file: '", security.token_file, "' holds no token"));
    // HTTP/2 headers carry visible ASCII; gRPC keeps them below 8 KiB.
    if (files.token.size() > 4096 ||
        !std::all_of(files.token.begin(), files.token.end(), [](unsigned char c) { return absl::ascii_isgraph(c); })) {
      return absl::InvalidArgumentError(StrCat("--token-file: '", security.token_file,
                                               "' must hold one line of at most 4096 visible ASCII characters"));
    }
  }
  return files;
}

bool ConstantTimeEqual(std::string_view given, std::string_view expected) {
  unsigned char difference = given.size() == expected.size() ? 0 : 1;
  for (size_t i = 0; i < given.size(); ++i) {
    difference |= static_cast<unsigned char>(given[i] ^ expected[i % expected.size()]);
  }
  return difference == 0;
}

void InstallGrpcLogging() {
  static absl::once_flag once;
  absl::call_once(once, [] {
    gpr_set_log_function([](gpr_log_func_args* args) {
      // What gRPC calls an error is mostly a peer that went away: the caller's status says so too.
      const LogLevel level = args->severity == GPR_LOG_SEVERITY_ERROR ? LogLevel::kWarning : LogLevel::kDebug;
      const char* const slash = std::strrchr(args->file, '/');
      Log(level, args->message,
          {{"library", "grpc"}, {"at", StrCat(slash == nullptr ? args->file : slash + 1, ":", args->line)}});
    });
    // Peers can provoke these at will ("string is not UTF-8"); the call's status tells of them too.
    google::protobuf::SetLogHandler([](google::protobuf::LogLevel, const char*, int, const std::string& message) {
      LogDebug(message, {{"library", "protobuf"}});
    });
  });
}

}  // namespace distill
