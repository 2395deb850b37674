#include "common/rpc/address.h"

#include <gtest/gtest.h>

namespace distill {
namespace {

TEST(AddressTest, HostAndPortAreTakenApartAndPutTogether) {
  for (const char* text :
       {"127.0.0.1:80", "[::1]:50051", "[fe80::1%eth0]:1", "teacher-0.pool.svc:65535", "localhost:0"}) {
    const StatusOr<HostPort> parsed = ParseHostPort(text);
    ASSERT_TRUE(parsed.ok()) << parsed.status();
    EXPECT_EQ(ToString(*parsed), text);
  }
  EXPECT_EQ(*ParseHostPort("[::1]:50051"), (HostPort{"::1", 50051}));
}

TEST(AddressTest, BadAddressesAreRefusedByName) {
  for (const char* text :
       {"", ":", "host", ":80", "host:", "host:65536", "host:-1", "host:+1", "host:8a", "host: 80", "::1:80", "[::1]",
        "[::1]80", "[::1:80", "[zz]:80", "dns:///host:80", "ho st:80", "unix:/tmp/s", "host:99999999999"}) {
    const Status status = ParseHostPort(text).status();
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << text;
    EXPECT_NE(std::string(status.message()).find(std::string("'") + text + "'"), std::string::npos) << status;
  }
}

TEST(AddressTest, LoopbackIsThisMachineOnly) {
  for (const char* host : {"127.0.0.1", "127.1.2.3", "::1", "localhost", "LocalHost"})
    EXPECT_TRUE(IsLoopback(host)) << host;
  for (const char* host :
       {"0.0.0.0", "::", "128.0.0.1", "10.0.0.1", "localhost.example", "127.0.0.1.example", "127.1", ""}) {
    EXPECT_FALSE(IsLoopback(host)) << host;
  }
}

}  // namespace
}  // namespace distill
