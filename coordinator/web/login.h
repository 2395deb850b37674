// Who may see the status page: the bearer token of the gRPC port, or a cookie that was given for it.
//
// The cookie does not hold the token but `expiry.signature`, signed with a key made from the token: it cannot be used
// to submit or cancel jobs, survives a restart of the coordinator, and ends with its time or with the token.
// Wrong tokens are counted per address: after kFreeAttempts the address has to wait, whatever it sends.
#ifndef DISTILL_COORDINATOR_WEB_LOGIN_H_
#define DISTILL_COORDINATOR_WEB_LOGIN_H_

#include <map>
#include <string>
#include <string_view>

#include "common/http/http_server.h"

namespace distill::web {

// Owned by the HTTP server's thread. Times are seconds since 1970.
class Login {
 public:
  static constexpr char kCookie[] = "distill_session";
  static constexpr double kSessionSeconds = 12 * 3600;
  // Wrong tokens that cost nothing; then one more each kSecondsPerAttempt.
  static constexpr double kFreeAttempts = 5;
  static constexpr double kSecondsPerAttempt = 10;
  // Addresses remembered; the one that is nearest to being forgiven makes room.
  static constexpr size_t kMaxAddresses = 1024;

  // An empty token: everybody may see the page.
  explicit Login(std::string token) : token_(std::move(token)) {}

  bool required() const { return !token_.empty(); }

  enum class Verdict { kAllowed, kMissing, kWrong, kWait };
  // Looks at `Authorization: Bearer` (when there is one it decides), else at the cookie. An old or forged cookie is
  // kMissing.
  Verdict Check(const HttpRequest& request, double now);
  // Looks at a token typed into the form.
  Verdict CheckToken(std::string_view token, const std::string& peer, double now);
  // Whole seconds after which an address that got kWait may try again, at least 1.
  int WaitSeconds(const std::string& peer, double now) const;

  // Values of Set-Cookie: a new session, and none.
  std::string MakeCookie(bool tls, double now) const;
  static std::string ClearCookie(bool tls);

 private:
  bool IsSession(std::string_view cookie, double now) const;
  std::string Sign(std::string_view text) const;

  const std::string token_;
  std::map<std::string, double> forgiven_;  // by address: when its wrong tokens are all forgiven
};

// The value of a cookie in a Cookie header; "" when there is none.
std::string_view CookieValue(std::string_view header, std::string_view name);

}  // namespace distill::web

#endif  // DISTILL_COORDINATOR_WEB_LOGIN_H_
