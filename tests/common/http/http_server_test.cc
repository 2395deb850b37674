#include "common/http/http_server.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
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

TEST(HttpServerTest, IdleConnectionsAreClosed) {
  auto server = MustStart({.idle = std::chrono::milliseconds(50)});
  HttpTestClient silent(server->port()), half(server->port());
  half.Send("GET /hello HTT");
  EXPECT_TRUE(silent.ClosedByServer());
  EXPECT_TRUE(half.ClosedByServer());
}

TEST(HttpServerTest, ConnectionsAboveTheLimitWait) {
  auto server = MustStart({.connections = 2});
  auto first = std::make_unique<HttpTestClient>(server->port());
  HttpTestClient second(server->port()), third(server->port());
  for (HttpTestClient* client : {first.get(), &second}) {
    client->Send("GET /hello HTTP/1.1\r\nHost: t\r\n\r\n");
    EXPECT_THAT(client->Receive(), StartsWith("HTTP/1.1 200 "));
  }
  third.Send("GET /jobs/3 HTTP/1.1\r\nHost: t\r\n\r\n");
  first.reset();  // makes room
  EXPECT_THAT(third.Receive(), EndsWith("job /jobs/3"));
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
