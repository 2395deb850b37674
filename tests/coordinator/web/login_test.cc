#include "coordinator/web/login.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace distill::web {
namespace {

using testing::AllOf;
using testing::EndsWith;
using testing::HasSubstr;
using testing::Not;

HttpRequest With(const std::string& header, const std::string& value, const std::string& peer = "10.0.0.1") {
  HttpRequest request;
  if (!header.empty()) request.headers[header] = value;
  request.peer = peer;
  return request;
}

// The part of Set-Cookie that a browser sends back.
std::string SentBack(const std::string& cookie) { return cookie.substr(0, cookie.find(';')); }

TEST(LoginTest, TakesTheTokenOrACookieGivenForIt) {
  Login login("secret");
  EXPECT_EQ(login.Check(With("", ""), 0), Login::Verdict::kMissing);
  EXPECT_EQ(login.Check(With("authorization", "Bearer secret"), 0), Login::Verdict::kAllowed);
  EXPECT_EQ(login.Check(With("authorization", "bearer secret"), 0), Login::Verdict::kAllowed);
  for (const char* value : {"Bearer secret2", "Bearer secre", "Bearer ", "secret", "Basic secret", ""}) {
    EXPECT_EQ(Login("secret").Check(With("authorization", value), 0), Login::Verdict::kWrong) << value;
  }
  const std::string cookie = login.MakeCookie(false, 1000);
  EXPECT_THAT(cookie, AllOf(HasSubstr("; HttpOnly"), HasSubstr("; SameSite=Strict"), HasSubstr("; Path=/"),
                            Not(HasSubstr("Secure")), Not(HasSubstr("secret"))));
  EXPECT_THAT(login.MakeCookie(true, 1000), EndsWith("; Secure"));
  EXPECT_EQ(login.Check(With("cookie", SentBack(cookie)), 1000), Login::Verdict::kAllowed);
  EXPECT_EQ(login.Check(With("cookie", "other=1; " + SentBack(cookie) + "; more=2"), 1000), Login::Verdict::kAllowed);
}

TEST(LoginTest, ACookieEndsWithItsTimeOrWithTheToken) {
  const Login first("secret");
  Login login("secret"), other("another");
  const std::string cookie = SentBack(first.MakeCookie(false, 1000));
  EXPECT_EQ(login.Check(With("cookie", cookie), 1000 + Login::kSessionSeconds - 1), Login::Verdict::kAllowed)
      << "a restarted coordinator knows it";
  EXPECT_EQ(login.Check(With("cookie", cookie), 1000 + Login::kSessionSeconds), Login::Verdict::kMissing);
  EXPECT_EQ(other.Check(With("cookie", cookie), 1000), Login::Verdict::kMissing);
}

TEST(LoginTest, ForgedCookiesAreNone) {
  Login login("secret");
  const std::string cookie = SentBack(login.MakeCookie(false, 1000));
  const std::string name = std::string(Login::kCookie) + "=";
  const std::string signature = cookie.substr(cookie.find('.'));
  std::string later = cookie;
  later[name.size()] = '9';  // the expiry
  std::string bent = cookie;
  bent.back() = bent.back() == '0' ? '1' : '0';
  for (const std::string& forged : {later, bent, name, name + ".", name + "9999999999", name + "9999999999.",
                                    name + "x" + signature, name + signature, cookie.substr(0, cookie.size() - 1),
                                    std::string("x") + cookie, name + "secret", std::string(5000, 'a')}) {
    EXPECT_EQ(login.Check(With("cookie", forged), 1000), Login::Verdict::kMissing) << forged;
  }
}

TEST(LoginTest, AfterWrongTokensAnAddressHasToWait) {
  Login login("secret");
  for (int i = 0; i < Login::kFreeAttempts; ++i) {
    EXPECT_EQ(login.CheckToken("guess", "10.0.0.1", 100), Login::Verdict::kWrong) << i;
  }
  EXPECT_EQ(login.CheckToken("guess", "10.0.0.1", 100), Login::Verdict::kWait);
  EXPECT_EQ(login.CheckToken("secret", "10.0.0.1", 100), Login::Verdict::kWait) << "or guessing would go on unslowed";
  EXPECT_EQ(login.WaitSeconds("10.0.0.1", 100), 10);
  EXPECT_EQ(login.Check(With("authorization", "Bearer secret"), 100), Login::Verdict::kWait);
  EXPECT_EQ(login.CheckToken("secret", "10.0.0.2", 100), Login::Verdict::kAllowed) << "others are not held up";
  EXPECT_EQ(login.CheckToken("guess", "10.0.0.1", 110), Login::Verdict::kWrong) << "one more after ten seconds";
  EXPECT_EQ(login.CheckToken("secret", "10.0.0.1", 111), Login::Verdict::kWait);
  EXPECT_EQ(login.CheckToken("secret", "10.0.0.1", 121), Login::Verdict::kAllowed);
  EXPECT_EQ(login.CheckToken("guess", "10.0.0.1", 121), Login::Verdict::kWrong) << "the right token forgives";
}

TEST(LoginTest, RemembersABoundedNumberOfAddresses) {
  Login login("secret");
  for (int i = 0; i < 3 * static_cast<int>(Login::kMaxAddresses); ++i) {
    EXPECT_EQ(login.CheckToken("guess", "10.1." + std::to_string(i), 100 + 0.001 * i), Login::Verdict::kWrong);
  }
  EXPECT_EQ(login.CheckToken("secret", "10.1.0", 104), Login::Verdict::kAllowed);
}

TEST(LoginTest, WithoutATokenEverybodyIsLetIn) {
  Login login("");
  EXPECT_FALSE(login.required());
  EXPECT_EQ(login.Check(With("", ""), 0), Login::Verdict::kAllowed);
  EXPECT_EQ(login.Check(With("authorization", "Bearer anything"), 0), Login::Verdict::kAllowed);
}

TEST(LoginTest, ReadsCookiesAndForms) {
  EXPECT_EQ(CookieValue("a=1; b=2;c=3", "b"), "2");
  EXPECT_EQ(CookieValue("a=1; b=2;c=3", "c"), "3");
  EXPECT_EQ(CookieValue("ab=1", "b"), "");
  EXPECT_EQ(CookieValue("b", "b"), "");
  EXPECT_EQ(CookieValue("", "b"), "");
  EXPECT_EQ(CookieValue("b=x=y", "b"), "x=y");
}

}  // namespace
}  // namespace distill::web
