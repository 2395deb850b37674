// A raw HTTP client for tests: sends bytes as given, so that malformed requests can be sent too.
#ifndef DISTILL_TESTS_COMMON_HTTP_HTTP_TEST_CLIENT_H_
#define DISTILL_TESTS_COMMON_HTTP_HTTP_TEST_CLIENT_H_

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <string>
#include <utility>

namespace distill {

class HttpTestClient {
 public:
  // `from` is another loopback address, as if from another machine.
  explicit HttpTestClient(int port, const char* from = "127.0.0.1")
      : fd_(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in self{};
    self.sin_family = AF_INET;
    inet_pton(AF_INET, from, &self.sin_addr);
    const int late = 1;  // the port is chosen when connecting, so that the same may lead to several servers
    setsockopt(fd_, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &late, sizeof late);
    EXPECT_EQ(bind(fd_, reinterpret_cast<sockaddr*>(&self), sizeof self), 0) << from;
    sockaddr_in to{};
    to.sin_family = AF_INET;
    to.sin_port = htons(static_cast<uint16_t>(port));
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    timeval limit{.tv_sec = 20};  // a hung server fails the test instead of hanging it
    setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    connected_ = connect(fd_, reinterpret_cast<sockaddr*>(&to), sizeof to) == 0;
  }
  ~HttpTestClient() { close(fd_); }
  HttpTestClient(const HttpTestClient&) = delete;
  HttpTestClient& operator=(const HttpTestClient&) = delete;

  bool connected() const { return connected_; }
  void Send(const std::string& bytes) {
    for (size_t sent = 0; sent < bytes.size();) {
      const ssize_t n = send(fd_, bytes.data() + sent, bytes.size() - sent, MSG_NOSIGNAL);
      if (n <= 0) return;
      sent += n;
    }
  }
  // One response: head with its empty line, and as many body bytes as Content-Length says unless `head` was asked for.
  std::string Receive(bool head = false) {
    while (pending_.find("\r\n\r\n") == std::string::npos) {
      if (!Fill()) return std::exchange(pending_, "");
    }
    size_t size = pending_.find("\r\n\r\n") + 4;
    const size_t length = pending_.find("Content-Length: ");
    if (!head && length != std::string::npos && length < size)
      size += std::strtoul(pending_.c_str() + length + 16, nullptr, 10);
    while (pending_.size() < size) {
      if (!Fill()) return std::exchange(pending_, "");
    }
    std::string response = pending_.substr(0, size);
    pending_.erase(0, size);
    return response;
  }
  // Reads until the server closes, keeping nothing. The bytes; `head` is the length of the first answer's head.
  uint64_t Drain(uint64_t* head) {
    uint64_t bytes = 0;
    *head = 0;
    for (char block[64 << 10];;) {
      const ssize_t n = recv(fd_, block, sizeof block, 0);
      if (n <= 0) return bytes;
      if (*head == 0) {
        pending_.append(block, n);
        const size_t end = pending_.find("\r\n\r\n");
        if (end != std::string::npos) *head = end + 4;
      }
      bytes += n;
    }
  }
  // Whether Receive() would find something at once.
  bool HasAnswer() {
    char byte;
    return !pending_.empty() || recv(fd_, &byte, 1, MSG_PEEK | MSG_DONTWAIT) >= 0;
  }
  // Waits until the server closes; true if it did so without sending more.
  bool ClosedByServer() { return pending_.empty() && !Fill() && pending_.empty() && closed_; }

 private:
  bool Fill() {
    char block[4096];
    const ssize_t n = recv(fd_, block, sizeof block, 0);
    closed_ = n == 0 || (n < 0 && errno == ECONNRESET);
    if (n <= 0) return false;
    pending_.append(block, n);
    return true;
  }
  int fd_;
  bool connected_ = false, closed_ = false;
  std::string pending_;
};

// One request on a connection of its own.
inline std::string HttpGet(int port, const std::string& target) {
  HttpTestClient client(port);
  client.Send("GET " + target + " HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
  return client.Receive();
}

}  // namespace distill

#endif  // DISTILL_TESTS_COMMON_HTTP_HTTP_TEST_CLIENT_H_
