#include "common/http/http_server.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <pthread.h>
#include <sys/resource.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <deque>
#include <future>
#include <memory>
#include <stdexcept>
#include <thread>
#include <vector>

#include "tests/common/http/http_test_client.h"
#include "tests/common/http/https_test_client.h"
#include "tests/common/rpc/rpc_test_util.h"

namespace distill {
namespace {

using testing::AllOf;
using testing::AnyOf;
using testing::EndsWith;
using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;

std::map<std::string, HttpHandler> Routes() {
  return {
      {"/hello",
       [](const HttpRequest&) {
         return HttpResponse{.body = "hello\n", .headers = {{"Cache-Control", "no-store"}}};
       }},
      {"/echo",
       [](const HttpRequest& request) {
         HttpResponse response;
         for (const auto& [name, value] : request.query) response.body += name + "=" + value + ";";
         response.body += request.headers.contains("x-test") ? request.headers.at("x-test") : "-";
         return response;
       }},
      {"/jobs/*",
       [](const HttpRequest& request) { return HttpResponse{.status = 202, .body = "job " + request.path}; }},
      {"/jobs/special", [](const HttpRequest&) { return HttpResponse{.body = "special"}; }},
      {"POST /form",
       [](const HttpRequest& request) { return HttpResponse{.body = request.method + " " + request.body}; }},
      {"/both", [](const HttpRequest&) { return HttpResponse{.body = "got"}; }},
      {"POST /both", [](const HttpRequest&) { return HttpResponse{.body = "posted"}; }},
      {"/unchanged",
       [](const HttpRequest&) {
         return HttpResponse{.status = 304, .headers = {{"ETag", "\"1\""}}};
       }},
      {"/peer",
       [](const HttpRequest& request) {
         return HttpResponse{.body = request.peer + (request.tls ? " over TLS" : " in the clear")};
       }},
      {"/throws", [](const HttpRequest&) -> HttpResponse { throw std::runtime_error("secret"); }},
  };
}

std::unique_ptr<HttpServer> MustStart(const HttpLimits& limits = {}) {
  auto server = HttpServer::Start("127.0.0.1:0", Routes(), limits);
  EXPECT_TRUE(server.ok()) << server.status();
  return server.ok() ? std::move(*server) : nullptr;
}

TEST(HttpServerTest, RoutesByPathAndPrefix) {
  auto server = MustStart();
  EXPECT_EQ(server->address(), "127.0.0.1:" + std::to_string(server->port()));
  EXPECT_THAT(
      HttpGet(server->port(), "/hello"),
      AllOf(StartsWith("HTTP/1.1 200 OK\r\n"), HasSubstr("Content-Type: text/plain; charset=utf-8\r\n"),
            HasSubstr("Content-Length: 6\r\n"), HasSubstr("Cache-Control: no-store\r\n"), EndsWith("\r\n\r\nhello\n")));
  EXPECT_THAT(HttpGet(server->port(), "/jobs/7"), AllOf(StartsWith("HTTP/1.1 202 "), EndsWith("job /jobs/7")));
  EXPECT_THAT(HttpGet(server->port(), "/jobs/7/log"), EndsWith("job /jobs/7/log"));
  EXPECT_THAT(HttpGet(server->port(), "/jobs/special"), EndsWith("special"));
  for (const char* target : {"/", "/hello/", "/jobs", "/jobs/../hello", "/nothing"}) {
    const bool below_jobs = std::string(target) == "/jobs/../hello";  // a path is a name, never walked
    EXPECT_THAT(HttpGet(server->port(), target), StartsWith(below_jobs ? "HTTP/1.1 202 " : "HTTP/1.1 404 ")) << target;
  }
}

TEST(HttpServerTest, QueryAndHeadersReachTheHandler) {
  auto server = MustStart();
  HttpTestClient client(server->port());
  client.Send("GET /echo?a=1&b=x%20y+z&c&&d=%zz%4 HTTP/1.1\r\nHost: test\r\nX-TEST: seen\r\n\r\n");
  EXPECT_THAT(client.Receive(), EndsWith("\r\n\r\na=1;b=x y z;c=;d=%zz%4;seen"));
}

TEST(HttpServerTest, HeadHasTheLengthButNoBody) {
  auto server = MustStart();
  HttpTestClient client(server->port());
  client.Send("HEAD /hello HTTP/1.1\r\nHost: test\r\n\r\n");
  EXPECT_THAT(client.Receive(true),
              AllOf(StartsWith("HTTP/1.1 200 OK\r\n"), HasSubstr("Content-Length: 6\r\n"), EndsWith("\r\n\r\n")));
  client.Send("GET /hello HTTP/1.1\r\nHost: test\r\n\r\n");  // the next answer follows at once: no body was in between
  EXPECT_THAT(client.Receive(), AllOf(StartsWith("HTTP/1.1 200 OK\r\n"), EndsWith("hello\n")));
}

TEST(HttpServerTest, OtherMethodsAreNotAllowed) {
  auto server = MustStart();
  for (const std::string method : {"POST", "PUT", "DELETE", "BREW"}) {
    HttpTestClient client(server->port());
    client.Send(method + " /hello HTTP/1.1\r\nHost: test\r\nContent-Length: 2\r\n\r\nhi");
    EXPECT_THAT(client.Receive(), AllOf(StartsWith("HTTP/1.1 405 "), HasSubstr("Allow: GET, HEAD\r\n"))) << method;
  }
}

TEST(HttpServerTest, MalformedRequestsGet400AndAreClosed) {
  auto server = MustStart();
  for (const char* bytes : {"nonsense\r\n\r\n", "GET /hello\r\n\r\n", "GET /hello HTTP/1.1\r\nno colon\r\n\r\n",
                            "\x16\x03\x01\x02\r\n\r\n", "GET /hello HTTP/1.1\r\nContent-Length: x\r\n\r\n"}) {
    HttpTestClient client(server->port());
    client.Send(bytes);
    EXPECT_THAT(client.Receive(), StartsWith("HTTP/1.1 400 ")) << bytes;
    EXPECT_TRUE(client.ClosedByServer()) << bytes;
  }
  EXPECT_THAT(HttpGet(server->port(), "/hello"), StartsWith("HTTP/1.1 200 "));
}

TEST(HttpServerTest, OversizedHeadersAndBodiesAreRefused) {
  auto server = MustStart();
  {
    HttpTestClient client(server->port());
    client.Send("GET /hello HTTP/1.1\r\nX-Long: " + std::string(100 << 10, 'x') + "\r\n\r\n");
    EXPECT_THAT(client.Receive(), StartsWith("HTTP/1.1 431 "));
  }
  {
    HttpTestClient client(server->port());
    client.Send("GET /hello HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n" + std::string(100 << 10, 'x'));
    EXPECT_THAT(client.Receive(), StartsWith("HTTP/1.1 413 "));
  }
  HttpTestClient client(server->port());
  client.Send("GET /hello HTTP/1.1\r\nX-Long: " + std::string(15 << 10, 'x') + "\r\n\r\n");
  EXPECT_THAT(client.Receive(), StartsWith("HTTP/1.1 200 "));
}

TEST(HttpServerTest, ThrowingHandlerGives500WithoutTheText) {
  auto server = MustStart();
  EXPECT_THAT(HttpGet(server->port(), "/throws"), AllOf(StartsWith("HTTP/1.1 500 "), Not(HasSubstr("secret"))));
  EXPECT_THAT(HttpGet(server->port(), "/hello"), StartsWith("HTTP/1.1 200 "));
}

TEST(HttpServerTest, PipelinedRequestsAreAnsweredInOrder) {
  auto server = MustStart();
  HttpTestClient client(server->port());
  client.Send("GET /jobs/1 HTTP/1.1\r\nHost: t\r\n\r\nGET /jobs/2 HTTP/1.1\r\nHost: t\r\n\r\n");
  EXPECT_THAT(client.Receive(), EndsWith("job /jobs/1"));
  EXPECT_THAT(client.Receive(), EndsWith("job /jobs/2"));
}

TEST(HttpServerTest, ConnectionsThatSendNoRequestAreClosedSoon) {
  auto server = MustStart({.first = std::chrono::milliseconds(50)});
  HttpTestClient silent(server->port()), half(server->port()), asked(server->port());
  asked.Send("GET /hello HTTP/1.1\r\nHost: t\r\n\r\n");
  half.Send("GET /hello HTT");
  EXPECT_TRUE(silent.ClosedByServer());
  EXPECT_TRUE(half.ClosedByServer());
  EXPECT_THAT(asked.Receive(), EndsWith("hello\n"));
  asked.Send("GET /jobs/2 HTTP/1.1\r\nHost: t\r\n\r\n");  // this one has more time
  EXPECT_THAT(asked.Receive(), EndsWith("job /jobs/2"));
}

TEST(HttpServerTest, IdleConnectionsAreClosed) {
  auto server = MustStart({.idle = std::chrono::milliseconds(50)});
  HttpTestClient idle(server->port());
  idle.Send("GET /hello HTTP/1.1\r\nHost: t\r\n\r\n");
  EXPECT_THAT(idle.Receive(), EndsWith("hello\n"));
  EXPECT_TRUE(idle.ClosedByServer());
}

// Before, 64 of them were enough, and the kernel's queue kept as many others as it holds.
TEST(HttpServerTest, HoweverManyConnectionsSilenceNoProbe) {
  rlimit files{};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &files), 0);
  files.rlim_cur = files.rlim_max;
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &files), 0);
  auto server = MustStart();
  std::deque<HttpTestClient> held;  // none closes by itself
  const size_t most = std::min<size_t>(6000, files.rlim_max / 2);
  for (size_t i = 0; i < most; ++i) {
    HttpTestClient& client = held.emplace_back(server->port());
    ASSERT_TRUE(client.connected()) << i;
    if (i % 3 == 1) client.Send("GET /hello HTTP/1.1\r\nX-Drip: ");
    if (i % 3 == 2) client.Send("GET /hello HTTP/1.1\r\nHost: t\r\n\r\n");  // and keeps the connection
    if (i % 500 == 499) {
      EXPECT_THAT(HttpGet(server->port(), "/hello"), EndsWith("hello\n")) << i;
    }
  }
  EXPECT_THAT(HttpGet(server->port(), "/hello"), EndsWith("hello\n"));
}

