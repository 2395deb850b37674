// Feature-stream messages to and from gRPC byte buffers, tensors spliced in and out as slices.
//
// Layout on the wire: the message's other fields as protobuf writes them, then field 15 (`payload`): byte-identical to
// what a generated client would send. Decoding tolerates any field order and slice layout (peers may be generated
// code). Header types are the generated messages, forward-declared; only proto_codec.cc and the two gRPC shells include
// *.pb.h.
#ifndef DISTILL_COMMON_WIRE_PROTO_CODEC_H_
#define DISTILL_COMMON_WIRE_PROTO_CODEC_H_

#include <grpcpp/support/byte_buffer.h>

#include <cstddef>
#include <vector>

#include "common/status.h"
#include "common/wire/buffer.h"
#include "common/wire/scattered_buffer.h"

namespace google::protobuf {
class MessageLite;
}

namespace distill {

// Number of the payload field in FeatureRequest and FeatureResponse.
inline constexpr int kPayloadField = 15;

// [header fields][tag + length][payload slice]. The payload is referenced, not copied; `payload.owner` lives until gRPC
// is done. Bytes without an owner are copied. An empty payload adds nothing. REQUIRES: header has no payload set, and
// no field above 15.
grpc::ByteBuffer EncodeWithPayload(const google::protobuf::MessageLite& header, const Buffer& payload);

// Parses everything but the payload into `header`; `payload` refers into the received slices: nothing is copied. Its
// addresses have no particular alignment. Unknown fields are kept as protobuf keeps them.
// kInvalidArgument: malformed, truncated, or the payload occurs twice. On error both outputs are empty.
Status DecodeWithPayload(const grpc::ByteBuffer& message, google::protobuf::MessageLite* header,
                         ScatteredBuffer* payload);

// The same for a message whose tensors are in the repeated bytes field `field`.
//
// `enclosing_field`: not 0, the whole is that field of an outer
// message that holds nothing else. REQUIRES: header has no `field` set, and no field above it.
grpc::ByteBuffer EncodeWithPayloads(const google::protobuf::MessageLite& header, int field,
                                    const std::vector<Buffer>& payloads, int enclosing_field = 0);

struct DecodeLimits {
  size_t payloads = 0;      // more are kInvalidArgument
  size_t header_bytes = 0;  // more beside the payloads are kResourceExhausted; nothing of that size is made
};
Status DecodeWithPayloads(const grpc::ByteBuffer& message, int field, const DecodeLimits& limits,
                          google::protobuf::MessageLite* header, std::vector<ScatteredBuffer>* payloads);

}  // namespace distill

#endif  // DISTILL_COMMON_WIRE_PROTO_CODEC_H_
