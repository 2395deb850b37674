#include "common/rpc/channel.h"

#include <gtest/gtest.h>

#include "tests/common/rpc/rpc_test_util.h"

namespace distill {
namespace {

testing::AssertionResult Says(const Status& status, StatusCode code, std::string_view words) {
  if (status.code() != code || std::string(status.message()).find(words) == std::string::npos) {
    return testing::AssertionFailure() << "got " << status << ", want '" << words << "'";
  }
  return testing::AssertionSuccess();
}

TEST(ChannelTest, PlaintextIsForLoopbackUnlessAskedFor) {
  for (const char* address : {"127.0.0.1:1", "localhost:1", "[::1]:1"})
    EXPECT_TRUE(MakeChannel(address, {}).ok()) << address;
  EXPECT_TRUE(Says(MakeChannel("10.0.0.1:1", {}).status(), StatusCode::kInvalidArgument, "--tls-ca"));
  EXPECT_TRUE(Says(MakeChannel("coordinator:1", {}).status(), StatusCode::kInvalidArgument, "coordinator:1"));
  EXPECT_TRUE(MakeChannel("10.0.0.1:1", {.insecure = true}).ok());
}

TEST(ChannelTest, BadAddressesAndFilesAreRefused) {
  EXPECT_TRUE(Says(MakeChannel("127.0.0.1", {}).status(), StatusCode::kInvalidArgument, "127.0.0.1"));
  EXPECT_TRUE(Says(MakeChannel("127.0.0.1:0", {}).status(), StatusCode::kInvalidArgument, "port 0"));
  const std::string to = "127.0.0.1:1";
  const KeyAndCertificate a = MakeCertificate("a"), b = MakeCertificate("b");
  const TempFile cert(a.certificate), key(a.key), other_key(b.key), garbage("garbage"), empty(" \n"),
      two_lines("one\ntwo\n");
  EXPECT_TRUE(
      Says(MakeChannel(to, {.ca_file = "/no/such/ca.pem"}).status(), StatusCode::kInvalidArgument, "/no/such/ca.pem"));
  EXPECT_TRUE(Says(MakeChannel(to, {.ca_file = garbage.path()}).status(), StatusCode::kInvalidArgument, "--tls-ca"));
  EXPECT_TRUE(
      Says(MakeChannel(to, {.cert_file = cert.path()}).status(), StatusCode::kInvalidArgument, "belong together"));
  EXPECT_TRUE(Says(MakeChannel(to, {.cert_file = garbage.path(), .key_file = key.path()}).status(),
                   StatusCode::kInvalidArgument, "--tls-cert"));
  EXPECT_TRUE(Says(MakeChannel(to, {.cert_file = cert.path(), .key_file = garbage.path()}).status(),
                   StatusCode::kInvalidArgument, "--tls-key"));
  EXPECT_TRUE(Says(MakeChannel(to, {.cert_file = cert.path(), .key_file = other_key.path()}).status(),
                   StatusCode::kInvalidArgument, "does not belong"));
  EXPECT_TRUE(Says(MakeChannel(to, {.token_file = "/no/token"}).status(), StatusCode::kInvalidArgument, "/no/token"));
  EXPECT_TRUE(Says(MakeChannel(to, {.token_file = empty.path()}).status(), StatusCode::kInvalidArgument, "no token"));
  EXPECT_TRUE(
      Says(MakeChannel(to, {.token_file = two_lines.path()}).status(), StatusCode::kInvalidArgument, "one line"));
  EXPECT_TRUE(MakeChannel(to, {.ca_file = cert.path(), .cert_file = cert.path(), .key_file = key.path()}).ok());
}

TEST(ChannelTest, EveryCodeSurvivesTheRoundTrip) {
  EXPECT_TRUE(FromGrpc(ToGrpc(OkStatus()), "Heartbeat", "127.0.0.1:1").ok());
  for (int code = 1; code <= 16; ++code) {
    const grpc::Status over = ToGrpc(Status(static_cast<StatusCode>(code), "why"));
    EXPECT_EQ(static_cast<int>(over.error_code()), code);
    EXPECT_EQ(over.error_message(), "why");
    const Status back = FromGrpc(over, "Heartbeat", "127.0.0.1:1");
    EXPECT_EQ(static_cast<int>(back.code()), code);
    EXPECT_EQ(back.message(), "Heartbeat at 127.0.0.1:1: why");
  }
}

}  // namespace
}  // namespace distill