TEST(HttpServerTest, WhoHoldsTheMostConnectionsLosesTheIdlest) {
  auto server = MustStart({.connections = 4});
  const auto connect = [&](const char* from) {
    auto client = std::make_unique<HttpTestClient>(server->port(), from);
    client->Send("GET /hello HTTP/1.1\r\nHost: t\r\n\r\n");
    EXPECT_THAT(client->Receive(), EndsWith("hello\n"));
    return client;
  };
  const auto ask = [&](HttpTestClient* client) {
    client->Send("GET /jobs/1 HTTP/1.1\r\nHost: t\r\n\r\n");
    return client->Receive();
  };
  const auto other = connect("127.0.0.2");  // idle for the longest time
  const auto first = connect("127.0.0.1"), second = connect("127.0.0.1"), third = connect("127.0.0.1");
  EXPECT_THAT(ask(first.get()), EndsWith("job /jobs/1"));  // now the second is idle the longest
  const auto fourth = connect("127.0.0.1");
  EXPECT_TRUE(second->ClosedByServer());
  for (HttpTestClient* client : {other.get(), first.get(), third.get(), fourth.get()}) {
    EXPECT_THAT(ask(client), EndsWith("job /jobs/1"));
  }
}

TEST(HttpServerTest, NameOfTheMachineItselfMeansBothAddresses) {
  auto server = HttpServer::Start("localhost:0", Routes());
  ASSERT_TRUE(server.ok()) << server.status();
  EXPECT_EQ((*server)->address(), "localhost:" + std::to_string((*server)->port()));
  EXPECT_THAT(HttpGet((*server)->port(), "/hello"), EndsWith("hello\n"));  // 127.0.0.1
  const int six = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in6 own{.sin6_family = AF_INET6, .sin6_addr = in6addr_loopback};
  if (six >= 0 && bind(six, reinterpret_cast<sockaddr*>(&own), sizeof own) == 0) {
    sockaddr_in6 to{.sin6_family = AF_INET6, .sin6_addr = in6addr_loopback};
    to.sin6_port = htons(static_cast<uint16_t>((*server)->port()));
    EXPECT_EQ(connect(six, reinterpret_cast<sockaddr*>(&to), sizeof to), 0) << "IPv6";
  }
  close(six);
}

