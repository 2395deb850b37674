// What a stranger may send to a port: messages that are large, or large once unpacked.
#ifndef DISTILL_TESTS_COMMON_RPC_BIG_MESSAGE_H_
#define DISTILL_TESTS_COMMON_RPC_BIG_MESSAGE_H_

#include <grpcpp/create_channel.h>
#include <grpcpp/generic/generic_stub.h>
#include <gtest/gtest.h>

#include <chrono>
#include <fstream>
#include <string>
#include <vector>

namespace distill {

// Calls `method` of the server at `address`, plaintext and without a token, with a message of `mebibytes` of zeros. The
// message takes one mebibyte here, and with `gzip` a thousandth of its size on the wire.
inline grpc::Status SendZeros(const std::string& address, const std::string& method, int mebibytes, bool gzip) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxSendMessageSize(-1);
  if (gzip) arguments.SetCompressionAlgorithm(GRPC_COMPRESS_GZIP);
  grpc::GenericStub stub(grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments));
  const std::vector<grpc::Slice> slices(mebibytes, grpc::Slice(std::string(1 << 20, '\0')));
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(60));
  grpc::CompletionQueue queue;
  auto call = stub.PrepareUnaryCall(&context, method, grpc::ByteBuffer(slices.data(), slices.size()), &queue);
  call->StartCall();
  grpc::ByteBuffer answer;
  grpc::Status status;
  call->Finish(&answer, &status, nullptr);
  void* tag;
  bool ok;
  queue.Next(&tag, &ok);
  return status;
}

// The most memory that a process has held since ResetPeakMemory(), in MiB.
inline int PeakMemory(const std::string& process = "self") {
  std::ifstream status("/proc/" + process + "/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("VmHWM:")) return std::stoi(line.substr(6)) >> 10;
  }
  ADD_FAILURE() << "no VmHWM of " << process;
  return 0;
}
inline void ResetPeakMemory(const std::string& process = "self") {
  EXPECT_TRUE(std::ofstream("/proc/" + process + "/clear_refs") << "5" << std::flush) << process;
}

}  // namespace distill

#endif  // DISTILL_TESTS_COMMON_RPC_BIG_MESSAGE_H_
