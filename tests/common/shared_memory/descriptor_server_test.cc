#include "common/shared_memory/descriptor_server.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstddef>
#include <cstring>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "common/shared_memory/descriptor_request.h"
#include "common/shared_memory/memory_ring.h"
#include "tests/common/shared_memory/forked.h"
#include "tests/harness/process.h"

namespace distill {
namespace {

using testing::Forked;
using ::testing::HasSubstr;

constexpr size_t kNameBytes = 40, kSecretBytes = 32;

// Waits for the answer; the server is there and alive.
StatusOr<OwnedFd> Fetch(const std::string& folder, const std::string& name, const std::string& secret) {
  DISTILL_ASSIGN_OR_RETURN(DescriptorRequest request, DescriptorRequest::Start(folder, name, secret));
  while (true) {
    DISTILL_ASSIGN_OR_RETURN(std::optional<OwnedFd> fd, request.Poll());
    if (fd.has_value()) return *std::move(fd);
    sched_yield();
  }
}

// A connected socket at an abstract name, by hand; -1 when it cannot be reached.
OwnedFd Connect(const std::string& name) {
  OwnedFd fd(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path + 1, name.data(), name.size());
  const auto size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
  if (connect(fd.get(), reinterpret_cast<sockaddr*>(&address), size) != 0) return OwnedFd();
  return fd;
}

// A ring with "hello" in its first bytes.
std::shared_ptr<RingWriter> Hello() {
  auto writer = RingWriter::Create(kLeastRingBytes).value();
  writer->Fill(writer->Take(5), reinterpret_cast<const uint8_t*>("hello"));
  return writer;
}
std::string Greeting(OwnedFd fd) {
  const auto reader = RingReader::Open(std::move(fd), kLeastRingBytes);
  if (!reader.ok()) return std::string(reader.status().message());
  const auto bytes = (*reader)->At({0, 5}).value();
  return std::string(bytes.begin(), bytes.end());
}

class DescriptorServerTest : public ::testing::TestWithParam<bool> {
 protected:
  // An abstract socket, or one in a folder.
  std::string folder() const { return GetParam() ? folder_.path() : ""; }
  testing::TempDir folder_;
};

INSTANTIATE_TEST_SUITE_P(Places, DescriptorServerTest, ::testing::Bool(),
                         [](const auto& info) { return info.param ? "Folder" : "Abstract"; });

TEST_P(DescriptorServerTest, WhoShowsTheSecretGetsTheDescriptorOnce) {
  const auto server = DescriptorServer::Start(folder()).value();
  const auto ring = Hello();
  const std::string secret = server->Offer(ring->fd()).value();
  StatusOr<OwnedFd> fd = Fetch(folder(), server->name(), secret);
  ASSERT_TRUE(fd.ok()) << fd.status();
  EXPECT_EQ(Greeting(*std::move(fd)), "hello");
  EXPECT_EQ(Fetch(folder(), server->name(), secret).status().code(), StatusCode::kPermissionDenied);
  EXPECT_EQ(server->refused(), 1);
}

TEST_P(DescriptorServerTest, AnotherSecretGetsNothingAndCostsTheRightOneNothing) {
  const auto server = DescriptorServer::Start(folder()).value();
  const auto ring = Hello();
  const std::string secret = server->Offer(ring->fd()).value();
  std::string wrong = secret;
  wrong.back() ^= 1;
  EXPECT_EQ(Fetch(folder(), server->name(), wrong).status().code(), StatusCode::kPermissionDenied);
  EXPECT_EQ(Fetch(folder(), server->name(), std::string(kSecretBytes, '\0')).status().code(),
            StatusCode::kPermissionDenied);
  EXPECT_EQ(server->refused(), 2);
  EXPECT_TRUE(Fetch(folder(), server->name(), secret).ok());
}

TEST_P(DescriptorServerTest, WhatWasWithdrawnIsNotToBeHad) {
  const auto server = DescriptorServer::Start(folder()).value();
  const auto ring = Hello();
  const std::string secret = server->Offer(ring->fd()).value();
  EXPECT_NE(server->Offer(ring->fd()).value(), secret);
  server->Withdraw(secret);
  server->Withdraw(secret);
  server->Withdraw("never offered");
  EXPECT_EQ(Fetch(folder(), server->name(), secret).status().code(), StatusCode::kPermissionDenied);
}

TEST_P(DescriptorServerTest, NobodyIsThereAfterItsEnd) {
  auto server = DescriptorServer::Start(folder()).value();
  const std::string name = server->name();
  server.reset();
  const Status status = Fetch(folder(), name, std::string(kSecretBytes, 'x')).status();
  EXPECT_EQ(status.code(), StatusCode::kUnavailable);
  EXPECT_EQ(std::string(status.message()).find("--shared-memory-folder") != std::string::npos, !GetParam()) << status;
}

TEST_P(DescriptorServerTest, AKilledServerAnswersWithAnError) {
  Forked child([this](int tell) {
    const auto server = DescriptorServer::Start(folder()).value();
    const auto ring = Hello();
    const std::string said = server->name() + server->Offer(ring->fd()).value();
    if (write(tell, said.data(), said.size()) < 0) return 1;
    while (true) pause();
  });
  const std::string said = child.Read(kNameBytes + kSecretBytes);
  ASSERT_EQ(said.size(), kNameBytes + kSecretBytes);
  child.Stop();
  auto request = DescriptorRequest::Start(folder(), said.substr(0, kNameBytes), said.substr(kNameBytes));
  ASSERT_TRUE(request.ok()) << request.status();
  // A stopped one keeps nobody waiting.
  StatusOr<std::optional<OwnedFd>> answer = request->Poll();
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_FALSE(answer->has_value());
  child.Kill();
  EXPECT_EQ(request->Poll().status().code(), StatusCode::kPermissionDenied);
  EXPECT_EQ(DescriptorRequest::Start(folder(), said.substr(0, kNameBytes), said.substr(kNameBytes)).status().code(),
            StatusCode::kUnavailable);
}

TEST_P(DescriptorServerTest, AStoppedServerAnswersWhenItGoesOnAndItsMemoryOutlivesIt) {
  Forked child([this](int tell) {
    const auto server = DescriptorServer::Start(folder()).value();
    const auto ring = Hello();
    const std::string said = server->name() + server->Offer(ring->fd()).value();
    if (write(tell, said.data(), said.size()) < 0) return 1;
    while (true) pause();
  });
  const std::string said = child.Read(kNameBytes + kSecretBytes);
  ASSERT_EQ(said.size(), kNameBytes + kSecretBytes);
  child.Stop();
  auto request = DescriptorRequest::Start(folder(), said.substr(0, kNameBytes), said.substr(kNameBytes));
  ASSERT_TRUE(request.ok()) << request.status();
  child.Signal(SIGCONT);
  std::optional<OwnedFd> fd;
  while (!fd.has_value()) {
    auto answer = request->Poll();
    ASSERT_TRUE(answer.ok()) << answer.status();
    fd = *std::move(answer);
    sched_yield();
  }
  auto reader = RingReader::Open(*std::move(fd), kLeastRingBytes);
  ASSERT_TRUE(reader.ok()) << reader.status();
  child.Kill();
  const auto bytes = (*reader)->At({0, 5}).value();
  EXPECT_EQ(std::string(bytes.begin(), bytes.end()), "hello");
}

// Whoever is root can become another user.
TEST(DescriptorServerUserTest, AnotherUserGetsNothingEvenWithTheSecret) {
  if (geteuid() != 0) GTEST_SKIP() << "only root can become another user";
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  // Forked before the server has its thread; told the secret later.
  Forked other([&](int) {
    std::string told(kNameBytes + kSecretBytes, '\0');
    if (setuid(65534) != 0) return 1;
    if (read(ends[0], told.data(), told.size()) != static_cast<ssize_t>(told.size())) return 2;
    const std::string name = told.substr(0, kNameBytes), secret = told.substr(kNameBytes);
    // Our own client does not even show it.
    if (DescriptorRequest::Start("", name, secret).status().code() != StatusCode::kPermissionDenied) return 3;
    const OwnedFd socket = Connect(name);
    if (!socket.valid()) return 4;
    (void)!send(socket.get(), secret.data(), secret.size(), MSG_NOSIGNAL);
    char byte;
    return recv(socket.get(), &byte, 1, 0) > 0 ? 5 : 0;
  });
  const auto server = DescriptorServer::Start("").value();
  const auto ring = Hello();
  const std::string secret = server->Offer(ring->fd()).value();
  const std::string told = server->name() + secret;
  ASSERT_EQ(write(ends[1], told.data(), told.size()), static_cast<ssize_t>(told.size()));
  EXPECT_EQ(other.Wait(), 0);
  EXPECT_EQ(server->refused(), 2);
  EXPECT_TRUE(Fetch("", server->name(), secret).ok());
  close(ends[0]);
  close(ends[1]);
}

TEST(DescriptorServerCallersTest, SilentAndBabblingCallersKeepNobodyWaiting) {
  const auto server = DescriptorServer::Start("").value();
  const auto ring = Hello();
  const std::string secret = server->Offer(ring->fd()).value();
  std::vector<OwnedFd> silent;
  for (int i = 0; i < 10; ++i) silent.push_back(Connect(server->name()));
  for (const std::string& said : {std::string("x"), secret + "x", secret.substr(1), std::string(1000, 'y')}) {
    const OwnedFd babbling = Connect(server->name());
    ASSERT_TRUE(babbling.valid());
    ASSERT_EQ(send(babbling.get(), said.data(), said.size(), 0), static_cast<ssize_t>(said.size()));
    char byte;
    EXPECT_EQ(recv(babbling.get(), &byte, 1, 0), 0);
  }
  EXPECT_EQ(server->refused(), 4);
  EXPECT_TRUE(Fetch("", server->name(), secret).ok());
}

TEST(DescriptorRequestTest, NamesAndSecretsOfAnotherFormGoNowhere) {
  const std::string secret(kSecretBytes, 's');
  for (const std::string& name :
       {std::string(), std::string("/var/run/docker.sock"), std::string("../distill-0123456789abcdef0123456789abcdef"),
        std::string("distill-0123456789ABCDEF0123456789abcdef"), std::string("distill-0123456789abcdef0123456789abcde"),
        std::string("distill-0123456789abcdef0123456789abcdef0"),
        std::string("distill-0123456789abcdef/123456789abcdef")}) {
    EXPECT_EQ(DescriptorRequest::Start("", name, secret).status().code(), StatusCode::kInvalidArgument) << name;
  }
  const std::string name = "distill-0123456789abcdef0123456789abcdef";
  EXPECT_EQ(DescriptorRequest::Start("", name, "short").status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(DescriptorRequest::Start("", name, secret).status().code(), StatusCode::kUnavailable);
}

TEST(DescriptorServerFolderTest, IsClosedToOthersAndClearedOfDeadSockets) {
  testing::TempDir folder;
  const std::string own = folder / ("distill-" + std::to_string(geteuid()));
  const auto files = [&] {
    size_t count = 0;
    for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator(own)) ++count;
    return count;
  };
  {
    Forked killed([&](int tell) {
      const auto server = DescriptorServer::Start(folder.path()).value();
      if (write(tell, "x", 1) != 1) return 1;
      pause();
      return 0;
    });
    ASSERT_EQ(killed.Read(1), "x");
  }
  EXPECT_EQ(files(), 1);
  {
    const auto first = DescriptorServer::Start(folder.path()).value();
    EXPECT_EQ(files(), 1);
    const auto second = DescriptorServer::Start(folder.path()).value();
    EXPECT_EQ(files(), 2);
    struct stat about;
    ASSERT_EQ(stat(own.c_str(), &about), 0);
    EXPECT_EQ(about.st_mode & 0777, 0700);
  }
  EXPECT_EQ(files(), 0);
  ASSERT_EQ(chmod(own.c_str(), 0755), 0);
  const Status open = DescriptorServer::Start(folder.path()).status();
  EXPECT_EQ(open.code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(open.message()), HasSubstr("mode 0700"));
  const Status missing = DescriptorServer::Start(folder / "no/such").status();
  EXPECT_EQ(missing.code(), StatusCode::kUnavailable);
  EXPECT_THAT(std::string(missing.message()), HasSubstr("--shared-memory-folder"));
  EXPECT_EQ(DescriptorServer::Start("/" + std::string(100, 'x')).status().code(), StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace distill