TEST(HttpServerTest, StopClosesOpenConnections) {
  for (size_t connections : {2, 64}) {  // also while the acceptor is paused
    auto server = MustStart({.connections = connections});
    HttpTestClient silent(server->port()), half(server->port());
    half.Send("GET /hello HTTP/1.1\r\n");
    {
      HttpTestClient probe(server->port());  // shows that the loop runs, when it may
      if (connections > 2) {
        probe.Send("GET /hello HTTP/1.1\r\nHost: t\r\n\r\n");
        EXPECT_THAT(probe.Receive(), StartsWith("HTTP/1.1 200 "));
      }
    }
    const int port = server->port();
    server.reset();
    EXPECT_TRUE(silent.ClosedByServer());
    EXPECT_TRUE(half.ClosedByServer());
    EXPECT_FALSE(HttpTestClient(port).connected());
  }
}

TEST(HttpServerTest, PortInUseAndBadAddressesAreNamed) {
  auto server = MustStart();
  const Status taken = HttpServer::Start(server->address(), {}).status();
  EXPECT_EQ(taken.code(), StatusCode::kUnavailable) << taken;
  EXPECT_THAT(std::string(taken.message()), HasSubstr("port " + std::to_string(server->port()) + " is in use"));
  EXPECT_EQ(HttpServer::Start("nonsense", {}).status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(HttpServer::Start("192.0.2.1:0", {}).status().code(), StatusCode::kInvalidArgument);  // not ours
}

TEST(HttpServerTest, TakesPostsWhereARouteAsksForThem) {
  auto server = MustStart();
  const auto exchange = [&](const std::string& method, const std::string& path, const std::string& body) {
    HttpTestClient client(server->port());
    client.Send(method + " " + path + " HTTP/1.1\r\nHost: test\r\nContent-Length: " + std::to_string(body.size()) +
                "\r\nConnection: close\r\n\r\n" + body);
    return client.Receive();
  };
  EXPECT_THAT(exchange("POST", "/form", "a=1&b=2"), EndsWith("\r\n\r\nPOST a=1&b=2"));
  EXPECT_THAT(exchange("POST", "/both", ""), EndsWith("posted"));
  EXPECT_THAT(exchange("GET", "/both", ""), EndsWith("got"));
  EXPECT_THAT(exchange("GET", "/form", ""), AllOf(StartsWith("HTTP/1.1 405 "), HasSubstr("Allow: POST\r\n")));
  EXPECT_THAT(exchange("DELETE", "/both", ""),
              AllOf(StartsWith("HTTP/1.1 405 "), HasSubstr("Allow: GET, HEAD, POST\r\n")));
  EXPECT_THAT(exchange("POST", "/echo", ""), StartsWith("HTTP/1.1 405 "));
  EXPECT_THAT(exchange("GET", "/POST%20/form", ""), StartsWith("HTTP/1.1 404 "));
  EXPECT_THAT(exchange("GET", "POST /form", ""), StartsWith("HTTP/1.1 400 "));
  EXPECT_THAT(exchange("POST", "/form", std::string(20000, 'x')), StartsWith("HTTP/1.1 413 "));
}

TEST(HttpServerTest, AnUnchangedPageHasNoBodyAndTheConnectionGoesOn) {
  auto server = MustStart();
  HttpTestClient client(server->port());
  for (int i = 0; i < 2; ++i) {
    client.Send("GET /unchanged HTTP/1.1\r\nHost: test\r\n\r\n");
    const std::string answer = client.Receive();
    EXPECT_THAT(answer, AllOf(StartsWith("HTTP/1.1 304 "), HasSubstr("ETag: \"1\""), Not(HasSubstr("Content-Length"))));
  }
  client.Send("GET /hello HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
  EXPECT_THAT(client.Receive(), EndsWith("\r\n\r\nhello\n"));
}

TEST(HttpServerTest, WithACertificateOnePortSpeaksTlsAndPlainHttp) {
  const KeyAndCertificate made = MakeCertificate("status");
  auto started = HttpServer::Start("127.0.0.1:0", Routes(), {}, {.certificate = made.certificate, .key = made.key});
  ASSERT_TRUE(started.ok()) << started.status();
  const int port = (*started)->port();
  const std::string request = "GET /peer HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n";
  EXPECT_THAT(HttpsExchange(port, request, made.certificate), EndsWith("\r\n\r\n127.0.0.1 over TLS"));
  EXPECT_THAT(HttpGet(port, "/peer"), EndsWith("\r\n\r\n127.0.0.1 in the clear"));
  // A request that comes in pieces is not taken for TLS.
  HttpTestClient slow(port);
  slow.Send("G");
  slow.Send("ET /peer HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
  EXPECT_THAT(slow.Receive(), EndsWith("in the clear"));
  // A client that does not trust the certificate gets nothing, a broken handshake ends its connection, and others go
  // on.
  EXPECT_THAT(HttpsExchange(port, request, MakeCertificate("other").certificate), StartsWith("error: "));
  HttpTestClient broken(port);
  broken.Send(std::string("\x16\x03\x01\x00\x05hello", 10));
  broken.Receive();
  EXPECT_TRUE(broken.ClosedByServer());
  EXPECT_THAT(HttpsExchange(port, request, made.certificate), EndsWith("over TLS"));
}

// A temporary file's descriptor; the name is gone at once.
int FileWith(const std::string& content) {
  std::string path = testing::TempDir() + "http_test_XXXXXX";
  const int fd = mkstemp(path.data());
  EXPECT_GE(fd, 0);
  unlink(path.c_str());
  for (size_t done = 0; done < content.size();) {
    const ssize_t n = write(fd, content.data() + done, content.size() - done);
    EXPECT_GT(n, 0);
    if (n <= 0) break;
    done += n;
  }
  return fd;
}

// Three pieces and a bit, no two alike.
std::string LongText() {
  std::string text;
  for (int i = 0; text.size() < 3 * HttpFile::kPiece + 17; ++i) text += std::to_string(i) + ",";
  return text;
}

std::map<std::string, HttpHandler> FileRoutes(const std::string& content) {
  const auto file = [content](uint64_t offset, uint64_t length) {
    return HttpResponse{.file = std::make_shared<HttpFile>(FileWith(content), "test file", offset, length)};
  };
  return {{"/whole", [=](const HttpRequest&) { return file(0, content.size()); }},
          {"/part", [=](const HttpRequest&) { return file(5, 7); }},
          {"/empty", [=](const HttpRequest&) { return file(0, 0); }},
          {"/shrunk", [=](const HttpRequest&) { return file(0, content.size() + 1); }},
          {"/later",
           [=](const HttpRequest& request) {
             return HttpResponse{.later = [=, peer = request.peer] {
               HttpResponse response = file(0, content.size());
               response.status = 206;
               response.headers["X-Peer"] = peer;
               return response;
             }};
           }},
          {"/later-throws",
           [](const HttpRequest&) {
             return HttpResponse{.later = []() -> HttpResponse { throw std::runtime_error("secret"); }};
           }},
          {"/hello", [](const HttpRequest&) { return HttpResponse{.body = "hello\n"}; }}};
}

TEST(HttpServerTest, FilesAreSentInPiecesAndTheConnectionGoesOn) {
  const std::string content = LongText();
  auto server = HttpServer::Start("127.0.0.1:0", FileRoutes(content));
  ASSERT_TRUE(server.ok()) << server.status();
  HttpTestClient client((*server)->port());
  const auto get = [&](const std::string& method, const std::string& path) {
    client.Send(method + " " + path + " HTTP/1.1\r\nHost: test\r\n\r\n");
    return client.Receive(method == "HEAD");
  };
  const std::string whole = get("GET", "/whole");
  EXPECT_THAT(whole.substr(0, 400), HasSubstr("Content-Length: " + std::to_string(content.size()) + "\r\n"));
  EXPECT_TRUE(whole.ends_with("\r\n\r\n" + content)) << whole.size();
  EXPECT_THAT(get("HEAD", "/whole"),
              AllOf(HasSubstr("Content-Length: " + std::to_string(content.size()) + "\r\n"), EndsWith("\r\n\r\n")));
  EXPECT_THAT(get("GET", "/part"), EndsWith("\r\n\r\n" + content.substr(5, 7)));
  EXPECT_THAT(get("GET", "/empty"), AllOf(HasSubstr("Content-Length: 0\r\n"), EndsWith("\r\n\r\n")));
  const std::string later = get("GET", "/later");
  EXPECT_THAT(later.substr(0, 400), AllOf(StartsWith("HTTP/1.1 206 "), HasSubstr("X-Peer: 127.0.0.1\r\n")));
  EXPECT_TRUE(later.ends_with("\r\n\r\n" + content)) << later.size();
  EXPECT_THAT(get("GET", "/later-throws"), AllOf(StartsWith("HTTP/1.1 500 "), Not(HasSubstr("secret"))));
  EXPECT_THAT(get("GET", "/hello"), EndsWith("hello\n"));
}

TEST(HttpServerTest, AFileThatHasBecomeShorterClosesTheConnection) {
  const std::string content = LongText();
  const KeyAndCertificate made = MakeCertificate("files");
  auto server =
      HttpServer::Start("127.0.0.1:0", FileRoutes(content), {}, {.certificate = made.certificate, .key = made.key});
  ASSERT_TRUE(server.ok()) << server.status();
  const int port = (*server)->port();
  HttpTestClient client(port);
  client.Send("GET /shrunk HTTP/1.1\r\nHost: test\r\n\r\n");
  const std::string cut = client.Receive();  // less than Content-Length says: Receive() ends with the connection
  EXPECT_THAT(cut.substr(0, 400), HasSubstr("Content-Length: " + std::to_string(content.size() + 1) + "\r\n"));
  EXPECT_LT(cut.size() - cut.find("\r\n\r\n") - 4, content.size() + 1);
  EXPECT_TRUE(client.ClosedByServer());
  // Over TLS it is no orderly end either.
  const auto over_tls = [&](const std::string& path) {
    return HttpsExchange(port, "GET " + path + " HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n",
                         made.certificate);
  };
  EXPECT_THAT(over_tls("/shrunk"), StartsWith("error: "));
  const std::string whole = over_tls("/whole");
  EXPECT_TRUE(whole.ends_with("\r\n\r\n" + content)) << whole.substr(0, 400);
}

TEST(HttpServerTest, WhatBlocksHoldsUpNobodyElse) {
  std::promise<void> release;
  std::shared_future<void> released = release.get_future().share();
  std::atomic<int> begun = 0;
  auto server = HttpServer::Start("127.0.0.1:0",
                                  {{"/slow",
                                    [&](const HttpRequest&) {
                                      return HttpResponse{.later = [&, released] {
                                        ++begun;
                                        released.wait();
                                        return HttpResponse{.body = "at last"};
                                      }};
                                    }},
                                   {"/hello", [](const HttpRequest&) { return HttpResponse{.body = "hello\n"}; }}});
  ASSERT_TRUE(server.ok()) << server.status();
  const int port = (*server)->port();
  HttpTestClient slow(port), waiting(port), gone(port);
  slow.Send("GET /slow HTTP/1.1\r\nHost: test\r\n\r\n");
  while (begun == 0) std::this_thread::yield();
  waiting.Send("GET /slow HTTP/1.1\r\nHost: test\r\n\r\n");
  EXPECT_THAT(HttpGet(port, "/hello"), EndsWith("hello\n"));
  release.set_value();
  EXPECT_THAT(slow.Receive(), EndsWith("at last"));
  EXPECT_THAT(waiting.Receive(), EndsWith("at last"));
}

// Handlers that hang until the test ends. What they touch is shared: a thread may outlive the server.
struct Hang {
  std::promise<void> release;
  std::shared_future<void> released = release.get_future().share();
  std::shared_ptr<std::atomic<int>> begun = std::make_shared<std::atomic<int>>(0);

  HttpHandler Handler(HttpLane lane) const {
    return [*this, lane](const HttpRequest&) {
      return HttpResponse{.later =
                              [begun = begun, released = released] {
                                ++*begun;
                                released.wait();
                                return HttpResponse{.body = "at last"};
                              },
                          .lane = lane};
    };
  }
  void AwaitBegun(int count) const {
    while (*begun < count) std::this_thread::yield();
  }

  Hang() = default;
  Hang(const Hang& other) : released(other.released), begun(other.begun) {}
};
std::string Ask(HttpTestClient* client, const std::string& path) {
  client->Send("GET " + path + " HTTP/1.1\r\nHost: test\r\n\r\n");
  return client->Receive();
}

TEST(HttpServerTest, AVolumeThatHangsGives503AndHoldsUpNeitherOthersNorTheEnd) {
  Hang hang;
  auto server = HttpServer::Start("127.0.0.1:0",
                                  {{"/files", hang.Handler(HttpLane::kFiles)},
                                   {"/state",
                                    [](const HttpRequest&) {
                                      return HttpResponse{.later = [] { return HttpResponse{.body = "state\n"}; },
                                                          .lane = HttpLane::kState};
                                    }},
                                   {"/hello", [](const HttpRequest&) { return HttpResponse{.body = "hello\n"}; }}},
                                  {.later = std::chrono::milliseconds(100), .stop = std::chrono::milliseconds(50)});
  ASSERT_TRUE(server.ok()) << server.status();
  const int port = (*server)->port();
  for (int i = 0; i < 300; ++i) {  // more than there may be connections, most of them at once
    HttpTestClient client(port);
    EXPECT_THAT(Ask(&client, "/files"), AllOf(StartsWith("HTTP/1.1 503 "), HasSubstr("Retry-After: 5\r\n"))) << i;
    EXPECT_THAT(Ask(&client, "/state"), EndsWith("state\n"));
    EXPECT_THAT(Ask(&client, "/hello"), EndsWith("hello\n"));
  }
  EXPECT_EQ(*hang.begun, 1);
  server->reset();  // comes back although it hangs still
  hang.release.set_value();
}

TEST(HttpServerTest, OnlySoManyWaitForALane) {
  Hang hang;
  auto server = HttpServer::Start("127.0.0.1:0", {{"/files", hang.Handler(HttpLane::kFiles)}}, {.waiting = 2});
  ASSERT_TRUE(server.ok()) << server.status();
  std::deque<HttpTestClient> clients;
  for (int i = 0; i < 4; ++i) {
    HttpTestClient& client = clients.emplace_back((*server)->port());
    client.Send("GET /files HTTP/1.1\r\nHost: test\r\n\r\n");
    if (i == 0) hang.AwaitBegun(1);
  }
  // Which of the three that came later finds no place depends on the kernel.
  hang.release.set_value();
  int refused = 0;
  for (HttpTestClient& client : clients) {
    const std::string answer = client.Receive();
    refused += answer.starts_with("HTTP/1.1 503 ");
    EXPECT_THAT(answer, AnyOf(StartsWith("HTTP/1.1 503 "), EndsWith("at last")));
  }
  EXPECT_LE(refused, 1);
}

TEST(HttpServerTest, NothingIsMadeForAPeerThatHasGone) {
  Hang hang;
  auto server = HttpServer::Start("127.0.0.1:0", {{"/files", hang.Handler(HttpLane::kFiles)}}, {.waiting = 1});
  ASSERT_TRUE(server.ok()) << server.status();
  const int port = (*server)->port();
  HttpTestClient running(port);
  running.Send("GET /files HTTP/1.1\r\nHost: test\r\n\r\n");
  hang.AwaitBegun(1);
  auto gone = std::make_unique<HttpTestClient>(port);
  gone->Send("GET /files HTTP/1.1\r\nHost: test\r\n\r\n");
  // Holds the lane's only place, as soon as a further one is refused ...
  HttpTestClient further(port);
  while (true) {
    further.Send("GET /files HTTP/1.1\r\nHost: test\r\n\r\n");
    if (further.Receive().starts_with("HTTP/1.1 503 ")) break;
    FAIL() << "the lane took more than it may";
  }
  // ... until it is noticed that it has gone.
  gone.reset();
  HttpTestClient last(port);
  while (true) {
    last.Send("GET /files HTTP/1.1\r\nHost: test\r\n\r\n");
    HttpGet(port, "/nothing");  // what came before this has been looked at
    if (!last.HasAnswer()) break;
    EXPECT_THAT(last.Receive(), StartsWith("HTTP/1.1 503 "));
  }
  hang.release.set_value();
  EXPECT_THAT(last.Receive(), EndsWith("at last"));
  EXPECT_THAT(running.Receive(), EndsWith("at last"));
  EXPECT_EQ(*hang.begun, 2);
}

TEST(HttpServerTest, ALaneMayHandOnToAnother) {
  auto server = HttpServer::Start("127.0.0.1:0", {{"/both", [](const HttpRequest&) {
                                                     return HttpResponse{.later =
                                                                             [] {
                                                                               return HttpResponse{.later = [] {
                                                                                 char name[16];
                                                                                 pthread_getname_np(pthread_self(),
                                                                                                    name, sizeof name);
                                                                                 return HttpResponse{.body = name};
                                                                               }};
                                                                             },
                                                                         .lane = HttpLane::kState};
                                                   }}});
  ASSERT_TRUE(server.ok()) << server.status();
  EXPECT_THAT(HttpGet((*server)->port(), "/both"), EndsWith("http-files"));
}

TEST(HttpServerTest, StopEndsFilesThatAreOnTheirWay) {
  const std::string content = LongText() + LongText();
  std::promise<void> release;
  std::shared_future<void> released = release.get_future().share();
  std::atomic<int> begun = 0;
  auto routes = FileRoutes(content);
  routes["/slow"] = [&](const HttpRequest&) {
    return HttpResponse{.later = [&, released] {
      ++begun;
      released.wait();
      return HttpResponse{.body = "too late"};
    }};
  };
  auto server = HttpServer::Start("127.0.0.1:0", routes);
  ASSERT_TRUE(server.ok()) << server.status();
  HttpTestClient file((*server)->port()), slow((*server)->port()), queued((*server)->port());
  // Nobody reads: the answer waits in the socket.
  file.Send("GET /whole HTTP/1.1\r\nHost: test\r\n\r\n");
  slow.Send("GET /slow HTTP/1.1\r\nHost: test\r\n\r\n");
  while (begun == 0) std::this_thread::yield();
  queued.Send("GET /slow HTTP/1.1\r\nHost: test\r\n\r\n");
  EXPECT_THAT(HttpGet((*server)->port(), "/hello"), EndsWith("hello\n"));
  std::thread stop([&] { server->reset(); });  // waits for what blocks
  release.set_value();
  stop.join();
  for (HttpTestClient* client : {&slow, &queued}) {
    client->Receive();  // an answer, or none: both may happen
    EXPECT_TRUE(client->ClosedByServer());
  }
}

TEST(HttpServerTest, ACertificateThatCannotBeUsedIsRefused) {
  const KeyAndCertificate one = MakeCertificate("one");
  const auto started =
      HttpServer::Start("127.0.0.1:0", Routes(), {}, {.certificate = one.certificate, .key = "no key"});
  EXPECT_EQ(started.status().code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(started.status().message()), HasSubstr("TLS"));
}

}  // namespace
}  // namespace distill
