// One HTTPS request for tests. The certificate is checked against `authority` (PEM).
#ifndef DISTILL_TESTS_COMMON_HTTP_HTTPS_TEST_CLIENT_H_
#define DISTILL_TESTS_COMMON_HTTP_HTTPS_TEST_CLIENT_H_

#include <boost/asio/connect.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/read.hpp>
#include <boost/asio/ssl.hpp>
#include <boost/asio/write.hpp>
#include <string>

namespace distill {

// The whole answer to `request`, which must ask for "Connection: close"; "error: ..." when TLS fails or the answer is
// cut off.
inline std::string HttpsExchange(int port, const std::string& request, const std::string& authority) {
  namespace asio = boost::asio;
  asio::io_context context;
  asio::ssl::context tls(asio::ssl::context::tls_client);
  tls.add_certificate_authority(asio::buffer(authority));
  tls.set_verify_mode(asio::ssl::verify_peer);
  asio::ssl::stream<asio::ip::tcp::socket> stream(context, tls);
  boost::system::error_code error;
  stream.next_layer().connect({asio::ip::address_v4::loopback(), static_cast<unsigned short>(port)}, error);
  if (!error) stream.handshake(asio::ssl::stream_base::client, error);
  if (!error) asio::write(stream, asio::buffer(request), error);
  if (error) return "error: " + error.message();
  std::string answer;
  asio::read(stream, asio::dynamic_buffer(answer), error);
  // A clean end, or OpenSSL 3's word for a peer that closed without saying so, is for the caller to tell apart.
  return error == asio::error::eof ? answer : "error: " + error.message();
}

}  // namespace distill

#endif  // DISTILL_TESTS_COMMON_HTTP_HTTPS_TEST_CLIENT_H_
