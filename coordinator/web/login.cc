#include "coordinator/web/login.h"

#include <openssl/evp.h>
#include <openssl/hmac.h>

#include <algorithm>
#include <charconv>
#include <cmath>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "common/log.h"
#include "common/rpc/security_files.h"
#include "common/str_cat.h"

namespace distill::web {
std::string_view CookieValue(std::string_view header, std::string_view name) {
  while (!header.empty()) {
    const size_t end = std::min(header.find(';'), header.size());
    const std::string_view pair = ToStd(absl::StripAsciiWhitespace(ToAbsl(header.substr(0, end))));
    header.remove_prefix(std::min(end + 1, header.size()));
    if (pair.size() > name.size() && pair.starts_with(name) && pair[name.size()] == '=') {
      return pair.substr(name.size() + 1);
    }
  }
  return "";
}

std::string Login::Sign(std::string_view text) const {
  const std::string message = StrCat("distill status page session ", text);
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int size = 0;
  HMAC(EVP_sha256(), token_.data(), static_cast<int>(token_.size()),
       reinterpret_cast<const unsigned char*>(message.data()), message.size(), digest, &size);
  return absl::BytesToHexString(absl::string_view(reinterpret_cast<const char*>(digest), size));
}

std::string Login::MakeCookie(bool tls, double now) const {
  const std::string expiry = StrCat(static_cast<int64_t>(now + kSessionSeconds));
  return StrCat(kCookie, "=", expiry, ".", Sign(expiry),
                "; Path=/; HttpOnly; SameSite=Strict; Max-Age=", static_cast<int64_t>(kSessionSeconds),
                tls ? "; Secure" : "");
}

std::string Login::ClearCookie(bool tls) {
  return StrCat(kCookie, "=; Path=/; HttpOnly; SameSite=Strict; Max-Age=0", tls ? "; Secure" : "");
}

bool Login::IsSession(std::string_view cookie, double now) const {
  const size_t dot = cookie.find('.');
  if (dot == std::string_view::npos) return false;
  const std::string_view expiry = cookie.substr(0, dot);
  int64_t until = 0;
  const auto [end, error] = std::from_chars(expiry.data(), expiry.data() + expiry.size(), until);
  if (error != std::errc() || end != expiry.data() + expiry.size()) return false;
  return ConstantTimeEqual(cookie.substr(dot + 1), Sign(expiry)) && now < static_cast<double>(until);
}

Login::Verdict Login::Check(const HttpRequest& request, double now) {
  if (!required()) return Verdict::kAllowed;
  if (const auto header = request.headers.find("authorization"); header != request.headers.end()) {
    constexpr std::string_view kScheme = "bearer ";
    const std::string& value = header->second;
    const bool bearer = absl::AsciiStrToLower(value.substr(0, kScheme.size())) == kScheme;
    return CheckToken(bearer ? value.substr(kScheme.size()) : "", request.peer, now);
  }
  const auto cookies = request.headers.find("cookie");
  if (cookies == request.headers.end()) return Verdict::kMissing;
  return IsSession(CookieValue(cookies->second, kCookie), now) ? Verdict::kAllowed : Verdict::kMissing;
}

Login::Verdict Login::CheckToken(std::string_view token, const std::string& peer, double now) {
  if (!required()) return Verdict::kAllowed;
  if (WaitSeconds(peer, now) > 0) return Verdict::kWait;
  if (ConstantTimeEqual(token, token_)) {
    forgiven_.erase(peer);
    return Verdict::kAllowed;
  }
  std::erase_if(forgiven_, [now](const auto& entry) { return entry.second <= now; });
  if (forgiven_.size() >= kMaxAddresses && !forgiven_.contains(peer)) {
    forgiven_.erase(std::min_element(forgiven_.begin(), forgiven_.end(),
                                     [](const auto& a, const auto& b) { return a.second < b.second; }));
  }
  double& until = forgiven_[peer];
  until = std::max(until, now) + kSecondsPerAttempt;
  LogWarning("status page: wrong token", {{"peer", peer}, {"wait_seconds", WaitSeconds(peer, now)}});
  return Verdict::kWrong;
}

int Login::WaitSeconds(const std::string& peer, double now) const {
  const auto found = forgiven_.find(peer);
  if (found == forgiven_.end()) return 0;
  // A debt of kFreeAttempts is free; what is above must be waited for.
  const double debt = found->second - now - (kFreeAttempts - 1) * kSecondsPerAttempt;
  return debt > 0 ? std::max(1, static_cast<int>(std::ceil(debt))) : 0;
}

}  // namespace distill::web
